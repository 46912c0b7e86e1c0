//! [`Replay`]: sends dead letters back to where they came from. Reads a topic from its beginning, or from where a group
//! stands, to what was its end when it began; never commits a letter whose record is not acknowledged.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use super::{KafkaInstance, LogSubject, letters, logged};
use crate::{
    admin::KafkaAdmin,
    config::ConsumerConfig,
    consumer::KafkaConsumer,
    error::Result,
    producer::{Delivery, KafkaProducer},
    record::{ConsumerRecord, TopicPartition},
};

/// How long one poll waits for letters.
const POLL: Duration = Duration::from_secs(1);
/// Records that are sent before their acknowledgments are awaited.
const WINDOW: usize = 1000;
/// How long it takes to leave at most.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A record of a dead letter topic, as [`ErrorPolicy`](crate::ErrorPolicy) writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The record as it was: topic, partition, offset, key, value, headers, timestamp. Where a letter does not say where it
    /// comes from, these are its own.
    pub record: ConsumerRecord,
    /// Whether the letter says where the record comes from.
    pub has_origin: bool,
    /// How often its handlers were called.
    pub attempts: u32,
    /// Why they failed, with all causes.
    pub error: String,
    /// The letter's own partition.
    pub letter_partition: i32,
    /// The letter's own offset.
    pub letter_offset: i64,
}

impl DeadLetter {
    /// Reads a record of a dead letter topic.
    pub fn read(mut record: ConsumerRecord) -> Self {
        let (letter_partition, letter_offset) = (record.partition, record.offset);
        let text = |record: &ConsumerRecord, name: &str| {
            record.header_str(&format!("{}{name}", letters::DEAD)).map(str::to_owned)
        };
        let number = |name: &str| text(&record, name).and_then(|text| text.parse::<i64>().ok());
        let topic = text(&record, "topic").filter(|topic| !topic.is_empty());
        let attempts = number("attempts").and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
        let (partition, offset, timestamp) = (number("partition"), number("offset"), number("timestamp"));
        let error = text(&record, "error").unwrap_or_default();
        let has_origin = topic.is_some();
        if let Some(topic) = topic {
            record.topic = topic.into();
            record.partition = partition.and_then(|number| i32::try_from(number).ok()).unwrap_or(-1);
            record.offset = offset.unwrap_or(-1);
            record.timestamp = timestamp.unwrap_or(record.timestamp);
        }
        // The headers of the last letter, which begin with its topic. A record that was a letter before becomes that
        // letter again.
        let name = format!("{}topic", letters::DEAD);
        let last = record.headers.iter().rposition(|header| header.key == name).unwrap_or(0);
        let own = record.headers.split_off(last);
        record.headers.extend(own.into_iter().filter(|header| !header.key.starts_with(letters::DEAD)));
        Self { record, has_origin, attempts, error, letter_partition, letter_offset }
    }
}

type Filter = Arc<dyn Fn(&DeadLetter) -> bool + Send + Sync>;

/// Sends the records of a dead letter topic back to the topics they came from, with their keys, values and headers. They
/// are given new timestamps there: with the old ones, a topic that keeps records for a time could delete them before they
/// are read.
///
/// ```no_run
/// # async fn example(kafka: dtkafka::KafkaInstance) -> dtkafka::Result<()> {
/// use dtkafka::Replay;
///
/// let replayed = Replay::from_dead_letters(&kafka, "orders-dead")
///     .filter(|letter| letter.error.contains("timed out"))
///     .run()
///     .await?;
/// println!("{} of {} letters were sent back", replayed.sent, replayed.read);
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "nothing is sent before it runs"]
pub struct Replay {
    kafka: KafkaInstance,
    letters: String,
    to: Option<String>,
    group: Option<String>,
    filter: Option<Filter>,
}

/// What a [`Replay`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Replayed {
    /// Letters that were read.
    pub read: u64,
    /// Those that were sent back, and acknowledged.
    pub sent: u64,
    /// Letters that were not sent: the filter refused them, they do not say where they come from, or they hold a damaged batch.
    pub left: u64,
}

impl Replay {
    /// The letters of this topic.
    pub fn from_dead_letters(kafka: &KafkaInstance, topic: impl Into<String>) -> Self {
        Self { kafka: kafka.clone(), letters: topic.into(), to: None, group: None, filter: None }
    }

    /// Sends back only letters for which `chosen` returns true. Default: all.
    pub fn filter(mut self, chosen: impl Fn(&DeadLetter) -> bool + Send + Sync + 'static) -> Self {
        self.filter = Some(Arc::new(chosen));
        self
    }

