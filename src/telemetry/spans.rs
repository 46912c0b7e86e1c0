//! Spans by OpenTelemetry's conventions for messaging, under one target. They are made at DEBUG: where no subscriber is
//! interested, a record costs a look at a static, and no field is put together. No span holds a key or a value.

use std::pin::pin;

use tracing::Span;

#[cfg(feature = "traceparent")]
use {super::trace_context::TraceContext, std::sync::Arc};

/// Where the spans are, for filters: `dtkafka::messaging=debug`.
const TARGET: &str = "dtkafka::messaging";

/// A record that is sent, until it is acknowledged.
pub(crate) fn send(topic: &str) -> Span {
    tracing::debug_span!(
        target: TARGET,
        "send",
        otel.name = %format_args!("send {topic}"),
        otel.kind = "producer",
        messaging.system = "kafka",
        messaging.operation.name = "send",
        "messaging.operation.type" = "send",
        messaging.destination.name = topic,
        messaging.destination.partition.id = tracing::field::Empty,
        messaging.kafka.offset = tracing::field::Empty,
        "error.type" = tracing::field::Empty,
    )
}

/// One call of a handler: its span, and what it passes on to what it sends.
pub(crate) struct HandlerCall {
    span: Span,
    #[cfg(feature = "traceparent")]
    context: Option<Arc<TraceContext>>,
}

impl HandlerCall {
    /// That which is running, for a thread of its own.
    pub(crate) fn current() -> Self {
        Self {
            span: Span::current(),
            #[cfg(feature = "traceparent")]
            context: TraceContext::current(),
        }
    }

    #[inline]
    pub(crate) fn in_scope<T>(&self, run: impl FnOnce() -> T) -> T {
        #[cfg(feature = "traceparent")]
        let _entered = TraceContext::enter(self.context.as_ref());
        self.span.in_scope(run)
    }

    pub(crate) async fn run<F: Future>(self, running: F) -> F::Output {
        let mut running = pin!(running);
        std::future::poll_fn(|context| self.in_scope(|| running.as_mut().poll(context))).await
    }
}

/// One call of a handler, of one record or of a batch, which begins with this value. `header`: of a record alone, whose
/// `traceparent` a subscriber may make the parent.
#[inline]
pub(crate) fn process(
    topic: &str,
    (partition, offset): (i32, i64),
    attempt: u32,
    batch: Option<usize>,
    header: impl Fn(&str) -> Option<String>,
) -> HandlerCall {
    let parent = || header("traceparent").filter(|text| traceparent(Some(text.as_bytes())).is_some());
    let span = tracing::debug_span!(
        target: TARGET,
        "process",
        otel.name = %format_args!("process {topic}"),
        otel.kind = "consumer",
        messaging.system = "kafka",
        messaging.operation.name = "process",
        "messaging.operation.type" = "process",
        messaging.destination.name = topic,
        messaging.destination.partition.id = partition,
        messaging.kafka.offset = offset,
        messaging.batch.message_count = batch.filter(|count| *count > 1),
        dtkafka.attempt = attempt,
        traceparent = parent(),
    );
    HandlerCall {
        span,
        #[cfg(feature = "traceparent")]
        context: TraceContext::of(header),
    }
}

/// A commit of what is done.
pub(crate) fn commit() -> Span {
    tracing::debug_span!(
        target: TARGET,
        "commit",
        otel.name = "commit",
        otel.kind = "client",
        messaging.system = "kafka",
        messaging.operation.name = "commit",
        "messaging.operation.type" = "settle",
    )
}

/// The header of the W3C's trace context, if it is one: `00-<trace>-<span>-<flags>` in lower-case hexadecimal.
pub(crate) fn traceparent(header: Option<&[u8]>) -> Option<&str> {
    let text = std::str::from_utf8(header?).ok()?;
    let mut parts = text.split('-');
    let mut is_hex = |digits: usize| {
        parts.next().is_some_and(|part| {
            part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        })
    };
    let is_one = [2, 32, 16, 2].into_iter().all(&mut is_hex);
    // Later versions may add parts; version ff is none, and an id of zeros names nothing.
    let (version, trace, span) = (text.get(..2)?, text.get(3..35)?, text.get(36..52)?);
    let is_null = |id: &str| id.bytes().all(|byte| byte == b'0');
    let has_more = text.len() > 55;
    (is_one && version != "ff" && (version != "00" || !has_more) && !is_null(trace) && !is_null(span))
        .then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_what_the_w3c_says_and_nothing_else() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(traceparent(Some(good.as_bytes())), Some(good));
        let later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more";
        assert_eq!(traceparent(Some(later.as_bytes())), Some(later));
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319cä-7ad6b7169203331-01",
        ] {
            assert_eq!(traceparent(Some(bad.as_bytes())), None, "{bad}");
        }
        assert_eq!(traceparent(Some(b"\xff\xfe")), None);
        assert_eq!(traceparent(None), None);
    }
}
