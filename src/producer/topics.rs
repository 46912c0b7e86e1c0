//! The topics in use and their partitions' queues: a snapshot that is replaced whole, of which each thread keeps the last it has
//! seen. It makes, extends and cuts off queues by what metadata says; it never sends and never waits.

use std::{
    cell::RefCell,
    sync::{
        Arc, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    accumulator::Limits,
    partitioner::Sticky,
    queue::{Aftermath, Queue},
};
use crate::{cluster::Metadata, error::Error, mutex::Mutex, sorted::Map, time::Environment};

/// The topics in use: a snapshot, replaced whole.
#[derive(Default)]
pub(super) struct Topics {
    /// No two snapshots of any producers have the same. 0: of none.
    version: u64,
    pub(super) queues: Map<Arc<str>, Arc<TopicQueues>>,
    /// The producer has ended: queues made from now on take nothing.
    ended: bool,
}

impl Topics {
    pub(super) fn partitions(&self) -> impl Iterator<Item = &Arc<PartitionQueue>> {
        self.queues.values().flat_map(|topic| &topic.partitions)
    }
}

/// A topic's partitions; replaced when their number changes.
pub(super) struct TopicQueues {
    pub(super) name: Arc<str>,
    /// How many the topic has.
    pub(super) count: usize,
    /// More than `count` of a topic that was made again with fewer: what is in those of its earlier life may still be
    /// waited for.
    pub(super) partitions: Vec<Arc<PartitionQueue>>,
    pub(super) sticky: Mutex<Sticky>,
}

pub(crate) struct PartitionQueue {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    queue: Mutex<Queue>,
    has_leader: AtomicBool,
    /// Its leader takes records.
    available: AtomicBool,
}

impl PartitionQueue {
    pub(crate) fn new(topic: &Arc<str>, partition: i32, limits: &Arc<Limits>, has_leader: bool) -> Self {
        Self {
            topic: Arc::clone(topic),
            partition,
            queue: Mutex::new(Queue::new(Arc::clone(topic), partition, Arc::clone(limits))),
            has_leader: AtomicBool::new(has_leader),
            available: AtomicBool::new(true),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    pub(super) fn has_leader(&self) -> bool {
        self.has_leader.load(Ordering::Relaxed) && self.available.load(Ordering::Relaxed)
    }

    pub(crate) fn set_available(&self, available: bool) {
        if self.available.load(Ordering::Relaxed) != available {
            self.available.store(available, Ordering::Relaxed);
        }
    }
}

impl std::fmt::Debug for PartitionQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

thread_local! {
    /// The topics that this thread has seen last. A reader's lock would be written to with each record, and its memory would
    /// wander between the cores that send. Kept until the thread uses another producer: some hundred bytes a partition.
    static TOPICS: RefCell<Option<Arc<Topics>>> = const { RefCell::new(None) };
}

static NEXT_TOPICS_VERSION: AtomicU64 = AtomicU64::new(1);

/// The current snapshot of a producer's topics.
#[derive(Default)]
pub(super) struct TopicTable {
    topics: RwLock<Arc<Topics>>,
    /// That of `topics`, for the path of every record.
    version: AtomicU64,
}

impl TopicTable {
    /// Looks at the snapshot without touching memory that other threads write to.
    #[inline]
    pub(super) fn with<T>(&self, look: impl FnOnce(&Topics) -> T) -> T {
        TOPICS.with_borrow_mut(|seen| {
            let version = self.version.load(Ordering::Acquire);
            look(match &*seen {
                Some(topics) if topics.version == version => topics,
                _ => seen.insert(self.snapshot()),
            })
        })
    }

    pub(super) fn snapshot(&self) -> Arc<Topics> {
        Arc::clone(&self.topics.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes, extends or cuts off the queues of a topic by what the snapshot of the cluster says.
    pub(super) fn update(
        &self,
        name: &Arc<str>,
        metadata: &Metadata,
        limits: &Arc<Limits>,
        environment: &Environment,
    ) {
        let Some(known) = metadata.topics.get(name).filter(|topic| !topic.partitions.is_empty()) else {
            return;
        };
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        let mut partitions = topics.queues.get(name).map_or_else(Vec::new, |topic| topic.partitions.clone());
        for (index, partition) in known.partitions.iter().enumerate() {
            match partitions.get(index) {
                Some(queue) => queue.has_leader.store(partition.leader.is_some(), Ordering::Relaxed),
                None => {
                    let queue = PartitionQueue::new(name, index as i32, limits, partition.leader.is_some());
                    if topics.ended {
                        queue.lock().end(&Error::closed("producer"), &mut Aftermath::default());
                    }
                    partitions.push(Arc::new(queue));
                }
            }
        }
        let count = known.partitions.len();
        if topics.queues.get(name).is_some_and(|topic| topic.count == count) {
            return;
        }
        let sticky = Mutex::new(Sticky::new(environment.rng(), count));
        let mut queues = topics.queues.clone();
        queues.insert(
            Arc::clone(name),
            Arc::new(TopicQueues { name: Arc::clone(name), count, partitions, sticky }),
        );
        let ended = topics.ended;
        self.replace(&mut topics, queues, ended);
    }

    /// Takes over a new snapshot of the cluster for all topics in use.
    pub(super) fn update_all(&self, metadata: &Metadata, limits: &Arc<Limits>, environment: &Environment) {
        for topic in self.snapshot().queues.values() {
            self.update(&topic.name, metadata, limits, environment);
        }
    }

    /// Ends every queue, those to come included: from now on each record is refused or has been failed.
    pub(super) fn end(&self, error: &Error, aftermath: &mut Aftermath) {
        let ended = {
            let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
            let queues = topics.queues.clone();
            self.replace(&mut topics, queues, true);
            Arc::clone(&topics)
        };
        for partition in ended.partitions() {
            partition.lock().end(error, aftermath);
        }
    }

    fn replace(&self, topics: &mut Arc<Topics>, queues: Map<Arc<str>, Arc<TopicQueues>>, ended: bool) {
        let version = NEXT_TOPICS_VERSION.fetch_add(1, Ordering::Relaxed);
        *topics = Arc::new(Topics { version, queues, ended });
        self.version.store(version, Ordering::Release);
    }
}
