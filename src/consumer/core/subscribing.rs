//! What is read: topics by name or by pattern, as a member of a group, or partitions chosen by the user. Pure.
//!
//! A pattern is the broker's to match in the consumer protocol (KIP-848), and the client's in the classic one; with
//! `group.protocol=auto` it is the client's until it is known who does. It must never have a topic created that only matches.

use std::sync::Arc;

use super::{Action, Core, Mode};
use crate::{
    cluster::Metadata,
    config::settings::GroupProtocol,
    error::{Error, ErrorKind, Result},
    pattern::{Pattern, invalid},
    record::{TopicPartition, check_topic},
    time::Instant,
    wire::Uuid,
};

/// A subscription by pattern.
pub(super) struct ByPattern {
    text: Arc<str>,
    /// As the client reads it; `None` where only the broker is to.
    pattern: Option<Arc<Pattern>>,
    /// The client matches it.
    is_followed: bool,
    /// Topics that the broker has found are looked for by their ids.
    is_identifying: bool,
    /// The snapshot that was matched last: each is once.
    seen: Option<Arc<Metadata>>,
    /// Some topic has matched the last time that one was looked for.
    has_matched: bool,
    /// The answer in which nothing matches any more; the next one must say so as well.
    missed_in: Option<u64>,
}

impl ByPattern {
    fn new(text: Arc<str>, pattern: Option<Arc<Pattern>>) -> Self {
        Self {
            text,
            pattern,
            is_followed: false,
            is_identifying: false,
            seen: None,
            has_matched: false,
            missed_in: None,
        }
    }

    /// What is to be subscribed to now, or that metadata must be asked for again. That nothing matches any more counts
    /// only when two answers say so: a broker that has just started, or topics that are all being made anew, must not
    /// cost the member its partitions.
    fn look(&mut self, metadata: &Arc<Metadata>, pattern: &Arc<Pattern>) -> Look {
        if self.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, metadata)) {
            return Look::Nothing;
        }
        self.seen = Some(Arc::clone(metadata));
        let Some(topics) = metadata.matching(pattern) else { return Look::Unknown };
        if topics.is_empty() && self.has_matched {
            let answer = metadata.matched_in();
            match self.missed_in {
                None => {
                    self.missed_in = answer;
                    return Look::Again;
                }
                missed if missed == answer => return Look::Nothing,
                Some(_) => {}
            }
        }
        self.missed_in = None;
        self.has_matched = !topics.is_empty();
        Look::Found(topics)
    }

    pub(super) fn identify(&mut self, topics: Vec<Uuid>) -> Action {
        self.is_identifying = true;
        Action::Identify(topics)
    }
}

/// What a look at the topics has brought.
enum Look {
    Nothing,
    /// Brokers have not told of all topics yet.
    Unknown,
    Again,
    Found(Vec<Arc<str>>),
}

impl Core {
    pub(crate) fn subscribe(&mut self, now: Instant, mut topics: Vec<Arc<str>>) -> Result<()> {
        self.check_open()?;
        topics.sort();
        topics.dedup();
        topics.iter().try_for_each(|topic| check_topic(topic.trim()))?;
        if matches!(self.mode, Mode::Manual) && !topics.is_empty() {
            return Err(exclusive());
        }
        let Some(member) = &mut self.member else {
            if topics.is_empty() {
                return self.assign(now, Vec::new());
            }
            return Err(without_group());
        };
        member.handle_subscription(now, topics.clone());
        self.drop_pattern();
        self.follow(now, topics.clone());
        if topics.is_empty() {
            self.commit_before_assign(now);
            let gone: Vec<_> = self.partitions.iter().map(|(key, _)| key.clone()).collect();
            if matches!(self.mode, Mode::Topics) {
                self.tell_lost(&gone);
                self.was_member = true;
            }
            self.partitions.clear();
            self.mode = Mode::None;
        } else {
            self.mode = Mode::Topics;
        }
        self.run_member(now);
        Ok(())
    }

