use bytes::Bytes;

use super::*;
use crate::{
    config::settings::GroupProtocol,
    error::ErrorKind,
    group::{
        assignor::{GroupInfo, GroupMember},
        wire::{decode_assignment, encode_assignment},
    },
    record::TopicPartition,
    time,
};

const HEARTBEAT: Duration = Duration::from_secs(3);
const SESSION: Duration = Duration::from_secs(45);
const POLL_INTERVAL: Duration = Duration::from_secs(300);

/// A member and the virtual time it lives in.
struct Bench {
    member: Member,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(edit: impl FnOnce(&mut GroupSettings)) -> Self {
        let mut settings = GroupSettings {
            protocol: GroupProtocol::Classic,
            instance_id: None,
            assignors: Strategy::ALL.to_vec(),
            cooperative: false,
            session_timeout: SESSION,
            heartbeat_interval: HEARTBEAT,
            max_poll_interval: POLL_INTERVAL,
            request_timeout: Duration::from_secs(30),
            retry_backoff: Duration::from_millis(100),
            retry_backoff_max: Duration::from_secs(1),
        };
        edit(&mut settings);
        let now = time::now();
        Self { member: Member::new(settings, now, Rng::new(1)), now }
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

    fn subscribe(&mut self, topics: &[&str]) {
        let topics = topics.iter().map(|topic| Arc::from(*topic)).collect();
        self.member.handle_subscription(self.now, topics);
    }

    fn poll(&mut self) {
        self.member.handle_poll(self.now);
        self.member.handle_poll_end(self.now);
    }

    fn sent(&mut self) -> (Token, Request) {
        match self.member.poll_action() {
            Some(Action::Send { token, request, .. }) => (token, request),
            other => panic!("no request but {other:?}"),
        }
    }

    fn answer(&mut self, token: Token, answer: Answer) {
        self.member.handle_answer(self.now, token, Ok(answer));
    }

    fn nothing(&mut self) {
        let action = self.member.poll_action();
        assert!(action.is_none(), "unexpected {action:?}");
    }

    fn join_answer(&mut self, token: Token, generation: i32, leader: &str) {
        let members = vec![GroupMember::new("me", ["t"])];
        self.answer(
            token,
            Answer::Join {
                error: 0,
                generation,
                member_id: "me".into(),
                leader: leader.into(),
                protocol: "range".into(),
                members: if leader == "me" { members } else { Vec::new() },
                skip_assignment: false,
            },
        );
    }

    /// A follower with partition t-0 in generation 5.
    fn stable() -> Self {
        Self::stable_with(|_| {})
    }

    fn stable_with(edit: impl FnOnce(&mut GroupSettings)) -> Self {
        let mut bench = Self::with(edit);
        bench.subscribe(&["t"]);
        bench.poll();
        let (token, _) = bench.sent();
        bench.join_answer(token, 5, "other");
        let (token, _) = bench.sent();
        let assignment = encode_assignment(&[TopicPartition::new("t", 0)]);
        bench.answer(token, Answer::Sync { error: 0, assignment });
        assert!(matches!(bench.member.poll_action(), Some(Action::Assign { .. })));
        bench
    }

    fn heartbeat(&mut self) -> Token {
        self.pass(HEARTBEAT);
        match self.sent() {
            (token, Request::Heartbeat { .. }) => token,
            other => panic!("no heartbeat but {other:?}"),
        }
    }

    fn revocation(&mut self) -> Token {
        match self.member.poll_action() {
            Some(Action::Revoke { token, .. }) => token,
            other => panic!("no revocation but {other:?}"),
        }
    }

    fn joins(&mut self) -> (Token, String) {
        match self.sent() {
            (token, Request::Join { member_id, .. }) => (token, member_id),
            other => panic!("no join but {other:?}"),
        }
    }
}

fn join_error(error: i16, member_id: &str) -> Answer {
    Answer::Join {
        error,
        generation: -1,
        member_id: member_id.into(),
        leader: String::new(),
        protocol: String::new(),
        members: Vec::new(),
        skip_assignment: false,
    }
}

fn disconnected() -> Error {
    Error::new(ErrorKind::Disconnected, "the connection was lost")
}

#[test]
fn nothing_is_sent_before_the_first_poll() {
    let mut bench = Bench::new();
    bench.subscribe(&["t"]);
    bench.pass(Duration::from_secs(3600));
    bench.nothing();
    bench.poll();
    assert_eq!(bench.joins().1, "");
}

#[test]
fn a_member_id_that_is_required_is_sent_back_at_once() {
    let mut bench = Bench::new();
    bench.subscribe(&["t"]);
    bench.poll();
    let (token, _) = bench.joins();
    bench.answer(token, join_error(code::MEMBER_ID_REQUIRED, "given"));
    assert_eq!(bench.joins().1, "given");
}

#[test]
fn the_leader_plans_and_its_plan_is_synced() {
    let mut bench = Bench::new();
    bench.subscribe(&["t"]);
    bench.poll();
    let (token, _) = bench.joins();
    bench.join_answer(token, 7, "me");
    let Some(Action::Plan { token, assignor: Strategy::Range, members, .. }) = bench.member.poll_action()
    else {
        panic!("the leader does not plan")
    };
    let counts: BTreeMap<Arc<str>, i32> = [(Arc::from("t"), 2)].into();
    let plan = Strategy::Range.assign(&GroupInfo::new(&members, &counts));
    bench.member.handle_plan(bench.now, Token::STRANGER, Strategy::Range, counts.clone(), plan.clone());
    bench.nothing(); // another token: a plan of another generation
    bench.member.handle_plan(bench.now, token, Strategy::Range, counts, plan);
    let (token, Request::Sync { generation: 7, assignments, .. }) = bench.sent() else { panic!("no sync") };
    assert_eq!(decode_assignment(&assignments[0].1).unwrap().len(), 2);
    bench.answer(token, Answer::Sync { error: 0, assignment: assignments[0].1.clone() });
    let Some(Action::Assign { added: partitions }) = bench.member.poll_action() else {
        panic!("no assignment")
    };
    assert_eq!(partitions, [TopicPartition::new("t", 0), TopicPartition::new("t", 1)]);
    // More partitions than planned with: the leader calls for a rebalance.
    bench.member.handle_metadata(bench.now, |_| Some(2));
    bench.nothing();
    bench.member.handle_metadata(bench.now, |_| Some(3));
    bench.revocation();
}

#[test]
fn heartbeats_follow_each_other_at_the_interval() {
    let mut bench = Bench::stable();
    for _ in 0..3 {
        let token = bench.heartbeat();
        bench.pass(HEARTBEAT * 2);
        bench.nothing(); // one at a time
        bench.answer(token, Answer::Heartbeat { error: 0 });
        bench.poll();
    }
    assert!(bench.member.is_stable());
}

#[test]
fn stale_heartbeat_answer_is_dropped() {
    let mut bench = Bench::stable();
    bench.heartbeat();
    bench.answer(Token::STRANGER, Answer::Heartbeat { error: code::UNKNOWN_MEMBER_ID });
    bench.answer(Token::STRANGER, Answer::Heartbeat { error: code::UNKNOWN_MEMBER_ID });
    bench.nothing();
    assert!(bench.member.is_stable());
}

#[test]
fn a_heartbeat_answer_of_the_last_generation_is_dropped() {
    let mut bench = Bench::stable();
    bench.subscribe(&["t", "u"]);
    let token = bench.revocation();
    bench.pass(HEARTBEAT);
    let (beat, Request::Heartbeat { .. }) = bench.sent() else { panic!("a revoking member must beat") };
    bench.member.handle_revoked(bench.now, token);
    let _ = bench.joins();
    bench.answer(beat, Answer::Heartbeat { error: code::UNKNOWN_MEMBER_ID });
    bench.nothing();
}

#[test]
fn a_rebalance_revokes_first_and_joins_only_then() {
    let mut bench = Bench::stable();
    let beat = bench.heartbeat();
    bench.answer(beat, Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS });
    let token = bench.revocation();
    assert_eq!(bench.member.identity().unwrap().generation, 5, "what is done must still be committable");
    // The user is slow: the member stays alive meanwhile, and does not revoke twice.
    let beat = bench.heartbeat();
    bench.answer(beat, Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS });
    bench.nothing();
    bench.member.handle_revoked(bench.now, Token::STRANGER);
    bench.nothing();
    bench.member.handle_revoked(bench.now, token);
    assert_eq!(bench.joins().1, "me");
    assert_eq!(bench.member.identity(), None);
}

