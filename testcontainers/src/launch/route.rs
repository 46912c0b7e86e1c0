//! What this machine can run brokers with, and small things around programs: finding, running, ports, ids.

use std::{
    env,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use base64::Engine as _;

use super::{Error, jars, properties::Ports};

/// How a broker can be run here.
pub(super) enum Route {
    Jvm { java: PathBuf },
    Docker { docker: PathBuf },
}

impl Route {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Jvm { .. } => "a JVM",
            Self::Docker { .. } => "Docker",
        }
    }

    /// `version` counts where its jars are cached: then Maven is not needed.
    pub(super) fn find(version: Option<&str>) -> Result<Self, String> {
        let java = env::var_os("JAVA_HOME")
            .map(|home| PathBuf::from(home).join("bin").join(format!("java{}", env::consts::EXE_SUFFIX)))
            .filter(|java| java.is_file())
            .or_else(|| find_program("java"));
        let resolvable = find_program("mvn").is_some() || version.is_some_and(jars::is_cached);
        let mut missing = Vec::new();
        match java {
            Some(java) if resolvable => return Ok(Self::Jvm { java }),
            Some(_) => {}
            None => missing.push("java is not on PATH (Debian: apt-get install default-jre-headless)"),
        }
        if !resolvable {
            missing.push("mvn is not on PATH (Debian: apt-get install maven)");
        }
        match find_program("docker") {
            Some(docker) if succeeds(&docker, &["info"]) => return Ok(Self::Docker { docker }),
            Some(_) => missing.push("docker is there, but no daemon answers `docker info`"),
            None => missing.push("docker, the other way, is not on PATH either"),
        }
        Err(missing.join("; "))
    }
}

/// Runs a command to its end; its output is the error's text.
pub(super) async fn run(
    mut command: tokio::process::Command,
    what: &str,
    deadline: Duration,
) -> Result<(), Error> {
    let failed = |output: String| Error::Command { what: what.to_owned(), output };
    let output = tokio::time::timeout(deadline, command.kill_on_drop(true).output())
        .await
        .map_err(|_| failed(format!("not finished within {deadline:?}")))?
        .map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    Err(failed(lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")))
}

fn succeeds(program: &Path, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let file = format!("{name}{}", env::consts::EXE_SUFFIX);
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(&file)).find(|path| path.is_file())
}

/// Kafka's form of a UUID: base64url of 16 bytes; the first is small, so that it cannot start with `-`.
pub(super) fn cluster_id() -> String {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&random().to_be_bytes());
    bytes[8..].copy_from_slice(&random().to_be_bytes());
    bytes[0] &= 0x7f;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// Distinct, not secret.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Ports below those the system gives to outgoing connections, so that nothing takes them before the
/// brokers bind, and held all at once, so that they differ.
pub(super) fn free_ports(nodes: usize) -> io::Result<Vec<Ports>> {
    let mut held = Vec::new();
    for _ in 0..1000 {
        let port = u16::try_from(12_000 + random() % 18_000).map_err(io::Error::other)?;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            held.push((port, listener));
        }
        if held.len() == 5 * nodes {
            let ports: Vec<u16> = held.iter().map(|(port, _)| *port).collect();
            return Ok(ports.chunks_exact(5).filter_map(Ports::from_five).collect());
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "too few free ports between 12000 and 30000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_id_is_a_uuid_that_no_option_parser_mistakes() {
        for _ in 0..64 {
            let id = cluster_id();
            assert_eq!(id.len(), 22);
            assert!(!id.starts_with('-'), "{id}");
        }
    }

    #[test]
    fn free_ports_differ() {
        let ports = free_ports(3).unwrap();
        assert_eq!(ports.len(), 3);
        let each =
            ports.iter().flat_map(|p| [p.plaintext, p.sasl_plaintext, p.ssl, p.sasl_ssl, p.controller]);
        assert_eq!(each.collect::<std::collections::BTreeSet<_>>().len(), 15);
    }
}
