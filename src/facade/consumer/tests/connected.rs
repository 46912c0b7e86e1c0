//! What happens to the client underneath while handlers run; on an embedded broker.

use dtkafka_testcontainers::{
    EmbeddedBroker,
    broker::{ApiKey, ResponseError},
};

#[cfg(feature = "signal")]
use futures_util::StreamExt as _;

use super::*;
use crate::facade::message::Batch;

#[tokio::test]
async fn a_client_that_is_closed_while_handlers_run_ends_the_consumer_when_they_are_done() {
    const PATIENCE: Duration = Duration::from_secs(20);
    let (_broker, kafka) = with_records(&["orders"], 1).await;
    for runs in [true, false] {
        let client = Arc::new(std::sync::OnceLock::<std::sync::Weak<KafkaConsumer>>::new());
        let ended = Arc::new(AtomicUsize::new(0));
        let (of_handler, count) = (Arc::clone(&client), Arc::clone(&ended));
        let mut consumer = Consumer::new(&kafka, ["orders"])
            .unwrap()
            .register_handler("orders", async move |_: Message<i64>| {
                let client = of_handler.get().and_then(std::sync::Weak::upgrade);
                client.expect("connected").close(PATIENCE).await.ok();
                tokio::time::sleep(Duration::from_millis(20)).await;
                count.fetch_add(1, Relaxed);
                Ok(())
            })
            .unwrap();
        let engine = consumer.work().await.unwrap();
        client.set(Arc::downgrade(&engine.engine.client)).unwrap();
        drop(engine);
        // Looked at whenever the consumer is: one that turns in circles lets nothing else run.
        let begun = crate::time::now();
        let late = std::future::poll_fn(|_| match begun.elapsed() > PATIENCE {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        });
        let error = match runs {
            true => consumer.run(late).await.unwrap_err(),
            false => loop {
                if let Err(error) = consumer.consume(PATIENCE).await {
                    break error;
                }
            },
        };
        assert_eq!((error.kind(), ended.load(Relaxed)), (ErrorKind::Closed, 1), "{error}");
        // And again at once.
        if !runs {
            assert_eq!(consumer.run(pending::<()>()).await.unwrap_err().kind(), ErrorKind::Closed);
        }
        assert!(begun.elapsed() < PATIENCE);
    }
}

#[tokio::test]
async fn a_cluster_that_is_away_is_told_of_once_however_often_a_run_tries_to_connect() {
    const ATTEMPTS: usize = 20;
    let (log, _listening) = crate::test_log::Log::of_this_thread(tracing::Level::INFO);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(listener.local_addr().unwrap().to_string())
        .set_group_id("g")
        .set("default.api.timeout.ms", 100)
        .set("reconnect.backoff.max.ms", 50);
    let mut consumer = Consumer::new(&KafkaInstance::new(config).unwrap(), ["t"])
        .unwrap()
        .register_handler("t", async |_: Message<i64>| Ok(()))
        .unwrap();
    let some_come = async {
        for _ in 0..ATTEMPTS {
            drop(listener.accept().await.unwrap());
        }
    };
    consumer.run(some_come).await.unwrap();
    let errors = log.text().matches(" ERROR ").count();
    assert_eq!(errors, 1, "{}", log.text());
    // By one client, which tells of changes alone.
    let turn_away = async {
        loop {
            drop(listener.accept().await.unwrap());
        }
    };
    let connect = async {
        assert!(consumer.work().await.err().is_some_and(|error| error.is_retriable()));
        let client = Arc::downgrade(consumer.connecting.as_ref().unwrap());
        assert!(consumer.work().await.is_err());
        assert!(std::ptr::eq(client.as_ptr(), Arc::as_ptr(consumer.connecting.as_ref().unwrap())));
    };
    tokio::select! {
        () = connect => {}
        () = turn_away => unreachable!("it goes on for ever"),
    }
}