#[test]
fn a_coordinator_that_never_lets_a_member_in_is_not_asked_without_a_pause() {
    let asked_in_a_second = |answer: fn(&mut Bench, Token, bool)| {
        let mut bench = Bench::new();
        bench.subscribe(&["t"]);
        let (mut asked, start) = (0, bench.now);
        while bench.now < start + Duration::from_secs(1) {
            bench.poll();
            while let Some(action) = bench.member.poll_action() {
                if let Action::Send { token, request, .. } = action {
                    asked += 1;
                    assert!(asked < 100, "in circles");
                    answer(&mut bench, token, matches!(request, Request::Join { .. }));
                }
            }
            bench.now += Duration::from_millis(10);
            bench.member.handle_timeout(bench.now);
        }
        asked
    };
    let never =
        |bench: &mut Bench, token, _| bench.answer(token, join_error(code::MEMBER_ID_REQUIRED, "given"));
    assert!((3..20).contains(&asked_in_a_second(never)));
    let nameless =
        |bench: &mut Bench, token, _| bench.answer(token, join_error(code::MEMBER_ID_REQUIRED, ""));
    assert!((3..20).contains(&asked_in_a_second(nameless)));
    for ends in [
        |bench: &mut Bench, token, joins| ends_again(bench, token, joins, code::REBALANCE_IN_PROGRESS),
        |bench: &mut Bench, token, joins| ends_again(bench, token, joins, code::ILLEGAL_GENERATION),
        |bench: &mut Bench, token, joins| ends_again(bench, token, joins, code::UNKNOWN_MEMBER_ID),
    ] {
        assert!((12..40).contains(&asked_in_a_second(ends)));
    }
}

