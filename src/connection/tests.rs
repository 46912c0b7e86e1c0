//! Against small TCP servers in the same task, which answer what the test says.

use std::{future::pending, pin::pin, task::Poll};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{api::wire, transport::Route, *};
use crate::{
    config::settings::{SaslMechanism, SaslSettings, Secret},
    error::{Stage, code},
    time::Environment,
};

fn settings() -> ClientSettings {
    let second = Duration::from_secs(1);
    ClientSettings {
        bootstrap: Vec::new(),
        client_id: Arc::from("unit"),
        tls: None,
        sasl: None,
        request_timeout: 30 * second,
        connection_setup_timeout: 10 * second,
        connection_setup_timeout_max: 30 * second,
        reconnect_backoff: second,
        reconnect_backoff_max: second,
        retry_backoff: second,
        retry_backoff_max: second,
        metadata_max_age: second,
        metadata_max_idle: second,
        rebootstrap: true,
        rebootstrap_after: second,
        connections_max_idle: second,
        default_api_timeout: second,
        allow_auto_create_topics: true,
        receive_message_max_bytes: 1 << 20,
        receive_other_max_bytes: 1 << 20,
        kept: KeptMemory::default(),
        route: Route::default(),
        environment: Environment::default(),
    }
}

fn with_sasl(mechanism: SaslMechanism) -> ClientSettings {
    let sasl = SaslSettings { mechanism, username: "alice".to_owned(), password: Secret::new("tiger-7") };
    ClientSettings { sasl: Some(sasl), ..settings() }
}

fn soon() -> Instant {
    now() + Duration::from_secs(20)
}

async fn listen() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, Address { host: "127.0.0.1".to_owned(), port })
}

/// Runs the client while the server runs beside it.
async fn against<T>(server: impl Future<Output = ()>, client: impl Future<Output = T>) -> T {
    let server = async {
        server.await;
        pending::<()>().await;
    };
    tokio::select! {
        biased;
        result = client => result,
        () = server => unreachable!(),
    }
}

struct Asked {
    key: i16,
    version: i16,
    correlation: [u8; 4],
    frame: Vec<u8>,
}

/// The broker's side of a connection.
struct Peer<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    /// The next request; `None` when the client has closed.
    async fn asked(&mut self) -> Option<Asked> {
        let length = self.0.read_u32().await.ok()?;
        let mut frame = vec![0; length as usize];
        self.0.read_exact(&mut frame).await.ok()?;
        let number = |at: usize| i16::from_be_bytes([frame[at], frame[at + 1]]);
        Some(Asked {
            key: number(0),
            version: number(2),
            correlation: frame[4..8].try_into().unwrap(),
            frame: frame.clone(),
        })
    }

    async fn answer<R: Api>(&mut self, asked: &Asked, answer: &R::Response) {
        self.answer_in::<R>(asked, asked.version, answer).await;
    }

    async fn answer_in<R: Api>(&mut self, asked: &Asked, version: i16, answer: &R::Response) {
        assert_eq!(asked.key, R::KEY);
        let mut frame = asked.correlation.to_vec();
        if version >= R::RESPONSE_FLEXIBLE {
            frame.push(0);
        }
        frame.append(&mut R::encode_answer(answer, version));
        self.0.write_u32(frame.len() as u32).await.unwrap();
        self.0.write_all(&frame).await.unwrap();
    }

    /// Answers ApiVersions as a broker that offers everything.
    async fn greet(&mut self) {
        let asked = self.asked().await.unwrap();
        self.answer::<wire::ApiVersionsRequest>(&asked, &offers()).await;
    }
}

fn offers() -> wire::ApiVersionsResponse {
    let key = |key: i16| wire::api_versions_response::ApiVersion {
        api_key: key,
        max_version: i16::MAX,
        ..Default::default()
    };
    let keys = wire::keys().into_iter().map(key).collect();
    wire::ApiVersionsResponse { api_keys: keys, ..Default::default() }
}

