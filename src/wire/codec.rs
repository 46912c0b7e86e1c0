//! How Kafka's primitive types are read and written: [`Reader`] over the bytes of one answer, [`Writer`] into one buffer.
//!
//! Nothing here trusts a length or a count: each is compared with the bytes that are left before anything is reserved, and
//! all elements of an answer together may take no more memory than a small multiple of its size. Strings and bytes are
//! slices of the answer. Nothing recurses but the tables, whose depth is fixed. KIP-482 (tagged fields).

use bytes::Bytes;

use super::{Str, Uuid, WireError};

/// What the tables' macros name.
pub(crate) mod prelude {
    pub(crate) use bytes::Bytes;

    #[cfg(test)]
    pub(crate) use super::super::tests::Samples;
    pub(crate) use super::{
        super::{Str, Uuid, WireError},
        Read, Reader, Write, Writer, at_least_one, ignorable, same,
    };
}

/// Two values of one type.
pub(crate) fn same<T: PartialEq>(a: &T, b: &T) -> bool {
    a == b
}

/// The smallest size of a structure: none is empty in any version.
pub(crate) const fn at_least_one(size: usize) -> usize {
    if size == 0 { 1 } else { size }
}

/// Marks a field that is left out silently in versions that do not have it. The constant's name is the flag in the
/// tables.
#[expect(non_upper_case_globals, reason = "a word of the tables")]
pub(crate) const ignorable: bool = true;

/// How many bytes of memory the elements of an answer may take, per byte of the answer. What brokers really send takes
/// less than 8; the factor bounds what a hostile peer can ask for.
const MEMORY_PER_BYTE: usize = 16;
/// The same for answers of a few bytes.
const MEMORY_AT_LEAST: usize = 1024;
/// The most for a large answer: 4 MiB about 100,000 partitions with three replicas each take as much.
const MEMORY_AT_MOST: usize = 14 << 20;
/// Per byte of an answer that is larger than what is accepted by default.
const MEMORY_PER_BYTE_OF_MANY: usize = 5;

/// Reads one message.
pub(crate) struct Reader {
    bytes: Bytes,
    at: usize,
    /// Where the message ends, or the tagged field that is being read.
    end: usize,
    /// How much memory the elements of arrays may still take.
    memory: usize,
    pub(crate) version: i16,
    pub(crate) flexible: bool,
    /// What is being read, for errors.
    pub(crate) field: &'static str,
}

impl Reader {
    /// `holds_records`: the size of the answer says nothing of how many elements it has.
    pub(crate) fn new(bytes: Bytes, version: i16, flexible: bool, holds_records: bool) -> Self {
        let end = bytes.len();
        let by_size = if holds_records { 0 } else { end.saturating_mul(MEMORY_PER_BYTE_OF_MANY) };
        let memory = end.saturating_mul(MEMORY_PER_BYTE).saturating_add(MEMORY_AT_LEAST);
        let memory = memory.min(MEMORY_AT_MOST.max(by_size));
        Self { bytes, at: 0, end, memory, version, flexible, field: "" }
    }

    /// How many bytes were not read.
    pub(crate) fn left(&self) -> usize {
        self.end - self.at
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn error(&self, text: impl Into<String>) -> WireError {
        WireError::new(self.field, text)
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn null(&self) -> WireError {
        self.error("null where a value is required")
    }

    #[cold]
    fn short(&self, wanted: usize) -> WireError {
        self.error(format!("{wanted} bytes are wanted, {} are left", self.left()))
    }

    /// Reads a field. One call a field keeps the tables' code small.
    #[inline(never)]
    pub(crate) fn get<T: Read>(&mut self, name: &'static str, field: &mut T) -> Result<(), WireError> {
        self.field = name;
        *field = T::read(self)?;
        Ok(())
    }

    /// Moves on by `length` bytes; where they begin.
    fn advance(&mut self, length: usize) -> Result<usize, WireError> {
        if length > self.left() {
            return Err(self.short(length));
        }
        let start = self.at;
        self.at += length;
        Ok(start)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let start = self.advance(N)?;
        // Never short: `advance` has seen to it.
        Ok(self.bytes.get(start..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N]))
    }

    fn slice(&mut self, length: usize) -> Result<Bytes, WireError> {
        let start = self.advance(length)?;
        Ok(self.bytes.slice(start..start + length))
    }

    fn unsigned_varint(&mut self) -> Result<u32, WireError> {
        let mut value = 0u32;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.array()?;
            // The fifth byte has room for four bits.
            if shift == 28 && byte > 0x0f {
                break;
            }
            value |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.error("a variable-length number has more than 32 bits"))
    }

