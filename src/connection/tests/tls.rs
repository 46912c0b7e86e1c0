//! TLS: whom it trusts, and what it says where it does not.

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    config::settings::{TlsSettings, TrustRoots},
    connection::tls::provider,
};

const CA: &str = include_str!("../test_certs/ca.pem");
/// For localhost and 127.0.0.1, signed by an intermediate that follows it.
const CHAIN: &str = include_str!("../test_certs/server.pem");
/// The same for broker.example alone.
const OTHER_NAME: &str = include_str!("../test_certs/other_name.pem");
const KEY: &str = include_str!("../test_certs/server.key");

fn trusting(root: TrustRoots) -> TlsSettings {
    TlsSettings { roots: vec![root], verify_host_name: true, ..TlsSettings::default() }
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
    const OTHER_KEY: &str = include_str!("../test_certs/keys/other.pem");
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
