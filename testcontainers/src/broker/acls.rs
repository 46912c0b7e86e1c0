//! Who may do what: denials by resource and operation. Everything that is not denied is allowed.

use std::collections::BTreeSet;

/// What a client wants to do (Java: `AclOperation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Operation {
    /// Fetch from a topic, or be in a group and commit its offsets.
    Read,
    /// Produce to a topic, or use a transactional id.
    Write,
    /// See a topic, a group or a transactional id at all.
    Describe,
    /// Create topics.
    Create,
    /// Delete topics, records or groups.
    Delete,
    /// Change configurations or partitions.
    Alter,
    /// Produce idempotently without a transactional id (only the cluster; before Kafka 3.0).
    IdempotentWrite,
}

/// What it is to be done to. A name of `*` means all of its kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Resource {
    /// A topic.
    Topic(String),
    /// A consumer group.
    Group(String),
    /// A transactional id.
    TransactionalId(String),
    /// The cluster itself.
    Cluster,
}

impl Resource {
    fn covers(&self, other: &Self) -> bool {
        let same = |a: &str, b: &str| a == "*" || a == b;
        match (self, other) {
            (Self::Topic(a), Self::Topic(b))
            | (Self::Group(a), Self::Group(b))
            | (Self::TransactionalId(a), Self::TransactionalId(b)) => same(a, b),
            (Self::Cluster, Self::Cluster) => true,
            _ => false,
        }
    }
}

/// The denials in force. The user is the one who logged in; `*` means everybody, also those without a login.
#[derive(Debug, Default)]
pub(super) struct Acls {
    denied: BTreeSet<(String, Resource, Operation)>,
}

impl Acls {
    pub(super) fn deny(&mut self, user: &str, resource: Resource, operation: Operation) {
        self.denied.insert((user.to_owned(), resource, operation));
    }

    pub(super) fn allow_all(&mut self) {
        self.denied.clear();
    }

    pub(super) fn allows(&self, user: &str, resource: &Resource, operation: Operation) -> bool {
        !self.denied.iter().any(|(who, what, how)| {
            // Who may not see something can do nothing to it.
            (who == "*" || who == user)
                && what.covers(resource)
                && (*how == operation || *how == Operation::Describe)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_is_for_its_user_resource_and_operation() {
        let mut acls = Acls::default();
        let topic = |name: &str| Resource::Topic(name.to_owned());
        acls.deny("eve", topic("t"), Operation::Write);
        acls.deny("*", topic("hidden"), Operation::Describe);
        acls.deny("*", Resource::Group("*".to_owned()), Operation::Read);
        assert!(!acls.allows("eve", &topic("t"), Operation::Write));
        assert!(acls.allows("eve", &topic("t"), Operation::Read));
        assert!(acls.allows("bob", &topic("t"), Operation::Write));
        assert!(!acls.allows("bob", &topic("hidden"), Operation::Write));
        assert!(!acls.allows("", &Resource::Group("g".to_owned()), Operation::Read));
        acls.allow_all();
        assert!(acls.allows("eve", &topic("t"), Operation::Write));
    }
}
