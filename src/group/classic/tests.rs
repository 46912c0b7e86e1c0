//! The classic member in virtual time: what all such tests share, joining and rebalancing.

mod cooperative;
mod ending;
mod refusals;

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
        let (token, request, _) = self.sent_for();
        (token, request)
    }

    /// A request, and how long its answer is waited for.
    fn sent_for(&mut self) -> (Token, Request, Duration) {
        match self.member.poll_action() {
            Some(Action::Send { token, request, deadline }) => (token, request, deadline - self.now),
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
fn a_member_that_is_alone_and_is_given_nothing_of_what_there_is_says_so() {
    for (members, count, given, is_said) in
        [(1, 1, 0, true), (2, 1, 0, false), (1, 0, 0, false), (1, 1, 1, false)]
    {
        let (log, _listening) = crate::test_log::Log::of_this_thread(tracing::Level::WARN);
        let mut bench = Bench::new();
        bench.subscribe(&["t"]);
        bench.poll();
        let (token, _) = bench.joins();
        let all = ["me", "other"].into_iter().take(members);
        let join = Answer::Join {
            error: 0,
            generation: 5,
            member_id: "me".into(),
            leader: "me".into(),
            protocol: "range".into(),
            members: all.map(|id| GroupMember::new(id, ["t"])).collect(),
            skip_assignment: false,
        };
        bench.answer(token, join);
        let Some(Action::Plan { token, assignor, .. }) = bench.member.poll_action() else {
            panic!("no plan")
        };
        let counts = [("t".into(), count)].into();
        bench.member.handle_plan(bench.now, token, assignor, counts, Ok(BTreeMap::new()));
        let (token, _) = bench.sent();
        let given: Vec<_> = (0..given).map(|partition| TopicPartition::new("t", partition)).collect();
        bench.answer(token, Answer::Sync { error: 0, assignment: encode_assignment(&given) });
        assert_eq!(log.text().contains("no other member"), is_said, "{members} {count} {given:?}");
    }
}

#[test]
fn heartbeats_follow_each_other_at_the_interval() {
    let mut bench = Bench::stable();
    bench.pass(HEARTBEAT - Duration::from_millis(1));
    bench.nothing();
    bench.now -= HEARTBEAT - Duration::from_millis(1);
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
fn a_revocation_counts_from_the_last_heartbeat_that_the_coordinator_answered_well() {
    let since = |bench: &mut Bench| match bench.member.poll_action() {
        Some(Action::Revoke { since, .. }) => since,
        other => panic!("no revocation but {other:?}"),
    };
    let second = Duration::from_secs(1);
    let mut bench = Bench::stable();
    let token = bench.heartbeat();
    let well = bench.now;
    bench.pass(second);
    bench.answer(token, Answer::Heartbeat { error: 0 });
    // The next one is lost, and it may be that which was to hear of the rebalance.
    let token = bench.heartbeat();
    bench.member.handle_answer(bench.now, token, Err(disconnected()));
    assert!(matches!(bench.member.poll_action(), Some(Action::ForgetCoordinator)));
    bench.pass_to_timeout();
    let (token, _) = bench.sent();
    bench.pass(second);
    bench.answer(token, Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS });
    assert_eq!(since(&mut bench), well, "it may have begun right after that");

    // Without any heartbeat yet: from the assignment on.
    let mut bench = Bench::stable();
    let assigned = bench.now;
    let token = bench.heartbeat();
    bench.answer(token, Answer::Heartbeat { error: code::REBALANCE_IN_PROGRESS });
    assert_eq!(since(&mut bench), assigned);
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
fn a_poll_that_waits_joins_again_at_once() {
    let mut bench = Bench::stable();
    bench.member.handle_poll(bench.now);
    let beat = bench.heartbeat();
    bench.answer(beat, Answer::Heartbeat { error: code::ILLEGAL_GENERATION });
    assert!(matches!(bench.member.poll_action(), Some(Action::Lost { .. })));
    bench.joins();
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
fn an_assignment_of_another_subscription_is_not_taken_at_first() {
    let mut bench = Bench::new();
    bench.subscribe(&["u"]);
    bench.poll();
    let assignment = encode_assignment(&[TopicPartition::new("t", 0), TopicPartition::new("u", 0)]);
    for generation in [5, 6] {
        let (token, _) = bench.joins();
        bench.join_answer(token, generation, "other");
        let (token, _) = bench.sent();
        bench.answer(token, Answer::Sync { error: 0, assignment: assignment.clone() });
    }
    // The leader of the group insists.
    assert!(matches!(bench.member.poll_action(), Some(Action::Assign { added }) if added.len() == 2));
    assert!(bench.member.is_stable());
    bench.nothing();
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
fn a_coordinator_that_keeps_what_does_not_fit_is_sent_a_plan_the_next_time_whatever_it_says() {
    let mut bench = returned(3, &[0]);
    let token = bench.revocation();
    bench.member.handle_revoked(bench.now, token);
    let (token, _) = bench.sent();
    let me = GroupMember { instance_id: Some("a".into()), ..GroupMember::new("me", ["t"]) };
    let joined = Answer::Join {
        error: 0,
        generation: 4,
        member_id: "me".into(),
        leader: "me".into(),
        protocol: "range".into(),
        members: vec![me],
        skip_assignment: true,
    };
    bench.answer(token, joined);
    let Some(Action::Plan { token, assignor, members, keeps: false }) = bench.member.poll_action() else {
        panic!("no plan that counts")
    };
    let counts: BTreeMap<Arc<str>, i32> = [(Arc::from("t"), 3)].into();
    let plan = assignor.assign(&GroupInfo::new(&members, &counts));
    bench.member.handle_plan(bench.now, token, assignor, counts, plan);
    let (token, Request::Sync { assignments, .. }) = bench.sent() else { panic!("no sync") };
    assert!(!assignments.is_empty());
    // One that keeps its own all the same does not have it joined again and again.
    let assignment = encode_assignment(&[TopicPartition::new("t", 0)]);
    bench.answer(token, Answer::Sync { error: 0, assignment });
    assert!(matches!(bench.member.poll_action(), Some(Action::Assign { .. })));
    bench.nothing();
    assert!(bench.member.is_stable());
}

#[test]
fn joins_and_syncs_are_waited_for_as_long_as_other_members_may_take() {
    let long = POLL_INTERVAL * 2;
    for (request_timeout, join, sync) in
        [(Duration::from_secs(30), POLL_INTERVAL + Duration::from_secs(5), POLL_INTERVAL), (long, long, long)]
    {
        let mut bench = Bench::with(|settings| settings.request_timeout = request_timeout);
        bench.subscribe(&["t"]);
        bench.poll();
        let (token, _, patience) = bench.sent_for();
        assert_eq!(patience, join);
        bench.join_answer(token, 5, "other");
        assert_eq!(bench.sent_for().2, sync);
    }
}

#[test]
fn a_member_that_is_alone_and_gets_nothing_says_so() {
    for (leader, own, is_told) in [("me", vec![], true), ("me", vec![0], false), ("other", vec![], false)] {
        let (log, _guard) = crate::test_log::Log::of_this_thread(tracing::Level::WARN);
        let mut bench = Bench::new();
        bench.subscribe(&["t"]);
        bench.poll();
        let (token, _) = bench.sent();
        bench.join_answer(token, 5, leader);
        if leader == "me" {
            let Some(Action::Plan { token, .. }) = bench.member.poll_action() else { panic!("it plans") };
            let counts = BTreeMap::from([("t".into(), 1)]);
            let plan = BTreeMap::from([("me".to_owned(), vec![TopicPartition::new("t", 0)])]);
            bench.member.handle_plan(bench.now, token, Strategy::Range, counts, Ok(plan));
        }
        let (token, _) = bench.sent();
        let own: Vec<_> = own.into_iter().map(|partition| TopicPartition::new("t", partition)).collect();
        bench.answer(token, Answer::Sync { error: 0, assignment: encode_assignment(&own) });
        assert_eq!(log.text().contains("nothing is read"), is_told, "{leader} {own:?}: {}", log.text());
    }
}