async fn accept(listener: &TcpListener) -> Peer<TcpStream> {
    Peer(listener.accept().await.unwrap().0)
}

async fn dial(address: &Address, settings: &ClientSettings) -> Result<Connection> {
    Connection::dial(address, settings, None, soon()).await
}

fn assert_says(error: &Error, stage: Stage, texts: &[&str]) {
    assert_eq!(error.stage(), Some(stage), "{error}");
    assert!(error.address().is_some(), "{error}");
    for text in texts {
        assert!(error.to_string().contains(text), "{text:?} is not in: {error}");
    }
}

/// The error of a dial to a server that reads something, answers these bytes and closes, for every connection.
async fn dial_answered_with(bytes: &[u8], settings: &ClientSettings) -> Error {
    let (listener, address) = listen().await;
    let server = async {
        loop {
            let mut peer = accept(&listener).await.0;
            let _ = peer.read(&mut vec![0; 4096]).await;
            let _ = peer.write_all(bytes).await;
        }
    };
    against(server, dial(&address, settings)).await.err().unwrap()
}

#[tokio::test]
async fn a_plaintext_client_on_a_tls_port_is_told_to_use_tls() {
    let error = dial_answered_with(&[0x15, 3, 3, 0, 2, 2, 70], &settings()).await;
    assert_says(&error, Stage::Api, &["the listener speaks TLS", "security.protocol to SSL"]);
    let error = dial_answered_with(&[], &settings()).await;
    assert_says(&error, Stage::Api, &["closed the connection", "security.protocol", "SSL"]);
}

#[tokio::test]
async fn a_port_that_is_not_kafka_is_named() {
    let error = dial_answered_with(b"HTTP/1.1 400 Bad Request\r\n\r\n", &settings()).await;
    assert_says(&error, Stage::Api, &["HTTP server", "bootstrap.servers"]);
    let error = dial_answered_with(b"SSH-2.0-OpenSSH_9.6\r\n", &settings()).await;
    assert_says(&error, Stage::Api, &["does not speak Kafka", "SSH-"]);
    let error = dial_answered_with(b"\0\0\0\x08\0\0\0\0\xff\xff\xff\xff", &settings()).await;
    assert_says(&error, Stage::Api, &["ApiVersions"]);
}

#[tokio::test]
async fn a_silent_server_ends_at_the_deadline_with_its_stage() {
    let (listener, address) = listen().await;
    let server = async {
        let _peer = accept(&listener).await;
        pending::<()>().await;
    };
    let settings = settings();
    let client = Connection::dial(&address, &settings, None, now() + Duration::from_millis(200));
    let error = against(server, client).await.err().unwrap();
    assert_says(&error, Stage::Api, &["did not answer the first Kafka request"]);
}

#[tokio::test]
async fn refused_port_and_unknown_host_have_their_stage_and_cause() {
    let (listener, address) = listen().await;
    drop(listener);
    let error = dial(&address, &settings()).await.err().unwrap();
    assert_says(&error, Stage::Tcp, &["refused", "at 127.0.0.1:"]);
    let nowhere = Address { host: "no-such-host.invalid".to_owned(), port: 9092 };
    let error = dial(&nowhere, &settings()).await.err().unwrap();
    assert_says(&error, Stage::Dns, &["no-such-host.invalid", "bootstrap.servers"]);
}

#[tokio::test]
async fn a_sasl_listener_reached_without_sasl_says_so_on_the_first_call() {
    let (listener, address) = listen().await;
    let server = async {
        let mut peer = accept(&listener).await;
        peer.greet().await;
        peer.asked().await.unwrap();
    };
    let settings = settings();
    let client = async {
        let connection = dial(&address, &settings).await.unwrap();
        let error = connection.call(wire::MetadataRequest::default(), soon()).await.unwrap_err();
        assert!(connection.is_closed());
        error
    };
    let error = against(server, client).await;
    assert_eq!((error.kind(), error.api()), (ErrorKind::Disconnected, Some("Metadata")));
    assert!(error.to_string().contains("SASL_PLAINTEXT"), "{error}");
}

