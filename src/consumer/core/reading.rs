//! What partitions are read from: leaders, first offsets and fetches, and the topics that the metadata must follow. Pure.
//!
//! It tells partitions, look-ups and the fetcher what was heard; it decides nothing about who owns what.

use std::sync::Arc;

use tracing::{debug, warn};

use super::{Action, Core, Mode};
use crate::{
    batch::Decompressor,
    cluster::{Metadata, TopicId},
    connection::api::wire,
    consumer::{
        fetch::Effects,
        ledger::Life,
        lookups::{self, Found, Lookup},
        partitions::{Check, EpochEnds, MetadataId, Phase},
    },
    error::{ErrorKind, Result},
    flights::Token,
    record::TopicPartition,
    time::{Backoff, Instant},
};

/// Topics that the metadata must follow.
pub(super) struct Interest {
    pub(super) topics: Vec<Arc<str>>,
    pub(super) due: Option<Instant>,
    /// Why one could not be used the last time.
    pub(super) told: Option<ErrorKind>,
    pub(super) backoff: Backoff,
}

impl Core {
    pub(crate) fn handle_metadata(&mut self, now: Instant, metadata: Arc<Metadata>) {
        self.metadata = metadata;
        self.refresh_leaders(now);
        self.tell_member_counts(now);
        self.advance_pattern(now);
        self.run_member(now);
    }

    pub(crate) fn handle_topics(&mut self, now: Instant, topics: &[Arc<str>], result: Result<()>) {
        if self.interest.topics != topics {
            return;
        }
        let Err(error) = result else {
            self.interest.told = None;
            return self.interest.backoff.reset();
        };
        if self.interest.told.replace(error.kind()) != Some(error.kind()) {
            warn!(%error, "a topic of the consumer cannot be used yet; the same again is not logged");
        }
        self.interest.due = Some(now + self.interest.backoff.next(&mut self.rng));
        if !error.is_retriable() {
            self.fail(error);
        }
    }

    /// The committed offsets of the partitions asked about.
    pub(crate) fn handle_found_committed(
        &mut self,
        now: Instant,
        asked: &[(TopicPartition, Life)],
        answer: Result<Found>,
    ) {
        let effects = self.lookups.handle_committed(now, asked, answer, &mut self.partitions);
        self.on_lookup(effects);
    }

    /// The first or last offsets of the partitions asked about.
    pub(crate) fn handle_listed(&mut self, now: Instant, asked: &[Lookup], answer: Result<Found>) {
        let effects = self.lookups.handle_listed(now, asked, answer, &mut self.partitions);
        self.on_lookup(effects);
    }

    /// Where epochs end in a leader's log; `None` where it cannot tell.
    pub(crate) fn handle_epoch_ends(
        &mut self,
        now: Instant,
        asked: &[Check],
        answer: Result<Option<EpochEnds>>,
    ) {
        let effects = self.lookups.handle_epoch_ends(now, asked, answer, &mut self.partitions);
        self.on_lookup(effects);
    }

    pub(crate) fn handle_fetched(
        &mut self,
        now: Instant,
        broker: i32,
        token: Token,
        answer: Result<wire::FetchResponse>,
        decompressor: &Decompressor,
    ) {
        if let Err(error) = &answer {
            debug!(%error, broker, "a fetch failed");
        }
        let Effects { refresh_metadata, out_of_range, truncated, hints, endpoints, errors, buffered, .. } =
            self.fetcher.handle_answer(now, broker, token, answer, &mut self.partitions, decompressor);
        if !hints.is_empty() {
            self.actions.push_back(Action::LearnLeaders(hints, endpoints));
        }
        if refresh_metadata {
            self.actions.push_back(Action::RefreshMetadata);
        }
        for (key, truncation) in truncated {
            self.news |= self.lookups.handle_truncated(now, &key, &truncation, &mut self.partitions);
        }
        for (key, offset) in out_of_range {
            self.news |= self.lookups.handle_out_of_range(now, &key, offset, &mut self.partitions);
        }
        for error in errors {
            self.fail(error);
        }
        self.news |= buffered;
    }

    pub(super) fn start_phase(&self) -> Phase {
        match self.settings.group_id {
            Some(_) => Phase::AwaitingCommitted,
            None => self.lookups.reset_phase(),
        }
    }

    pub(super) fn on_lookup(&mut self, effects: lookups::Effects) {
        if effects.refresh_metadata {
            self.actions.push_back(Action::RefreshMetadata);
        }
        if effects.forget_coordinator {
            self.actions.push_back(Action::ForgetCoordinator);
        }
        for error in effects.errors {
            self.fail(error);
        }
        self.news |= effects.settled;
    }

