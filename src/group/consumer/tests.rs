//! The member in virtual time, beside a coordinator that each test plays.

mod ending;
mod refusals;
mod topics;

use super::*;
use crate::{
    config::settings::GroupProtocol,
    error::ErrorKind,
    group::{Request, code},
    time,
};

const INTERVAL: Duration = Duration::from_secs(5);
const SESSION: Duration = Duration::from_secs(45);
const POLL_INTERVAL: Duration = Duration::from_secs(300);
const ORDERS: Uuid = Uuid([1; 16]);
const PAYMENTS: Uuid = Uuid([2; 16]);
const ORDERS_AGAIN: Uuid = Uuid([3; 16]);

fn settings() -> GroupSettings {
    GroupSettings {
        protocol: GroupProtocol::Consumer,
        instance_id: None,
        assignors: crate::group::assignor::Strategy::ALL.to_vec(),
        cooperative: false,
        session_timeout: SESSION,
        heartbeat_interval: Duration::from_secs(3),
        max_poll_interval: POLL_INTERVAL,
        request_timeout: Duration::from_secs(30),
        retry_backoff: Duration::from_millis(100),
        retry_backoff_max: Duration::from_secs(1),
    }
}

fn names(list: &[(Uuid, &str)]) -> Arc<Names> {
    Arc::new(list.iter().map(|(id, name)| (id.0, Arc::from(*name))).collect())
}

fn key(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition::new(topic, partition)
}

/// A member and the virtual time it lives in.
struct Bench {
    member: Member,
    now: Instant,
}

impl Bench {
    fn with(edit: impl FnOnce(&mut GroupSettings)) -> Self {
        let (mut settings, now) = (settings(), time::now());
        edit(&mut settings);
        let mut bench = Self { member: Member::new(settings, now, Rng::new(1)), now };
        bench.member.handle_names(now, &names(&[(ORDERS, "orders"), (PAYMENTS, "payments")]));
        bench
    }

    /// Subscribed and polling; the first heartbeat is out.
    fn joining() -> Self {
        Self::joining_with(|_| {})
    }

    fn joining_with(edit: impl FnOnce(&mut GroupSettings)) -> Self {
        let mut bench = Self::with(edit);
        bench.subscribe(&["orders"]);
        bench.member.handle_poll(bench.now);
        bench
    }

    /// In the group in epoch 1 with partitions 0 and 1 of `orders`, of which the coordinator knows.
    fn joined() -> Self {
        Self::joined_with(|_| {})
    }

    fn joined_with(edit: impl FnOnce(&mut GroupSettings)) -> Self {
        let mut bench = Self::joining_with(edit);
        let (token, _) = bench.beat();
        bench.answer(token, 1, Some(&[(ORDERS, 0), (ORDERS, 1)]));
        assert_eq!(bench.assigned(), [key("orders", 0), key("orders", 1)]);
        let (token, _) = bench.beat();
        bench.answer(token, 1, None);
        bench
    }

    fn subscribe(&mut self, topics: &[&str]) {
        let topics = topics.iter().map(|topic| Arc::from(*topic)).collect();
        self.member.handle_subscription(self.now, topics, None);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.member.handle_timeout(self.now);
    }

    /// On to the next moment the member asks for.
    fn pass_to_timeout(&mut self) {
        self.now = self.now.max(self.member.poll_timeout().expect("the member waits for nothing"));
        self.member.handle_timeout(self.now);
    }

    fn beat(&mut self) -> (Token, ConsumerHeartbeat) {
        let (token, beat, patience) = self.patient_beat();
        assert!(Duration::ZERO < patience && patience <= Duration::from_secs(30));
        (token, beat)
    }

    /// A heartbeat, and how long its answer is waited for.
    fn patient_beat(&mut self) -> (Token, ConsumerHeartbeat, Duration) {
        match self.member.poll_action() {
            Some(Action::Send { token, request: Request::ConsumerHeartbeat(beat), deadline }) => {
                (token, beat, deadline - self.now)
            }
            other => panic!("a heartbeat was due, not {other:?}"),
        }
    }

