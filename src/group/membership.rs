//! A membership in either protocol behind one interface: the classic one, or the consumer protocol of KIP-848. Pure.
//!
//! With `group.protocol=auto` the consumer protocol is tried, and the classic one takes over where broker or group do not
//! have it. It must never lose the actions that the earlier member has not handed out yet.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tracing::info;

use super::{
    Action, Answer, GroupMembershipOperation, GroupSettings, Identity, Names,
    assignor::{Assignment, Strategy},
    classic, consumer,
};
use crate::{
    config::settings::GroupProtocol,
    error::{Error, ErrorKind, Result},
    flights::Token,
    record::TopicPartition,
    time::{Instant, Rng},
    wire::Uuid,
};

#[derive(Debug)]
enum Member {
    Classic(classic::Member),
    Consumer(consumer::Member),
}

/// Calls the same method of whichever member it is.
macro_rules! each {
    ($of:expr, $member:ident => $call:expr) => {
        match $of {
            Member::Classic($member) => $call,
            Member::Consumer($member) => $call,
        }
    };
}

/// The member of a group, in the protocol that it uses.
#[derive(Debug)]
pub(crate) struct Membership {
    member: Member,
    settings: GroupSettings,
    topics: Vec<Arc<str>>,
    /// The pattern that the broker matches; in the classic protocol the client does.
    pattern: Option<Arc<str>>,
    /// The protocol in use has been logged.
    is_said: bool,
    /// Actions that a member which was replaced had not handed out yet.
    rest: VecDeque<Action>,
}

impl Membership {
    pub(crate) fn new(settings: GroupSettings, now: Instant, rng: Rng) -> Self {
        let member = match settings.protocol {
            GroupProtocol::Classic => Member::Classic(classic::Member::new(settings.clone(), now, rng)),
            GroupProtocol::Consumer | GroupProtocol::Auto => {
                Member::Consumer(consumer::Member::new(settings.clone(), now, rng))
            }
        };
        Self { member, settings, topics: Vec::new(), pattern: None, is_said: false, rest: VecDeque::new() }
    }

    /// The protocol that is used; `None` as long as that is open.
    pub(crate) fn protocol(&self) -> Option<GroupProtocol> {
        match &self.member {
            Member::Classic(_) => Some(GroupProtocol::Classic),
            Member::Consumer(member) => {
                let is_settled =
                    self.is_said || member.is_joined() || self.settings.protocol != GroupProtocol::Auto;
                is_settled.then_some(GroupProtocol::Consumer)
            }
        }
    }

    /// Who commits, or `None` while the member is not in the group.
    pub(crate) fn identity(&self) -> Option<Identity> {
        each!(&self.member, member => member.identity())
    }

