//! The byte stream under the messenger: a socket, plain or TLS, with what the messenger lacks.
//!
//! It joins the length prefix with the message into one write, and reads small answers with one call. It counts the
//! frames that have left, on which the order of requests rests (see [`order`](super::order)). It looks at the head of
//! every answer: what is on the other side may be TLS or HTTP, announce a length that cannot be, or answer what nobody
//! asked; it says why and ends the connection. It can be ended from outside while a write waits for a peer that does not
//! read. Answers that a caller wants whole are read past the messenger (see [`fetch_memory`](super::fetch_memory)). Never
//! interprets anything after the correlation id.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Weak, atomic::Ordering},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    api::wire::{Api, FetchRequest},
    faults::FaultLog,
    fetch_memory::{Buffers, Filling, KeptMemory, Slot},
    notices::{Fault, Limits, Notices},
    tls::is_refusal,
    transport::TransportStream,
};

/// A request that waits for its answer.
struct Unanswered {
    id: i32,
    fetches: bool,
    whole: Option<Weak<Slot>>,
}

/// Reads up to this size go through the buffer; larger ones straight to where they are wanted.
const READ_BUFFER: usize = 4096;

/// Length and correlation id.
const HEAD: usize = 8;

/// An answer that is made up: the head, and one byte that means "no tagged fields" if the answer's header has them.
const MADE_UP: usize = HEAD + 1;

/// The stream under the messenger.
pub(crate) struct Stream {
    /// `None` once the stream has ended: the socket is closed at once, and not when the last handle goes.
    io: Option<Box<dyn TransportStream>>,
    notices: Arc<Notices>,
    faults: FaultLog,
    /// Bytes read but not yet asked for.
    ahead: Box<[u8]>,
    ahead_start: usize,
    ahead_end: usize,
    /// Bytes of the current answer that were not handed out yet.
    answer_left: usize,
    /// The first answer's head was looked at.
    greeted: bool,
    /// Frames that wait for their answer, in the order in which they were written.
    unanswered: VecDeque<Unanswered>,
    /// The answer that is read whole now.
    filling: Option<Filling>,
    buffers: Buffers,
    /// Answers to be made up, and the one that is handed out now.
    made_up: VecDeque<i32>,
    made_up_answer: [u8; MADE_UP],
    made_up_start: usize,
    /// A length prefix that waits for its message.
    held: [u8; 4],
    held_start: usize,
    /// Bytes of the current frame's message that were not written yet.
    message_left: usize,
    /// The current message's correlation id was not noted yet.
    unnamed: bool,
    /// The current message gets no answer: one is made up as soon as it has left.
    answer_none: Option<i32>,
    stalled: bool,
}

impl Stream {
    /// What it keeps of the memory of answers counts in `kept`.
    pub(crate) fn new(
        io: Box<dyn TransportStream>,
        limits: Limits,
        kept: KeptMemory,
        faults: FaultLog,
    ) -> (Self, Arc<Notices>) {
        let notices = Arc::new(Notices::default());
        *notices.limits.lock() = limits;
        let stream = Self {
            io: Some(io),
            notices: Arc::clone(&notices),
            faults,
            ahead: vec![0; READ_BUFFER].into_boxed_slice(),
            ahead_start: 0,
            ahead_end: 0,
            answer_left: 0,
            greeted: false,
            unanswered: VecDeque::new(),
            filling: None,
            buffers: Buffers::within(kept),
            made_up: VecDeque::new(),
            made_up_answer: [0, 0, 0, 5, 0, 0, 0, 0, 0],
            made_up_start: MADE_UP,
            unnamed: false,
            answer_none: None,
            held: [0; 4],
            held_start: 4,
            message_left: 0,
            stalled: false,
        };
        (stream, notices)
    }

    fn io(&mut self) -> io::Result<&mut Box<dyn TransportStream>> {
        if self.notices.ended.load(Ordering::Acquire) {
            self.io = None;
        }
        let closed = || io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was ended");
        self.io.as_mut().ok_or_else(closed)
    }

    /// Nothing more is read or written. Closes the socket and lets the other half know.
    fn close(&mut self) {
        self.io = None;
        (self.filling, self.buffers) = (None, Buffers::default());
        self.notices.lost.store(true, Ordering::Release);
        self.notices.wake_waiting();
        self.notices.reader.wake();
        self.notices.writer.wake();
    }

    fn fail(&mut self, fault: Fault) -> io::Error {
        let _ = self.notices.fault.set(fault);
        if self.greeted {
            self.faults.tell(fault);
        }
        self.close();
        io::Error::new(io::ErrorKind::InvalidData, "what answered does not keep to the protocol")
    }

