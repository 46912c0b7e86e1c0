//! Members of the group, each on a thread and a runtime of its own: they close, are dropped, die, freeze and block. Each
//! tells the judge what it is given and what it is handed out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use dtkafka::{
    ConsumerRecords, KafkaConfig, KafkaConsumer, KafkaInstance, RebalanceListener, TopicPartition,
};
use tokio::runtime::{Builder, Runtime};

use crate::{clients::World, faults::Dice};

const MEMBERS: usize = 4;
/// `max.poll.interval.ms` of the members.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_secs(12);
/// Beyond the poll interval: the group goes on without it.
const FREEZE: Duration = Duration::from_secs(16);
/// Beyond the session time-out, and within the poll interval: the group must not notice.
const BLOCK: Duration = Duration::from_secs(8);

/// What a member is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Order {
    GoOn,
    /// It closes: commits and leaves.
    Close,
    /// It is dropped. A static member says no word then, as one that is killed.
    Drop,
    /// It does not poll for longer than it may, with records in its hands.
    Freeze,
    /// It does not yield its thread, with records in its hands.
    Block,
}

const ORDERS: [Order; 4] = [Order::Close, Order::Drop, Order::Freeze, Order::Block];

/// What happened to members.
#[derive(Debug, Default)]
pub(crate) struct Lives {
    begun: u32,
    closed: usize,
    dropped: usize,
    frozen: usize,
    blocked: usize,
}

/// Members of which one after the other ends in some way and is replaced, or is away for a while; the last ones close.
pub(crate) fn churn(
    world: &Arc<World>,
    configs: &[KafkaConfig; 2],
    mut dice: Dice,
    stop: &AtomicBool,
) -> Lives {
    let mut lives = Lives::default();
    let start = |lives: &mut Lives| {
        lives.begun += 1;
        let number = lives.begun;
        let config = configs[number as usize % 2].clone();
        // The group waits for the end of its session.
        let config = match number % 3 {
            0 => config.set("group.instance.id", format!("member-{number}")),
            _ => config,
        };
        Member::start(Arc::clone(world), config, number)
    };
    let mut alive: Vec<Member> = (0..MEMBERS).map(|_| start(&mut lives)).collect();
    while !stop.load(Ordering::Relaxed) {
        let until = Instant::now() + Duration::from_millis(3000 + dice.below(5000));
        while Instant::now() < until && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
        if !world.sending.load(Ordering::Relaxed) {
            continue;
        }
        let index = usize::try_from(dice.below(MEMBERS as u64)).unwrap();
        let order = ORDERS[usize::try_from(dice.below(ORDERS.len() as u64)).unwrap()];
        match order {
            Order::Freeze => lives.frozen += 1,
            Order::Block => lives.blocked += 1,
            Order::Close => lives.closed += 1,
            Order::Drop | Order::GoOn => lives.dropped += 1,
        }
        match order {
            Order::Freeze | Order::Block => alive[index].order(order),
            _ => {
                alive.swap_remove(index).end(order);
                alive.push(start(&mut lives));
            }
        }
    }
    for member in alive {
        member.end(Order::Close);
    }
    lives
}

struct Member {
    order: Arc<AtomicU8>,
    thread: JoinHandle<()>,
}

impl Member {
    fn start(world: Arc<World>, config: KafkaConfig, number: u32) -> Self {
        let order = Arc::new(AtomicU8::new(Order::GoOn as u8));
        let asked = Arc::clone(&order);
        let thread = std::thread::spawn(move || {
            // Of every second one a block stops all that its runtime has.
            let runtime = match number % 2 {
                0 => Runtime::new(),
                _ => Builder::new_current_thread().enable_all().build(),
            };
            let runtime = runtime.unwrap();
            let commits_itself = number % 4 < 2;
            runtime.block_on(async {
                let kafka = KafkaInstance::new(config).unwrap();
                let topics: Vec<&str> = world.topics().collect();
                let consumer =
                    kafka.get_consumer_with(topics, |c| c.enable_auto_commit(commits_itself)).await.unwrap();
                consumer.set_rebalance_listener(Hears { world: Arc::clone(&world), number });
                Life { world: &world, consumer, number, commits_itself }.live(&asked).await;
                world.owners().away(world.now(), number);
                world.judge().ended(number);
            });
            runtime.shutdown_background();
        });
        Self { order, thread }
    }

