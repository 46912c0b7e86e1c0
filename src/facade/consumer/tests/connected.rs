//! What happens to the client underneath while handlers run; on an embedded broker.

use dtkafka_testcontainers::{
    EmbeddedBroker,
    broker::{ApiKey, ResponseError},
};

use super::*;

#[tokio::test]
async fn a_client_that_is_closed_while_handlers_run_ends_the_consumer_when_they_are_done() {
    const PATIENCE: Duration = Duration::from_secs(20);
    let broker = EmbeddedBroker::builder().start().await.unwrap();
    broker.create_topic("orders", 1).unwrap();
    let config = KafkaConfig::new()
        .set_bootstrap_servers(broker.bootstrap_servers())
        .set_group_id("g")
        .set_auto_offset_reset("earliest");
    let kafka = KafkaInstance::new(config).unwrap();
    let producer = kafka.get_producer().await.unwrap();
    producer.send("orders", &1).await.unwrap().await.unwrap();
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
        .set("session.timeout.ms", 6000);
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