    /// Reads more behind what is ahead. True at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.ahead_start == self.ahead_end {
            (self.ahead_start, self.ahead_end) = (0, 0);
        } else if self.ahead.len() - self.ahead_start < HEAD {
            self.ahead.copy_within(self.ahead_start..self.ahead_end, 0);
            (self.ahead_start, self.ahead_end) = (0, self.ahead_end - self.ahead_start);
        }
        let Some(io) = self.io.as_mut() else { return Poll::Ready(Ok(true)) };
        let mut buffer = ReadBuf::new(&mut self.ahead[self.ahead_end..]);
        ready!(Pin::new(io).poll_read(cx, &mut buffer))?;
        let read = buffer.filled().len();
        self.ahead_end += read;
        Poll::Ready(Ok(read == 0))
    }

    /// Looks at the length and the correlation id of the next answer, before any of it is handed out. True at the end of
    /// the stream.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            let ahead = &self.ahead[self.ahead_start..self.ahead_end];
            if let Some(&length) = ahead.first_chunk::<4>() {
                let limits = *self.notices.limits.lock();
                let length = match check_length(length, limits.fetch.max(limits.other), self.greeted) {
                    Ok(length) => length,
                    Err(fault) => return Poll::Ready(Err(self.fail(fault))),
                };
                if let Some(&id) = ahead[4..].first_chunk::<4>() {
                    let id = i32::from_be_bytes(id);
                    let Some(place) = self.unanswered.iter().position(|asked| asked.id == id) else {
                        return Poll::Ready(Err(self.fail(Fault::Unasked(id))));
                    };
                    let asked = self.unanswered.remove(place);
                    let fetches = asked.as_ref().is_some_and(|asked| asked.fetches);
                    let limit = if fetches { limits.fetch } else { limits.other };
                    // The length counts the id.
                    if length + 4 > limit {
                        return Poll::Ready(Err(self.fail(Fault::TooLarge { actual: length + 4, limit })));
                    }
                    self.greeted = true;
                    self.notices.heard.grow();
                    if let Some(slot) = asked.and_then(|asked| asked.whole) {
                        self.ahead_start += HEAD;
                        self.filling = Some(self.buffers.begin(id, length, slot));
                    } else {
                        self.answer_left = HEAD + length;
                    }
                    return Poll::Ready(Ok(false));
                }
            }
            if ready!(self.poll_fill(cx))? {
                return Poll::Ready(Ok(true));
            }
        }
    }

    fn poll_read_some(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.answer_left == 0 {
            if self.made_up_start == MADE_UP
                && let Some(id) = self.made_up.pop_front()
            {
                self.made_up_answer[4..HEAD].copy_from_slice(&id.to_be_bytes());
                self.made_up_start = 0;
            }
            if self.made_up_start < MADE_UP {
                self.put_made_up(out);
                return Poll::Ready(Ok(()));
            }
            let ended = match self.filling {
                None => ready!(self.poll_head(cx))?,
                Some(_) => ready!(self.poll_whole(cx))?,
            };
            if ended {
                return Poll::Ready(Ok(()));
            }
        }
        if self.ahead_start == self.ahead_end {
            // Reads never go past the end of an answer, because the head of the next one must be checked first.
            if (READ_BUFFER..=self.answer_left).contains(&out.remaining()) {
                let before = out.filled().len();
                let io = self.io()?;
                ready!(Pin::new(io).poll_read(cx, out))?;
                self.answer_left -= out.filled().len() - before;
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_fill(cx))? {
                return Poll::Ready(Ok(()));
            }
        }
        let ahead = &self.ahead[self.ahead_start..self.ahead_end];
        let taken = ahead.len().min(out.remaining()).min(self.answer_left);
        out.put_slice(&ahead[..taken]);
        self.ahead_start += taken;
        self.answer_left -= taken;
        Poll::Ready(Ok(()))
    }

    /// Reads the rest of an answer that is wanted whole; the messenger gets one that is made up. True at the end of the
    /// stream.
    fn poll_whole(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let (Some(filling), Some(io)) = (&mut self.filling, &mut self.io) else {
            return Poll::Ready(Ok(true));
        };
        self.ahead_start += filling.take(&self.ahead[self.ahead_start..self.ahead_end]);
        while !filling.is_whole() {
            if ready!(filling.poll_read(cx, io))? {
                return Poll::Ready(Ok(true));
            }
        }
        if let Some(filling) = self.filling.take() {
            self.made_up.push_front(self.buffers.finish(filling));
        }
        Poll::Ready(Ok(false))
    }

    /// Hands out an answer of a correlation id and nothing else, for a request that the broker does not answer, and for an
    /// answer that was read whole.
    fn put_made_up(&mut self, out: &mut ReadBuf<'_>) {
        let rest = &self.made_up_answer[self.made_up_start..];
        let taken = rest.len().min(out.remaining());
        out.put_slice(&rest[..taken]);
        self.made_up_start += taken;
    }

    /// Writes what is held together with `message`; returns how much of `message` was written, 0 only for an empty one.
    fn poll_write_joined(&mut self, cx: &mut Context<'_>, message: &[u8]) -> Poll<io::Result<usize>> {
        while self.held_start < self.held.len() {
            let held = self.held;
            let held = &held[self.held_start..];
            let slices = [IoSlice::new(held), IoSlice::new(message)];
            let io = self.io()?;
            let written = ready!(Pin::new(io).poll_write_vectored(cx, &slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let held_len = held.len();
            self.held_start += written.min(held_len);
            if written > held_len {
                return Poll::Ready(Ok(written - held_len));
            }
        }
        if message.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let io = self.io()?;
        Pin::new(io).poll_write(cx, message)
    }

    /// Notes who waits for an answer, before the first byte of the request can be on its way.
    fn name(&mut self, message: &[u8]) {
        self.unnamed = false;
        let Some([key_high, key_low, _, _, id @ ..]) = message.first_chunk::<8>() else { return };
        let fetches = i16::from_be_bytes([*key_high, *key_low]) == FetchRequest::KEY;
        let id = i32::from_be_bytes(*id);
        if self.notices.next_unanswered.swap(false, Ordering::AcqRel) {
            self.answer_none = Some(id);
        } else {
            let whole = self.notices.next_whole.lock().take();
            self.unanswered.push_back(Unanswered { id, fetches, whole });
        }
    }

    /// The whole frame has left.
    fn on_left(&mut self) {
        if self.message_left == 0 && self.notices.left.get() < self.notices.begun.get() {
            self.notices.left.grow();
            if let Some(id) = self.answer_none.take() {
                self.made_up.push_back(id);
                self.notices.reader.wake();
            }
        }
    }

    /// Keeps note of a peer that does not take what is written, and of a stream that has failed.
    fn note<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_pending() != self.stalled {
            self.stalled = result.is_pending();
            self.notices.set_stalled(self.stalled);
        }
        match &result {
            Poll::Ready(Err(_)) => self.close(),
            Poll::Ready(Ok(_)) => {}
            Poll::Pending => {
                self.notices.writer.register(cx.waker());
                // The stream may have been ended before the waker was registered.
                if self.notices.ended.load(Ordering::Acquire) {
                    cx.waker().wake_by_ref();
                }
            }
        }
        result
    }
}

