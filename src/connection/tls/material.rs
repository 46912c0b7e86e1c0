//! From settings and files to roots, certificate chain and key, with everything that is wrong in one answer.
//!
//! Reads files, so never on an async path. A text or file may be a private key in the wrong place: no error repeats any of
//! it, and no text of a library that has seen it.

use std::io;

use crate::sorted::Map;

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer},
};

use super::{
    der, encrypted,
    pem::{self, Block, LEGACY, Label},
};
use crate::config::{
    secrecy,
    settings::{PemSource, Secret, TlsSettings, TrustRoots},
};

/// What the files of the settings hold at a moment.
#[derive(Default, Clone, PartialEq, Eq)]
pub(super) struct Files(Map<String, Result<Vec<u8>, String>>);

impl Files {
    /// Reads all of them. Blocks.
    pub(super) fn read(settings: &TlsSettings) -> Self {
        let roots = settings.roots.iter().filter_map(|root| match root {
            TrustRoots::PemFile(path) => Some(path),
            _ => None,
        });
        let identity = settings.identity.iter().flat_map(|(chain, key)| [chain, key]);
        let identity = identity.filter_map(|source| match source {
            PemSource::File(path) => Some(path),
            PemSource::Text(_) => None,
        });
        let content =
            |path: &String| (path.clone(), std::fs::read(path).map_err(|error| why_unreadable(&error)));
        Self(roots.chain(identity).map(content).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(&self, path: &str) -> Result<&[u8], String> {
        let content =
            self.0.get(path).map_or(Err("it was not read"), |found| found.as_deref().map_err(String::as_str));
        content.map_err(|why| format!("{} cannot be read: {why}", secrecy::path(path)))
    }
}

fn why_unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission is denied".to_owned(),
        kind => kind.to_string(),
    }
}

/// What TLS needs of the settings.
pub(super) struct Material {
    pub(super) roots: RootCertStore,
    pub(super) identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    /// Damaged certificates that were passed over.
    pub(super) warnings: Vec<String>,
}

impl Material {
    /// # Errors
    /// Everything that is wrong, each naming its setting.
    pub(super) fn new(settings: &TlsSettings, files: &Files) -> Result<Self, Vec<String>> {
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        let roots = roots(&settings.roots, files, &mut warnings, &mut problems);
        let identity = identity(settings, files, &mut warnings, &mut problems);
        if problems.is_empty() { Ok(Self { roots, identity, warnings }) } else { Err(problems) }
    }
}

/// Gathers the roots of all sources. Sources that the settings name must be readable; a broken system store does not
/// matter while others serve.
fn roots(
    sources: &[TrustRoots],
    files: &Files,
    warnings: &mut Vec<String>,
    problems: &mut Vec<String>,
) -> RootCertStore {
    const DEFAULT: &[TrustRoots] = &[TrustRoots::Mozilla, TrustRoots::System];
    let mut store = RootCertStore::empty();
    let mut system = Vec::new();
    for source in if sources.is_empty() { DEFAULT } else { sources } {
        let added = match source {
            TrustRoots::Mozilla => {
                store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
                Ok(())
            }
            TrustRoots::System => {
                let found = rustls_native_certs::load_native_certs();
                system.extend(found.errors.iter().map(ToString::to_string));
                let (added, refused) = store.add_parsable_certificates(found.certs);
                tracing::debug!(added, refused, errors = found.errors.len(), "roots of the system");
                Ok(())
            }
            TrustRoots::Pem(text) => {
                add_roots(&mut store, "ssl.truststore.certificates", text.as_bytes(), warnings)
            }
            TrustRoots::PemFile(path) => {
                files.of(path).map_err(|why| format!("ssl.truststore.location: {why}")).and_then(|text| {
                    let place = format!("ssl.truststore.location, {}", secrecy::path(path));
                    add_roots(&mut store, &place, text, warnings)
                })
            }
        };
        problems.extend(added.err());
    }
    if store.is_empty() && problems.is_empty() {
        let why = if system.is_empty() { String::new() } else { format!(": {}", system.join("; ")) };
        problems.push(format!(
            "no trusted root certificate was found{why}: set ssl.truststore.location to a PEM file with the CA's certificate"
        ));
    }
    store
}

fn add_roots(
    store: &mut RootCertStore,
    place: &str,
    text: &[u8],
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let before = store.len();
    let mut damaged = Vec::new();
    for certificate in certificates(place, text)? {
        let added = certificate.der.and_then(|der| {
            store.add(CertificateDer::from(der)).map_err(|_| "it is no X.509 certificate that can be a root")
        });
        damaged.extend(added.err().map(|why| format!("{}: {why}", certificate.place)));
    }
    match (store.len() == before, damaged.is_empty()) {
        (true, _) => Err(damaged.join("; ")),
        (false, false) => {
            warnings.extend(damaged);
            Ok(())
        }
        (false, true) => Ok(()),
    }
}

