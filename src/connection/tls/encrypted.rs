//! Encrypted PKCS#8 keys (RFC 5958, RFC 8018, `ssl.key.password`): PBES2 with PBKDF2 or scrypt (RFC 7914) and AES-CBC, which
//! is what OpenSSL, Java and cert-manager write. Pure, and slow on purpose: never on an async path.
//!
//! The work and the memory that a file asks for are bounded. Nothing of the key or the password reaches an error.

use aes::{
    Aes128, Aes192, Aes256,
    cipher::{BlockDecrypt, BlockSizeUser, KeyInit, consts::U16},
};
use hmac::Hmac;
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};

use super::der::{INTEGER, OCTET_STRING, Reader, SEQUENCE};

// Object identifiers as DER has them.
const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5, 13];
const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5, 12];
const SCRYPT: &[u8] = &[0x2b, 6, 1, 4, 1, 0xda, 0x47, 4, 11];
/// hmacWithSHA1 and, behind it, -SHA224, -SHA256, -SHA384 and -SHA512.
const HMAC: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 2];
const AES: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 1];

/// OpenSSL's default is 2,048, careful people take 1,000,000.
const ROUNDS_MAX: u64 = 10_000_000;
/// What scrypt may use: OpenSSL's default is 16 MiB.
const MEMORY_MAX: u64 = 64 << 20;
/// scrypt's p times its memory: how long it takes.
const WORK_MAX: u64 = 1 << 30;

const DAMAGED: &str = "it is damaged";
const REMEDY: &str =
    "its encryption is not known here: write it again with `openssl pkcs8 -topk8 -v2 aes256`";
const WRONG_PASSWORD: &str = "ssl.key.password does not open it";

const BLOCK: usize = 16;

/// The PKCS#8 key in an EncryptedPrivateKeyInfo.
///
/// # Errors
/// Why not, for a sentence that begins with where the key comes from.
pub(super) fn open(der: &[u8], password: &str) -> Result<Vec<u8>, &'static str> {
    let mut info = Reader::new(der).sequence().ok_or(DAMAGED)?.content;
    let mut algorithm = info.sequence().ok_or(DAMAGED)?.content;
    let data = info.value(OCTET_STRING).ok_or(DAMAGED)?;
    if algorithm.oid() != Some(PBES2) {
        return Err(REMEDY);
    }
    let mut scheme = algorithm.sequence().ok_or(DAMAGED)?.content;
    let kdf = scheme.sequence().ok_or(DAMAGED)?.content;
    let mut cipher = scheme.sequence().ok_or(DAMAGED)?.content;
    let (key_len, decrypt): (_, Decrypt) = match cipher.oid().ok_or(DAMAGED)?.strip_prefix(AES) {
        Some([2]) => (16, decrypt::<Aes128>),
        Some([22]) => (24, decrypt::<Aes192>),
        Some([42]) => (32, decrypt::<Aes256>),
        _ => return Err(REMEDY),
    };
    let iv: [u8; BLOCK] = cipher.value(OCTET_STRING).and_then(|iv| iv.try_into().ok()).ok_or(DAMAGED)?;
    let mut key = vec![0; key_len];
    derive(kdf, password.as_bytes(), &mut key)?;
    let opened = decrypt(&key, iv, data)?;
    // One in 256 wrong passwords leaves a valid padding, so the content is checked too.
    let inner = Reader::new(&opened).sequence().filter(|inner| inner.len_with_header == opened.len());
    if inner.is_some_and(|inner| inner.content.peek() == Some(INTEGER)) {
        Ok(opened)
    } else {
        Err(WRONG_PASSWORD)
    }
}