    pub(super) fn poll_lookup(&mut self, now: Instant) -> Option<Action> {
        let deadline = now + self.client.request_timeout;
        let questions = self.lookups.poll_questions(now, &mut self.partitions);
        self.news |= questions.failed;
        if questions.leaderless {
            self.actions.push_back(Action::RefreshMetadata);
        }
        if let Some((broker, lookups)) = questions.offsets {
            self.actions.push_back(Action::ListOffsets { broker, lookups, deadline });
        }
        if let Some((broker, checks)) = questions.checks {
            self.actions.push_back(Action::CheckEpochs { broker, checks, deadline });
        }
        // A request names either all topics by id or all by name, so there are two. What has an id must not be asked for
        // by a name that may be another topic's by now.
        let (by_id, by_name): (Vec<_>, Vec<_>) =
            questions.committed.into_iter().partition(|(key, _)| self.topic_id(key) != TopicId::default());
        for partitions in [by_id, by_name].into_iter().filter(|partitions| !partitions.is_empty()) {
            self.actions.push_back(Action::FindCommitted { partitions, deadline });
        }
        self.actions.pop_front()
    }

    pub(super) fn follow(&mut self, now: Instant, topics: Vec<Arc<str>>) {
        if self.interest.topics != topics {
            self.interest.due = (!topics.is_empty()).then_some(now);
            self.actions.push_back(Action::Follow(topics.clone()));
            self.interest.topics = topics;
        }
    }

    /// Whether the topic of the partition's name is another one than that which the coordinator has assigned, by its id.
    /// Either the coordinator has not heard of the new one yet, or the metadata are behind.
    fn is_replaced(&self, key: &TopicPartition) -> bool {
        let assigned = self.member.as_ref().and_then(|member| member.assigned_id(key));
        matches!(self.mode, Mode::Topics)
            && assigned.is_some_and(|id| id.0 != self.metadata.topic_id(&key.topic))
    }

    pub(super) fn refresh_leaders(&mut self, now: Instant) {
        let metadata = &self.metadata;
        self.partitions.check_replicas(now, |broker| metadata.brokers.contains_key(&broker));
        // Where the coordinator assigns by id, the membership decides.
        let member = self.member.as_ref().filter(|_| matches!(self.mode, Mode::Topics));
        let metadata_id = |topic: &Arc<str>| {
            let topic = metadata.topics.get(topic);
            topic.map_or_else(MetadataId::default, |topic| MetadataId {
                id: topic.id,
                is_disputed: topic.refused > 0,
            })
        };
        let again = self.partitions.set_topic_ids(now, metadata_id, |key| {
            member.is_some_and(|member| member.assigned_id(key).is_some())
        });
        let (replaced, again): (Vec<_>, Vec<_>) = again.into_iter().partition(|key| self.is_replaced(key));
        self.lookups.handle_replaced(&replaced, &mut self.partitions);
        self.news |= self.lookups.handle_made_again(&again, self.member.is_some(), &mut self.partitions);
        let all = self.partitions.set_leaders(now, |key| metadata.leader(&key.topic, key.partition));
        if (!all || self.partitions.has_unconfirmed_id()) && self.metadata.version > 0 {
            debug!(
                "a partition has no leader at the moment, is not known, or may be of a topic that was made again"
            );
            // It is looked for until it is there: less and less often while nothing changes.
            self.actions.push_back(Action::RefreshMetadata);
        }
    }
}

