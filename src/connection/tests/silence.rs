//! Brokers that answer late, or not at all, or want to be left alone.

use super::*;

#[tokio::test]
async fn a_late_answer_is_not_taken_for_anothers() {
    let (listener, address) = listen().await;
    let settings = settings();
    let client = async {
        let connection = dial(&address, &settings).await.unwrap();
        let beat = |within| connection.call(wire::HeartbeatRequest::default(), now() + within);
        let error = beat(Duration::from_millis(50)).await.unwrap_err();
        assert_eq!((error.kind(), error.api()), (ErrorKind::Timeout, Some("Heartbeat")));
        assert!(error.to_string().contains("request.timeout.ms"), "{error}");
        assert!(!connection.is_closed(), "a short deadline proves nothing against the broker");
        assert_eq!(beat(Duration::from_secs(20)).await.unwrap().throttle_time_ms, 2);
        assert_eq!(connection.in_flight(), 0);
    };
    against(count_heartbeats(&listener, 1), client).await;
}

#[tokio::test]
async fn a_request_unanswered_for_the_whole_request_timeout_closes_the_connection() {
    let (listener, address) = listen().await;
    let settings = ClientSettings { request_timeout: Duration::from_millis(50), ..settings() };
    let client = async {
        let connection = dial(&address, &settings).await.unwrap();
        let deadline = now() + settings.request_timeout;
        let error = connection.call(wire::HeartbeatRequest::default(), deadline).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(connection.is_closed());
        let error = connection.call(wire::HeartbeatRequest::default(), soon()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disconnected);
    };
    against(count_heartbeats(&listener, 1), client).await;
}

#[tokio::test]
async fn short_calls_that_all_go_unanswered_for_the_request_timeout_close_the_connection() {
    let (listener, address) = listen().await;
    let settings = ClientSettings { request_timeout: Duration::from_millis(400), ..settings() };
    let client = async {
        let connection = dial(&address, &settings).await.unwrap();
        let beat = |within| connection.call(wire::HeartbeatRequest::default(), now() + within);
        let short = Duration::from_millis(100);
        let started = now();
        while !connection.is_closed() {
            assert_eq!(beat(short).await.unwrap_err().kind(), ErrorKind::Timeout);
            assert!(now() - started < Duration::from_secs(60), "it waits behind the first for ever");
        }
        assert!(now() - started >= settings.request_timeout, "what is only slow is not given up");
    };
    let silence = async {
        let mut peer = accept(&listener).await;
        peer.greet().await;
        while peer.asked().await.is_some() {}
    };
    against(silence, client).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_between_begins_the_silence_anew_also_one_that_is_too_late_for_its_call() {
    let second = Duration::from_secs(1);
    for late in [false, true] {
        let (settings, mut peers) = Pipes::open();
        let server = async {
            let mut peer = Peer(peers.recv().await.unwrap());
            peer.greet().await;
            while let Some(asked) = peer.asked().await {
                if late {
                    tokio::time::sleep(2 * second).await;
                    peer.answer::<wire::HeartbeatRequest>(&asked, &Default::default()).await;
                }
            }
        };
        let client = async {
            let connection = dial(&nowhere(), &settings).await.unwrap();
            for _ in 0..20 {
                let beat = connection.call(wire::HeartbeatRequest::default(), now() + second);
                assert_eq!(beat.await.unwrap_err().kind(), ErrorKind::Timeout);
                if connection.is_closed() {
                    return true;
                }
                tokio::time::sleep(4 * second).await;
            }
            false
        };
        assert_eq!(against(server, client).await, !late, "late: {late}");
    }
}

/// A connection whose peer answers the heartbeats with these pauses, one after another, and none afterwards; it notes when
/// each came.
async fn pausing(listener: &TcpListener, pauses: &[i32], came: &Mutex<Vec<Instant>>) {
    let mut peer = accept(listener).await;
    peer.greet().await;
    let mut pauses = pauses.iter();
    while let Some(asked) = peer.asked().await {
        came.lock().push(now());
        let pause = pauses.next().copied().unwrap_or_default();
        let answer = wire::HeartbeatResponse { throttle_time_ms: pause, ..Default::default() };
        peer.answer::<wire::HeartbeatRequest>(&asked, &answer).await;
    }
}

#[tokio::test]
async fn nothing_is_sent_while_the_broker_wants_to_be_left_alone_and_the_pause_is_no_time_out() {
    let (listener, address) = listen().await;
    let (pause, came) = (Duration::from_millis(400), Mutex::<Vec<Instant>>::default());
    let settings = ClientSettings { request_timeout: Duration::from_millis(200), ..settings() };
    let client = async {
        let connection = dial(&address, &settings).await.unwrap().with_pauses(Arc::default());
        let beat = || connection.call(wire::HeartbeatRequest::default(), now() + settings.request_timeout);
        beat().await.unwrap();
        let until = connection.held_until().unwrap();
        // A deadline of its own is kept, and says why.
        let short = now() + Duration::from_millis(20);
        let error = connection.call(wire::HeartbeatRequest::default(), short).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Timeout && error.to_string().contains("quota"), "{error}");
        // The whole request time-out does not count the pause.
        let (first, second) = tokio::join!(beat(), beat());
        first.unwrap();
        second.unwrap();
        assert!(!connection.is_closed());
        let came = came.lock();
        assert_eq!(came.len(), 3, "what was given up was not sent");
        assert!(came[1] >= until && came[2] >= until);
        assert_eq!(connection.pauses.answers.load(Ordering::Relaxed), 1);
        assert_eq!(connection.pauses.paused_ms.load(Ordering::Relaxed), 400);
    };
    against(pausing(&listener, &[pause.as_millis() as i32], &came), client).await;
}

