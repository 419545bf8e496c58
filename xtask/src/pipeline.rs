//! A pipeline of processes that can be killed at any moment, and what each of them took.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How often we look whether a stage has ended.
const LOOK: Duration = Duration::from_millis(4);

/// One in so many looks reads the peak of the memory as well. It only rises, so little is missed.
const LOOKS_PER_PEAK: u32 = 4;

/// A clock tick of /proc/PID/stat: USER_HZ is 100 on every Linux that Rust runs on.
const TICK: Duration = Duration::from_millis(10);

/// One stage to run.
pub struct Stage {
    pub name: &'static str,
    pub command: Command,
}

/// What became of a stage.
pub struct Ended {
    pub name: &'static str,
    pub status: ExitStatus,
    /// What it said on standard error.
    pub said: String,
    /// User and system time.
    pub cpu: Duration,
    /// System time alone.
    pub kernel: Duration,
    /// Peak of the resident memory in KiB.
    pub peak: u64,
}

/// A pipeline under way.
pub struct Running {
    stages: Vec<Process>,
    started: Instant,
    looks: u32,
}

struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
    times: Times,
    peak: u64,
    status: Option<ExitStatus>,
}

/// Processor time, with that of children who were waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Times {
    user: Duration,
    kernel: Duration,
}

impl Running {
    /// Starts the stages, the first one reading `input`, the last one writing `output`; what they say on standard
    /// error goes to files in `logs`.
    pub fn start(stages: Vec<Stage>, input: &Path, output: &Path, logs: &Path) -> Result<Self, String> {
        let failed = |name: &str| {
            let name = name.to_owned();
            move |error: io::Error| format!("cannot run {name}: {error}")
        };
        let mut stdin = Stdio::from(File::open(input).map_err(failed("the pipeline"))?);
        let mut running = Self { stages: Vec::new(), started: Instant::now(), looks: 0 };
        let last = stages.len().saturating_sub(1);
        for (index, Stage { name, mut command }) in stages.into_iter().enumerate() {
            let log = logs.join(format!("{index}-{name}.log"));
            let stderr = File::create(&log).map_err(failed(name))?;
            let stdout =
                if index == last { File::create(output).map_err(failed(name))?.into() } else { Stdio::piped() };
            let mut child = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn().map_err(failed(name))?;
            stdin = child.stdout.take().map_or_else(Stdio::null, Stdio::from);
            let (times, peak, status) = (Times::default(), 0, None);
            running.stages.push(Process { name, child, log, times, peak, status });
        }
        Ok(running)
    }

    /// Looks after the pipeline until a moment after its start.
    pub fn run_until(&mut self, moment: Duration) -> Result<(), String> {
        while self.started.elapsed() < moment {
            self.look()?;
            thread::sleep(LOOK.min(moment.saturating_sub(self.started.elapsed())));
        }
        self.look().map(drop)
    }

    /// Whether a stage was at work when we last looked.
    pub fn is_alive(&self, index: usize) -> bool {
        self.stages[index].status.is_none()
    }

    /// Kills a stage with SIGKILL; false if it had ended.
    pub fn kill(&mut self, index: usize) -> Result<bool, String> {
        let stage = &mut self.stages[index];
        let alive = stage.status.is_none();
        // A stage that has ended just now is killed in vain, which is no failure.
        stage.child.kill().map_err(|error| format!("cannot kill {}: {error}", stage.name))?;
        Ok(alive)
    }

    /// Sends SIGTERM to a stage; false if it had ended.
    pub fn terminate(&mut self, index: usize) -> Result<bool, String> {
        let stage = &self.stages[index];
        if stage.status.is_some() {
            return Ok(false);
        }
        // Nobody has reaped it since we looked, so the number is still its own.
        let status = Command::new("kill").args(["-TERM", &stage.child.id().to_string()]).status();
        status.map(|_| true).map_err(|error| format!("cannot run kill: {error}"))
    }

    /// Waits until all stages have ended; one that has not after `limit` is killed, and that is a failure.
    pub fn finish(mut self, limit: Duration) -> Result<(Duration, Vec<Ended>), String> {
        let start = Instant::now();
        while !self.look()? {
            if start.elapsed() > limit {
                let stuck: Vec<_> = self.stages.iter().filter(|stage| stage.status.is_none()).collect();
                let names: Vec<_> = stuck.iter().map(|stage| stage.name).collect();
                return Err(format!("{} did not end in {} s", names.join(", "), limit.as_secs()));
            }
            thread::sleep(LOOK);
        }
        let wall = self.started.elapsed();
        Ok((wall, self.stages.drain(..).filter_map(Process::ended).collect()))
    }

    /// Takes note of what has ended; true if all have.
    fn look(&mut self) -> Result<bool, String> {
        self.looks += 1;
        let peaks = self.looks % LOOKS_PER_PEAK == 1;
        for stage in self.stages.iter_mut().filter(|stage| stage.status.is_none()) {
            stage.look(peaks).map_err(|error| format!("cannot wait for {}: {error}", stage.name))?;
        }
        Ok(self.stages.iter().all(|stage| stage.status.is_some()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for stage in self.stages.iter_mut().filter(|stage| stage.status.is_none()) {
            drop(stage.child.kill());
            drop(stage.child.wait());
        }
    }
}

impl Process {
    fn look(&mut self, peaks: bool) -> io::Result<()> {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        if peaks {
            let status = fs::read_to_string(proc.join("status")).unwrap_or_default();
            self.peak = peak_of(&status).unwrap_or(self.peak);
        }
        // A process that has ended keeps its times until it is waited for.
        let stat = fs::read_to_string(proc.join("stat"))?;
        if let Some((state, times)) = times_of(&stat) {
            self.times = times;
            if matches!(state, 'Z' | 'X') {
                self.status = self.child.try_wait()?;
            }
        }
        Ok(())
    }

    fn ended(self) -> Option<Ended> {
        let said = fs::read(&self.log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).into_owned();
        let Times { user, kernel } = self.times;
        Some(Ended { name: self.name, status: self.status?, said, cpu: user + kernel, kernel, peak: self.peak })
    }
}

impl Ended {
    /// What it said last and how it ended, in one line.
    pub fn tell(&self) -> String {
        let last = self.said.trim().lines().last().unwrap_or("nothing");
        format!("{} ended with {} and said: {last}", self.name, self.status)
    }
}

/// `VmHWM:   1234 kB`; a process that has ended has none.
fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

/// State and times of a process; the name before them may hold anything.
fn times_of(stat: &str) -> Option<(char, Times)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u32>().ok();
    let times = Times { user: TICK * (ticks(11)? + ticks(13)?), kernel: TICK * (ticks(12)? + ticks(14)?) };
    Some((fields.first()?.chars().next()?, times))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Times, peak_of, times_of};

    #[test]
    fn the_kernel_tells_times_and_memory() {
        let stat = "42 (a) b (c) Z 1 42 42 0 -1 4194304 100 0 0 0 150 25 0 5 20 0 1 0 100 0 0";
        let times = Times { user: Duration::from_millis(1500), kernel: Duration::from_millis(300) };
        assert_eq!(times_of(stat), Some(('Z', times)));
        assert_eq!(peak_of("Name:\tx\nVmHWM:\t    1234 kB\nVmRSS:\t 12 kB\n"), Some(1234));
        assert_eq!(peak_of("Name:\tx\nState:\tZ (zombie)\n"), None);
    }
}
