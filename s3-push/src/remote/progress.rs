//! Progress on standard error: a bar that is redrawn on a terminal, or a line every ten seconds for logs. Work counts in
//! atomics, and one thread per task reads them and draws, so that drawing never delays the work.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{HumanBytes, HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use nar_pack::sync::lock;
use nar_pack::{drawn_line, process};

use crate::remote::terminal::{StderrTerminal, columns, draw_in_background};

/// Time between two updates of a bar.
const UPDATE_INTERVAL: Duration = Duration::from_millis(200);
/// Updates between two lines of `--progress plain`: ten seconds.
const UPDATES_PER_LINE: u32 = 50;
/// How long a wait is shown after it was last reported.
const WAIT_SHOWN: Duration = Duration::from_secs(5);
/// Maximum number of frames in a second.
const MAX_FRAMES_PER_SECOND: u8 = 20;
/// Columns that stay free at the end of the line, so that it does not wrap.
const SPARE_COLUMNS: u16 = 3;
/// Terminals with fewer columns have no room for the bar beside the text.
const MIN_COLUMNS_OF_BAR: u16 = 60;

/// The bars of this process. There is one draw target, so that messages can be printed above all of them.
static BARS: LazyLock<MultiProgress> = LazyLock::new(|| {
    MultiProgress::with_draw_target(ProgressDrawTarget::term_like_with_hz(
        Box::<StderrTerminal>::default(),
        MAX_FRAMES_PER_SECOND,
    ))
});
/// How progress is shown, and the name of the tool. Nothing is shown before it is set.
static DISPLAY: OnceLock<(Display, &'static str)> = OnceLock::new();
/// What requests wait for, and when that was reported.
static WAIT: Mutex<Option<(String, Instant)>> = Mutex::new(None);

/// How progress is shown, as an option.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub struct ProgressArgs {
    /// Show progress on standard error: auto, bar, plain, never
    ///
    /// auto draws a bar if standard error is a terminal and standard output is not a pipe, so that of several stages of a pipe only the last one draws. bar draws one also if standard output is a pipe; without a terminal it is the same as plain. plain prints a line every 10 seconds, for logs. With --quiet, there is no progress. NO_COLOR turns colors off.
    #[arg(
        long, value_name = "WHEN", value_enum, default_value_t = ProgressMode::Auto, hide_possible_values = true,
        hide_short_help = true,
    )]
    pub progress: ProgressMode,
}

/// The values of `--progress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// A bar if standard error is a terminal and standard output is not a pipe.
    Auto,
    /// A bar, or lines without a terminal.
    Bar,
    /// A line every ten seconds.
    Plain,
    /// Nothing.
    Never,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Display {
    Bar,
    Plain,
    Nothing,
}

impl ProgressArgs {
    /// Applies the options to this process, which is the tool `tool`.
    pub fn apply(&self, tool: &'static str, is_quiet: bool) {
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let display = match self.progress {
            _ if is_quiet => Display::Nothing,
            ProgressMode::Bar if stderr.is_terminal() => Display::Bar,
            ProgressMode::Auto if stderr.is_terminal() && !is_dumb && !is_pipe(&stdout) => Display::Bar,
            ProgressMode::Bar | ProgressMode::Plain => Display::Plain,
            ProgressMode::Auto | ProgressMode::Never => Display::Nothing,
        };
        let _ = DISPLAY.set((display, tool));
        if self.progress == ProgressMode::Bar {
            draw_in_background();
        }
        if display == Display::Bar {
            // indicatif asks for those of standard output, since it does not know where this terminal is.
            console::set_colors_enabled(console::colors_enabled_stderr());
            drawn_line::set_suspend(|write| BARS.suspend(write));
        }
    }
}