/// The group lets the member in, and has ended the generation when it asks for its assignment.
fn ends_again(bench: &mut Bench, token: Token, joins: bool, error: i16) {
    match joins {
        true => bench.join_answer(token, 5, "other"),
        false => bench.answer(token, Answer::Sync { error, assignment: bytes::Bytes::new() }),
    }
}

#[test]
fn a_rebalance_while_syncing_joins_again_without_a_pause() {
    let mut bench = Bench::new();
    bench.subscribe(&["t"]);
    bench.poll();
    let (token, _) = bench.joins();
    bench.join_answer(token, 5, "other");
    let (token, _) = bench.sent();
    bench.answer(token, Answer::Sync { error: code::REBALANCE_IN_PROGRESS, assignment: bytes::Bytes::new() });
    assert_eq!(bench.joins().1, "me");
}

#[test]
fn lost_partitions_are_released_and_the_member_joins_again_in_a_poll_alone() {
    // (code, the member id of the next join)
    for (error, id) in [(code::UNKNOWN_MEMBER_ID, ""), (code::ILLEGAL_GENERATION, "me")] {
        let mut bench = Bench::stable();
        let beat = bench.heartbeat();
        bench.answer(beat, Answer::Heartbeat { error });
        assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
        assert!(bench.member.identity().is_none());
        bench.pass(SESSION * 2);
        bench.nothing();
        bench.poll();
        assert_eq!(bench.joins().1, id);
    }
}

#[test]
fn a_commit_that_was_fenced_ends_the_generation_it_was_made_in_and_no_later_one() {
    let mut bench = Bench::stable();
    bench.member.handle_fenced_commit(bench.now, 4, code::ILLEGAL_GENERATION);
    bench.nothing();
    bench.member.handle_fenced_commit(bench.now, 5, code::ILLEGAL_GENERATION);
    assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
    bench.poll();
    bench.joins();
}

#[test]
fn a_poll_that_waits_joins_again_at_once() {
    let mut bench = Bench::stable();
    bench.member.handle_poll(bench.now);
    let beat = bench.heartbeat();
    bench.answer(beat, Answer::Heartbeat { error: code::ILLEGAL_GENERATION });
    assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
    bench.joins();
}

#[test]
fn a_refused_join_is_not_repeated_before_a_pause_however_often_the_user_polls() {
    let mut bench = Bench::new();
    bench.subscribe(&["t"]);
    let (mut joins, until) = (0, bench.now + Duration::from_secs(10));
    while bench.now < until {
        bench.pass(Duration::from_millis(1));
        bench.poll();
        while let Some(action) = bench.member.poll_action() {
            if let Action::Send { token, .. } = action {
                joins += 1;
                let unreadable = Error::protocol("a group member's subscription cannot be read");
                bench.member.handle_answer(bench.now, token, Err(unreadable));
            }
        }
    }
    assert!((5..20).contains(&joins), "{joins} joins in 10 s");
}

