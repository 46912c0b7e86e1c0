//! How values become bytes and bytes values: [`Codec`], and [`Json`], which is used unless another is given. A codec never
//! sees where its bytes go or come from beyond the topic's name.

use serde::{Serialize, de::DeserializeOwned};

use super::HandlerError;
use crate::json;

/// A format of values: JSON, Protobuf, MessagePack, Avro with a registry's prefix …
///
/// It is cloned into every handler that uses it: put what is large into an `Arc`.
///
/// ```
/// use dtkafka::{Codec, HandlerError};
///
/// /// Four bytes, the highest first.
/// #[derive(Clone)]
/// struct Number;
///
/// impl Codec<u32> for Number {
///     fn encode(&self, _topic: &str, value: &u32, buffer: &mut Vec<u8>) -> Result<(), HandlerError> {
///         buffer.extend_from_slice(&value.to_be_bytes());
///         Ok(())
///     }
///
///     fn decode(&self, _topic: &str, value: Option<&[u8]>) -> Result<u32, HandlerError> {
///         Ok(u32::from_be_bytes(value.ok_or("a tombstone is no number")?.try_into()?))
///     }
/// }
/// # let mut buffer = Vec::new();
/// # Number.encode("n", &7, &mut buffer).unwrap();
/// # assert_eq!(Number.decode("n", Some(&buffer)).unwrap(), 7);
/// # assert!(Number.decode("n", None).is_err() && Number.decode("n", Some(b"x")).is_err());
/// ```
pub trait Codec<T>: Clone + Send + Sync + 'static {
    /// Appends the value's bytes to `buffer`, which is empty.
    ///
    /// # Errors
    /// Why the value cannot be written; nothing is sent then.
    fn encode(&self, topic: &str, value: &T, buffer: &mut Vec<u8>) -> Result<(), HandlerError>;

    /// Reads a value; `None` is a tombstone.
    ///
    /// # Errors
    /// Why the value cannot be read. The [`ErrorPolicy`](crate::ErrorPolicy) decides about the record, without a retry. Keep
    /// the bytes themselves out of the text: it is logged.
    fn decode(&self, topic: &str, value: Option<&[u8]>) -> Result<T, HandlerError>;
}

/// JSON by serde, the format of everything that names no other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Json;

impl<T: Serialize + DeserializeOwned> Codec<T> for Json {
    fn encode(&self, _topic: &str, value: &T, buffer: &mut Vec<u8>) -> Result<(), HandlerError> {
        Ok(json::write(buffer, value)?)
    }

    fn decode(&self, _topic: &str, value: Option<&[u8]>) -> Result<T, HandlerError> {
        json::read_text(value.unwrap_or(b"null")).map_err(Into::into)
    }
}