fn identity(
    settings: &TlsSettings,
    files: &Files,
    warnings: &mut Vec<String>,
    problems: &mut Vec<String>,
) -> Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let (certificate, key) = settings.identity.as_ref()?;
    let both = certificate == key;
    let chain =
        content(certificate, files, both, ["ssl.keystore.certificate.chain", "ssl.certificate.location"])
            .and_then(|(place, text)| chain(&place, &text, warnings));
    let password = settings.key_password.as_ref().map(Secret::expose);
    let key = content(key, files, both, ["ssl.keystore.key", "ssl.key.location"])
        .and_then(|(place, text)| private_key(&place, &text, password));
    match (chain, key) {
        (Ok(chain), Ok(key)) => Some((chain, key)),
        (chain, key) => {
            problems.extend(chain.err());
            problems.extend(key.err());
            None
        }
    }
}

/// Where a source is, for messages, and what it holds.
fn content(
    source: &PemSource,
    files: &Files,
    both: bool,
    [text_setting, file_setting]: [&str; 2],
) -> Result<(String, Vec<u8>), String> {
    match source {
        PemSource::Text(text) => Ok((text_setting.to_owned(), text.expose().as_bytes().to_vec())),
        PemSource::File(path) => {
            let setting = if both { "ssl.keystore.location" } else { file_setting };
            let text = files.of(path).map_err(|why| format!("{setting}: {why}"))?;
            Ok((format!("{setting}, {}", secrecy::path(path)), text.to_vec()))
        }
    }
}

/// A certificate of a text.
struct Certificate {
    /// "ssl.truststore.location, "/ca.pem", certificate 2 of 3 (line 31)"
    place: String,
    der: Result<Vec<u8>, &'static str>,
}

/// The certificates in a text: at least one, which may be damaged.
fn certificates(place: &str, text: &[u8]) -> Result<Vec<Certificate>, String> {
    let mut blocks = pem::blocks(text);
    let other = blocks.iter().find(|block| block.label != Label::Certificate).map(|block| block.label);
    blocks.retain(|block| block.label == Label::Certificate);
    if blocks.is_empty() {
        return Err(format!("{place}: there is no certificate in it{}", what_else(other, text)));
    }
    let count = blocks.len();
    let named = |(number, Block { line, der, .. }): (usize, Block)| Certificate {
        place: format!("{place}, certificate {number} of {count} (line {line})"),
        der,
    };
    Ok((1..).zip(blocks).map(named).collect())
}

fn what_else(found: Option<Label>, text: &[u8]) -> &'static str {
    match found {
        Some(Label::Certificate) => ", but a certificate",
        Some(Label::PrivateKey | Label::EncryptedPrivateKey) => ", but a private key",
        Some(Label::Other) => ", but something else in PEM",
        None if text.starts_with(&[0xfe, 0xed, 0xfe, 0xed]) => {
            ": it is a Java key store (JKS), which must be converted first, with keytool and openssl pkcs12"
        }
        None if text.first() == Some(&der::SEQUENCE) => {
            ": it is binary; convert a PKCS#12 store with openssl pkcs12, and DER with openssl x509 or openssl pkey and \
             -inform der"
        }
        None => ": PEM has a line -----BEGIN CERTIFICATE----- or -----BEGIN PRIVATE KEY----- before each",
    }
}

/// The client's chain. Its own certificate must be intact; damaged ones behind it are left out.
fn chain(
    place: &str,
    text: &[u8],
    warnings: &mut Vec<String>,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut chain = Vec::new();
    for certificate in certificates(place, text)? {
        match certificate.der {
            Ok(der) => chain.push(CertificateDer::from(der)),
            Err(why) if chain.is_empty() => {
                return Err(format!(
                    "{}: {why} (the client's own certificate comes first)",
                    certificate.place
                ));
            }
            Err(why) => warnings.push(format!("{}: {why}", certificate.place)),
        }
    }
    Ok(chain)
}

