//! What is committed, in whose name, and who waits for it. Pure.
//!
//! The ledger says what may be committed and `offsets.rs` in which order it goes out; here the two meet the membership. It
//! must never commit what belongs to an earlier assignment.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;
use tracing::warn;

use super::{Action, Core, Mode};
use crate::{
    cluster::{TopicId, UNKNOWN_TOPIC_OR_PARTITION, are_two_lives},
    config::settings::GroupProtocol,
    consumer::{
        ledger::Committed,
        offsets::{self, CommitAction, CommitOutcome, Offset, Offsets, Since, over},
    },
    error::{Error, ErrorKind, Result},
    flights::Token,
    group::{self, Identity},
    record::TopicPartition,
    sorted::Map,
    time::Instant,
};

impl Core {
    /// Commits these offsets, or all positions. `None` if there is nothing to commit. What becomes of it is told by the deadline
    /// at the latest.
    pub(crate) fn commit(
        &mut self,
        offsets: Option<Offsets>,
        deadline: Instant,
    ) -> Result<Option<oneshot::Receiver<Result<()>>>> {
        self.check_open()?;
        let identity = self.identity()?;
        if self.lost {
            // Told of once by a member that is back, and for as long as it is not.
            self.lost = identity.is_none();
            return Err(over());
        }
        let offsets = match offsets {
            Some(mut offsets) => {
                self.check_tenure(&mut offsets)?;
                offsets
            }
            None if self.partitions.is_by_each() => {
                self.there(self.partitions.frontiers(|key| self.commits.planned(key)))
            }
            None => self.there(self.partitions.positions(|key| self.commits.planned(key))),
        };
        if offsets.is_empty() {
            // In whatever state of the group: what is gone uncommitted was told of above.
            return Ok(None);
        }
        if identity.is_none() {
            return Err(Error::from_code("OffsetCommit", group::code::REBALANCE_IN_PROGRESS).with_hint(
                "the consumer is not part of the group at the moment: keep polling; what was not committed is handed out again",
            ));
        }
        let waiters = &mut self.waiters;
        let has_room = self.commits.has_room(|ticket| {
            let is_forgotten = waiters.get(&ticket).is_none_or(oneshot::Sender::is_closed);
            if is_forgotten {
                waiters.remove(&ticket);
            }
            is_forgotten
        });
        if !has_room {
            return Err(too_many());
        }
        self.partitions.cover_explicit(&offsets);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let (sender, receiver) = oneshot::channel();
        self.waiters.insert(ticket, sender);
        self.commits.handle_commit(Some(ticket), offsets, deadline);
        Ok(Some(receiver))
    }

    /// Binds offsets that the user names to the assignment. A member commits what is its own, and nothing from before its
    /// assignment began: another member may have committed beyond that.
    fn check_tenure(&self, offsets: &mut Offsets) -> Result<()> {
        offsets.iter().try_for_each(|(key, offset)| self.check_log(key, offset.since))?;
        if !matches!(self.mode, Mode::Topics) {
            // What a task knows of the days of a membership is not committed in nobody's name: others may have gone on since.
            if self.was_member
                && let Some(key) = offsets.keys().next()
            {
                return Err(over().with_topic(Arc::clone(&key.topic)).with_partition(key.partition));
            }
            for (key, offset) in offsets {
                offset.topic_id = self.topic_id(key);
            }
            return Ok(());
        }
        for (key, offset) in offsets {
            let place = |error: Error| {
                error
                    .with_topic(Arc::clone(&key.topic))
                    .with_partition(key.partition)
                    .with_offset(offset.offset)
            };
            let Some(partition) = self.partitions.get(key) else { return Err(place(over())) };
            match partition.account.begun() {
                Some(begun) if begun <= offset.offset => {}
                Some(begun) => {
                    let hint = format!(
                        "this assignment of the partition began at offset {begun}: what was read before belongs to an \
                         earlier one, and another member may have gone on from there; to go back on purpose, seek first"
                    );
                    return Err(place(
                        Error::from_code("OffsetCommit", group::code::ILLEGAL_GENERATION).with_hint(hint),
                    ));
                }
                None => {
                    let early = Error::from_code("OffsetCommit", group::code::REBALANCE_IN_PROGRESS);
                    return Err(place(early.with_hint(
                        "the partition has just been assigned and has no position yet: keep polling",
                    )));
                }
            }
            offset.tenure = Some(partition.account.tenure());
            offset.topic_id = partition.topic_id;
        }
        Ok(())
    }

