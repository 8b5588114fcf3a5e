//! Worker processes of `volley serve --workers N`: started, watched, restarted.
//!
//! ```text
//! parent ── stdin (held open) ──▶ child: volley worker --supervised
//!        ◀─ stdout: lines of JSON: bytes of weights loaded; at last id, address, model
//! ```
//!
//! A child ends when its stdin does, so it never outlives its parent, however that dies.

use std::{
    ffi::OsString,
    io,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::mpsc,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use volley_membership::{Member, Membership, Role};

/// The first pause before a restart; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// A child that has lived this long starts over with the first pause.
const HEALTHY: Duration = Duration::from_secs(60);
/// How long a child may take to end once its stdin is closed.
const FAREWELL: Duration = Duration::from_secs(10);

/// A line that a child says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Line {
    /// How much of the weights is loaded.
    Loading {
        /// Bytes.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// It serves. Nothing comes after it.
    Ready(Ready),
}

/// Where a child can be found.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// The worker's id.
    pub(crate) id: String,
    /// Where its gRPC listens.
    pub(crate) address: String,
    /// The model's name.
    pub(crate) model: String,
}

/// A child that can't be kept running.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The operating system refused.
    #[error("cannot start a worker process: {0}")]
    Spawn(#[from] io::Error),
    /// It ended before it served anything; what it said is on stderr.
    #[error("a worker process ended before it was ready: {0}")]
    NeverReady(ExitStatus),
    /// It could not be made known.
    #[error(transparent)]
    Membership(#[from] volley_membership::Error),
}

/// What is told of a child.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// It has loaded so many bytes of weights of so many.
    Loading { done: u64, total: u64 },
    /// It has become ready.
    Ready,
}

/// One child, over all its lives.
pub(crate) struct Supervised {
    /// Its number among all, for the news.
    pub(crate) number: usize,
    /// The program and its arguments.
    pub(crate) command: Vec<OsString>,
    /// Where its scheduler finds it.
    pub(crate) membership: Arc<dyn Membership>,
    /// Told how it fares.
    pub(crate) news: mpsc::UnboundedSender<(usize, News)>,
    /// Ends it for good.
    pub(crate) shutdown: CancellationToken,
}

// === impl Supervised ===

impl Supervised {
    /// Keeps the child running. Fails if its first life ends before it is ready: the next would not fare better.
    pub(crate) async fn run(self) -> Result<(), Error> {
        let mut pause = FIRST_PAUSE;
        let mut was_ready = false;
        loop {
            let start = Instant::now();
            let Some((ready, status)) = self.live().await? else { return Ok(()) };
            if !ready && !was_ready {
                return Err(Error::NeverReady(status));
            }
            was_ready = true;
            if start.elapsed() > HEALTHY {
                pause = FIRST_PAUSE;
            }
            tracing::error!(%status, restart_in = ?pause, "a worker process died");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled() => return Ok(()),
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// One life: whether it was ready, and how it ended; `None` when it was asked to.
    async fn live(&self) -> Result<Option<(bool, ExitStatus)>, Error> {
        let mut child = self.spawn()?;
        // Held here, as waiting for a child closes the stdin that it still has.
        let stdin = child.stdin.take();
        let mut registration = None;
        if let Some(stdout) = child.stdout.take() {
            let mut lines = BufReader::new(stdout).lines();
            let mut said = async || -> io::Result<Option<Line>> {
                loop {
                    let line = tokio::select! {
                        line = lines.next_line() => line?,
                        () = self.shutdown.cancelled() => None,
                    };
                    let Some(line) = line else { return Ok(None) };
                    // Libraries of a device may have things to say, too.
                    if let Ok(line) = serde_json::from_str(&line) {
                        return Ok(Some(line));
                    }
                }
            };
            // Nobody listens to news any more once the service runs.
            let tell = |news| drop(self.news.send((self.number, news)));
            while let Some(line) = said().await? {
                match line {
                    Line::Loading { done, total } => tell(News::Loading { done, total }),
                    Line::Ready(Ready { id, address, model }) => {
                        let member = Member { id, address, model };
                        registration = Some(self.membership.register(Role::Worker, member).await?);
                        tell(News::Ready);
                        break;
                    }
                }
            }
        }
        tokio::select! {
            status = child.wait() => {
                let ready = registration.is_some();
                drop(registration);
                Ok(Some((ready, status?)))
            }
            () = self.shutdown.cancelled() => {
                drop(stdin);
                if tokio::time::timeout(FAREWELL, child.wait()).await.is_err() {
                    child.kill().await?;
                }
                Ok(None)
            }
        }
    }

    fn spawn(&self) -> io::Result<Child> {
        let Some((program, arguments)) = self.command.split_first() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut command = Command::new(program);
        for (variable, _) in std::env::vars_os() {
            // What holds for the child is on its command line.
            if variable.to_string_lossy().starts_with("VOLLEY_") {
                command.env_remove(variable);
            }
        }
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0) // Ctrl-C is the parent's, which drains first
            .kill_on_drop(true)
            .spawn()
    }
}

/// In the child: returns when the parent is gone or has let go.
pub(crate) async fn parent_gone() {
    // Nothing is ever sent; an error means the same as the end.
    let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await;
}

#[cfg(test)]
mod tests {
    use volley_membership::Local;

