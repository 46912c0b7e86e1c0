//! Java's `RangeAssignor`: each topic by itself, in contiguous ranges; the first members get one more where it does not
//! divide. Partitions of the same number meet in the same member, which joins between topics rely on.

use std::{collections::BTreeMap, iter::Peekable, sync::Arc, vec};

use super::{Given, Subscriber, partition_of};

pub(super) fn assign(members: &[&Subscriber], counts: &BTreeMap<Arc<str>, i32>, given: &mut Given) {
    let mut cursors: Vec<_> = members.iter().map(|member| sorted_topics(member)).collect();
    for (topic, &count) in counts {
        let subscribed: Vec<_> = cursors
            .iter_mut()
            .enumerate()
            .filter_map(|(member, cursor)| stands_at(cursor, topic).then_some(member))
            .collect();
        let Ok(consumers) = i32::try_from(subscribed.len()) else { continue };
        if consumers == 0 {
            continue;
        }
        let (each, extra) = (count / consumers, count % consumers);
        let mut next = 0;
        for (index, member) in (0..).zip(subscribed) {
            let length = each + i32::from(index < extra);
            given[member].extend((next..next + length).map(|partition| partition_of(topic, partition)));
            next += length;
        }
    }
}

type Cursor<'a> = Peekable<vec::IntoIter<&'a str>>;

fn sorted_topics(member: &Subscriber) -> Cursor<'_> {
    let mut topics: Vec<&str> = member.topics.iter().map(|topic| &**topic).collect();
    topics.sort_unstable();
    topics.into_iter().peekable()
}

/// Moves on to this topic and says whether the member is subscribed to it. Asked for one topic after another in their
/// order, it looks at each of the member's topics once, instead of all of them for every topic.
fn stands_at(cursor: &mut Cursor<'_>, topic: &str) -> bool {
    while cursor.next_if(|own| *own < topic).is_some() {}
    cursor.peek().is_some_and(|own| *own == topic)
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

    #[test]
    fn topics_count_in_whatever_order_a_member_names_them_and_however_often() {
        let members =
            [member("C0", &["t2", "t0", "t2"]), member("C1", &["t1", "gone", "t0"]), member("C2", &[])];
        let assignment = Assignor::Range.assign(&members, &counts(&[("t0", 2), ("t1", 1), ("t2", 2)]));
        let wanted = expected(&[("C0", "t0p0 t2p0 t2p1"), ("C1", "t0p1 t1p0"), ("C2", "")]);
        assert_eq!(shown(&assignment), wanted);
    }
}
