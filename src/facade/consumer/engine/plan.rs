//! What a [`Consumer`](crate::Consumer) was told to do, as its engine needs it; and which topics that makes it read.

use std::{sync::Arc, time::Duration};

use crate::{
    consumer::{KafkaConsumer, acknowledge::FromStart},
    error::Result,
    facade::{
        consumed::Consumed,
        dispatch::lanes::{Bounds, Ordering},
        routes::Routes,
    },
};

/// The settings, handlers and policies of an engine.
pub(in crate::facade::consumer) struct Plan {
    pub(in crate::facade::consumer) topics: Consumed,
    pub(in crate::facade::consumer) routes: Arc<Routes>,
    pub(in crate::facade::consumer) ordering: Ordering,
    pub(in crate::facade::consumer) bounds: Bounds,
    /// How many records it takes at once.
    pub(in crate::facade::consumer) take: usize,
    /// How often the member says that it is alive while handlers run.
    pub(in crate::facade::consumer) keep_alive: Duration,
    pub(in crate::facade::consumer) auto_commit: bool,
    /// Retry topics of earlier policies.
    pub(in crate::facade::consumer) former: Arc<[Arc<str>]>,
    pub(in crate::facade::consumer) group: Arc<str>,
}

impl Plan {
    /// Records of retry topics are this consumer's own work, whose originals are committed: none may be passed over.
    pub(in crate::facade::consumer) fn read_from_start(&self) -> FromStart {
        let (topics, routes) = (self.topics.clone(), Arc::clone(&self.routes));
        Arc::new(move |topic| routes.of(&topics, topic).level > 0)
    }

    /// All topics that are read, retry topics included; or their pattern.
    pub(in crate::facade::consumer) fn reads(&self) -> Vec<Arc<str>> {
        match &self.topics {
            Consumed::Named(topics) => {
                let mut reads = topics.to_vec();
                for topic in self.routes.retry_topics(topics).iter().chain(&*self.former) {
                    if !reads.contains(topic) {
                        reads.push(Arc::clone(topic));
                    }
                }
                reads
            }
            Consumed::Matching { text, .. } => {
                vec![self.routes.with_retry_topics(text, &self.former).into()]
            }
        }
    }

    pub(in crate::facade::consumer) fn subscribe(&self, client: &KafkaConsumer) -> Result<()> {
        let reads = self.reads();
        match &self.topics {
            Consumed::Named(_) => client.subscribe(&reads),
            Consumed::Matching { .. } => reads.iter().try_for_each(|text| client.subscribe_pattern(text)),
        }
    }
}
