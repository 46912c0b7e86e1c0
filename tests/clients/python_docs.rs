//! Every code example of the two documents that the facade follows, in its Rust form: `kafka-sub-package.md` first, then
//! `kafka-instance.md`, each in its own order.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use dtkafka::{
    Consumer, ConsumerRecord, ErrorKind, HandlerResult, KafkaConfig, KafkaInstance, Message, Producer,
    Result, SecurityProtocol,
};
use dtkafka_testcontainers::Listener;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    backend::{PASSWORD, USER, unique},
    on_every_backend,
};

/// How long a poll may take until the first records come, which includes joining the group.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Order {
    order_id: u32,
    amount: f64,
}

/// Sends JSON values and waits for each.
async fn produce(kafka: &KafkaInstance, topic: &str, values: impl IntoIterator<Item = Value>) {
    kafka
        .producer_context(async |producer| {
            for value in values {
                producer.send(topic, &value).await?.await?;
            }
            Ok(())
        })
        .await
        .unwrap();
}

// ---- kafka-sub-package.md ----

/// Configuration: the fluent builder.
#[test]
fn a_config_is_built_from_a_url_and_setters() {
    let config = KafkaConfig::new()
        .set_kafka_url("kafka://user:pass@host1:9092,host2:9092")
        .set_auto_offset_reset("earliest")
        .set_enable_auto_commit(false);
    assert_eq!(config.get("auto_offset_reset").as_deref(), Some("earliest"));
    assert_eq!(config.get("enable_auto_commit").as_deref(), Some("false"));
    assert_eq!(config.get("group_id"), None);
    assert_eq!(config.get("group_id").as_deref().unwrap_or("default"), "default");
    assert!(!format!("{config:?}").contains("pass@"), "{config:?}");
    // Connection Management: an instance connects nothing yet, so that these hosts need not exist.
    KafkaInstance::new(config).unwrap();
}

/// Every setter of the table.
#[test]
fn every_setter_of_the_table_is_there() {
    let config = KafkaConfig::new()
        .set_bootstrap_servers(["h1:9092", "h2:9092"])
        .set_security_protocol("SASL_PLAINTEXT")
        .set_sasl_mechanism("SCRAM-SHA-256")
        .set_sasl_plain_username("user")
        .set_sasl_plain_password("pwd")
        .set_client_id("client")
        .set_group_id("group")
        .set_auto_offset_reset("latest")
        .set_enable_auto_commit(true);
    for (key, value) in [
        ("bootstrap_servers", "h1:9092,h2:9092"),
        ("security_protocol", "SASL_PLAINTEXT"),
        ("sasl_mechanism", "SCRAM-SHA-256"),
        ("sasl_plain_username", "user"),
        ("sasl_plain_password", "[hidden]"),
        ("client_id", "client"),
        ("group_id", "group"),
        ("auto_offset_reset", "latest"),
        ("enable_auto_commit", "true"),
    ] {
        assert_eq!(config.get(key).as_deref(), Some(value), "{key}");
    }
    KafkaInstance::new(config).unwrap();
}