#[test]
fn a_poll_that_nobody_looks_after_does_not_keep_the_member() {
    let mut bench = Bench::stable();
    bench.member.handle_poll(bench.now);
    bench.member.handle_loose_poll(bench.now);
    let mut is_lost = false;
    for _ in 0..200 {
        bench.pass_to_timeout();
        while let Some(action) = bench.member.poll_action() {
            match action {
                Action::Send { token, request: Request::Heartbeat { .. }, .. } => {
                    bench.answer(token, Answer::Heartbeat { error: 0 });
                }
                Action::Lost { .. } => is_lost = true,
                _ => {}
            }
        }
        if is_lost {
            break;
        }
    }
    assert!(is_lost);
    bench.pass(SESSION);
    bench.nothing();
}

#[test]
fn proof_of_life_between_polls_keeps_the_member_without_being_a_poll() {
    let mut bench = Bench::stable();
    for _ in 0..10 {
        for _ in 0..(POLL_INTERVAL.as_secs() * 2 / 3 / HEARTBEAT.as_secs()) {
            let beat = bench.heartbeat();
            bench.answer(beat, Answer::Heartbeat { error: 0 });
        }
        bench.member.handle_alive(bench.now);
    }
    let beat = bench.heartbeat();
    bench.answer(beat, Answer::Heartbeat { error: code::UNKNOWN_MEMBER_ID });
    assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
    bench.member.handle_alive(bench.now);
    bench.nothing();
}

#[test]
fn a_fenced_static_member_stops_for_ever() {
    let mut bench = Bench::stable_with(|settings| settings.instance_id = Some("i".into()));
    let beat = bench.heartbeat();
    bench.answer(beat, Answer::Heartbeat { error: code::FENCED_INSTANCE_ID });
    assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
    let Some(Action::Fail(error)) = bench.member.poll_action() else { panic!("the user must know") };
    assert!(error.is_fatal());
    bench.poll();
    bench.pass(Duration::from_secs(3600));
    bench.nothing();
}

#[test]
fn a_coordinator_that_moved_is_looked_up_and_asked_again_after_a_pause() {
    type Answered = Result<Answer, Error>;
    let moved: [fn() -> Answered; 3] = [
        || Ok(Answer::Heartbeat { error: code::NOT_COORDINATOR }),
        || Ok(Answer::Heartbeat { error: code::COORDINATOR_NOT_AVAILABLE }),
        || Err(disconnected()),
    ];
    for answer in moved {
        let mut bench = Bench::stable();
        let beat = bench.heartbeat();
        bench.member.handle_answer(bench.now, beat, answer());
        assert!(matches!(bench.member.poll_action(), Some(Action::ForgetCoordinator)));
        bench.nothing();
        let before = bench.now;
        bench.pass_to_timeout();
        assert!(bench.now > before && bench.now < before + Duration::from_secs(1));
        let (token, Request::Heartbeat { generation: 5, .. }) = bench.sent() else { panic!("no heartbeat") };
        bench.answer(token, Answer::Heartbeat { error: 0 });
        assert!(bench.member.is_stable());
    }
}

#[test]
fn a_loading_coordinator_is_asked_again_without_a_new_look_up() {
    let mut bench = Bench::new();
    bench.subscribe(&["t"]);
    bench.poll();
    let (token, _) = bench.joins();
    bench.answer(token, join_error(code::COORDINATOR_LOAD_IN_PROGRESS, ""));
    bench.nothing();
    bench.pass_to_timeout();
    bench.joins();
}

#[test]
fn a_session_without_an_answer_ends_with_the_partitions_released() {
    let mut bench = Bench::stable();
    bench.heartbeat();
    bench.pass(SESSION);
    assert!(matches!(bench.member.poll_action(), Some(Action::ForgetCoordinator)));
    assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
    bench.poll();
    assert_eq!(bench.joins().1, "me");
}

