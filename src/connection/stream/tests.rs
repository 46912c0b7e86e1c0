//! Over pipes in memory, of which the test has the other end.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::{super::faults::Faults, *};
use crate::config::settings::Address;

/// A request with this correlation id, as the messenger writes it.
async fn ask(stream: &mut Stream, id: i32, more: &[u8]) -> io::Result<()> {
    let mut message = vec![0; 4];
    message.extend(id.to_be_bytes());
    message.extend(more);
    stream.write_all(&(message.len() as u32).to_be_bytes()).await?;
    stream.write_all(&message).await?;
    stream.flush().await
}

fn answer(id: i32, body: &[u8]) -> Vec<u8> {
    [&(4 + body.len() as i32).to_be_bytes()[..], &id.to_be_bytes(), body].concat()
}

fn open(io: DuplexStream, limits: Limits) -> (Stream, Arc<Notices>) {
    let address = Address { host: "h".to_owned(), port: 9092 };
    Stream::new(Box::new(io), limits, KeptMemory::default(), Faults::default().at(&address))
}

fn both(limit: usize) -> Limits {
    Limits { fetch: limit, other: limit }
}

/// Reads one answer as the messenger does.
async fn read(stream: &mut Stream) -> io::Result<(i32, Vec<u8>)> {
    let length = stream.read_u32().await? as usize;
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok((i32::from_be_bytes(message[..4].try_into().unwrap()), message[4..].to_vec()))
}

/// A stream that has asked for 0, 1, 2 and 3, and the peer's end behind these requests.
async fn asked(max_answer: usize) -> (Stream, Arc<Notices>, DuplexStream) {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let (mut stream, notices) = open(near, both(max_answer));
    for id in 0..4 {
        ask(&mut stream, id, b"").await.unwrap();
    }
    far.read_exact(&mut [0; 4 * 12]).await.unwrap();
    (stream, notices, far)
}

#[tokio::test]
async fn length_and_message_cross_together_whatever_the_pieces() {
    for capacity in [1, 2, 3, 5, 64] {
        let (near, mut far) = tokio::io::duplex(capacity);
        let (mut stream, notices) = open(near, both(1000));
        let write = async {
            for (id, message) in [(7, &b"hello broker"[..]), (8, b""), (9, b"abcd")] {
                ask(&mut stream, id, message).await.unwrap();
            }
            stream.shutdown().await.unwrap();
        };
        let mut seen = Vec::new();
        let (_, read) = tokio::join!(write, far.read_to_end(&mut seen));
        read.unwrap();
        let expected = b"\0\0\0\x14\0\0\0\0\0\0\0\x07hello broker\
            \0\0\0\x08\0\0\0\0\0\0\0\x08\
            \0\0\0\x0c\0\0\0\0\0\0\0\x09abcd";
        assert_eq!(seen, expected, "capacity {capacity}");
        assert_eq!((notices.begun.get(), notices.left.get()), (3, 3));
    }
}

#[tokio::test]
async fn answers_are_read_whole_whatever_the_pieces() {
    let big = vec![9u8; 3 * READ_BUFFER];
    for capacity in [1, 3, 100, 1 << 20] {
        let (near, mut far) = tokio::io::duplex(capacity);
        let (mut stream, notices) = open(near, both(1 << 20));
        let sent = [answer(2, &big), answer(0, b"hello"), answer(1, b"")].concat();
        let peer = async move {
            far.read_exact(&mut [0; 3 * 12]).await.unwrap();
            far.write_all(&sent).await.unwrap();
        };
        let client = async {
            for id in 0..3 {
                ask(&mut stream, id, b"").await.unwrap();
            }
            assert_eq!(read(&mut stream).await.unwrap(), (2, big.clone()));
            assert_eq!(read(&mut stream).await.unwrap(), (0, b"hello".to_vec()));
            assert_eq!(read(&mut stream).await.unwrap(), (1, Vec::new()));
            assert!(!notices.is_lost());
            assert!(stream.read_u8().await.is_err());
            assert!(notices.is_lost() && notices.fault().is_none());
        };
        tokio::join!(peer, client);
    }
}

