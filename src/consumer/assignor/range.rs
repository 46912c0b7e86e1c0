//! Java's `RangeAssignor`: each topic by itself, in contiguous ranges; the first members get one more where it does not
//! divide. Partitions of the same number meet in the same member, which joins between topics rely on.

use std::{collections::BTreeMap, sync::Arc};

use super::{Assignment, Subscriber, give};

pub(super) fn assign(members: &[&Subscriber], counts: &BTreeMap<Arc<str>, i32>, assignment: &mut Assignment) {
    for (topic, &count) in counts {
        let subscribed: Vec<_> = members.iter().filter(|member| member.topics.contains(topic)).collect();
        let Ok(consumers) = i32::try_from(subscribed.len()) else { continue };
        if consumers == 0 {
            continue;
        }
        let (each, extra) = (count / consumers, count % consumers);
        let mut next = 0;
        for (index, member) in (0..).zip(subscribed) {
            let length = each + i32::from(index < extra);
            for partition in next..next + length {
                give(assignment, member, topic, partition);
            }
            next += length;
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
    fn two_topics_of_three_partitions_among_two_members_as_in_javas_documentation() {
        let members = [member("C0", &["t0", "t1"]), member("C1", &["t0", "t1"])];
        let assignment = Assignor::Range.assign(&members, &counts(&[("t0", 3), ("t1", 3)]));
        let wanted = expected(&[("C0", "t0p0 t0p1 t1p0 t1p1"), ("C1", "t0p2 t1p2")]);
        assert_eq!(shown(&assignment), wanted);
    }

    #[test]
    fn members_beyond_the_partitions_get_nothing() {
        let members = [member("C0", &["t"]), member("C1", &["t"]), member("C2", &["t"])];
        let assignment = Assignor::Range.assign(&members, &counts(&[("t", 2)]));
        assert_eq!(shown(&assignment), expected(&[("C0", "tp0"), ("C1", "tp1"), ("C2", "")]));
    }

    #[test]
    fn a_topic_without_metadata_is_left_out() {
        let assignment = Assignor::Range.assign(&[member("C0", &["gone", "t"])], &counts(&[("t", 1)]));
        assert_eq!(shown(&assignment), expected(&[("C0", "tp0")]));
    }
}
