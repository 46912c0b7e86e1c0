//! Authentication, and listeners that want it.

use super::*;

fn with_sasl(mechanism: SaslMechanism) -> ClientSettings {
    let sasl = SaslSettings { mechanism, username: "alice".to_owned(), password: Secret::new("tiger-7") };
    ClientSettings { sasl: Some(sasl), ..settings() }
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
        &["refused user and password", "PLAIN", "Invalid username or password", "sasl.plain.password"],
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
    assert_says(&error, Stage::Sasl, &["no: [hidden] [hidden] ?[31m"]);
    // User and password changed places.
    let mut settings = with_sasl(SaslMechanism::Plain);
    let sasl = settings.sasl.as_mut().unwrap();
    (sasl.username, sasl.password) = ("tiger-7".to_owned(), Secret::new("alice"));
    for said in [None, Some("no: alice tiger-7".into())] {
        let refusal =
            wire::SaslAuthenticateResponse { error_code: failed, error_message: said, ..Default::default() };
        let error = authenticate(settings.clone(), Default::default(), refusal).await.err().unwrap();
        assert!(!format!("{error:?}{error}").contains("tiger-7"), "{error}");
    }
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
