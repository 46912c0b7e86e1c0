//! Consumer groups: list, describe, delete. Each group is asked about at its own coordinator.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{future::join_all, stream, stream::StreamExt as _};

use super::{At, KafkaAdmin, PossiblyApplied, Reached, check_code, without};
use crate::{
    cluster::{kafka_string, metadata::told},
    connection::api::wire,
    error::{
        Error, ErrorCode, Result,
        code::{GROUP_ID_NOT_FOUND, UNSUPPORTED_VERSION},
    },
    group::wire::decode_assignment,
    record::TopicPartition,
    sorted::{Map, Set},
    time::Instant,
};

/// How many groups' coordinators are looked up at once. One at a time would take a round trip each, and all at once may
/// take longer than a connection's time-out.
const SIDE_BY_SIDE: usize = 100;

/// One group of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupListing {
    /// `consumer` for consumer groups; empty where nobody has joined yet.
    pub protocol_type: String,
    /// `Stable`, `Empty` … (KIP-518: brokers of 2.6 and newer).
    pub state: Option<String>,
    /// `classic` or `consumer` (KIP-848: brokers of 3.8 and newer).
    pub group_type: Option<String>,
}

/// A group and its members, in either protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupDescription {
    /// Its name.
    pub group_id: String,
    /// `Stable`, `PreparingRebalance`, `CompletingRebalance` or `Empty`; in the consumer protocol `Stable`, `Assigning`,
    /// `Reconciling` or `Empty`.
    pub state: String,
    /// `classic`, or `consumer` (KIP-848).
    pub group_type: String,
    /// `consumer` for consumer groups.
    pub protocol_type: String,
    /// The assignor in use, such as `range`; empty where there is no member.
    pub protocol: String,
    /// The members, as the coordinator lists them.
    pub members: Vec<MemberDescription>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberDescription {
    /// The id the coordinator gave it, or that it made for itself (KIP-848).
    pub member_id: String,
    /// Its own name, if it is a static member (KIP-345).
    pub group_instance_id: Option<String>,
    /// Its `client.id`.
    pub client_id: String,
    /// The address it comes from, as the broker sees it.
    pub client_host: String,
    /// The partitions assigned to it, in order.
    pub assignment: Vec<TopicPartition>,
    /// Its epoch in the consumer protocol (KIP-848).
    pub member_epoch: Option<i32>,
}

