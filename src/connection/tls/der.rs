//! The little ASN.1 (DER) that keys need: reading nested values, every length checked against what is left. Pure.

/// Reads values one after the other.
#[derive(Clone)]
pub(super) struct Reader<'a>(&'a [u8]);

/// What is in a sequence, and how long it is with its tag and length.
pub(super) struct Sequence<'a> {
    pub(super) content: Reader<'a>,
    pub(super) len_with_header: usize,
}

pub(super) const INTEGER: u8 = 0x02;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The tag of the next value.
    pub(super) fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next value, if it has this tag.
    pub(super) fn value(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (&[found, first], mut rest) = self.0.split_first_chunk::<2>()?;
        if found != tag {
            return None;
        }
        let mut len = usize::from(first);
        if first >= 0x80 {
            let (bytes, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            // Four bytes of length are 4 GiB.
            if bytes.is_empty() || bytes.len() > 4 {
                return None;
            }
            len = bytes
                .iter()
                .try_fold(0_usize, |len, byte| len.checked_mul(256)?.checked_add(usize::from(*byte)))?;
            rest = after;
        }
        let (value, after) = rest.split_at_checked(len)?;
        self.0 = after;
        Some(value)
    }

    pub(super) fn sequence(&mut self) -> Option<Sequence<'a>> {
        let before = self.0.len();
        let content = Self(self.value(SEQUENCE)?);
        Some(Sequence { content, len_with_header: before - self.0.len() })
    }

    pub(super) fn oid(&mut self) -> Option<&'a [u8]> {
        self.value(OBJECT_IDENTIFIER)
    }

    /// A number that is not negative and fits.
    pub(super) fn number(&mut self) -> Option<u64> {
        let bytes = self.value(INTEGER)?;
        let bytes = bytes.strip_prefix(&[0]).unwrap_or(bytes);
        if bytes.len() > 8 || (bytes.len() == 8 && bytes.first().is_some_and(|first| *first >= 0x80)) {
            return None;
        }
        Some(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked_against_what_is_left() {
        for bad in [
            &[][..],
            &[0x30],
            &[0x30, 1],
            &[0x30, 0x80],
            &[0x30, 0x81],
            &[0x30, 0x81, 1],
            &[0x30, 0x85, 0, 0, 0, 0, 1, 0],
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0],
            &[0x31, 0],
        ] {
            assert!(Reader::new(bad).sequence().is_none(), "{bad:?}");
        }
        let mut outer = Reader::new(&[0x30, 0x81, 6, 2, 1, 7, 2, 1, 0xff, 9]);
        let mut inner = outer.sequence().unwrap();
        assert_eq!(inner.len_with_header, 9);
        assert_eq!(inner.content.number(), Some(7));
        assert_eq!(inner.content.number(), Some(255), "DER would write a zero in front; nobody is hurt");
        assert!(inner.content.peek().is_none() && outer.peek() == Some(9));
        assert_eq!(Reader::new(&[2, 9, 1, 0, 0, 0, 0, 0, 0, 0, 0]).number(), None);
    }
}