#[tokio::test]
async fn a_pause_that_comes_while_a_call_waits_is_added_to_its_time() {
    let (listener, address) = listen().await;
    let server = async {
        let mut peer = accept(&listener).await;
        peer.greet().await;
        let (first, second) = (peer.asked().await.unwrap(), peer.asked().await.unwrap());
        let answer = wire::HeartbeatResponse { throttle_time_ms: 400, ..Default::default() };
        peer.answer::<wire::HeartbeatRequest>(&first, &answer).await;
        // KIP-219: the broker reads on after the pause.
        tokio::time::sleep(Duration::from_millis(400)).await;
        peer.answer::<wire::HeartbeatRequest>(&second, &Default::default()).await;
        pending::<()>().await;
    };
    let settings = ClientSettings { request_timeout: Duration::from_millis(200), ..settings() };
    let client = async {
        let connection = dial(&address, &settings).await.unwrap();
        let beat = || connection.call(wire::HeartbeatRequest::default(), now() + settings.request_timeout);
        let (first, second) = tokio::join!(beat(), beat());
        first.unwrap();
        second.unwrap();
        assert!(!connection.is_closed());
    };
    against(server, client).await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_wants_to_be_left_alone_from_the_start_is() {
    let (settings, mut peers) = Pipes::open();
    let server = async {
        let mut peer = Peer(peers.recv().await.unwrap());
        let asked = peer.asked().await.unwrap();
        let answer = wire::ApiVersionsResponse { throttle_time_ms: 3000, ..offers() };
        peer.answer::<wire::ApiVersionsRequest>(&asked, &answer).await;
        let greeted = now();
        let asked = peer.asked().await.unwrap();
        assert!(greeted.elapsed() >= Duration::from_secs(3), "it came after {:?}", greeted.elapsed());
        peer.answer::<wire::HeartbeatRequest>(&asked, &Default::default()).await;
    };
    let client = async {
        let connection = dial(&nowhere(), &settings).await.unwrap();
        let deadline = now() + settings.request_timeout;
        connection.call(wire::HeartbeatRequest::default(), deadline).await.unwrap();
    };
    against(server, client).await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_no_time_out_of_what_nobody_answers() {
    let (settings, mut peers) = Pipes::open();
    let pause = 2 * settings.request_timeout;
    let server = async {
        let mut peer = Peer(peers.recv().await.unwrap());
        peer.greet().await;
        let asked = peer.asked().await.unwrap();
        let throttle_time_ms = pause.as_millis() as i32;
        let answer = wire::HeartbeatResponse { throttle_time_ms, ..Default::default() };
        peer.answer::<wire::HeartbeatRequest>(&asked, &answer).await;
        assert_eq!(peer.asked().await.unwrap().key, wire::ProduceRequest::KEY);
    };
    let client = async {
        let connection = dial(&nowhere(), &settings).await.unwrap();
        let deadline = || now() + settings.request_timeout;
        connection.call(wire::HeartbeatRequest::default(), deadline()).await.unwrap();
        let begun = now();
        let request = wire::ProduceRequest::default();
        connection.send_unanswered(12, request, deadline()).await.unwrap();
        assert!(begun.elapsed() > settings.request_timeout && !connection.is_closed());
    };
    against(server, client).await;
}

#[tokio::test]
async fn a_peer_that_stops_reading_loses_its_connection_with_the_request_time_out() {
    for is_answered in [true, false] {
        lose_a_peer_that_stops_reading(is_answered).await;
    }
}

async fn lose_a_peer_that_stops_reading(is_answered: bool) {
    let (listener, address) = listen().await;
    let server = async {
        let mut peer = accept(&listener).await;
        peer.greet().await;
        // The socket stays open and is not read.
        pending::<()>().await;
    };
    let settings = ClientSettings { request_timeout: Duration::from_millis(100), ..settings() };
    let client = async {
        let connection = dial(&address, &settings).await.unwrap();
        let records = bytes::Bytes::from(vec![7; 16 << 20]);
        let data =
            wire::produce_request::PartitionProduceData { records: Some(records), ..Default::default() };
        let topic =
            wire::produce_request::TopicProduceData { partition_data: vec![data], ..Default::default() };
        let request = wire::ProduceRequest { topic_data: vec![topic], ..Default::default() };
        let deadline = now() + settings.request_timeout;
        let error = match is_answered {
            true => connection.call(request, deadline).await.map(|_| ()),
            false => connection.send_unanswered(12, request, deadline).await,
        };
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(!error.is_unsent(), "some of it was written");
        assert!(connection.is_lost());
        // What waited to be written in the background is given back with the socket.
        while connection.notices.begun.get() != 2 || Arc::strong_count(&connection.notices) > 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout_at(soon(), against(server, client)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_failed_call_says_whether_anything_of_it_was_written() {
    let second = Duration::from_secs(1);
    let (settings, mut peers) = Pipes::open();
    let server = async {
        let mut peer = Peer(peers.recv().await.unwrap());
        peer.greet().await;
        let asked = peer.asked().await.unwrap();
        let answer = wire::HeartbeatResponse { throttle_time_ms: 5000, ..Default::default() };
        peer.answer::<wire::HeartbeatRequest>(&asked, &answer).await;
        peer.asked().await.unwrap();
    };
    let client = async {
        let connection = dial(&nowhere(), &settings).await.unwrap();
        let beat = |within| connection.call(wire::HeartbeatRequest::default(), now() + within);
        beat(second).await.unwrap();
        // The broker wants to be left alone.
        let error = beat(second).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Timeout && error.is_unsent(), "{error}");
        let request = wire::ProduceRequest::default();
        let error = connection.send_unanswered(12, request, now() + second).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Timeout && error.is_unsent(), "{error}");
        // It is read, and the connection ends.
        let error = beat(10 * second).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Disconnected && !error.is_unsent(), "{error}");
        let error = beat(10 * second).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Disconnected && error.is_unsent(), "{error}");
    };
    against(server, client).await;
}