/// What a dial with SASL ends in, given the broker's two answers.
async fn authenticate(
    settings: ClientSettings,
    handshake: wire::SaslHandshakeResponse,
    answer: wire::SaslAuthenticateResponse,
) -> Result<Connection> {
    let (listener, address) = listen().await;
    let server = async {
        let mut peer = accept(&listener).await;
        peer.greet().await;
        let asked = peer.asked().await.unwrap();
        peer.answer::<wire::SaslHandshakeRequest>(&asked, &handshake).await;
        if let Some(asked) = peer.asked().await {
            peer.answer::<wire::SaslAuthenticateRequest>(&asked, &answer).await;
        }
        pending::<()>().await;
    };
    against(server, dial(&address, &settings)).await
}

#[tokio::test]
async fn a_wrong_password_comes_with_the_brokers_own_text_and_never_with_the_password() {
    let refusal = wire::SaslAuthenticateResponse {
        error_code: code::SASL_AUTHENTICATION_FAILED,
        error_message: Some("Invalid username or password".into()),
        ..Default::default()
    };
    let error =
        authenticate(with_sasl(SaslMechanism::Plain), Default::default(), refusal).await.err().unwrap();
    assert_says(
        &error,
        Stage::Sasl,
        &["\"alice\"", "PLAIN", "Invalid username or password", "sasl.password"],
    );
    assert!(!error.is_retriable() && !format!("{error:?}").contains("tiger-7"));
}

#[tokio::test]
async fn a_mechanism_the_broker_does_not_enable_lists_those_it_does() {
    let refusal = wire::SaslHandshakeResponse {
        error_code: code::UNSUPPORTED_SASL_MECHANISM,
        mechanisms: vec!["PLAIN".into(), "GSSAPI".into()],
    };
    let settings = with_sasl(SaslMechanism::ScramSha512);
    let error = authenticate(settings, refusal, Default::default()).await.err().unwrap();
    assert_says(&error, Stage::Sasl, &["SCRAM-SHA-512", "it enables PLAIN, GSSAPI", "sasl.mechanism"]);
}

#[tokio::test]
async fn a_broker_that_repeats_the_password_does_not_get_it_into_the_error() {
    let failed = code::SASL_AUTHENTICATION_FAILED;
    let refusal = wire::SaslAuthenticateResponse {
        error_code: failed,
        error_message: Some("no: alice tiger-7 \u{1b}[31m".into()),
        ..Default::default()
    };
    let error =
        authenticate(with_sasl(SaslMechanism::Plain), Default::default(), refusal).await.err().unwrap();
    assert_says(&error, Stage::Sasl, &["no: alice [hidden] ?[31m"]);
    // User and password changed places.
    let mut settings = with_sasl(SaslMechanism::Plain);
    settings.sasl.as_mut().unwrap().username = "tiger-7".to_owned();
    let refusal = wire::SaslAuthenticateResponse { error_code: failed, ..Default::default() };
    let error = authenticate(settings, Default::default(), refusal).await.err().unwrap();
    assert!(!error.to_string().contains("tiger-7"), "{error}");
}

/// What a dial with SCRAM ends in: after the client's nonce the server says `tail`, and in the end `last`, which is
/// `None` where it closes instead.
async fn scram(tail: &str, last: Option<&[u8]>) -> Result<Connection> {
    let (listener, address) = listen().await;
    let server = async {
        let mut peer = accept(&listener).await;
        peer.greet().await;
        let asked = peer.asked().await.unwrap();
        peer.answer::<wire::SaslHandshakeRequest>(&asked, &Default::default()).await;
        let asked = peer.asked().await.unwrap();
        let text = String::from_utf8_lossy(&asked.frame).into_owned();
        let nonce: String =
            text.split("r=").nth(1).unwrap().chars().take_while(char::is_ascii_graphic).collect();
        let first = format!("r={nonce}{tail}").into_bytes();
        let answer = |bytes: Vec<u8>| wire::SaslAuthenticateResponse {
            auth_bytes: bytes.into(),
            ..Default::default()
        };
        peer.answer::<wire::SaslAuthenticateRequest>(&asked, &answer(first)).await;
        if let (Some(asked), Some(last)) = (peer.asked().await, last) {
            peer.answer::<wire::SaslAuthenticateRequest>(&asked, &answer(last.to_vec())).await;
            pending::<()>().await;
        }
    };
    let settings = with_sasl(SaslMechanism::ScramSha256);
    against(server, dial(&address, &settings)).await
}

