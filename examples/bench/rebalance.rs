//! What a rebalance of many members over many partitions takes: all join at once, and then one more comes and goes again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use crate::{
    args::{Args, Failure},
    modes::{STALL, kafka},
    report::cpu,
};

/// The newcomer comes and goes so often.
const ROUNDS: usize = 5;
/// What is settled stays so for this long.
const STAYS: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(10);

/// A member that polls on a task.
struct Member {
    /// How many partitions it has.
    share: Arc<AtomicUsize>,
    end: Arc<AtomicBool>,
    task: JoinHandle<Result<(), Failure>>,
}

impl Member {
    fn start(args: &Args) -> Self {
        let (share, end) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn(member(args.clone(), Arc::clone(&share), Arc::clone(&end)));
        Self { share, end, task }
    }

    async fn close(self) -> Result<(), Failure> {
        self.end.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

async fn member(args: Args, share: Arc<AtomicUsize>, end: Arc<AtomicBool>) -> Result<(), Failure> {
    let kafka = kafka(&args)?;
    let consumer = kafka.get_consumer_with([args.topic.as_str()], |config| match args.protocol.as_str() {
        "consumer" => config.set("group.protocol", "consumer"),
        "cooperative" => config.set("partition.assignment.strategy", "cooperative-sticky"),
        _ => config,
    });
    let consumer = consumer.await?;
    while !end.load(Ordering::Relaxed) {
        consumer.poll(Duration::from_millis(100)).await?;
        share.store(consumer.assignment().len(), Ordering::Relaxed);
    }
    Ok(consumer.close(Duration::from_secs(10)).await?)
}

fn total_cpu() -> Result<f64, Failure> {
    cpu().map(|(user, system)| user + system)
}

/// Seconds, and CPU seconds, until every partition has an owner and all have the same number of them, or one more.
async fn settled(
    members: &[Member],
    partitions: usize,
    since: (Instant, f64),
) -> Result<(f64, f64), Failure> {
    let mut reached: Option<(Instant, f64)> = None;
    while since.0.elapsed() < STALL {
        let shares = || members.iter().map(|member| member.share.load(Ordering::Relaxed));
        let (least, most) = (shares().min().unwrap_or(0), shares().max().unwrap_or(0));
        if shares().sum::<usize>() != partitions || most > least + 1 {
            reached = None;
        } else if reached.is_none() {
            reached = Some((Instant::now(), total_cpu()?));
        }
        if let Some((at, used)) = reached.filter(|(at, _)| at.elapsed() >= STAYS) {
            return Ok(((at - since.0).as_secs_f64(), used - since.1));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let shares: Vec<_> = members.iter().map(|member| member.share.load(Ordering::Relaxed)).collect();
    Err(format!("the group does not settle: {shares:?}").into())
}

pub(crate) async fn rebalance(args: &Args) -> Result<(), Failure> {
    let partitions = kafka(args)?.admin().await?.describe_topic(&args.topic).await?.partitions.len();
    let now = || Ok::<_, Failure>((Instant::now(), total_cpu()?));
    let began = now()?;
    let mut members: Vec<Member> = (0..args.consumers).map(|_| Member::start(args)).collect();
    let joined = settled(&members, partitions, began).await?;
    let idle = total_cpu()?;
    tokio::time::sleep(IDLE).await;
    let idle = (total_cpu()? - idle) / IDLE.as_secs_f64();
    let (mut comes, mut goes) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = now()?;
        members.push(Member::start(args));
        comes.push(settled(&members, partitions, began).await?);
        let began = now()?;
        if let Some(newcomer) = members.pop() {
            newcomer.close().await?;
        }
        goes.push(settled(&members, partitions, began).await?);
    }
    for member in &members {
        member.end.store(true, Ordering::Relaxed);
    }
    for member in members {
        member.close().await?;
    }
    let median = |mut of: Vec<(f64, f64)>| {
        of.sort_by(|one, other| one.0.total_cmp(&other.0));
        let secs = of.get(of.len() / 2).map_or(0.0, |one| one.0);
        of.sort_by(|one, other| one.1.total_cmp(&other.1));
        (secs, of.get(of.len() / 2).map_or(0.0, |one| one.1))
    };
    let (comes, goes) = (median(comes), median(goes));
    println!(
        "{}",
        serde_json::json!({
            "peer": "dtkafka", "version": env!("CARGO_PKG_VERSION"), "mode": "rebalance", "protocol": args.protocol,
            "members": args.consumers, "partitions": partitions,
            "join_s": joined.0, "join_cpu_s": joined.1, "come_s": comes.0, "come_cpu_s": comes.1,
            "go_s": goes.0, "go_cpu_s": goes.1, "idle_cpu_per_s": idle,
        })
    );
    Ok(())
}
