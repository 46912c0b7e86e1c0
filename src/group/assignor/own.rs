//! Assignors of the user's own: what they are told, and what is made of their plans. A plan that would have a partition read
//! twice or by who did not ask for it is refused whole; a panic becomes an error.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;

use super::{Assignment, GroupInfo, GroupMember};
use crate::{
    error::{Error, ErrorKind, Result},
    record::TopicPartition,
    sorted::{self, Map, Set},
};

/// Deals out the partitions of a classic group by rules of your own (Java: `ConsumerPartitionAssignor`).
///
/// Set it with [`ConsumerConfig::assignor`](crate::ConsumerConfig::assignor), at every member of the group: the coordinator
/// chooses an assignor that all of them offer, and the member that leads runs it.
///
/// ```no_run
/// use std::collections::BTreeMap;
///
/// use dtkafka::{Assignor, GroupInfo, TopicPartition};
///
/// /// All to the first member; the others stand by.
/// struct OneWorks;
///
/// impl Assignor for OneWorks {
///     fn name(&self) -> &str {
///         "one-works"
///     }
///
///     fn assign(&self, group: &GroupInfo<'_>) -> BTreeMap<String, Vec<TopicPartition>> {
///         let first = group.members().iter().min_by_key(|member| &member.member_id);
///         first.map(|first| (first.member_id.clone(), group.partitions_for(first))).into_iter().collect()
///     }
/// }
///
/// # async fn example(kafka: dtkafka::KafkaInstance) -> dtkafka::Result<()> {
/// let consumer = kafka.get_consumer_with(["orders"], |c| c.group_id("billing").assignor(OneWorks)).await?;
/// # Ok(()) }
/// ```
pub trait Assignor: Send + Sync + 'static {
    /// Its name in the group's protocol: the same at every member, none of the built-in names, asked for once.
    fn name(&self) -> &str;

    /// Whether members keep their partitions while the group rebalances (KIP-429). They do only if all the assignors that a
    /// member offers are cooperative. A partition that the plan gives to another member than its owner is withheld until that one
    /// has given it up; the rebalance after it gives it away. Default: false. Asked for once.
    fn is_cooperative(&self) -> bool {
        false
    }

    /// What this member tells the leader of itself, beside its topics, partitions and rack, each time it joins: up to the
    /// broker's `message.max.bytes` together. Default: nothing.
    fn user_data(&self, topics: &[Arc<str>]) -> Option<Bytes> {
        let _ = topics;
        None
    }

    /// The partitions of every member, by member id; who is left out gets none, and what is given to nobody is read by nobody,
    /// which is logged. It runs in the consumer's driver while the whole group waits, and must not block.
    ///
    /// A plan that gives a partition twice, to a member that did not subscribe to its topic, or one that is not there, and a
    /// panic, are errors of the leader's poll; the group tries again with the next.
    fn assign(&self, group: &GroupInfo<'_>) -> BTreeMap<String, Vec<TopicPartition>>;
}

/// The user's assignor.
#[derive(Clone)]
pub(crate) struct OwnAssignor {
    name: Arc<str>,
    pub(super) is_cooperative: bool,
    assignor: Arc<dyn Assignor>,
}

impl fmt::Debug for OwnAssignor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnAssignor").field(&self.name).finish()
    }
}

