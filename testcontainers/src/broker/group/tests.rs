//! The group's rules in virtual time: `now` is what the test says.

use super::*;

struct Play {
    group: Group,
    now: Now,
    tickets: Ticket,
}

const SESSION: Duration = Duration::from_secs(10);
const REBALANCE: Duration = Duration::from_secs(60);

impl Play {
    fn new() -> Self {
        Self { group: Group::new(), now: Duration::ZERO, tickets: 0 }
    }

    fn join_as(&mut self, id: &str, change: impl FnOnce(&mut Join)) -> Ticket {
        self.tickets += 1;
        let mut join = Join {
            member_id: id.to_owned(),
            client_id: "c".to_owned(),
            session_timeout: SESSION,
            rebalance_timeout: REBALANCE,
            protocol_type: "consumer".to_owned(),
            protocols: protocols(&["range"]),
            ..Join::default()
        };
        change(&mut join);
        self.group.handle_join(self.now, self.tickets, join);
        self.tickets
    }

    fn join(&mut self, id: &str) -> Ticket {
        self.join_as(id, |_| {})
    }

    fn sync(&mut self, id: &str, generation: i32, assignments: &[(&str, &'static str)]) -> Ticket {
        self.tickets += 1;
        let assignments =
            assignments.iter().map(|(m, a)| ((*m).to_owned(), Bytes::from_static(a.as_bytes())));
        let sync =
            Sync { caller: caller(id, generation), assignments: assignments.collect(), ..Sync::default() };
        self.group.handle_sync(self.now, self.tickets, sync);
        self.tickets
    }

    fn answers(&mut self) -> BTreeMap<Ticket, Answer> {
        std::iter::from_fn(|| self.group.poll_answer()).collect()
    }

    /// Lets time pass, with every timeout that falls due on the way.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.group.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.group.handle_timeout(self.now);
        }
        self.now = end;
    }

    fn heartbeat(&mut self, id: &str, generation: i32) -> Result<(), ResponseError> {
        self.group.handle_heartbeat(self.now, &caller(id, generation))
    }

    /// Members `a` (the leader) and `b` in generation 2, both assigned.
    fn two_members(&mut self) -> (String, String) {
        let first = self.join("");
        let a = joined(&self.answers()[&first]).member_id.clone();
        let second = self.join("");
        let again = self.join(&a);
        let answers = self.answers();
        let b = joined(&answers[&second]).member_id.clone();
        assert_eq!(joined(&answers[&again]).generation, 2);
        assert_eq!(joined(&answers[&again]).leader, a);
        self.sync(&b, 2, &[]);
        self.sync(&a, 2, &[(&a, "to a"), (&b, "to b")]);
        assert_eq!(self.answers().len(), 2);
        (a, b)
    }
}

