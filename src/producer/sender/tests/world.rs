//! A cluster around the sender: its partitions' logs, and the requests that are out. In virtual time.
//!
//! The model keeps Kafka's rules: five batches remembered per producer and partition, after a clean restart only the last,
//! any sequence taken from a producer that is not known, a higher epoch only from sequence 0. Answers are on their way for any
//! time, also while the leader changes. Requests whose connection broke may be applied, dropped, or applied much later; one that
//! took too long has its connection replaced, on which others are answered all the same.

use super::*;

/// One partition's log.
#[derive(Default)]
pub(super) struct Log {
    pub(super) ids: Vec<u32>,
    /// By producer id: its epoch, and the last batches as (base sequence, count, base offset).
    pub(super) producers: BTreeMap<i64, (i16, Remembered)>,
}

pub(super) type Remembered = VecDeque<(i32, i32, i64)>;

impl Log {
    pub(super) fn append(&mut self, bytes: &bytes::Bytes) -> (i16, i64) {
        let raw = batch::split(bytes.clone()).next().unwrap().unwrap();
        let (epoch, sequence) = (raw.producer_epoch(), raw.base_sequence());
        let offset = self.ids.len() as i64;
        if raw.producer_id >= 0 {
            if let Some((known_epoch, batches)) = self.producers.get(&raw.producer_id) {
                if epoch < *known_epoch {
                    return (47, -1);
                }
                if epoch > *known_epoch && sequence != 0 {
                    return (45, -1);
                }
                if epoch == *known_epoch {
                    let same =
                        batches.iter().find(|(base, count, _)| (*base, *count) == (sequence, raw.count));
                    if let Some((.., offset)) = same {
                        return (0, *offset);
                    }
                    if batches.back().is_some_and(|(base, count, _)| base + count != sequence) {
                        return (45, -1);
                    }
                }
            }
            let (known_epoch, batches) = self.producers.entry(raw.producer_id).or_default();
            if *known_epoch != epoch {
                batches.clear();
            }
            *known_epoch = epoch;
            batches.push_back((sequence, raw.count, offset));
            if batches.len() > 5 {
                batches.pop_front();
            }
        }
        self.ids.extend(ids(bytes));
        (0, offset)
    }

    pub(super) fn fence(&mut self, bytes: &bytes::Bytes) {
        let raw = batch::split(bytes.clone()).next().unwrap().unwrap();
        let (epoch, batches) = self.producers.entry(raw.producer_id).or_default();
        *epoch = (*epoch).max(raw.producer_epoch()) + 1;
        batches.clear();
    }

    /// Brokers write down only the last batch of each producer when they stop.
    pub(super) fn restart_cleanly(&mut self) {
        for (_, batches) in self.producers.values_mut() {
            batches.drain(..batches.len().saturating_sub(1));
        }
    }
}

pub(super) fn ids(batch: &bytes::Bytes) -> Vec<u32> {
    let raw = batch::split(batch.clone()).next().unwrap().unwrap();
    let decoded = raw.decode(true, &Decompressor::new(), 1 << 20).unwrap();
    let id = |slot| u32::from_be_bytes(decoded.value(slot).unwrap()[..4].try_into().unwrap());
    decoded.slots.iter().map(id).collect()
}

/// Who the producer is where a transaction says so.
const TRANSACTIONAL: ProducerIdentity = ProducerIdentity { id: 7, epoch: 0, cluster: 0 };

/// More than brokers there are.
const CONNECTIONS: i32 = 10;

/// At which broker a connection ends.
fn broker_of(connection: i32) -> i32 {
    connection % CONNECTIONS
}

