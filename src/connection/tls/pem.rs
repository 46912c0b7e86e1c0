//! PEM as people have it: with CRLF, a byte order mark, indentation, text around, all in one line, with `\n` written out,
//! in UTF-16. Pure.
//!
//! A text may be a private key that was put where something else is wanted: nothing here repeats any of it. A block is
//! named by its place, and by its label only where that is one of the known ones.

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

/// Padding gets lost where text is copied.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a block says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Label {
    Certificate,
    /// PKCS#8, PKCS#1 or SEC1; which of them is told by its bytes.
    PrivateKey,
    EncryptedPrivateKey,
    /// Anything else.
    Other,
}

impl Label {
    fn of(text: &str) -> Self {
        match text {
            "CERTIFICATE" | "X509 CERTIFICATE" | "TRUSTED CERTIFICATE" => Self::Certificate,
            "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" => Self::PrivateKey,
            "ENCRYPTED PRIVATE KEY" => Self::EncryptedPrivateKey,
            _ => Self::Other,
        }
    }
}

/// One `-----BEGIN …-----` and what belongs to it.
pub(super) struct Block {
    pub(super) label: Label,
    /// The line of its first dash, from 1.
    pub(super) line: usize,
    /// Its bytes, an ASN.1 sequence of the length it claims, or why there are none.
    pub(super) der: Result<Vec<u8>, &'static str>,
}

/// Every block of a text, in order.
pub(super) fn blocks(bytes: &[u8]) -> Vec<Block> {
    const BEGIN: &str = "-----BEGIN ";
    let text = decoded(bytes);
    let (mut blocks, mut at, mut line) = (Vec::new(), 0, 1);
    while let Some(found) = text[at..].find(BEGIN) {
        line += text[at..at + found].matches('\n').count();
        let rest = &text[at + found + BEGIN.len()..];
        let (block, len) = read_block(rest, line);
        blocks.push(block);
        let end = at + found + BEGIN.len() + len;
        line += text[at + found..end].matches('\n').count();
        at = end;
    }
    blocks
}

