//! The brokers of the cluster.

use super::KafkaAdmin;
use crate::{cluster::metadata::told, connection::api::wire, error::Result, sorted};

/// What the brokers tell of their cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterDescription {
    /// Its id, where the brokers tell it.
    pub cluster_id: Option<String>,
    /// The broker to which changes are sent; in KRaft clusters any broker is named, which forwards them. `None` while there is none.
    pub controller: Option<i32>,
    /// The brokers that are there, by id.
    pub brokers: Vec<BrokerDescription>,
}

/// A broker of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerDescription {
    /// Its `node.id` (`broker.id`).
    pub id: i32,
    /// The host that clients reach it by: what it advertises on the listener that was asked.
    pub host: String,
    /// The port there.
    pub port: i32,
    /// Where it is (`broker.rack`), if it says so.
    pub rack: Option<String>,
}

impl KafkaAdmin {
    /// The cluster's brokers and its controller, asked for anew.
    ///
    /// # Errors
    /// No connection, no time.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn describe_cluster(&self) -> Result<ClusterDescription> {
        retry!(self, self.deadline(), |until| {
            let request = wire::MetadataRequest {
                // No topic.
                topics: Some(Vec::new()),
                allow_auto_topic_creation: false,
                ..Default::default()
            };
            let answer = self.ask_any(request, told, until).await?;
            let broker = |broker: wire::metadata_response::MetadataResponseBroker| BrokerDescription {
                id: broker.node_id,
                host: broker.host.to_string(),
                port: broker.port,
                rack: broker.rack.map(|rack| rack.to_string()),
            };
            let mut brokers: Vec<_> = answer.brokers.into_iter().map(broker).collect();
            sorted::sort_by(&mut brokers, |a, b| a.id.cmp(&b.id));
            Ok(ClusterDescription {
                cluster_id: answer.cluster_id.map(|id| id.to_string()),
                controller: (answer.controller_id >= 0).then_some(answer.controller_id),
                brokers,
            })
        })
    }
}
