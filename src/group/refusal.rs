//! What a user can do about the coordinator's refusal of a member. Nothing is decided here.

use super::code;
use crate::error::{Error, ErrorCode, ErrorKind};

/// The coordinator's code as an error that names the remedy.
pub(super) fn explain(api: &'static str, error: i16) -> Error {
    let refused = match error {
        // The code's own text does not say that the group is the one that is full.
        code::GROUP_MAX_SIZE_REACHED => {
            Error::new(ErrorKind::Broker(ErrorCode(error)), "the group is full").with_api(api)
        }
        _ => Error::from_code(api, error),
    };
    let hint = match error {
        code::GROUP_AUTHORIZATION_FAILED => "grant the user Read on the group (group.id)",
        code::TOPIC_AUTHORIZATION_FAILED => "grant the user Describe and Read on the topics subscribed to",
        code::INCONSISTENT_GROUP_PROTOCOL => {
            "the other members of the group use another protocol or none of the assignors of this one: \
             use another group.id, or change partition.assignment.strategy of the others"
        }
        code::INVALID_SESSION_TIMEOUT => {
            "set session.timeout.ms between the broker's group.min.session.timeout.ms and group.max.session.timeout.ms"
        }
        code::GROUP_MAX_SIZE_REACHED if api == CONSUMER_HEARTBEAT => {
            "raise the broker's group.consumer.max.size or start fewer members"
        }
        code::GROUP_MAX_SIZE_REACHED => "raise the broker's group.max.size or start fewer members",
        code::UNSUPPORTED_ASSIGNOR => {
            "set group.remote.assignor to one of the broker's group.consumer.assignors (uniform, range), or leave it out"
        }
        code::UNRELEASED_INSTANCE_ID => {
            "another member has this group.instance.id: give every member its own, or wait until the session of one that \
             ended without leaving is over (the broker's group.consumer.session.timeout.ms)"
        }
        code::INVALID_REGULAR_EXPRESSION => {
            "the broker reads patterns as RE2: no look-around and no back-references"
        }
        code::UNSUPPORTED_VERSION if api == CONSUMER_HEARTBEAT => WITHOUT_CONSUMER_PROTOCOL,
        code::GROUP_ID_NOT_FOUND if api == CONSUMER_HEARTBEAT => {
            "the group is one of classic members that cannot be converted: set group.protocol to classic or auto, use another \
             group.id, or allow the upgrade (the broker's group.consumer.migration.policy)"
        }
        _ => return refused,
    };
    refused.with_hint(hint)
}

/// The consumer protocol's one request of a member.
pub(super) const CONSUMER_HEARTBEAT: &str = "ConsumerGroupHeartbeat";

/// What to do about brokers without KIP-848.
pub(super) const WITHOUT_CONSUMER_PROTOCOL: &str = "the broker does not have the consumer protocol (KIP-848: Kafka 4.0, with the feature \
     group.version 1): set group.protocol to classic, or to auto, which takes what there is";