    /// Sends to this topic, and not to those they came from.
    pub fn to(mut self, topic: impl Into<String>) -> Self {
        self.to = Some(topic.into());
        self
    }

    /// Starts at this group's committed offsets, and commits what was read: no letter is read twice, whatever the filter
    /// decides. Default: all letters, each time.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Reads what is there now and sends it back; returns when all is acknowledged.
    ///
    /// # Errors
    /// `UnknownTopicOrPartition` where there is no such topic; those of reading, after `default.api.timeout.ms` (or
    /// `unreadable.warn.ms` if that is more) where a leader is away, and of sending. What was sent before stays sent, and with a
    /// [`group`](Self::group) is committed only together with all that was read. Logged before it is returned.
    ///
    /// # Cancel safety
    /// If dropped, what was sent stays sent.
    pub async fn run(self) -> Result<Replayed> {
        const PLACE: LogSubject = LogSubject { controller: "dtkafka::Replay::run", subject: "Kafka Replay" };
        logged(PLACE, self.replay().await)
    }

    async fn replay(self) -> Result<Replayed> {
        let producer = self.kafka.get_letter_producer(|producer| producer).await?;
        // Letters that cannot be read for a while are waited for as brokers are, or longer where that is set.
        let config = self.kafka.config();
        let patience =
            config.resolve_client()?.default_api_timeout.max(config.resolve_consumer()?.unreadable_warn);
        let settings = ConsumerConfig::new()
            .enable_auto_commit(false)
            .auto_offset_reset("earliest")
            .set("unreadable.warn.ms", patience.as_millis() as u64);
        let settings = match &self.group {
            Some(group) => settings.group_id(group),
            None => settings,
        };
        let consumer = self.kafka.start_consumer(&[], settings).await?;
        let outcome = self.send_back(&consumer, &producer).await;
        let closed = producer.close().await;
        let left = consumer.close(CLOSE_TIMEOUT).await;
        let replayed = outcome?;
        closed.and(left).map(|()| replayed)
    }

    async fn send_back(&self, consumer: &KafkaConsumer, producer: &KafkaProducer) -> Result<Replayed> {
        // This request creates nothing, so that a misspelt name does not become a topic.
        let found = KafkaAdmin::over(consumer.cluster()).describe_topic(&self.letters).await?;
        let topic: Arc<str> = self.letters.as_str().into();
        let numbers = found.partitions.iter().map(|partition| partition.partition);
        let partitions: Vec<_> =
            numbers.map(|partition| TopicPartition::new(Arc::clone(&topic), partition)).collect();
        let mut ends = consumer.end_offsets(partitions.iter().cloned()).await?;
        consumer.assign(partitions.iter().cloned())?;
        if self.group.is_none() {
            consumer.seek_to_beginning(&partitions)?;
        }
        let mut replayed = Replayed::default();
        let mut deliveries = Vec::new();
        while !self.is_at(consumer, &ends).await? {
            let records = consumer.poll(POLL).await?;
            if records.is_empty() {
                // The log may have been cut before what was its end: nothing more comes then. That it cannot be read is told by polls.
                let now = consumer.end_offsets(partitions.iter().cloned()).await.unwrap_or_default();
                for (partition, now) in now {
                    ends.entry(partition).and_modify(|end| *end = now.min(*end));
                }
            }
            for record in records.into_iter().flat_map(|(_, records)| records) {
                let partition = record.topic_partition();
                if ends.get(&partition).is_none_or(|end| record.offset >= *end) {
                    continue;
                }
                replayed.read += 1;
                match self.send(producer, record).await? {
                    Some(delivery) => deliveries.push(delivery),
                    None => replayed.left += 1,
                }
                if deliveries.len() >= WINDOW {
                    replayed.sent += acknowledged(&mut deliveries).await?;
                }
            }
        }
        replayed.sent += acknowledged(&mut deliveries).await?;
        if self.group.is_some() {
            // Another replay of the same group may have got further meanwhile.
            let committed = consumer.committed(ends.keys().cloned()).await?;
            let is_behind = |partition: &TopicPartition, end: i64| {
                committed.get(partition).and_then(Option::as_ref).is_none_or(|at| at.offset < end)
            };
            consumer
                .commit_offsets(ends.into_iter().filter(|(partition, end)| is_behind(partition, *end)))
                .await?;
        }
        Ok(replayed)
    }

