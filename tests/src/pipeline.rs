//! A pipeline of processes that can be killed at any moment, and the resources that each of them used.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How often the pipeline checks whether a stage has exited.
const POLL_INTERVAL: Duration = Duration::from_millis(4);

/// Every time this number of polls has passed, the peak memory is read too; it never decreases.
const POLLS_PER_PEAK: u32 = 4;

/// A clock tick of /proc/PID/stat: USER_HZ is 100 on every Linux that Rust supports.
const CLOCK_TICK: Duration = Duration::from_millis(10);

/// A stage to run.
#[derive(Debug)]
pub struct Stage {
    /// Its name in messages.
    pub name: &'static str,
    /// The command, whose standard streams are set by the pipeline.
    pub command: Command,
}

/// A stage that has exited.
#[derive(Debug)]
pub struct FinishedStage {
    /// Its name in messages.
    pub name: &'static str,
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard error.
    pub stderr: String,
    /// User and system time.
    pub cpu: Duration,
    /// System time alone.
    pub system: Duration,
    /// Peak of the resident memory in KiB.
    pub peak_kib: u64,
}

/// A running pipeline. Its stages are killed when this is dropped.
#[derive(Debug)]
pub struct Pipeline {
    stages: Vec<RunningStage>,
    started: Instant,
    polls: u32,
}

#[derive(Debug)]
struct RunningStage {
    name: &'static str,
    child: Child,
    log: PathBuf,
    times: Times,
    peak_kib: u64,
    status: Option<ExitStatus>,
}

/// Processor time, including that of children that were waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Times {
    user: Duration,
    system: Duration,
}

impl Pipeline {
    /// Starts the stages: the first reads `input`, the last writes `output`; standard error goes to files in `logs`.
    ///
    /// # Errors
    /// If a file cannot be opened or a process cannot be started.
    pub fn start(stages: Vec<Stage>, input: &Path, output: &Path, logs: &Path) -> Result<Self, String> {
        let failed = |name: &str| {
            let name = name.to_owned();
            move |error: io::Error| format!("cannot run {name}: {error}")
        };
        let mut stdin = Stdio::from(File::open(input).map_err(failed("the pipeline"))?);
        let mut pipeline = Self { stages: Vec::new(), started: Instant::now(), polls: 0 };
        let last = stages.len().saturating_sub(1);
        for (index, Stage { name, mut command }) in stages.into_iter().enumerate() {
            let log = logs.join(format!("{index}-{name}.log"));
            let stderr = File::create(&log).map_err(failed(name))?;
            let stdout =
                if index == last { File::create(output).map_err(failed(name))?.into() } else { Stdio::piped() };
            let mut child = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn().map_err(failed(name))?;
            stdin = child.stdout.take().map_or_else(Stdio::null, Stdio::from);
            let (times, peak_kib, status) = (Times::default(), 0, None);
            pipeline.stages.push(RunningStage { name, child, log, times, peak_kib, status });
        }
        Ok(pipeline)
    }

    /// Polls the stages until `elapsed` has passed since the start.
    ///
    /// # Errors
    /// If the state of a process cannot be read.
    pub fn run_until(&mut self, elapsed: Duration) -> Result<(), String> {
        while self.started.elapsed() < elapsed {
            self.poll()?;
            thread::sleep(POLL_INTERVAL.min(elapsed.saturating_sub(self.started.elapsed())));
        }
        self.poll().map(drop)
    }

    /// Returns whether a stage was running at the last poll.
    pub fn is_running(&self, index: usize) -> bool {
        self.stages[index].status.is_none()
    }

    /// Sends SIGKILL to a stage; returns false if it had exited.
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub fn kill(&mut self, index: usize) -> Result<bool, String> {
        let stage = &mut self.stages[index];
        let running = stage.status.is_none();
        // Killing a stage that has just exited is not an error.
        stage.child.kill().map_err(|error| format!("cannot kill {}: {error}", stage.name))?;
        Ok(running)
    }

    /// Sends SIGTERM to a stage; returns false if it had exited.
    ///
    /// # Errors
    /// If `kill` cannot be run.
    pub fn terminate(&mut self, index: usize) -> Result<bool, String> {
        let stage = &self.stages[index];
        if stage.status.is_some() {
            return Ok(false);
        }
        // The process was not reaped since the last poll, so its number is still its own.
        let status = Command::new("kill").args(["-TERM", &stage.child.id().to_string()]).status();
        status.map(|_| true).map_err(|error| format!("cannot run kill: {error}"))
    }

