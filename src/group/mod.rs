//! Membership of a consumer group: what a membership core asks for ([`Action`]) and what it is told ([`Answer`]).
//!
//! A core decides and never does: no I/O, no clock, no lock. Every request carries a token; an answer with another token
//! than the one waited for is stale and dropped.

pub(crate) mod assignor;
mod classic;
mod consumer;
mod liveness;
mod membership;
mod refusal;
pub(crate) mod wire;

#[cfg(test)]
mod consumer_model_test;
#[cfg(test)]
mod model_test;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use self::assignor::{GroupMember, Strategy};
pub(crate) use self::{
    consumer::{ConsumerHeartbeat, ConsumerHeartbeatAnswer, IdPartition, Names},
    membership::Membership,
};
use crate::{
    config::settings::{ConsumerSettings, GroupProtocol},
    error::Error,
    flights::Token,
    record::TopicPartition,
    time::Instant,
    wire::Uuid,
};

/// Why a member joins again, or a text of the user's; empty where there is nothing to say.
pub(crate) type Reason = std::borrow::Cow<'static, str>;

/// Whether a member leaves its group when its consumer is closed (KIP-1092).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum GroupMembershipOperation {
    /// It leaves, unless it is a static one (`group.instance.id`).
    #[default]
    Default,
    /// It leaves, also a static one: its partitions are given to others at once.
    LeaveGroup,
    /// It stays: its partitions wait for it until its session ends. Only a static member comes back into its place.
    RemainInGroup,
}

/// What a membership wants done.
#[derive(Debug)]
pub(crate) enum Action {
    /// Ask the group's coordinator; its answer goes to `handle_answer` with the same token.
    Send { token: Token, request: Request, deadline: Instant },
    /// The coordinator that was asked is not it any more: look it up again before the next request.
    ForgetCoordinator,
    /// As leader: deal out the partitions; the result goes to `handle_plan` with the same token.
    /// Where `keeps`, the coordinator's assignment stands: the counts are then those that it covers.
    Plan { token: Token, assignor: Strategy, members: Vec<GroupMember>, keeps: bool },
    /// Stop handing out records of these partitions, commit what is done, release them; then `handle_revoked` with the
    /// same token. The coordinator may wait for that since `since`, and for no longer than the rebalance time-out.
    Revoke { token: Token, partitions: Vec<TopicPartition>, since: Instant },
    /// These partitions are somebody else's already: release them, commit nothing. The next poll joins again.
    Lost { partitions: Vec<TopicPartition> },
    /// These partitions are ours, beside those that are already, until a `Revoke` or `Lost` names them.
    Assign { added: Vec<TopicPartition> },
    /// Find out what these topics are called; the names come with the metadata.
    Identify { topics: Vec<Uuid> },
    /// The member stops: hand the error to the user. Unless it is fatal, the next poll tries again.
    Fail(Error),
}

/// A request to the coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Join {
        member_id: String,
        topics: Vec<Arc<str>>,
        /// What the member has, or with eager rebalancing had last, and of which generation.
        claim: Vec<TopicPartition>,
        generation: i32,
        /// Why (KIP-800), for the coordinator's log.
        reason: Reason,
    },
    Sync {
        member_id: String,
        generation: i32,
        assignor: Strategy,
        assignments: Vec<(String, Bytes)>,
    },
    Heartbeat {
        member_id: String,
        generation: i32,
    },
    Leave {
        member_id: String,
        reason: &'static str,
    },
    /// The consumer protocol's one request (KIP-848).
    ConsumerHeartbeat(ConsumerHeartbeat),
}

/// The coordinator's answer; `error` is its code, 0 for none.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Join {
        error: i16,
        generation: i32,
        member_id: String,
        leader: String,
        protocol: String,
        /// Filled for the leader only.
        members: Vec<GroupMember>,
        /// KIP-814: a static leader came back; the coordinator keeps the assignment it has.
        skip_assignment: bool,
    },
    Sync {
        error: i16,
        assignment: Bytes,
    },
    Heartbeat {
        error: i16,
    },
    Leave {
        error: i16,
    },
    ConsumerHeartbeat(ConsumerHeartbeatAnswer),
}