    async fn is_at(&self, consumer: &KafkaConsumer, ends: &BTreeMap<TopicPartition, i64>) -> Result<bool> {
        for (partition, end) in ends {
            if consumer.position(partition).await? < *end {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn send(&self, producer: &KafkaProducer, record: ConsumerRecord) -> Result<Option<Delivery>> {
        // A letter that holds a whole batch cannot be sent back as a record.
        let is_batch = letters::is_of_batch(&record);
        let letter = DeadLetter::read(record);
        let is_chosen = self.filter.as_ref().is_none_or(|chosen| chosen(&letter));
        let to = match &self.to {
            Some(topic) => Some(topic.as_str()),
            None if letter.has_origin => Some(&*letter.record.topic),
            None => None,
        };
        let Some(topic) = to.filter(|_| is_chosen && !is_batch) else { return Ok(None) };
        let record = letters::forwarded(topic, &letter.record, &letter.record.headers);
        producer.send_record(record).await.map(Some)
    }
}

async fn acknowledged(deliveries: &mut Vec<Delivery>) -> Result<u64> {
    let mut count = 0;
    for delivery in deliveries.drain(..) {
        delivery.await?;
        count += 1;
    }
    Ok(count)
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("letters", &self.letters)
            .field("to", &self.to)
            .field("group", &self.group)
            .field("filtered", &self.filter.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    #[test]
    fn a_letter_reads_as_the_record_it_was() {
        let record = ConsumerRecord::new("orders", 3, 42)
            .with_key("k")
            .with_value("{}")
            .with_header("trace", "t1")
            .with_timestamp(1_700_000_000_000);
        let error = Error::new(ErrorKind::Handler, "out of stock");
        let headers = letters::dead_letter_headers(&record, 5, &error);
        let mut written = ConsumerRecord::new("orders-dead", 0, 7).with_key("k").with_value("{}");
        (written.headers, written.timestamp) = (headers, 1_800_000_000_000);
        let letter = DeadLetter::read(written);
        assert_eq!((&letter.record, letter.attempts, letter.has_origin), (&record, 5, true));
        assert_eq!((letter.letter_partition, letter.letter_offset), (0, 7));
        assert_eq!(letter.error, "out of stock");
    }

    #[test]
    fn a_letter_of_a_letter_reads_as_the_letter_it_was() {
        let error = Error::new(ErrorKind::Handler, "out of stock");
        let first = ConsumerRecord::new("orders", 3, 42).with_value("{}").with_timestamp(1_700_000_000_000);
        let mut letter =
            ConsumerRecord::new("orders-dead", 0, 7).with_value("{}").with_timestamp(1_800_000_000_000);
        letter.headers = letters::dead_letter_headers(&first, 5, &error);
        let mut second = ConsumerRecord::new("orders-dead-again", 1, 9).with_value("{}");
        second.headers = letters::dead_letter_headers(&letter, 1, &error);
        let read = DeadLetter::read(second);
        assert_eq!(read.record, letter);
        assert_eq!(DeadLetter::read(read.record).record, first);
    }

    #[test]
    fn the_letter_of_a_damaged_batch_is_told_from_that_of_a_record() {
        let batch = ConsumerRecord::new("orders", 3, 42).with_value(vec![0; 61]);
        let error = Error::protocol("damaged");
        let letter = |headers| ConsumerRecord { headers, ..ConsumerRecord::new("orders-dead", 0, 7) };
        assert!(letters::is_of_batch(&letter(letters::batch_headers(&batch, 49, &error))));
        assert!(!letters::is_of_batch(&letter(letters::dead_letter_headers(&batch, 1, &error))));
        let of_batch = letter(letters::batch_headers(&batch, 49, &error));
        let again = letter(letters::dead_letter_headers(&of_batch, 1, &error));
        assert!(!letters::is_of_batch(&again), "its own record is a letter");
        assert!(letters::is_of_batch(&DeadLetter::read(again).record));
    }

    #[tokio::test]
    async fn what_fails_at_the_start_is_logged_once() {
        let (log, _listening) = crate::test_log::Log::of_this_thread(tracing::Level::ERROR);
        let broker = dtkafka_testcontainers::EmbeddedBroker::start().await.unwrap();
        let config = crate::KafkaConfig::new().set_bootstrap_servers(broker.bootstrap_servers());
        let kafka = KafkaInstance::new(config).unwrap();
        Replay::from_dead_letters(&kafka, "dead").group("").run().await.unwrap_err();
        assert_eq!(log.text().matches("ERROR").count(), 1, "{}", log.text());
    }

    #[test]
    fn a_letter_of_somebody_else_keeps_its_own_place() {
        let letter = DeadLetter::read(ConsumerRecord::new("orders-dead", 1, 7).with_header("x", "y"));
        assert!(!letter.has_origin);
        assert_eq!((&*letter.record.topic, letter.record.offset, letter.attempts), ("orders-dead", 7, 0));
        assert_eq!(letter.record.headers.len(), 1);
    }
}