    /// Waits until all stages have exited, and returns the elapsed time since the start.
    ///
    /// # Errors
    /// If a stage has not exited after `timeout`, when it is killed.
    pub fn finish(mut self, timeout: Duration) -> Result<(Duration, Vec<FinishedStage>), String> {
        let start = Instant::now();
        while !self.poll()? {
            if start.elapsed() > timeout {
                let running: Vec<_> = self.stages.iter().filter(|stage| stage.status.is_none()).collect();
                let names: Vec<_> = running.iter().map(|stage| stage.name).collect();
                return Err(format!("{} did not exit within {} s", names.join(", "), timeout.as_secs()));
            }
            thread::sleep(POLL_INTERVAL);
        }
        let elapsed = self.started.elapsed();
        Ok((elapsed, self.stages.drain(..).filter_map(RunningStage::finished).collect()))
    }

    /// Waits as [`Pipeline::finish`] does, and requires that every stage succeeds.
    ///
    /// # Errors
    /// The message of the last stage that failed.
    pub fn succeed(self, timeout: Duration) -> Result<(Duration, Vec<FinishedStage>), String> {
        let (elapsed, stages) = self.finish(timeout)?;
        match stages.iter().rev().find(|stage| !stage.status.success()) {
            Some(stage) => Err(stage.summary()),
            None => Ok((elapsed, stages)),
        }
    }

    /// Updates the state of the stages; returns true if all have exited.
    fn poll(&mut self) -> Result<bool, String> {
        self.polls += 1;
        let with_peak = self.polls % POLLS_PER_PEAK == 1;
        for stage in self.stages.iter_mut().filter(|stage| stage.status.is_none()) {
            stage.poll(with_peak).map_err(|error| format!("cannot wait for {}: {error}", stage.name))?;
        }
        Ok(self.stages.iter().all(|stage| stage.status.is_some()))
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        for stage in self.stages.iter_mut().filter(|stage| stage.status.is_none()) {
            drop(stage.child.kill());
            drop(stage.child.wait());
        }
    }
}

impl RunningStage {
    fn poll(&mut self, with_peak: bool) -> io::Result<()> {
        if with_peak {
            self.peak_kib = peak_memory(&self.child).map_or(self.peak_kib, |peak| peak / 1024);
        }
        // A process that has exited keeps its times until it is waited for.
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        if let Some((state, times)) = parse_times(&stat) {
            self.times = times;
            if matches!(state, 'Z' | 'X') {
                self.status = self.child.try_wait()?;
            }
        }
        Ok(())
    }

    fn finished(self) -> Option<FinishedStage> {
        let stderr = fs::read(&self.log).unwrap_or_default();
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        let Times { user, system } = self.times;
        let (name, status, peak_kib) = (self.name, self.status?, self.peak_kib);
        Some(FinishedStage { name, status, stderr, cpu: user + system, system, peak_kib })
    }
}

impl FinishedStage {
    /// Returns its status and the last line of its standard error, on one line.
    pub fn summary(&self) -> String {
        match self.stderr.trim().lines().last() {
            Some(last) => format!("{} failed ({}): {last}", self.name, self.status),
            None => format!("{} failed ({}) without a message", self.name, self.status),
        }
    }
}

/// Returns the peak of the resident memory of a process so far, in bytes; none if it has exited, or if its program does not
/// run yet.
pub fn peak_memory(child: &Child) -> Option<u64> {
    let read = |file| fs::read_to_string(format!("/proc/{}/{file}", child.id())).ok();
    // Until `execve` has replaced the memory of a process, it is that of its parent. The name changes afterwards.
    let parent_name = fs::read_to_string("/proc/thread-self/comm").ok();
    if read("comm") == parent_name { None } else { parse_peak(&read("status")?) }
}

/// Reads the peak in bytes from `VmHWM:   1234 kB`; a process that has exited has none.
fn parse_peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

/// Reads the state and the times of a process; the name before them may contain any character.
fn parse_times(stat: &str) -> Option<(char, Times)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u32>().ok();
    let times = Times { user: CLOCK_TICK * (ticks(11)? + ticks(13)?), system: CLOCK_TICK * (ticks(12)? + ticks(14)?) };
    Some((fields.first()?.chars().next()?, times))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Times, parse_peak, parse_times};

    #[test]
    fn times_and_memory_are_read_from_proc() {
        let stat = "42 (a) b (c) Z 1 42 42 0 -1 4194304 100 0 0 0 150 25 0 5 20 0 1 0 100 0 0";
        let times = Times { user: Duration::from_millis(1500), system: Duration::from_millis(300) };
        assert_eq!(parse_times(stat), Some(('Z', times)));
        assert_eq!(parse_peak("Name:\tx\nVmHWM:\t    1234 kB\nVmRSS:\t 12 kB\n"), Some(1234 * 1024));
        assert_eq!(parse_peak("Name:\tx\nState:\tZ (zombie)\n"), None);
    }
}