/// The first private key of a text.
fn private_key(place: &str, text: &[u8], password: Option<&str>) -> Result<PrivateKeyDer<'static>, String> {
    let blocks = pem::blocks(text);
    let is_key = |block: &&Block| matches!(block.label, Label::PrivateKey | Label::EncryptedPrivateKey);
    let Some(block) = blocks.iter().find(is_key) else {
        let other = blocks.first().map(|block| block.label);
        return Err(format!("{place}: there is no private key in it{}", what_else(other, text)));
    };
    let wrong = |why: &str| format!("{place}, private key (line {}): {why}", block.line);
    let der = match &block.der {
        Ok(der) => der,
        Err(LEGACY) => {
            return Err(wrong(&format!("{LEGACY}: write it again with `openssl pkcs8 -topk8 -v2 aes256`")));
        }
        Err(why) => return Err(wrong(why)),
    };
    if block.label == Label::PrivateKey {
        return key_of(der.clone()).ok_or_else(|| wrong("it is neither PKCS#8 nor PKCS#1 nor SEC1"));
    }
    let password = password.ok_or_else(|| wrong("it is encrypted: set ssl.key.password"))?;
    let opened = encrypted::open(der, password).map_err(wrong)?;
    key_of(opened).ok_or_else(|| wrong("what is encrypted in it is no private key"))
}