    use super::*;

    struct World {
        local: Local,
        news: mpsc::UnboundedReceiver<(usize, News)>,
        shutdown: CancellationToken,
        task: tokio::task::JoinHandle<Result<(), Error>>,
    }

    /// Supervises a shell script.
    fn supervise(script: &str) -> World {
        let local = Local::default();
        let (sender, news) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let supervised = Supervised {
            number: 3,
            command: ["sh", "-c", script].map(OsString::from).to_vec(),
            membership: Arc::new(local.clone()),
            news: sender,
            shutdown: shutdown.clone(),
        };
        World { local, news, shutdown, task: tokio::spawn(supervised.run()) }
    }

    const SAYS_READY: &str =
        r#"echo "{\"ready\":{\"id\":\"w$$\",\"address\":\"http://127.0.0.1:1\",\"model\":\"m\"}}""#;

    #[tokio::test]
    async fn a_child_is_registered_when_it_is_ready_and_ends_with_its_stdin() {
        let loading = r#"echo '{"loading":{"done":1,"total":5}}'"#;
        let mut world = supervise(&format!("{loading}; {SAYS_READY}; cat"));
        assert_eq!(world.news.recv().await.unwrap(), (3, News::Loading { done: 1, total: 5 }));
        assert_eq!(world.news.recv().await.unwrap(), (3, News::Ready));
        let members = world.local.members(Role::Worker);
        assert_eq!(members.borrow().values().next().unwrap().address, "http://127.0.0.1:1");
        world.shutdown.cancel();
        world.task.await.unwrap().unwrap();
        assert!(members.borrow().is_empty());
    }

    #[tokio::test]
    async fn a_childs_stdin_stays_open_while_it_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("verdict");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        // Only a cat whose input is still open is ended by the timeout, with status 124.
        let script = format!("{SAYS_READY}; timeout 0.3 cat; echo $? > {}; cat", fifo.display());
        let world = supervise(&script);
        let verdict = tokio::task::spawn_blocking(|| std::fs::read_to_string(fifo)).await.unwrap();
        assert_eq!(verdict.unwrap().trim(), "124");
        world.shutdown.cancel();
        world.task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_child_that_dies_is_restarted_under_another_id() {
        let mut world = supervise(&format!("{SAYS_READY}; exit 3"));
        let mut members = world.local.members(Role::Worker);
        let mut ids = std::collections::BTreeSet::new();
        while ids.len() < 2 {
            members.changed().await.unwrap();
            ids.extend(members.borrow_and_update().keys().cloned());
        }
        world.news.recv().await.unwrap();
        world.shutdown.cancel();
        world.task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_child_that_never_gets_ready_is_an_error() {
        let world = supervise("exit 7");
        let message = world.task.await.unwrap().unwrap_err().to_string();
        assert!(message.contains("before it was ready") && message.contains('7'), "{message}");
    }
}
