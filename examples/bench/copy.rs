//! `copy`: an exactly-once loop from one topic to another, with so many records or so long in a transaction.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use dtkafka::{ExactlyOnce, KafkaConfig, KafkaInstance, ProducerRecord};
use tokio::sync::Notify;

use crate::{
    args::{Args, Failure},
    report::{Report, cpu},
};

/// Where only the other bound counts.
const NEVER: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Counts {
    copied: AtomicU64,
    bytes: AtomicU64,
    is_done: Notify,
}

pub(crate) async fn copy(args: &Args) -> Result<(), Failure> {
    let cpu_before = cpu().map(|(user, system)| user + system)?;
    let started = Instant::now();
    let mut config = KafkaConfig::new()
        .set_bootstrap_servers(args.brokers.as_str())
        .set_auto_offset_reset("earliest")
        .set("transactional.id", format!("{}-copy", args.group))
        .set("linger.ms", args.linger_ms)
        .set("batch.size", args.batch_bytes);
    if args.txn_records > 0 {
        config = config.set("max.poll.records", args.txn_records);
    }
    let kafka = KafkaInstance::new(config)?;
    let mut copier = ExactlyOnce::new(&kafka, [args.topic.as_str()], args.group.as_str());
    copier = match args.txn_ms {
        0 => copier.commit_interval(NEVER).commit_records(args.txn_records as usize),
        ms => copier.commit_interval(Duration::from_millis(ms)).commit_records(usize::MAX),
    };
    let counts = Arc::new(Counts::default());
    let (count, to, records) = (Arc::clone(&counts), args.to.clone(), args.records);
    let running = copier.run_until(counts.is_done.notified(), async move |record, output| {
        let value = record.value().unwrap_or_default();
        let copy = ProducerRecord::new(&to).key(record.key().unwrap_or_default()).value(value);
        let _committed_with_the_rest = output.send_record(copy).await?;
        count.bytes.fetch_add(value.len() as u64, Ordering::Relaxed);
        if count.copied.fetch_add(1, Ordering::Relaxed) + 1 == records {
            count.is_done.notify_one();
        }
        Ok(())
    });
    running.await?;
    let elapsed = started.elapsed();
    let (records, value_bytes) =
        (counts.copied.load(Ordering::Relaxed), counts.bytes.load(Ordering::Relaxed));
    Report { records, value_bytes, elapsed, cpu_before, extra: vec![] }.print(args)
}