#[tokio::test]
async fn whatever_a_scram_server_says_is_an_error_that_names_the_step() {
    const GOOD: &str = "x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    for tail in ["", ",", "x,", "x,s=", "x,s=*,i=4096", "x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=1"] {
        let error = scram(tail, None).await.err().unwrap();
        assert_says(&error, Stage::Sasl, &["SCRAM-SHA-256 failed at the server's first message"]);
    }
    // The broker says that the password is right, and does not show that it knows it.
    let forged = b"v=rmF9pqV8S7suAoZWja4dJRkFsKQAAAAAAAAAAAAAAAA=";
    for last in [&b""[..], b"v", b"v=", b"x", b"\xff", b"e=no", forged] {
        let error = scram(GOOD, Some(last)).await.err().unwrap();
        assert_says(&error, Stage::Sasl, &["SCRAM-SHA-256 failed at the server's final message"]);
        assert!(!format!("{error:?}").contains("tiger-7"));
    }
    // The key is derived on a thread for blocking work here.
    let error = scram("x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=8193", Some(forged)).await.err().unwrap();
    assert_says(&error, Stage::Sasl, &["signature is wrong"]);
}

#[tokio::test]
async fn a_connection_whose_session_is_about_to_end_takes_no_further_call() {
    let answer = wire::SaslAuthenticateResponse { session_lifetime_ms: 100_000, ..Default::default() };
    let before = now();
    let connection = authenticate(with_sasl(SaslMechanism::Plain), Default::default(), answer).await.unwrap();
    let by = connection.reauthenticate_by.unwrap();
    assert!(by >= before + Duration::from_secs(85) && by < now() + Duration::from_secs(96));
    assert!(!connection.is_closed());
    // At a random point, or the clients of a cluster would come back together.
    let mut points = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let answer = wire::SaslAuthenticateResponse { session_lifetime_ms: 100_000, ..Default::default() };
        let settings = with_sasl(SaslMechanism::Plain);
        let before = now();
        let again = authenticate(settings, Default::default(), answer).await.unwrap();
        let (by, after) = (again.reauthenticate_by.unwrap(), now());
        assert!(by >= before + Duration::from_secs(85) && by < after + Duration::from_secs(96));
        points.insert((by - after).as_secs());
    }
    assert!(points.len() > 2, "{points:?}");
    let answer = wire::SaslAuthenticateResponse { session_lifetime_ms: 10, ..Default::default() };
    let connection = authenticate(with_sasl(SaslMechanism::Plain), Default::default(), answer).await.unwrap();
    tokio::time::sleep_until(connection.reauthenticate_by.unwrap()).await;
    assert!(connection.is_closed());
    let connection =
        authenticate(with_sasl(SaslMechanism::Plain), Default::default(), Default::default()).await.unwrap();
    assert_eq!(connection.reauthenticate_by, None);
}

#[tokio::test]
async fn a_broker_that_closes_on_an_unknown_version_is_asked_again_in_version_0() {
    let (listener, address) = listen().await;
    let server = async {
        let asked = accept(&listener).await.asked().await.unwrap();
        assert_eq!(asked.version, 3);
        let mut peer = accept(&listener).await;
        let asked = peer.asked().await.unwrap();
        assert_eq!(asked.version, 0);
        peer.answer::<wire::ApiVersionsRequest>(&asked, &offers()).await;
        pending::<()>().await;
    };
    let settings = settings();
    let connection = against(server, dial(&address, &settings)).await.unwrap();
    assert_eq!(connection.version::<wire::ProduceRequest>(), Some(13));
}