    /// What the user knows of a log before its topic was made again is not committed for the one that there is now, whose
    /// offsets are other ones.
    fn check_log(&self, key: &TopicPartition, since: Since) -> Result<()> {
        let begun = match since {
            Since::Now => return Ok(()),
            Since::Records(_) => self.partitions.get(key).map(|partition| partition.account.tenure()),
            Since::Handle(_) => self.partitions.made_again(&key.topic),
        };
        let error = match (since, begun) {
            (Since::Records(life), Some(begun)) if life < begun => over(),
            (Since::Handle(life), Some(begun)) if life < begun => {
                Error::from_code("OffsetCommit", UNKNOWN_TOPIC_OR_PARTITION).with_hint(
                    "the topic was made again since the committer was: take another one, or commit what the records say \
                     (PartitionRecords::offset_after)",
                )
            }
            _ => return Ok(()),
        };
        Err(error.with_topic(Arc::clone(&key.topic)).with_partition(key.partition))
    }

    /// The id of a partition's topic: of the one that its position is of, where it is assigned.
    pub(crate) fn topic_id(&self, key: &TopicPartition) -> TopicId {
        let assigned = self.partitions.get(key).map(|partition| partition.topic_id);
        assigned.unwrap_or_else(|| self.metadata.topic_id(&key.topic))
    }

    /// Those of partitions that are there, as far as the coordinator has said. That of a deleted topic was told of by the commit
    /// that it refused: nobody needs to be told again with every one after it. What the metadata alone says may be wrong: of a
    /// broker that has just started.
    fn there(&self, mut offsets: Offsets) -> Offsets {
        offsets.retain(|key, _| !self.is_known_to_be_gone(key));
        if !matches!(self.mode, Mode::Topics) {
            // Assigned by hand it goes to nobody else.
            offsets.values_mut().for_each(|offset| offset.tenure = None);
        }
        offsets
    }

    pub(super) fn is_known_to_be_gone(&self, key: &TopicPartition) -> bool {
        self.partitions.get(key).is_some_and(|partition| partition.gone_told)
            && self.metadata.is_gone(&key.topic, key.partition)
    }

    /// Who commits; `None` between generations.
    pub(crate) fn identity(&self) -> Result<Option<Identity>> {
        let Some(member) = &self.member else {
            return Err(Error::new(ErrorKind::Config, "committing needs a consumer group")
                .with_hint("set group.id; without a group positions live in the program alone"));
        };
        Ok(match self.mode {
            Mode::Topics => member.identity(),
            Mode::Manual | Mode::None => Some(Identity::standalone()),
        })
    }

    /// Who asks for committed offsets, where the coordinator looks at that: as a member of the consumer protocol.
    pub(crate) fn reader(&self) -> Option<Identity> {
        let is_consumer = self.group_protocol() == Some(GroupProtocol::Consumer);
        self.identity().ok().flatten().filter(|identity| is_consumer && identity.generation > 0)
    }

    pub(crate) fn handle_commit(
        &mut self,
        now: Instant,
        token: Token,
        answer: Result<Map<TopicPartition, i16>>,
    ) {
        if answer.as_ref().is_ok_and(|codes| codes.values().any(|code| *code == UNKNOWN_TOPIC_OR_PARTITION)) {
            self.actions.push_back(Action::RefreshMetadata);
        }
        let is_gone = |key: &TopicPartition, id: TopicId| {
            are_two_lives(id, self.metadata.topic_id(&key.topic))
                || self.metadata.is_gone(&key.topic, key.partition)
        };
        if let Some(outcome) = self.commits.handle_answer(now, token, answer, is_gone) {
            self.on_commit(now, outcome);
        }
        self.advance_revocation(now);
        self.advance_close(now);
    }

