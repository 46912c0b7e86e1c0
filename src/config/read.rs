//! A configuration read from text (`FromStr`) and from a section of a program's own settings file (`Deserialize`). Checks
//! nothing that `resolve.rs` checks.

use std::{fmt, str::FromStr};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};

use super::{KafkaConfig, SettingValue};
use crate::error::{Error, Result};

/// A URL (`kafka://host:9092?group_id=billing`), a `host:port` list, or the text of a `.properties` file.
impl FromStr for KafkaConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let is_url = !text.contains(['\n', '\r']) && (text.contains("://") || !text.contains('='));
        if is_url {
            let config = Self::new().set_kafka_url(text);
            config.validate()?;
            return Ok(config);
        }
        Ok(Self::from_properties_text(text))
    }
}

/// A URL, or a map of properties by any of their names; nested maps join their names with dots, as TOML reads
/// `bootstrap.servers`. Numbers, booleans and lists are taken as they are. Bad values are named by
/// [`KafkaInstance::new`](crate::KafkaInstance::new).
impl<'de> Deserialize<'de> for KafkaConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Whole)
    }
}

struct Whole;

impl<'de> Visitor<'de> for Whole {
    type Value = KafkaConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kafka URL or a map of properties")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<KafkaConfig, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<KafkaConfig, A::Error> {
        let mut properties = Vec::new();
        while let Some(name) = entries.next_key::<String>()? {
            entries.next_value_seed(Property { name, properties: &mut properties })?;
        }
        Ok(KafkaConfig::from_properties(properties))
    }
}

/// The value of a property, or a map of those whose names begin alike.
struct Property<'a> {
    name: String,
    properties: &'a mut Vec<(String, SettingValue)>,
}

impl Property<'_> {
    fn add<E>(self, value: impl Into<SettingValue>) -> Result<(), E> {
        self.properties.push((self.name, value.into()));
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Property<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Property<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, a boolean or a list")
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.add(value)
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.add(value)
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.add(value)
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.add(value.to_string())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.add(value)
    }

    /// A null value counts as a missing one.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut list = Vec::new();
        while items.next_element_seed(Property { name: String::new(), properties: &mut list })?.is_some() {}
        let list: Vec<_> = list.into_iter().map(|(_, item)| item.into_text()).collect();
        self.add(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        if self.name.matches('.').count() > 8 {
            return Err(A::Error::custom("no property's name has so many parts"));
        }
        while let Some(part) = entries.next_key::<String>()? {
            let name = format!("{}.{part}", self.name);
            entries.next_value_seed(Property { name, properties: self.properties })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_parsed_from_a_url_a_list_and_properties() {
        let config: KafkaConfig = "kafka://u:hunter2@h1:9092,h2:9092?group_id=g".parse().unwrap();
        assert_eq!(config.get("group.id").as_deref(), Some("g"));
        let config: KafkaConfig = "h1:9092,h2:9092".parse().unwrap();
        assert!(config.get("kafka.url").is_some());
        let config: KafkaConfig = "bootstrap.servers=h1:9092\n group.id = g\n".parse().unwrap();
        assert_eq!(config.get("group_id").as_deref(), Some("g"));
        let error =
            "kafka://h1:9092?group_di=g&sasl_plain_password=hunter2".parse::<KafkaConfig>().unwrap_err();
        assert!(error.to_string().contains("group_di") && !error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn a_section_of_a_settings_file_is_a_configuration() {
        let text = r#"{
            "bootstrap": {"servers": ["h1:9092", "h2:9092"]},
            "group_id": "g", "enable.auto.commit": false, "fetch.min.bytes": 1024, "client.rack": null
        }"#;
        let config: KafkaConfig = serde_json::from_str(text).unwrap();
        for (name, value) in [
            ("bootstrap.servers", "h1:9092,h2:9092"),
            ("group.id", "g"),
            ("enable.auto.commit", "false"),
            ("fetch.min.bytes", "1024"),
        ] {
            assert_eq!(config.get(name).as_deref(), Some(value), "{name}");
        }
        config.validate().unwrap();
        let config: KafkaConfig = serde_json::from_str(r#""kafka://h1:9092""#).unwrap();
        config.validate().unwrap();
        let config: KafkaConfig = serde_json::from_str(r#"{"group_di": "g", "url": "h1:9092"}"#).unwrap();
        assert!(config.validate().unwrap_err().to_string().contains("group.id"));
        assert!(serde_json::from_str::<KafkaConfig>("17").is_err());
    }
}
