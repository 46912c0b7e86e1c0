//! One broker process: started, watched, stopped, never left behind.
//!
//! A watchdog (`sh`) holds the read end of a pipe whose write end is ours: when this process ends in any way,
//! also by SIGKILL or with the broker in a `static`, the pipe closes and the watchdog ends the broker and removes
//! its folder. Only ever signals the process it started.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use super::Error;

/// How often a process that shall end is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long `Drop` waits, blocking, for a killed process before its folder is removed.
const DROP_LOOKS: u32 = 100;

/// Waits for the end of the pipe, then asks process $1 to end, ends it after ten seconds, and removes folder $2. A line in the
/// pipe says that the process has ended: its id may be another's by then.
const WATCHDOG: &str = "while read -r _; do set -- '' \"$2\"; done; \
    if [ -n \"$1\" ]; then kill -TERM \"$1\" 2>/dev/null; i=0; \
    while kill -0 \"$1\" 2>/dev/null && [ $i -lt 50 ]; do i=$((i+1)); sleep 0.2; done; \
    kill -KILL \"$1\" 2>/dev/null; fi; [ -z \"$2\" ] || rm -rf -- \"$2\"";

#[derive(Debug)]
pub(super) struct Broker {
    /// How it is started, and started again.
    command: Command,
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
        own_group(&mut command);
        let child = spawn_logged(&mut command, &folder)?;
        let watchdog = watch(child.id(), if keep { Path::new("") } else { &folder });
        Ok(Self { command, child, watchdog, folder, keep, container })
    }

    /// Starts it again with the same command, in the same folder; the old process must have ended.
    pub(super) fn respawn(&mut self) -> Result<(), Error> {
        self.child = spawn_logged(&mut self.command, &self.folder)?;
        // The new one first, so that the process is never without.
        let watchdog = watch(self.child.id(), if self.keep { Path::new("") } else { &self.folder });
        end_watchdog(std::mem::replace(&mut self.watchdog, watchdog));
        Ok(())
    }

    /// Sends a signal by its name, such as `STOP`; nothing if the process has ended and was waited for.
    pub(super) fn signal(&mut self, name: &str) {
        if matches!(self.ended(), Ok(None)) {
            signal(self.child.id(), name);
        }
    }

    /// SIGKILL, and waits for the end.
    pub(super) async fn kill(&mut self) -> Result<(), Error> {
        // A process that has ended already is what was asked for.
        let _ = self.child.kill();
        self.wait().await.map_err(|e| Error::io("kill the broker of", &self.folder, e))
    }

    /// SIGTERM, then SIGKILL after `grace`; the folder stays.
    pub(super) async fn end(&mut self, grace: Duration) -> Result<(), Error> {
        self.signal("TERM");
        let result = match tokio::time::timeout(grace, self.wait()).await {
            Ok(result) => result,
            Err(_) => {
                let _ = self.child.kill();
                self.wait().await
            }
        };
        result.map_err(|e| Error::io("stop the broker of", &self.folder, e))
    }

    async fn wait(&mut self) -> io::Result<()> {
        while self.ended()?.is_none() {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The status if the process has ended.
    pub(super) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        if let (Some(_), Some(Child { stdin: Some(pipe), .. })) = (status, &mut self.watchdog) {
            // A watchdog that is gone signals nobody.
            let _ = pipe.write_all(b"\n");
        }
        Ok(status)
    }

    /// The end of its log, for error messages.
    pub(super) fn log_tail(&self) -> String {
        let text = fs::read(self.folder.join("broker.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n")
    }

    /// [`end`](Self::end), and everything of it is removed.
    pub(super) async fn stop(mut self, grace: Duration) -> Result<(), Error> {
        self.end(grace).await
        // Drop does the rest, and finds the process gone.
    }
}

/// Its output goes to the end of `folder`/broker.log.
fn spawn_logged(command: &mut Command, folder: &Path) -> Result<Child, Error> {
    let path = folder.join("broker.log");
    let log = File::options().create(true).append(true).open(&path);
    let log = log.map_err(|e| Error::io("create", &path, e))?;
    let errors = log.try_clone().map_err(|e| Error::io("open", &path, e))?;
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    let program = PathBuf::from(command.get_program());
    command.spawn().map_err(|e| Error::io("run", &program, e))
}

fn end_watchdog(watchdog: Option<Child>) {
    if let Some(mut watchdog) = watchdog {
        let _ = watchdog.kill();
        let _ = watchdog.wait();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if !matches!(self.ended(), Ok(Some(_))) {
            let _ = self.child.kill();
            for _ in 0..DROP_LOOKS {
                if !matches!(self.ended(), Ok(None)) {
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
        end_watchdog(self.watchdog.take());
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

/// std knows no signal but SIGKILL; the shell's built-in `kill` needs neither `unsafe` nor a package. Where SIGTERM
/// fails, the grace period passes and the process is killed.
fn signal(pid: u32, name: &str) {
    let mut kill = Command::new("sh");
    kill.args(["-c", "kill -\"$1\" \"$2\"", "kill", name, &pid.to_string()]);
    let _ = kill.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    fn folder() -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("dtkafka-process-{:016x}", super::super::route::random()));
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

    #[tokio::test]
    async fn killed_broker_starts_again_in_its_folder_and_its_log_goes_on() {
        let folder = folder();
        let script = "echo started; exec sleep 600";
        let mut broker = Broker::spawn(shell(script), folder.clone(), false, None).unwrap();
        let first = broker.id();
        // One that is killed before it has written anything would leave a line out for ever.
        let log = folder.join("broker.log");
        let lines = async |count: usize| {
            while fs::read_to_string(&log).unwrap_or_default().lines().count() < count {
                tokio::time::sleep(LOOK).await;
            }
        };
        lines(1).await;
        broker.kill().await.unwrap();
        assert!(!is_running(first));
        broker.respawn().unwrap();
        let second = broker.id();
        assert!(is_running(second) && broker.ended().unwrap().is_none());
        lines(2).await;
        broker.stop(Duration::from_secs(5)).await.unwrap();
        assert!(!is_running(second) && !folder.exists());
    }

    #[tokio::test]
    async fn watchdog_leaves_a_reused_process_id_alone() {
        let folder = folder();
        let mut broker = Broker::spawn(shell("exec sleep 600"), folder.clone(), false, None).unwrap();
        let mut other = shell("exec sleep 600").spawn().unwrap();
        end_watchdog(broker.watchdog.take());
        broker.watchdog = watch(other.id(), &folder);
        broker.kill().await.unwrap();
        let watchdog = broker.watchdog.as_mut().unwrap();
        drop(watchdog.stdin.take());
        assert!(watchdog.wait().is_ok() && !folder.exists());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
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