pub(super) struct World {
    pub(super) sender: Sender,
    pub(super) memory: Memory,
    pub(super) partitions: Vec<Arc<PartitionQueue>>,
    pub(super) logs: Vec<Log>,
    /// The topic's id, and the logs of its earlier lives.
    pub(super) topic_id: TopicId,
    pub(super) deleted: Vec<(usize, Log)>,
    pub(super) leaders: Vec<i32>,
    pub(super) snapshot: Metadata,
    /// By connection, oldest first: that of a broker has its number, one that was replaced the number of [`broker_of`].
    pub(super) wire: BTreeMap<i32, VecDeque<Request>>,
    /// What was said of the oldest of these, and is still on its way.
    read: BTreeMap<i32, VecDeque<Vec<(i32, Answer)>>>,
    replaced: i32,
    /// Requests of broken connections that brokers have read and not yet looked at.
    pub(super) late: Vec<(usize, TopicId, bytes::Bytes)>,
    pub(super) scheduled: Vec<Arc<PartitionQueue>>,
    pub(super) now: Instant,
    pub(super) rng: Rng,
    pub(super) asked: i64,
    pub(super) asking: bool,
}

impl World {
    pub(super) fn new(seed: u64, partitions: usize, limits: Limits) -> Self {
        let topic: Arc<str> = "orders".into();
        let settings = SenderSettings {
            idempotent: limits.idempotent,
            transactional: limits.transactional,
            max_in_flight: limits.max_in_flight,
            max_request_size: 1 << 20,
            retry_backoff: Duration::from_millis(100),
            retry_backoff_max: Duration::from_secs(1),
            availability_timeout: Duration::from_millis(200),
        };
        let limits = Arc::new(limits);
        let compressor = Compressor::new(Compression::None, None).unwrap();
        let mut world = Self {
            sender: Sender::new(settings, Arc::clone(&limits), compressor, Rng::new(seed)),
            memory: Memory::new(BUFFER, 400),
            partitions: (0..partitions)
                .map(|index| Arc::new(PartitionQueue::new(&topic, index as i32, &limits, true)))
                .collect(),
            logs: (0..partitions).map(|_| Log::default()).collect(),
            topic_id: [1; 16],
            deleted: Vec::new(),
            leaders: (0..partitions as i32).map(|index| index % BROKERS + 1).collect(),
            snapshot: Metadata::default(),
            wire: BTreeMap::new(),
            read: BTreeMap::new(),
            replaced: 0,
            late: Vec::new(),
            scheduled: Vec::new(),
            now: crate::time::now(),
            rng: Rng::new(seed ^ 0xABCD),
            asked: 0,
            asking: false,
        };
        world.learn_leaders();
        world
    }

    pub(super) fn learn_leaders(&mut self) {
        let leader = |id: &i32| metadata::Partition {
            leader: Some(*id),
            leader_epoch: 0,
            replicas: Vec::new(),
            in_sync_replicas: Vec::new(),
        };
        let partitions = self.leaders.iter().map(leader).collect();
        let topic = metadata::Topic { id: self.topic_id, partitions, ..Default::default() };
        self.snapshot.topics = crate::sorted::Map::from([("orders".into(), topic)]);
    }

    pub(super) fn send(&mut self, partition: usize, id: u32) -> Delivery {
        let mut value = [0; 60];
        value[..4].copy_from_slice(&id.to_be_bytes());
        let size_bound = batch::record_size_bound(0, value.len(), &[]);
        let parts = Parts { key: None, value: Some(&value), headers: &[], timestamp: 1, size_bound };
        let now = self.now;
        let queue = &self.partitions[partition];
        let appended = queue.lock().append(&parts, || now, &self.memory, &mut 0);
        match appended {
            Appended::Done { delivery, schedule, .. } => {
                if schedule {
                    self.scheduled.push(Arc::clone(queue));
                }
                delivery
            }
            other => panic!("{other:?}"),
        }
    }

    /// One turn of the task.
    pub(super) fn turn(&mut self, hurry: bool) {
        self.sender.handle_scheduled(&mut self.scheduled);
        // One transaction, of which every partition is part by being written to.
        let permit = Permit { identity: Ok(Some(TRANSACTIONAL)), partitions: None };
        let permit = self.sender.settings.transactional.then_some(permit);
        self.sender.handle_tick(self.now, &self.snapshot, hurry, permit);
        while let Some(action) = self.sender.poll_action() {
            match action {
                Action::Connect(id) => self.sender.handle_connected(self.now, id, true),
                Action::AskIdentity => {
                    assert!(!std::mem::replace(&mut self.asking, true), "one question at a time");
                    self.asked += 1;
                }
                Action::Send(request) => self.wire.entry(request.leader).or_default().push_back(request),
            }
        }
        if self.sender.poll_metadata() && self.rng.below(2) == 0 {
            self.learn_leaders();
        }
        self.settle();
        self.sender.poll_timeout(self.now);
    }

