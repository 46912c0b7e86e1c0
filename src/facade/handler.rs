//! What handlers look like, and how their types are forgotten so that one table holds them all. Pure but for the call
//! itself: what happens after a failure is `policy.rs`'s. A handler of single records has a place for its future, which is
//! used for one record after the other: a record costs no allocation.

use std::{
    error::Error as StdError,
    panic::{AssertUnwindSafe, resume_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use serde::de::DeserializeOwned;

use super::{
    borrowed::{BorrowedRecord, RawValue},
    codec::Codec,
    failure::Failure,
    message::{Batch, CancellationToken, Message},
};
use crate::{
    error::{Error, ErrorKind, Result},
    json,
    record::ConsumerRecord,
    telemetry::spans::HandlerCall,
};

/// What a handler fails with: any error; `?` converts every type that implements [`std::error::Error`].
pub type HandlerError = Box<dyn StdError + Send + Sync>;

/// What a handler returns.
pub type HandlerResult = std::result::Result<(), HandlerError>;

type Running = Pin<Box<dyn Future<Output = HandlerResult> + Send>>;

/// What a handler may return: `Result<(), E>` of every `E` that becomes a [`HandlerError`], as `anyhow::Error` does.
pub trait HandlerOutput {
    /// The error in its common form.
    ///
    /// # Errors
    /// The handler's.
    fn into_result(self) -> HandlerResult;
}

impl<E: Into<HandlerError>> HandlerOutput for std::result::Result<(), E> {
    #[inline]
    fn into_result(self) -> HandlerResult {
        self.map_err(Into::into)
    }
}

/// A function that handles what it is given: an `async fn`, an `async` closure, or a closure that returns a future.
///
/// Implemented for all of them that can be cloned, sent and shared; never by hand. What an `async move` closure captures is
/// cloned for each call: put state into an `Arc`.
///
/// | the compiler says | what helps |
/// | --- | --- |
/// | the trait `Clone` is not implemented for `Database` | handlers run beside each other: share it, `Arc::new(database)` |
/// | `database` does not live long enough, or may outlive borrowed value | `async move`, and an `Arc` |
/// | `Rc<..>`, or a `MutexGuard` held across an `.await`, cannot be sent between threads | an `Arc`; let go of the guard before the `.await` |
/// | expected function signature `fn((Message<_>,))`, found `fn((Order,))` | take a `Message<Order>`: the order is its `value` |
/// | expected `Result<(), Box<dyn Error ..>>`, found `Result<(), io::Error>` | [`register`](crate::Consumer::register) takes every error; in a closure, `?` and `Ok(())` |
/// | `Result<..>` is not a future | `async \|order\| ..`, or `register_blocking_handler` for code that blocks |
/// | the trait `Deserialize` is not implemented for `Order` | `#[derive(serde::Deserialize)]` |
pub trait Handler<A>: Clone + Send + Sync + 'static {
    /// What a call of the function runs.
    type Running: Future<Output: HandlerOutput> + Send + 'static;

    /// Calls the function.
    fn call(&self, argument: A) -> Self::Running;
}

impl<A, F, Running> Handler<A> for F
where
    F: FnOnce(A) -> Running + Clone + Send + Sync + 'static,
    Running: Future<Output: HandlerOutput> + Send + 'static,
{
    type Running = Running;

    #[inline]
    fn call(&self, argument: A) -> Running {
        // Stable Rust cannot say that the future of an `async` closure called by reference is `Send`; of one called by
        // value it can.
        self.clone()(argument)
    }
}

/// What a handler can be given: a [`Message`] of a type that is read from JSON, a [`Batch`] of them, or the
/// [`ConsumerRecord`] as it is. Not implemented by hand.
pub trait HandlerArgument: Sized {
    #[doc(hidden)]
    fn erase(handler: impl Handler<Self>) -> ErasedHandler;
}

impl<T: DeserializeOwned + Send + 'static> HandlerArgument for Message<T> {
    fn erase(handler: impl Handler<Self>) -> ErasedHandler {
        ErasedHandler::json(handler)
    }
}

impl HandlerArgument for ConsumerRecord {
    fn erase(handler: impl Handler<Self>) -> ErasedHandler {
        ErasedHandler::raw(handler)
    }
}

impl<T: DeserializeOwned + Send + 'static> HandlerArgument for Batch<T> {
    fn erase(handler: impl Handler<Self>) -> ErasedHandler {
        ErasedHandler::batch(BatchSize::default(), read_json, handler)
    }
}

