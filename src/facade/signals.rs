//! The signals that tell a process to end, and which of them belong to one and the same stop. What ends then is for others to
//! say.

#[cfg(unix)]
use std::task::Poll;
use std::{pin::pin, time::Duration};

use futures_core::Stream;
use futures_util::StreamExt as _;

use crate::{
    driver,
    error::{Error, ErrorKind, Result},
};

/// Signals that come this soon after the first belong to the same stop.
pub(super) const SAME_STOP: Duration = Duration::from_secs(1);

/// Each time the process is told to end: by SIGTERM, SIGINT (ctrl-c), or what the system has in their place. From now on these
/// no longer end it by themselves.
///
/// # Errors
/// As [`driver::check_runtime`]; [`ErrorKind::InvalidArgument`] if they cannot be listened for.
pub(super) fn listen() -> Result<impl Stream<Item = Result<()>>> {
    let failed = |cause: std::io::Error| {
        Error::new(ErrorKind::InvalidArgument, "signals cannot be listened for").with_source(cause)
    };
    driver::check_runtime()?;
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind: SignalKind| {
            let listening = std::panic::catch_unwind(|| signal(kind)).map_err(|_| driver::no_io());
            listening.and_then(|listening| listening.map_err(failed))
        };
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        Ok(futures_util::stream::poll_fn(move |context| {
            let is_told = terminate.poll_recv(context).is_ready() || interrupt.poll_recv(context).is_ready();
            if is_told { Poll::Ready(Some(Ok(()))) } else { Poll::Pending }
        }))
    }
    #[cfg(not(unix))]
    {
        let signals = futures_util::stream::repeat(()).then(|()| tokio::signal::ctrl_c());
        Ok(signals.map(move |heard| heard.map_err(failed)))
    }
}

/// Tells of the first signal by `first`, and returns when there is one of another stop.
pub(super) async fn second(signals: impl Stream<Item = Result<()>>, first: impl FnOnce(Result<()>)) {
    let mut signals = pin!(signals);
    first(signals.next().await.unwrap_or(Ok(())));
    // A terminal and a supervisor may both tell of one and the same stop.
    let same = async {
        while matches!(signals.next().await, Some(Ok(()))) {}
        std::future::pending::<()>().await
    };
    let _elapsed = tokio::time::timeout(SAME_STOP, same).await;
    if !matches!(signals.next().await, Some(Ok(()))) {
        std::future::pending().await
    }
}
