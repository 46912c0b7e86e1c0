//! For `benches/`: takes records of one partition through their lane and handlers, without a connection.

use std::sync::Arc;

use super::{
    Consumer,
    lane::{self, Ledger, RunContext},
    load::Chunk,
};
use crate::{
    consumer::acknowledge::Life,
    error::{Error, ErrorKind, Result},
    facade::{
        CancellationToken,
        dispatch::lanes::{Bounds, Lanes},
        outbox::Outbox,
    },
    mutex::Mutex,
    record::{ConsumerRecord, TopicPartition},
    time::{self, Environment},
};

/// A ledger that keeps nothing.
struct Nothing;

impl Ledger for Nothing {
    fn done(&self, _: &TopicPartition, _: Life, _: &[i64]) -> bool {
        true
    }

    fn hand_back(&self, _: &TopicPartition, _: Life, _: &[i64]) {}

    fn is_live(&self, _: &TopicPartition, _: Life) -> bool {
        true
    }

    fn expect_topic(&self, _: &Arc<str>) {}
}

impl Consumer {
    /// Takes records of one partition through their lane; returns how many were handled.
    pub(crate) async fn bench_dispatch(&self, records: Vec<ConsumerRecord>) -> Result<usize> {
        let Some(first) = records.first() else { return Ok(0) };
        let partition = TopicPartition::new(Arc::clone(&first.topic), first.partition);
        let route = self.routes.of(&self.topics, &partition.topic);
        let bounds = Bounds { runs: 1, records: usize::MAX, bytes: usize::MAX, span: u64::MAX };
        let mut lanes = Lanes::new(self.ordering, bounds);
        let life = Life::of_tests();
        for record in records {
            let pushed = lanes.push(time::now(), &partition, life, Chunk::One(Box::new(record), None), None);
            pushed
                .map_err(|_| Error::new(ErrorKind::InvalidArgument, "the life of the partition is over"))?;
        }
        let context = Arc::new(RunContext {
            ledger: Arc::new(Nothing),
            outbox: Outbox::new(self.kafka.clone()),
            counters: Arc::clone(&self.shared.counters),
            persists: Default::default(),
            rng: Mutex::new(Environment::default().rng()),
            environment: Environment::default(),
            group: Arc::clone(&self.group),
            is_alone: lane::is_alone(),
        });
        let mut handled = 0;
        while let Some(run) = lanes.poll_run(time::now()) {
            let token = CancellationToken::new();
            let ended = lane::run(Arc::clone(&context), Arc::clone(&route), run, token).await;
            lanes.handle_end(ended.lane);
            handled += ended.handled;
            ended.outcome?;
        }
        Ok(handled)
    }
}
