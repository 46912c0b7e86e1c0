//! Java's `RoundRobinAssignor`: all partitions of all topics in a row, dealt out one by one around the members, skipping
//! who is not subscribed to the topic.

use std::{collections::BTreeMap, sync::Arc};

use super::{Given, Subscriber, partition_of};

pub(super) fn assign(members: &[&Subscriber], counts: &BTreeMap<Arc<str>, i32>, given: &mut Given) {
    let mut turn = 0;
    for (topic, &count) in counts {
        if !members.iter().any(|member| member.topics.contains(topic)) {
            continue;
        }
        for partition in 0..count {
            // Ends: somebody is subscribed.
            while !members[turn % members.len()].topics.contains(topic) {
                turn += 1;
            }
            given[turn % members.len()].push(partition_of(topic, partition));
            turn += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Assignor,
        tests::{counts, expected, member, shown},
    };

    #[test]
    fn equal_subscriptions_are_dealt_out_in_turn_as_in_javas_documentation() {
        let members = [member("C0", &["t0", "t1"]), member("C1", &["t0", "t1"])];
        let assignment = Assignor::RoundRobin.assign(&members, &counts(&[("t0", 3), ("t1", 3)]));
        let wanted = expected(&[("C0", "t0p0 t0p2 t1p1"), ("C1", "t0p1 t1p0 t1p2")]);
        assert_eq!(shown(&assignment), wanted);
    }

    #[test]
    fn different_subscriptions_skip_who_is_not_subscribed_as_in_javas_documentation() {
        let members = [member("C0", &["t0"]), member("C1", &["t0", "t1"]), member("C2", &["t0", "t1", "t2"])];
        let assignment = Assignor::RoundRobin.assign(&members, &counts(&[("t0", 1), ("t1", 2), ("t2", 3)]));
        let wanted = expected(&[("C0", "t0p0"), ("C1", "t1p0"), ("C2", "t1p1 t2p0 t2p1 t2p2")]);
        assert_eq!(shown(&assignment), wanted);
    }
}
