//! Values that are not JSON: Protobuf by `prost`, alone and with the prefix of a schema registry, in ten lines each.
//!
//! `cargo run --example codecs`

mod support;

use std::time::Duration;

use dtkafka::{Codec, Consumer, ErrorPolicy, HandlerError, Message, Producer, ProducerRecord};
use prost::{
    DecodeError,
    bytes::{Buf, BufMut},
    encoding::{DecodeContext, WireType, skip_field, string, uint64},
};
use support::{Cluster, Outcome};

/// `message Order { uint64 id = 1; string customer = 2; }`
#[derive(Debug, Clone, Default, PartialEq)]
struct Order {
    id: u64,
    customer: String,
}

/// What `#[derive(prost::Message)]` writes, or prost-build from a `.proto`; by hand, so that this example needs neither.
impl prost::Message for Order {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        uint64::encode(1, &self.id, buffer);
        string::encode(2, &self.customer, buffer);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        kind: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => uint64::merge(kind, &mut self.id, buffer, context),
            2 => string::merge(kind, &mut self.customer, buffer, context),
            _ => skip_field(kind, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        uint64::encoded_len(1, &self.id) + string::encoded_len(2, &self.customer)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Protobuf: the bytes of the message and nothing else.
#[derive(Clone)]
struct Protobuf;

impl<T: prost::Message + Default> Codec<T> for Protobuf {
    fn encode(&self, _topic: &str, value: &T, buffer: &mut Vec<u8>) -> Result<(), HandlerError> {
        Ok(value.encode(buffer)?)
    }

    fn decode(&self, _topic: &str, value: Option<&[u8]>) -> Result<T, HandlerError> {
        Ok(T::decode(value.ok_or("a tombstone is no message")?)?)
    }
}

/// Another codec behind a registry's prefix: a zero byte and the schema's id, four bytes with the highest first. What the
/// registry gave the schema when it was registered is known here; a program would ask it once over HTTP.
#[derive(Clone)]
struct Registered<C> {
    schema: u32,
    /// What stands between the prefix and the value: nothing with JSON and Avro; with Protobuf the message's place in its
    /// file, which is one zero byte for the first.
    index: &'static [u8],
    codec: C,
}

impl<T, C: Codec<T>> Codec<T> for Registered<C> {
    fn encode(&self, topic: &str, value: &T, buffer: &mut Vec<u8>) -> Result<(), HandlerError> {
        buffer.push(0);
        buffer.extend_from_slice(&self.schema.to_be_bytes());
        buffer.extend_from_slice(self.index);
        self.codec.encode(topic, value, buffer)
    }

    fn decode(&self, topic: &str, value: Option<&[u8]>) -> Result<T, HandlerError> {
        let value = value.ok_or("a tombstone is no message")?;
        let (prefix, rest) = value.split_first_chunk::<5>().ok_or("shorter than a registry's prefix")?;
        let [magic, schema @ ..] = prefix;
        if *magic != 0 {
            Err("not written with a schema registry: the first byte is not zero")?;
        }
        // Of another schema: a program would ask the registry for that one here, and keep it.
        if u32::from_be_bytes(*schema) != self.schema {
            Err(format!("written with schema {}, expected {}", u32::from_be_bytes(*schema), self.schema))?;
        }
        let rest = rest.strip_prefix(self.index).ok_or("another message of the schema's file")?;
        self.codec.decode(topic, Some(rest))
    }
}

/// Sends values with a codec, and shows the bytes.
async fn send<T, C: Codec<T>>(producer: &Producer, topic: &str, codec: &C, values: &[T]) -> Outcome {
    for value in values {
        let mut bytes = Vec::new();
        codec.encode(topic, value, &mut bytes)?;
        let delivery = producer.client().send_record(ProducerRecord::new(topic).value(&bytes)).await?;
        println!("  {topic} {}: {bytes:02x?}", delivery.await?.offset);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Outcome {
    let cluster = Cluster::start().await?;
    let kafka = cluster.with_topics(&[("plain", 1), ("registered", 1)]).await?;
    let registered = Registered { schema: 42, index: &[0], codec: Protobuf };
    let orders = [1, 2].map(|id| Order { id, customer: "ann".to_owned() });

    println!("Sent, first as it is, then behind the prefix 00 0000002a and the index 00:");
    let producer = Producer::new(&kafka).await?;
    send(&producer, "plain", &Protobuf, &orders).await?;
    send(&producer, "registered", &registered, &orders).await?;
    // Somebody who knows nothing of the registry.
    send(&producer, "registered", &Protobuf, &orders[..1]).await?;
    producer.close().await?;

    println!("\nHandled; what cannot be read takes the road of the error policy:");
    let show = async |order: Message<Order>| {
        println!("  {} {}: order {} of {}", order.topic, order.offset, order.value.id, order.value.customer);
        Ok(())
    };
    let mut consumer = Consumer::new(&kafka, ["plain", "registered"])?
        .register_handler_with("plain", Protobuf, show)?
        .register_handler_with("registered", registered, show)?
        .error_policy(ErrorPolicy::Skip)?;
    let mut handled = 0;
    while handled < 5 {
        handled += consumer.consume(Duration::from_secs(1)).await?;
    }
    println!("  {} of {handled} skipped", consumer.metrics().skipped);
    consumer.close().await?;
    Ok(())
}