#[test]
fn a_member_that_does_not_poll_leaves_and_joins_again_when_it_does() {
    let mut bench = Bench::stable();
    loop {
        bench.pass_to_timeout();
        match bench.member.poll_action() {
            Some(Action::Send { token, request: Request::Heartbeat { .. }, .. }) => {
                bench.answer(token, Answer::Heartbeat { error: 0 });
            }
            Some(Action::Lost { .. }) => break,
            other => panic!("unexpected {other:?}"),
        }
    }
    let (token, Request::Leave { member_id, .. }) = bench.sent() else { panic!("it must leave") };
    assert_eq!(member_id, "me");
    bench.answer(token, Answer::Leave { error: 0 });
    bench.pass(Duration::from_secs(3600));
    bench.nothing();
    bench.poll();
    assert_eq!(bench.joins().1, "");
}

#[test]
fn a_poll_that_waits_is_no_absence() {
    let mut bench = Bench::stable();
    bench.member.handle_poll(bench.now);
    for _ in 0..200 {
        let beat = bench.heartbeat();
        bench.answer(beat, Answer::Heartbeat { error: 0 });
    }
    assert!(bench.member.is_stable());
}

#[test]
fn a_closing_member_leaves_even_while_it_joins() {
    let mut bench = Bench::stable();
    bench.subscribe(&["t", "u"]);
    let token = bench.revocation();
    bench.member.handle_revoked(bench.now, token);
    bench.joins();
    bench.member.handle_close(bench.now);
    let (token, Request::Leave { .. }) = bench.sent() else { panic!("it must leave") };
    assert!(!bench.member.is_idle());
    bench.member.handle_answer(bench.now, token, Err(disconnected()));
    assert!(bench.member.is_idle());
}

#[test]
fn a_static_member_closes_without_leaving() {
    let mut bench = Bench::stable_with(|settings| settings.instance_id = Some("i".into()));
    bench.member.handle_close(bench.now);
    assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
    bench.nothing();
    assert!(bench.member.is_idle());
}

#[test]
fn a_close_leaves_or_stays_as_it_is_told_whatever_the_member_is() {
    use GroupMembershipOperation::{Default, LeaveGroup, RemainInGroup};
    for (departure, is_static, leaves) in [
        (Default, false, true),
        (Default, true, false),
        (LeaveGroup, false, true),
        (LeaveGroup, true, true),
        (RemainInGroup, false, false),
        (RemainInGroup, true, false),
    ] {
        let instance = is_static.then(|| "i".to_owned());
        let mut bench = Bench::stable_with(|settings| settings.instance_id = instance);
        bench.member.set_departure(departure);
        bench.member.handle_close(bench.now);
        assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
        match leaves {
            true => assert!(matches!(bench.sent().1, Request::Leave { .. }), "{departure:?}"),
            false => bench.nothing(),
        }
        assert_eq!(bench.member.is_idle(), !leaves, "{departure:?} {is_static}");
    }
}

#[test]
fn an_enforced_rebalance_gives_up_commits_and_joins_with_its_reason() {
    let mut bench = Bench::stable();
    bench.member.handle_enforce(bench.now, &"\u{E9}".repeat(300));
    let token = bench.revocation();
    bench.member.handle_enforce(bench.now, "and again");
    bench.nothing();
    bench.member.handle_revoked(bench.now, token);
    let (token, Request::Join { reason, .. }) = bench.sent() else { panic!("it must join again") };
    assert_eq!(reason, "\u{E9}".repeat(255));
    bench.member.handle_enforce(bench.now, "and again");
    bench.nothing();
    bench.join_answer(token, 6, "other");
    let (token, _) = bench.sent();
    let assignment = encode_assignment(&[TopicPartition::new("t", 0)]);
    bench.answer(token, Answer::Sync { error: 0, assignment });
    assert!(matches!(bench.member.poll_action(), Some(Action::Assign { .. })));
    bench.nothing();
    assert!(bench.member.is_stable());
}

#[test]
fn another_subscription_while_joining_is_joined_with_afterwards() {
    let mut bench = Bench::new();
    bench.subscribe(&["t"]);
    bench.poll();
    let (token, _) = bench.joins();
    bench.subscribe(&["u"]);
    bench.join_answer(token, 5, "other");
    let (token, _) = bench.sent();
    let assignment = encode_assignment(&[TopicPartition::new("t", 0)]);
    bench.answer(token, Answer::Sync { error: 0, assignment });
    let (_, Request::Join { topics, .. }) = bench.sent() else { panic!("it must join again") };
    assert_eq!(topics, [Arc::from("u")]);
}