    fn order(&self, order: Order) {
        self.order.store(order as u8, Ordering::Relaxed);
    }

    /// Asks it to end, and waits for that, blocking.
    fn end(self, how: Order) {
        self.order(how);
        self.thread.join().unwrap();
    }
}

/// Tells who has what.
struct Hears {
    world: Arc<World>,
    number: u32,
}

impl Hears {
    fn given_up(&self, partitions: &[TopicPartition], revoked: bool) {
        let now = self.world.now();
        for partition in partitions {
            let place = self.world.place(&partition.topic, partition.partition);
            self.world.judge().given_up(self.number, place);
            self.world.owners().given_up(now, self.number, place, revoked);
        }
    }
}

impl RebalanceListener for Hears {
    async fn assigned(&self, _consumer: &KafkaConsumer, partitions: &[TopicPartition]) {
        let now = self.world.now();
        for partition in partitions {
            let place = self.world.place(&partition.topic, partition.partition);
            self.world.judge().assigned(self.number, place);
            self.world.owners().assigned(now, self.number, place);
        }
    }

    async fn revoked(&self, _consumer: &KafkaConsumer, partitions: &[TopicPartition]) {
        self.given_up(partitions, true);
    }

    async fn lost(&self, _consumer: &KafkaConsumer, partitions: &[TopicPartition]) {
        if !partitions.is_empty() && self.world.blocks().lost(self.world.now(), self.number) {
            let text = format!("member {} blocked its threads, and lost {partitions:?}", self.number);
            self.world.judge().violations.push(text);
        }
        self.given_up(partitions, false);
    }
}

struct Life<'a> {
    world: &'a World,
    consumer: KafkaConsumer,
    number: u32,
    commits_itself: bool,
}

impl Life<'_> {
    async fn live(self, order: &AtomicU8) {
        let is = |asked: Order| order.load(Ordering::Relaxed) == asked as u8;
        loop {
            if is(Order::Close) {
                let closed = self.consumer.close(Duration::from_secs(20)).await;
                return closed.unwrap_or_else(|error| self.log(&error));
            }
            if is(Order::Drop) {
                return;
            }
            match self.consumer.poll(Duration::from_millis(200)).await {
                Ok(records) => {
                    self.world.blocks().polled(self.number);
                    self.handle(&records);
                }
                Err(error) => {
                    self.log(&error);
                    assert!(error.is_retriable(), "member {}: {error}", self.number);
                }
            }
            if is(Order::Freeze) {
                self.freeze().await;
                let _ended_meanwhile = order.compare_exchange(
                    Order::Freeze as u8,
                    Order::GoOn as u8,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
            } else if is(Order::Block) {
                self.world.blocks().begins(self.world.now(), self.number);
                std::thread::sleep(BLOCK);
                let _ended_meanwhile = order.compare_exchange(
                    Order::Block as u8,
                    Order::GoOn as u8,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
            }
            if !self.commits_itself {
                self.commit().await;
            }
        }
    }

    fn handle(&self, records: &ConsumerRecords) {
        let mut judge = self.world.judge();
        for record in records.records() {
            let place = self.world.place(record.topic(), record.partition());
            judge.handled(self.number, place, record.offset());
        }
    }

    async fn commit(&self) {
        let positions = self.world.judge().positions(self.number);
        match self.consumer.commit().await {
            Ok(()) => self.world.judge().commit_told(&positions),
            Err(error) => self.log(&error),
        }
    }

    /// Until the poll interval it has its partitions; then they are others'.
    async fn freeze(&self) {
        let began = Instant::now();
        let mut is_there = true;
        while began.elapsed() < FREEZE && self.world.sending.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if is_there && began.elapsed() >= POLL_INTERVAL {
                is_there = false;
                self.world.owners().away(self.world.now(), self.number);
            }
        }
    }

    fn log(&self, error: &dtkafka::Error) {
        eprintln!("chaos: member {}: {error}", self.number);
    }
}