#[tokio::test]
async fn an_unsupported_version_answer_leads_to_the_version_it_offers() {
    let (listener, address) = listen().await;
    let server = async {
        let mut peer = accept(&listener).await;
        let asked = peer.asked().await.unwrap();
        let own =
            wire::api_versions_response::ApiVersion { api_key: 18, max_version: 2, ..Default::default() };
        let refusal = wire::ApiVersionsResponse {
            error_code: code::UNSUPPORTED_VERSION,
            api_keys: vec![own],
            ..Default::default()
        };
        peer.answer_in::<wire::ApiVersionsRequest>(&asked, 0, &refusal).await;
        let asked = peer.asked().await.unwrap();
        assert_eq!(asked.version, 2);
        let fetch =
            wire::api_versions_response::ApiVersion { api_key: 1, max_version: 6, ..Default::default() };
        let upside_down =
            wire::api_versions_response::ApiVersion { api_key: 0, min_version: 9, ..fetch.clone() };
        let answer = wire::ApiVersionsResponse { api_keys: vec![fetch, upside_down], ..Default::default() };
        peer.answer::<wire::ApiVersionsRequest>(&asked, &answer).await;
        pending::<()>().await;
    };
    let settings = settings();
    let client = async {
        let connection = dial(&address, &settings).await.unwrap();
        assert_eq!(connection.version::<wire::FetchRequest>(), Some(6));
        assert_eq!(connection.version::<wire::ProduceRequest>(), None);
        let error = connection.call(wire::ProduceRequest::default(), soon()).await.unwrap_err();
        assert_eq!((error.kind(), error.api()), (ErrorKind::Unsupported, Some("Produce")));
        assert!(!connection.is_closed(), "nothing was sent, nothing is lost");
    };
    against(server, client).await;
}

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

/// A broker that answers every heartbeat with the throttle time `heard`, which counts them from 1, but for `silent`.
async fn count_heartbeats(listener: &TcpListener, silent: i32) {
    let mut peer = accept(listener).await;
    peer.greet().await;
    let mut heard = 0;
    let mut late = None;
    while let Some(asked) = peer.asked().await {
        heard += 1;
        let answer = wire::HeartbeatResponse { throttle_time_ms: heard, ..Default::default() };
        if heard == silent {
            late = Some((asked, answer));
            continue;
        }
        if let Some((asked, answer)) = late.take() {
            peer.answer::<wire::HeartbeatRequest>(&asked, &answer).await;
        }
        peer.answer::<wire::HeartbeatRequest>(&asked, &answer).await;
    }
}

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