/// Returns whether a descriptor is a pipe: then another stage of the pipeline draws the bar.
fn is_pipe(fd: &impl AsFd) -> bool {
    let file = fd.as_fd().try_clone_to_owned().map(File::from);
    file.and_then(|file| file.metadata()).is_ok_and(|metadata| metadata.file_type().is_fifo())
}

/// Shows for a few seconds what requests wait for, such as `throttled`.
pub(super) fn report_wait(what: impl Into<String>) {
    *lock(&WAIT) = Some((what.into(), Instant::now()));
}

fn current_wait() -> Option<String> {
    lock(&WAIT).as_ref().filter(|(_, time)| time.elapsed() < WAIT_SHOWN).map(|(what, _)| what.clone())
}

/// The progress of one task. It is no longer shown when it is dropped.
pub struct Progress {
    state: Arc<State>,
    /// Never used. When it is dropped, the thread ends.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the task has done.
struct State {
    unit: Unit,
    position: AtomicU64,
    /// Where the position comes from instead, if it is counted elsewhere.
    source: Option<Source>,
    /// 0 if it is unknown.
    total: AtomicU64,
    message: Mutex<String>,
}

/// Returns a position.
type Source = Box<dyn Fn() -> u64 + Send + Sync>;

/// What is counted.
enum Unit {
    /// Objects of this kind.
    Objects(&'static str),
    /// Bytes.
    Bytes,
}

/// What a line consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    template: &'static str,
    /// Columns for the text.
    text_columns: u16,
}

impl Progress {
    /// Shows the progress of a task on `total` objects. `what` is their plural; a total of 0 is unknown.
    #[must_use]
    pub fn of_objects(what: &'static str, total: usize) -> Self {
        Self::start(Unit::Objects(what), total as u64, None, String::new())
    }

    /// Shows the progress of a transfer, whose total is unknown at first. `message` is shown beside the bytes.
    #[must_use]
    pub fn of_bytes(message: String) -> Self {
        Self::start(Unit::Bytes, 0, None, message)
    }

    /// Shows the progress of a transfer whose bytes are counted elsewhere: `source` returns their number. A total of 0 is
    /// unknown.
    #[must_use]
    pub fn of_transfer(total: u64, source: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self::start(Unit::Bytes, total, Some(Box::new(source)), String::new())
    }

    fn start(unit: Unit, total: u64, source: Option<Source>, message: String) -> Self {
        let state = State { unit, position: 0.into(), source, total: total.into(), message: message.into() };
        let state = Arc::new(state);
        let mut progress = Self { state: Arc::clone(&state), stop: None, thread: None };
        let (display, tool) = DISPLAY.get().copied().unwrap_or((Display::Nothing, ""));
        if display == Display::Nothing {
            return progress;
        }
        let (stop, stopped) = channel();
        // Without a thread, the work goes on without progress.
        if let Ok(thread) = Builder::new().name("progress".to_owned()).spawn(move || match display {
            Display::Bar => state.draw(&stopped),
            _ => state.print(&stopped, |line| process::print_message(tool, line)),
        }) {
            (progress.stop, progress.thread) = (Some(stop), Some(thread));
        }
        progress
    }