    pub(super) fn poll_commit(&mut self, now: Instant) -> Option<CommitAction> {
        loop {
            let identity = self.identity().ok().flatten();
            let partitions = &self.partitions;
            let is_ours = |key: &TopicPartition, tenure| partitions.is_of(key, tenure);
            match self.commits.poll_action(now, identity.as_ref(), is_ours)? {
                offsets::NextCommit::Send(commit) => return Some(commit),
                offsets::NextCommit::Dropped(outcome) => self.on_commit(now, outcome),
            }
        }
    }

    pub(super) fn commit_covered(&mut self, deadline: Instant) {
        let Ok(Some(_)) = self.identity() else { return };
        let offsets = self.there(self.partitions.covered(|key| self.commits.planned(key)));
        if !offsets.is_empty() {
            self.commits.handle_commit(None, offsets, deadline);
        }
    }

    /// As [`Self::commit_covered`], and what has not changed for long as well: a group's offsets expire
    /// (`offsets.retention.minutes`), those of partitions that are assigned by hand although somebody reads them. Of these only
    /// what this consumer has committed itself is committed again.
    pub(super) fn commit_by_interval(&mut self, now: Instant, deadline: Instant) {
        let Ok(Some(_)) = self.identity() else { return };
        let is_manual = matches!(self.mode, Mode::Manual);
        // By hand several may have one partition, also those that only look: what another has committed is left to that one.
        let idle = |committed: &Committed| (committed.is_own || !is_manual) && committed.since + IDLE <= now;
        let offsets = self.there(self.partitions.covered_and(|key| self.commits.planned(key), idle));
        if !offsets.is_empty() {
            self.commits.handle_commit(None, offsets, deadline);
        }
    }

    /// Whether what became of this commit says something of the partition that is assigned now: it is of the same assignment, and
    /// of the same topic.
    fn is_still_of(&self, key: &TopicPartition, offset: &Offset) -> bool {
        offset.tenure.is_none_or(|tenure| self.partitions.is_of(key, tenure))
            && !are_two_lives(offset.topic_id, self.topic_id(key))
    }

    pub(super) fn on_commit(&mut self, now: Instant, outcome: CommitOutcome) {
        for (key, committed) in outcome.committed {
            if self.is_still_of(&key, &committed) {
                let Offset { offset, metadata, .. } = committed;
                self.partitions.set_committed(&key, Committed { offset, metadata, since: now, is_own: true });
            }
        }
        for (key, refused) in outcome.gone {
            if self.is_still_of(&key, &refused)
                && let Some(partition) = self.partitions.get_mut(&key)
            {
                partition.gone_told = true;
            }
        }
        if outcome.forget_coordinator {
            self.actions.push_back(Action::ForgetCoordinator);
        }
        for (ticket, result) in outcome.settled {
            match (ticket, result) {
                (Some(ticket), result) => {
                    // Whoever does not wait any more does not care.
                    let _ = self.waiters.remove(&ticket).map(|waiter| waiter.send(result));
                }
                (None, Err(error)) => warn!(%error, "an automatic commit failed"),
                (None, Ok(())) => {}
            }
        }
        if let (Some((generation, code)), Some(member)) = (outcome.fenced, &mut self.member) {
            member.handle_fenced_commit(now, generation, code);
            self.run_member(now);
        }
    }
}

fn too_many() -> Error {
    Error::new(ErrorKind::Timeout, "too many commits wait for the coordinator")
        .with_api("OffsetCommit")
        .with_hint(
            "await what commit_async gives back before more is committed, or drop it if it does not matter",
        )
}