#[test]
fn what_the_user_must_mend_is_told_and_tried_again_by_the_next_poll() {
    for error in [
        code::GROUP_AUTHORIZATION_FAILED,
        code::INCONSISTENT_GROUP_PROTOCOL,
        code::INVALID_SESSION_TIMEOUT,
        code::GROUP_MAX_SIZE_REACHED,
    ] {
        let mut bench = Bench::new();
        bench.subscribe(&["t"]);
        bench.poll();
        let (token, _) = bench.joins();
        bench.answer(token, join_error(error, ""));
        let Some(Action::Fail(told)) = bench.member.poll_action() else { panic!("{error} is not told") };
        assert!(told.hint().is_some() && !told.is_fatal(), "{told}");
        bench.pass(Duration::from_secs(60));
        bench.nothing();
        bench.poll();
        bench.joins();
    }
}

#[test]
fn refusals_of_a_join_never_come_back_without_a_pause() {
    for error in [
        code::UNKNOWN_MEMBER_ID,
        code::ILLEGAL_GENERATION,
        code::REBALANCE_IN_PROGRESS,
        code::NOT_COORDINATOR,
        code::COORDINATOR_NOT_AVAILABLE,
        code::COORDINATOR_LOAD_IN_PROGRESS,
    ] {
        let mut bench = Bench::new();
        bench.subscribe(&["t"]);
        bench.poll();
        let (token, _) = bench.joins();
        bench.answer(token, join_error(error, ""));
        while let Some(action) = bench.member.poll_action() {
            assert!(!matches!(action, Action::Send { .. }), "{error} is asked again at once");
        }
        bench.pass_to_timeout();
        bench.joins();
    }
}

#[test]
fn stale_join_and_sync_answers_are_dropped() {
    let mut bench = Bench::new();
    bench.subscribe(&["t"]);
    bench.poll();
    let (token, _) = bench.joins();
    bench.join_answer(Token::STRANGER, 4, "other");
    bench.nothing();
    bench.join_answer(token, 5, "other");
    let (sync, Request::Sync { generation: 5, .. }) = bench.sent() else { panic!("no sync") };
    bench.answer(token, Answer::Sync { error: 0, assignment: bytes::Bytes::new() });
    bench.nothing();
    bench.answer(sync, Answer::Sync { error: 0, assignment: bytes::Bytes::new() });
    assert!(bench.member.is_stable());
}

/// A static leader that joined again; the coordinator keeps the assignment it has (KIP-814).
fn returned(counts: i32, kept: &[i32]) -> Bench {
    let mut bench = Bench::with(|settings| settings.instance_id = Some("a".to_owned()));
    bench.subscribe(&["t"]);
    bench.poll();
    let (token, _) = bench.joins();
    let me = GroupMember { instance_id: Some("a".into()), ..GroupMember::new("me", ["t"]) };
    bench.answer(
        token,
        Answer::Join {
            error: 0,
            generation: 3,
            member_id: "me".into(),
            leader: "me".into(),
            protocol: "range".into(),
            members: vec![me],
            skip_assignment: true,
        },
    );
    let Some(Action::Plan { token, assignor, members, .. }) = bench.member.poll_action() else {
        panic!("no plan")
    };
    let counts: BTreeMap<Arc<str>, i32> = [(Arc::from("t"), counts)].into();
    let plan = assignor.assign(&GroupInfo::new(&members, &counts));
    bench.member.handle_plan(bench.now, token, assignor, counts, plan);
    let (token, Request::Sync { assignments, .. }) = bench.sent() else { panic!("no sync") };
    assert!(assignments.is_empty(), "the coordinator's stands");
    let kept: Vec<_> = kept.iter().map(|partition| TopicPartition::new("t", *partition)).collect();
    bench.answer(token, Answer::Sync { error: 0, assignment: encode_assignment(&kept) });
    assert!(matches!(bench.member.poll_action(), Some(Action::Assign { .. })));
    bench
}

#[test]
fn a_static_leader_that_came_back_sees_new_partitions() {
    let mut bench = returned(1, &[0]);
    bench.nothing();
    bench.member.handle_metadata(bench.now, |_| Some(1));
    bench.nothing();
    bench.member.handle_metadata(bench.now, |_| Some(3));
    bench.revocation();
    // Those that came while it was away as well.
    returned(3, &[0]).revocation();
}

#[test]
fn a_coordinator_that_cannot_explain_itself_is_asked_again() {
    let mut bench = Bench::stable();
    let beat = bench.heartbeat();
    bench.answer(beat, Answer::Heartbeat { error: code::UNKNOWN_SERVER_ERROR });
    bench.pass_to_timeout();
    assert!(matches!(bench.sent(), (_, Request::Heartbeat { .. })));
}