/// To the group, two assignors of the same name are the same.
impl PartialEq for OwnAssignor {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for OwnAssignor {}

impl OwnAssignor {
    pub(crate) fn new(assignor: impl Assignor) -> Self {
        let name = Arc::from(assignor.name());
        Self { name, is_cooperative: assignor.is_cooperative(), assignor: Arc::new(assignor) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// After a panic the member tells nothing of itself.
    pub(crate) fn user_data(&self, topics: &[Arc<str>]) -> Option<Bytes> {
        catch_unwind(AssertUnwindSafe(|| self.assignor.user_data(topics))).unwrap_or_else(|_panic| {
            tracing::warn!(assignor = self.name(), "the assignor panicked: it tells the leader nothing");
            None
        })
    }

    pub(super) fn assign(&self, group: &GroupInfo<'_>) -> Result<Assignment> {
        let refused = |text: String| {
            Error::new(ErrorKind::InvalidArgument, format!("the assignor '{}' {text}", self.name))
                .with_hint("see to the assignor that was set for this consumer; the group was not planned")
        };
        // Nothing of the group is changed while it runs.
        let plan = catch_unwind(AssertUnwindSafe(|| self.assignor.assign(group)))
            .map_err(|_panic| refused("panicked".to_owned()))?;
        let members: Map<&str, &GroupMember> =
            group.members.iter().map(|member| (&*member.member_id, member)).collect();
        let mut owners: Vec<(&TopicPartition, &str)> = Vec::new();
        for (id, partitions) in &plan {
            let member = members
                .get(&**id)
                .ok_or_else(|| refused(format!("names member {id}, which is not in the group")))?;
            let topics: Set<&str> = member.topics.iter().map(|topic| &**topic).collect();
            for key in partitions {
                let shown = format_args!("{}-{}", key.topic, key.partition);
                if !topics.contains(&*key.topic) {
                    return Err(refused(format!(
                        "gives {shown} to {id}, which did not subscribe to the topic"
                    )));
                }
                let count = group.counts.get(&key.topic).copied().unwrap_or(0);
                if !(0..count).contains(&key.partition) {
                    return Err(refused(format!(
                        "gives {shown} to {id}, and the topic has {count} partitions"
                    )));
                }
                owners.push((key, id));
            }
        }
        sorted::sort_by(&mut owners, |a, b| a.0.cmp(b.0));
        for pair in owners.windows(2) {
            if let [(key, one), (same, other)] = pair
                && key == same
            {
                let shown = format_args!("{}-{}", key.topic, key.partition);
                return Err(refused(format!("gives {shown} to both {one} and {other}")));
            }
        }
        let all: i64 = group.counts.values().map(|count| i64::from(*count)).sum();
        let left = usize::try_from(all).unwrap_or(0).saturating_sub(owners.len());
        if left > 0 {
            tracing::warn!(assignor = self.name(), partitions = left, "the plan leaves partitions to nobody");
        }
        Ok(self.complete(group, plan))
    }

    /// Every member has a place in the plan, and nobody gets what another may still work at.
    fn complete(&self, group: &GroupInfo<'_>, mut plan: Assignment) -> Assignment {
        // If two members claim the same partition, the one of the later generation is believed; if the generations are
        // equal, neither. So it is with the sticky assignors.
        let mut claims: Vec<(&TopicPartition, (i32, Option<&str>))> = Vec::new();
        for member in group.members.iter().filter(|_| self.is_cooperative) {
            let own = (member.generation, Some(&*member.member_id));
            claims.extend(member.owned.iter().map(|key| (key, own)));
        }
        sorted::sort_by(&mut claims, |a, b| a.0.cmp(b.0));
        claims.dedup_by(|(key, own), (same, claim)| {
            if key == same {
                match own.0.cmp(&claim.0) {
                    Ordering::Greater => *claim = *own,
                    Ordering::Equal if claim.1 != own.1 => claim.1 = None,
                    _ => {}
                }
            }
            key == same
        });
        let claims: Map<_, _> = claims.into_iter().collect();
        for member in group.members {
            let given = plan.entry(member.member_id.clone()).or_default();
            given.retain(|key| claims.get(key).is_none_or(|(_, owner)| *owner == Some(&*member.member_id)));
            given.sort_unstable();
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Strategy,
            tests::{counts, expected, member, shown},
        },
        *,
    };

    /// Gives what it was told to give.
    struct Gives(Vec<(&'static str, &'static str, i32)>, bool);

    impl Assignor for Gives {
        fn name(&self) -> &str {
            "gives"
        }

        fn is_cooperative(&self) -> bool {
            self.1
        }

        fn assign(&self, _: &GroupInfo<'_>) -> BTreeMap<String, Vec<TopicPartition>> {
            assert!(!self.0.is_empty(), "a test's assign");
            let mut plan: BTreeMap<String, Vec<TopicPartition>> = BTreeMap::new();
            for (member, topic, partition) in &self.0 {
                plan.entry((*member).to_owned()).or_default().push(TopicPartition::new(*topic, *partition));
            }
            plan
        }
    }

    fn plan(members: &[GroupMember], gives: Gives) -> Result<Assignment> {
        let counts = counts(&[("t", 2), ("u", 1)]);
        Strategy::Own(OwnAssignor::new(gives)).assign(&GroupInfo::new(members, &counts))
    }

    #[test]
    fn a_plan_is_taken_as_it_is_and_who_is_left_out_has_nothing() {
        let members = [member("a", &["t", "u"]), member("b", &["t"])];
        let plan = plan(&members, Gives(vec![("a", "u", 0), ("a", "t", 1), ("a", "t", 0)], false)).unwrap();
        assert_eq!(shown(&plan), expected(&[("a", "tp0 tp1 up0"), ("b", "")]));
    }

    #[test]
    fn a_plan_that_cannot_be_is_refused_and_says_why() {
        let members = [member("a", &["t", "u"]), member("b", &["t"])];
        for (gives, why) in [
            (vec![("a", "t", 0), ("b", "t", 0)], "gives t-0 to both a and b"),
            (vec![("a", "t", 0), ("a", "t", 0)], "gives t-0 to both a and a"),
            (vec![("b", "u", 0)], "gives u-0 to b, which did not subscribe to the topic"),
            (vec![("a", "t", 2)], "gives t-2 to a, and the topic has 2 partitions"),
            (vec![("a", "t", -1)], "gives t--1 to a, and the topic has 2 partitions"),
            (vec![("c", "t", 0)], "names member c, which is not in the group"),
            (vec![], "panicked"),
        ] {
            let error = plan(&members, Gives(gives, false)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().contains(&format!("the assignor 'gives' {why}")), "{error}");
        }
    }

    #[test]
    fn what_another_member_has_is_withheld_by_a_cooperative_one_alone() {
        let mut members = [member("a", &["t"]), member("b", &["t"])];
        members[0].owned = vec![TopicPartition::new("t", 0), TopicPartition::new("t", 1)];
        let gives = || vec![("a", "t", 0), ("b", "t", 1)];
        let eager = plan(&members, Gives(gives(), false)).unwrap();
        assert_eq!(shown(&eager), expected(&[("a", "tp0"), ("b", "tp1")]));
        let first = plan(&members, Gives(gives(), true)).unwrap();
        assert_eq!(shown(&first), expected(&[("a", "tp0"), ("b", "")]));
        members[0].owned.pop();
        let second = plan(&members, Gives(gives(), true)).unwrap();
        assert_eq!(shown(&second), expected(&[("a", "tp0"), ("b", "tp1")]));
    }
}
