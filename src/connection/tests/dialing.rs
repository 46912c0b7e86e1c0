//! Until the first call: what listens there, and which versions it speaks.

use super::*;

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

/// Two addresses of one name, with who listens there.
async fn two_addresses() -> ([TcpListener; 2], [Target; 2]) {
    let (first, second) = (listen().await.0, listen().await.0);
    let targets = [&first, &second].map(|listener| Target::Tcp(listener.local_addr().unwrap()));
    ([first, second], targets)
}

#[tokio::test]
async fn a_silent_address_of_a_name_holds_up_the_next_for_a_moment_only() {
    // The first one accepts and keeps silent.
    let ([_silent, living], targets) = two_addresses().await;
    let address = Address { host: "both".to_owned(), port: 9092 };
    let (settings, started) = (settings(), now());
    let dial = dial::Dial { address: &address, settings: &settings, tls: None, deadline: soon() };
    against(count_heartbeats(&living, 0), dial.any(&targets)).await.unwrap();
    assert!(now() - started < Duration::from_secs(2));
}

#[tokio::test]
async fn something_else_at_one_address_of_a_name_does_not_keep_from_the_broker_at_another() {
    let ([other, broker], targets) = two_addresses().await;
    let server = async {
        let http = async {
            let mut peer = accept(&other).await.0;
            let _ = peer.read(&mut vec![0; 4096]).await;
            let _ = peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            pending::<()>().await;
        };
        tokio::join!(http, count_heartbeats(&broker, 0));
    };
    let address = Address { host: "both".to_owned(), port: 9092 };
    let settings = settings();
    let dial = dial::Dial { address: &address, settings: &settings, tls: None, deadline: soon() };
    against(server, dial.any(&targets)).await.unwrap();
}

#[tokio::test]
async fn a_broker_that_listens_in_one_family_is_found_by_a_name_of_both() {
    for ip in ["127.0.0.1", "::1"] {
        let Ok(broker) = TcpListener::bind((ip, 0)).await else {
            eprintln!("not tested: this machine has no {ip}");
            continue;
        };
        let here = broker.local_addr().unwrap();
        let names: Vec<_> = tokio::net::lookup_host(("localhost", here.port())).await.unwrap().collect();
        if !names.contains(&here) {
            eprintln!("not tested: localhost is {names:?} here");
            continue;
        }
        let address = Address { host: "localhost".to_owned(), port: here.port() };
        against(count_heartbeats(&broker, 0), dial(&address, &settings())).await.unwrap();
    }
}
