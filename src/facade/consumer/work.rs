//! One record on its way through its handlers: calls them, and does what the [`ErrorPolicy`] says after a failure. Knows
//! nothing of polls and commits.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

use super::SUBJECT;
use crate::{
    error::{Error, Result},
    facade::{
        KafkaInstance, Place,
        handler::{Decision, ErasedHandler, ErrorPolicy, Failure, dead_letter_headers},
        log,
    },
    producer::KafkaProducer,
    record::{ConsumerRecord, ProducerRecord},
};

/// How a record left its handlers, if not with an error.
pub(super) enum Done {
    Handled,
    /// The consumer is stopping in the middle of its attempts.
    Abandoned,
}

/// Told to stop: no further record is begun, and no further attempt waited for.
#[derive(Default)]
pub(super) struct Stop {
    flag: AtomicBool,
    notify: Notify,
}

impl Stop {
    pub(super) fn set(&self) {
        self.flag.store(true, Ordering::Relaxed);
        self.notify.notify_one();
    }

    pub(super) fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}

/// One record on its way through its handlers.
pub(super) struct Work<'a> {
    pub(super) kafka: &'a KafkaInstance,
    pub(super) handlers: &'a [ErasedHandler],
    pub(super) policy: &'a ErrorPolicy,
    pub(super) dead_letters: &'a mut Option<KafkaProducer>,
    pub(super) topic: &'a Arc<str>,
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// None when its last handler has it.
    pub(super) record: &'a mut Option<ConsumerRecord>,
    pub(super) stop: &'a Stop,
}

impl Work<'_> {
    pub(super) async fn run(&mut self) -> Result<Done> {
        for (number, handler) in (1..).zip(self.handlers) {
            // The last handler is given the record itself, if nobody needs it afterwards.
            let is_needed = number < self.handlers.len() || self.policy.keeps_records();
            let given = if is_needed { self.record.clone() } else { self.record.take() };
            let Some(given) = given else { break };
            if let Err(failure) = handler.handle(given).await {
                // Boxed: it is rare, and its state would make that of every record larger.
                if let Some(done) = Box::pin(self.after_failure(handler, failure)).await? {
                    return Ok(done);
                }
            }
        }
        Ok(Done::Handled)
    }

    /// Calls a handler again that has failed, or deals with the record for good. None when the handler took it in the end.
    async fn after_failure(&mut self, handler: &ErasedHandler, mut failure: Failure) -> Result<Option<Done>> {
        const PLACE: Place = Place { controller: "dtkafka::Consumer::handler", subject: SUBJECT };
        let mut attempt = 1;
        loop {
            let decision = self.policy.decide(&failure, attempt);
            let error = failure.into_error(self.topic, self.partition, self.offset);
            match (decision, self.record.clone()) {
                (Decision::RetryAfter(pause), Some(record)) => {
                    tracing::warn!(attempt, ?pause, %error, "the handler is called again after a pause");
                    tokio::select! {
                        biased;
                        () = self.stop.notify.notified() => return Ok(Some(Done::Abandoned)),
                        () = tokio::time::sleep(pause) => attempt += 1,
                    }
                    match handler.handle(record).await {
                        Ok(()) => return Ok(None),
                        Err(again) => failure = again,
                    }
                }
                (Decision::Skip, _) => {
                    log(PLACE, &error);
                    return Ok(Some(Done::Handled));
                }
                (Decision::DeadLetter(topic), Some(record)) => {
                    log(PLACE, &error);
                    self.dead_letter(topic, &record, attempt, &error).await?;
                    return Ok(Some(Done::Handled));
                }
                // The policy keeps every record that it tries again or sends away; without it, it comes again.
                (Decision::Stop | Decision::RetryAfter(_) | Decision::DeadLetter(_), _) => return Err(error),
            }
        }
    }

    /// Writes the record to the dead letter topic and waits for the acknowledgment.
    async fn dead_letter(
        &mut self,
        topic: &str,
        record: &ConsumerRecord,
        attempts: u32,
        error: &Error,
    ) -> Result<()> {
        let producer = match &*self.dead_letters {
            Some(producer) => producer,
            None => self.dead_letters.insert(self.kafka.get_producer_with(|p| p.linger(0)).await?),
        };
        let headers = dead_letter_headers(record, attempts, error);
        let mut letter = ProducerRecord::new(topic).headers(&headers);
        if let Some(key) = &record.key {
            letter = letter.key(key);
        }
        if let Some(value) = &record.value {
            letter = letter.value(value);
        }
        producer.send_record(letter).await?.await.map(drop)
    }
}
