//! Every listener with every way to log in: produce, consume through a group and commit over each.

use std::{path::PathBuf, time::Duration};

use dtkafka::{KafkaConfig, KafkaInstance, SaslMechanism, SecurityProtocol, TopicPartition};
use dtkafka_testcontainers::Listener;
use serde_json::{Value, json};

use crate::{
    backend::{Backend, PASSWORD, USER, unique},
    on_every_backend,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Creates a topic, produces three records, consumes and commits them, all with this configuration.
async fn round_trip(config: KafkaConfig) {
    let group = unique("secure");
    let kafka = KafkaInstance::new(config.set_group_id(&group).set_auto_offset_reset("earliest")).unwrap();
    let (topic, admin) = (unique("secret"), kafka.admin().await.unwrap());
    admin.create_topic(dtkafka::NewTopic::new(&topic).partitions(1).replication_factor(1)).await.unwrap();
    let sent = kafka.producer_context(async |producer| {
        for number in 0..3 {
            producer.send(&topic, &json!({ "number": number })).await?.await?;
        }
        Ok(())
    });
    sent.await.unwrap();
    let consumer = kafka.get_consumer([&topic]).await.unwrap();
    let mut values: Vec<Value> = Vec::new();
    while values.len() < 3 {
        let records = consumer.poll(PATIENCE).await.unwrap();
        assert!(!records.is_empty(), "nothing came");
        values.extend(records.records().map(|record| record.json::<Value>().unwrap()));
    }
    assert_eq!(values, [json!({"number": 0}), json!({"number": 1}), json!({"number": 2})]);
    consumer.commit().await.unwrap();
    consumer.close(PATIENCE).await.unwrap();
    let committed = admin.group_offsets(&group).await.unwrap();
    assert_eq!(committed[&TopicPartition::new(&*topic, 0)].offset, 3);
}

fn base(backend: &Backend, listener: Listener, protocol: SecurityProtocol) -> KafkaConfig {
    KafkaConfig::new().set_bootstrap_servers(backend.listener(listener)).set_security_protocol(protocol)
}

fn login(config: KafkaConfig, mechanism: SaslMechanism) -> KafkaConfig {
    config.set_sasl_mechanism(mechanism).set_sasl_plain_username(USER).set_sasl_plain_password(PASSWORD)
}

async fn sasl_plaintext(backend: &Backend, mechanism: SaslMechanism) {
    if mechanism == SaslMechanism::Plain || backend.has_scram() {
        let config = base(backend, Listener::SaslPlaintext, SecurityProtocol::SaslPlaintext);
        round_trip(login(config, mechanism)).await;
    }
}

async fn sasl_ssl(backend: &Backend, mechanism: SaslMechanism) {
    if mechanism == SaslMechanism::Plain || backend.has_scram() {
        let config = base(backend, Listener::SaslSsl, SecurityProtocol::SaslSsl);
        round_trip(login(config.set("ssl.truststore.certificates", backend.ca_pem()), mechanism)).await;
    }
}

/// A file that is removed in the end.
struct PemFile(PathBuf);

impl PemFile {
    fn new(text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("{}.pem", unique("dtkafka-test")));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for PemFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

on_every_backend! {
    async fn plaintext(backend) {
        round_trip(base(backend, Listener::Plaintext, SecurityProtocol::Plaintext)).await;
    }

    async fn sasl_plaintext_with_plain(backend) {
        sasl_plaintext(backend, SaslMechanism::Plain).await;
    }

    async fn sasl_plaintext_with_scram_sha_256(backend) {
        sasl_plaintext(backend, SaslMechanism::ScramSha256).await;
    }

    async fn sasl_plaintext_with_scram_sha_512(backend) {
        sasl_plaintext(backend, SaslMechanism::ScramSha512).await;
    }

    async fn sasl_ssl_with_plain(backend) {
        sasl_ssl(backend, SaslMechanism::Plain).await;
    }

    async fn sasl_ssl_with_scram_sha_256(backend) {
        sasl_ssl(backend, SaslMechanism::ScramSha256).await;
    }

    async fn sasl_ssl_with_scram_sha_512(backend) {
        sasl_ssl(backend, SaslMechanism::ScramSha512).await;
    }

    async fn ssl_with_the_authority_as_text_and_as_a_file(backend) {
        let ssl = || base(backend, Listener::Ssl, SecurityProtocol::Ssl);
        round_trip(ssl().set("ssl.truststore.certificates", backend.ca_pem())).await;
        let file = PemFile::new(backend.ca_pem());
        round_trip(ssl().set("ssl.truststore.location", file.path())).await;
    }

    async fn urls_say_protocol_user_and_mechanism(backend) {
        let file = PemFile::new(backend.ca_pem());
        let (plain, tls) = (backend.listener(Listener::SaslPlaintext), backend.listener(Listener::SaslSsl));
        let ca = file.path().replace('/', "%2F");
        let scram = if backend.has_scram() { "SCRAM-SHA-512" } else { "PLAIN" };
        for url in [
            format!("kafka://{}", backend.bootstrap_servers()),
            format!("kafka://{USER}:{PASSWORD}@{plain}"),
            format!("kafka://{USER}:{PASSWORD}@{plain}?sasl_mechanism={scram}"),
            format!("kafkas://{}?ssl_cafile={ca}", backend.listener(Listener::Ssl)),
            format!("kafkas://{USER}:{PASSWORD}@{tls}?sasl_mechanism=PLAIN&ssl_cafile={ca}"),
            format!("kafkas://{USER}:{PASSWORD}@{tls}/?sasl_mechanism={scram}&ssl_cafile={ca}"),
        ] {
            round_trip(KafkaConfig::new().set_kafka_url(url)).await;
        }
    }

    /// The listener demands a certificate, and its own is for another name; the chain is checked all the same, as
    /// `an_unknown_authority_is_refused_also_without_the_host_name_check` shows.
    async fn a_client_certificate_and_no_host_name_check(backend) {
        let strict = backend.strict().await;
        let client = strict.certificates().client();
        let config = base(strict, Listener::Ssl, SecurityProtocol::Ssl)
            .set("ssl.truststore.certificates", strict.ca_pem())
            .set("ssl.endpoint.identification.algorithm", "");
        round_trip(
            config
                .clone()
                .set("ssl.keystore.certificate.chain", client.certificate_pem())
                .set("ssl.keystore.key", client.key_pem()),
        )
        .await;
        let (chain, key) = (PemFile::new(client.certificate_pem()), PemFile::new(client.key_pem()));
        let files =
            config.clone().set("ssl.certificate.location", chain.path()).set("ssl.key.location", key.path());
        round_trip(files).await;
        // As an environment variable and a store in one file have them.
        let one_line = |pem: &str| pem.trim_end().replace('\n', "\\n");
        let text = config
            .clone()
            .set("ssl.keystore.certificate.chain", one_line(client.certificate_pem()))
            .set("ssl.keystore.key", one_line(client.key_pem()));
        round_trip(text).await;
        let both = PemFile::new(&format!("\u{feff}{}\r\n{}", client.key_pem(), client.certificate_pem()));
        round_trip(config.set("ssl.keystore.location", both.path())).await;
    }

    #[cfg(feature = "tls")]
    async fn a_tls_configuration_of_the_users_own(backend) {
        let own = backend.certificates().client_config(false).unwrap();
        let config = base(backend, Listener::Ssl, SecurityProtocol::Ssl);
        round_trip(config.set_tls_client_config(std::sync::Arc::new(own))).await;
        // It stays in charge of the host name too.
        let strict = backend.strict().await;
        let own = std::sync::Arc::new(strict.certificates().client_config(true).unwrap());
        let config = base(strict, Listener::Ssl, SecurityProtocol::Ssl).set_tls_client_config(own);
        let error = KafkaInstance::new(config).unwrap().admin().await.unwrap_err();
        assert!(error.to_string().contains("certificate is not for the name"), "{error}");
    }
}