/// How much follows the correlation id of an answer of this length.
fn check_length(bytes: [u8; 4], limit: usize, greeted: bool) -> Result<usize, Fault> {
    let length = i32::from_be_bytes(bytes);
    let good = usize::try_from(length).ok().filter(|length| (4..=limit).contains(length));
    match (good, bytes) {
        // The record type "alert" and the major version of TLS: as a length, 352 million.
        (_, [0x15, 0x03, ..]) if !greeted => Err(Fault::Tls),
        // An answer is at least its correlation id.
        (Some(good), _) => Ok(good - 4),
        (None, [b'H', b'T', b'T', b'P']) if !greeted => Err(Fault::Http),
        (None, _) if !greeted => Err(Fault::Stranger(bytes)),
        (None, _) => Err(usize::try_from(length)
            .ok()
            .filter(|length| *length > limit)
            .map_or(Fault::Length(length), |actual| Fault::TooLarge { actual, limit })),
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.notices.reader.register(cx.waker());
        if let Err(error) = this.io() {
            this.close();
            return Poll::Ready(Err(error));
        }
        let before = out.filled().len();
        let result = this.poll_read_some(cx, out);
        match &result {
            Poll::Ready(Err(error)) => {
                this.notices.refused.fetch_or(is_refusal(error), Ordering::AcqRel);
                this.close();
            }
            Poll::Ready(Ok(())) if out.filled().len() == before && out.remaining() > 0 => this.close(),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        result
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // The messenger writes the length by itself; with TCP_NODELAY that would be a packet of its own.
        if this.message_left == 0
            && this.held_start == this.held.len()
            && let Ok(length) = bytes.try_into()
        {
            (this.held, this.held_start) = (length, 0);
            this.message_left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            this.unnamed = true;
            this.notices.begun.grow();
            return Poll::Ready(Ok(4));
        }
        if this.unnamed {
            this.name(bytes);
        }
        let result = this.poll_write_joined(cx, bytes);
        if let Poll::Ready(Ok(written)) = result {
            this.message_left = this.message_left.saturating_sub(written);
        }
        this.note(cx, result)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut result = this.poll_write_joined(cx, &[]).map_ok(|_| ());
        if matches!(result, Poll::Ready(Ok(()))) {
            result = match &mut this.io {
                Some(io) => Pin::new(io).poll_flush(cx),
                // The peer may have answered and closed before this flush. The frame is written whole, so this is no
                // error, which would lose the answer.
                None => Poll::Ready(Ok(())),
            };
        }
        if matches!(result, Poll::Ready(Ok(()))) {
            this.on_left();
        }
        this.note(cx, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Some(io) => Pin::new(io).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests;