#[test]
fn a_heartbeat_that_hangs_is_given_up_while_another_can_still_save_the_session() {
    for session in [3, 45, 600] {
        let mut bench =
            Bench::stable_with(|settings| settings.session_timeout = Duration::from_secs(session));
        bench.pass(HEARTBEAT.min(Duration::from_secs(session / 3)));
        while bench.member.poll_timeout().is_some_and(|at| at <= bench.now) {
            bench.pass(Duration::ZERO);
        }
        let mut sent = bench.member.poll_action();
        while sent.is_none() {
            bench.pass_to_timeout();
            sent = bench.member.poll_action();
        }
        let Some(Action::Send { deadline, request: Request::Heartbeat { .. }, .. }) = sent else { return };
        assert!(deadline - bench.now <= Duration::from_secs(session) / 2);
        assert!(deadline - bench.now <= Duration::from_secs(30));
    }
}

// Cooperative rebalancing (KIP-429).

/// A follower with these partitions of t in generation 5.
fn cooperative(partitions: &[i32]) -> Bench {
    let mut bench = Bench::with(|settings| settings.cooperative = true);
    bench.subscribe(&["t"]);
    bench.poll();
    rejoined(&mut bench, 5, partitions);
    let Some(Action::Assign { added }) = bench.member.poll_action() else { panic!("no assignment") };
    assert_eq!(added, keys(partitions));
    bench
}

fn keys(partitions: &[i32]) -> Vec<TopicPartition> {
    partitions.iter().map(|partition| TopicPartition::new("t", *partition)).collect()
}

/// The join that is out is answered, and the sync after it. What the join claimed.
fn rejoined(bench: &mut Bench, generation: i32, partitions: &[i32]) -> (Vec<TopicPartition>, i32) {
    let (token, Request::Join { claim, generation: before, .. }) = bench.sent() else { panic!("no join") };
    bench.answer(
        token,
        Answer::Join {
            error: 0,
            generation,
            member_id: "me".into(),
            leader: "other".into(),
            protocol: "cooperative-sticky".into(),
            members: Vec::new(),
            skip_assignment: false,
        },
    );
    let (token, Request::Sync { .. }) = bench.sent() else { panic!("no sync") };
    bench.answer(token, Answer::Sync { error: 0, assignment: encode_assignment(&keys(partitions)) });
    (claim, before)
}

#[test]
fn a_cooperative_member_keeps_what_stays_and_gives_up_what_goes_in_a_rebalance_of_its_own() {
    let mut bench = cooperative(&[0, 1, 2]);
    let beat = bench.heartbeat();
    bench.answer(beat, Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS });
    assert_eq!(bench.member.identity().unwrap().generation, 5, "it goes on committing");
    assert_eq!(rejoined(&mut bench, 6, &[1, 3]), (keys(&[0, 1, 2]), 5));
    assert!(matches!(bench.member.poll_action(), Some(Action::Assign { added }) if added == keys(&[3])));
    let Some(Action::Revoke { token, partitions }) = bench.member.poll_action() else {
        panic!("no revocation")
    };
    assert_eq!(partitions, keys(&[0, 2]));
    assert_eq!(bench.member.identity().unwrap().generation, 6);
    bench.member.handle_revoked(bench.now, token);
    assert_eq!(rejoined(&mut bench, 7, &[1, 3]), (keys(&[1, 3]), 6));
    assert!(matches!(bench.member.poll_action(), Some(Action::Assign { added }) if added.is_empty()));
    bench.nothing();
}

#[test]
fn a_cooperative_member_that_is_not_known_any_more_loses_what_it_kept() {
    let mut bench = cooperative(&[0, 1]);
    let beat = bench.heartbeat();
    bench.answer(beat, Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS });
    let (token, _) = bench.joins();
    bench.answer(token, join_error(code::UNKNOWN_MEMBER_ID, ""));
    let lost = bench.member.poll_action();
    assert!(matches!(lost, Some(Action::Lost { partitions }) if partitions == keys(&[0, 1])));
    assert!(bench.member.identity().is_none());
    bench.pass_to_timeout();
    let (_, Request::Join { claim, generation, member_id, .. }) = bench.sent() else { panic!("no join") };
    assert_eq!((claim, generation, member_id.as_str()), (Vec::new(), -1, ""));
}