#[tokio::test]
async fn a_handler_whose_partition_is_lost_is_dropped_where_it_waits() {
    /// Counts those that were dropped.
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    let broker = EmbeddedBroker::builder().start().await.unwrap();
    broker.create_topic("t", 1).unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("g")
        .set_auto_offset_reset("earliest")
        .set("heartbeat.interval.ms", 50)
        .set("session.timeout.ms", 3000);
    let kafka = KafkaInstance::new(config).unwrap();
    let producer = kafka.get_producer().await.unwrap();
    producer.send("t", &1).await.unwrap().await.unwrap();
    let (begun, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (begins, drops) = (Arc::clone(&begun), Arc::clone(&dropped));
    let mut consumer = Consumer::new(&kafka, ["t"])
        .unwrap()
        .register_handler("t", async move |_: Message<u32>| {
            let _here = Dropped(Arc::clone(&drops));
            begins.fetch_add(1, Relaxed);
            pending::<HandlerResult>().await
        })
        .unwrap();
    let watch = async {
        while begun.load(Relaxed) < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        broker.control().fail(ApiKey::Heartbeat, 1, ResponseError::UnknownMemberId);
        // It comes again once the member has joined again, and not before the first is gone.
        while begun.load(Relaxed) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(dropped.load(Relaxed), 1, "it works on in a partition that may be another member's");
    };
    tokio::select! {
        biased;
        ended = tokio::time::timeout(Duration::from_secs(30), watch) => ended.expect("the record does not come again"),
        ended = consumer.run(pending::<()>()) => panic!("{ended:?}"),
    }
}

#[tokio::test]
async fn what_consume_has_handled_is_committed_also_after_something_else_was_lost() {
    let (broker, kafka) = with_records(&["t"], 6).await;
    let control = broker.control();
    let seen = Arc::new(AtomicUsize::new(0));
    let sees = Arc::clone(&seen);
    // No commit comes of itself, and the coordinator soon forgets the member that it has not expelled.
    let settings = |c: ConsumerConfig| {
        let quick = c.set("heartbeat.interval.ms", 50).set("session.timeout.ms", 1000);
        quick.auto_commit_interval(600_000)
    };
    let mut consumer = Consumer::new_with(&kafka, ["t"], settings)
        .unwrap()
        .register_handler("t", async move |m: Message<i64>| {
            if m.value == 5 && sees.fetch_add(1, Relaxed) == 0 {
                control.fail(ApiKey::Heartbeat, 1, ResponseError::UnknownMemberId);
                pending::<()>().await;
            }
            Ok(())
        })
        .unwrap();
    // The record comes with the loss, and again once the member has joined again.
    let all = async {
        while seen.load(Relaxed) < 2 {
            consumer.consume(Duration::from_secs(1)).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.expect("it does not join again");
    assert_eq!(broker.committed("g", "t", 0), Some(6));
}

async fn with_records(topics: &[&str], count: i64) -> (EmbeddedBroker, KafkaInstance) {
    let broker = EmbeddedBroker::builder().start().await.unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("g")
        .set_auto_offset_reset("earliest");
    let kafka = KafkaInstance::new(config).unwrap();
    let producer = kafka.get_producer().await.unwrap();
    for topic in topics {
        broker.create_topic(topic, 1).unwrap();
        let mut last = None;
        for number in 0..count {
            last = Some(producer.send(topic, &number).await.unwrap());
        }
        if let Some(last) = last {
            last.await.unwrap();
        }
    }
    (broker, kafka)
}

#[tokio::test]
async fn a_partition_whose_lanes_are_full_is_not_resumed_by_the_user() {
    let (broker, kafka) = with_records(&["t"], 3000).await;
    broker.create_topic("turns", 1).unwrap();
    let producer = kafka.get_producer().await.unwrap();
    let go_on = Arc::new(tokio::sync::Notify::new());
    let (wait, turns) = (Arc::clone(&go_on), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&turns);
    let mut consumer = Consumer::new(&kafka, ["t", "turns"])
        .unwrap()
        .register_handler("t", async move |m: Message<i64>| {
            if m.value == 0 {
                wait.notified().await;
            }
            Ok(())
        })
        .unwrap()
        .register_handler("turns", async move |_: Message<i64>| {
            count.fetch_add(1, Relaxed);
            Ok(())
        })
        .unwrap();
    let (handle, shared) = (consumer.handle(), Arc::clone(&consumer.shared));
    let partition = TopicPartition::new("t", 0);
    let paused = || shared.client().map_or_else(Vec::new, |client| client.paused());
    let until = async |is_so: &dyn Fn() -> bool| {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    // What comes afterwards is handled: the engine has seen all that was asked of it.
    let a_turn = async || {
        let before = turns.load(Relaxed);
        producer.send("turns", &0).await.unwrap().await.unwrap();
        until(&|| turns.load(Relaxed) > before).await;
    };
    let watch = async {
        until(&|| !paused().is_empty()).await;
        a_turn().await;
        let full = handle.metrics().in_work;
        for _ in 0..3 {
            handle.pause([partition.clone()]).unwrap();
            assert_eq!(handle.paused(), std::slice::from_ref(&partition));
            a_turn().await;
            handle.resume([partition.clone()]).unwrap();
            a_turn().await;
            assert_eq!(paused(), std::slice::from_ref(&partition), "its lanes are full");
        }
        // But for the record of the last turn.
        assert!(handle.metrics().in_work <= full + 1);
        handle.pause([partition.clone()]).unwrap();
        go_on.notify_one();
        until(&|| handle.metrics().in_work == 0).await;
        a_turn().await;
        assert_eq!(paused(), std::slice::from_ref(&partition), "the user has paused it");
        handle.resume([partition.clone()]).unwrap();
        until(&|| handle.metrics().lag == Some(0) && handle.metrics().in_work == 0).await;
        // The lanes hear of the last record's end after the ledger.
        until(&|| paused().is_empty()).await;
        let stranger = TopicPartition::new("t", 7);
        assert!(handle.pause([stranger.clone()]).is_err() && handle.resume([stranger]).is_err());
        handle.stop();
    };
    let both = async { tokio::join!(watch, consumer.run(pending::<()>())).1.unwrap() };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("it does not come to its end");
    assert_eq!(handle.metrics().handled as usize, 3000 + turns.load(Relaxed));
}

#[tokio::test]
async fn a_partition_whose_lanes_were_full_goes_on_after_a_closure_of_its_policy_has_panicked() {
    let (_broker, kafka) = with_records(&["t"], 3).await;
    let is_first = Arc::new(std::sync::atomic::AtomicBool::new(true));
    // Whatever is taken fills its lanes.
    let mut consumer = Consumer::new_with(&kafka, ["t"], |c| c.set("fetch.buffer.memory", 1))
        .unwrap()
        .register_handler("t", async move |_: Message<i64>| match is_first.swap(false, Relaxed) {
            true => Err("it fails once".into()),
            false => Ok(()),
        })
        .unwrap()
        .error_policy(ErrorPolicy::retry(2, Duration::ZERO).retry_if(|_| panic!("a condition panics")))
        .unwrap();
    let all = async {
        let error = loop {
            if let Err(error) = consumer.consume(Duration::from_secs(1)).await {
                break error;
            }
        };
        assert!(error.to_string().contains("a condition panics"), "{error}");
        let mut handled = 0;
        while handled < 3 {
            handled += consumer.consume(Duration::from_secs(1)).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("the partition stays paused");
}

#[tokio::test]
async fn a_batch_that_gathers_does_not_turn_in_circles_while_another_handler_ends() {
    let (_broker, kafka) = with_records(&["slow", "gathers"], 1).await;
    let begun = Arc::new(tokio::sync::Notify::new());
    let begins = Arc::clone(&begun);
    let mut consumer = Consumer::new(&kafka, ["slow", "gathers"])
        .unwrap()
        .register_handler("slow", async move |_: Message<i64>| {
            begins.notify_one();
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok(())
        })
        .unwrap()
        .register_batch_handler("gathers", 100, Duration::from_millis(100), async |_: Batch<i64>| Ok(()))
        .unwrap();
    // Told to stop while the batch still waits for more.
    let handle = consumer.handle();
    let shutdown = async {
        begun.notified().await;
        while handle.metrics().in_work < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let mut polls = 0;
    let mut running = pin!(consumer.run(shutdown));
    std::future::poll_fn(|context| {
        polls += 1;
        running.as_mut().poll(context)
    })
    .await
    .unwrap();
    assert!(polls < 300, "{polls} turns for nothing");
}

#[tokio::test]
async fn a_pause_between_two_calls_ends_when_it_is_resumed_and_with_its_client() {
    let (_broker, kafka) = with_records(&["t"], 2).await;
    let mut consumer = Consumer::new_with(&kafka, ["t"], |c| c.max_poll_records(1))
        .unwrap()
        .register_handler("t", async |_: Message<i64>| Ok(()))
        .unwrap();
    let (handle, partition) = (consumer.handle(), TopicPartition::new("t", 0));
    let handled = async |consumer: &mut Consumer, count: u64| {
        let all = async {
            while consumer.metrics().handled < count {
                consumer.consume(Duration::from_millis(200)).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), all).await.expect("it stays paused");
    };
    handled(&mut consumer, 1).await;
    handle.pause([partition.clone()]).unwrap();
    handle.resume([partition.clone()]).unwrap();
    handled(&mut consumer, 2).await;
    handle.pause([partition]).unwrap();
    consumer.close().await.unwrap();
    let producer = kafka.get_producer().await.unwrap();
    producer.send("t", &2).await.unwrap().await.unwrap();
    handled(&mut consumer, 3).await;
    assert!(handle.paused().is_empty());
    consumer.close().await.unwrap();
}

#[tokio::test]
async fn what_waits_in_lanes_of_a_life_that_is_over_is_not_handled() {
    let (broker, kafka) = with_records(&["t"], 50).await;
    broker.create_topic("turns", 1).unwrap();
    let (calls, turns) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, count_turns) = (Arc::clone(&calls), Arc::clone(&turns));
    let consumer = Consumer::new(&kafka, ["t", "turns"]).unwrap().ordering(Ordering::Unordered);
    let (handle, shared, steering) = (consumer.handle(), Arc::clone(&consumer.shared), consumer.handle());
    let mut consumer = consumer
        .register_handler("t", async move |m: Message<i64>| {
            if count.fetch_add(1, Relaxed) == 0 {
                let partition = m.topic_partition();
                steering.pause([partition.clone()])?;
                shared.client().expect("connected").seek(&partition, 50)?;
            }
            HandlerResult::Ok(())
        })
        .unwrap()
        .register_handler("turns", async move |_: Message<i64>| {
            count_turns.fetch_add(1, Relaxed);
            Ok(())
        })
        .unwrap();
    let watch = async {
        while calls.load(Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // It has its turn behind all that waits.
        let producer = kafka.get_producer().await.unwrap();
        producer.send("turns", &0).await.unwrap().await.unwrap();
        while turns.load(Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        handle.stop();
    };
    let both = async { tokio::join!(watch, consumer.run(pending::<()>())).1.unwrap() };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("it does not come to its end");
    assert_eq!(calls.load(Relaxed), 1);
}

#[tokio::test]
async fn lanes_full_of_what_waits_for_long_do_not_hold_up_another_life_of_their_partition() {
    let (broker, kafka) = with_records(&["t"], 0).await;
    broker.create_topic("t-retry-1h", 1).unwrap();
    let producer = kafka.get_producer().await.unwrap();
    let due = i64::MAX.to_string();
    let mut last = None;
    for number in 0..1100 {
        last = Some(
            producer.send("t-retry-1h", &number).header("dtkafka-retry-due", due.clone()).await.unwrap(),
        );
    }
    last.unwrap().await.unwrap();
    let handled = Arc::new(tokio::sync::Notify::new());
    let (handles, partition) = (Arc::clone(&handled), TopicPartition::new("t-retry-1h", 0));
    let mut consumer = Consumer::new(&kafka, ["t"])
        .unwrap()
        .register_handler("t", async move |m: Message<i64>| {
            assert_eq!(m.value, 7);
            handles.notify_one();
            HandlerResult::Ok(())
        })
        .unwrap()
        .error_policy(ErrorPolicy::Stop.retry_topics([Duration::from_secs(3600)]).then_skip())
        .unwrap();
    let shared = Arc::clone(&consumer.shared);
    let shutdown = async {
        while shared.client().is_none_or(|client| client.paused().is_empty()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        shared.client().expect("connected").seek(&partition, 1100).unwrap();
        producer.send("t-retry-1h", &7).await.unwrap().await.unwrap();
        handled.notified().await;
    };
    let run = tokio::time::timeout(Duration::from_secs(30), consumer.run(shutdown)).await;
    run.expect("what is over is waited for").unwrap();
}

#[cfg(feature = "signal")]
#[tokio::test]
async fn told_a_second_time_to_end_it_waits_for_no_handler_and_commits_what_is_done() {
    let (broker, kafka) = with_records(&["t"], 3).await;
    let begun = Arc::new(tokio::sync::Notify::new());
    let begins = Arc::clone(&begun);
    let mut consumer = Consumer::new(&kafka, ["t"])
        .unwrap()
        .drain_timeout(Duration::from_secs(3600))
        .register_handler("t", async move |m: Message<i64>| {
            if m.value == 1 {
                begins.notify_one();
                pending::<()>().await;
            }
            Ok(())
        })
        .unwrap();
    let signals = futures_util::stream::iter(0..3).then(|number| {
        let begun = Arc::clone(&begun);
        async move {
            match number {
                0 => begun.notified().await,
                // Of the same stop.
                1 => {}
                _ => tokio::time::sleep(Duration::from_millis(1500)).await,
            }
            Ok(())
        }
    });
    let run = tokio::time::timeout(Duration::from_secs(60), consumer.run_until_told(signals));
    run.await.expect("it waits for its handler").unwrap();
    assert!(consumer.client().is_none(), "it has left");
    assert_eq!(broker.committed("g", "t", 0), Some(1));
}

#[tokio::test]
async fn a_consumer_is_ready_while_it_is_a_member_also_of_a_group_that_has_no_partition_for_it() {
    let (_broker, kafka) = with_records(&["t"], 1).await;
    let member = || Consumer::new_with(&kafka, ["t"], |c| c.set("heartbeat.interval.ms", 50)).unwrap();
    let (mut one, mut two) = (member(), member());
    let (first, second) = (one.handle(), two.handle());
    assert!(!first.is_ready(), "not connected");
    drop(one.work().await.unwrap());
    assert!(!first.is_ready(), "it has not joined");
    let watch = async {
        let has_both = || {
            let partitions = first.assignment().len() + second.assignment().len();
            first.is_ready() && second.is_ready() && partitions == 1
        };
        while !has_both() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        first.stop();
        second.stop();
    };
    let runs = async { tokio::join!(one.run(pending::<()>()), two.run(pending::<()>()), watch) };
    let ended = tokio::time::timeout(Duration::from_secs(30), runs).await.expect("one of them is not ready");
    ended.0.and(ended.1).unwrap();
    assert!(!first.is_ready() && !second.is_ready(), "they have left");
}

/// A signal when `done` is told, and another once the consumer, which leaves then, has asked for a commit; its answer
/// waits for that.
#[cfg(feature = "signal")]
fn until_it_leaves<'a>(
    broker: &'a EmbeddedBroker,
    done: &'a tokio::sync::Notify,
) -> impl futures_util::Stream<Item = Result<()>> + 'a {
    broker.control().hold(ApiKey::OffsetCommit);
    futures_util::stream::iter([true, false]).then(move |is_first| {
        let control = broker.control();
        async move {
            if is_first {
                done.notified().await;
            } else {
                while control.requests(ApiKey::OffsetCommit) == 0 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                control.release(ApiKey::OffsetCommit);
            }
            Ok(())
        }
    })
}

#[cfg(feature = "signal")]
#[tokio::test]
async fn told_to_end_while_it_leaves_after_an_error_it_still_returns_the_error() {
    let (broker, kafka) = with_records(&["t"], 2).await;
    let failed = Arc::new(tokio::sync::Notify::new());
    let fails = Arc::clone(&failed);
    let mut consumer = Consumer::new(&kafka, ["t"])
        .unwrap()
        .register_handler("t", async move |message: Message<i64>| match message.value {
            0 => Ok(()),
            _ => {
                fails.notify_one();
                Err("out of stock".into())
            }
        })
        .unwrap();
    let signals = until_it_leaves(&broker, &failed);
    let run = tokio::time::timeout(Duration::from_secs(60), consumer.run_until_told(signals));
    let error = run.await.expect("it does not come to its end").unwrap_err();
    assert_eq!((error.kind(), error.offset()), (ErrorKind::Handler, Some(1)), "{error}");
    assert_eq!(broker.committed("g", "t", 0), Some(1));
}

#[tokio::test]
async fn a_record_that_waits_by_itself_does_not_keep_the_answer_it_came_in() {
    let (_broker, kafka) = with_records(&["t"], 3).await;
    let client = kafka.get_consumer(["t"]).await.unwrap();
    let records = client.poll(Duration::from_secs(30)).await.unwrap();
    let (_, polled) = records.iter().next().unwrap();
    let answer = polled.iter().next().unwrap().value().unwrap().as_ptr_range();
    let chunk = Chunk::Polled(polled.clone());
    let mut ones = Vec::new();
    crate::facade::dispatch::lanes::Load::each(chunk, &mut |_, one| ones.extend(one.records()));
    let whole: Vec<_> = polled.iter().map(|record| record.to_owned()).collect();
    assert_eq!(ones, whole);
    assert!(!answer.contains(&ones[0].value.as_ref().unwrap().as_ptr()));
}

#[cfg(feature = "signal")]
#[tokio::test]
async fn told_a_second_time_while_it_leaves_it_still_commits_and_leaves() {
    let (broker, kafka) = with_records(&["t"], 1).await;
    let done = Arc::new(tokio::sync::Notify::new());
    let is_done = Arc::clone(&done);
    let mut consumer = Consumer::new(&kafka, ["t"])
        .unwrap()
        .register_handler("t", async move |_: Message<i64>| {
            is_done.notify_one();
            Ok(())
        })
        .unwrap();
    let signals = until_it_leaves(&broker, &done);
    let run = tokio::time::timeout(Duration::from_secs(60), consumer.run_until_told(signals));
    run.await.expect("it does not come to its end").unwrap();
    assert_eq!(broker.committed("g", "t", 0), Some(1));
    assert!(broker.control().requests(ApiKey::LeaveGroup) > 0, "the group waits for its session to end");
}
