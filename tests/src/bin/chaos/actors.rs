//! The processes of a round: each starts at a moment of its own, and some are killed.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Interval at which processes are started, killed and waited for.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Publishes the closure of a path.
    Push(usize),
    /// Publishes the closure of a path with Nix.
    NixPush(usize),
    /// Publishes the text of a record again.
    Undo,
    /// Collects garbage.
    Collect,
    /// Pins a path.
    Pin(usize),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With this status.
    Exited(i32),
    /// It was killed.
    Killed,
}

/// A process of a round.
pub struct Actor {
    /// What it does.
    pub role: Role,
    /// How it ended; `Exited(0)` is success.
    pub outcome: Outcome,
    start: Duration,
    kill: Option<Duration>,
    command: Command,
    child: Option<Child>,
    output: PathBuf,
    log: PathBuf,
}

impl Actor {
    /// Creates a process that starts after `start` and, if `kill` is given, is killed so long after its start. Its output
    /// goes to files in `logs`.
    pub fn new(
        role: Role,
        mut command: Command,
        start: Duration,
        kill: Option<Duration>,
        logs: &Path,
    ) -> Result<Self, String> {
        let name = format!("{role:?}-{}", start.as_micros());
        let (output, log) = (logs.join(format!("{name}.out")), logs.join(format!("{name}.log")));
        let create =
            |path: &Path| File::create(path).map_err(|error| format!("cannot create {}: {error}", path.display()));
        // A group of its own, so that a pipeline is killed as a whole.
        command.stdin(Stdio::null()).stdout(create(&output)?).stderr(create(&log)?).process_group(0);
        Ok(Self { role, outcome: Outcome::Killed, start, kill, command, child: None, output, log })
    }

    /// Returns its standard output.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// Returns its standard error.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Starts, kills or waits for the process; returns whether it has ended.
    fn poll(&mut self, elapsed: Duration) -> Result<bool, String> {
        let failed = |error| format!("cannot run a process of the round: {error}");
        let Some(child) = &mut self.child else {
            if elapsed >= self.start {
                self.child = Some(self.command.spawn().map_err(failed)?);
            }
            return Ok(false);
        };
        if let Some(status) = child.try_wait().map_err(failed)? {
            if let Some(code) = status.code() {
                self.outcome = Outcome::Exited(code);
            }
            return Ok(true);
        }
        if self.kill.is_some_and(|kill| elapsed >= self.start + kill) {
            let group = format!("-{}", child.id());
            Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status().map_err(failed)?;
            child.wait().map_err(failed)?;
            return Ok(true);
        }
        Ok(false)
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child
            && let Ok(None) = child.try_wait()
        {
            // Only after an error of the experiment.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Runs the processes of a round until all have ended. Calls each of `events` once, when its moment has come.
///
/// # Errors
/// If a process cannot be run or has not ended after `timeout`.
pub fn run_all(actors: &mut [Actor], events: &[(Duration, &dyn Fn())], timeout: Duration) -> Result<(), String> {
    let started = Instant::now();
    let (mut ended, mut called) = (vec![false; actors.len()], vec![false; events.len()]);
    while ended.contains(&false) {
        let elapsed = started.elapsed();
        for ((moment, event), called) in events.iter().zip(&mut called) {
            if elapsed >= *moment && !*called {
                event();
                *called = true;
            }
        }
        for (actor, ended) in actors.iter_mut().zip(&mut ended) {
            *ended = *ended || actor.poll(elapsed)?;
        }
        if elapsed > timeout {
            let running: Vec<Role> =
                actors.iter().zip(&ended).filter(|(_, ended)| !**ended).map(|(actor, _)| actor.role).collect();
            return Err(format!("{running:?} did not end within {} s", timeout.as_secs()));
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}
