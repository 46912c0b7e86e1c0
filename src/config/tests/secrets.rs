//! No secret shows, whatever way it came.

use proptest::prelude::*;

use super::*;

#[test]
fn secrets_never_show_whatever_way_they_came() {
    let jaas = format!(
        "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"u\" password=\"{PASSWORD}\";"
    );
    let pem = format!("-----BEGIN PRIVATE KEY-----{PASSWORD}");
    let configs = [
        local()
            .set_security_protocol("SASL_SSL")
            .set_sasl_plain_username("u")
            .set_sasl_plain_password(PASSWORD),
        local().set_security_protocol("SASL_SSL").set_sasl_jaas_config(jaas.as_str()),
        local().set_sasl_jaas_config(jaas.replace("Plain", "Digest")),
        KafkaConfig::new().set_kafka_url(format!("kafkas://u:{PASSWORD}@h?ssl.keystore.key={PASSWORD}")),
        KafkaConfig::new().set_bootstrap_servers(format!("kafka://u:{PASSWORD}@h")),
        KafkaConfig::new().set_bootstrap_servers(format!("u:{PASSWORD}@h")),
        KafkaConfig::new().set_bootstrap_servers(format!("h:{PASSWORD}")),
        local().set_security_protocol("SSL").set_ssl_key_pem(pem.as_str()),
        local().set_security_protocol("SSL").set_ssl_ca_pem(pem.as_str()),
        local().set("ssl.key.password", PASSWORD),
        local().set("ssl.truststore.password", PASSWORD),
        local().set("sasl_plain_pasword", PASSWORD),
        local().set_properties_text(&format!("sasl.password={PASSWORD}\nbad=\\uZZ{PASSWORD}")),
        local().set_from_variables("KAFKA_", variables(&[("KAFKA_SASL_PASSWORD", PASSWORD)])),
        ProducerConfig::new().set("sasl.password", PASSWORD).merged(&local()),
    ];
    for config in configs {
        let mut shown = format!("{config:?} {config:#?} {}", config.describe());
        for property in PROPERTIES {
            shown.push_str(&config.get(property.name).unwrap_or_default());
        }
        match config.resolve_client() {
            Ok(settings) => shown.push_str(&format!("{settings:?}")),
            Err(error) => shown.push_str(&format!("{error} {error:?}")),
        }
        if let Err(error) = config.validate() {
            shown.push_str(&format!("{error} {error:?}"));
        }
        assert!(!shown.contains(PASSWORD), "{shown}");
    }
    let overlay = ProducerConfig::new().set("sasl.password", PASSWORD);
    let value = SettingValue::from(PASSWORD);
    assert!(!format!("{overlay:?}{value:?}").contains(PASSWORD));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_password_in_any_kind_of_url_text_stays_hidden(before in "[a:@/?%&=,]{0,12}", after in "[a:@/?%&=,]{0,12}") {
        let text = format!("kafka://u:{before}{PASSWORD}{after}@h");
        let config = KafkaConfig::new().set_kafka_url(text.as_str()).set_bootstrap_servers(text.as_str());
        let mut shown = format!("{config:?}{}", config.describe());
        if let Err(error) = config.validate() {
            shown.push_str(&error.to_string());
        }
        prop_assert!(!shown.contains(PASSWORD), "{}", shown);
    }
}