/// Partitions of a topic that can be used.
pub(crate) fn partition_count(metadata: &Metadata, topic: &str) -> Option<i32> {
    let topic = metadata.topics.get(topic).filter(|topic| topic.error.is_none())?;
    i32::try_from(topic.partitions.len()).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::KafkaConfig,
        consumer::{
            lookups::FoundOffset,
            partitions::{PausedBy, Position},
        },
        group::{Answer, ConsumerHeartbeatAnswer},
        time::{self, Rng},
        wire::{
            self, Uuid,
            metadata_response::{MetadataResponsePartition, MetadataResponseTopic},
        },
    };

    const OLD: Uuid = Uuid([1; 16]);
    const NEW: Uuid = Uuid([2; 16]);
    const INTERVAL: Duration = Duration::from_secs(5);

    fn hear_of(core: &mut Core, now: Instant, id: Uuid) {
        let partition = MetadataResponsePartition { leader_id: 1, leader_epoch: 1, ..Default::default() };
        let topic = MetadataResponseTopic {
            name: Some("orders".into()),
            topic_id: id,
            partitions: vec![partition],
            ..Default::default()
        };
        let answer = wire::MetadataResponse { topics: vec![topic], ..Default::default() };
        let metadata = core.metadata.merge(answer, &["orders".into()], |_| true);
        core.handle_metadata(now, Arc::new(metadata));
    }

    /// A member of the consumer protocol.
    fn core(now: Instant) -> Core {
        let config = KafkaConfig::new()
            .set_bootstrap_servers("localhost:9092")
            .set_group_id("g")
            .set_auto_offset_reset("earliest")
            .set("group.protocol", "consumer");
        let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
        Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1))
    }

    fn actions(core: &mut Core, now: Instant) -> Vec<Action> {
        core.handle_timeout(now);
        std::iter::from_fn(|| core.poll_action(now)).collect()
    }

    /// The coordinator answers the heartbeat that is due, and the group has committed this of what it names.
    fn assigned(core: &mut Core, now: Instant, id: Uuid, committed: i64) {
        let beat = |actions: &[Action]| {
            actions.iter().find_map(|action| match action {
                Action::Group { token, .. } => Some(*token),
                _ => None,
            })
        };
        let answer = |core: &mut Core, token, assignment| {
            let answer = ConsumerHeartbeatAnswer {
                epoch: 1,
                interval: INTERVAL,
                assignment,
                ..ConsumerHeartbeatAnswer::default()
            };
            core.handle_group(now, token, Ok(Answer::ConsumerHeartbeat(answer)));
        };
        let due = beat(&actions(core, now)).expect("a heartbeat is due");
        answer(core, due, Some(vec![(id, 0)]));
        let actions = actions(core, now);
        let taken = beat(&actions).expect("what was taken is told");
        answer(core, taken, None);
        let asked = actions.into_iter().find_map(|action| match action {
            Action::FindCommitted { partitions, .. } => Some(partitions),
            _ => None,
        });
        let asked = asked.expect("the committed offset is asked for");
        committed_is(core, now, &asked, committed, true);
    }

    /// `by_id`: as coordinators of Kafka 4.1 tell it; earlier ones know the topic's name alone.
    fn committed_is(
        core: &mut Core,
        now: Instant,
        asked: &[(TopicPartition, Life)],
        offset: i64,
        by_id: bool,
    ) {
        let place = FoundOffset { offset, leader_epoch: 1, timestamp: -1, metadata: String::new(), by_id };
        let found = asked.iter().map(|(key, _)| (key.clone(), Ok(place.clone()))).collect();
        core.handle_found_committed(now, asked, Ok(found));
    }

    #[test]
    fn a_topic_made_again_is_not_read_before_the_coordinator_that_assigns_by_id_has_named_it() {
        let key = TopicPartition::new("orders", 0);
        for was_read in [false, true] {
            let now = time::now();
            let mut core = core(now);
            hear_of(&mut core, now, OLD);
            core.subscribe(now, vec!["orders".into()]).unwrap();
            core.handle_poll(now).unwrap();
            assigned(&mut core, now, OLD, 7);
            assert_eq!(core.position(&key).unwrap(), Some(7));
            core.partitions.get_mut(&key).unwrap().account.hand_out();
            if was_read {
                core.partitions.get_mut(&key).unwrap().position_mut().unwrap().next = 9;
            }
            actions(&mut core, now);

            hear_of(&mut core, now, NEW);
            let done = actions(&mut core, now);
            assert!(
                done.iter().all(|action| matches!(action, Action::Group { .. } | Action::RefreshMetadata)),
                "{done:?}"
            );
            assert_eq!(core.position(&key).unwrap(), None);
            core.seek(&key, Phase::Fetching(Position::at(3))).unwrap_err();
            assert!(core.commit(None, now + INTERVAL).unwrap().is_none());
            let said = core.expected_progress(now).partitions.pop().and_then(|(_, error)| error);
            assert!(said.is_some_and(|error| error.is_retriable()), "it says what it waits for");

            assigned(&mut core, now + INTERVAL, NEW, 1_000);
            assert_eq!(core.position(&key).unwrap(), Some(1_000));
        }
    }

    #[test]
    fn only_what_the_user_has_paused_as_a_whole_counts_as_paused() {
        let now = time::now();
        let mut core = core(now);
        let keys = [0, 1].map(|partition| TopicPartition::new("orders", partition));
        core.assign(now, keys.to_vec()).unwrap();
        let mut told = |partitions: &[TopicPartition], paused| {
            core.set_paused(partitions, paused).unwrap();
            core.expected_progress(now).paused
        };
        assert_eq!(told(&keys, Some(PausedBy::Backlog)), 0);
        assert_eq!(told(&keys[..1], Some(PausedBy::User)), 0);
        assert_eq!(told(&keys[1..], Some(PausedBy::User)), 2);
        assert_eq!(told(&keys, Some(PausedBy::Backlog)), 2, "the user has not resumed them");
        assert_eq!(told(&keys[..1], None), 0);
    }

    #[test]
    fn a_partition_without_a_leader_is_looked_for_once_there_is_somebody_to_ask() {
        let now = time::now();
        for is_known in [false, true] {
            let mut core = core(now);
            let keys = [0, 1].map(|partition| TopicPartition::new("orders", partition));
            core.assign(now, keys[..1 + usize::from(is_known)].to_vec()).unwrap();
            if is_known {
                hear_of(&mut core, now, OLD);
            } else {
                core.refresh_leaders(now);
            }
            let looks =
                actions(&mut core, now).iter().any(|action| matches!(action, Action::RefreshMetadata));
            assert_eq!(looks, is_known, "the second one has no leader");
        }
    }

    #[test]
    fn who_leads_is_asked_for_again_where_a_leader_has_refused_a_look_up() {
        let now = time::now();
        let config = KafkaConfig::new().set_bootstrap_servers("localhost:9092");
        let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
        let mut core = Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1));
        let key = TopicPartition::new("orders", 0);
        hear_of(&mut core, now, OLD);
        core.assign(now, vec![key.clone()]).unwrap();
        let asked = actions(&mut core, now).into_iter().find_map(|action| match action {
            Action::ListOffsets { lookups, .. } => Some(lookups),
            _ => None,
        });
        core.handle_listed(now, &asked.expect("the end is asked for"), Ok([(key, Err(6))].into()));
        let after = actions(&mut core, now);
        assert!(after.iter().any(|action| matches!(action, Action::RefreshMetadata)), "{after:?}");
    }

    #[test]
    fn who_leads_is_asked_for_again_where_a_leader_has_refused_a_fetch() {
        use wire::fetch_response::{FetchableTopicResponse, PartitionData};
        let now = time::now();
        for (error_code, asks) in [(6, true), (0, false)] {
            let mut core = core(now);
            let key = TopicPartition::new("orders", 0);
            hear_of(&mut core, now, OLD);
            core.assign(now, vec![key.clone()]).unwrap();
            core.seek(&key, Phase::Fetching(Position::at(0))).unwrap();
            let fetch = actions(&mut core, now).into_iter().find_map(|action| match action {
                Action::Fetch(fetch) => Some(fetch),
                _ => None,
            });
            let fetch = fetch.expect("the partition is fetched");
            let partition = PartitionData { error_code, ..Default::default() };
            let topic =
                FetchableTopicResponse { topic: "orders".into(), topic_id: OLD, partitions: vec![partition] };
            let answer = wire::FetchResponse { responses: vec![topic], ..Default::default() };
            core.handle_fetched(now, fetch.broker, fetch.token, Ok(answer), &Decompressor::new());
            let after = actions(&mut core, now);
            let found = after.iter().any(|action| matches!(action, Action::RefreshMetadata));
            assert_eq!(found, asks, "{after:?}");
        }
    }

    #[test]
    fn metadata_that_are_behind_the_coordinator_stop_a_partition_only_until_they_are_not() {
        let (mut now, key) = (time::now(), TopicPartition::new("orders", 0));
        let mut core = core(now);
        hear_of(&mut core, now, NEW);
        core.subscribe(now, vec!["orders".into()]).unwrap();
        core.handle_poll(now).unwrap();
        assigned(&mut core, now, NEW, 7);
        hear_of(&mut core, now, OLD);
        assert_eq!(core.position(&key).unwrap(), None);
        let mut found = None;
        // An id that was replaced is not believed at once.
        for _ in 0..60 {
            now += Duration::from_secs(1);
            let actions = actions(&mut core, now);
            let asks = actions.iter().any(|action| matches!(action, Action::RefreshMetadata));
            found = actions.into_iter().find_map(|action| match action {
                Action::FindCommitted { partitions, .. } => Some(partitions),
                _ => None,
            });
            if found.is_some() {
                break;
            }
            assert!(asks, "nobody would say that it is the same again");
            hear_of(&mut core, now, NEW);
        }
        committed_is(&mut core, now, &found.expect("it is asked where the group is"), 7, false);
        assert_eq!(core.position(&key).unwrap(), Some(7), "it is read on there");
    }

    /// Of one that has the partition assigned by hand, has read it under this id, and has its position at 9.
    fn by_hand(now: Instant, id: Uuid, group: Option<&str>) -> (Core, TopicPartition) {
        let key = TopicPartition::new("orders", 0);
        let config = KafkaConfig::new().set_bootstrap_servers("localhost:9092");
        let config = match group {
            Some(group) => config.set_group_id(group),
            None => config,
        };
        let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
        let mut core = Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1));
        hear_of(&mut core, now, id);
        core.assign(now, vec![key.clone()]).unwrap();
        core.seek(&key, Phase::Fetching(Position::at(7))).unwrap();
        let partition = core.partitions.get_mut(&key).unwrap();
        partition.note_served(now, true);
        partition.account.hand_out();
        partition.position_mut().unwrap().next = 9;
        actions(&mut core, now);
        (core, key)
    }

    fn looks_for_an_offset(actions: &[Action]) -> bool {
        let looks =
            |action: &Action| matches!(action, Action::FindCommitted { .. } | Action::ListOffsets { .. });
        actions.iter().any(looks)
    }

    #[test]
    fn one_answer_of_a_broker_that_is_behind_costs_no_position() {
        for group in [Some("g"), None] {
            let mut now = time::now();
            let (mut core, key) = by_hand(now, NEW, group);
            for told in std::iter::once(OLD).chain([NEW; 40]) {
                hear_of(&mut core, now, told);
                assert_eq!(core.position(&key).unwrap(), Some(9));
                assert_eq!(core.topic_id(&key), NEW.0, "it is fetched on under the id it has");
                let done = actions(&mut core, now);
                assert!(!looks_for_an_offset(&done), "{done:?}");
                let is_settled = core.metadata.topic_id("orders") == NEW.0;
                let asks = done.iter().any(|action| matches!(action, Action::RefreshMetadata));
                assert_eq!(asks, !is_settled, "it is asked until brokers agree");
                now += Duration::from_secs(1);
            }
            assert!(!core.partitions.has_unconfirmed_id());
        }
    }

    #[test]
    fn another_id_counts_when_the_leader_refuses_the_one_there_is_or_says_nothing_for_long() {
        type Word = fn(&mut crate::consumer::partitions::Partition, Instant);
        let words: [(Word, bool, bool); 4] = [
            (|partition, _| partition.note_refused(100), true, true),
            (|_, _| {}, false, true),
            (|partition, now| partition.note_served(now, true), false, false),
            (|partition, _| partition.note_refused(6), false, true),
        ];
        for (row, (word, at_once, at_last)) in words.into_iter().enumerate() {
            let mut now = time::now();
            let (mut core, key) = by_hand(now, OLD, None);
            for second in 0..30 {
                hear_of(&mut core, now, NEW);
                assert!(second > 0 || core.position(&key).unwrap() == Some(9), "one answer");
                if let Some(partition) = core.partitions.get_mut(&key) {
                    word(partition, now);
                }
                now += Duration::from_secs(1);
                if second == 1 {
                    assert_eq!(core.position(&key).unwrap().is_none(), at_once, "{row}");
                }
            }
            assert_eq!(core.position(&key).unwrap().is_none(), at_last, "{row}");
        }
    }

    #[test]
    fn what_is_read_by_name_under_another_id_keeps_its_position() {
        let mut now = time::now();
        let (mut core, key) = by_hand(now, OLD, Some("g"));
        for _ in 0..30 {
            hear_of(&mut core, now, NEW);
            core.partitions.get_mut(&key).unwrap().note_served(now, false);
            now += Duration::from_secs(1);
        }
        assert_eq!((core.position(&key).unwrap(), core.topic_id(&key)), (Some(9), NEW.0));
        assert!(!looks_for_an_offset(&actions(&mut core, now)));
    }

    #[test]
    fn a_place_that_the_user_has_named_before_anything_was_read_is_of_whatever_topic_there_is() {
        let now = time::now();
        let (mut core, key) = by_hand(now, OLD, None);
        core.assign(now, Vec::new()).unwrap();
        core.assign(now, vec![key.clone()]).unwrap();
        core.seek(&key, Phase::Fetching(Position::at(7))).unwrap();
        core.partitions.get_mut(&key).unwrap().note_refused(100);
        hear_of(&mut core, now, NEW);
        assert_eq!((core.position(&key).unwrap(), core.topic_id(&key)), (Some(7), NEW.0));
    }
}