    fn assigned(&mut self) -> Vec<TopicPartition> {
        match self.member.poll_action() {
            Some(Action::Assign { added }) => added,
            other => panic!("an assignment was due, not {other:?}"),
        }
    }

    fn revoked(&mut self) -> (Token, Vec<TopicPartition>) {
        match self.member.poll_action() {
            Some(Action::Revoke { token, partitions, .. }) => (token, partitions),
            other => panic!("a revocation was due, not {other:?}"),
        }
    }

    fn lost(&mut self) -> Vec<TopicPartition> {
        match self.member.poll_action() {
            Some(Action::Lost { partitions }) => partitions,
            other => panic!("a loss was due, not {other:?}"),
        }
    }

    fn failed(&mut self) -> Error {
        match self.member.poll_action() {
            Some(Action::Fail(error)) => error,
            other => panic!("a failure was due, not {other:?}"),
        }
    }

    fn quiet(&mut self) {
        let action = self.member.poll_action();
        assert!(action.is_none(), "{action:?}");
    }

    fn answer(&mut self, token: Token, epoch: i32, assignment: Option<&[IdPartition]>) {
        let answer = ConsumerHeartbeatAnswer {
            epoch,
            interval: INTERVAL,
            assignment: assignment.map(<[_]>::to_vec),
            ..ConsumerHeartbeatAnswer::default()
        };
        self.member.handle_answer(self.now, token, Ok(Answer::ConsumerHeartbeat(answer)));
    }

    fn refuse(&mut self, token: Token, error: i16) {
        let answer = ConsumerHeartbeatAnswer { error, ..ConsumerHeartbeatAnswer::default() };
        self.member.handle_answer(self.now, token, Ok(Answer::ConsumerHeartbeat(answer)));
    }

    fn lose_answer(&mut self, token: Token) {
        let lost = Error::new(ErrorKind::Disconnected, "gone");
        self.member.handle_answer(self.now, token, Err(lost));
        assert!(matches!(self.member.poll_action(), Some(Action::ForgetCoordinator)));
    }
}

#[test]
fn the_first_heartbeat_says_everything_and_a_quiet_one_nothing() {
    let mut bench = Bench::joining();
    let (token, first) = bench.beat();
    assert_eq!((first.epoch, first.is_full), (0, true));
    assert_eq!(first.topics, Some(vec!["orders".into()]));
    assert_eq!((first.owned, first.pattern), (Some(Vec::new()), None));
    assert_eq!(first.member_id.len(), 22);
    assert!(bench.member.identity().is_none());

    bench.answer(token, 3, Some(&[]));
    assert_eq!(bench.member.identity().unwrap().generation, 3);
    bench.quiet();
    bench.pass(INTERVAL - Duration::from_millis(1));
    bench.quiet();
    bench.pass(Duration::from_millis(1));
    let (_, quiet) = bench.beat();
    let member_id = first.member_id;
    let nothing =
        ConsumerHeartbeat { member_id, epoch: 3, topics: None, pattern: None, owned: None, is_full: false };
    assert_eq!(quiet, nothing);
}

#[test]
fn every_member_has_an_id_of_its_own_for_its_whole_life() {
    let ids: Set<_> = (0..100).map(|seed| random_id(&mut Rng::new(seed))).collect();
    assert_eq!(ids.len(), 100);
    let mut bench = Bench::joined();
    let before = bench.member.identity().unwrap().member_id;
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.refuse(token, code::UNKNOWN_MEMBER_ID);
    bench.lost();
    assert_eq!(bench.beat().1.member_id, before);
}

#[test]
fn nothing_is_sent_before_the_first_poll() {
    let mut bench = Bench::with(|_| {});
    bench.subscribe(&["orders"]);
    bench.pass(INTERVAL);
    bench.quiet();
    assert!(bench.member.poll_timeout().is_none() && bench.member.is_idle());
    bench.member.handle_poll(bench.now);
    assert_eq!(bench.beat().1.epoch, 0);
}