/// What is committed and does not change is committed again after so long. Brokers keep offsets for a week unless told otherwise,
/// and hardly anybody tells them less than hours.
const IDLE: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::Metadata,
        config::KafkaConfig,
        consumer::{
            ledger::Life,
            lookups::FoundOffset,
            partitions::{Phase, Position},
        },
        error,
        time::{self, Rng},
        wire::{
            self, Uuid,
            metadata_response::{MetadataResponsePartition, MetadataResponseTopic},
        },
    };

    const ORDERS: TopicId = [1; 16];

    fn key() -> TopicPartition {
        TopicPartition::new("orders", 0)
    }

    fn metadata(before: &Metadata, id: TopicId) -> Arc<Metadata> {
        let partition = MetadataResponsePartition { leader_id: 1, leader_epoch: 1, ..Default::default() };
        let topic = MetadataResponseTopic {
            name: Some("orders".into()),
            topic_id: Uuid(id),
            partitions: vec![partition],
            ..Default::default()
        };
        let answer = wire::MetadataResponse { topics: vec![topic], ..Default::default() };
        Arc::new(before.merge(answer, &["orders".into()], |_| true))
    }

    fn place(offset: i64, by_id: bool) -> FoundOffset {
        FoundOffset { offset, leader_epoch: -1, timestamp: -1, metadata: String::new(), by_id }
    }

    /// One that has partition 0 of `orders` assigned by hand, at what the group has committed: offset 5, and a text.
    fn core(now: Instant) -> Core {
        let config = KafkaConfig::new().set_bootstrap_servers("localhost:9092").set_group_id("g");
        let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
        let mut core = Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1));
        core.handle_metadata(now, metadata(&core.metadata, ORDERS));
        core.assign(now, vec![key()]).unwrap();
        let mut asked = Vec::new();
        while let Some(action) = core.poll_action(now) {
            if let Action::FindCommitted { partitions, .. } = action {
                asked = partitions;
            }
        }
        let place = FoundOffset {
            offset: 5,
            leader_epoch: 1,
            timestamp: -1,
            metadata: "mine".to_owned(),
            by_id: true,
        };
        core.handle_found_committed(now, &asked, Ok([(key(), Ok(place))].into()));
        core
    }

    /// The leader refuses the id that it is read by, and metadata tell of this one.
    fn made_again(core: &mut Core, now: Instant, id: TopicId) {
        if let Some(partition) = core.partitions.get_mut(&key()) {
            partition.note_refused(error::code::UNKNOWN_TOPIC_ID);
        }
        core.handle_metadata(now, metadata(&core.metadata, id));
    }

    fn asked(core: &mut Core, now: Instant) -> Option<Vec<(TopicPartition, Life)>> {
        std::iter::from_fn(|| core.poll_action(now)).find_map(|action| match action {
            Action::FindCommitted { partitions, .. } => Some(partitions),
            _ => None,
        })
    }

    fn commits(core: &mut Core, now: Instant) -> Vec<CommitAction> {
        core.handle_timeout(now);
        let actions = std::iter::from_fn(|| core.poll_action(now));
        let commit = |action| match action {
            Action::Commit(commit) => Some(commit),
            _ => None,
        };
        actions.filter_map(commit).collect()
    }

    #[test]
    fn what_is_committed_and_does_not_change_is_committed_again_before_it_expires() {
        let begun = time::now();
        let mut core = core(begun);
        let minutes = |minutes: u64| begun + Duration::from_secs(60 * minutes);
        let mut sent = Vec::new();
        assert!((1..=150).all(|minute| commits(&mut core, minutes(minute)).is_empty()), "another's");
        let own = Offset { offset: 5, metadata: "mine".to_owned(), ..Offset::default() };
        let begun = minutes(150);
        core.commit(Some([(key(), own)].into()), begun + IDLE).unwrap();
        let minutes = |minutes: u64| begun + Duration::from_secs(60 * minutes);
        for minute in 1..=150 {
            for commit in commits(&mut core, minutes(minute)) {
                let offset = &commit.offsets[&key()];
                assert_eq!((offset.offset, offset.metadata.as_str()), (5, "mine"));
                core.handle_commit(minutes(minute), commit.token, Ok([(key(), 0)].into()));
                sent.push(minute);
            }
        }
        assert_eq!(sent, [1, 61, 121]);
    }

    #[test]
    fn committed_offsets_of_topics_without_an_id_are_asked_for_apart_from_the_others() {
        let now = time::now();
        let mut core = core(now);
        let unknown = TopicPartition::new("unknown", 0);
        core.assign(now, vec![TopicPartition::new("orders", 1), unknown.clone()]).unwrap();
        let asked = std::iter::from_fn(|| core.poll_action(now)).filter_map(|action| match action {
            Action::FindCommitted { partitions, .. } => {
                Some(partitions.into_iter().map(|(key, _)| key).collect::<Vec<_>>())
            }
            _ => None,
        });
        assert_eq!(asked.collect::<Vec<_>>(), [vec![TopicPartition::new("orders", 1)], vec![unknown]]);
    }

    #[test]
    fn what_the_metadata_says_is_gone_is_committed_until_the_coordinator_says_so_too() {
        let now = time::now();
        let mut core = core(now);
        let deleted = |core: &Core| {
            let topic = MetadataResponseTopic {
                error_code: UNKNOWN_TOPIC_OR_PARTITION,
                name: Some("orders".into()),
                ..Default::default()
            };
            let answer = wire::MetadataResponse { topics: vec![topic], ..Default::default() };
            Arc::new(core.metadata.merge(answer, &["orders".into()], |_| true))
        };
        core.handle_metadata(now, deleted(&core));
        core.handle_metadata(now, deleted(&core));
        assert!(core.metadata.is_gone("orders", 0));
        core.seek(now, &key(), Phase::Fetching(Position::at(9))).unwrap();
        let commit = |core: &mut Core| core.commit(None, now + IDLE).unwrap();
        let mut receipt = commit(&mut core).expect("one broker may know less than another");
        let sent = commits(&mut core, now);
        assert_eq!(sent[0].offsets[&key()].offset, 9);
        core.handle_commit(now, sent[0].token, Ok([(key(), UNKNOWN_TOPIC_OR_PARTITION)].into()));
        let error = receipt.try_recv().unwrap().unwrap_err();
        assert_eq!(error.code().map(|code| code.0), Some(UNKNOWN_TOPIC_OR_PARTITION), "{error}");
        assert!(commit(&mut core).is_none(), "told once");

        core.handle_metadata(now, metadata(&core.metadata, ORDERS));
        core.handle_metadata(now, deleted(&core));
        assert!(commit(&mut core).is_some(), "it was there meanwhile");
    }

    #[test]
    fn who_has_handed_out_nothing_of_a_topic_begins_where_the_group_is_in_the_one_made_again() {
        let now = time::now();
        let asked = |core: &mut Core| {
            let actions: Vec<_> = std::iter::from_fn(|| core.poll_action(now)).collect();
            assert!(!actions.iter().any(|action| matches!(action, Action::ListOffsets { .. })));
            actions.into_iter().find_map(|action| match action {
                Action::FindCommitted { partitions, .. } => Some(partitions),
                _ => None,
            })
        };
        let at = |offset| place(offset, true);
        for has_position in [true, false] {
            let mut core = core(now);
            let mut before = Vec::new();
            if !has_position {
                core.assign(now, Vec::new()).unwrap();
                core.assign(now, vec![key()]).unwrap();
                before = asked(&mut core).unwrap();
            }
            made_again(&mut core, now, [2; 16]);
            let again = asked(&mut core).expect("the group may be in the new one already");
            core.handle_found_committed(now, &before, Ok([(key(), Ok(at(5)))].into()));
            core.handle_found_committed(now, &again, Ok([(key(), Ok(at(1_000)))].into()));
            assert_eq!(core.position(&key()).unwrap(), Some(1_000));
        }
    }

    #[test]
    fn what_was_committed_before_a_topic_was_made_again_is_believed_by_its_id_alone() {
        let now = time::now();
        for (found, expected) in [
            (place(5, false), None),
            (place(5, true), Some(5)),
            (place(6, false), Some(6)),
            (place(0, false), Some(0)),
        ] {
            let mut core = core(now);
            let own = Offset { offset: 5, topic_id: ORDERS, ..Offset::default() };
            let committed = Offsets::from([(key(), own)]);
            core.on_commit(now, CommitOutcome { committed, ..CommitOutcome::default() });
            core.partitions.get_mut(&key()).unwrap().note_served(now, true);
            made_again(&mut core, now, [2; 16]);
            assert!(asked(&mut core, now).is_none(), "what it has committed is of the old one");
            made_again(&mut core, now, [3; 16]);
            let asked = asked(&mut core, now).unwrap();
            core.handle_found_committed(now, &asked, Ok([(key(), Ok(found.clone()))].into()));
            assert_eq!(core.position(&key()).unwrap(), expected, "{found:?}");
            let is_reset = std::iter::from_fn(|| core.poll_action(now))
                .any(|action| matches!(action, Action::ListOffsets { .. }));
            assert_eq!(is_reset, expected.is_none(), "{found:?}");
        }
    }

    #[test]
    fn what_was_found_before_a_topic_was_made_again_is_believed_when_the_coordinator_stays_with_it() {
        for (later, expected) in [(5, Some(5)), (1_000, Some(1_000)), (-1, None)] {
            let mut now = time::now();
            let mut core = core(now);
            made_again(&mut core, now, [2; 16]);
            let mut answers = 0;
            while answers < 4 && core.position(&key()).unwrap().is_none() {
                let Some(asked) = asked(&mut core, now) else { break };
                answers += 1;
                // The first answer may come from before it knew that the topic was made again.
                let place = place(if answers == 1 { 5 } else { later }, false);
                core.handle_found_committed(now, &asked, Ok([(key(), Ok(place))].into()));
                assert!(answers > 1 || core.position(&key()).unwrap().is_none());
                now += Duration::from_secs(1);
            }
            assert_eq!(core.position(&key()).unwrap(), expected);
            assert_eq!(answers, if later == 5 { 4 } else { 2 });
        }
    }

    #[test]
    fn what_is_done_of_partitions_that_are_assigned_by_hand_is_committed_when_others_take_their_place() {
        let now = time::now();
        for others in [vec![TopicPartition::new("orders", 1)], Vec::new()] {
            let mut core = core(now);
            core.seek(now, &key(), Phase::Fetching(Position::at(8_000))).unwrap();
            core.assign(now, others).unwrap();
            let sent = commits(&mut core, now);
            assert_eq!(sent.len(), 1);
            assert_eq!(sent[0].offsets[&key()].offset, 8_000);
        }
    }

    #[test]
    fn a_commit_of_partitions_that_are_assigned_by_hand_outlives_their_assignment() {
        let now = time::now();
        let mut core = core(now);
        core.seek(now, &key(), Phase::Fetching(Position::at(9))).unwrap();
        let mut receipt = core.commit(None, now + IDLE).unwrap().unwrap();
        let sent = commits(&mut core, now);
        let moved = Ok([(key(), group::code::NOT_COORDINATOR)].into());
        core.handle_commit(now, sent[0].token, moved);
        core.assign(now, vec![TopicPartition::new("orders", 1)]).unwrap();
        let again = commits(&mut core, now + Duration::from_secs(2));
        assert_eq!(again[0].offsets[&key()].offset, 9);
        core.handle_commit(now, again[0].token, Ok([(key(), 0)].into()));
        receipt.try_recv().unwrap().unwrap();
    }

    #[test]
    fn what_becomes_of_a_commit_says_nothing_of_a_later_assignment_or_another_topic() {
        let now = time::now();
        let mut core = core(now);
        let before = core.partitions.get(&key()).unwrap().account.tenure();
        let told = |core: &mut Core, code, tenure, topic_id| {
            let offsets =
                || Offsets::from([(key(), Offset { offset: 70, tenure, topic_id, ..Offset::default() })]);
            let (committed, gone) = match code {
                0 => (offsets(), Offsets::new()),
                _ => (Offsets::new(), offsets()),
            };
            core.on_commit(now, CommitOutcome { committed, gone, ..CommitOutcome::default() });
            let partition = core.partitions.get(&key()).unwrap();
            (
                partition.account.committed().is_some_and(|committed| committed.offset == 70),
                partition.gone_told,
            )
        };
        core.assign(now, Vec::new()).unwrap();
        core.assign(now, vec![key()]).unwrap();
        core.handle_metadata(now, metadata(&core.metadata, [2; 16]));
        let tenure = core.partitions.get(&key()).unwrap().account.tenure();
        for code in [0, UNKNOWN_TOPIC_OR_PARTITION] {
            assert_eq!(told(&mut core, code, Some(before), [2; 16]), (false, false), "an earlier assignment");
            assert_eq!(told(&mut core, code, None, ORDERS), (false, false), "the topic before");
        }
        assert_eq!(told(&mut core, 0, Some(tenure), [2; 16]), (true, false));
        assert_eq!(told(&mut core, UNKNOWN_TOPIC_OR_PARTITION, None, [2; 16]), (true, true));
    }

    #[test]
    fn what_is_known_of_a_membership_that_is_over_is_committed_in_nobodys_name() {
        let now = time::now();
        let config = KafkaConfig::new().set_bootstrap_servers("localhost:9092").set_group_id("g");
        let (consumer, client) = (config.resolve_consumer().unwrap(), config.resolve_client().unwrap());
        let mut core = Core::new(Arc::new(consumer), Arc::new(client), now, Rng::new(1));
        let commit = |core: &mut Core| {
            core.commit(Some([(key(), Offset { offset: 7, ..Offset::default() })].into()), now + IDLE)
                .map(drop)
        };
        commit(&mut core).unwrap();
        core.subscribe(now, vec!["orders".into()]).unwrap();
        core.subscribe(now, Vec::new()).unwrap();
        let error = commit(&mut core).unwrap_err();
        assert_eq!(error.code().map(|code| code.0), Some(group::code::UNKNOWN_MEMBER_ID), "{error}");
        core.assign(now, vec![key()]).unwrap();
        commit(&mut core).unwrap();
    }

    #[test]
    fn a_commit_names_the_topic_that_its_position_is_of_and_is_not_waited_for_when_that_is_gone() {
        let now = time::now();
        let mut core = core(now);
        let mut receipt = core
            .commit(Some([(key(), Offset { offset: 7, ..Offset::default() })].into()), now + IDLE)
            .unwrap()
            .unwrap();
        let sent = commits(&mut core, now);
        assert_eq!((sent[0].offsets[&key()].topic_id, sent[0].offsets[&key()].offset), (ORDERS, 7));
        let refused = || Ok([(key(), UNKNOWN_TOPIC_OR_PARTITION)].into());
        core.handle_commit(now, sent[0].token, refused());
        assert!(receipt.try_recv().is_err(), "the coordinator may not know of the topic yet");

        core.handle_metadata(now, metadata(&core.metadata, [2; 16]));
        let again = commits(&mut core, now + Duration::from_secs(2));
        assert_eq!(again[0].offsets[&key()].topic_id, ORDERS, "never under the id of the new one");
        core.handle_commit(now, again[0].token, refused());
        let error = receipt.try_recv().unwrap().unwrap_err();
        assert_eq!(error.code().map(|code| code.0), Some(UNKNOWN_TOPIC_OR_PARTITION), "{error}");
    }

    #[test]
    fn what_was_read_before_a_topic_was_made_again_is_not_committed_for_the_one_that_there_is_now() {
        let now = time::now();
        let mut core = core(now);
        let commit = |core: &mut Core, since| {
            let named = Offset { offset: 70, since, ..Offset::default() };
            core.commit(Some([(key(), named)].into()), now + IDLE).map(drop)
        };
        let records = Since::Records(core.partitions.get(&key()).unwrap().account.life());
        let handle = Since::Handle(core.partitions.now());
        for since in [records, handle, Since::Now] {
            commit(&mut core, since).unwrap();
        }
        core.partitions.get_mut(&key()).unwrap().note_served(now, true);
        made_again(&mut core, now, [2; 16]);
        let code = |error: Error| error.code().map(|code| code.0);
        assert_eq!(code(commit(&mut core, records).unwrap_err()), Some(group::code::UNKNOWN_MEMBER_ID));
        let error = commit(&mut core, handle).unwrap_err();
        assert!(error.to_string().contains("made again"), "{error}");
        assert_eq!((error.topic(), code(error.clone())), (Some("orders"), Some(UNKNOWN_TOPIC_OR_PARTITION)));
        let again = Since::Handle(core.partitions.now());
        for since in [again, Since::Now] {
            commit(&mut core, since).unwrap();
        }

        // Nor of one that was made again while nobody had it assigned.
        core.assign(now, Vec::new()).unwrap();
        core.handle_metadata(now, metadata(&core.metadata, [3; 16]));
        core.assign(now, vec![key()]).unwrap();
        assert_eq!(code(commit(&mut core, again).unwrap_err()), Some(UNKNOWN_TOPIC_OR_PARTITION));
        let last = Since::Handle(core.partitions.now());
        commit(&mut core, last).unwrap();
    }
}