    /// Whether the member is out of the group and nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        each!(&self.member, member => member.is_idle())
    }

    /// Whether the member is in the group at the moment. One that is joining again is not, even if it has kept
    /// partitions.
    pub(crate) fn is_in(&self) -> bool {
        match &self.member {
            Member::Classic(member) => member.is_in(),
            Member::Consumer(member) => member.is_joined(),
        }
    }

    /// Every topic of the assignment has a name.
    pub(crate) fn is_named(&self) -> bool {
        match &self.member {
            Member::Classic(_) => true,
            Member::Consumer(member) => member.is_named(),
        }
    }

    /// The id of the topic by which the coordinator has assigned a partition; `None` where it assigns by name.
    pub(crate) fn assigned_id(&self, key: &TopicPartition) -> Option<Uuid> {
        match &self.member {
            Member::Classic(_) => None,
            Member::Consumer(member) => member.assigned_id(key),
        }
    }

    /// Whether the poll interval has passed.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        each!(&self.member, member => member.is_overdue(now))
    }

    /// Another set of topics. An empty one leaves the group.
    pub(crate) fn handle_subscription(&mut self, now: Instant, topics: Vec<Arc<str>>) {
        self.subscribe(now, topics, None);
    }

    /// A pattern, and the topics that the client finds to match it: for brokers that do not match.
    pub(crate) fn handle_pattern(&mut self, now: Instant, pattern: &Arc<str>, matching: Vec<Arc<str>>) {
        self.subscribe(now, matching, Some(Arc::clone(pattern)));
    }

    fn subscribe(&mut self, now: Instant, topics: Vec<Arc<str>>, pattern: Option<Arc<str>>) {
        self.topics.clone_from(&topics);
        self.pattern.clone_from(&pattern);
        match (&mut self.member, pattern) {
            (Member::Classic(member), None) => member.handle_subscription(now, topics),
            (Member::Classic(member), Some(_)) => member.handle_matching(now, topics),
            (Member::Consumer(member), None) => member.handle_subscription(now, topics, None),
            (Member::Consumer(member), pattern) => member.handle_subscription(now, Vec::new(), pattern),
        }
    }

    /// The user polls: proof of life, and the only thing that makes an idle member join.
    pub(crate) fn handle_poll(&mut self, now: Instant) {
        each!(&mut self.member, member => member.handle_poll(now));
    }

    /// The last waiting poll has returned: the poll interval runs from here.
    pub(crate) fn handle_poll_end(&mut self, now: Instant) {
        each!(&mut self.member, member => member.handle_poll_end(now));
    }

    /// The user is alive: the poll interval begins again. Not a poll.
    pub(crate) fn handle_alive(&mut self, now: Instant) {
        each!(&mut self.member, member => member.handle_alive(now));
    }

    /// Somebody waits in a poll whose future may never be polled again: from then on the poll interval runs although the
    /// poll has not ended.
    pub(crate) fn handle_loose_poll(&mut self, now: Instant) {
        each!(&mut self.member, member => member.handle_loose_poll(now));
    }

    /// The cluster's topics: their partition counts, and their names by id.
    pub(crate) fn handle_metadata(
        &mut self,
        now: Instant,
        counts: impl Fn(&str) -> Option<i32>,
        names: &Arc<Names>,
    ) {
        match &mut self.member {
            Member::Classic(member) => member.handle_metadata(now, counts),
            Member::Consumer(member) => member.handle_names(now, names),
        }
    }

    /// The leader's plan is ready. `counts` are what it was made with.
    pub(crate) fn handle_plan(
        &mut self,
        now: Instant,
        token: Token,
        assignor: Strategy,
        counts: BTreeMap<Arc<str>, i32>,
        plan: Result<Assignment, Error>,
    ) {
        if let Member::Classic(member) = &mut self.member {
            member.handle_plan(now, token, assignor, counts, plan);
        }
    }

    /// The partitions of the `Revoke` have been released.
    pub(crate) fn handle_revoked(&mut self, now: Instant, token: Token) {
        each!(&mut self.member, member => member.handle_revoked(now, token));
    }

    /// A commit was refused because of its generation, or its member's epoch.
    pub(crate) fn handle_fenced_commit(&mut self, now: Instant, generation: i32, error: i16) {
        each!(&mut self.member, member => member.handle_fenced_commit(now, generation, error));
    }

    /// Has the group rebalance, unless it does so already.
    ///
    /// # Errors
    /// In the consumer protocol, where that is the broker's to decide.
    pub(crate) fn handle_enforce(&mut self, now: Instant, reason: &str) -> Result<()> {
        let is_open = self.protocol().is_none();
        match &mut self.member {
            Member::Classic(member) => member.handle_enforce(now, reason),
            Member::Consumer(_) if is_open => {}
            Member::Consumer(_) => {
                let text = "a rebalance cannot be enforced in the consumer protocol";
                return Err(Error::new(ErrorKind::Unsupported, text).with_hint(
                    "the broker assigns (KIP-848); set group.protocol to classic to have the members do so",
                ));
            }
        }
        Ok(())
    }

    /// Whether closing the consumer leaves the group.
    pub(crate) fn set_departure(&mut self, departure: GroupMembershipOperation) {
        each!(&mut self.member, member => member.set_departure(departure));
    }

    /// Leaves the group, if in it; `is_idle` says when that is done.
    pub(crate) fn handle_close(&mut self, now: Instant) {
        self.topics.clear();
        self.pattern = None;
        each!(&mut self.member, member => member.handle_close(now));
    }

    /// The answer to a request, or why there is none.
    pub(crate) fn handle_answer(&mut self, now: Instant, token: Token, answer: Result<Answer>) {
        each!(&mut self.member, member => member.handle_answer(now, token, answer));
        let Member::Consumer(member) = &mut self.member else { return };
        if let Some(why) = member.take_unusable() {
            self.fall_back(now, &why);
        } else if member.is_joined() && !self.is_said {
            self.is_said = true;
            if self.settings.protocol == GroupProtocol::Auto {
                info!("group.protocol=auto: the group uses the consumer protocol (KIP-848)");
            }
        }
    }

    /// Replaces the member by one of the classic protocol, with the same subscription and the same times of the user's
    /// polls.
    fn fall_back(&mut self, now: Instant, why: &Error) {
        info!(%why, "group.protocol=auto: the group uses the classic protocol");
        let Member::Consumer(member) = &mut self.member else { return };
        let (tokens, liveness, rest, rng) = member.take_parts();
        self.rest.extend(rest);
        let mut member = classic::Member::new(self.settings.clone(), now, rng).going_on(tokens, liveness);
        member.handle_subscription(now, self.topics.clone());
        self.member = Member::Classic(member);
    }

    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.rest.pop_front().or_else(|| each!(&mut self.member, member => member.poll_action()))
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        each!(&self.member, member => member.poll_timeout())
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        each!(&mut self.member, member => member.handle_timeout(now));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        error::code,
        group::{ConsumerHeartbeatAnswer, Request},
        time,
    };

    const ORDERS: Uuid = Uuid([1; 16]);

    fn membership(protocol: GroupProtocol) -> (Membership, Instant) {
        let settings = GroupSettings {
            protocol,
            instance_id: None,
            assignors: Strategy::ALL.to_vec(),
            cooperative: false,
            session_timeout: Duration::from_secs(45),
            heartbeat_interval: Duration::from_secs(3),
            max_poll_interval: Duration::from_secs(300),
            request_timeout: Duration::from_secs(30),
            retry_backoff: Duration::from_millis(100),
            retry_backoff_max: Duration::from_secs(1),
        };
        let now = time::now();
        let mut membership = Membership::new(settings, now, Rng::new(1));
        let names: Names = [(ORDERS.0, Arc::from("orders"))].into();
        membership.handle_metadata(now, |_| None, &Arc::new(names));
        membership.handle_subscription(now, vec!["orders".into()]);
        membership.handle_poll(now);
        (membership, now)
    }

    fn sent(membership: &mut Membership) -> (Token, Request) {
        match membership.poll_action() {
            Some(Action::Send { token, request, .. }) => (token, request),
            other => panic!("a request was due, not {other:?}"),
        }
    }

    fn refusal(error: i16) -> Result<Answer> {
        Ok(Answer::ConsumerHeartbeat(ConsumerHeartbeatAnswer { error, ..ConsumerHeartbeatAnswer::default() }))
    }

    #[test]
    fn auto_takes_the_classic_protocol_where_the_other_is_not_to_be_had() {
        let unsupported = || Err(Error::new(ErrorKind::Unsupported, "not offered"));
        type Refusal = fn() -> Result<Answer>;
        let refusals: [Refusal; 3] =
            [unsupported, || refusal(code::UNSUPPORTED_VERSION), || refusal(code::GROUP_ID_NOT_FOUND)];
        for refused in refusals {
            let (mut membership, now) = membership(GroupProtocol::Auto);
            let (token, _) = sent(&mut membership);
            assert_eq!(membership.protocol(), None);
            membership.handle_answer(now, token, refused());
            assert_eq!(membership.protocol(), Some(GroupProtocol::Classic));
            let (next, request) = sent(&mut membership);
            assert!(matches!(&request, Request::Join { topics, .. } if topics.len() == 1), "{request:?}");
            assert!(next > token, "an answer to the member before must not be taken for one to this");
        }
    }

    #[test]
    fn a_member_that_falls_back_in_mid_life_gives_up_what_it_had_first() {
        let (mut membership, mut now) = membership(GroupProtocol::Auto);
        let answer = |epoch, assignment| {
            let interval = Duration::from_secs(5);
            Ok(Answer::ConsumerHeartbeat(ConsumerHeartbeatAnswer {
                epoch,
                interval,
                assignment,
                ..ConsumerHeartbeatAnswer::default()
            }))
        };
        let (token, _) = sent(&mut membership);
        membership.handle_answer(now, token, answer(1, Some(vec![(ORDERS, 0)])));
        assert_eq!(membership.protocol(), Some(GroupProtocol::Consumer));
        assert!(matches!(membership.poll_action(), Some(Action::Assign { .. })));
        let (token, _) = sent(&mut membership);
        membership.handle_answer(now, token, answer(1, None));
        now = membership.poll_timeout().unwrap();
        membership.handle_timeout(now);
        let (token, _) = sent(&mut membership);
        membership.handle_answer(now, token, refusal(code::UNSUPPORTED_VERSION));
        let lost = membership.poll_action();
        let orders = TopicPartition::new("orders", 0);
        assert!(matches!(&lost, Some(Action::Lost { partitions }) if *partitions == [orders]), "{lost:?}");
        assert!(matches!(sent(&mut membership).1, Request::Join { .. }));
        assert!(membership.identity().is_none());
    }

    #[test]
    fn a_protocol_that_was_chosen_is_kept() {
        let (mut membership, now) = membership(GroupProtocol::Consumer);
        assert_eq!(membership.protocol(), Some(GroupProtocol::Consumer));
        let (token, _) = sent(&mut membership);
        membership.handle_answer(now, token, refusal(code::UNSUPPORTED_VERSION));
        assert!(matches!(membership.poll_action(), Some(Action::Fail(_))));
        assert_eq!(membership.protocol(), Some(GroupProtocol::Consumer));
        assert_eq!(self::membership(GroupProtocol::Classic).0.protocol(), Some(GroupProtocol::Classic));
    }
}
