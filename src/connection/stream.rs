//! The byte stream under the messenger: a socket, plain or TLS, with what the messenger lacks.
//!
//! It joins the length prefix with the message into one write, reads small answers with one call, notices that the peer
//! has gone while nothing is asked, and looks at the first bytes that come back: what is on the other side may be TLS or
//! HTTP, not Kafka. Never interprets anything after that first length.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::transport::TransportStream;

/// What the stream has noticed, shared with the connection.
#[derive(Default)]
pub(crate) struct Notices {
    lost: AtomicBool,
    stranger: OnceLock<Stranger>,
}

impl Notices {
    /// Whether the peer has closed the stream, or reading or writing has failed.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// What answered in place of a Kafka broker.
    pub(crate) fn stranger(&self) -> Option<Stranger> {
        self.stranger.get().copied()
    }
}

/// Something that is not a Kafka broker, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stranger {
    /// A TLS alert: the listener wants TLS.
    Tls,
    /// An HTTP answer.
    Http,
    /// A first length that no Kafka broker sends.
    Other([u8; 4]),
}

/// Reads up to this size go through the buffer; larger ones straight to where they are wanted.
const READ_BUFFER: usize = 4096;

/// The stream under the messenger.
pub(crate) struct Stream {
    io: Box<dyn TransportStream>,
    notices: Arc<Notices>,
    /// Bytes read but not yet asked for.
    ahead: Box<[u8]>,
    ahead_start: usize,
    ahead_end: usize,
    /// The first four bytes were looked at.
    greeted: bool,
    max_answer: usize,
    /// A length prefix that waits for its message.
    held: [u8; 4],
    held_start: usize,
}

impl Stream {
    pub(crate) fn new(io: impl TransportStream, max_answer: usize) -> (Self, Arc<Notices>) {
        let notices = Arc::new(Notices::default());
        let stream = Self {
            io: Box::new(io),
            notices: Arc::clone(&notices),
            ahead: vec![0; READ_BUFFER].into_boxed_slice(),
            ahead_start: 0,
            ahead_end: 0,
            greeted: false,
            max_answer,
            held: [0; 4],
            held_start: 4,
        };
        (stream, notices)
    }

    /// Fills the buffer, which is empty but for a greeting that came in pieces. True at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.ahead_start == self.ahead_end {
            (self.ahead_start, self.ahead_end) = (0, 0);
        }
        let mut buffer = ReadBuf::new(&mut self.ahead[self.ahead_end..]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
        let read = buffer.filled().len();
        self.ahead_end += read;
        Poll::Ready(Ok(read == 0))
    }

    /// Looks at the first four bytes of the connection, which are the length of the first answer.
    fn poll_greeting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.greeted {
            if let Some(&head) = self.ahead[self.ahead_start..self.ahead_end].first_chunk::<4>() {
                self.greeted = true;
                if let Some(stranger) = stranger(head, self.max_answer) {
                    let _ = self.notices.stranger.set(stranger);
                    let text = "what answered is not a Kafka broker";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
                }
            } else if ready!(self.poll_fill(cx))? {
                // Some answer an alert shorter than a length and close.
                self.greeted = true;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read_some(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_greeting(cx))?;
        if self.ahead_start == self.ahead_end {
            if out.remaining() >= READ_BUFFER {
                return Pin::new(&mut self.io).poll_read(cx, out);
            }
            ready!(self.poll_fill(cx))?;
        }
        let ahead = &self.ahead[self.ahead_start..self.ahead_end];
        let taken = ahead.len().min(out.remaining());
        out.put_slice(&ahead[..taken]);
        self.ahead_start += taken;
        Poll::Ready(Ok(()))
    }

    /// Writes what is held together with `message`; returns how much of `message` was written, 0 only for an empty one.
    fn poll_write_joined(&mut self, cx: &mut Context<'_>, message: &[u8]) -> Poll<io::Result<usize>> {
        while self.held_start < self.held.len() {
            let held = &self.held[self.held_start..];
            let held_len = held.len();
            let slices = [IoSlice::new(held), IoSlice::new(message)];
            let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held_start += written.min(held_len);
            if written > held_len {
                return Poll::Ready(Ok(written - held_len));
            }
        }
        if message.is_empty() {
            return Poll::Ready(Ok(0));
        }
        Pin::new(&mut self.io).poll_write(cx, message)
    }

    fn note<T>(&self, result: &Poll<io::Result<T>>) {
        if let Poll::Ready(Err(_)) = result {
            self.notices.lost.store(true, Ordering::Release);
        }
    }
}