#[test]
fn what_is_taken_is_told_at_once() {
    let mut bench = Bench::joining();
    let (token, _) = bench.beat();
    bench.answer(token, 1, Some(&[(ORDERS, 1), (PAYMENTS, 0)]));
    assert_eq!(bench.assigned(), [key("orders", 1), key("payments", 0)]);
    let (token, told) = bench.beat();
    assert_eq!(
        (told.owned, told.topics, told.is_full),
        (Some(vec![(ORDERS, 1), (PAYMENTS, 0)]), None, false)
    );
    bench.answer(token, 1, None);
    bench.quiet();
    assert!(bench.member.is_settled());
}

#[test]
fn what_goes_is_released_before_the_coordinator_hears_of_it_and_what_is_new_comes_after() {
    let mut bench = Bench::joined();
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.answer(token, 1, Some(&[(ORDERS, 1), (PAYMENTS, 0)]));
    let (revocation, partitions) = bench.revoked();
    assert_eq!(partitions, [key("orders", 0)]);
    bench.quiet();

    // It goes on beating, and does not say that anything has gone.
    bench.pass_to_timeout();
    let (token, meanwhile) = bench.beat();
    assert_eq!(meanwhile.owned, None);
    bench.answer(token, 1, None);
    bench.quiet();

    bench.member.handle_revoked(bench.now, Token::STRANGER);
    bench.quiet();
    bench.member.handle_revoked(bench.now, revocation);
    assert_eq!(bench.assigned(), [key("payments", 0)]);
    assert_eq!(bench.beat().1.owned, Some(vec![(ORDERS, 1), (PAYMENTS, 0)]));
}

#[test]
fn a_revocation_counts_from_the_first_heartbeat_whose_answer_may_have_said_it() {
    let mut bench = Bench::joined();
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    let first = bench.now;
    bench.lose_answer(token);
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.pass(Duration::from_secs(1));
    bench.answer(token, 2, Some(&[(ORDERS, 0)]));
    let Some(Action::Revoke { token, since, .. }) = bench.member.poll_action() else { panic!() };
    assert_eq!(since, first);

    // A target that was heard of during the revocation is as old as itself.
    bench.pass_to_timeout();
    let second = bench.now;
    let (beat, _) = bench.beat();
    bench.answer(beat, 3, Some(&[]));
    bench.pass(Duration::from_secs(1));
    bench.member.handle_revoked(bench.now, token);
    let Some(Action::Revoke { since, .. }) = bench.member.poll_action() else { panic!() };
    assert_eq!(since, second);
}

#[test]
fn a_coordinator_that_was_away_for_long_leaves_a_revocation_its_time() {
    let mut bench = Bench::joined();
    let away = bench.now + POLL_INTERVAL * 2;
    bench.pass_to_timeout();
    while bench.now < away {
        let (token, _) = bench.beat();
        bench.refuse(token, code::COORDINATOR_LOAD_IN_PROGRESS);
        bench.pass_to_timeout();
    }
    let (token, _) = bench.beat();
    bench.answer(token, 2, Some(&[(ORDERS, 0)]));
    let Some(Action::Revoke { since, .. }) = bench.member.poll_action() else { panic!() };
    assert_eq!(since, bench.now - SESSION, "it knows us, and so has heard of us since then");
}

#[test]
fn a_target_that_comes_during_a_revocation_is_followed_after_it() {
    let mut bench = Bench::joined();
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.answer(token, 1, Some(&[(ORDERS, 1)]));
    let (revocation, _) = bench.revoked();
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.answer(token, 2, Some(&[(ORDERS, 0)]));
    bench.quiet();
    bench.member.handle_revoked(bench.now, revocation);
    let (revocation, partitions) = bench.revoked();
    assert_eq!(partitions, [key("orders", 1)], "what is to go is not mixed with what is to come");
    assert_eq!(bench.beat().1.owned, Some(vec![(ORDERS, 1)]));
    bench.member.handle_revoked(bench.now, revocation);
    assert_eq!(bench.assigned(), [key("orders", 0)], "given up and given back: another life of it");
}