#[tokio::test]
async fn an_answer_nobody_asked_for_ends_the_stream_before_any_of_it_is_handed_out() {
    for (sent, id) in [(answer(77, b"x"), 77), ([answer(1, b"x"), answer(1, b"x")].concat(), 1)] {
        let (mut stream, notices, mut far) = asked(1000).await;
        far.write_all(&sent).await.unwrap();
        if id == 1 {
            read(&mut stream).await.unwrap();
        }
        assert!(stream.read_u8().await.is_err());
        assert_eq!(notices.fault(), Some(Fault::Unasked(id)));
        assert!(far.write_all(b"more").await.is_err(), "the socket is closed at once");
    }
}

#[tokio::test]
async fn a_length_that_cannot_be_ends_the_stream() {
    for (length, fault) in [
        (-1, Fault::Length(-1)),
        (i32::MIN, Fault::Length(i32::MIN)),
        (3, Fault::Length(3)),
        (1001, Fault::TooLarge { actual: 1001, limit: 1000 }),
        (i32::MAX, Fault::TooLarge { actual: i32::MAX as usize, limit: 1000 }),
    ] {
        let (mut stream, notices, mut far) = asked(1000).await;
        far.write_all(&answer(0, b"")).await.unwrap();
        far.write_all(&length.to_be_bytes()).await.unwrap();
        assert_eq!(read(&mut stream).await.unwrap(), (0, Vec::new()));
        assert!(stream.read_u8().await.is_err());
        assert_eq!(notices.fault(), Some(fault));
    }
}

#[tokio::test]
async fn what_is_no_fetch_has_a_limit_of_its_own() {
    for (key, length, is_good) in [(1, 900, true), (1, 1001, false), (3, 100, true), (3, 101, false)] {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let (mut stream, notices) = open(near, Limits { fetch: 1000, other: 100 });
        // Before the first answer it would be a stranger's.
        stream.greeted = true;
        stream.write_all(&8_i32.to_be_bytes()).await.unwrap();
        stream.write_all(&[0, key, 0, 0, 0, 0, 0, 0]).await.unwrap();
        far.write_all(&answer(0, &vec![7; length - 4])).await.unwrap();
        if is_good {
            assert_eq!(read(&mut stream).await.unwrap().1.len(), length - 4);
            continue;
        }
        assert!(stream.read_u8().await.is_err());
        let limit = if key == 1 { 1000 } else { 100 };
        assert_eq!(notices.fault(), Some(Fault::TooLarge { actual: length, limit }), "{key}");
    }
}