impl KafkaAdmin {
    /// A group and its members, of the classic or the consumer protocol (KIP-848).
    ///
    /// # Errors
    /// `GroupIdNotFound` if there is no such group (on every version of Kafka), or it is of another kind (shares, streams);
    /// `GroupAuthorizationFailed` …; [`Timeout`](crate::ErrorKind::Timeout) with the last cause.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription> {
        retry!(self, At::Coordinator(group), self.deadline(), |connection, until| {
            let request =
                wire::DescribeGroupsRequest { groups: vec![kafka_string(group)], ..Default::default() };
            let answer = connection.call(request, until).await?;
            let described = answer
                .groups
                .into_iter()
                .find(|described| described.group_id.as_str() == group)
                .ok_or_else(|| without("group"))?;
            // Before version 6 (KIP-1043), a group that is not there is described as dead.
            let code = match described.error_code {
                0 if described.group_state.as_str() == "Dead" => GROUP_ID_NOT_FOUND,
                code => code,
            };
            match check_code("DescribeGroups", code, described.error_message.as_deref()) {
                Ok(()) => describe(described),
                Err(error) if is_missing(&error) => {
                    describe_consumer(&connection, group, until).await?.ok_or(error)
                }
                Err(error) => Err(error),
            }
        })
    }

    /// Every group the user may see, by name. Asks every broker that is in the cluster then, all at once.
    ///
    /// # Errors
    /// A broker's error; [`Timeout`](crate::ErrorKind::Timeout) with the last cause, also if one broker of the cluster does not
    /// answer: groups may be missing then.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn list_groups(&self) -> Result<BTreeMap<String, GroupListing>> {
        let (mut found, mut answered) = (BTreeMap::new(), Set::new());
        retry!(self, self.deadline(), |until| {
            // Asks which brokers there are now: a new one may coordinate groups, and one that has left is not waited for.
            let request = wire::MetadataRequest {
                topics: Some(Vec::new()),
                allow_auto_topic_creation: false,
                ..Default::default()
            };
            let answer = self.ask_any(request, told, until).await?;
            let brokers = self.cluster.learn_brokers(answer.brokers);
            let left = brokers.into_iter().filter(|broker| !answered.contains(broker));
            let asked: Vec<_> = left.map(|broker| self.groups_of(broker, until)).collect();
            let mut failed: Option<Error> = None;
            for (broker, groups) in join_all(asked).await {
                match groups {
                    Ok(groups) => {
                        answered.insert(broker);
                        found.extend(groups);
                    }
                    // A permanent error takes the place of one that passes, and ends the call.
                    Err(error) if failed.as_ref().is_none_or(Error::is_retriable) => failed = Some(error),
                    Err(_) => {}
                }
            }
            failed.map_or(Ok(()), Err)
        })?;
        Ok(found)
    }

    /// The groups that one broker coordinates.
    async fn groups_of(&self, broker: i32, until: Instant) -> (i32, Result<Vec<(String, GroupListing)>>) {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let listing = |group: wire::list_groups_response::ListedGroup| {
            let listing = GroupListing {
                protocol_type: group.protocol_type.to_string(),
                state: text(&group.group_state),
                group_type: text(&group.group_type),
            };
            (group.group_id.to_string(), listing)
        };
        let listed = self.call(broker, wire::ListGroupsRequest::default(), until).await;
        let listed = listed.and_then(|answer| {
            let checked = check_code("ListGroups", answer.error_code, None);
            checked.map_err(|error| error.with_broker(broker))?;
            Ok(answer.groups.into_iter().map(listing).collect())
        });
        (broker, listed)
    }

    /// Deletes groups without members, with their offsets; each has its own outcome.
    ///
    /// # Errors
    /// None but those per group: `NonEmptyGroup`, `GroupIdNotFound`, `GroupAuthorizationFailed` …,
    /// [`Timeout`](crate::ErrorKind::Timeout) with the last cause.
    ///
    /// # Cancel safety
    /// If dropped, any of the groups may be deleted.
    pub async fn delete_groups(
        &self,
        groups: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<BTreeMap<String, Result<()>>> {
        let mut left: Map<String, PossiblyApplied> =
            groups.into_iter().map(|group| (group.into(), PossiblyApplied::default())).collect();
        let mut done = BTreeMap::new();
        if left.is_empty() {
            return Ok(done);
        }
        let ended = retry!(self, self.deadline(), |until| {
            let (by_coordinator, mut failures) = self.coordinators(left.keys(), until).await;
            let asked: Vec<_> = by_coordinator
                .into_iter()
                .map(|(broker, groups)| self.delete_at(broker, groups, until))
                .collect();
            let mut outcomes: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
            outcomes.extend(failures.drain(..).map(|(group, error)| (group, Err(error))));
            settle_deletions(&mut left, &mut done, outcomes)
        });
        if let Err(error) = ended {
            let late = |(group, possibly): (String, PossiblyApplied)| {
                (group, Err(possibly.mark(error.clone(), GROUP_ID_NOT_FOUND)))
            };
            done.extend(left.into_iter().map(late));
        }
        Ok(done)
    }

    /// Groups by their coordinators, and why some have none.
    async fn coordinators(
        &self,
        groups: impl Iterator<Item = &String>,
        until: Instant,
    ) -> (Map<i32, Vec<String>>, Vec<(String, Error)>) {
        let (mut found, mut failures) = (Map::<i32, Vec<String>>::new(), Vec::new());
        let asked: Vec<_> =
            groups.map(|group| async move { (group, self.coordinator(group, until).await) }).collect();
        let mut asked = stream::iter(asked).buffer_unordered(SIDE_BY_SIDE);
        while let Some((group, coordinator)) = asked.next().await {
            match coordinator {
                Ok(broker) => found.entry(broker).or_default().push(group.clone()),
                // No deletion was sent.
                Err(error) => failures.push((group.clone(), error.with_unsent())),
            }
        }
        (found, failures)
    }

    /// Deletes groups of one coordinator.
    async fn delete_at(&self, broker: i32, groups: Vec<String>, until: Instant) -> Vec<(String, Result<()>)> {
        let names = groups.iter().map(|group| kafka_string(group)).collect();
        let answer = self.call(broker, wire::DeleteGroupsRequest { groups_names: names }, until).await;
        let outcome = |group: &str| {
            let results = &answer.as_ref().map_err(Error::clone)?.results;
            let result = results.iter().find(|result| result.group_id.as_str() == group);
            check_code("DeleteGroups", result.ok_or_else(|| without("group"))?.error_code, None)
        };
        let told = groups.into_iter().map(|group| {
            let outcome = outcome(&group);
            if outcome.as_ref().is_err_and(Error::is_retriable) {
                self.forget_coordinator(&group, broker);
            }
            (group, outcome)
        });
        told.collect()
    }
}