/// Tells the three forms apart by what follows their version, whatever label they have.
fn key_of(der: Vec<u8>) -> Option<PrivateKeyDer<'static>> {
    let mut key = der::Reader::new(&der).sequence()?.content;
    key.number()?;
    match key.peek()? {
        der::SEQUENCE => Some(PrivatePkcs8KeyDer::from(der).into()),
        der::INTEGER => Some(PrivatePkcs1KeyDer::from(der).into()),
        der::OCTET_STRING => Some(PrivateSec1KeyDer::from(der).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CA: &str = include_str!("../test_certs/ca.pem");
    const CHAIN: &str = include_str!("../test_certs/server.pem");
    const KEY: &str = include_str!("../test_certs/server.key");
    const ENCRYPTED: &str = include_str!("../test_certs/keys/aes256_sha256.pem");

    fn settings(roots: Vec<TrustRoots>) -> TlsSettings {
        TlsSettings { roots, ..TlsSettings::default() }
    }

    fn with_identity(chain: &str, key: &str, password: Option<&str>) -> TlsSettings {
        TlsSettings {
            roots: vec![TrustRoots::Pem(CA.to_owned())],
            identity: Some((PemSource::Text(Secret::new(chain)), PemSource::Text(Secret::new(key)))),
            key_password: password.map(Secret::new),
            ..TlsSettings::default()
        }
    }

    fn read(settings: &TlsSettings) -> Result<Material, Vec<String>> {
        Material::new(settings, &Files::read(settings))
    }

    fn problems(settings: &TlsSettings) -> String {
        read(settings).err().map(|problems| problems.join(" | ")).unwrap_or_default()
    }

    #[test]
    fn a_damaged_certificate_is_named_by_its_place_and_passed_over() {
        let damaged = CA.replacen("MII", "M*I", 1);
        let no_root = CA.replacen("MII", "MIA", 1);
        let bundle = format!("{CA}{damaged}{CHAIN}");
        let found = read(&settings(vec![TrustRoots::Pem(bundle)])).ok().unwrap();
        assert_eq!(found.roots.len(), 3);
        let line = CA.lines().count() + 1;
        assert_eq!(
            found.warnings,
            [format!(
                "ssl.truststore.certificates, certificate 2 of 4 (line {line}): its content is not base64"
            )]
        );
        // Alone it is an error, also beside another source.
        for bad in [damaged, no_root] {
            let text = problems(&settings(vec![TrustRoots::Pem(bad), TrustRoots::Mozilla]));
            assert!(text.starts_with("ssl.truststore.certificates, certificate 1 of 1 (line 1): "), "{text}");
        }
    }

    #[test]
    fn everything_that_is_wrong_is_named_at_once() {
        let missing = |name: &str| PemSource::File(format!("/does/not/exist/{name}.pem"));
        let text = problems(&TlsSettings {
            roots: vec![TrustRoots::PemFile("/does/not/exist/ca.pem".to_owned())],
            identity: Some((missing("client"), missing("key"))),
            ..TlsSettings::default()
        });
        for setting in [
            "ssl.truststore.location: \"/does/not/exist/ca.pem\" cannot be read: there is no such file",
            "ssl.certificate.location: \"/does/not/exist/client.pem\"",
            "ssl.key.location: \"/does/not/exist/key.pem\"",
        ] {
            assert!(text.contains(setting), "{setting} is not in {text}");
        }
        let both = TlsSettings {
            identity: Some((missing("both"), missing("both"))),
            ..settings(vec![TrustRoots::Mozilla])
        };
        assert!(problems(&both).contains("ssl.keystore.location: \"/does/not/exist/both.pem\""));
    }

    #[test]
    fn a_system_store_that_cannot_be_read_is_no_matter_beside_another_root() {
        assert!(!read(&settings(Vec::new())).ok().unwrap().roots.is_empty());
    }

    #[test]
    fn keys_are_read_in_every_form_and_with_the_chain_in_one_text() {
        let kind = |key: &str, password| match read(&with_identity(CHAIN, key, password)) {
            Ok(Material { identity: Some((chain, key)), .. }) => {
                assert_eq!(chain.len(), 2);
                match key {
                    PrivateKeyDer::Pkcs8(_) => "PKCS#8",
                    PrivateKeyDer::Pkcs1(_) => "PKCS#1",
                    PrivateKeyDer::Sec1(_) => "SEC1",
                    _ => "?",
                }
            }
            Ok(_) => "none",
            Err(problems) => panic!("{problems:?}"),
        };
        assert_eq!(kind(KEY, None), "PKCS#8");
        assert_eq!(kind(include_str!("../test_certs/keys/pkcs1.pem"), None), "PKCS#1");
        let sec1 = include_str!("../test_certs/keys/sec1.pem");
        assert_eq!(kind(sec1, None), "SEC1");
        assert_eq!(
            kind(
                &format!(
                    "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{sec1}"
                ),
                None
            ),
            "SEC1"
        );
        assert_eq!(kind(&sec1.replace("EC PRIVATE", "PRIVATE"), None), "SEC1", "whatever its label says");
        assert_eq!(kind(ENCRYPTED, Some("pa55-phrase-9")), "PKCS#8");
        assert_eq!(kind(&ENCRYPTED.replace('\n', "\\n"), Some("pa55-phrase-9")), "PKCS#8");
        assert_eq!(kind(KEY, Some("not needed")), "PKCS#8");
        let both = format!("{CHAIN}{KEY}");
        assert_eq!(read(&with_identity(&both, &both, None)).ok().unwrap().identity.unwrap().0.len(), 2);
    }

    #[test]
    fn a_key_that_cannot_be_read_says_why_and_never_what_it_is() {
        let encrypted_without = problems(&with_identity(CHAIN, ENCRYPTED, None));
        assert!(encrypted_without.contains("private key (line 1): it is encrypted: set ssl.key.password"));
        let body: String = KEY.lines().filter(|line| !line.starts_with('-')).collect();
        let table: Vec<(String, &str)> = vec![
            (String::new(), "there is no private key in it: PEM has a line"),
            (body.clone(), "there is no private key in it: PEM has a line"),
            (CA.to_owned(), "there is no private key in it, but a certificate"),
            (KEY.replace("PRIVATE KEY", "PUBLIC KEY"), "but something else in PEM"),
            (KEY.replace("-----END PRIVATE KEY-----", ""), "its END line is missing"),
            (KEY.replacen("MIGH", "MI*H", 1), "its content is not base64"),
            (KEY.replacen("MIGH", "MIGI", 1), "cut off"),
            (KEY.replacen("MIGHAgEA", "MIGHBAEA", 1), "neither PKCS#8 nor PKCS#1 nor SEC1"),
            (include_str!("../test_certs/keys/legacy.pem").to_owned(), "openssl pkcs8 -topk8 -v2 aes256"),
            (include_str!("../test_certs/keys/des3.pem").to_owned(), "openssl pkcs8 -topk8 -v2 aes256"),
            (ENCRYPTED.to_owned(), "ssl.key.password does not open it"),
        ];
        for (key, why) in table {
            let text = problems(&with_identity(CHAIN, &key, Some("wrong-Pa55")));
            assert!(text.starts_with("ssl.keystore.key") && text.contains(why), "{why}: {text}");
            assert!(
                !text.contains("wrong-Pa55")
                    && body
                        .as_bytes()
                        .windows(8)
                        .all(|part| !text.as_bytes().windows(8).any(|shown| shown == part))
            );
        }
        let text = problems(&with_identity(KEY, CHAIN, None));
        assert!(
            text.contains("ssl.keystore.certificate.chain: there is no certificate in it, but a private key"),
            "{text}"
        );
        assert!(
            text.contains("ssl.keystore.key: there is no private key in it, but a certificate"),
            "{text}"
        );
        let text = problems(&settings(vec![TrustRoots::Pem(KEY.to_owned())]));
        assert!(
            text.contains("ssl.truststore.certificates: there is no certificate in it, but a private key"),
            "{text}"
        );
        let path = settings(vec![TrustRoots::PemFile(KEY.to_owned()), TrustRoots::PemFile(body.clone())]);
        assert!(!problems(&path).contains(&body[..8]), "{}", problems(&path));
    }

    #[test]
    fn stores_and_binary_files_are_called_by_their_name() {
        for (bytes, why) in
            [(&[0xfe, 0xed, 0xfe, 0xed, 0][..], "Java key store"), (&[0x30, 0x82, 1, 0], "it is binary")]
        {
            assert!(certificates("x", bytes).err().unwrap().contains(why));
            assert!(private_key("x", bytes, None).err().unwrap().contains(why));
        }
    }
}