impl Answer {
    /// The error of a refused request, unless that is the ordinary course of a rebalance. It passes where the member asks
    /// again by itself.
    pub(crate) fn trouble(&self) -> Option<Error> {
        let (api, error) = match self {
            Self::Join { error, .. } => ("JoinGroup", *error),
            Self::Sync { error, .. } => ("SyncGroup", *error),
            Self::Heartbeat { error } => ("Heartbeat", *error),
            Self::Leave { error } => ("LeaveGroup", *error),
            Self::ConsumerHeartbeat(answer) => ("ConsumerGroupHeartbeat", answer.error),
        };
        let is_ordinary = matches!(
            error,
            0 | code::REBALANCE_IN_PROGRESS
                | code::MEMBER_ID_REQUIRED
                | code::UNKNOWN_MEMBER_ID
                | code::ILLEGAL_GENERATION
        );
        let is_repeated = matches!(
            error,
            code::UNRELEASED_INSTANCE_ID
                | code::UNKNOWN_SERVER_ERROR
                | code::FENCED_MEMBER_EPOCH
                | code::STALE_MEMBER_EPOCH
        );
        (!is_ordinary).then(|| {
            let refused = refusal::explain(api, error);
            if is_repeated { refused.with_passing() } else { refused }
        })
    }
}

/// One exchange with the coordinator: due at a time, or out and waited for.
#[derive(Debug, Clone, Copy)]
enum Exchange {
    Due(Instant),
    Out { token: Token },
}

impl Exchange {
    fn due(self) -> Option<Instant> {
        match self {
            Self::Due(at) => Some(at),
            Self::Out { .. } => None,
        }
    }

    fn is(self, token: Token) -> bool {
        matches!(self, Self::Out { token: out } if out == token)
    }
}

/// What a commit needs to prove that the member still belongs to the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) member_id: String,
    /// The member's epoch in the consumer protocol (KIP-848). -1 outside a group: `assign` without `subscribe`.
    pub(crate) generation: i32,
    pub(crate) instance_id: Option<String>,
}

impl Identity {
    /// Commits of a consumer that only uses the group's name to store offsets.
    pub(crate) fn standalone() -> Self {
        Self { member_id: String::new(), generation: -1, instance_id: None }
    }
}

/// The settings of a membership.
#[derive(Debug, Clone)]
pub(crate) struct GroupSettings {
    pub(crate) protocol: GroupProtocol,
    /// `group.instance.id` (KIP-345): a static member, which does not leave when it closes.
    pub(crate) instance_id: Option<String>,
    /// The assignors offered.
    pub(crate) assignors: Vec<Strategy>,
    /// Every assignor offered is cooperative: partitions that stay are kept through a rebalance (KIP-429).
    pub(crate) cooperative: bool,
    pub(crate) session_timeout: Duration,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) max_poll_interval: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) retry_backoff: Duration,
    pub(crate) retry_backoff_max: Duration,
}

impl GroupSettings {
    pub(crate) fn new(consumer: &ConsumerSettings, client: &crate::config::settings::ClientSettings) -> Self {
        Self {
            protocol: consumer.group_protocol,
            instance_id: consumer.group_instance_id.clone(),
            assignors: consumer.assignors.clone(),
            cooperative: consumer.assignors.iter().all(Strategy::is_cooperative),
            session_timeout: consumer.session_timeout,
            heartbeat_interval: consumer.heartbeat_interval,
            max_poll_interval: consumer.max_poll_interval,
            request_timeout: client.request_timeout,
            retry_backoff: client.retry_backoff,
            retry_backoff_max: client.retry_backoff_max,
        }
    }
}

/// The error codes that a member acts on.
pub(crate) mod code {
    pub(crate) use crate::error::code::*;

    /// Another broker coordinates the group, or soon will.
    pub(crate) fn is_moved(code: i16) -> bool {
        matches!(code, NOT_COORDINATOR | COORDINATOR_NOT_AVAILABLE)
    }
}
