//! A group of many members in one process.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use dtkafka::KafkaInstance;
use tokio::sync::Barrier;

use crate::{
    args::{Args, Failure},
    modes::{STALL, kafka},
    report::{Report, Touch, cpu},
};

/// What the members share.
struct Group {
    /// Partitions by member.
    shares: Mutex<Vec<usize>>,
    barrier: Barrier,
    start: Mutex<Option<(Instant, f64)>>,
    read: AtomicU64,
}

/// Each member joins; when all have their partitions they go back to the start of the log, and the clock starts.
pub(crate) async fn members(args: &Args) -> Result<(), Failure> {
    let kafka = kafka(args)?;
    let group = Arc::new(Group {
        shares: Mutex::new(vec![0; args.consumers]),
        barrier: Barrier::new(args.consumers),
        start: Mutex::new(None),
        read: AtomicU64::new(0),
    });
    let mut tasks = Vec::new();
    for number in 0..args.consumers {
        tasks.push(tokio::spawn(member(args.clone(), kafka.clone(), Arc::clone(&group), number)));
    }
    let mut value_bytes = 0;
    for task in tasks {
        value_bytes += task.await??;
    }
    let (start, cpu_before) = group.start.lock().map_err(|_| "poisoned")?.ok_or("nobody started")?;
    let (records, elapsed) = (group.read.load(Ordering::Relaxed), start.elapsed());
    let consumers = ("consumers", args.consumers.to_string());
    Report { records, value_bytes, elapsed, cpu_before, extra: vec![consumers] }.print(args)
}

async fn member(args: Args, kafka: KafkaInstance, group: Arc<Group>, number: usize) -> Result<u64, Failure> {
    let consumer = kafka.get_consumer([args.topic.as_str()]).await?;
    loop {
        consumer.poll(Duration::from_millis(100)).await?;
        let mut shares = group.shares.lock().map_err(|_| "poisoned")?;
        shares[number] = consumer.assignment().len();
        // With fewer members some partition would have no owner among those here, or a member none.
        if shares.iter().all(|share| *share > 0) {
            break;
        }
    }
    group.barrier.wait().await;
    consumer.seek_to_beginning(&consumer.assignment())?;
    if group.barrier.wait().await.is_leader() {
        let now = (Instant::now(), cpu().map(|(user, system)| user + system)?);
        *group.start.lock().map_err(|_| "poisoned")? = Some(now);
    }
    group.barrier.wait().await;
    let mut touch = Touch::default();
    let mut progress = Instant::now();
    while group.read.load(Ordering::Relaxed) < args.records {
        let records = consumer.poll(Duration::from_millis(100)).await?;
        if progress.elapsed() > STALL {
            return Err("stalled".into());
        }
        if records.is_empty() {
            continue;
        }
        progress = Instant::now();
        for record in records.records() {
            touch.record(record.key().unwrap_or_default(), record.value().unwrap_or_default());
        }
        group.read.fetch_add(records.len() as u64, Ordering::Relaxed);
    }
    group.barrier.wait().await;
    consumer.close(Duration::from_secs(10)).await?;
    Ok(touch.value_bytes)
}
