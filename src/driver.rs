//! The driver task of a client: started with an error where there is no runtime, and seen when it ends before its time.
//!
//! A driver ends early when its runtime ends (a client in a static that several tests share is enough) or when it panics.
//! Whoever waits for it would wait for ever, so its end is told to the client, which ends every waiter.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{runtime::Handle, sync::Notify, task::JoinHandle};
use tracing::Instrument;

use crate::error::{Error, ErrorKind, Result};

/// Starts a client's driver on the current runtime. `on_end` is told why, if the driver ends before it returns.
///
/// # Errors
/// As [`check_runtime`]; `on_end` is told then too.
pub(crate) fn spawn(
    what: &'static str,
    on_end: impl FnOnce(Error) + Send + 'static,
    driver: impl Future<Output = ()> + Send + 'static,
) -> Result<JoinHandle<()>> {
    // Made before the task, so that it is dropped also with a task that was never polled.
    let guard = EndGuard { what, on_end: Some(on_end) };
    check_runtime()?;
    #[expect(clippy::disallowed_methods, reason = "the one place where drivers are started")]
    Ok(tokio::spawn(async move {
        let mut guard = guard;
        driver.await;
        guard.on_end = None;
    }))
}

/// Runs a part of a user's call as a task of its own, and waits for it. Otherwise a user's future that is kept and not
/// polled would hold what others wait for: the turn to dial a broker, the first place in a connection's line, or a frame
/// half written.
///
/// # Errors
/// Those of the future; as [`check_runtime`]; [`ErrorKind::Closed`] if the runtime ends meanwhile.
///
/// # Cancel safety
/// If dropped, the task ends too.
pub(crate) async fn apart<T: Send + 'static>(
    future: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    check_runtime()?;
    #[expect(clippy::disallowed_methods, reason = "it ends with the call that waits for it")]
    let mut task = AbortOnDrop(tokio::spawn(future.in_current_span()));
    match (&mut task.0).await {
        Ok(outcome) => outcome,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::closed("client")),
        },
    }
}

/// A task that ends with who holds this.
pub(crate) struct AbortOnDrop<T>(pub(crate) JoinHandle<T>);

impl<T> AbortOnDrop<T> {
    pub(crate) fn abort(&self) {
        self.0.abort();
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.abort();
    }
}

/// Whether the caller is in a tokio runtime that can wait.
///
/// # Errors
/// [`ErrorKind::Config`] outside a runtime, or in one without timers.
pub(crate) fn check_runtime() -> Result<()> {
    if Handle::try_current().is_err() {
        return Err(Error::new(ErrorKind::Config, "called outside a tokio runtime").with_hint(
            "call it from a task of a tokio runtime (#[tokio::main], Runtime::block_on), or use dtkafka::blocking",
        ));
    }
    // Nothing else tells whether a runtime has timers: making one panics where it has none.
    std::panic::catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO))).map_err(|_| {
        Error::new(ErrorKind::Config, "the tokio runtime has no timers")
            .with_hint("build it with enable_all(), or with enable_time() and enable_io()")
    })
}

/// The error for a caught panic of tokio in a runtime that was built without IO, which cannot be found out beforehand.
pub(crate) fn no_io() -> Error {
    Error::new(ErrorKind::Config, "the tokio runtime has no IO")
        .with_hint("build it with enable_all(), or with enable_time() and enable_io()")
}

/// A thread with a runtime of its own, for a client that must stay alive while the user's code does not yield. It ends when
/// this is dropped, and drops what still runs on it.
#[derive(Debug)]
pub(crate) struct DriverThread {
    runtime: Handle,
    end: Arc<Notify>,
}

impl DriverThread {
    /// # Errors
    /// [`ErrorKind::Config`] where the system gives no thread.
    pub(crate) fn start(name: &str) -> Result<Self> {
        let refused = |error: std::io::Error| {
            Error::new(ErrorKind::Config, "the thread that keeps the client alive could not be started")
                .with_source(error)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(refused)?;
        let home = Self { runtime: runtime.handle().clone(), end: Arc::new(Notify::new()) };
        let (runtime, end) = (Arc::new(runtime), Arc::clone(&home.end));
        let living = Arc::clone(&runtime);
        let live = move || living.block_on(end.notified());
        match std::thread::Builder::new().name(name.to_owned()).spawn(live) {
            Ok(_) => Ok(home),
            Err(error) => {
                // To drop a runtime within another panics, as the thread's end would be waited for.
                if let Some(runtime) = Arc::into_inner(runtime) {
                    runtime.shutdown_background();
                }
                Err(refused(error))
            }
        }
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl Drop for DriverThread {
    fn drop(&mut self) {
        // `notify_one` keeps a permit in case the thread does not wait yet.
        self.end.notify_one();
    }
}

/// A future whose sockets, timers and tasks belong to another runtime than the one that polls it.
pub(crate) struct Within<'a, F> {
    runtime: &'a Handle,
    future: Pin<Box<F>>,
}

impl<'a, F: Future> Within<'a, F> {
    pub(crate) fn new(runtime: &'a Handle, future: F) -> Self {
        Self { runtime, future: Box::pin(future) }
    }
}

impl<F: Future> Future for Within<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let _within = self.runtime.enter();
        self.future.as_mut().poll(context)
    }
}

