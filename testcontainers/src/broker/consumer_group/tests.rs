//! The group's rules in virtual time.

use super::*;

const TIMES: Times = Times { session: Duration::from_secs(45), heartbeat: Duration::from_secs(5) };
const REBALANCE: Duration = Duration::from_secs(60);

struct Play {
    group: ConsumerGroup,
    now: Now,
    topics: Topics,
}

type Owned<'a> = Option<&'a [i32]>;

impl Play {
    fn new(partitions: i32) -> Self {
        let topics = BTreeMap::from([("t".to_owned(), Topic { id: Uuid::from_u128(1), partitions })]);
        Self { group: ConsumerGroup::default(), now: Duration::ZERO, topics }
    }

    fn beat(&mut self, beat: Heartbeat) -> Result<(i32, Option<Vec<i32>>), ResponseError> {
        let names: BTreeSet<String> = self.topics.keys().cloned().collect();
        let matching = |regex: &str| match regex {
            "(" => Err(()),
            _ => Ok(names.clone()),
        };
        let reply = self.group.handle_heartbeat(self.now, TIMES, beat, &self.topics, matching);
        let numbers = |a: BTreeSet<Partition>| a.into_iter().map(|p| p.1).collect();
        reply.map(|r| (r.member_epoch, r.assignment.map(numbers))).map_err(|(error, _)| error)
    }

    fn join(&mut self, id: &str) -> (i32, Vec<i32>) {
        let (epoch, assignment) = self.beat(joining(id)).unwrap();
        (epoch, assignment.unwrap())
    }

    fn alive(
        &mut self,
        id: &str,
        epoch: i32,
        owned: Owned<'_>,
    ) -> Result<(i32, Option<Vec<i32>>), ResponseError> {
        let owned = owned.map(|o| o.iter().map(|p| (Uuid::from_u128(1), *p)).collect());
        self.beat(Heartbeat { member_id: id.into(), member_epoch: epoch, owned, ..Heartbeat::default() })
    }
}

fn joining(id: &str) -> Heartbeat {
    Heartbeat {
        member_id: id.into(),
        rebalance_timeout: Some(REBALANCE),
        names: Some(vec!["t".into()]),
        owned: Some(BTreeSet::new()),
        ..Heartbeat::default()
    }
}

#[test]
fn a_member_gets_what_another_has_given_back_and_not_before() {
    let mut play = Play::new(4);
    assert_eq!(play.join("a"), (1, vec![0, 1, 2, 3]));
    assert_eq!(play.join("b"), (2, vec![]), "all is still owned by a");
    assert_eq!(play.group.state(), "Reconciling");
    assert_eq!(play.alive("a", 1, None), Ok((1, Some(vec![0, 1]))), "a is asked to give back");
    assert_eq!(play.alive("b", 2, None), Ok((2, None)));
    assert_eq!(play.alive("a", 1, Some(&[0, 1, 2, 3])), Ok((1, None)), "not yet");
    assert_eq!(play.alive("a", 1, Some(&[0, 1])), Ok((2, None)));
    assert_eq!(play.alive("b", 2, None), Ok((2, Some(vec![2, 3]))));
    assert_eq!(play.group.state(), "Stable");
}

#[test]
fn epochs_that_are_not_the_members_are_fenced_but_a_lost_answer_is_not() {
    let mut play = Play::new(4);
    play.join("a");
    play.join("b");
    play.alive("a", 1, None).unwrap();
    assert_eq!(play.alive("a", 1, Some(&[0, 1])), Ok((2, None)));
    assert_eq!(play.alive("a", 1, Some(&[0, 1])), Ok((2, None)), "it did not hear of epoch 2");
    assert_eq!(play.alive("a", 1, Some(&[0, 1, 2])), Err(ResponseError::FencedMemberEpoch));
    assert_eq!(play.alive("a", 1, None), Err(ResponseError::FencedMemberEpoch));
    assert_eq!(play.alive("a", 3, None), Err(ResponseError::FencedMemberEpoch));
    assert_eq!(play.alive("c", 2, None), Err(ResponseError::UnknownMemberId));
    assert_eq!(play.group.check_offsets("a", 1, true), Err(ResponseError::StaleMemberEpoch));
    assert_eq!(play.group.check_offsets("a", 2, true), Ok(()));
    assert_eq!(play.group.check_offsets("", -1, true), Err(ResponseError::UnknownMemberId));
    assert_eq!(play.group.check_offsets("", -1, false), Ok(()));
}