#[test]
fn after_a_lost_answer_everything_is_said_again_under_the_same_epoch() {
    let mut bench = Bench::joined();
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.lose_answer(token);
    bench.quiet();
    bench.pass_to_timeout();
    let (token, again) = bench.beat();
    assert_eq!((again.epoch, again.is_full, again.topics.is_some()), (1, true, true));
    assert_eq!(again.owned, Some(vec![(ORDERS, 0), (ORDERS, 1)]));
    assert_eq!(bench.member.identity().unwrap().generation, 1, "it is still a member");
    bench.answer(token, 2, None);
    bench.pass_to_timeout();
    assert!(!bench.beat().1.is_full);
}

#[test]
fn another_subscription_is_told_at_once_and_alone() {
    let mut bench = Bench::joined();
    bench.subscribe(&["orders", "payments"]);
    let (token, told) = bench.beat();
    assert_eq!(told.topics, Some(vec!["orders".into(), "payments".into()]));
    assert_eq!((told.owned, told.is_full), (None, false));
    // Changed again while that is out.
    bench.subscribe(&["payments"]);
    bench.quiet();
    bench.answer(token, 2, None);
    assert_eq!(bench.beat().1.topics, Some(vec!["payments".into()]));
}

#[test]
fn a_stale_commit_makes_it_ask_for_its_epoch_at_once() {
    let mut bench = Bench::joined();
    bench.member.handle_fenced_commit(bench.now, 0, code::STALE_MEMBER_EPOCH);
    bench.quiet();
    bench.member.handle_fenced_commit(bench.now, 1, code::STALE_MEMBER_EPOCH);
    let (token, _) = bench.beat();
    bench.member.handle_fenced_commit(bench.now, 1, code::STALE_MEMBER_EPOCH);
    bench.quiet();
    bench.answer(token, 2, None);
    assert_eq!(bench.member.identity().unwrap().generation, 2);
    bench.member.handle_fenced_commit(bench.now, 1, code::UNKNOWN_MEMBER_ID);
    bench.quiet();
    bench.member.handle_fenced_commit(bench.now, 2, code::UNKNOWN_MEMBER_ID);
    assert_eq!(bench.lost().len(), 2);
}

#[test]
fn a_broker_that_asks_for_heartbeats_without_a_pause_is_not_followed() {
    let mut bench = Bench::joined();
    for asked in [0, 1, 10] {
        bench.pass_to_timeout();
        let (token, _) = bench.beat();
        let interval = Duration::from_millis(asked);
        let answer = ConsumerHeartbeatAnswer { epoch: 1, interval, ..ConsumerHeartbeatAnswer::default() };
        bench.member.handle_answer(bench.now, token, Ok(Answer::ConsumerHeartbeat(answer)));
        let pause = bench.member.poll_timeout().unwrap() - bench.now;
        assert!(pause >= Duration::from_millis(100), "{asked} ms: {pause:?}");
        assert!(asked > 0 || pause == INTERVAL, "what is no interval says nothing");
    }
}

#[test]
fn an_id_that_the_coordinator_gives_is_the_members_from_then_on() {
    let mut bench = Bench::joining();
    let (token, first) = bench.beat();
    for (given, id) in
        [(Some(String::new()), &*first.member_id), (Some("given".into()), "given"), (None, "given")]
    {
        let answer = ConsumerHeartbeatAnswer {
            epoch: 1,
            interval: INTERVAL,
            member_id: given,
            ..ConsumerHeartbeatAnswer::default()
        };
        let token = if id == first.member_id { token } else { bench.beat().0 };
        bench.member.handle_answer(bench.now, token, Ok(Answer::ConsumerHeartbeat(answer)));
        assert_eq!(bench.member.identity().unwrap().member_id, id);
        bench.pass_to_timeout();
    }
    assert_eq!(bench.beat().1.member_id, "given");
}