on_every_backend! {
    /// Context Managers: produce in one, consume in the other.
    async fn contexts_produce_and_consume(backend) {
        let kafka_instance = backend.instance();
        let events = backend.topic("events", 1).await;

        kafka_instance
            .producer_context(async |producer| {
                let delivery = producer.send(&events, &json!({"type": "user.signup", "id": 42})).await?;
                delivery.await?;
                Ok(())
            })
            .await
            .unwrap();

        let msg = kafka_instance
            .consumer_context_with(
                [&events],
                |c| c.auto_offset_reset("earliest").enable_auto_commit(false),
                async |consumer| {
                    let mut stream = consumer.stream();
                    // `for msg in consumer`, of which there is one.
                    stream.next().await.expect("a stream ends with its consumer")
                },
            )
            .await
            .unwrap();
        assert_eq!(*msg.topic, *events);
        assert_eq!(msg.json::<Value>().unwrap(), json!({"type": "user.signup", "id": 42}));
    }

    /// Producer: send a message and wait for its acknowledgment.
    async fn a_producer_sends_and_waits_for_the_acknowledgment(backend) {
        let kafka_instance = backend.instance();
        let events = backend.topic("events", 3).await;
        let producer = Producer::new(&kafka_instance).await.unwrap();

        let metadata = producer
            .send(&events, &json!({"action": "order.created", "order_id": 1001}))
            .key(b"order-1001")
            .timeout(Duration::from_secs(10))
            .await
            .unwrap();
        assert_eq!((&*metadata.topic, metadata.offset), (events.as_str(), 0));
        // The same key goes to the same partition, behind the first record.
        let second = producer.send(&events, &json!({})).key(b"order-1001").await.unwrap();
        assert_eq!((second.partition, second.offset), (metadata.partition, 1));

        let error = producer.send("", &json!({})).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("topic"), "{error}");
        producer.close().await.unwrap();
    }

    /// Consumer: a handler, one poll, and a commit by hand.
    async fn a_consumer_hands_messages_to_handlers_and_commits_by_hand(backend) {
        let kafka_instance = backend.instance();
        let events = backend.topic("events", 1).await;
        let producer = Producer::new(&kafka_instance).await.unwrap();
        producer.send(&events, &json!({"action": "order.created"})).key(b"k").await.unwrap();

        let received = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&received);
        let handle_events = async move |m: Message<Value>| -> HandlerResult {
            let line = format!("Received {} on {} {} {} {:?}", m.value, m.topic, m.partition, m.offset, m.key);
            log.lock().unwrap().push(line);
            Ok(())
        };
        let settings = |c: dtkafka::ConsumerConfig| c.auto_offset_reset("earliest").enable_auto_commit(false);
        let mut consumer = Consumer::new_with(&kafka_instance, [&events], settings)
            .unwrap()
            .register_handler(&events, handle_events)
            .unwrap();

        // Poll once (or loop for continuous).
        while consumer.consume(Duration::from_millis(1000)).await.unwrap() == 0 {}
        let expected = format!(r#"Received {{"action":"order.created"}} on {events} 0 0 Some(b"k")"#);
        assert_eq!(*received.lock().unwrap(), [expected]);

        let group = kafka_instance.config().get("group_id").unwrap();
        let admin = backend.admin().await;
        assert!(admin.group_offsets(&group).await.unwrap().is_empty(), "nothing is committed without being told");
        consumer.commit().await.unwrap();
        let offsets = admin.group_offsets(&group).await.unwrap();
        assert_eq!(offsets.values().map(|o| o.offset).collect::<Vec<_>>(), [1]);
        consumer.close().await.unwrap();
    }
}

// ---- kafka-instance.md ----

/// Constructor: `ValueError` without a broker.
#[test]
fn an_instance_needs_a_url_or_bootstrap_servers() {
    KafkaInstance::new(KafkaConfig::new().set_bootstrap_servers(["localhost:9092"])).unwrap();
    let error = KafkaInstance::new(KafkaConfig::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("bootstrap.servers"), "{error}");
}