fn stranger(head: [u8; 4], max_answer: usize) -> Option<Stranger> {
    match head {
        // The record type "alert" and the major version of TLS: as a length, 352 million.
        [0x15, 0x03, ..] => Some(Stranger::Tls),
        [b'H', b'T', b'T', b'P'] => Some(Stranger::Http),
        _ => match usize::try_from(i32::from_be_bytes(head)) {
            // A response is at least its correlation id.
            Ok(length) if (4..=max_answer).contains(&length) => None,
            _ => Some(Stranger::Other(head)),
        },
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        let result = this.poll_read_some(cx, out);
        this.note(&result);
        if matches!(result, Poll::Ready(Ok(()))) && out.filled().len() == before && out.remaining() > 0 {
            this.notices.lost.store(true, Ordering::Release);
        }
        result
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // The messenger writes the length by itself; with TCP_NODELAY that would be a packet of its own.
        // The last four bytes of a message may be held too, if they are written alone: the flush after it writes them.
        if let Ok(length) = bytes.try_into()
            && this.held_start == this.held.len()
        {
            (this.held, this.held_start) = (length, 0);
            return Poll::Ready(Ok(4));
        }
        let result = this.poll_write_joined(cx, bytes);
        this.note(&result);
        result
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = match ready!(this.poll_write_joined(cx, &[])) {
            Ok(_) => Pin::new(&mut this.io).poll_flush(cx),
            Err(error) => Poll::Ready(Err(error)),
        };
        this.note(&result);
        result
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn length_and_message_cross_together_whatever_the_pieces() {
        for capacity in [1, 2, 3, 5, 64] {
            let (near, mut far) = tokio::io::duplex(capacity);
            let (mut stream, _) = Stream::new(near, 1000);
            let write = async {
                for message in [&b"hello broker"[..], b"abcd", b"x"] {
                    stream.write_all(&(message.len() as u32).to_be_bytes()).await.unwrap();
                    stream.write_all(message).await.unwrap();
                    stream.flush().await.unwrap();
                }
                stream.shutdown().await.unwrap();
            };
            let mut seen = Vec::new();
            let (_, read) = tokio::join!(write, far.read_to_end(&mut seen));
            read.unwrap();
            assert_eq!(seen, b"\0\0\0\x0chello broker\0\0\0\x04abcd\0\0\0\x01x", "capacity {capacity}");
        }
    }

    #[tokio::test]
    async fn answers_are_read_whole_whatever_the_pieces() {
        let big = vec![9u8; 3 * READ_BUFFER];
        for capacity in [1, 3, 100, 1 << 20] {
            let (near, mut far) = tokio::io::duplex(capacity);
            let (mut stream, notices) = Stream::new(near, 1 << 20);
            let sent = big.clone();
            let write = async move {
                far.write_all(&(sent.len() as u32).to_be_bytes()).await.unwrap();
                far.write_all(&sent).await.unwrap();
                far.write_all(b"\0\0\0\x05hello").await.unwrap();
            };
            let read = async {
                let mut seen = vec![0; big.len()];
                assert_eq!(stream.read_u32().await.unwrap() as usize, big.len());
                stream.read_exact(&mut seen).await.unwrap();
                assert_eq!(seen, big);
                assert_eq!(stream.read_u32().await.unwrap(), 5);
                let mut hello = [0; 5];
                stream.read_exact(&mut hello).await.unwrap();
                assert_eq!(&hello, b"hello");
                assert!(!notices.is_lost());
                assert!(stream.read_u8().await.is_err());
                assert!(notices.is_lost());
            };
            tokio::join!(write, read);
        }
    }

    #[test]
    fn first_bytes_of_tls_http_and_nonsense_are_told_apart_from_a_length() {
        assert_eq!(stranger([0x15, 3, 3, 0], i32::MAX as usize), Some(Stranger::Tls));
        assert_eq!(stranger(*b"HTTP", 100), Some(Stranger::Http));
        assert_eq!(stranger(*b"SSH-", 100), Some(Stranger::Other(*b"SSH-")));
        assert_eq!(stranger([0xff; 4], 100), Some(Stranger::Other([0xff; 4])));
        assert_eq!(stranger([0, 0, 0, 100], 100), None);
        assert_eq!(stranger([0, 0, 0, 101], 100), Some(Stranger::Other([0, 0, 0, 101])));
        assert_eq!(stranger([0, 0, 0, 3], 100), Some(Stranger::Other([0, 0, 0, 3])));
    }
}