    /// Counts one object.
    pub fn increment(&self) {
        self.state.position.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets what has been done.
    pub fn set_position(&self, position: u64) {
        self.state.position.store(position, Ordering::Relaxed);
    }

    /// Sets the total; 0 if it is unknown.
    pub fn set_total(&self, total: u64) {
        self.state.total.store(total, Ordering::Relaxed);
    }

    /// Changes the text that is shown beside the bytes.
    pub fn set_message(&self, message: String) {
        *lock(&self.state.message) = message;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    /// Draws a bar until the task has ended.
    fn draw(&self, stopped: &Receiver<()>) {
        let bar = ProgressBar::hidden();
        let mut layout = self.layout();
        set_template(&bar, layout.template);
        // Before it is on the terminal, so that its first frame has the text.
        self.refresh(&bar, layout);
        let bar = BARS.add(bar);
        loop {
            bar.tick();
            if stopped.recv_timeout(UPDATE_INTERVAL) != Err(RecvTimeoutError::Timeout) {
                break;
            }
            let fitting = self.layout();
            if layout != fitting {
                layout = fitting;
                set_template(&bar, layout.template);
            }
            self.refresh(&bar, layout);
        }
        bar.finish_and_clear();
        BARS.remove(&bar);
    }

    /// Prints a line now and then until the task has ended.
    fn print(&self, stopped: &Receiver<()>, print: impl Fn(String)) {
        // It computes the rate and the time that is left.
        let bar = ProgressBar::hidden();
        for tick in 1_u32.. {
            self.update(&bar);
            if stopped.recv_timeout(UPDATE_INTERVAL) != Err(RecvTimeoutError::Timeout) {
                break;
            }
            if tick % UPDATES_PER_LINE == 0 {
                print(self.line(&bar, current_wait()));
            }
        }
    }

    fn position(&self) -> u64 {
        self.source.as_ref().map_or_else(|| self.position.load(Ordering::Relaxed), |source| source())
    }

    fn update(&self, bar: &ProgressBar) {
        let total = self.total.load(Ordering::Relaxed);
        if total > 0 {
            bar.set_length(total);
        }
        bar.set_position(self.position());
    }

    /// Returns the layout of a line that fits the terminal, whose width may change.
    fn layout(&self) -> Layout {
        let columns = columns();
        if columns >= MIN_COLUMNS_OF_BAR && self.total.load(Ordering::Relaxed) > 0 {
            Layout { template: "{spinner:.green} [{bar:10.green}] {msg}", text_columns: columns - 15 - SPARE_COLUMNS }
        } else {
            Layout { template: "{spinner:.green} {msg}", text_columns: columns.saturating_sub(2 + SPARE_COLUMNS) }
        }
    }

    /// Updates the bar and the part of its line that fits the layout.
    fn refresh(&self, bar: &ProgressBar, layout: Layout) {
        self.update(bar);
        let line = self.line(bar, current_wait());
        bar.set_message(line.chars().take(layout.text_columns.into()).collect::<String>());
    }

    /// Returns the line, with what requests wait for. The most important comes first, because the end may be cut off.
    fn line(&self, bar: &ProgressBar, wait: Option<String>) -> String {
        let (position, total) = (self.position(), self.total.load(Ordering::Relaxed));
        let is_known = total > 0;
        let mut parts = Vec::new();
        let message = lock(&self.message).clone();
        if !message.is_empty() {
            parts.push(message);
        }
        parts.push(self.unit.amount(position, is_known.then_some(total)));
        parts.extend(wait);
        parts.push(self.unit.rate(bar.per_sec()));
        if is_known {
            let percent = position.min(total) * 100 / total;
            parts[0].insert_str(0, &format!("{percent}% "));
            parts.push(format!("{} left", duration(bar.eta())));
        } else {
            parts.push(duration(bar.elapsed()));
        }
        parts.join(", ")
    }
}

impl Unit {
    fn amount(&self, position: u64, total: Option<u64>) -> String {
        match (self, total) {
            (Self::Objects(what), None) => format!("{} {what}", HumanCount(position)),
            (Self::Objects(what), Some(total)) => format!("{} of {} {what}", HumanCount(position), HumanCount(total)),
            (Self::Bytes, None) => HumanBytes(position).to_string(),
            (Self::Bytes, Some(total)) => format!("{} of {}", HumanBytes(position), HumanBytes(total)),
        }
    }

    fn rate(&self, per_second: f64) -> String {
        match self {
            Self::Objects(_) if per_second < 10.0 => format!("{per_second:.1}/s"),
            Self::Objects(_) => format!("{per_second:.0}/s"),
            Self::Bytes => format!("{}/s", HumanBytes(whole(per_second))),
        }
    }
}

fn set_template(bar: &ProgressBar, template: &str) {
    // The templates are constants of this module.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
}

/// Returns a duration in whole seconds, such as `1m 20s`.
fn duration(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// Returns a rate without its fraction.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(rate: f64) -> u64 {
    rate.max(0.0) as u64
}

/// Returns what a transfer of `bytes` took, for a summary: the bytes, the time and the rate.
#[must_use]
pub fn transfer_summary(bytes: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let time = if seconds < 60.0 { format!("{seconds:.1}s") } else { duration(elapsed) };
    #[allow(clippy::cast_precision_loss)]
    let rate = HumanBytes(whole(bytes as f64 / seconds.max(0.001)));
    format!("{} in {time} ({rate}/s)", HumanBytes(bytes))
}

/// Returns a number of things with their name, such as `1 path` and `2,000 paths`; `noun` is the name of one of them.
#[must_use]
pub fn count_of(count: usize, noun: &str) -> String {
    format!("{} {noun}{}", HumanCount(count as u64), if count == 1 { "" } else { "s" })
}

/// Returns the verb that fits a number of things.
#[must_use]
pub fn is_or_are(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

/// How much is printed on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// Errors only.
    Quiet,
    /// Errors, warnings, progress and a summary.
    Normal,
    /// A line for each path as well.
    Verbose,
}

impl Verbosity {
    /// Returns the verbosity that `--quiet` and `--verbose` select.
    #[must_use]
    pub fn new(quiet: bool, verbose: bool) -> Self {
        match (quiet, verbose) {
            (true, _) => Self::Quiet,
            (_, true) => Self::Verbose,
            _ => Self::Normal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(unit: Unit, position: u64, total: u64) -> State {
        State { unit, position: position.into(), source: None, total: total.into(), message: Mutex::default() }
    }

    #[test]
    fn one_is_singular_and_thousands_are_separated() {
        assert_eq!([0, 1, 2000].map(|count| count_of(count, "path")), ["0 paths", "1 path", "2,000 paths"]);
    }

    #[test]
    fn a_line_begins_with_the_share_and_the_count() {
        let bar = ProgressBar::hidden();
        let line = state(Unit::Objects("narinfos"), 1234, 4936).line(&bar, None);
        assert!(line.starts_with("25% 1,234 of 4,936 narinfos, 0.0/s, "), "{line}");
        assert!(line.ends_with(" left"), "{line}");
        let line = state(Unit::Objects("objects"), 7, 0).line(&bar, None);
        assert!(line.starts_with("7 objects, "), "without a total there is neither a share nor a time left: {line}");
        assert!(!line.contains("left") && !line.contains('%'), "{line}");
        let transfer = state(Unit::Bytes, 3 << 30, 2 << 30);
        "3 of 4 paths".clone_into(&mut lock(&transfer.message));
        let line = transfer.line(&bar, None);
        assert!(line.starts_with("100% 3 of 4 paths, 3.00 GiB of 2.00 GiB, "), "never more than all: {line}");
    }

    #[test]
    fn a_wait_is_shown_after_the_count() {
        let wait = Some("retrying cache.example.org, 3 of 8".to_owned());
        let line = state(Unit::Objects("narinfos"), 1, 2).line(&ProgressBar::hidden(), wait);
        assert!(line.starts_with("50% 1 of 2 narinfos, retrying cache.example.org, 3 of 8, "), "{line}");
    }

    #[test]
    fn a_summary_has_bytes_time_and_rate() {
        assert_eq!(transfer_summary(10 << 20, Duration::from_millis(2500)), "10.00 MiB in 2.5s (4.00 MiB/s)");
        assert_eq!(transfer_summary(0, Duration::ZERO), "0 B in 0.0s (0 B/s)");
        assert_eq!(transfer_summary(300 << 20, Duration::from_secs(75)), "300.00 MiB in 1m 15s (4.00 MiB/s)");
    }
}
