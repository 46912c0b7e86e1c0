//! One broker process: started, watched, stopped, never left behind.
//!
//! A watchdog (`sh`) holds the read end of a pipe whose write end is ours: when this process ends in any way,
//! also by SIGKILL or with the broker in a `static`, the pipe closes and the watchdog ends the broker and removes
//! its folder. Only ever signals the process it started.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use super::Error;

/// How often a process that shall end is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long `Drop` waits, blocking, for a killed process before its folder is removed.
const DROP_LOOKS: u32 = 100;

/// Waits for the end of the pipe, then asks process $1 to end, ends it after ten seconds, and removes folder $2.
const WATCHDOG: &str = "read -r _; kill -TERM \"$1\" 2>/dev/null; i=0; \
    while kill -0 \"$1\" 2>/dev/null && [ $i -lt 50 ]; do i=$((i+1)); sleep 0.2; done; \
    kill -KILL \"$1\" 2>/dev/null; [ -z \"$2\" ] || rm -rf -- \"$2\"";

#[derive(Debug)]
pub(super) struct Broker {
    child: Child,
    watchdog: Option<Child>,
    folder: PathBuf,
    keep: bool,
    /// A container to remove by name, since killing the docker client leaves it running.
    container: Option<(PathBuf, String)>,
}

impl Broker {
    /// Starts `command` with its output in `folder`/broker.log.
    pub(super) fn spawn(
        mut command: Command,
        folder: PathBuf,
        keep: bool,
        container: Option<(PathBuf, String)>,
    ) -> Result<Self, Error> {
        let path = folder.join("broker.log");
        let log = File::create(&path).map_err(|e| Error::io("create", &path, e))?;
        let errors = log.try_clone().map_err(|e| Error::io("open", &path, e))?;
        let program = PathBuf::from(command.get_program());
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        own_group(&mut command);
        let child = command.spawn().map_err(|e| Error::io("run", &program, e))?;
        let watchdog = watch(child.id(), if keep { Path::new("") } else { &folder });
        Ok(Self { child, watchdog, folder, keep, container })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The status if the process has ended by itself.
    pub(super) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// The end of its log, for error messages.
    pub(super) fn log_tail(&self) -> String {
        let text = fs::read(self.folder.join("broker.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n")
    }

    /// SIGTERM, then SIGKILL after `grace`.
    pub(super) async fn stop(mut self, grace: Duration) -> Result<(), Error> {
        terminate(self.child.id());
        let ended = tokio::time::timeout(grace, async {
            while self.child.try_wait()?.is_none() {
                tokio::time::sleep(LOOK).await;
            }
            Ok::<(), io::Error>(())
        });
        let result = match ended.await {
            Ok(result) => result,
            Err(_) => self.child.kill().and_then(|()| self.child.wait().map(drop)),
        };
        result.map_err(|e| Error::io("stop the broker of", &self.folder, e))
        // Drop does the rest, and finds the process gone.
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            for _ in 0..DROP_LOOKS {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    break;
                }
                std::thread::sleep(LOOK);
            }
        }
        if let Some((docker, name)) = &self.container {
            let mut remove = Command::new(docker);
            let _ = remove.args(["rm", "-f", name]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        // Only now: until the broker was gone it was the watchdog's to end.
        if let Some(watchdog) = &mut self.watchdog {
            let _ = watchdog.kill();
            let _ = watchdog.wait();
        }
        if !self.keep {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// `None` where there is no `sh`: then only `Drop` and `stop` end the broker.
fn watch(pid: u32, folder: &Path) -> Option<Child> {
    let mut command = Command::new("sh");
    command.args(["-c", WATCHDOG, "dtkafka-watchdog", &pid.to_string()]).arg(folder);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    own_group(&mut command);
    command.spawn().ok()
}

/// Its own group, so that a Ctrl-C for us does not reach it before our own clean-up does.
#[cfg(unix)]
fn own_group(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    command.process_group(0);
}

#[cfg(not(unix))]
fn own_group(_: &mut Command) {}

/// std has no SIGTERM; the shell's built-in `kill` needs neither `unsafe` nor a package. Where it fails, the
/// grace period passes and the process is killed.
fn terminate(pid: u32) {
    let mut kill = Command::new("sh");
    kill.args(["-c", "kill -TERM \"$1\"", "kill", &pid.to_string()]);
    let _ = kill.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    fn folder() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("dtkafka-process-{:016x}", super::super::random()));
        fs::create_dir(&folder).unwrap();
        folder
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn is_running(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn dropped_broker_is_gone_with_its_folder() {
        let folder = folder();
        let broker = Broker::spawn(shell("exec sleep 600"), folder.clone(), false, None).unwrap();
        let pid = broker.id();
        assert!(is_running(pid));
        drop(broker);
        assert!(!is_running(pid));
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn process_that_ignores_sigterm_is_killed_after_the_grace_period() {
        let folder = folder();
        let broker =
            Broker::spawn(shell("trap '' TERM; while :; do sleep 0.1; done"), folder.clone(), true, None)
                .unwrap();
        let pid = broker.id();
        broker.stop(Duration::from_millis(300)).await.unwrap();
        assert!(!is_running(pid));
        assert!(folder.exists(), "the folder was asked for");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn watchdog_ends_the_broker_when_its_owner_vanishes() {
        let folder = folder();
        let mut broker = shell("exec sleep 600").spawn().unwrap();
        let mut watchdog = watch(broker.id(), &folder).unwrap();
        // What the operating system does when the owner is killed: the pipe's write end closes.
        drop(watchdog.stdin.take());
        assert!(!broker.wait().unwrap().success());
        assert!(watchdog.wait().is_ok());
        assert!(!folder.exists());
    }
}