    /// A length or a count that fits into what is left, each unit taking at least `unit` bytes. `None` for null.
    fn length(
        &mut self,
        unit: usize,
        fixed: fn(&mut Self) -> Result<i32, WireError>,
    ) -> Result<Option<usize>, WireError> {
        let length = if self.flexible {
            let Some(length) = self.unsigned_varint()?.checked_sub(1) else { return Ok(None) };
            usize::try_from(length).unwrap_or(usize::MAX)
        } else {
            let length = fixed(self)?;
            if length == -1 {
                return Ok(None);
            }
            usize::try_from(length).map_err(|_| self.error(format!("a length of {length}")))?
        };
        if length > self.left() / unit {
            return Err(self.error(format!(
                "{length} elements of {unit} bytes or more are announced, {} bytes are left",
                self.left()
            )));
        }
        Ok(Some(length))
    }

    /// Allows memory for `count` elements of this size; it is bounded for the whole message.
    #[inline(never)]
    fn reserve(&mut self, count: usize, size: usize) -> Result<(), WireError> {
        let needed = count.saturating_mul(size);
        let Some(rest) = self.memory.checked_sub(needed) else {
            return Err(self.error(format!(
                "{count} elements would take {needed} bytes, far more than what the answer has"
            )));
        };
        self.memory = rest;
        Ok(())
    }

    /// Nothing may be left over after a message.
    pub(super) fn finish(&self) -> Result<(), WireError> {
        match self.left() {
            0 => Ok(()),
            left => Err(WireError::new("", format!("{left} bytes are left over after the message"))),
        }
    }

    /// The tagged fields at the end of a structure (KIP-482). `known` reads the field of a tag and says so; what it does not
    /// know is skipped.
    pub(crate) fn tags(
        &mut self,
        known: &mut dyn FnMut(&mut Self, u32) -> Result<bool, WireError>,
    ) -> Result<(), WireError> {
        if !self.flexible {
            return Ok(());
        }
        self.field = "tagged fields";
        // Each takes a byte or more of what is left, so that a large count ends at the end of the message.
        for _ in 0..self.unsigned_varint()? {
            let tag = self.unsigned_varint()?;
            let size = usize::try_from(self.unsigned_varint()?).unwrap_or(usize::MAX);
            if size > self.left() {
                return Err(self.short(size));
            }
            let outer = self.end;
            self.end = self.at + size;
            if !known(self, tag)? {
                self.at = self.end;
            }
            if self.left() > 0 {
                return Err(self.error(format!("{} bytes are left over in tagged field {tag}", self.left())));
            }
            self.end = outer;
            self.field = "tagged fields";
        }
        Ok(())
    }
}