    pub(crate) fn assign(&mut self, now: Instant, partitions: Vec<TopicPartition>) -> Result<()> {
        self.check_open()?;
        if matches!(self.mode, Mode::Topics) {
            return Err(exclusive());
        }
        partitions.iter().try_for_each(|key| check_topic(key.topic.trim()))?;
        if let Some(bad) = partitions.iter().find(|key| key.partition < 0) {
            let message = format!("'{bad}' cannot be a partition");
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        self.commit_before_assign(now);
        self.mode = if partitions.is_empty() { Mode::None } else { Mode::Manual };
        self.was_member = false;
        self.partitions.assign(partitions, &self.start_phase());
        self.refresh_leaders(now);
        self.follow(now, self.partitions.topics());
        Ok(())
    }

    /// No rebalance follows that would commit what is done of partitions that were assigned by hand.
    fn commit_before_assign(&mut self, now: Instant) {
        if self.settings.enable_auto_commit && matches!(self.mode, Mode::Manual) {
            self.commit_covered(now + self.client.default_api_timeout);
        }
    }

    /// Joins the group for all topics whose names match.
    pub(crate) fn subscribe_pattern(&mut self, now: Instant, text: &Arc<str>) -> Result<()> {
        self.check_open()?;
        if matches!(self.mode, Mode::Manual) {
            return Err(exclusive());
        }
        if text.is_empty() {
            return Err(invalid(text, "it is empty"));
        }
        if self.member.is_none() {
            return Err(without_group());
        }
        let is_brokers = self.settings.group_protocol == GroupProtocol::Consumer;
        let read = || Pattern::new(text, !self.settings.exclude_internal_topics);
        let pattern = if is_brokers { None } else { Some(read()?) };
        self.drop_pattern();
        self.follow(now, Vec::new());
        self.pattern = Some(ByPattern::new(Arc::clone(text), pattern));
        self.mode = Mode::Topics;
        self.advance_pattern(now);
        self.run_member(now);
        Ok(())
    }

    fn drop_pattern(&mut self) {
        if let Some(by) = self.pattern.take() {
            if by.is_identifying {
                self.actions.push_back(Action::Identify(Vec::new()));
            }
            if by.is_followed {
                self.actions.push_back(Action::FollowMatching(None));
            }
        }
    }

    /// With a pattern: tells the member what matches it, or follows what the broker has found to.
    pub(super) fn advance_pattern(&mut self, now: Instant) {
        let (Some(by), Some(member)) = (&mut self.pattern, &mut self.member) else { return };
        // Only as long as there is something to match for.
        let is_brokers = member.protocol() == Some(GroupProtocol::Consumer) || self.closing.is_some();
        let followed = by.pattern.clone().filter(|_| !is_brokers);
        if by.is_followed != followed.is_some() {
            by.is_followed = followed.is_some();
            self.actions.push_back(Action::FollowMatching(followed.clone()));
        }
        if by.is_identifying && member.is_named() {
            by.is_identifying = false;
            self.actions.push_back(Action::Identify(Vec::new()));
        }
        let text = Arc::clone(&by.text);
        match followed {
            Some(pattern) => match by.look(&self.metadata, &pattern) {
                Look::Found(topics) => member.handle_pattern(now, &text, topics),
                // What was subscribed to before stays until it is known what matches.
                Look::Unknown if member.protocol().is_none() => member.handle_pattern(now, &text, Vec::new()),
                Look::Again => self.actions.push_back(Action::RefreshMetadata),
                Look::Unknown | Look::Nothing => {}
            },
            None if self.closing.is_none() => {
                // The client may have to match once more.
                (by.seen, by.has_matched) = (None, false);
                member.handle_pattern(now, &text, Vec::new());
                let topics = self.partitions.topics();
                if self.interest.topics != topics {
                    // These topics exist. They are followed without being created again if they are deleted.
                    self.actions.push_back(Action::Follow(topics.clone()));
                    self.interest.topics = topics;
                    self.interest.due = None;
                }
            }
            None => {}
        }
    }
}

fn without_group() -> Error {
    Error::new(ErrorKind::Config, "subscribing needs a consumer group")
        .with_hint("set group.id, or choose partitions with assign")
}

fn exclusive() -> Error {
    Error::new(ErrorKind::InvalidArgument, "subscribe and assign exclude each other")
        .with_hint("call unsubscribe first")
}

#[cfg(test)]
#[cfg(feature = "pattern")]
mod tests {
    use super::*;
    use crate::{
        cluster::Metadata,
        config::KafkaConfig,
        flights::Token,
        group::{Answer, ConsumerHeartbeat, ConsumerHeartbeatAnswer, Request},
        time::{self, Rng},
        wire::{
            self,
            metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic},
        },
    };