on_every_backend! {
    /// `get_producer`, plain and with settings of its own.
    async fn producers_are_made_plain_and_with_settings(backend) {
        let kafka_instance = backend.instance();
        let topic = backend.topic("my-topic", 1).await;
        let producer = kafka_instance.get_producer().await.unwrap();
        producer.send(&topic, &json!(1)).await.unwrap().await.unwrap();
        producer.close().await.unwrap();

        let producer = kafka_instance
            .get_producer_with(|p| p.acks("all").retries(3).compression("gzip"))
            .await
            .unwrap();
        producer.send(&topic, &json!(2)).await.unwrap().await.unwrap();
        producer.close().await.unwrap();
    }

    /// JSON Serialization: the value's bytes.
    async fn values_are_encoded_as_json(backend) {
        let kafka_instance = backend.instance();
        let topic = backend.topic("my-topic", 1).await;
        produce(&kafka_instance, &topic, [json!({"key": "value", "number": 42})]).await;
        let consumer = kafka_instance.get_consumer([&topic]).await.unwrap();
        let record = consumer.stream().next().await.unwrap().unwrap();
        assert_eq!(record.value.as_deref(), Some(&br#"{"key":"value","number":42}"#[..]));
        consumer.close(PATIENCE).await.unwrap();
    }

    /// `get_consumer`: one topic, several topics, settings of its own.
    async fn consumers_are_made_for_one_topic_for_several_and_with_settings(backend) {
        let config = backend.config().set_group_id(unique("my-consumer-group")).set_auto_offset_reset("earliest");
        let kafka_instance = KafkaInstance::new(config).unwrap();
        let mut topics = Vec::new();
        for name in ["orders", "payments", "notifications"] {
            let topic = backend.topic(name, 1).await;
            produce(&kafka_instance, &topic, (0..150).map(|n| json!({"n": n}))).await;
            topics.push(topic);
        }

        let consumer = kafka_instance.get_consumer([&topics[0]]).await.unwrap();
        assert_eq!(*consumer.stream().next().await.unwrap().unwrap().topic, *topics[0]);
        consumer.close(PATIENCE).await.unwrap();

        let consumer = kafka_instance.get_consumer_with(&topics, |c| c.group_id(unique("all"))).await.unwrap();
        let seen: Vec<_> = consumer.stream().take(450).map(|record| record.unwrap().topic.to_string()).collect().await;
        for topic in &topics {
            assert_eq!(seen.iter().filter(|seen| *seen == topic).count(), 150, "{topic}");
        }
        consumer.close(PATIENCE).await.unwrap();

        let settings = |c: dtkafka::ConsumerConfig| {
            c.group_id(unique("small")).max_poll_records(100).session_timeout(30000)
        };
        let consumer = kafka_instance.get_consumer_with([&topics[0]], settings).await.unwrap();
        let first = consumer.poll(PATIENCE).await.unwrap();
        assert!((1..=100).contains(&first.len()), "{}", first.len());
        consumer.close(PATIENCE).await.unwrap();
    }

    /// `producer_context`: flushed and closed at the end, with settings of its own.
    async fn a_producer_context_flushes_and_closes(backend) {
        let kafka_instance = backend.instance();
        let orders = backend.topic("orders", 1).await;
        let (kept, deliveries) = kafka_instance
            // A linger of ten seconds: what is there afterwards was flushed.
            .producer_context_with(|p| p.linger(Duration::from_secs(10)), async |producer| {
                let first = producer.send(&orders, &Order { order_id: 123, amount: 99.99 }).await?;
                let second = producer.send(&orders, &Order { order_id: 124, amount: 149.99 }).await?;
                Ok((producer, [first, second]))
            })
            .await
            .unwrap();
        for (delivery, offset) in deliveries.into_iter().zip(0..) {
            assert_eq!(delivery.await.unwrap().offset, offset);
        }
        let error = kept.send(&orders, &json!(3)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed, "the producer is closed: {error}");

        let sent = kafka_instance.producer_context_with(|p| p.acks("all").retries(5), async |producer| {
            producer.send(&orders, &json!({"important": "data"})).await?.await
        });
        assert_eq!(sent.await.unwrap().offset, 2);
    }

    /// `consumer_context`: iterate and break; or poll a batch.
    async fn a_consumer_context_iterates_and_polls(backend) {
        let config = backend.config().set_group_id(unique("my-group"));
        let kafka_instance = KafkaInstance::new(config).unwrap();
        let orders = backend.topic("orders", 1).await;
        produce(&kafka_instance, &orders, (0..60).map(|n| json!({"order_id": n}))).await;

        let received = kafka_instance.consumer_context([&orders], async |consumer| {
            let mut received = 0;
            let mut stream = consumer.stream();
            while let Some(message) = stream.next().await {
                assert_eq!(message?.json::<Value>()?, json!({"order_id": received}));
                received += 1;
                if received == 10 {
                    break;
                }
            }
            Ok(received)
        });
        assert_eq!(received.await.unwrap(), 10);
        // The context committed what it was handed out, and left: the next one goes on behind it.
        let batch = kafka_instance.consumer_context_with([&orders], |c| c.max_poll_records(50), async |consumer| {
            let mut processed = Vec::new();
            let messages = consumer.poll(PATIENCE).await?;
            for (topic_partition, records) in &messages {
                assert_eq!(*topic_partition.topic, *orders);
                for record in records {
                    processed.push(record.json::<Value>()?["order_id"].as_u64().unwrap());
                }
            }
            Ok(processed)
        });
        let batch = batch.await.unwrap();
        assert!(batch.len() <= 50 && batch[0] == 10, "{batch:?}");
    }

    /// Basic Producer Setup: a delivery waited for, then flush and close.
    async fn basic_producer(backend) {
        let kafka_instance = KafkaInstance::new(backend.config()).unwrap();
        let topic = backend.topic("test-topic", 1).await;
        let producer = kafka_instance.get_producer().await.unwrap();
        let future = producer.send(&topic, &json!({"message": "Hello Kafka"})).await.unwrap();
        let result = tokio::time::timeout(Duration::from_secs(10), future).await.unwrap().unwrap();
        println!("Message sent successfully: {result:?}");
        producer.flush().await.unwrap();
        producer.close().await.unwrap();
        assert_eq!((&*result.topic, result.partition, result.offset), (topic.as_str(), 0, 0));
    }

    /// Basic Consumer Setup: iterate until an offset, then close.
    async fn basic_consumer(backend) {
        let config = backend.config().set_group_id(unique("test-consumer-group"));
        let kafka_instance = KafkaInstance::new(config).unwrap();
        let topic = backend.topic("test-topic", 1).await;
        produce(&kafka_instance, &topic, (0..=101).map(|n| json!(n))).await;
        let consumer = kafka_instance.get_consumer([&topic]).await.unwrap();
        let mut stream = consumer.stream();
        let mut received = Vec::new();
        while let Some(message) = stream.next().await {
            let message = message.unwrap();
            received.push(message.json::<i64>().unwrap());
            if message.offset > 100 {
                break;
            }
        }
        drop(stream);
        consumer.close(PATIENCE).await.unwrap();
        assert!(received.into_iter().eq(0..=101));
    }

    /// Using Context Managers: a hundred events, then one poll after another.
    async fn a_hundred_events_through_both_contexts(backend) {
        let config = backend.config().set_group_id(unique("batch-processor"));
        let kafka_instance = KafkaInstance::new(config).unwrap();
        let events = backend.topic("events", 4).await;
        kafka_instance
            .producer_context(async |producer| {
                for i in 0..100 {
                    let _flushed_on_exit = producer.send(&events, &json!({"event_id": i, "type": "click"})).await?;
                }
                Ok(())
            })
            .await
            .unwrap();
        let counted = kafka_instance.consumer_context([&events], async |consumer| {
            let mut counted = 0;
            while counted < 100 {
                let messages = consumer.poll(PATIENCE).await?;
                for (tp, records) in &messages {
                    println!("Received {} messages from {tp}", records.len());
                    counted += records.len();
                }
            }
            Ok(counted)
        });
        assert_eq!(counted.await.unwrap(), 100);
    }

    /// Secure Connection with SASL/SSL.
    async fn a_secure_connection(backend) {
        if !backend.has_scram() {
            eprintln!("SKIPPED: this version of Kafka cannot be started with SCRAM users");
            return;
        }
        let config = KafkaConfig::new()
            .set_bootstrap_servers([backend.listener(Listener::SaslSsl)])
            .set_security_protocol("SASL_SSL")
            .set_sasl_mechanism("SCRAM-SHA-256")
            .set_sasl_plain_username(USER)
            .set_sasl_plain_password(PASSWORD)
            .set_client_id("payment-service")
            .set_ssl_ca_pem(backend.ca_pem());
        assert!("SASL_SSL".parse::<SecurityProtocol>().unwrap().uses_tls());
        let kafka_instance = KafkaInstance::new(config).unwrap();
        let payments = backend.topic("payments", 1).await;
        let sent = kafka_instance.producer_context_with(|p| p.acks("all"), async |producer| {
            producer.send(&payments, &json!({"payment_id": "PAY-123", "amount": 500.00})).await?.await
        });
        assert_eq!(sent.await.unwrap().offset, 0);
    }

    /// Multiple Topics Consumer: what is written after the start, told apart by topic.
    async fn several_topics_in_one_consumer(backend) {
        let config = backend.config().set_group_id(unique("multi-topic-consumer")).set_auto_offset_reset("latest");
        let kafka_instance = KafkaInstance::new(config).unwrap();
        let mut topics = Vec::new();
        for name in ["user-created", "user-updated", "user-deleted"] {
            topics.push(backend.topic(name, 1).await);
        }
        produce(&kafka_instance, &topics[0], [json!("before the consumer: not read with latest")]).await;
        let consumer = kafka_instance.get_consumer(&topics).await.unwrap();
        // Joined, with a position in every partition: from here on everything is read.
        while consumer.assignment().len() < 3 {
            assert!(consumer.poll(Duration::from_millis(100)).await.unwrap().is_empty());
        }
        for partition in consumer.assignment() {
            consumer.position(&partition).await.unwrap();
        }
        for topic in &topics {
            produce(&kafka_instance, topic, [json!({"user": "u1"})]).await;
        }
        let mut handled = Vec::new();
        let mut stream = consumer.stream();
        while handled.len() < 3 {
            let message = stream.next().await.unwrap().unwrap();
            println!("Topic: {} Partition: {} Offset: {}", message.topic, message.partition, message.offset);
            assert_eq!(message.json::<Value>().unwrap(), json!({"user": "u1"}));
            handled.push(message.topic.to_string());
        }
        drop(stream);
        handled.sort();
        topics.sort();
        assert_eq!(handled, topics);
        consumer.close(PATIENCE).await.unwrap();
    }

    /// Custom Producer Configuration.
    async fn a_producer_for_reliability(backend) {
        let kafka_instance = KafkaInstance::new(backend.config()).unwrap();
        let topic = backend.topic("critical-events", 1).await;
        let producer = kafka_instance
            .get_producer_with(|p| {
                p.acks("all").retries(5).max_in_flight(1).compression("snappy").linger(10).batch_size(32768)
            })
            .await
            .unwrap();
        let delivery = producer.send(&topic, &json!({"event": "system-shutdown"})).await.unwrap();
        producer.flush().await.unwrap();
        producer.close().await.unwrap();
        assert_eq!(delivery.await.unwrap().offset, 0);
    }

    /// Manual Offset Commit Consumer: what fails is not committed, and comes again.
    async fn offsets_are_committed_by_hand_after_processing(backend) {
        let config = backend.config().set_group_id(unique("manual-commit-group")).set_enable_auto_commit(false);
        let kafka_instance = KafkaInstance::new(config).unwrap();
        let transactions = backend.topic("transactions", 1).await;
        produce(&kafka_instance, &transactions, (0..5).map(|n| json!(n))).await;

        let process_transaction = |record: &ConsumerRecord| -> Result<i64> {
            let number = record.json()?;
            if number == 3 { Err(dtkafka::Error::other("no account")) } else { Ok(number) }
        };
        let consumer = kafka_instance.get_consumer([&transactions]).await.unwrap();
        let mut processed = Vec::new();
        'polls: loop {
            for (topic_partition, records) in consumer.poll(PATIENCE).await.unwrap() {
                for message in records {
                    match process_transaction(&message) {
                        Ok(number) => {
                            processed.push(number);
                            consumer.commit_offsets([(topic_partition.clone(), message.offset + 1)]).await.unwrap();
                        }
                        Err(e) => {
                            println!("Error processing message: {e}");
                            // Don't commit: the message will be processed again.
                            break 'polls;
                        }
                    }
                }
            }
        }
        consumer.close(PATIENCE).await.unwrap();
        assert_eq!(processed, [0, 1, 2]);

        let consumer = kafka_instance.get_consumer([&transactions]).await.unwrap();
        let again = consumer.stream().next().await.unwrap().unwrap();
        assert_eq!(again.json::<i64>().unwrap(), 3);
        consumer.close(PATIENCE).await.unwrap();
    }

    /// Best Practices: one instance makes many clients.
    async fn one_instance_makes_many_clients(backend) {
        let kafka_instance = KafkaInstance::new(backend.config().set_client_id("service-name-v1")).unwrap();
        let topic = backend.topic("topic", 1).await;
        let producer1 = kafka_instance.get_producer().await.unwrap();
        let producer2 = kafka_instance.clone().get_producer().await.unwrap();
        let consumer = kafka_instance.get_consumer([&topic]).await.unwrap();
        producer1.send(&topic, &json!(1)).await.unwrap().await.unwrap();
        producer1.close().await.unwrap();
        producer2.send(&topic, &json!(2)).await.unwrap().await.unwrap();
        producer2.flush().await.unwrap();
        producer2.close().await.unwrap();
        let values: Vec<i64> =
            consumer.stream().take(2).map(|record| record.unwrap().json::<i64>().unwrap()).collect().await;
        assert_eq!(values, [1, 2]);
        consumer.close(PATIENCE).await.unwrap();
    }
}

/// Error Handling: what is logged before an error is returned.
#[test]
fn errors_are_logged_with_controller_subject_and_payload() {
    let (log, _listening) = crate::test_log::Log::of_this_thread(tracing::Level::INFO);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(async {
        // Nobody listens on port 1.
        let config =
            KafkaConfig::new().set_kafka_url("kafka://user:hunter2@127.0.0.1:1").set("max.block.ms", 300);
        let kafka_instance = KafkaInstance::new(config).unwrap();
        kafka_instance.get_producer().await.unwrap_err()
    });
    let log = log.text();
    let line = log
        .lines()
        .find(|line| line.contains("ERROR"))
        .unwrap_or_else(|| panic!("no error is logged: {log}"));
    for part in
        ["dtkafka::KafkaInstance::get_producer", "Kafka Producer", r#""kind":"Connect(Tcp)""#, "127.0.0.1:1"]
    {
        assert!(line.contains(part), "{part} is missing in {line}");
    }
    assert!(!log.contains("hunter2") && !error.to_string().contains("hunter2"), "{log}");
}
