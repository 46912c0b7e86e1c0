//! What is told to `tracing` of a call.

use super::*;

/// What spans were made and what was logged, with all that was noted.
#[derive(Default, Clone)]
struct Spans(Arc<Mutex<Vec<String>>>);

impl tracing::field::Visit for Spans {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.lock().push(format!("{field}={value:?}"));
    }
}

impl tracing::Subscriber for Spans {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() || metadata.target() == "dtkafka::messaging"
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        span.record(&mut self.clone());
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut self.clone());
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn each_call_of_a_handler_has_a_span_by_the_conventions_without_key_and_value() {
    let spans = Spans::default();
    crate::test_log::on_every_thread();
    let _guard = tracing::subscriber::set_default(spans.clone());
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let (consumer, seen) = seeing(ErrorPolicy::retry(2, Duration::from_secs(1)), &[1]);
    let record = record(7).with_key("secret key").with_header("traceparent", parent);
    run(&consumer, &Arc::default(), vec![record]).await;
    assert_eq!(seen.lock()[0].1.traceparent(), Some(parent));
    let told = spans.0.lock().clone();
    for field in [
        "otel.name=process orders",
        "otel.kind=\"consumer\"",
        "messaging.system=\"kafka\"",
        "messaging.destination.name=\"orders\"",
        "messaging.destination.partition.id=0",
        "messaging.kafka.offset=7",
        "dtkafka.attempt=1",
        "dtkafka.attempt=2",
    ] {
        assert!(told.iter().any(|found| found == field), "{field}\n{told:?}");
    }
    assert!(told.contains(&format!("traceparent={parent:?}")), "{told:?}");
    assert!(!told.concat().contains("secret"), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn the_log_counts_the_calls_before_a_retry_topic_too() {
    let told = Spans::default();
    crate::test_log::on_every_thread();
    let _guard = tracing::subscriber::set_default(told.clone());
    let policy = ErrorPolicy::retry(2, Duration::from_secs(1)).retry_topics([Duration::from_secs(1)]);
    let (consumer, seen) = seeing(policy, &[1]);
    let records = vec![waiting(0, "orders", 0, 40, "7")];
    run_of(&consumer, "orders-retry-1s", &Arc::default(), records, CancellationToken::new()).await;
    assert_eq!(seen.lock().len(), 2);
    let told = told.0.lock().clone();
    assert!(told.contains(&"attempt=4".to_owned()), "after three of before: {told:?}");
}