fn protocols(names: &[&'static str]) -> Vec<(StrBytes, Bytes)> {
    names.iter().map(|n| (StrBytes::from_static_str(n), Bytes::from_static(n.as_bytes()))).collect()
}

fn caller(id: &str, generation: i32) -> Caller {
    Caller { member_id: id.to_owned(), instance_id: None, generation }
}

fn joined(answer: &Answer) -> &Joined {
    match answer {
        Answer::Joined(joined) => joined,
        other => panic!("not joined: {other:?}"),
    }
}

fn error(answer: &Answer) -> ResponseError {
    match answer {
        Answer::Refused { error, .. } => *error,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn the_first_member_leads_generation_one_at_once() {
    let mut play = Play::new();
    let ticket = play.join("");
    let answers = play.answers();
    let joined = joined(&answers[&ticket]);
    assert_eq!((joined.generation, &joined.leader), (1, &joined.member_id));
    assert_eq!(joined.members.len(), 1);
    assert_eq!(play.group.state, State::Completing);
}

#[test]
fn a_new_member_waits_until_the_others_have_joined_again() {
    let mut play = Play::new();
    let first = play.join("");
    let a = joined(&play.answers()[&first]).member_id.clone();
    play.sync(&a, 1, &[(&a, "all")]);
    play.answers();
    let second = play.join("");
    assert!(play.answers().is_empty());
    assert_eq!(play.heartbeat(&a, 1), Err(ResponseError::RebalanceInProgress));
    let again = play.join(&a);
    let answers = play.answers();
    assert_eq!(joined(&answers[&second]).generation, 2);
    assert_eq!(joined(&answers[&again]).members.len(), 2);
    assert!(joined(&answers[&second]).members.is_empty());
}

#[test]
fn followers_wait_for_the_leaders_assignment() {
    let mut play = Play::new();
    let (a, b) = play.two_members();
    assert_eq!(play.group.state, State::Stable);
    // A repeated sync in the stable state gives the same assignment again.
    for (id, assignment) in [(&a, "to a"), (&b, "to b")] {
        let ticket = play.sync(id, 2, &[]);
        let Answer::Synced { assignment: got, .. } = play.answers()[&ticket].clone() else { panic!() };
        assert_eq!(got, assignment);
    }
}

#[test]
fn a_member_without_heartbeats_is_removed_and_the_rest_rebalance() {
    let mut play = Play::new();
    let (a, b) = play.two_members();
    play.pass(SESSION / 2);
    assert_eq!(play.heartbeat(&a, 2), Ok(()));
    play.pass(SESSION / 2);
    assert_eq!(play.heartbeat(&b, 2), Err(ResponseError::UnknownMemberId));
    assert_eq!(play.heartbeat(&a, 2), Err(ResponseError::RebalanceInProgress));
    let ticket = play.join(&a);
    assert_eq!(joined(&play.answers()[&ticket]).generation, 3);
}

#[test]
fn a_member_that_does_not_rejoin_is_left_out_at_the_rebalance_timeout() {
    let mut play = Play::new();
    let (a, b) = play.two_members();
    play.group.handle_leave(play.now, "nobody", None).unwrap_err();
    let ticket = play.join(&a);
    for _ in 0..12 {
        // `b` lives, but does not join.
        play.pass(Duration::from_secs(5));
        if play.answers().contains_key(&ticket) {
            break;
        }
        assert_eq!(play.heartbeat(&b, 2), Err(ResponseError::RebalanceInProgress));
    }
    assert_eq!(play.heartbeat(&b, 2), Err(ResponseError::UnknownMemberId));
    assert_eq!(play.group.members().count(), 1);
}

#[test]
fn generation_and_member_are_checked() {
    let mut play = Play::new();
    let (a, _) = play.two_members();
    assert_eq!(play.heartbeat(&a, 1), Err(ResponseError::IllegalGeneration));
    assert_eq!(play.heartbeat("stranger", 2), Err(ResponseError::UnknownMemberId));
    let sync = play.sync(&a, 1, &[]);
    assert_eq!(error(&play.answers()[&sync]), ResponseError::IllegalGeneration);
    let join = play.join("stranger");
    assert_eq!(error(&play.answers()[&join]), ResponseError::UnknownMemberId);
    assert_eq!(
        play.group.handle_commit(play.now, &caller(&a, 1), false),
        Err(ResponseError::IllegalGeneration)
    );
    assert_eq!(play.group.handle_commit(play.now, &caller(&a, 2), false), Ok(()));
}

#[test]
fn a_join_during_the_sync_phase_sends_the_waiting_back() {
    let mut play = Play::new();
    let (a, b) = play.two_members();
    play.join("");
    play.join(&a);
    play.join(&b);
    assert_eq!(play.answers().len(), 3);
    let sync = play.sync(&b, 3, &[]);
    assert!(play.answers().is_empty(), "the leader has not synced yet");
    play.join("");
    assert_eq!(error(&play.answers()[&sync]), ResponseError::RebalanceInProgress);
    assert!(matches!(play.group.state, State::Preparing { .. }));
}

#[test]
fn commits_wait_for_the_sync_phase_to_end() {
    let mut play = Play::new();
    let ticket = play.join("");
    let a = joined(&play.answers()[&ticket]).member_id.clone();
    assert_eq!(
        play.group.handle_commit(play.now, &caller(&a, 1), false),
        Err(ResponseError::RebalanceInProgress)
    );
    assert_eq!(
        play.group.handle_commit(play.now, &caller("", -1), false),
        Err(ResponseError::UnknownMemberId)
    );
    assert_eq!(Group::new().handle_commit(play.now, &caller("", -1), false), Ok(()));
}

#[test]
fn a_new_member_is_sent_away_once_for_its_id() {
    let mut play = Play::new();
    let ticket = play.join_as("", |j| j.needs_known_id = true);
    let Answer::Refused { error, member_id } = play.answers()[&ticket].clone() else { panic!() };
    assert_eq!(error, ResponseError::MemberIdRequired);
    let ticket = play.join_as(&member_id, |j| j.needs_known_id = true);
    assert_eq!(joined(&play.answers()[&ticket]).member_id, member_id);
}

#[test]
fn an_id_that_is_never_used_does_not_block_the_group_for_longer_than_a_session() {
    let mut play = Play::new();
    play.join_as("", |j| j.needs_known_id = true);
    play.answers();
    let ticket = play.join("");
    assert!(play.answers().is_empty());
    play.pass(SESSION);
    assert_eq!(joined(&play.answers()[&ticket]).generation, 1);
}

#[test]
fn the_protocol_with_most_votes_among_the_shared_ones_wins() {
    let mut play = Play::new();
    let first = play.join_as("", |j| j.protocols = protocols(&["sticky", "range", "own"]));
    let a = joined(&play.answers()[&first]).member_id.clone();
    play.join_as("", |j| j.protocols = protocols(&["range", "sticky"]));
    play.join_as("", |j| j.protocols = protocols(&["range", "sticky"]));
    let again = play.join_as(&a, |j| j.protocols = protocols(&["sticky", "range", "own"]));
    assert_eq!(joined(&play.answers()[&again]).protocol.as_deref(), Some("range"));
    let other = play.join_as("", |j| j.protocols = protocols(&["own"]));
    assert_eq!(error(&play.answers()[&other]), ResponseError::InconsistentGroupProtocol);
}

#[test]
fn leaving_starts_a_rebalance_and_the_last_one_empties_the_group() {
    let mut play = Play::new();
    let (a, b) = play.two_members();
    play.group.handle_leave(play.now, &a, None).unwrap();
    assert_eq!(play.heartbeat(&b, 2), Err(ResponseError::RebalanceInProgress));
    play.group.handle_leave(play.now, &b, None).unwrap();
    assert_eq!(play.group.state, State::Empty);
    assert_eq!(play.group.poll_timeout(), None);
}

#[test]
fn a_static_member_comes_back_without_a_rebalance_and_fences_its_old_self() {
    let mut play = Play::new();
    let named = |j: &mut Join| {
        j.instance_id = Some("i".to_owned());
        j.protocols = protocols(&["range", "sticky"]);
    };
    let ticket = play.join_as("", named);
    let old = joined(&play.answers()[&ticket]).member_id.clone();
    play.sync(&old, 1, &[(&old, "mine")]);
    play.answers();
    let ticket = play.join_as("", |j| {
        named(j);
        j.knows_skipping = true;
    });
    let answers = play.answers();
    let new = joined(&answers[&ticket]).clone();
    assert_eq!((new.generation, new.skip_assignment), (1, true));
    assert_ne!(new.member_id, old);
    let stale = Caller { member_id: old, instance_id: Some("i".to_owned()), generation: 1 };
    assert_eq!(play.group.handle_heartbeat(play.now, &stale), Err(ResponseError::FencedInstanceId));
    let sync = play.sync(&new.member_id, 1, &[]);
    assert!(matches!(&play.answers()[&sync], Answer::Synced { assignment, .. } if assignment == "mine"));
    // One that subscribes to something else gets the same; before version 9 it is told that the one before leads.
    let ticket = play.join_as("", |j| {
        named(j);
        j.protocols[0].1 = Bytes::from_static(b"other");
    });
    let again = joined(&play.answers()[&ticket]).clone();
    assert_eq!((again.generation, again.skip_assignment, again.members.len()), (1, false, 0));
    assert_eq!(again.leader, new.member_id);
    let ticket = play.join_as("", |j| {
        named(j);
        j.protocols = protocols(&["sticky", "range"]);
    });
    assert_eq!(joined(&play.answers()[&ticket]).generation, 2, "another protocol is worth a rebalance");
}

#[test]
fn the_session_of_a_member_that_waits_for_its_assignment_waits_too() {
    let mut play = Play::new();
    let (a, b) = play.two_members();
    play.join(&a);
    play.join_as(&b, |j| j.protocols[0].1 = Bytes::from_static(b"other"));
    play.answers();
    let sync = play.sync(&b, 3, &[]);
    for _ in 0..11 {
        play.pass(SESSION / 2);
        assert_eq!(play.heartbeat(&a, 3), Ok(()));
        assert!(play.answers().is_empty());
    }
    // The leader that brings no assignment is out, and the others join again.
    play.pass(SESSION / 2);
    assert_eq!(error(&play.answers()[&sync]), ResponseError::RebalanceInProgress);
    assert_eq!(play.heartbeat(&a, 3), Err(ResponseError::UnknownMemberId));
    assert_eq!(play.heartbeat(&b, 3), Err(ResponseError::RebalanceInProgress));
}

#[test]
fn a_member_that_never_asks_for_its_assignment_is_out_although_the_others_have_theirs() {
    let mut play = Play::new();
    let (a, b) = play.two_members();
    play.join(&a);
    play.join_as(&b, |j| j.protocols[0].1 = Bytes::from_static(b"other"));
    play.sync(&a, 3, &[(&a, "to a"), (&b, "to b")]);
    assert_eq!(play.group.state, State::Stable);
    for _ in 0..11 {
        play.pass(SESSION / 2);
        assert_eq!((play.heartbeat(&a, 3), play.heartbeat(&b, 3)), (Ok(()), Ok(())));
    }
    play.pass(SESSION / 2);
    assert_eq!(play.heartbeat(&a, 3), Err(ResponseError::RebalanceInProgress));
    assert_eq!(play.heartbeat(&b, 3), Err(ResponseError::UnknownMemberId));
}

#[test]
fn whoever_waits_when_the_coordinator_moves_is_told_to_look_again() {
    let mut play = Play::new();
    let (a, _) = play.two_members();
    let ticket = play.join(&a);
    play.group.handle_resign(play.now);
    assert_eq!(error(&play.answers()[&ticket]), ResponseError::NotCoordinator);
}

#[test]
fn a_new_coordinator_knows_nothing_of_a_rebalance_under_way() {
    let mut play = Play::new();
    let (a, b) = play.two_members();
    let new = play.join("");
    play.join(&a);
    play.join(&b);
    let c = joined(&play.answers()[&new]).member_id.clone();
    assert_eq!(play.heartbeat(&a, 3), Ok(()));
    play.group.handle_resign(play.now);
    assert_eq!(play.group.state, State::Stable);
    assert_eq!(play.heartbeat(&a, 3), Err(ResponseError::IllegalGeneration));
    assert_eq!(play.heartbeat(&c, 3), Err(ResponseError::UnknownMemberId));
    assert_eq!((play.heartbeat(&a, 2), play.heartbeat(&b, 2)), (Ok(()), Ok(())));
    let sync = play.sync(&b, 2, &[]);
    assert!(matches!(&play.answers()[&sync], Answer::Synced { assignment, .. } if assignment == "to b"));
    // The number is given again.
    play.join(&a);
    let again = play.join(&b);
    assert_eq!(joined(&play.answers()[&again]).generation, 3);
    play.group.handle_resign(play.now);
    play.group.handle_leave(play.now, &a, None).unwrap();
    play.group.handle_leave(play.now, &b, None).unwrap();
    assert_eq!(play.group.state, State::Empty);
}