/// Writes one message, or only counts its bytes.
pub(crate) struct Writer<'a> {
    out: Option<&'a mut Vec<u8>>,
    size: usize,
    pub(crate) version: i16,
    pub(crate) flexible: bool,
    /// What is being written, for errors.
    pub(crate) field: &'static str,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(out: Option<&'a mut Vec<u8>>, version: i16, flexible: bool) -> Self {
        Self { out, size: 0, version, flexible, field: "" }
    }

    /// How many bytes were written, or counted.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn error(&self, text: impl Into<String>) -> WireError {
        WireError::new(self.field, text)
    }

    /// A field that the version does not have, and that has a value which the broker must see.
    #[cold]
    #[inline(never)]
    pub(crate) fn absent(&self, field: &'static str) -> WireError {
        WireError::new(field, format!("version {} has no such field, and it has a value", self.version))
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn null(&self, field: &'static str) -> WireError {
        WireError::new(field, format!("version {} allows no null", self.version))
    }

    #[inline(never)]
    fn put(&mut self, bytes: &[u8]) {
        self.size += bytes.len();
        if let Some(out) = &mut self.out {
            out.extend_from_slice(bytes);
        }
    }

    fn unsigned_varint(&mut self, mut value: u32) {
        while value > 0x7f {
            self.put(&[value.to_le_bytes()[0] | 0x80]);
            value >>= 7;
        }
        self.put(&value.to_le_bytes()[..1]);
    }

    /// A length or a count. `small`: the fixed form has two bytes, as with strings. Brokers hold the other form to the same
    /// limit: they close the connection on a longer string.
    fn length(&mut self, length: usize, small: bool) -> Result<(), WireError> {
        let limit = if small { i32::from(i16::MAX) } else { i32::MAX - 1 };
        match i32::try_from(length) {
            Ok(length) if length <= limit => self.signed_length(length, small),
            _ => {
                return Err(self.error(format!("a length of {length}, and {limit} is the most there can be")));
            }
        }
        Ok(())
    }

    /// -1 is null.
    fn signed_length(&mut self, length: i32, small: bool) {
        if self.flexible {
            self.unsigned_varint(length.saturating_add(1).unsigned_abs());
        } else if small {
            self.put(&i16::try_from(length).unwrap_or(-1).to_be_bytes());
        } else {
            self.put(&length.to_be_bytes());
        }
    }

    /// Writes what says by its length that it is null.
    fn or_null(&mut self, value: Option<&impl Write>, small: bool) -> Result<(), WireError> {
        match value {
            None => {
                self.signed_length(-1, small);
                Ok(())
            }
            Some(value) => value.write(self),
        }
    }

    /// Writes a field. One call a field keeps the tables' code small.
    #[inline(never)]
    pub(crate) fn give<T: Write>(&mut self, name: &'static str, field: &T) -> Result<(), WireError> {
        self.field = name;
        field.write(self)
    }

    /// How many tagged fields follow.
    pub(crate) fn tags(&mut self, count: u32) {
        if self.flexible {
            self.unsigned_varint(count);
        }
    }

    /// One tagged field.
    pub(crate) fn tagged(&mut self, tag: u32, field: &impl Write) -> Result<(), WireError> {
        let mut counter = Writer::new(None, self.version, self.flexible);
        field.write(&mut counter)?;
        let size =
            u32::try_from(counter.size).map_err(|_| self.error("a tagged field of more than 4 GiB"))?;
        self.unsigned_varint(tag);
        self.unsigned_varint(size);
        field.write(self)
    }
}

/// What can be read from an answer.
pub(crate) trait Read: Sized {
    /// The fewest bytes it takes, in whatever version.
    const MIN_SIZE: usize;

    fn read(reader: &mut Reader) -> Result<Self, WireError>;

    /// Reads a value that may be null. This default is for structures, where a byte in front says whether they are there;
    /// types with a length say it by that, and numbers cannot be null.
    fn read_nullable(reader: &mut Reader) -> Result<Option<Self>, WireError> {
        if i8::read(reader)? < 0 { Ok(None) } else { Self::read(reader).map(Some) }
    }

    /// Some value, as the generator has it.
    #[cfg(test)]
    fn sample(samples: &mut super::tests::Samples) -> Self;
}

/// What can be written into a request.
pub(crate) trait Write: Sized {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), WireError>;

    /// As [`Read::read_nullable`] reads it.
    fn write_nullable(value: Option<&Self>, writer: &mut Writer<'_>) -> Result<(), WireError> {
        match value {
            None => (-1i8).write(writer),
            Some(value) => 1i8.write(writer).and_then(|()| value.write(writer)),
        }
    }

    /// The value as Kafka's own classes show it.
    #[cfg(test)]
    fn json(&self, version: i16) -> serde_json::Value;
}

impl<T: Read> Read for Option<T> {
    const MIN_SIZE: usize = 1;

    fn read(reader: &mut Reader) -> Result<Self, WireError> {
        T::read_nullable(reader)
    }

    #[cfg(test)]
    fn sample(samples: &mut super::tests::Samples) -> Self {
        if samples.null() { None } else { Some(T::sample(samples)) }
    }
}

impl<T: Write> Write for Option<T> {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        T::write_nullable(self.as_ref(), writer)
    }

    #[cfg(test)]
    fn json(&self, version: i16) -> serde_json::Value {
        self.as_ref().map_or(serde_json::Value::Null, |value| value.json(version))
    }
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Read for $type {
            const MIN_SIZE: usize = size_of::<Self>();

            fn read(reader: &mut Reader) -> Result<Self, WireError> {
                reader.array().map(Self::from_be_bytes)
            }

            #[cfg(test)]
            fn sample(samples: &mut super::tests::Samples) -> Self {
                samples.number() as Self
            }
        }

        impl Write for $type {
            fn write(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
                writer.put(&self.to_be_bytes());
                Ok(())
            }

            #[cfg(test)]
            fn json(&self, _version: i16) -> serde_json::Value {
                (*self).into()
            }
        }
    )*};
}

integers!(i8, i16, i32, i64);

impl Read for bool {
    const MIN_SIZE: usize = 1;

    fn read(reader: &mut Reader) -> Result<Self, WireError> {
        let [byte] = reader.array()?;
        Ok(byte != 0)
    }

