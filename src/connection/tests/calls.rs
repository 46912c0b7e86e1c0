//! Calls on an open connection, and its end.

use super::*;

#[tokio::test]
async fn an_answer_above_the_limit_names_the_setting() {
    let (listener, address) = listen().await;
    let server = async {
        let mut peer = accept(&listener).await;
        peer.greet().await;
        peer.asked().await.unwrap();
        peer.0.write_u32(5000).await.unwrap();
        peer.0.write_all(&vec![0; 5000]).await.unwrap();
        pending::<()>().await;
    };
    let settings =
        ClientSettings { receive_message_max_bytes: 4000, receive_other_max_bytes: 4000, ..settings() };
    let client = async {
        let connection = dial(&address, &settings).await.unwrap();
        let error = connection.call(wire::HeartbeatRequest::default(), soon()).await.unwrap_err();
        assert!(connection.is_closed());
        error
    };
    let error = against(server, client).await;
    let text = error.to_string();
    assert!(
        text.contains("5000") && text.contains("4000") && text.contains("receive.message.max.bytes"),
        "{text}"
    );
}

#[tokio::test]
async fn calls_polled_once_in_order_cross_the_wire_in_that_order_and_a_dropped_one_harms_none() {
    let (listener, address) = listen().await;
    let settings = settings();
    let client = async {
        let connection = dial(&address, &settings).await.unwrap();
        let beat = || connection.call(wire::HeartbeatRequest::default(), soon());
        let (mut first, mut third) = (pin!(beat()), pin!(beat()));
        let mut second = Box::pin(beat());
        std::future::poll_fn(|cx| {
            assert!(first.as_mut().poll(cx).is_pending());
            assert!(second.as_mut().poll(cx).is_pending());
            assert!(third.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        assert_eq!(connection.in_flight(), 3);
        drop(second);
        assert_eq!(connection.in_flight(), 2);
        // Awaited the other way round: the order is that of the first polls.
        assert_eq!(third.await.unwrap().throttle_time_ms, 3);
        assert_eq!(first.await.unwrap().throttle_time_ms, 1);
        assert_eq!(beat().await.unwrap().throttle_time_ms, 4);
    };
    against(count_heartbeats(&listener, 0), client).await;
}

#[tokio::test]
async fn an_answer_that_announces_billions_of_elements_leaves_the_connection_usable() {
    let (listener, address) = listen().await;
    let server = async {
        let mut peer = accept(&listener).await;
        peer.greet().await;
        for body in
            [&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0x7f]]
        {
            let asked = peer.asked().await.unwrap();
            assert_eq!(asked.key, wire::MetadataRequest::KEY);
            let mut frame = asked.correlation.to_vec();
            frame.push(0);
            frame.extend_from_slice(body);
            peer.0.write_u32(frame.len() as u32).await.unwrap();
            peer.0.write_all(&frame).await.unwrap();
        }
        let asked = peer.asked().await.unwrap();
        peer.answer::<wire::HeartbeatRequest>(&asked, &Default::default()).await;
        pending::<()>().await;
    };
    let settings = settings();
    let client = async {
        let connection = dial(&address, &settings).await.unwrap();
        for _ in 0..2 {
            let error = connection.call(wire::MetadataRequest::default(), soon()).await.unwrap_err();
            assert_eq!((error.kind(), error.api()), (ErrorKind::Protocol, Some("Metadata")), "{error}");
        }
        connection.call(wire::HeartbeatRequest::default(), soon()).await.unwrap();
    };
    against(server, client).await;
}

#[tokio::test]
async fn answers_nobody_asked_for_end_the_connection_once_and_for_all() {
    let (listener, address) = listen().await;
    let server = async {
        loop {
            let mut peer = accept(&listener).await;
            peer.greet().await;
            let asked = peer.asked().await.unwrap();
            let junk = [0u8, 0, 0, 4, 0x7f, 0, 0, 1].repeat(50_000);
            let _ = peer.0.write_all(&junk).await;
            let _ = asked;
        }
    };
    let settings = settings();
    let client = async {
        let connection = dial(&address, &settings).await.unwrap();
        let error = connection.call(wire::HeartbeatRequest::default(), soon()).await.unwrap_err();
        assert!(error.to_string().contains("not asked"), "{error}");
        assert!(error.is_retriable() && connection.is_closed());
    };
    against(server, client).await;
}

#[tokio::test]
async fn a_request_that_is_not_answered_returns_when_it_is_written_and_the_connection_goes_on() {
    let (listener, address) = listen().await;
    let server = async {
        let mut peer = accept(&listener).await;
        peer.greet().await;
        for key in [0, 0, 12] {
            let asked = peer.asked().await.unwrap();
            assert_eq!(asked.key, key);
            if key == 12 {
                peer.answer::<wire::HeartbeatRequest>(&asked, &Default::default()).await;
            }
        }
        pending::<()>().await;
    };
    let settings = settings();
    let client = async {
        let connection = dial(&address, &settings).await.unwrap();
        connection.send_unanswered(12, wire::ProduceRequest::default(), soon()).await.unwrap();
        connection.send_unanswered(12, wire::ProduceRequest::default(), soon()).await.unwrap();
        connection.call(wire::HeartbeatRequest::default(), soon()).await.unwrap();
        assert!(!connection.is_closed());
        assert_eq!(connection.in_flight(), 0);
    };
    against(server, client).await;
}

#[tokio::test]
async fn a_retired_connection_takes_no_further_call_and_closes_with_its_last_one() {
    let (listener, address) = listen().await;
    let settings = settings();
    let client = async {
        let connection = dial(&address, &settings).await.unwrap();
        let last = connection.call(wire::HeartbeatRequest::default(), soon());
        let retire = async { connection.retire() };
        let (answer, ()) = tokio::join!(last, retire);
        answer.unwrap();
        assert!(connection.is_closed());
        let error = connection.call(wire::HeartbeatRequest::default(), soon()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disconnected);
    };
    against(count_heartbeats(&listener, 0), client).await;
}

#[tokio::test]
async fn a_connection_closed_by_the_broker_while_idle_is_noticed() {
    let (listener, address) = listen().await;
    let server = async {
        accept(&listener).await.greet().await;
    };
    let settings = settings();
    let client = async {
        let connection = dial(&address, &settings).await.unwrap();
        while !connection.is_closed() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout_at(soon(), against(server, client)).await.unwrap();
}

#[tokio::test]
async fn a_connection_is_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>(_: &T) {}
    fn sent<T: Send>(_: &T) {}
    let (listener, address) = listen().await;
    let settings = settings();
    let dialling = dial(&address, &settings);
    sent(&dialling);
    let connection = against(count_heartbeats(&listener, 0), dialling).await.unwrap();
    shared(&connection);
    sent(&connection.call(wire::HeartbeatRequest::default(), soon()));
}

#[test]
fn who_waits_for_an_answer_hears_of_the_end_of_the_runtime_in_which_the_connection_was_made() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (keep, first) = (runtime(), runtime());
    let (listener, address) = keep.block_on(listen());
    // It greets, and never answers anything else.
    keep.spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut peer = Peer(stream);
        peer.greet().await;
        while peer.asked().await.is_some() {}
    });
    let connection =
        first.block_on(async { Connection::dial(&address, &settings(), None, soon()).await }).unwrap();
    let connection = Arc::new(connection);
    let calling = {
        let connection = Arc::clone(&connection);
        keep.spawn(async move {
            let deadline = now() + Duration::from_secs(600);
            connection.call(wire::HeartbeatRequest::default(), deadline).await
        })
    };
    while connection.notices.left.get() < 2 {
        std::thread::yield_now();
    }
    drop(first);
    let error = keep.block_on(calling).unwrap().unwrap_err();
    assert!(error.kind() == ErrorKind::Disconnected && error.to_string().contains("runtime"), "{error}");
    assert!(connection.is_closed());
    let late = keep.block_on(connection.call(wire::HeartbeatRequest::default(), soon())).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Disconnected);
}

#[tokio::test]
async fn the_future_of_a_call_does_not_hold_the_request() {
    let (listener, address) = listen().await;
    let settings = settings();
    let client = async {
        let connection = dial(&address, &settings).await.unwrap();
        let beat = connection.call(wire::HeartbeatRequest::default(), soon());
        let produce = connection.call(wire::ProduceRequest::default(), soon());
        assert!(size_of::<wire::HeartbeatRequest>() != size_of::<wire::ProduceRequest>());
        assert_eq!(size_of_val(&beat), size_of_val(&produce));
    };
    against(count_heartbeats(&listener, 0), client).await;
}
