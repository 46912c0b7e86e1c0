//! TLS and SASL settings: which go together, and which protocol they need.

use super::{
    KafkaConfig,
    effective::Effective,
    jaas,
    properties::{self, Found},
    settings::{PemSource, SaslMechanism, SaslSettings, Secret, SecurityProtocol, TlsSettings, TrustRoots},
};

impl KafkaConfig {
    pub(super) fn tls(&self, all: &mut Effective, protocol: SecurityProtocol) -> Option<TlsSettings> {
        if !protocol.uses_tls() {
            // One that is as it is without being set asks for nothing: files of settings spell out defaults.
            let asks = |name: &str, value: &str| match properties::find(name) {
                Some(Found::Used(row)) if name.starts_with("ssl.") => {
                    let default = if name == "ssl.check.hostname" { Some("true") } else { row.default };
                    !default.is_some_and(|default| value.trim().eq_ignore_ascii_case(default))
                }
                _ => false,
            };
            let set = all.entries.iter().find(|(name, entry)| asks(name, &entry.value));
            let set = set.map(|(name, _)| *name);
            #[cfg(feature = "tls")]
            let set = set.or_else(|| self.tls_client_config.as_ref().map(|_| "set_tls_client_config"));
            if let Some(name) = set {
                let right = if protocol.uses_sasl() { "SASL_SSL" } else { "SSL (SASL_SSL with a user)" };
                all.problems.push(format!(
                    "{name} is set, but security.protocol = {protocol} does not encrypt: set security.protocol to \
                     {right}, or remove {name}"
                ));
            }
            return None;
        }
        if !cfg!(feature = "tls") {
            all.problems.push(format!("security.protocol = {protocol} needs this crate's feature `tls`"));
        }
        Some(TlsSettings {
            identity: client_identity(all),
            verify_host_name: check_name(all),
            roots: trust_roots(all),
            key_password: all.secret("ssl.key.password").map(Secret::new),
            #[cfg(feature = "tls")]
            client_config: self.tls_client_config.clone(),
            #[cfg(feature = "tls")]
            crypto_provider: self.tls_crypto_provider.clone(),
        })
    }
}

/// Whether the certificate must name the host: two properties say so.
fn check_name(all: &mut Effective) -> bool {
    let (flag, algorithm) = ("ssl.check.hostname", "ssl.endpoint.identification.algorithm");
    let by_algorithm = all.text(algorithm).is_some_and(|name| name.eq_ignore_ascii_case("https"));
    if !all.is_set(flag) {
        return by_algorithm;
    }
    let by_flag = all.flag(flag);
    if all.is_set(algorithm) && by_algorithm != by_flag {
        let said = all.text(algorithm).unwrap_or_default();
        all.problems.push(format!("{flag} is {by_flag} and {algorithm} is {said:?}: keep one of them"));
    }
    by_flag
}

fn trust_roots(all: &mut Effective) -> Vec<TrustRoots> {
    let mut roots = Vec::new();
    if let Some(file) = all.pem_file("ssl.truststore.location") {
        roots.push(TrustRoots::PemFile(file));
    }
    if let Some(pem) = all.secret("ssl.truststore.certificates") {
        roots.push(TrustRoots::Pem(pem));
    }
    for name in all.text("ssl.trust.roots").unwrap_or_default().split(',') {
        match name.trim().to_ascii_lowercase().as_str() {
            "mozilla" => roots.push(TrustRoots::Mozilla),
            "system" => roots.push(TrustRoots::System),
            _ => {}
        }
    }
    roots
}

/// The client's certificate and key; each has one source, and neither goes without the other.
fn client_identity(all: &mut Effective) -> Option<(PemSource, PemSource)> {
    const BOTH: &str = "ssl.keystore.location";
    let [certificate, key] = [
        ("ssl.keystore.certificate.chain", "ssl.certificate.location"),
        ("ssl.keystore.key", "ssl.key.location"),
    ]
    .map(|(text, file)| {
        let named: Vec<_> = [text, file, BOTH].into_iter().filter(|name| all.is_set(name)).collect();
        if named.len() > 1 {
            all.problems.push(format!("{} say the same thing: keep one of them", named.join(" and ")));
        }
        match all.secret(text) {
            Some(pem) => Some(PemSource::Text(Secret::new(pem))),
            None => all.pem_file(file).or_else(|| all.pem_file(BOTH)).map(PemSource::File),
        }
    });
    let problem = match (certificate, key) {
        (Some(certificate), Some(key)) => return Some((certificate, key)),
        (None, None) => return None,
        (Some(_), None) => {
            "a client certificate is set without its key: set ssl.key.location or ssl.keystore.key"
        }
        (None, Some(_)) => {
            "a client key is set without its certificate: set ssl.certificate.location or \
             ssl.keystore.certificate.chain"
        }
    };
    all.problems.push(problem.to_owned());
    None
}

/// The login; its mechanism follows from `sasl.mechanism`, or from the login module where that is PLAIN.
pub(super) fn sasl(all: &mut Effective, protocol: SecurityProtocol) -> Option<SaslSettings> {
    const CREDENTIALS: [&str; 3] = ["sasl.plain.username", "sasl.plain.password", "sasl.jaas.config"];
    if !protocol.uses_sasl() {
        if let Some(name) = CREDENTIALS.into_iter().find(|name| all.is_set(name)) {
            let right = if protocol.uses_tls() { "SASL_SSL" } else { "SASL_PLAINTEXT or SASL_SSL" };
            all.problems.push(format!(
                "{name} is set, but security.protocol = {protocol} does not authenticate: set security.protocol to \
                 {right}, or remove {name}"
            ));
        }
        return None;
    }
    let mut mechanism: SaslMechanism = all.choice("sasl.mechanism");
    let mut username = all.text("sasl.plain.username").unwrap_or_default();
    let mut password = all.secret("sasl.plain.password").unwrap_or_default();
    if let Some(login) = all.secret("sasl.jaas.config") {
        match jaas::parse(&login) {
            Err(why) => {
                all.problems.push(format!("sasl.jaas.config cannot be read: {why}"));
                return None;
            }
            Ok(login) => {
                if !all.is_set("sasl.mechanism") && login.module == jaas::Module::Plain {
                    mechanism = SaslMechanism::Plain;
                } else if !login.module.fits(mechanism) && all.is_usable("sasl.mechanism") {
                    all.problems.push(format!(
                        "sasl.jaas.config names a {:?} login module, but sasl.mechanism is {mechanism}: PlainLoginModule \
                         goes with PLAIN, ScramLoginModule with SCRAM-SHA-256 or SCRAM-SHA-512",
                        login.module
                    ));
                }
                let differ = |set: &str, login: &str| !set.is_empty() && set != login;
                if differ(&username, &login.username) || differ(&password, login.password.expose()) {
                    all.problems.push(
                        "sasl.jaas.config and sasl.plain.username or sasl.plain.password differ: keep one of them"
                            .to_owned(),
                    );
                }
                username = login.username;
                password = login.password.expose().to_owned();
            }
        }
    }
    let missing = |value: &str, name: &str| value.is_empty() && !all.is_set(name);
    let missing: Vec<_> = [(&username, "sasl.plain.username"), (&password, "sasl.plain.password")]
        .into_iter()
        .filter(|(value, name)| missing(value, name))
        .map(|(_, name)| format!("security.protocol = {protocol} needs {name}"))
        .collect();
    all.problems.extend(missing);
    Some(SaslSettings { mechanism, username, password: Secret::new(password) })
}