/// How many messages a [`Batch`] has at most, and how long the first of them waits for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchSize {
    pub(super) records: usize,
    pub(super) wait: Duration,
}

impl Default for BatchSize {
    fn default() -> Self {
        Self { records: 500, wait: Duration::ZERO }
    }
}

/// Makes a place for the calls of a handler.
pub(super) type MakeCalls = dyn Fn() -> Box<dyn Calls> + Send + Sync;

/// The calls of a handler of single records, one after the other.
pub(super) trait Calls: Send {
    /// Reads the record and calls the handler, up to where it waits for the first time. The `attempt`-th call for this record.
    fn begin(
        &mut self,
        record: BorrowedRecord<'_>,
        attempt: u32,
        context: &mut Context<'_>,
    ) -> Poll<std::result::Result<(), Failure>>;
    /// Goes on with a call that waits.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<HandlerResult>;
    /// Ends the call where it stands.
    fn clear(&mut self);
}

/// One handler with the place for its future.
struct Caller<C, F> {
    /// Puts the future of a call there.
    call: Arc<C>,
    running: Pin<Box<Option<F>>>,
}

impl<C, F> Calls for Caller<C, F>
where
    C: Fn(BorrowedRecord<'_>, u32, Pin<&mut Option<F>>) -> Result<()> + Send + Sync,
    F: Future<Output: HandlerOutput> + Send,
{
    fn begin(
        &mut self,
        record: BorrowedRecord<'_>,
        attempt: u32,
        context: &mut Context<'_>,
    ) -> Poll<std::result::Result<(), Failure>> {
        match (self.call)(record, attempt, self.running.as_mut()) {
            Ok(()) => self.poll(context).map_err(Failure::Handler),
            Err(unreadable) => Poll::Ready(Err(Failure::Unreadable(unreadable))),
        }
    }

    #[inline]
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<HandlerResult> {
        let Some(running) = self.running.as_mut().as_pin_mut() else { return Poll::Ready(Ok(())) };
        let polled = running.poll(context);
        if polled.is_ready() {
            self.running.set(None);
        }
        polled.map(HandlerOutput::into_result)
    }

    fn clear(&mut self) {
        self.running.set(None);
    }
}

/// Takes records and the number of the call. Fails with the index of the first record that cannot be read.
pub(super) type CallBatch =
    dyn Fn(Vec<ConsumerRecord>, u32) -> std::result::Result<Running, (usize, Error)> + Send + Sync;

/// A handler whose type of message is forgotten.
#[doc(hidden)]
#[derive(Clone)]
pub struct ErasedHandler(pub(super) Kind);

#[derive(Clone)]
pub(super) enum Kind {
    Each(Arc<MakeCalls>),
    Batch(BatchSize, Arc<CallBatch>),
}

impl std::fmt::Debug for ErasedHandler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ErasedHandler")
    }
}

#[inline]
pub(super) fn read_json<T: DeserializeOwned>(value: RawValue<'_>) -> Result<T> {
    json::read(value.bytes, value.topic, value.partition, value.offset)
}

/// Reads values with a codec; its errors name the record.
pub(super) fn reader<T, C: Codec<T>>(codec: C) -> impl Fn(RawValue<'_>) -> Result<T> + Send + Sync + 'static {
    move |value: RawValue<'_>| {
        codec.decode(value.topic, value.bytes).map_err(|cause| {
            Error::new(ErrorKind::Json, "the record's value cannot be read by its codec")
                .with_topic(Arc::clone(value.topic))
                .with_partition(value.partition)
                .with_offset(value.offset)
                .with_boxed_source(cause)
        })
    }
}

impl ErasedHandler {
    /// `call` makes the future of a call right in its place, since each time it is passed on it would be copied.
    pub(super) fn each<F: Future<Output: HandlerOutput> + Send + 'static>(
        call: impl Fn(BorrowedRecord<'_>, u32, Pin<&mut Option<F>>) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        let call = Arc::new(call);
        Self(Kind::Each(Arc::new(move || {
            Box::new(Caller { call: Arc::clone(&call), running: Box::pin(None::<F>) })
        })))
    }