#[tokio::test]
async fn a_write_that_waits_for_its_peer_ends_with_the_stream() {
    let (near, _far) = tokio::io::duplex(16);
    let (mut stream, notices) = open(near, both(1000));
    let end = async {
        tokio::task::yield_now().await;
        assert!(notices.stalled_since().is_some());
        notices.end();
    };
    let (written, ()) = tokio::join!(ask(&mut stream, 0, &[7; 1000]), end);
    assert_eq!(written.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    assert_eq!((notices.begun.get(), notices.left.get()), (1, 0));
    assert!(stream.read_u8().await.is_err());
}

#[tokio::test]
async fn a_peer_that_answers_and_closes_before_the_flush_is_no_failed_write() {
    let (near, mut far) = tokio::io::duplex(1 << 10);
    let (mut stream, notices) = open(near, both(1000));
    stream.write_all(&8_i32.to_be_bytes()).await.unwrap();
    stream.write_all(&[0, 0, 0, 0, 0, 0, 0, 7]).await.unwrap();
    far.write_all(&answer(7, b"no")).await.unwrap();
    drop(far);
    assert_eq!(read(&mut stream).await.unwrap(), (7, b"no".to_vec()));
    assert!(stream.read_u8().await.is_err());
    assert!(notices.is_lost());
    stream.flush().await.unwrap();
}

#[tokio::test]
async fn a_request_without_answer_gets_one_that_is_made_up() {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let (mut stream, notices) = open(near, both(1000));
    ask(&mut stream, 0, b"").await.unwrap();
    notices.expect_no_answer();
    ask(&mut stream, 1, b"").await.unwrap();
    ask(&mut stream, 2, b"").await.unwrap();
    assert_eq!(read(&mut stream).await.unwrap(), (1, vec![0]));
    far.write_all(&[answer(0, b"x"), answer(2, b"y"), answer(1, b"z")].concat()).await.unwrap();
    assert_eq!(read(&mut stream).await.unwrap(), (0, b"x".to_vec()));
    assert_eq!(read(&mut stream).await.unwrap(), (2, b"y".to_vec()));
    assert!(stream.read_u8().await.is_err());
    assert_eq!(notices.fault(), Some(Fault::Unasked(1)));
}

#[tokio::test]
async fn an_answer_that_is_wanted_whole_comes_past_the_messenger_whatever_the_pieces() {
    let big: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
    for capacity in [1, 3, 100, 1 << 20] {
        let (near, mut far) = tokio::io::duplex(capacity);
        let (mut stream, notices) = open(near, both(1 << 20));
        let slots: [Arc<Slot>; 4] = Default::default();
        // Nobody waits for the third any more.
        let sent = [answer(1, &big), answer(0, b"plain"), answer(2, &[8; 5000]), answer(3, b"")].concat();
        let peer = async move {
            far.read_exact(&mut [0; 4 * 12]).await.unwrap();
            far.write_all(&sent).await.unwrap();
        };
        let slots = &slots;
        let client = async move {
            for (id, slot) in slots.iter().enumerate() {
                if id > 0 {
                    let slot = if id == 2 { Arc::default() } else { Arc::clone(slot) };
                    notices.expect_whole(Arc::downgrade(&slot));
                    ask(&mut stream, id as i32, b"").await.unwrap();
                } else {
                    ask(&mut stream, 0, b"").await.unwrap();
                }
            }
            for (id, seen) in [(1, &[0][..]), (0, b"plain"), (2, &[0]), (3, &[0])] {
                assert_eq!(read(&mut stream).await.unwrap(), (id, seen.to_vec()), "capacity {capacity}");
            }
            assert!(stream.read_u8().await.is_err());
            assert!(notices.is_lost() && notices.fault().is_none());
        };
        tokio::join!(peer, client);
        let seen = slots.each_ref().map(|slot| slot.lock().take().map(|bytes| bytes.to_vec()));
        assert_eq!(seen, [None, Some(big.clone()), None, Some(Vec::new())], "capacity {capacity}");
    }
}

#[tokio::test]
async fn a_stream_that_ends_within_an_answer_wanted_whole_has_no_answer() {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let (mut stream, notices) = open(near, both(1 << 20));
    let slot = Arc::<Slot>::default();
    notices.expect_whole(Arc::downgrade(&slot));
    ask(&mut stream, 0, b"").await.unwrap();
    far.write_all(&answer(0, &[1; 9000])[..8000]).await.unwrap();
    drop(far);
    assert!(read(&mut stream).await.is_err());
    assert!(notices.is_lost() && slot.lock().is_none());
}

#[test]
fn first_bytes_of_tls_http_and_nonsense_are_told_apart_from_a_length() {
    let first = |bytes, limit| check_length(bytes, limit, false);
    assert_eq!(first([0x15, 3, 3, 0], i32::MAX as usize), Err(Fault::Tls));
    assert_eq!(first(*b"HTTP", 100), Err(Fault::Http));
    assert_eq!(first(*b"SSH-", 100), Err(Fault::Stranger(*b"SSH-")));
    assert_eq!(first([0xff; 4], 100), Err(Fault::Stranger([0xff; 4])));
    assert_eq!(first([0, 0, 0, 100], 100), Ok(96));
    assert_eq!(first([0, 0, 0, 101], 100), Err(Fault::Stranger([0, 0, 0, 101])));
    assert_eq!(first([0, 0, 0, 3], 100), Err(Fault::Stranger([0, 0, 0, 3])));
}