#[test]
fn a_cooperative_member_gives_up_only_the_topics_it_does_not_want_any_more() {
    let mut bench = cooperative(&[0, 1]);
    bench.subscribe(&["t", "u"]);
    bench.joins();
    let mut bench = cooperative(&[0, 1]);
    bench.subscribe(&["u"]);
    let Some(Action::Revoke { token, partitions }) = bench.member.poll_action() else {
        panic!("no revocation")
    };
    assert_eq!(partitions, keys(&[0, 1]));
    bench.member.handle_revoked(bench.now, token);
    let (_, Request::Join { claim, .. }) = bench.sent() else { panic!("no join") };
    assert!(claim.is_empty());
}

#[test]
fn a_static_member_outside_its_group_leaves_it_all_the_same_when_its_close_is_to() {
    for (departure, leaves) in
        [(GroupMembershipOperation::LeaveGroup, true), (GroupMembershipOperation::Default, false)]
    {
        let mut bench = Bench::stable_with(|settings| settings.instance_id = Some("i".into()));
        bench.pass(POLL_INTERVAL);
        assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
        bench.nothing();
        assert!(bench.member.is_idle(), "its place waits for it until its session ends");
        bench.member.set_departure(departure);
        bench.member.handle_close(bench.now);
        if leaves {
            let (token, left) = bench.sent();
            assert!(matches!(&left, Request::Leave { member_id, .. } if member_id == "me"), "{left:?}");
            assert!(!bench.member.is_idle());
            bench.answer(token, Answer::Leave { error: 0 });
        }
        bench.nothing();
        assert!(bench.member.is_idle());
    }
}

#[test]
fn a_member_that_was_lost_and_is_not_static_has_nothing_to_wait_for_in_its_close() {
    let mut bench = Bench::stable();
    bench.pass(SESSION);
    while let Some(action) = bench.member.poll_action() {
        assert!(!matches!(action, Action::Send { request: Request::Leave { .. }, .. }), "{action:?}");
    }
    assert!(bench.member.is_idle(), "it joins with the next poll");
    bench.member.handle_close(bench.now);
    bench.nothing();
    assert!(bench.member.is_idle(), "a coordinator that is gone would hold it up");
}

fn matching(bench: &mut Bench, topics: &[&str]) {
    let topics = topics.iter().map(|topic| Arc::from(*topic)).collect();
    bench.member.handle_matching(bench.now, topics);
}

#[test]
fn with_nothing_that_matches_any_more_partitions_go_as_in_a_rebalance_and_then_the_member_leaves() {
    for cooperative in [false, true] {
        let mut bench = Bench::stable_with(|settings| settings.cooperative = cooperative);
        matching(&mut bench, &[]);
        let token = bench.revocation();
        bench.nothing();
        bench.member.handle_revoked(bench.now, token);
        let (token, left) = bench.sent();
        assert!(matches!(left, Request::Leave { .. }), "{left:?}");
        bench.answer(token, Answer::Leave { error: 0 });
        bench.poll();
        bench.nothing();
        matching(&mut bench, &["t"]);
        bench.poll();
        bench.joins();
    }
}

#[test]
fn with_nothing_that_matches_any_more_during_a_cooperative_rebalance_what_is_kept_is_given_up_in_order() {
    let mut bench = Bench::stable_with(|settings| settings.cooperative = true);
    let token = bench.heartbeat();
    bench.answer(token, Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS });
    let (token, _) = bench.joins();
    matching(&mut bench, &[]);
    bench.join_answer(token, 6, "other");
    let (token, _) = bench.sent();
    bench.answer(
        token,
        Answer::Sync { error: 0, assignment: encode_assignment(&[TopicPartition::new("t", 0)]) },
    );
    let (token, request) = bench.sent();
    assert!(matches!(&request, Request::Join { topics, .. } if topics.is_empty()), "{request:?}");
    bench.join_answer(token, 7, "other");
    let (token, _) = bench.sent();
    bench.answer(token, Answer::Sync { error: 0, assignment: Bytes::new() });
    assert!(matches!(bench.member.poll_action(), Some(Action::Assign { added }) if added.is_empty()));
    let token = bench.revocation();
    bench.member.handle_revoked(bench.now, token);
    assert!(matches!(bench.sent().1, Request::Leave { .. }));
}
