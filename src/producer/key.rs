//! What can be a record's key: text, bytes, integers as Java's serializers write them, and options of all these. Only
//! turns values into bytes; which partition a key means is `partitioner.rs`'s.

use bytes::Bytes;

/// The bytes of a key, borrowed where that is possible.
#[derive(Clone)]
pub struct Key<'a>(Inner<'a>);

#[derive(Clone)]
enum Inner<'a> {
    Borrowed(&'a [u8]),
    Short([u8; 4]),
    Long([u8; 8]),
    Owned(Bytes),
}

impl Key<'_> {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Inner::Borrowed(bytes) => bytes,
            Inner::Short(bytes) => bytes,
            Inner::Long(bytes) => bytes,
            Inner::Owned(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for Key<'_> {
    /// Without its bytes, which may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({} bytes)", self.as_bytes().len())
    }
}

/// A value that can be a key: `"text"`, `b"bytes"`, `&string`, `&vec`, [`Bytes`], `String`, `Vec<u8>`, an `i32` or `i64` (4
/// and 8 bytes, the highest first, as Java's `IntegerSerializer` and `LongSerializer` write them; `u32` and `u64` alike), and
/// an `Option` of these, where `None` is no key at all.
pub trait IntoKey<'a> {
    /// The key; `None` for a record without one.
    fn into_key(self) -> Option<Key<'a>>;
}

impl<'a, T: AsRef<[u8]> + ?Sized> IntoKey<'a> for &'a T {
    fn into_key(self) -> Option<Key<'a>> {
        Some(Key(Inner::Borrowed(self.as_ref())))
    }
}

impl<'a, K: IntoKey<'a>> IntoKey<'a> for Option<K> {
    fn into_key(self) -> Option<Key<'a>> {
        self?.into_key()
    }
}

impl<'a> IntoKey<'a> for Key<'a> {
    fn into_key(self) -> Option<Self> {
        Some(self)
    }
}

macro_rules! keys {
    ($($type:ty => |$value:ident| $inner:expr;)+) => {$(
        impl<'a> IntoKey<'a> for $type {
            fn into_key(self) -> Option<Key<'a>> {
                let $value = self;
                Some(Key($inner))
            }
        }
    )+};
}

keys! {
    i32 => |key| Inner::Short(key.to_be_bytes());
    u32 => |key| Inner::Short(key.to_be_bytes());
    i64 => |key| Inner::Long(key.to_be_bytes());
    u64 => |key| Inner::Long(key.to_be_bytes());
    Bytes => |key| Inner::Owned(key);
    String => |key| Inner::Owned(key.into());
    Vec<u8> => |key| Inner::Owned(key.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<'a>(key: impl IntoKey<'a>) -> Option<Vec<u8>> {
        key.into_key().map(|key| key.as_bytes().to_vec())
    }

    #[test]
    fn every_kind_of_key_has_the_bytes_java_gives_it() {
        let text = String::from("id-7");
        for key in
            [bytes("id-7"), bytes(b"id-7"), bytes(&text), bytes(text.clone()), bytes(Bytes::from("id-7"))]
        {
            assert_eq!(key.as_deref(), Some(&b"id-7"[..]));
        }
        assert_eq!(bytes(7_i32), Some(vec![0, 0, 0, 7]));
        assert_eq!(bytes(-2_i64), Some(vec![255, 255, 255, 255, 255, 255, 255, 254]));
        assert_eq!((bytes(Some(7_u32)), bytes(None::<&str>)), (Some(vec![0, 0, 0, 7]), None));
        assert_eq!(bytes(Some("")), Some(vec![]), "an empty key is a key");
        assert!(!format!("{:?}", "hunter2".into_key()).contains("hunter2"));
    }
}