    fn core(protocol: &str, now: Instant) -> Core {
        let config = KafkaConfig::new()
            .set_bootstrap_servers("localhost:9092")
            .set_group_id("g")
            .set("group.protocol", protocol);
        let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
        Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1))
    }

    fn actions(core: &mut Core, now: Instant) -> Vec<Action> {
        std::iter::from_fn(|| core.poll_action(now)).collect()
    }

    fn topic(name: &str) -> MetadataResponseTopic {
        let partition = MetadataResponsePartition { leader_id: 1, leader_epoch: 1, ..Default::default() };
        MetadataResponseTopic {
            name: Some(name.into()),
            topic_id: Uuid([name.len() as u8; 16]),
            partitions: vec![partition],
            ..Default::default()
        }
    }

    fn answer(topics: &[&str]) -> wire::MetadataResponse {
        let broker = MetadataResponseBroker {
            node_id: 1,
            host: wire::Str::from_static("b1"),
            port: 9092,
            ..Default::default()
        };
        let topics = topics.iter().map(|name| topic(name)).collect();
        wire::MetadataResponse { brokers: vec![broker], topics, ..Default::default() }
    }

    /// All topics there are, as brokers answer to a question about the pattern.
    fn all(core: &Core, topics: &[&str]) -> Arc<Metadata> {
        let pattern = core.pattern.as_ref().unwrap().pattern.as_ref().unwrap();
        Arc::new(core.metadata.merge_all(answer(topics), &[], pattern, |_| false))
    }

    fn joined(actions: &[Action]) -> Option<Vec<Arc<str>>> {
        actions.iter().find_map(|action| match action {
            Action::Group { request: Request::Join { topics, .. }, .. } => Some(topics.clone()),
            _ => None,
        })
    }

    fn beat(actions: &[Action]) -> Option<(Token, ConsumerHeartbeat)> {
        actions.iter().find_map(|action| match action {
            Action::Group { token, request: Request::ConsumerHeartbeat(beat), .. } => {
                Some((*token, beat.clone()))
            }
            _ => None,
        })
    }

    #[test]
    fn a_classic_member_joins_with_what_matches_once_all_topics_are_known() {
        let now = time::now();
        let mut core = core("classic", now);
        core.subscribe_pattern(now, &"orders-.*".into()).unwrap();
        core.handle_poll(now).unwrap();
        let first = actions(&mut core, now);
        assert!(first.iter().any(|action| matches!(action, Action::FollowMatching(Some(_)))), "{first:?}");
        assert!(!first.iter().any(|action| matches!(action, Action::RequireTopics { .. })), "none is made");
        assert_eq!(joined(&first), None);

        // Of some topics nobody has said that they are all.
        core.handle_metadata(now, Arc::new(core.metadata.merge(answer(&["orders-eu"]), &[], |_| true)));
        assert_eq!(joined(&actions(&mut core, now)), None);

        core.handle_metadata(now, all(&core, &["orders-eu", "users"]));
        assert_eq!(joined(&actions(&mut core, now)), Some(vec!["orders-eu".into()]));
    }

    #[test]
    fn by_names_again_the_pattern_is_forgotten() {
        let now = time::now();
        let mut core = core("classic", now);
        core.subscribe_pattern(now, &"orders-.*".into()).unwrap();
        core.subscribe(now, vec!["users".into()]).unwrap();
        let last = actions(&mut core, now);
        let followed = last.iter().rev().find_map(|action| match action {
            Action::FollowMatching(pattern) => Some(pattern.is_some()),
            _ => None,
        });
        assert_eq!(followed, Some(false));
        core.handle_poll(now).unwrap();
        assert_eq!(joined(&actions(&mut core, now)), Some(vec!["users".into()]));
    }

    #[test]
    fn the_broker_matches_in_the_consumer_protocol_and_topics_are_named_by_their_ids() {
        let now = time::now();
        let mut core = core("consumer", now);
        // Read by brokers alone.
        core.subscribe_pattern(now, &r"\p{L}+".into()).unwrap();
        core.handle_poll(now).unwrap();
        let first = actions(&mut core, now);
        assert!(!first.iter().any(|action| matches!(action, Action::FollowMatching(Some(_)))), "{first:?}");
        let (token, said) = beat(&first).unwrap();
        assert_eq!((said.pattern.as_deref(), said.topics), (Some(r"\p{L}+"), Some(Vec::new())));

        let assignment = Some(vec![(Uuid([6; 16]), 0)]);
        let interval = std::time::Duration::from_secs(5);
        let told =
            ConsumerHeartbeatAnswer { epoch: 1, interval, assignment, ..ConsumerHeartbeatAnswer::default() };
        core.handle_group(now, token, Ok(Answer::ConsumerHeartbeat(told)));
        let asked = actions(&mut core, now);
        let is_asked = |action: &Action| matches!(action, Action::Identify(ids) if *ids == [Uuid([6; 16])]);
        assert!(asked.iter().any(is_asked), "{asked:?}");

        core.handle_metadata(now, Arc::new(core.metadata.merge(answer(&["orders"]), &[], |_| true)));
        let orders = TopicPartition::new("orders", 0);
        assert!(core.partitions.get(&orders).is_some());
        let last = actions(&mut core, now);
        let follows = |action: &Action| matches!(action, Action::Follow(topics) if topics.len() == 1);
        assert!(last.iter().any(follows), "{last:?}");
        assert!(last.iter().any(|action| matches!(action, Action::Identify(ids) if ids.is_empty())));
        assert!(!last.iter().any(|action| matches!(action, Action::RequireTopics { .. })));
    }

    #[test]
    fn auto_matches_itself_until_the_broker_does() {
        let now = time::now();
        let mut core = core("auto", now);
        core.subscribe_pattern(now, &"orders".into()).unwrap();
        core.handle_metadata(now, all(&core, &["orders"]));
        core.handle_poll(now).unwrap();
        let (token, said) = beat(&actions(&mut core, now)).unwrap();
        assert_eq!((said.pattern.as_deref(), said.topics), (Some("orders"), Some(Vec::new())));
        let refused = ConsumerHeartbeatAnswer { error: 35, ..ConsumerHeartbeatAnswer::default() };
        core.handle_group(now, token, Ok(Answer::ConsumerHeartbeat(refused)));
        assert_eq!(joined(&actions(&mut core, now)), Some(vec!["orders".into()]), "in the classic protocol");

        let mut core = self::core("auto", now);
        core.subscribe_pattern(now, &"orders".into()).unwrap();
        core.handle_poll(now).unwrap();
        let (token, _) = beat(&actions(&mut core, now)).unwrap();
        let interval = std::time::Duration::from_secs(5);
        let told = ConsumerHeartbeatAnswer { epoch: 1, interval, ..ConsumerHeartbeatAnswer::default() };
        core.handle_group(now, token, Ok(Answer::ConsumerHeartbeat(told)));
        let settled = actions(&mut core, now);
        assert!(settled.iter().any(|action| matches!(action, Action::FollowMatching(None))), "{settled:?}");
    }

    #[test]
    fn what_is_no_pattern_is_refused_and_changes_nothing() {
        let now = time::now();
        let mut core = core("classic", now);
        core.subscribe(now, vec!["users".into()]).unwrap();
        for text in ["", "orders-("] {
            let error = core.subscribe_pattern(now, &text.into()).unwrap_err();
            assert!(error.to_string().contains(&format!("'{text}'")), "{error}");
        }
        core.handle_poll(now).unwrap();
        assert_eq!(joined(&actions(&mut core, now)), Some(vec!["users".into()]));
    }

    #[test]
    fn that_nothing_matches_any_more_counts_when_two_answers_about_all_topics_say_so() {
        let now = time::now();
        let mut core = core("classic", now);
        let has_matched = |core: &Core| core.pattern.as_ref().unwrap().has_matched;
        core.subscribe_pattern(now, &"orders-.*".into()).unwrap();
        core.handle_metadata(now, all(&core, &["orders-eu"]));
        core.handle_poll(now).unwrap();
        assert!(joined(&actions(&mut core, now)).is_some());
        let asks_again = |core: &mut Core| {
            actions(core, now).iter().filter(|action| matches!(action, Action::RefreshMetadata)).count()
        };

        core.handle_metadata(now, all(&core, &["users"]));
        assert_eq!(asks_again(&mut core), 1);
        // An answer about some topics says nothing of all.
        core.handle_metadata(
            now,
            Arc::new(core.metadata.merge(answer(&["users"]), &["users".into()], |_| true)),
        );
        assert_eq!((asks_again(&mut core), has_matched(&core)), (0, true));
        core.handle_metadata(now, all(&core, &["orders-eu"]));
        assert_eq!((asks_again(&mut core), has_matched(&core)), (0, true));

        core.handle_metadata(now, all(&core, &[]));
        assert_eq!((asks_again(&mut core), has_matched(&core)), (1, true));
        core.handle_metadata(now, all(&core, &[]));
        assert_eq!((asks_again(&mut core), has_matched(&core)), (0, false));
        core.handle_metadata(now, all(&core, &["orders-us"]));
        assert!(has_matched(&core), "it is taken in at once");
    }

    #[test]
    fn topics_are_matched_once_for_each_answer() {
        let now = time::now();
        let mut core = core("classic", now);
        core.subscribe_pattern(now, &"orders-.*".into()).unwrap();
        core.handle_metadata(now, all(&core, &["orders-eu"]));
        let by = core.pattern.as_mut().unwrap();
        let pattern = by.pattern.clone().unwrap();
        assert!(matches!(by.look(&core.metadata, &pattern), Look::Nothing), "this one was looked at");
        let next = Arc::new(core.metadata.merge_all(answer(&["orders-eu"]), &[], &pattern, |_| false));
        assert!(matches!(by.look(&next, &pattern), Look::Found(topics) if topics.len() == 1));
    }
}