#[tokio::test]
async fn an_answer_in_between_begins_the_silence_anew() {
    let (listener, address) = listen().await;
    let settings = ClientSettings { request_timeout: Duration::from_secs(3600), ..settings() };
    let client = async {
        let connection = dial(&address, &settings).await.unwrap();
        let beat = |within| connection.call(wire::HeartbeatRequest::default(), now() + within);
        beat(Duration::from_millis(50)).await.unwrap_err();
        assert!(connection.silence().is_some());
        beat(Duration::from_secs(20)).await.unwrap();
        assert!(connection.silence().is_none());
    };
    against(count_heartbeats(&listener, 1), client).await;
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

/// A connection whose peer answers the heartbeats with these pauses, one after another, and none afterwards; it notes when
/// each came.
async fn pausing(listener: &TcpListener, pauses: &[i32], came: &Mutex<Vec<Instant>>) {
    let mut peer = accept(listener).await;
    peer.greet().await;
    let mut pauses = pauses.iter();
    while let Some(asked) = peer.asked().await {
        came.lock().unwrap().push(now());
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
        let came = came.lock().unwrap();
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

#[tokio::test]
async fn a_peer_that_stops_reading_loses_its_connection_with_the_request_time_out() {
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
        let error = connection.call(request, deadline).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(connection.is_lost());
        // What waited to be written in the background is given back with the socket.
        while connection.notices.begun() != 2 || Arc::strong_count(&connection.notices) > 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout_at(soon(), against(server, client)).await.unwrap();
}

#[tokio::test]
async fn an_answer_of_eleven_bytes_that_announces_billions_of_elements_is_an_error_before_anyone_authenticated()
 {
    let (listener, address) = listen().await;
    let server = async {
        let mut peer = accept(&listener).await;
        let asked = peer.asked().await.unwrap();
        // No error, then 4,294,967,294 versions of APIs.
        let body = [0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f];
        peer.0.write_u32(4 + body.len() as u32).await.unwrap();
        peer.0.write_all(&asked.correlation).await.unwrap();
        peer.0.write_all(&body).await.unwrap();
        pending::<()>().await;
    };
    let settings = settings();
    let error = against(server, dial(&address, &settings)).await.err().unwrap();
    assert_says(&error, Stage::Api, &["4294967294 elements", "0 bytes are left"]);
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
        connection.send_unanswered::<12, _>(wire::ProduceRequest::default(), soon()).await.unwrap();
        connection.send_unanswered::<12, _>(wire::ProduceRequest::default(), soon()).await.unwrap();
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
async fn a_silent_address_of_a_name_holds_up_the_next_for_a_moment_only() {
    // Both are addresses of this machine; the first one accepts and keeps silent.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let Ok(living) = TcpListener::bind(("::1", port)).await else { return };
    let names: Vec<_> = tokio::net::lookup_host(("localhost", port)).await.unwrap().collect();
    if names.len() < 2 {
        return;
    }
    let (silent, living) = if names[0].is_ipv4() { (silent, living) } else { (living, silent) };
    let server = async {
        let _silent = silent;
        count_heartbeats(&living, 0).await;
    };
    let address = Address { host: "localhost".to_owned(), port };
    let (settings, started) = (settings(), now());
    against(server, dial(&address, &settings)).await.unwrap();
    assert!(now() - started < Duration::from_secs(2));
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
    while connection.notices.left() < 2 {
        std::thread::yield_now();
    }
    drop(first);
    let error = keep.block_on(calling).unwrap().unwrap_err();
    assert!(error.kind() == ErrorKind::Disconnected && error.to_string().contains("runtime"), "{error}");
    assert!(connection.is_closed());
    let late = keep.block_on(connection.call(wire::HeartbeatRequest::default(), soon())).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Disconnected);
}

#[cfg(any(feature = "tls-graviola", feature = "tls-rustcrypto"))]
mod tls {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::{
        config::settings::{TlsSettings, TrustRoots},
        connection::tls::provider,
    };

    const CA: &str = include_str!("test_certs/ca.pem");
    /// For localhost and 127.0.0.1, signed by an intermediate that follows it.
    const CHAIN: &str = include_str!("test_certs/server.pem");
    /// The same for broker.example alone.
    const OTHER_NAME: &str = include_str!("test_certs/other_name.pem");
    const KEY: &str = include_str!("test_certs/server.key");

    fn trusting(root: TrustRoots) -> TlsSettings {
        TlsSettings {
            roots: vec![root],
            client_certificate: None,
            client_key: None,
            key_password: None,
            verify_host_name: true,
            client_config: None,
            crypto_provider: None,
        }
    }

    fn own_ca() -> TlsSettings {
        trusting(TrustRoots::Pem(CA.to_owned()))
    }

    fn acceptor(chain: &str) -> TlsAcceptor {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider(&own_ca()).unwrap())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.unwrap(), key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }

    async fn dial_tls(host: &str, chain: &str, tls: TlsSettings) -> Result<Connection> {
        let (listener, address) = listen().await;
        let address = Address { host: host.to_owned(), ..address };
        let shared = Tls::new(&tls).unwrap();
        let settings = ClientSettings { tls: Some(tls), ..settings() };
        let server = async {
            let socket = accept(&listener).await.0;
            if let Ok(stream) = Box::pin(acceptor(chain).accept(socket)).await {
                let mut peer = Peer(stream);
                peer.greet().await;
                while let Some(asked) = peer.asked().await {
                    peer.answer::<wire::HeartbeatRequest>(&asked, &Default::default()).await;
                }
            }
        };
        let client = async {
            let connection = Connection::dial(&address, &settings, Some(&shared), soon()).await?;
            connection.call(wire::HeartbeatRequest::default(), soon()).await?;
            Ok(connection)
        };
        against(server, client).await
    }

    #[tokio::test]
    async fn a_chain_with_an_intermediate_is_accepted_by_name_and_by_address() {
        dial_tls("localhost", CHAIN, own_ca()).await.unwrap();
        dial_tls("127.0.0.1", CHAIN, own_ca()).await.unwrap();
    }

    #[tokio::test]
    async fn an_unknown_ca_is_refused_with_and_without_the_name_check() {
        for verify_host_name in [true, false] {
            let tls = TlsSettings { verify_host_name, ..trusting(TrustRoots::Mozilla) };
            let error = dial_tls("127.0.0.1", CHAIN, tls).await.err().unwrap();
            assert_says(&error, Stage::Tls, &["not signed by a CA", "ssl.truststore.location"]);
        }
    }

    /// A server with a good chain and the key of somebody else.
    fn impostor(version: &'static rustls::SupportedProtocolVersion) -> TlsAcceptor {
        const OTHER_KEY: &str = include_str!("test_certs/keys/other.pem");
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(CHAIN.as_bytes()).collect();
        let provider = provider(&own_ca()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(OTHER_KEY.as_bytes()).unwrap();
        let key = provider.key_provider.load_private_key(key).unwrap();
        let certified = rustls::sign::CertifiedKey::new(chain.unwrap(), key);
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
        TlsAcceptor::from(Arc::new(config))
    }

    #[tokio::test]
    async fn a_server_without_the_key_of_its_certificate_is_refused_with_and_without_the_name_check() {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            for verify_host_name in [true, false] {
                let (listener, address) = listen().await;
                let address = Address { host: "localhost".to_owned(), ..address };
                let tls = TlsSettings { verify_host_name, ..own_ca() };
                let shared = Tls::new(&tls).unwrap();
                let settings = ClientSettings { tls: Some(tls), ..settings() };
                let server = async {
                    let socket = accept(&listener).await.0;
                    if let Ok(stream) = Box::pin(impostor(version).accept(socket)).await {
                        Peer(stream).greet().await;
                    }
                };
                let client = Connection::dial(&address, &settings, Some(&shared), soon());
                let error = against(server, client).await.err().unwrap();
                assert_says(&error, Stage::Tls, &["not signed by a CA"]);
            }
        }
    }

    #[tokio::test]
    async fn a_wrong_name_is_refused_and_accepted_where_the_name_check_is_off() {
        let error = dial_tls("localhost", OTHER_NAME, own_ca()).await.err().unwrap();
        assert_says(
            &error,
            Stage::Tls,
            &["not for the name \"localhost\"", "broker.example", "ssl.endpoint.identification"],
        );
        let no_check = TlsSettings { verify_host_name: false, ..own_ca() };
        dial_tls("localhost", OTHER_NAME, no_check).await.unwrap();
    }

    #[tokio::test]
    async fn a_tls_client_on_a_plaintext_port_is_told_to_use_plaintext() {
        for bytes in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
            let (listener, address) = listen().await;
            let server = async {
                let mut peer = accept(&listener).await.0;
                assert!(peer.read(&mut vec![0; 4096]).await.unwrap() > 0);
                peer.write_all(bytes).await.unwrap();
            };
            let shared = Tls::new(&own_ca()).unwrap();
            let settings = ClientSettings { tls: Some(own_ca()), ..settings() };
            let client = Connection::dial(&address, &settings, Some(&shared), soon());
            let error = against(server, client).await.err().unwrap();
            assert_says(&error, Stage::Tls, &["security.protocol to PLAINTEXT"]);
        }
    }
}
