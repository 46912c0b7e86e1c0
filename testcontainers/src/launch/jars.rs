//! The jars of an Apache Kafka version, resolved with Maven from Maven Central into a cache.
//!
//! Safe when several processes resolve at once: one at a time holds the lock, and a version's folder appears
//! whole, by a rename. Never deletes a finished version.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::process::Command;

use super::{
    Error,
    route::{find_program, random, run},
};

/// Maven may have to fetch a hundred jars over a slow line.
const MAVEN_DEADLINE: Duration = Duration::from_secs(600);

/// The folder with the jars of `version`; resolves them first if it is not there.
pub(super) async fn resolve(version: &str) -> Result<PathBuf, Error> {
    let cache = cache_dir();
    let libs = cache.join(format!("kafka-{version}")).join("libs");
    if libs.is_dir() {
        return Ok(libs);
    }
    fs::create_dir_all(&cache).map_err(|e| Error::io("create the cache folder", &cache, e))?;
    let _lock = lock(cache.join("lock")).await?;
    if libs.is_dir() {
        return Ok(libs);
    }
    fetch(version, &cache).await?;
    Ok(libs)
}

/// Whether `version` needs no Maven any more.
pub(super) fn is_cached(version: &str) -> bool {
    cache_dir().join(format!("kafka-{version}")).join("libs").is_dir()
}

/// `DTKAFKA_TEST_CACHE`, else `dtkafka-testkit` in the user's cache folder, else in the temp folder.
fn cache_dir() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("DTKAFKA_TEST_CACHE").unwrap_or_else(|| {
        set("XDG_CACHE_HOME")
            .or_else(|| set("LOCALAPPDATA"))
            .or_else(|| set("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(env::temp_dir)
            .join("dtkafka-testkit")
    })
}

/// The operating system lets go of the lock when the file is closed, also when this process is killed.
async fn lock(path: PathBuf) -> Result<File, Error> {
    let at = path.clone();
    let locked = tokio::task::spawn_blocking(move || {
        let file = File::create(&path)?;
        file.lock()?;
        Ok(file)
    });
    let locked = locked.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
    locked.map_err(|e| Error::io("lock the cache", &at, e))
}

async fn fetch(version: &str, cache: &Path) -> Result<(), Error> {
    let Some(maven) = find_program("mvn") else {
        return Err(Error::Missing(format!("mvn (Maven) is not on PATH and Kafka {version} is not cached")));
    };
    let work = cache.join(format!(".resolving-{version}-{:016x}", random()));
    let result = fetch_into(version, &maven, &work).await;
    if result.is_ok() {
        let target = cache.join(format!("kafka-{version}"));
        fs::rename(&work, &target).map_err(|e| Error::io("move the jars to", &target, e))?;
    } else {
        // What is left of a failed attempt is of no use to anyone.
        let _ = fs::remove_dir_all(&work);
    }
    result
}

async fn fetch_into(version: &str, maven: &Path, work: &Path) -> Result<(), Error> {
    fs::create_dir_all(work).map_err(|e| Error::io("create", work, e))?;
    let pom = work.join("pom.xml");
    fs::write(&pom, pom_xml(version)).map_err(|e| Error::io("write", &pom, e))?;
    tracing::info!(version, "resolving Apache Kafka with Maven");
    let mut command = Command::new(maven);
    command
        .args(["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=libs"])
        .current_dir(work)
        .stdin(Stdio::null());
    run(command, "mvn dependency:copy-dependencies", MAVEN_DEADLINE).await
}

/// slf4j-simple makes the broker say on stderr why it does not start.
fn pom_xml(version: &str) -> String {
    let dependency = |group: &str, artifact: &str, version: &str| {
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
             <version>{version}</version></dependency>"
        )
    };
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\
         <groupId>dtkafka</groupId><artifactId>testkit</artifactId><version>1</version>\
         <packaging>pom</packaging><dependencies>{}{}</dependencies></project>\n",
        dependency("org.apache.kafka", "kafka_2.13", version),
        dependency("org.slf4j", "slf4j-simple", "1.7.36"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pom_names_the_asked_version() {
        let pom = pom_xml("4.3.1");
        assert!(pom.contains("<artifactId>kafka_2.13</artifactId><version>4.3.1</version>"));
    }

    #[tokio::test]
    async fn second_resolver_waits_for_the_first() {
        let path = env::temp_dir().join(format!("dtkafka-lock-{:016x}", random()));
        let first = lock(path.clone()).await.unwrap();
        let mut second = std::pin::pin!(lock(path.clone()));
        tokio::time::timeout(Duration::from_millis(50), &mut second).await.unwrap_err();
        drop(first);
        drop(second.await.unwrap());
        fs::remove_file(path).unwrap();
    }
}
