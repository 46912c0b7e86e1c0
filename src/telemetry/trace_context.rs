//! What the record that is being handled says of its trace, for what is sent meanwhile to pass on (W3C trace context). Only where
//! the feature `traceparent` is on: looking at the headers of every record costs CPU.

use std::{cell::RefCell, sync::Arc};

use super::spans;
use crate::producer::OutgoingRecord;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

thread_local! {
    static CURRENT: RefCell<Option<Arc<TraceContext>>> = const { RefCell::new(None) };
}

/// The trace that a record belongs to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TraceContext {
    parent: String,
    state: Option<String>,
}

impl TraceContext {
    /// `None` for a record that names no trace.
    pub(crate) fn of(header: impl Fn(&str) -> Option<String>) -> Option<Arc<Self>> {
        let parent =
            header(TRACEPARENT).filter(|text| spans::traceparent(Some(text.as_bytes())).is_some())?;
        Some(Arc::new(Self { parent, state: header(TRACESTATE) }))
    }

    /// That of the record which this thread is handling.
    pub(crate) fn current() -> Option<Arc<Self>> {
        // While the thread ends there is none.
        CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
    }

    /// Makes it that of this thread, until the guard is dropped.
    pub(crate) fn enter(context: Option<&Arc<Self>>) -> Entered {
        Entered { before: CURRENT.with(|current| current.replace(context.cloned())) }
    }
}

/// Puts back what was there before.
pub(crate) struct Entered {
    before: Option<Arc<TraceContext>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with(|current| *current.borrow_mut() = self.before.take());
    }
}

/// Adds the headers to what is sent while a record is handled. A `traceparent` that is there already stays.
pub(crate) fn pass_on(record: &mut OutgoingRecord<'_>) {
    let Some(context) = TraceContext::current() else { return };
    let has = |name| record.headers().iter().any(|header| header.key == name);
    if has(TRACEPARENT) {
        return;
    }
    let state = context.state.clone().filter(|_| !has(TRACESTATE));
    record.add_header(TRACEPARENT, context.parent.clone());
    if let Some(state) = state {
        record.add_header(TRACESTATE, state);
    }
}