/// The text of a file: UTF-8, or UTF-16 with a byte order mark, as some editors write it. What is neither becomes
/// replacement characters, which belong to no block.
fn decoded(bytes: &[u8]) -> String {
    let units = |rest: &[u8], number: fn([u8; 2]) -> u16| -> Vec<u16> {
        rest.as_chunks::<2>().0.iter().map(|pair| number(*pair)).collect()
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => String::from_utf16_lossy(&units(rest, u16::from_le_bytes)),
        [0xfe, 0xff, rest @ ..] => String::from_utf16_lossy(&units(rest, u16::from_be_bytes)),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// Reads a block from behind its BEGIN, and says how much of the text it takes.
fn read_block(rest: &str, line: usize) -> (Block, usize) {
    const DASHES: &str = "-----";
    let unreadable = |why, len| (Block { label: Label::Other, line, der: Err(why) }, len);
    let Some(name_len) = rest.find(DASHES) else {
        return unreadable("its BEGIN line has no end", rest.len());
    };
    let label = Label::of(rest[..name_len].trim());
    let body_at = name_len + DASHES.len();
    let body = &rest[body_at..];
    let Some(body_len) = body.find(DASHES) else {
        return (Block { label, line, der: Err("its END line is missing") }, rest.len());
    };
    let (content, end) = body.split_at(body_len);
    let Some(end_name) = end.strip_prefix("-----END ") else {
        // The next block begins: this one was cut off.
        return (Block { label, line, der: Err("its END line is missing") }, body_at + body_len);
    };
    let closed = end_name.split_once(DASHES).is_some_and(|(name, _)| name.trim() == rest[..name_len].trim());
    let der = if closed { bytes_of(content) } else { Err("its END line does not match its BEGIN line") };
    let label = match (label, &der) {
        // The form before PKCS#8, with headers of its own.
        (Label::PrivateKey, Err(LEGACY)) => Label::EncryptedPrivateKey,
        _ => label,
    };
    (Block { label, line, der }, body_at + body_len + DASHES.len())
}

pub(super) const LEGACY: &str = "it is encrypted in OpenSSL's old form (Proc-Type, DEK-Info)";

fn bytes_of(content: &str) -> Result<Vec<u8>, &'static str> {
    if content.contains("DEK-Info") || content.contains("Proc-Type") {
        return Err(LEGACY);
    }
    let mut base64 = String::with_capacity(content.len());
    let mut chars = content.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            // `\n` written out, once or twice escaped, or a backslash at the end of a line.
            '\\' => {
                while chars.next_if_eq(&'\\').is_some() {}
                let _escape = chars.next_if(|c| matches!(c, 'n' | 'r' | 't'));
            }
            '"' | '\'' => {}
            c if c.is_whitespace() || c == '\u{feff}' => {}
            c => base64.push(c),
        }
    }
    let der = BASE64.decode(base64.as_bytes()).map_err(|_| "its content is not base64")?;
    let outer =
        super::der::Reader::new(&der).sequence().ok_or("its content is cut off, or no ASN.1 sequence")?;
    // Bytes behind the sequence are ignored: OpenSSL adds some to a TRUSTED CERTIFICATE.
    let len = outer.len_with_header;
    Ok(der.get(..len).map_or_else(Vec::new, <[u8]>::to_vec))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CA: &str = include_str!("../test_certs/ca.pem");
    const KEY: &str = include_str!("../test_certs/server.key");

    /// Label, line and bytes of each block.
    type Read = Vec<(Label, usize, Result<Vec<u8>, &'static str>)>;

    fn read(text: impl AsRef<[u8]>) -> Read {
        blocks(text.as_ref()).into_iter().map(|block| (block.label, block.line, block.der)).collect()
    }

    fn utf16(text: &str, mark: [u8; 2], bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        mark.into_iter().chain(text.encode_utf16().flat_map(bytes)).collect()
    }

    #[test]
    fn a_key_is_the_same_in_every_form_people_have_it_in() {
        let expected = read(KEY).remove(0).2.unwrap();
        let body = KEY.trim_end();
        let forms: Vec<(&str, Vec<u8>)> = vec![
            ("CRLF", body.replace('\n', "\r\n").into()),
            ("CR", body.replace('\n', "\r").into()),
            ("a byte order mark", format!("\u{feff}{body}").into()),
            ("UTF-16LE", utf16(KEY, [0xff, 0xfe], u16::to_le_bytes)),
            ("UTF-16BE", utf16(KEY, [0xfe, 0xff], u16::to_be_bytes)),
            ("indentation", body.lines().map(|line| format!("    {line}\n")).collect::<String>().into()),
            (
                "tabs and trailing blanks",
                body.lines().map(|line| format!("\t{line} \t\n")).collect::<String>().into(),
            ),
            ("empty lines", body.replace('\n', "\n\n").into()),
            ("text around", format!("Bag Attributes\n  friendlyName: x\n{KEY}\nend of it").into()),
            ("one line", body.replace('\n', "").into()),
            ("one line with blanks", body.replace('\n', " ").into()),
            ("literal \\n", body.replace('\n', "\\n").into()),
            ("literal \\r\\n", body.replace('\n', "\\r\\n").into()),
            ("literal \\\\n", body.replace('\n', "\\\\n").into()),
            ("lines joined by backslashes", body.replace('\n', "\\\n").into()),
            ("quotes", format!("\"{}\"", body.replace('\n', "\\n")).into()),
            ("quoted lines", body.lines().map(|line| format!("\"{line}\\n\"\n")).collect::<String>().into()),
            ("without padding", body.replace('=', "").into()),
            ("bytes that are no text around it", [b"\x80\xff\n", body.as_bytes(), b"\n\xfe"].concat()),
        ];
        for (form, text) in forms {
            let found = read(text);
            assert_eq!(found.len(), 1, "{form}");
            assert_eq!((found[0].0, &found[0].2), (Label::PrivateKey, &Ok(expected.clone())), "{form}");
        }
    }

    #[test]
    fn several_blocks_come_in_order_with_their_lines() {
        let found = read(format!("{KEY}{CA}\n{CA}"));
        let labels: Vec<_> = found.iter().map(|(label, ..)| *label).collect();
        assert_eq!(labels, [Label::PrivateKey, Label::Certificate, Label::Certificate]);
        let key_lines = KEY.lines().count();
        assert_eq!(
            found.iter().map(|(_, line, _)| *line).collect::<Vec<_>>(),
            [1, key_lines + 1, key_lines + CA.lines().count() + 2]
        );
        assert!(found.iter().all(|(_, _, der)| der.is_ok()));
    }

    #[test]
    fn a_damaged_block_says_why_and_does_not_take_the_next_one_along() {
        let end = "-----END CERTIFICATE-----";
        let cut_body: String = CA
            .lines()
            .filter(|line| !line.starts_with("AQ"))
            .enumerate()
            .filter(|(at, _)| *at != 2)
            .map(|(_, line)| format!("{line}\n"))
            .collect();
        for (damaged, why) in [
            (CA.replace(end, ""), "END line is missing"),
            (CA.replace(end, "-----END PRIVATE KEY-----"), "does not match"),
            (CA.replacen("MII", "M*I", 1), "not base64"),
            (CA.replacen("MII", "AII", 1), "no ASN.1 sequence"),
            (cut_body, "cut off"),
        ] {
            let found = read(format!("{damaged}\n{KEY}"));
            assert_eq!(found.len(), 2, "{why}");
            assert!(found[0].2.as_ref().unwrap_err().contains(why), "{why}: {:?}", found[0].2);
            assert!(found[1].0 == Label::PrivateKey && found[1].2.is_ok(), "{why}");
        }
        assert!(read("-----BEGIN CERTIFICATE").remove(0).2.is_err());
        assert!(read("nothing").is_empty() && read("").is_empty());
        assert_eq!(read(include_str!("../test_certs/keys/legacy.pem")).remove(0).2, Err(LEGACY));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(noise in proptest::collection::vec(any::<u8>(), 0..200), text in "(-----BEGIN |-----END |CERTIFICATE|-----|\\\\|\n|MII|=|\\PC){0,30}") {
            let _ = read(&noise);
            let _ = read(text);
        }
    }
}