    pub(super) fn settle(&mut self) {
        let aftermath = self.sender.poll_aftermath().map(std::mem::take).unwrap_or_default();
        self.tell(aftermath);
        assert!(self.sender.poll_fatal().is_none());
    }

    fn tell(&mut self, aftermath: Aftermath) {
        for (receipt, outcome) in aftermath.resolved {
            receipt.resolve(outcome);
        }
        self.memory.give_back(aftermath.freed);
        assert!(self.memory.available() <= BUFFER, "memory was given back twice");
    }

    pub(super) fn identify(&mut self) {
        if std::mem::take(&mut self.asking) {
            let identity = ProducerIdentity { id: 100 + self.asked, epoch: 0, cluster: 0 };
            self.sender.handle_identity(self.now, Ok(identity));
        }
    }

    /// The topic is deleted and made again: under another id (KIP-516), with logs that know nobody.
    pub(super) fn make_again(&mut self) {
        self.topic_id[0] += 1;
        let logs = self.logs.iter_mut().map(std::mem::take).enumerate();
        self.deleted.extend(logs);
    }

    /// What a broker does with a batch.
    pub(super) fn apply(&mut self, broker: i32, sent: &Sent) -> Answer {
        let (index, bytes) = (sent.partition.partition as usize, &sent.batch.bytes);
        if sent.topic_id != self.topic_id {
            return Answer { code: 100, base_offset: -1, log_append_time: -1, ..Answer::default() };
        }
        if self.leaders[index] != broker {
            return Answer { code: 6, base_offset: -1, log_append_time: -1, ..Answer::default() };
        }
        let (code, base_offset) = self.logs[index].append(bytes);
        Answer { code, base_offset, log_append_time: -1, ..Answer::default() }
    }

    /// A broker does what the oldest request that it has not read asks for, and answers; `fault` may change what is done and said
    /// about each batch. The answer is on its way.
    pub(super) fn read(
        &mut self,
        connection: i32,
        fault: &mut dyn FnMut(&mut Self, &Sent) -> Option<Answer>,
    ) {
        let broker = broker_of(connection);
        let Some(requests) = self.wire.remove(&connection) else { return };
        let place = self.read.get(&connection).map_or(0, VecDeque::len);
        if let Some(request) = requests.get(place) {
            let answer = |sent: &Sent| {
                let answer = fault(self, sent).unwrap_or_else(|| self.apply(broker, sent));
                (sent.partition.partition, answer)
            };
            let answers = request.batches.iter().map(answer).collect();
            self.read.entry(connection).or_default().push_back(answers);
        }
        self.wire.insert(connection, requests);
    }

    /// The oldest request on a connection is answered.
    pub(super) fn answer(
        &mut self,
        connection: i32,
        mut fault: impl FnMut(&mut Self, &Sent) -> Option<Answer>,
    ) {
        let Some((request, answers)) = self.take_oldest(connection, &mut fault) else { return };
        let mut answers: Vec<_> =
            answers.into_iter().map(|(place, told)| (("orders", place), told)).collect();
        answers.sort_by_key(|(place, _)| *place);
        self.sender.handle_answers(self.now, request, &answers);
        self.settle();
    }

    /// The oldest request, and what is said of it.
    fn take_oldest(
        &mut self,
        connection: i32,
        fault: &mut dyn FnMut(&mut Self, &Sent) -> Option<Answer>,
    ) -> Option<(Request, Vec<(i32, Answer)>)> {
        if self.read.get(&connection).is_none_or(VecDeque::is_empty) {
            self.read(connection, fault);
        }
        let answers = self.read.get_mut(&connection).and_then(VecDeque::pop_front)?;
        let request = self.wire.get_mut(&connection).and_then(VecDeque::pop_front)?;
        Some((request, answers))
    }