fn derive(mut kdf: Reader<'_>, password: &[u8], key: &mut [u8]) -> Result<(), &'static str> {
    let name = kdf.oid().ok_or(DAMAGED)?;
    let mut parameters = kdf.sequence().ok_or(DAMAGED)?.content;
    let salt = parameters.value(OCTET_STRING).ok_or(DAMAGED)?;
    match name {
        PBKDF2 => {
            let rounds = parameters.number().ok_or(DAMAGED)?;
            let rounds = u32::try_from(rounds)
                .ok()
                .filter(|rounds| (1..=ROUNDS_MAX).contains(&u64::from(*rounds)))
                .ok_or("it asks for more than 10,000,000 rounds to derive its key")?;
            if parameters.peek() == Some(INTEGER) {
                check_len(&mut parameters, key)?;
            }
            let prf = if parameters.peek() == Some(SEQUENCE) {
                let mut prf = parameters.sequence().ok_or(DAMAGED)?.content;
                prf.oid().ok_or(DAMAGED)?.strip_prefix(HMAC).ok_or(REMEDY)?
            } else {
                &[7]
            };
            match prf {
                [7] => pbkdf2::pbkdf2_hmac::<Sha1>(password, salt, rounds, key),
                [8] => pbkdf2::pbkdf2_hmac::<Sha224>(password, salt, rounds, key),
                [9] => pbkdf2::pbkdf2_hmac::<Sha256>(password, salt, rounds, key),
                [10] => pbkdf2::pbkdf2_hmac::<Sha384>(password, salt, rounds, key),
                [11] => pbkdf2::pbkdf2_hmac::<Sha512>(password, salt, rounds, key),
                _ => return Err(REMEDY),
            }
            Ok(())
        }
        SCRYPT => {
            let mut number = || parameters.number().ok_or(DAMAGED);
            let (n, r, p) = (number()?, number()?, number()?);
            if parameters.peek() == Some(INTEGER) {
                check_len(&mut parameters, key)?;
            }
            scrypt(password, salt, (n, r, p), key)
        }
        _ => Err(REMEDY),
    }
}

fn check_len(parameters: &mut Reader<'_>, key: &[u8]) -> Result<(), &'static str> {
    if parameters.number() == Some(key.len() as u64) { Ok(()) } else { Err(DAMAGED) }
}

type Decrypt = fn(key: &[u8], iv: [u8; BLOCK], data: &[u8]) -> Result<Vec<u8>, &'static str>;

/// CBC, and the padding off.
fn decrypt<C: KeyInit + BlockDecrypt + BlockSizeUser<BlockSize = U16>>(
    key: &[u8],
    iv: [u8; BLOCK],
    data: &[u8],
) -> Result<Vec<u8>, &'static str> {
    let (blocks, rest) = data.as_chunks::<BLOCK>();
    if blocks.is_empty() || !rest.is_empty() {
        return Err(DAMAGED);
    }
    let cipher = C::new_from_slice(key).map_err(|_| DAMAGED)?;
    let (mut opened, mut before) = (Vec::with_capacity(data.len()), iv);
    for block in blocks {
        let mut plain = *block;
        cipher.decrypt_block((&mut plain).into());
        opened.extend(plain.iter().zip(before).map(|(plain, before)| plain ^ before));
        before = *block;
    }
    let padding = usize::from(opened.last().copied().unwrap_or(0));
    let end =
        opened.len().checked_sub(padding).filter(|_| (1..=BLOCK).contains(&padding)).ok_or(WRONG_PASSWORD)?;
    if opened[end..].iter().any(|byte| usize::from(*byte) != padding) {
        return Err(WRONG_PASSWORD);
    }
    opened.truncate(end);
    Ok(opened)
}

/// RFC 7914.
fn scrypt(
    password: &[u8],
    salt: &[u8],
    (n, r, p): (u64, u64, u64),
    key: &mut [u8],
) -> Result<(), &'static str> {
    const TOO_MUCH: &str =
        "it asks for more than 64 MiB, or for too much time, to derive its key with scrypt";
    if n < 2 || !n.is_power_of_two() || r == 0 || p == 0 {
        return Err(DAMAGED);
    }
    let memory =
        r.checked_mul(128).and_then(|block| block.checked_mul(n)).filter(|memory| *memory <= MEMORY_MAX);
    let work = memory.and_then(|memory| memory.checked_mul(p)).filter(|work| *work <= WORK_MAX);
    let (Some(_), Ok(n), Ok(r), Ok(p)) = (work, usize::try_from(n), usize::try_from(r), usize::try_from(p))
    else {
        return Err(TOO_MUCH);
    };
    let mut blocks = vec![0; p * r * 128];
    pbkdf2::pbkdf2::<Hmac<Sha256>>(password, salt, 1, &mut blocks).map_err(|_| DAMAGED)?;
    let mut memory = vec![0_u32; n * r * 32];
    for block in blocks.chunks_exact_mut(r * 128) {
        let mut words: Vec<u32> =
            block.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        mix(&mut words, &mut memory);
        for (bytes, word) in block.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
    pbkdf2::pbkdf2::<Hmac<Sha256>>(password, &blocks, 1, key).map_err(|_| DAMAGED)
}

/// scryptROMix: `memory` is N times as long as `words`, and N is a power of two.
fn mix(words: &mut [u32], memory: &mut [u32]) {
    let (len, n) = (words.len(), memory.len() / words.len());
    let mut scratch = vec![0; len];
    for chunk in memory.chunks_exact_mut(len) {
        chunk.copy_from_slice(words);
        mix_block(words, &mut scratch);
    }
    for _ in 0..n {
        // Integerify: the first word of the last 64 bytes.
        let at = (words[len - 16] as usize & (n - 1)) * len;
        words.iter_mut().zip(&memory[at..at + len]).for_each(|(word, other)| *word ^= other);
        mix_block(words, &mut scratch);
    }
}

/// scryptBlockMix.
fn mix_block(words: &mut [u32], scratch: &mut [u32]) {
    let half = words.len() / 2;
    let mut state = [0; 16];
    state.copy_from_slice(&words[words.len() - 16..]);
    for (index, chunk) in words.chunks_exact(16).enumerate() {
        state.iter_mut().zip(chunk).for_each(|(state, word)| *state ^= word);
        salsa20_8(&mut state);
        let at = index / 2 * 16 + if index % 2 == 0 { 0 } else { half };
        scratch[at..at + 16].copy_from_slice(&state);
    }
    words.copy_from_slice(scratch);
}

fn salsa20_8(state: &mut [u32; 16]) {
    let start = *state;
    // Column and row rounds: each line is (to, from, from, turns).
    const QUARTERS: [[usize; 4]; 8] = [
        [0, 4, 8, 12],
        [5, 9, 13, 1],
        [10, 14, 2, 6],
        [15, 3, 7, 11],
        [0, 1, 2, 3],
        [5, 6, 7, 4],
        [10, 11, 8, 9],
        [15, 12, 13, 14],
    ];
    for _ in 0..4 {
        for &[a, b, c, d] in &QUARTERS {
            state[b] ^= state[a].wrapping_add(state[d]).rotate_left(7);
            state[c] ^= state[b].wrapping_add(state[a]).rotate_left(9);
            state[d] ^= state[c].wrapping_add(state[b]).rotate_left(13);
            state[a] ^= state[d].wrapping_add(state[c]).rotate_left(18);
        }
    }
    state.iter_mut().zip(start).for_each(|(word, start)| *word = word.wrapping_add(start));
}

#[cfg(test)]
mod tests {
    use super::{super::pem, *};

    const PASSWORD: &str = "pa55-phrase-9";

    fn der(text: &str) -> Vec<u8> {
        pem::blocks(text.as_bytes()).remove(0).der.unwrap()
    }

    /// Written by OpenSSL 3.0 of the same key.
    fn written_by_openssl() -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("aes256 sha256", der(include_str!("../test_certs/keys/aes256_sha256.pem"))),
            ("aes128 sha1", der(include_str!("../test_certs/keys/aes128_sha1.pem"))),
            ("aes192 sha512", der(include_str!("../test_certs/keys/aes192_sha512.pem"))),
            ("aes256 sha384", der(include_str!("../test_certs/keys/aes256_sha384.pem"))),
            ("scrypt", der(include_str!("../test_certs/keys/scrypt.pem"))),
        ]
    }

    #[test]
    fn keys_encrypted_by_openssl_open_with_their_password_alone() {
        let plain = der(include_str!("../test_certs/server.key"));
        for (form, encrypted) in written_by_openssl() {
            assert!(open(&encrypted, PASSWORD) == Ok(plain.clone()), "{form}");
            for wrong in ["", "pa55-phrase-8", "pa55-phrase-9 "] {
                assert_eq!(open(&encrypted, wrong), Err(WRONG_PASSWORD), "{form}");
            }
        }
    }

    #[test]
    fn old_encryption_is_refused_with_the_command_that_renews_it() {
        for text in
            [include_str!("../test_certs/keys/des3.pem"), include_str!("../test_certs/keys/pbes1.pem")]
        {
            assert_eq!(open(&der(text), PASSWORD), Err(REMEDY));
        }
    }

    #[test]
    fn a_changed_or_cut_file_is_an_error_and_never_a_panic() {
        for (form, good) in written_by_openssl() {
            for at in 0..good.len() {
                assert!(open(&good[..at], PASSWORD).is_err(), "{form} cut at {at}");
            }
            // The parameters only: a changed byte of the data may still make a key, though not this one. Counts of rounds
            // are not raised, so that this ends.
            for at in (0..80).step_by(3) {
                let mut changed = good.clone();
                changed[at] &= 0x5f;
                let _ = open(&changed, PASSWORD);
            }
        }
    }

    #[test]
    fn work_and_memory_asked_for_by_a_file_are_bounded() {
        let mut key = [0; 32];
        for (n, r, p) in [
            (1 << 20, 8, 1),
            (1 << 14, 1 << 40, 1),
            (2, 1, u64::MAX),
            (1 << 14, 8, 65),
            (u64::MAX / 2 + 1, 8, 1),
        ] {
            assert!(
                scrypt(b"x", b"salt", (n, r, p), &mut key).unwrap_err().contains("64 MiB"),
                "{n} {r} {p}"
            );
        }
        for (n, r, p) in [(0, 8, 1), (1, 8, 1), (3, 8, 1), (16, 0, 1), (16, 1, 0)] {
            assert_eq!(scrypt(b"x", b"salt", (n, r, p), &mut key), Err(DAMAGED), "{n} {r} {p}");
        }
        let rounds = [&[0x30, 12, 4, 4][..], b"salt", &[2, 4, 0x7f, 0xff, 0xff, 0xff]].concat();
        let kdf = [&[6, 9][..], PBKDF2, &rounds].concat();
        assert!(derive(Reader::new(&kdf), b"x", &mut key).unwrap_err().contains("10,000,000 rounds"));
    }

    #[test]
    fn scrypt_makes_the_keys_of_rfc_7914() {
        let mut key = [0; 64];
        scrypt(b"", b"", (16, 1, 1), &mut key).unwrap();
        assert_eq!(key[..8], [0x77, 0xd6, 0x57, 0x62, 0x38, 0x65, 0x7b, 0x20]);
        assert_eq!(key[60..], [0x38, 0xd1, 0x89, 0x06]);
        scrypt(b"password", b"NaCl", (1024, 8, 16), &mut key).unwrap();
        assert_eq!(key[..8], [0xfd, 0xba, 0xbe, 0x1c, 0x9d, 0x34, 0x72, 0x00]);
        assert_eq!(key[60..], [0xa2, 0xcc, 0x06, 0x40]);
    }
}