#[test]
fn a_second_step_of_revocation_has_an_epoch_of_its_own() {
    let mut play = Play::new(6);
    play.join("a");
    play.join("b");
    assert_eq!(play.alive("a", 1, None), Ok((1, Some(vec![0, 1, 2]))));
    play.join("c");
    assert_eq!(play.alive("a", 1, Some(&[0, 1, 2])), Ok((2, Some(vec![0, 1]))));
    assert_eq!(play.alive("a", 2, Some(&[0, 1])), Ok((3, None)));
}

#[test]
fn a_silent_member_and_one_that_keeps_what_it_must_give_back_are_out() {
    let mut play = Play::new(4);
    play.join("a");
    play.join("b");
    play.alive("a", 1, None).unwrap();
    assert_eq!(play.group.poll_timeout(), Some(TIMES.session));
    for _ in 0..6 {
        play.now += Duration::from_secs(10);
        play.group.handle_timeout(play.now);
        let kept = play.alive("a", 1, Some(&[0, 1, 2, 3]));
        assert_eq!(kept.is_ok(), play.now < REBALANCE);
        if play.now < REBALANCE {
            play.alive("b", 2, None).unwrap();
        }
    }
    assert_eq!(play.alive("b", 2, None), Ok((3, Some(vec![0, 1, 2, 3]))));
    play.now += TIMES.session;
    play.group.handle_timeout(play.now);
    assert!(play.group.is_empty());
}

#[test]
fn a_topic_that_grows_begins_a_new_epoch() {
    let mut play = Play::new(1);
    assert_eq!(play.join("a"), (1, vec![0]));
    play.topics.get_mut("t").unwrap().partitions = 2;
    assert_eq!(play.alive("a", 1, None), Ok((2, Some(vec![0, 1]))));
}

#[test]
fn a_static_member_that_left_for_a_while_comes_back_to_its_partitions() {
    let mut play = Play::new(2);
    let named = |id: &str| Heartbeat { instance_id: Some("i".into()), ..joining(id) };
    assert_eq!(play.beat(named("a")), Ok((1, Some(vec![0, 1]))));
    assert_eq!(play.beat(named("b")), Err(ResponseError::UnreleasedInstanceId));
    let again = Heartbeat { instance_id: Some("i".into()), ..joining("a") };
    assert_eq!(play.beat(again), Err(ResponseError::UnreleasedInstanceId), "be it itself");
    let away = Heartbeat {
        member_id: "a".into(),
        member_epoch: -2,
        instance_id: Some("i".into()),
        ..Heartbeat::default()
    };
    assert_eq!(play.beat(away), Ok((-2, None)));
    assert_eq!(play.join("other"), (2, vec![]));
    assert_eq!(play.beat(named("b")), Ok((2, Some(vec![0]))), "what the other is to have is free at once");
    assert_eq!(play.alive("other", 2, None), Ok((2, Some(vec![1]))));
    let old = Heartbeat {
        member_id: "a".into(),
        member_epoch: 2,
        instance_id: Some("i".into()),
        ..Heartbeat::default()
    };
    assert_eq!(play.beat(old), Err(ResponseError::FencedInstanceId));
}

#[test]
fn a_heartbeat_that_lacks_something_is_refused() {
    let mut play = Play::new(1);
    let mut tried = |change: fn(&mut Heartbeat)| {
        let mut beat = joining("a");
        change(&mut beat);
        play.beat(beat).unwrap_err()
    };
    let invalid = ResponseError::InvalidRequest;
    assert_eq!(tried(|b| b.rebalance_timeout = None), invalid);
    assert_eq!(tried(|b| b.owned = None), invalid);
    assert_eq!(tried(|b| b.names = None), invalid);
    assert_eq!(tried(|b| b.member_epoch = -3), invalid);
    assert_eq!(tried(|b| b.assignor = Some("own".into())), ResponseError::UnsupportedAssignor);
    assert_eq!(tried(|b| b.regex = Some("(".into())), ResponseError::InvalidRegularExpression);
}