    /// The oldest request on a connection is not answered in time: another connection takes its place, and what else is out on
    /// this one is answered all the same.
    pub(super) fn time_out(
        &mut self,
        connection: i32,
        mut fault: impl FnMut(&mut Self, &Sent) -> Option<Answer>,
    ) {
        let Some((request, _)) = self.take_oldest(connection, &mut fault) else { return };
        if connection < CONNECTIONS {
            self.replaced += CONNECTIONS;
            let replaced = self.replaced + connection;
            let requests = self.wire.remove(&connection).unwrap_or_default();
            let answers = self.read.remove(&connection).unwrap_or_default();
            self.wire.insert(replaced, requests);
            self.read.insert(replaced, answers);
        }
        self.sender.handle_request_error(self.now, request, &Error::new(ErrorKind::Timeout, "no answer"));
        self.settle();
    }

    /// Connections on which something is out.
    pub(super) fn connections(&self) -> Vec<i32> {
        self.wire
            .iter()
            .filter(|(_, requests)| !requests.is_empty())
            .map(|(connection, _)| *connection)
            .collect()
    }

    /// A connection breaks: of what is in flight some was applied, some not, and some will be.
    pub(super) fn lose(&mut self, connection: i32) {
        let mut requests = self.wire.remove(&connection).unwrap_or_default();
        let unread = self.read.get(&connection).map_or(0, VecDeque::len);
        self.read_some(broker_of(connection), &requests.make_contiguous()[unread..]);
        self.wire.insert(connection, requests);
        self.disconnect(connection);
    }

    /// A leader writes a batch, also one that has lost its office meanwhile.
    pub(super) fn write(&mut self, sent: &Sent) -> Option<Answer> {
        let (code, base_offset) = self.logs[sent.partition.partition as usize].append(&sent.batch.bytes);
        Some(Answer { code, base_offset, log_append_time: -1, ..Answer::default() })
    }

    /// A connection breaks, and its broker reads nothing more of what is in flight.
    pub(super) fn disconnect(&mut self, connection: i32) {
        let error = Error::new(ErrorKind::Disconnected, "lost");
        self.read.remove(&connection);
        for request in self.wire.remove(&connection).unwrap_or_default() {
            self.sender.handle_request_error(self.now, request, &error);
        }
        self.settle();
    }

    /// Of these requests a broker applies some, has read some, and never sees the rest.
    fn read_some(&mut self, broker: i32, requests: &[Request]) {
        let read = self.rng.below(requests.len() + 1);
        let applied = self.rng.below(read + 1);
        for (place, sent) in requests[..read]
            .iter()
            .enumerate()
            .flat_map(|(place, request)| request.batches.iter().map(move |sent| (place, sent)))
        {
            if place < applied {
                self.apply(broker, sent);
            } else {
                let partition = sent.partition.partition as usize;
                self.late.push((partition, sent.topic_id, sent.batch.bytes.clone()));
            }
        }
    }

    /// The producer ends with whatever it has. Of what is in flight some was applied, and some will be.
    pub(super) fn close(&mut self) {
        let mut aftermath = Aftermath::default();
        for partition in &self.partitions {
            partition.lock().end(&Error::closed("producer"), &mut aftermath);
        }
        self.tell(aftermath);
        for (connection, mut requests) in std::mem::take(&mut self.wire) {
            let unread = self.read.get(&connection).map_or(0, VecDeque::len);
            self.read_some(broker_of(connection), &requests.make_contiguous()[unread..]);
        }
    }

    /// A broker looks at what it has read long ago.
    pub(super) fn apply_late(&mut self, (partition, topic_id, bytes): (usize, TopicId, bytes::Bytes)) {
        if topic_id == self.topic_id {
            self.logs[partition].append(&bytes);
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.scheduled.is_empty() && self.sender.is_idle()
    }

    /// Without further faults, until everything has its answer.
    pub(super) fn drain(&mut self) {
        let mut turns = 0;
        while !self.is_done() {
            self.turn(true);
            self.identify();
            for connection in self.connections() {
                self.answer(connection, |_, _| None);
            }
            self.now += Duration::from_millis(20);
            turns += 1;
            assert!(turns < 20_000, "the queue never drains");
        }
    }
}
