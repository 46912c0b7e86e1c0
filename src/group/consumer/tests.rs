use super::{
    ending::{LEAVE, LEAVE_FOR_A_WHILE},
    *,
};
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

    fn beat(&mut self) -> (Token, Beat) {
        match self.member.poll_action() {
            Some(Action::Send { token, request: Request::Beat(beat), deadline }) => {
                assert!(self.now < deadline && deadline <= self.now + Duration::from_secs(30));
                (token, beat)
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
        let answer = BeatAnswer {
            epoch,
            interval: INTERVAL,
            assignment: assignment.map(<[_]>::to_vec),
            ..BeatAnswer::default()
        };
        self.member.handle_answer(self.now, token, Ok(Answer::Beat(answer)));
    }

    fn refuse(&mut self, token: Token, error: i16) {
        let answer = BeatAnswer { error, ..BeatAnswer::default() };
        self.member.handle_answer(self.now, token, Ok(Answer::Beat(answer)));
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
    let nothing = Beat { member_id, epoch: 3, topics: None, pattern: None, owned: None, is_full: false };
    assert_eq!(quiet, nothing);
}

#[test]
fn every_member_has_an_id_of_its_own_for_its_whole_life() {
    let ids: BTreeSet<_> = (0..100).map(|seed| random_id(&mut Rng::new(seed))).collect();
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
fn a_pattern_is_taken_back_also_where_a_heartbeat_was_lost() {
    let mut bench = Bench::joined();
    let told = |bench: &mut Bench| {
        let (token, beat) = bench.beat();
        (token, beat.pattern.as_deref().map(str::to_owned))
    };
    bench.member.handle_subscription(bench.now, Vec::new(), Some("ord.*".into()));
    let (token, pattern) = told(&mut bench);
    assert_eq!(pattern.as_deref(), Some("ord.*"));
    bench.lose_answer(token);
    bench.subscribe(&["orders"]);
    bench.pass_to_timeout();
    let (token, pattern) = told(&mut bench);
    assert_eq!(pattern.as_deref(), Some(""), "it may have heard the pattern");
    bench.answer(token, 1, None);
    // Now it knows.
    bench.pass_to_timeout();
    assert_eq!(told(&mut bench).1, None);
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
fn a_refused_repetition_is_full_too_and_slower_each_time() {
    let mut bench = Bench::joining();
    let mut pauses = Vec::new();
    for _ in 0..4 {
        let (token, beat) = bench.beat();
        assert!(beat.is_full && beat.topics.is_some() && beat.owned.is_some());
        let before = bench.now;
        bench.refuse(token, code::COORDINATOR_LOAD_IN_PROGRESS);
        bench.pass_to_timeout();
        pauses.push(bench.now - before);
    }
    assert!(pauses[3] > pauses[0] * 3, "{pauses:?}");
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
fn a_pattern_is_for_the_broker_and_an_empty_one_takes_it_back() {
    let mut bench = Bench::joined();
    bench.member.handle_subscription(bench.now, Vec::new(), Some("ord.*".into()));
    let (token, told) = bench.beat();
    assert_eq!((told.pattern.as_deref(), told.topics), (Some("ord.*"), Some(Vec::new())));
    bench.answer(token, 2, None);
    bench.subscribe(&["orders"]);
    let (_, told) = bench.beat();
    assert_eq!((told.pattern.as_deref(), told.topics), (Some(""), Some(vec!["orders".into()])));
}

#[test]
fn a_member_that_is_fenced_or_forgotten_loses_all_and_joins_again_in_epoch_0() {
    for error in [code::FENCED_MEMBER_EPOCH, code::UNKNOWN_MEMBER_ID, code::GROUP_ID_NOT_FOUND] {
        let mut bench = Bench::joined();
        bench.pass_to_timeout();
        let (token, _) = bench.beat();
        bench.refuse(token, error);
        assert_eq!(bench.lost(), [key("orders", 0), key("orders", 1)]);
        let (_, again) = bench.beat();
        assert_eq!((again.epoch, again.is_full, again.owned), (0, true, Some(Vec::new())));
        assert!(bench.member.identity().is_none());
    }
}

#[test]
fn a_member_that_is_lost_between_polls_joins_again_in_a_poll_alone() {
    let mut bench = Bench::joined();
    bench.member.handle_poll_end(bench.now);
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.refuse(token, code::FENCED_MEMBER_EPOCH);
    bench.lost();
    bench.pass(INTERVAL);
    bench.quiet();
    assert!(bench.member.poll_timeout().is_none());
    bench.member.handle_poll(bench.now);
    assert_eq!(bench.beat().1.epoch, 0);
}

#[test]
fn a_member_that_is_let_in_and_thrown_out_at_once_does_not_flood_the_coordinator() {
    let mut bench = Bench::joining();
    let mut rounds = 0;
    let begun = bench.now;
    while bench.now < begun + Duration::from_secs(10) {
        let (token, _) = bench.beat();
        bench.answer(token, 1, Some(&[(ORDERS, 0)]));
        bench.assigned();
        let (token, _) = bench.beat();
        bench.refuse(token, code::UNKNOWN_MEMBER_ID);
        bench.lost();
        bench.pass_to_timeout();
        rounds += 1;
    }
    assert!((5..20).contains(&rounds), "{rounds} rounds in 10 s");
}

#[test]
fn a_coordinator_that_changes_its_mind_with_every_answer_is_not_followed_for_ever() {
    let mut bench = Bench::joined();
    let mut beats = 0;
    bench.pass_to_timeout();
    while let Some(action) = bench.member.poll_action() {
        match action {
            Action::Send { token, .. } => {
                beats += 1;
                assert!(beats < 100, "it never comes to rest");
                bench.answer(token, 1, Some(&[(ORDERS, beats % 7)]));
            }
            Action::Revoke { token, .. } => bench.member.handle_revoked(bench.now, token),
            _ => {}
        }
    }
    bench.pass_to_timeout();
    bench.beat();
}

#[test]
fn unknown_topics_are_asked_for_and_taken_when_they_have_a_name() {
    let mut bench = Bench::joining();
    let (token, _) = bench.beat();
    bench.answer(token, 1, Some(&[(ORDERS, 0), (ORDERS_AGAIN, 4)]));
    let action = bench.member.poll_action();
    assert!(matches!(&action, Some(Action::Identify { topics }) if *topics == [ORDERS_AGAIN]), "{action:?}");
    assert_eq!(bench.assigned(), [key("orders", 0)], "what is known is taken");
    assert_eq!(bench.beat().1.owned, Some(vec![(ORDERS, 0)]), "and only that is told");
    bench.member.handle_names(bench.now, &names(&[(ORDERS, "orders"), (ORDERS_AGAIN, "more")]));
    assert_eq!(bench.assigned(), [key("more", 4)]);
}

#[test]
fn a_topic_that_was_made_again_is_another_one_and_nothing_of_the_old_one_is_committed() {
    let mut bench = Bench::joined();
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.answer(token, 2, Some(&[(ORDERS_AGAIN, 0)]));
    assert!(matches!(bench.member.poll_action(), Some(Action::Identify { .. })));
    bench.quiet();
    // An answer that was on its way, or of a broker that does not know yet.
    bench.member.handle_names(bench.now, &names(&[(ORDERS, "orders"), (PAYMENTS, "payments")]));
    assert!(matches!(bench.member.poll_action(), Some(Action::Identify { .. })));
    bench.quiet();
    bench.member.handle_names(bench.now, &names(&[(ORDERS_AGAIN, "orders")]));
    assert_eq!(bench.lost(), [key("orders", 0), key("orders", 1)], "no revocation, which would commit");
    assert_eq!(bench.assigned(), [key("orders", 0)]);
    assert_eq!(bench.beat().1.owned, Some(vec![(ORDERS_AGAIN, 0)]));
}

#[test]
fn a_heartbeat_in_a_hurry_does_not_end_the_wait_for_the_name_of_a_topic_that_was_made_again() {
    let mut bench = Bench::joined();
    bench.pass(INTERVAL);
    let (token, _) = bench.beat();
    // It says what the member does not want any more before the answer that takes a topic in the place of another comes.
    bench.subscribe(&["orders", "payments"]);
    bench.answer(token, 2, Some(&[(ORDERS_AGAIN, 0)]));
    assert!(matches!(bench.member.poll_action(), Some(Action::Identify { .. })));
    let (token, _) = bench.beat();
    bench.answer(token, 2, None);
    let waits = std::iter::from_fn(|| bench.member.poll_action());
    let (mut again, waits): (Vec<_>, Vec<_>) =
        waits.partition(|action| matches!(action, Action::Identify { .. }));
    assert!(again.pop().is_some() && waits.is_empty(), "it is being asked about: {waits:?}");
    bench.member.handle_names(bench.now, &names(&[(ORDERS_AGAIN, "orders"), (PAYMENTS, "payments")]));
    assert_eq!(bench.lost(), [key("orders", 0), key("orders", 1)]);
    assert_eq!(bench.assigned(), [key("orders", 0)]);
}

#[test]
fn a_topic_that_never_gets_a_name_does_not_hold_up_what_must_go() {
    let mut bench = Bench::joined();
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.answer(token, 2, Some(&[(ORDERS_AGAIN, 0)]));
    assert!(matches!(bench.member.poll_action(), Some(Action::Identify { .. })));
    bench.quiet();
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.answer(token, 2, None);
    assert!(matches!(bench.member.poll_action(), Some(Action::Identify { .. })), "it is asked for again");
    assert_eq!(bench.revoked().1.len(), 2);
}

#[test]
fn topics_that_are_not_followed_any_more_are_revoked_and_not_lost() {
    let mut bench = Bench::joined();
    bench.subscribe(&["payments"]);
    bench.member.handle_names(bench.now, &names(&[(PAYMENTS, "payments")]));
    let (token, _) = bench.beat();
    bench.answer(token, 2, Some(&[]));
    assert_eq!(bench.revoked().1, [key("orders", 0), key("orders", 1)]);
}

#[test]
fn a_member_that_does_not_poll_leaves_and_joins_again_when_it_does() {
    for (instance, epoch) in [(None, LEAVE), (Some("i".to_owned()), LEAVE_FOR_A_WHILE)] {
        let mut bench = Bench::joined_with(|settings| settings.instance_id = instance);
        bench.member.handle_poll_end(bench.now);
        let end = bench.now + POLL_INTERVAL;
        while bench.member.is_joined() {
            bench.pass_to_timeout();
            if bench.now < end {
                let (token, _) = bench.beat();
                bench.answer(token, 1, None);
            }
        }
        assert_eq!(bench.now, end);
        assert_eq!(bench.lost().len(), 2);
        let (token, left) = bench.beat();
        assert_eq!((left.epoch, left.owned, left.topics), (epoch, None, None));
        bench.answer(token, epoch, None);
        bench.quiet();
        bench.member.handle_poll(bench.now);
        assert_eq!(bench.beat().1.epoch, 0);
    }
}

#[test]
fn a_closed_member_has_left_with_whatever_answer_and_a_stale_one_is_dropped() {
    for refused in [0, code::UNKNOWN_MEMBER_ID, code::NOT_COORDINATOR] {
        let mut bench = Bench::joined();
        bench.pass_to_timeout();
        let (stale, _) = bench.beat();
        bench.member.handle_close(bench.now);
        bench.lost();
        let (token, left) = bench.beat();
        assert_eq!(left.epoch, LEAVE);
        bench.answer(stale, 7, Some(&[(ORDERS, 5)]));
        assert!(!bench.member.is_idle());
        bench.refuse(token, refused);
        assert!(bench.member.is_idle() && bench.member.poll_timeout().is_none());
        bench.quiet();
    }
}

#[test]
fn a_close_leaves_or_stays_as_it_is_told_whatever_the_member_is() {
    use GroupMembershipOperation::{Default, LeaveGroup, RemainInGroup};
    for (departure, is_static, epoch) in [
        (Default, false, Some(LEAVE)),
        (Default, true, Some(LEAVE_FOR_A_WHILE)),
        (LeaveGroup, false, Some(LEAVE)),
        (LeaveGroup, true, Some(LEAVE)),
        (RemainInGroup, false, None),
        (RemainInGroup, true, Some(LEAVE_FOR_A_WHILE)),
    ] {
        let instance = is_static.then(|| "i".to_owned());
        let mut bench = Bench::joined_with(|settings| settings.instance_id = instance);
        bench.member.set_departure(departure);
        bench.member.handle_close(bench.now);
        bench.lost();
        match epoch {
            Some(epoch) => assert_eq!(bench.beat().1.epoch, epoch, "{departure:?} {is_static}"),
            None => bench.quiet(),
        }
        assert_eq!(bench.member.is_idle(), epoch.is_none());
    }
}

#[test]
fn a_member_that_closes_while_it_joins_says_so() {
    let mut bench = Bench::joining();
    bench.beat();
    bench.member.handle_close(bench.now);
    assert_eq!(bench.beat().1.epoch, LEAVE, "the coordinator may have let it in");
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

/// What a refusal of the first heartbeat does: (code, does the user hear of it, what the hint names).
#[test]
fn each_refusal_of_a_join_names_its_remedy_and_the_next_poll_tries_again() {
    let table = [
        (code::UNSUPPORTED_ASSIGNOR, "group.remote.assignor"),
        (code::GROUP_MAX_SIZE_REACHED, "group.consumer.max.size"),
        (code::GROUP_AUTHORIZATION_FAILED, "group.id"),
        (code::TOPIC_AUTHORIZATION_FAILED, "Describe and Read"),
        (code::INVALID_REGULAR_EXPRESSION, "RE2"),
        (code::UNSUPPORTED_VERSION, "group.protocol to classic"),
        (code::GROUP_ID_NOT_FOUND, "group.consumer.migration.policy"),
        (code::INVALID_REQUEST, ""),
    ];
    for (refused, remedy) in table {
        let mut bench = Bench::joining();
        let (token, _) = bench.beat();
        bench.refuse(token, refused);
        let error = bench.failed();
        assert_eq!(error.code().map(|code| code.0), Some(refused));
        assert!(error.hint().unwrap_or_default().contains(remedy), "{error}");
        assert!(!error.is_fatal() && bench.member.is_idle());
        bench.quiet();
        bench.pass_to_timeout();
        assert_eq!(bench.beat().1.epoch, 0, "a poll still waits");
    }
}

#[test]
fn what_the_broker_says_is_in_the_error() {
    let mut bench = Bench::joining();
    let (token, _) = bench.beat();
    let message = Some("SubscribedTopicRegex `(` is not a valid regular expression".to_owned());
    let answer = BeatAnswer { error: code::INVALID_REGULAR_EXPRESSION, message, ..BeatAnswer::default() };
    bench.member.handle_answer(bench.now, token, Ok(Answer::Beat(answer)));
    let error = bench.failed().to_string();
    assert!(error.contains("SubscribedTopicRegex `(`"), "{error}");
}

#[test]
fn an_instance_id_that_is_not_released_yet_is_waited_for_as_long_as_a_session() {
    let mut bench = Bench::joining_with(|settings| settings.instance_id = Some("i".to_owned()));
    let begun = bench.now;
    let error = loop {
        let (token, _) = bench.beat();
        bench.refuse(token, code::UNRELEASED_INSTANCE_ID);
        match bench.member.poll_action() {
            None => bench.pass_to_timeout(),
            Some(Action::Fail(error)) => break error,
            other => panic!("{other:?}"),
        }
    };
    assert!(bench.now >= begun + SESSION && bench.now < begun + SESSION + Duration::from_secs(3));
    assert!(!error.is_fatal() && error.to_string().contains("group.instance.id"), "{error}");
}

#[test]
fn a_fenced_instance_is_the_end() {
    let mut bench = Bench::joined_with(|settings| settings.instance_id = Some("i".to_owned()));
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.refuse(token, code::FENCED_INSTANCE_ID);
    bench.lost();
    assert!(bench.failed().is_fatal());
    bench.member.handle_poll(bench.now);
    bench.quiet();
    assert!(bench.member.is_idle() && bench.member.poll_timeout().is_none());
}

#[test]
fn a_topic_that_may_not_be_seen_any_more_takes_nothing_away() {
    let mut bench = Bench::joined();
    bench.pass_to_timeout();
    let (token, _) = bench.beat();
    bench.refuse(token, code::TOPIC_AUTHORIZATION_FAILED);
    bench.failed();
    bench.quiet();
    assert!(bench.member.is_joined());
    bench.pass_to_timeout();
    assert!(bench.beat().1.is_full);
}

#[test]
fn a_broker_without_the_protocol_is_told_of_or_left_to_the_classic_one() {
    let unsupported = || Err(Error::new(ErrorKind::Unsupported, "the broker does not offer it at all"));
    let mut bench = Bench::joining();
    let (token, _) = bench.beat();
    bench.member.handle_answer(bench.now, token, unsupported());
    let error = bench.failed();
    assert!(bench.member.take_unusable().is_none());
    assert!(error.hint().unwrap_or_default().contains("group.protocol to classic"), "{error}");

    let mut bench = Bench::joining_with(|settings| settings.protocol = GroupProtocol::Auto);
    let (token, _) = bench.beat();
    bench.member.handle_answer(bench.now, token, unsupported());
    bench.quiet();
    assert!(bench.member.take_unusable().is_some());
}

#[test]
fn an_answer_without_an_epoch_or_an_interval_is_not_followed() {
    let mut bench = Bench::joining();
    let (token, _) = bench.beat();
    bench.answer(token, 0, Some(&[(ORDERS, 0)]));
    assert!(bench.failed().to_string().contains("epoch 0"));

    let mut bench = Bench::joining();
    let (token, _) = bench.beat();
    let answer = BeatAnswer { epoch: 1, interval: Duration::ZERO, ..BeatAnswer::default() };
    bench.member.handle_answer(bench.now, token, Ok(Answer::Beat(answer)));
    bench.quiet();
    assert!(bench.member.poll_timeout().unwrap() > bench.now, "it does not beat without a pause");
}

#[test]
fn a_static_member_outside_its_group_leaves_it_all_the_same_when_its_close_is_to() {
    for (departure, leaves) in
        [(GroupMembershipOperation::LeaveGroup, true), (GroupMembershipOperation::Default, false)]
    {
        let mut bench = Bench::joined_with(|settings| settings.instance_id = Some("i".to_owned()));
        bench.member.handle_poll_end(bench.now);
        bench.pass(POLL_INTERVAL);
        bench.lost();
        let (token, away) = bench.beat();
        assert_eq!(away.epoch, LEAVE_FOR_A_WHILE);
        bench.answer(token, -2, None);
        assert!(bench.member.is_idle());
        bench.member.set_departure(departure);
        bench.member.handle_close(bench.now);
        if leaves {
            let (token, left) = bench.beat();
            assert_eq!(left.epoch, LEAVE);
            bench.answer(token, -1, None);
        }
        bench.quiet();
        assert!(bench.member.is_idle());
        bench.member.handle_close(bench.now);
        bench.quiet();
    }
}