/// Ends a client's waiters when its driver is dropped before it returned.
struct EndGuard<F: FnOnce(Error)> {
    what: &'static str,
    on_end: Option<F>,
}

impl<F: FnOnce(Error)> Drop for EndGuard<F> {
    fn drop(&mut self) {
        let Some(on_end) = self.on_end.take() else { return };
        let why = if std::thread::panicking() {
            "its driver task has panicked"
        } else {
            "its runtime has ended, and with it what sends and receives for it"
        };
        on_end(
            Error::new(ErrorKind::Closed, format!("the {} is closed: {why}", self.what))
                .with_fatal()
                .with_hint("make a client in each runtime, and keep the runtime for as long as the client"),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::{Arc, Mutex},
    };

    use super::*;

    type Told = Arc<Mutex<Option<String>>>;

    fn told() -> (Told, impl FnOnce(Error) + Send + 'static) {
        let told = Told::default();
        let on_end = {
            let told = Arc::clone(&told);
            move |error: Error| *told.lock().unwrap() = Some(error.to_string())
        };
        (told, on_end)
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_driver_whose_runtime_ends_is_told_of_whether_it_ran_or_not() {
        for runs in [false, true] {
            let (told, on_end) = told();
            let runtime = runtime();
            runtime.block_on(async {
                spawn("producer", on_end, pending()).unwrap();
                if runs {
                    tokio::task::yield_now().await;
                }
            });
            assert!(told.lock().unwrap().is_none());
            drop(runtime);
            let text = told.lock().unwrap().take().unwrap();
            assert!(text.contains("the producer is closed: its runtime has ended"), "{text}");
        }
    }

    #[test]
    fn a_driver_that_panics_is_told_of_and_one_that_returns_is_not() {
        let runtime = runtime();
        runtime.block_on(async {
            let (panicked, on_end) = told();
            let driver = spawn("consumer", on_end, async { panic!("a bug") }).unwrap();
            assert!(driver.await.is_err());
            let text = panicked.lock().unwrap().take().unwrap();
            assert!(text.contains("has panicked"), "{text}");
            let (returned, on_end) = told();
            spawn("consumer", on_end, async {}).unwrap().await.unwrap();
            assert!(returned.lock().unwrap().is_none());
        });
    }

    #[test]
    fn what_runs_apart_goes_on_while_nobody_polls_and_ends_with_who_waits() {
        runtime().block_on(async {
            let turn = Arc::new(tokio::sync::Mutex::new(()));
            let hold = |turn: Arc<tokio::sync::Mutex<()>>, held: Arc<Notify>, until: Arc<Notify>| {
                apart(async move {
                    let _turn = turn.lock().await;
                    held.notify_one();
                    until.notified().await;
                    Ok(7)
                })
            };
            let (held, until) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
            let mut unpolled = Box::pin(hold(Arc::clone(&turn), Arc::clone(&held), Arc::clone(&until)));
            assert!(futures_util::poll!(&mut unpolled).is_pending());
            held.notified().await;
            until.notify_one();
            // Whoever holds it is not polled any more.
            drop(turn.lock().await);
            assert_eq!(unpolled.await.unwrap(), 7);

            let mut dropped = Box::pin(hold(Arc::clone(&turn), Arc::clone(&held), until));
            assert!(futures_util::poll!(&mut dropped).is_pending());
            held.notified().await;
            drop(dropped);
            drop(turn.lock().await);
        });
    }

    #[test]
    fn without_a_runtime_or_without_timers_it_is_an_error_and_not_a_panic() {
        let (outside, on_end) = told();
        let error = spawn("producer", on_end, pending()).unwrap_err();
        assert!(error.to_string().contains("outside a tokio runtime"), "{error}");
        assert!(outside.lock().unwrap().is_some());
        let bare = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let error = bare.block_on(async { check_runtime() }).unwrap_err();
        assert!(error.to_string().contains("enable_all()"), "{error}");
        runtime().block_on(async { check_runtime() }).unwrap();
    }
}
