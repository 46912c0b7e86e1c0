//! What runs of lanes do with time: whose it is, and which clock says that a pause is over.

use super::*;
use crate::facade::message::Batch;

#[tokio::test(start_paused = true)]
async fn a_call_that_misses_its_deadline_counts_for_all_it_took_and_nobody_shares_it() {
    const LIMIT: Duration = Duration::from_secs(30);
    let consumer = consumer()
        .register_handler("orders", async |order: Message<i64>| {
            if order.value == 1 {
                pending::<()>().await;
            }
            Ok(())
        })
        .unwrap()
        .error_policy(ErrorPolicy::Skip.deadline(LIMIT))
        .unwrap();
    run(&consumer, &Arc::new(Book::default()), (0..5).map(record).collect()).await;
    let latency = consumer.metrics().handler_latency;
    let slow = latency.classes().filter(|(bound, _)| bound.is_none_or(|bound| bound >= LIMIT));
    assert_eq!(slow.map(|(_, count)| count).sum::<u64>(), 1);
    assert_eq!((latency.count(), latency.mean()), (5, LIMIT / 5));
}

#[tokio::test(start_paused = true)]
async fn the_time_of_others_is_not_that_of_handlers() {
    let consumer = consumer().register_handler("orders", async |_: Message<i64>| Ok(())).unwrap();
    let others = async {
        loop {
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    };
    let book = Arc::new(Book::default());
    tokio::select! {
        biased;
        ended = run(&consumer, &book, (0..100).map(record).collect()) => assert_eq!(ended.handled, 100),
        () = others => unreachable!("they never end"),
    }
    let latency = consumer.metrics().handler_latency;
    assert_eq!((latency.count(), latency.mean()), (100, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_its_lane_has_waited_for_does_not_wait_again_when_the_wall_clock_is_put_back() {
    let policy = || ErrorPolicy::Stop.retry_topics([Duration::from_secs(60)]);
    let each = consumer().register_handler("orders", async |_: Message<i64>| Ok(())).unwrap();
    let batch = consumer()
        .register_batch_handler("orders", 10, Duration::ZERO, async |_: Batch<i64>| Ok(()))
        .unwrap();
    for consumer in [each, batch] {
        let consumer = consumer.error_policy(policy()).unwrap();
        let due = Environment::default().wall_clock_ms() + 60_000;
        let waiting = || Box::new(record(0).with_header("dtkafka-retry-due", due.to_string()));
        for (load, waits) in [
            (Chunk::One(waiting(), Some(time::now())), false),
            // Taken before the topic was a retry topic.
            (Chunk::One(waiting(), None), true),
        ] {
            let begun = time::now();
            let book = Arc::new(Book::default());
            let token = CancellationToken::new();
            let ended = run_loads(&consumer, "orders-retry-1m", &book, vec![load], token).await;
            assert_eq!((ended.handled, time::now() - begun > Duration::from_secs(50)), (1, waits));
        }
    }
}

#[tokio::test]
async fn on_one_thread_records_with_a_deadline_share_a_turn() {
    let turns = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&turns);
    let consumer = consumer()
        .register_handler("orders", async |_: Message<i64>| Ok(()))
        .unwrap()
        .error_policy(ErrorPolicy::Stop.deadline(Duration::from_secs(3600)))
        .unwrap();
    let others = async {
        loop {
            count.fetch_add(1, Relaxed);
            tokio::task::yield_now().await;
        }
    };
    // Paused: the turn is never over by the clock.
    tokio::time::pause();
    let book = Arc::new(Book::default());
    tokio::select! {
        biased;
        ended = run(&consumer, &book, (0..96).map(record).collect()) => assert_eq!(ended.handled, 96),
        () = others => unreachable!("they never end"),
    }
    assert!(turns.load(Relaxed) <= 4, "{turns:?}");
}