    pub(super) fn json<T: DeserializeOwned + 'static>(handler: impl Handler<Message<T>>) -> Self {
        Self::decoded(read_json, handler)
    }

    pub(super) fn decoded<T: 'static>(
        read: impl Fn(RawValue<'_>) -> Result<T> + Send + Sync + 'static,
        handler: impl Handler<Message<T>>,
    ) -> Self {
        Self::each(move |record: BorrowedRecord<'_>, attempt, mut running: Pin<&mut Option<_>>| {
            let value = read(record.value())?;
            running.set(Some(handler.call(record.message(value, attempt))));
            Ok(())
        })
    }

    pub(super) fn raw(handler: impl Handler<ConsumerRecord>) -> Self {
        Self::each(move |record: BorrowedRecord<'_>, _, mut running: Pin<&mut Option<_>>| {
            running.set(Some(handler.call(record.to_record())));
            Ok(())
        })
    }

    /// Runs on the threads for blocking work. What panics there panics here as well.
    pub(super) fn blocking<T: Send + 'static>(
        read: impl Fn(RawValue<'_>) -> Result<T> + Send + Sync + 'static,
        handler: impl Fn(Message<T>) -> HandlerResult + Send + Sync + 'static,
    ) -> Self {
        let handler = Arc::new(handler);
        Self::each(move |record: BorrowedRecord<'_>, attempt, mut running: Pin<&mut Option<_>>| {
            let value = read(record.value())?;
            let (handler, message) = (Arc::clone(&handler), record.message(value, attempt));
            running.set(Some(async move {
                let token = CancellationToken::current();
                let call = HandlerCall::current();
                let work = AssertUnwindSafe(move || {
                    // It may have waited for a thread for so long that nobody waits for its result any more.
                    if token.is_cancelled() {
                        return Err("told to give up before it began".into());
                    }
                    call.in_scope(|| token.sync_scope(|| handler(message)))
                });
                match tokio::task::spawn_blocking(work).await {
                    Ok(result) => result,
                    Err(ended) => match ended.try_into_panic() {
                        Ok(panic) => resume_unwind(panic),
                        // The runtime is ending, and this call never ends either: it is no failure for the policy to
                        // judge.
                        Err(_ended) => std::future::pending().await,
                    },
                }
            }));
            Ok(())
        })
    }

    pub(super) fn batch<T: Send + 'static>(
        size: BatchSize,
        read: impl Fn(RawValue<'_>) -> Result<T> + Send + Sync + 'static,
        handler: impl Handler<Batch<T>>,
    ) -> Self {
        Self(Kind::Batch(
            size,
            Arc::new(move |records, attempt| {
                let mut messages = Vec::with_capacity(records.len());
                for (index, record) in records.into_iter().enumerate() {
                    let value =
                        read(BorrowedRecord::Alone(&record).value()).map_err(|error| (index, error))?;
                    messages.push(Message::of(record, value, attempt));
                }
                let running = handler.call(Batch::new(messages));
                Ok(Box::pin(async move { running.await.into_result() }))
            }),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::FutureExt as _;

    use super::*;

    fn record(value: &str) -> ConsumerRecord {
        ConsumerRecord::new("orders", 3, 42).with_key("k").with_value(value.to_owned())
    }

    async fn call(handler: &ErasedHandler, value: &str) -> std::result::Result<(), String> {
        let Kind::Each(make) = &handler.0 else { panic!("a batch handler") };
        let mut calls = make();
        let record = record(value);
        let mut is_begun = false;
        let ended = std::future::poll_fn(|context| match std::mem::replace(&mut is_begun, true) {
            false => calls.begin(BorrowedRecord::Alone(&record), 1, context),
            true => calls.poll(context).map_err(Failure::Handler),
        });
        ended.await.map_err(|failure| match failure {
            Failure::Handler(error) => error.to_string(),
            failure => failure.into_error(&record.topic, 3, 42).to_string(),
        })
    }

    /// As `anyhow::Error`: no error itself, but it becomes one.
    struct Any(&'static str);

    impl From<Any> for HandlerError {
        fn from(any: Any) -> Self {
            any.0.into()
        }
    }

    #[tokio::test]
    async fn functions_and_closures_of_every_kind_are_handlers() {
        async fn function(message: Message<u32>) -> HandlerResult {
            if message.value == 7 { Ok(()) } else { Err("not 7".into()) }
        }
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (one, two) = (Arc::clone(&seen), Arc::clone(&seen));
        let handlers =
            [
                ErasedHandler::json(function),
                ErasedHandler::json(async move |message: Message<u32>| -> HandlerResult {
                    one.lock().unwrap().push(message.value);
                    Ok(())
                }),
                ErasedHandler::json(move |message: Message<u32>| {
                    let two = Arc::clone(&two);
                    async move {
                        two.lock().unwrap().push(message.value);
                        HandlerResult::Ok(())
                    }
                }),
                ErasedHandler::raw(async |record: ConsumerRecord| -> HandlerResult {
                    match record.value {
                        Some(_) => Ok(()),
                        None => Err("no value".into()),
                    }
                }),
                ErasedHandler::blocking(read_json, |message: Message<u32>| {
                    if message.value == 7 { Ok(()) } else { Err("not 7".into()) }
                }),
            ];
        for handler in &handlers {
            call(handler, "7").await.unwrap();
        }
        assert_eq!(*seen.lock().unwrap(), [7, 7]);
        assert_eq!(call(&handlers[0], "8").await.unwrap_err(), "not 7");
        assert_eq!(call(&handlers[4], "8").await.unwrap_err(), "not 7");
        assert!(call(&handlers[0], "\"x\"").await.unwrap_err().contains("expected u32, found a string"));
    }

    #[test]
    fn a_blocking_handler_that_finds_no_thread_before_it_is_told_to_give_up_never_begins() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let (go_on, wait) = std::sync::mpsc::channel::<()>();
            let other = tokio::task::spawn_blocking(move || wait.recv());
            let handler = ErasedHandler::blocking(read_json, |_: Message<u32>| -> HandlerResult {
                panic!("nobody waits for it any more")
            });
            let token = CancellationToken::new();
            let mut called = std::pin::pin!(token.clone().scope(call(&handler, "7")));
            assert!(called.as_mut().now_or_never().is_none());
            token.cancel();
            go_on.send(()).unwrap();
            other.await.unwrap().unwrap();
            assert_eq!(called.await.unwrap_err(), "told to give up before it began");
        });
    }

    #[test]
    fn a_blocking_handler_in_a_runtime_that_ends_never_fails_as_it_was_never_called() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let home = runtime.handle().clone();
        runtime.shutdown_background();
        let _inside = home.enter();
        let handler = ErasedHandler::blocking(read_json, |_: Message<u32>| -> HandlerResult { Ok(()) });
        assert_eq!(call(&handler, "7").now_or_never(), None);
    }

    #[tokio::test]
    async fn handlers_may_return_errors_of_every_type() {
        async fn io(_: Message<u32>) -> std::result::Result<(), std::io::Error> {
            Err(std::io::Error::other("disk"))
        }
        async fn any(_: ConsumerRecord) -> std::result::Result<(), Any> {
            Err(Any("anyhow"))
        }
        async fn text(_: Message<u32>) -> std::result::Result<(), String> {
            Err("text".to_owned())
        }
        fn erase<A: HandlerArgument>(handler: impl Handler<A>) -> ErasedHandler {
            A::erase(handler)
        }
        assert_eq!(call(&erase(io), "7").await.unwrap_err(), "disk");
        assert_eq!(call(&erase(any), "7").await.unwrap_err(), "anyhow");
        assert_eq!(call(&erase(text), "7").await.unwrap_err(), "text");
        let closure = async |message: Message<u32>| -> std::result::Result<(), std::num::TryFromIntError> {
            u8::try_from(message.value).map(drop)
        };
        assert!(call(&erase(closure), "700").await.unwrap_err().contains("out of range"));
    }

    #[tokio::test]
    async fn a_batch_names_the_first_record_that_cannot_be_read() {
        let handler = ErasedHandler::batch(BatchSize::default(), read_json, async |batch: Batch<u32>| {
            if batch.values().sum::<u32>() == 3 { HandlerResult::Ok(()) } else { Err("sum".into()) }
        });
        let Kind::Batch(size, call) = &handler.0 else { panic!("no batch handler") };
        assert_eq!(size.records, 500);
        call(vec![record("1"), record("2")], 1).unwrap().await.unwrap();
        let (index, error) = call(vec![record("1"), record("x"), record("y")], 1).err().unwrap();
        assert_eq!((index, error.offset()), (1, Some(42)));
    }

    #[tokio::test]
    async fn a_panic_on_a_blocking_thread_is_one_of_the_handler() {
        let handler =
            ErasedHandler::blocking(read_json, |_: Message<u32>| -> HandlerResult { panic!("burst") });
        let panic = AssertUnwindSafe(call(&handler, "7")).catch_unwind().await.unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"burst"));
    }
}