/// Moves every group with a final outcome from `left` to `done`. An error is one that calls for another try.
fn settle_deletions(
    left: &mut Map<String, PossiblyApplied>,
    done: &mut BTreeMap<String, Result<()>>,
    outcomes: Vec<(String, Result<()>)>,
) -> Result<()> {
    let mut patience = None;
    for (group, outcome) in outcomes {
        match outcome {
            Err(error) if error.is_retriable() => {
                if let Some(possibly) = left.get_mut(&group) {
                    possibly.handle(&error);
                }
                patience = Some(error);
            }
            outcome => {
                let possibly = left.remove(&group).unwrap_or_default();
                done.insert(group, outcome.map_err(|error| possibly.mark(error, GROUP_ID_NOT_FOUND)));
            }
        }
    }
    patience.map_or(Ok(()), Err)
}

fn describe(group: wire::describe_groups_response::DescribedGroup) -> Result<GroupDescription> {
    let is_consumer = group.protocol_type.as_str() == "consumer";
    let members = group.members.into_iter().map(|member| {
        // As its leader wrote it; empty while the group rebalances.
        let assignment = match &member.member_assignment {
            written if is_consumer && !written.is_empty() => decode_assignment(written)?,
            _ => Vec::new(),
        };
        Ok(MemberDescription {
            member_id: member.member_id.to_string(),
            group_instance_id: member.group_instance_id.map(|id| id.to_string()),
            client_id: member.client_id.to_string(),
            client_host: member.client_host.to_string(),
            assignment,
            member_epoch: None,
        })
    });
    Ok(GroupDescription {
        group_id: group.group_id.to_string(),
        state: group.group_state.to_string(),
        group_type: "classic".to_owned(),
        protocol_type: group.protocol_type.to_string(),
        protocol: group.protocol_data.to_string(),
        members: members.collect::<Result<_>>()?,
    })
}

fn is_missing(error: &Error) -> bool {
    error.code() == Some(ErrorCode::GROUP_ID_NOT_FOUND)
}

/// A group of the consumer protocol; `None` if there is none of this name, or the broker does not have the protocol.
async fn describe_consumer(
    connection: &Reached,
    group: &str,
    until: Instant,
) -> Result<Option<GroupDescription>> {
    if connection.version::<wire::ConsumerGroupDescribeRequest>().is_none() {
        return Ok(None);
    }
    let request =
        wire::ConsumerGroupDescribeRequest { group_ids: vec![kafka_string(group)], ..Default::default() };
    let answer = connection.call(request, until).await?;
    let described = answer.groups.into_iter().find(|described| described.group_id.as_str() == group);
    let described = described.ok_or_else(|| without("group"))?;
    match described.error_code {
        // The feature may be off (group.version 0).
        GROUP_ID_NOT_FOUND | UNSUPPORTED_VERSION => Ok(None),
        code => {
            check_code("ConsumerGroupDescribe", code, described.error_message.as_deref())?;
            Ok(Some(consumer_description(described)))
        }
    }
}