    #[cfg(test)]
    fn sample(samples: &mut super::tests::Samples) -> Self {
        samples.number() % 2 == 1
    }
}

impl Write for bool {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        writer.put(&[u8::from(*self)]);
        Ok(())
    }

    #[cfg(test)]
    fn json(&self, _version: i16) -> serde_json::Value {
        (*self).into()
    }
}

impl Read for Uuid {
    const MIN_SIZE: usize = 16;

    fn read(reader: &mut Reader) -> Result<Self, WireError> {
        reader.array().map(Self)
    }

    #[cfg(test)]
    fn sample(samples: &mut super::tests::Samples) -> Self {
        let half = samples.number().to_be_bytes();
        Self([half, half].as_flattened().try_into().unwrap())
    }
}

impl Write for Uuid {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        writer.put(&self.0);
        Ok(())
    }

    #[cfg(test)]
    fn json(&self, _version: i16) -> serde_json::Value {
        self.to_string().into()
    }
}

impl Read for Str {
    const MIN_SIZE: usize = 1;

    fn read(reader: &mut Reader) -> Result<Self, WireError> {
        Self::read_nullable(reader)?.ok_or_else(|| reader.null())
    }

    #[inline(never)]
    fn read_nullable(reader: &mut Reader) -> Result<Option<Self>, WireError> {
        let Some(length) = reader.length(1, |reader| i16::read(reader).map(i32::from))? else {
            return Ok(None);
        };
        let bytes = reader.slice(length)?;
        Self::from_utf8(bytes).map(Some).ok_or_else(|| reader.error("a string that is not UTF-8"))
    }

    #[cfg(test)]
    fn sample(samples: &mut super::tests::Samples) -> Self {
        samples.text().into()
    }
}

impl Write for Str {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        writer.length(self.as_bytes().len(), true)?;
        writer.put(self.as_bytes());
        Ok(())
    }

    fn write_nullable(value: Option<&Self>, writer: &mut Writer<'_>) -> Result<(), WireError> {
        writer.or_null(value, true)
    }

    #[cfg(test)]
    fn json(&self, _version: i16) -> serde_json::Value {
        self.to_string().into()
    }
}

impl Read for Bytes {
    const MIN_SIZE: usize = 1;

    fn read(reader: &mut Reader) -> Result<Self, WireError> {
        Self::read_nullable(reader)?.ok_or_else(|| reader.null())
    }

    #[inline(never)]
    fn read_nullable(reader: &mut Reader) -> Result<Option<Self>, WireError> {
        let Some(length) = reader.length(1, i32::read)? else { return Ok(None) };
        reader.slice(length).map(Some)
    }

    #[cfg(test)]
    fn sample(samples: &mut super::tests::Samples) -> Self {
        samples.text().into()
    }
}

impl Write for Bytes {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        writer.length(self.len(), false)?;
        writer.put(self);
        Ok(())
    }

    fn write_nullable(value: Option<&Self>, writer: &mut Writer<'_>) -> Result<(), WireError> {
        writer.or_null(value, false)
    }

    #[cfg(test)]
    fn json(&self, _version: i16) -> serde_json::Value {
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, self).into()
    }
}

impl<T: Read> Read for Vec<T> {
    const MIN_SIZE: usize = 1;

    fn read(reader: &mut Reader) -> Result<Self, WireError> {
        Self::read_nullable(reader)?.ok_or_else(|| reader.null())
    }

    fn read_nullable(reader: &mut Reader) -> Result<Option<Self>, WireError> {
        let Some(count) = reader.length(T::MIN_SIZE, i32::read)? else { return Ok(None) };
        reader.reserve(count, size_of::<T>())?;
        let mut elements = Self::with_capacity(count);
        for _ in 0..count {
            elements.push(T::read(reader)?);
        }
        Ok(Some(elements))
    }

    #[cfg(test)]
    fn sample(samples: &mut super::tests::Samples) -> Self {
        (0..samples.count()).map(|_| T::sample(samples)).collect()
    }
}

impl<T: Write> Write for Vec<T> {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        writer.length(self.len(), false)?;
        self.iter().try_for_each(|element| element.write(writer))
    }

    fn write_nullable(value: Option<&Self>, writer: &mut Writer<'_>) -> Result<(), WireError> {
        writer.or_null(value, false)
    }

    #[cfg(test)]
    fn json(&self, version: i16) -> serde_json::Value {
        self.iter().map(|element| element.json(version)).collect()
    }
}
