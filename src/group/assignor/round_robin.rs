//! Java's `RoundRobinAssignor`: all partitions of all topics in a row, dealt out one by one around the members, skipping
//! who is not subscribed to the topic.

use super::{Given, Topic};

pub(super) fn assign(topics: &[Topic<'_>], given: &mut Given) {
    let mut turn = 0;
    for topic in topics {
        for partition in 0..topic.count {
            // The member whose turn it is, or the next one that is subscribed; after the last member comes the first.
            let next = topic.subscribers.partition_point(|member| *member < turn);
            let Some(&member) = topic.subscribers.get(next).or_else(|| topic.subscribers.first()) else {
                break;
            };
            given[member].push(topic.partition(partition));
            turn = member + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        GroupInfo, Strategy,
        tests::{counts, expected, member, shown},
    };

    #[test]
    fn equal_subscriptions_are_dealt_out_in_turn_as_in_javas_documentation() {
        let members = [member("C0", &["t0", "t1"]), member("C1", &["t0", "t1"])];
        let assignment =
            Strategy::RoundRobin.assign(&GroupInfo::new(&members, &counts(&[("t0", 3), ("t1", 3)]))).unwrap();
        let wanted = expected(&[("C0", "t0p0 t0p2 t1p1"), ("C1", "t0p1 t1p0 t1p2")]);
        assert_eq!(shown(&assignment), wanted);
    }

    #[test]
    fn different_subscriptions_skip_who_is_not_subscribed_as_in_javas_documentation() {
        let members = [member("C0", &["t0"]), member("C1", &["t0", "t1"]), member("C2", &["t0", "t1", "t2"])];
        let assignment = Strategy::RoundRobin
            .assign(&GroupInfo::new(&members, &counts(&[("t0", 1), ("t1", 2), ("t2", 3)])))
            .unwrap();
        let wanted = expected(&[("C0", "t0p0"), ("C1", "t1p0"), ("C2", "t1p1 t2p0 t2p1 t2p2")]);
        assert_eq!(shown(&assignment), wanted);
    }
}