fn consumer_description(group: wire::consumer_group_describe_response::DescribedGroup) -> GroupDescription {
    let member = |member: wire::consumer_group_describe_response::Member| {
        let mut assignment = Vec::new();
        for topic in member.assignment.topic_partitions {
            let name: Arc<str> = Arc::from(topic.topic_name.as_str());
            let of_topic = |partition| TopicPartition { topic: Arc::clone(&name), partition };
            assignment.extend(topic.partitions.into_iter().map(of_topic));
        }
        assignment.sort();
        MemberDescription {
            member_id: member.member_id.to_string(),
            group_instance_id: member.instance_id.map(|id| id.to_string()),
            client_id: member.client_id.to_string(),
            client_host: member.client_host.to_string(),
            assignment,
            member_epoch: Some(member.member_epoch),
        }
    };
    GroupDescription {
        group_id: group.group_id.to_string(),
        state: group.group_state.to_string(),
        group_type: "consumer".to_owned(),
        protocol_type: "consumer".to_owned(),
        protocol: group.assignor_name.to_string(),
        members: group.members.into_iter().map(member).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dtkafka_testcontainers::EmbeddedBroker;

    use super::*;
    use crate::{
        cluster::{Cluster, tests::config_of},
        time,
    };

    #[test]
    fn groups_are_left_whose_deletion_calls_for_patience_and_doubt_is_each_groups_own() {
        let refused = |code| Err(Error::from_code("DeleteGroups", code));
        let lost = || Err(Error::new(crate::error::ErrorKind::Disconnected, "gone"));
        let names = ["a", "b", "c", "d"].map(str::to_owned);
        let mut left: Map<_, _> = names.clone().map(|name| (name, PossiblyApplied::default())).into();
        let mut done = BTreeMap::new();
        let said = |outcomes: [Result<()>; 4]| names.clone().into_iter().zip(outcomes).collect();
        let first = said([Ok(()), lost(), refused(16), refused(68)]);
        assert!(settle_deletions(&mut left, &mut done, first).unwrap_err().is_retriable());
        assert!(left.keys().eq(["b", "c"]) && done["a"].is_ok() && done["d"].is_err());
        let second = vec![("b".to_owned(), refused(69)), ("c".to_owned(), refused(69))];
        settle_deletions(&mut left, &mut done, second).unwrap();
        assert!(left.is_empty());
        let is_open = |name: &str| done[name].as_ref().unwrap_err().possibly_written();
        assert!(is_open("b"), "its first deletion may have been made");
        assert!(!is_open("c") && !is_open("d"));
    }

    #[tokio::test(start_paused = true)]
    async fn coordinators_of_many_groups_are_looked_for_some_at_a_time() {
        const GROUPS: usize = 1_000;
        let broker = EmbeddedBroker::builder().in_memory().start().await.unwrap();
        let settings = config_of(&broker).resolve_client().unwrap();
        let cluster = Cluster::start(Arc::new(settings)).unwrap();
        let admin = KafkaAdmin::start(cluster.clone()).await.unwrap();
        let connection = cluster.any_connection(time::after(Duration::from_secs(1))).await.unwrap();
        let mut most = 0;
        let look = async {
            loop {
                most = most.max(connection.in_flight());
                tokio::task::yield_now().await;
            }
        };
        let deleted = tokio::select! {
            biased;
            deleted = admin.delete_groups((0..GROUPS).map(|number| format!("g{number}"))) => deleted.unwrap(),
            () = look => unreachable!("it never ends"),
        };
        assert!(
            deleted.len() == GROUPS
                && deleted.values().all(|outcome| outcome.as_ref().is_err_and(is_missing))
        );
        assert!((SIDE_BY_SIDE / 2..=SIDE_BY_SIDE).contains(&most), "{most} at once");
    }
}
