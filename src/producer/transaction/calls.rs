//! What a transaction asks of coordinators, and what comes of it.

use std::sync::Arc;

use crate::{
    error::Error,
    producer::identity::ProducerIdentity,
    record::{ConsumerGroupMetadata, OffsetAndMetadata, TopicPartition},
    sorted::Set,
};

/// Partitions of a transaction.
pub(crate) type Partitions = Set<(Arc<str>, i32)>;

/// Offsets that become part of a transaction.
#[derive(Debug, Clone)]
pub(crate) struct Offsets {
    pub(crate) group: ConsumerGroupMetadata,
    pub(crate) offsets: Vec<(TopicPartition, OffsetAndMetadata)>,
}

/// A request to a coordinator.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    /// InitProducerId: fences other producers of the id and ends what they left open. With an identity: a new epoch of it.
    Init(Option<ProducerIdentity>),
    AddPartitions(ProducerIdentity, Arc<Partitions>),
    AddOffsets(ProducerIdentity, Arc<str>),
    CommitOffsets(ProducerIdentity, Arc<Offsets>),
    End {
        identity: ProducerIdentity,
        commit: bool,
    },
}

/// What came of a call.
#[derive(Debug)]
pub(crate) enum Reply {
    /// `version2`: the cluster has `transaction.version` 2.
    Initialized {
        identity: ProducerIdentity,
        version2: bool,
    },
    Done,
    /// The identity of the next transaction, where it changes with every end.
    Ended(Option<ProducerIdentity>),
}

/// Why a call came to nothing, as far as is known.
#[derive(Debug)]
pub(crate) struct NotDone {
    pub(crate) error: Error,
    /// The coordinator was reached, and may have done it.
    pub(crate) asked: bool,
}
