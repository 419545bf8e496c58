//! A tool as one stage of a pipeline: standard streams, failures, and exit codes.
//!
//! Every tool's `main` is [`main`] with the tool's own `run`. A failure is one line on standard error and the exit
//! code that the tools promise: 1 when the answer is no or data was refused, 2 when an operation failed, 141 when the
//! reader of standard output went away.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

/// Size of the buffers on standard input and output, in bytes. Large, because a NAR is many small fields.
pub const BUFFER: usize = 256 * 1024;

/// Bytes that are written at once: while a pipe takes them, its reader waits.
const PIECE: usize = 128 * 1024;

/// Digits of base 64 of a key of 32 bytes, and of one of 64, without what pads them.
const KEY_DIGITS: usize = 43;
const PAIR_DIGITS: usize = 86;
/// Digits on a line of the same, as `base64` and `openssl` wrap them.
const WRAPPED_DIGITS: [usize; 2] = [76, 64];

/// Standard input: buffered, unlocked, and never a terminal.
pub type Input = BufReader<File>;

/// Why a tool stops: an exit code and one line.
#[derive(Debug, Clone)]
pub struct Failure {
    kind: Kind,
    message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Refused,
    Failed,
    ReaderGone,
}

/// The result of a tool or of one of its steps.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// The answer is no, or data was refused: exit code 1.
    pub fn refused(message: impl Display) -> Self {
        Self { kind: Kind::Refused, message: message.to_string() }
    }

    /// Wrong usage, or an operation that failed: exit code 2.
    pub fn failed(message: impl Display) -> Self {
        Self { kind: Kind::Failed, message: message.to_string() }
    }

    /// The same failure, with what the tool was doing put before it.
    #[must_use]
    pub fn doing(mut self, what: impl Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Whether this is the refusal of data rather than a failed operation.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        self.kind == Kind::Refused
    }

    /// Exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Refused => 1,
            Kind::Failed => 2,
            Kind::ReaderGone => 141,
        }
    }

    /// The line without the tool's name.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&one_line(&self.message))
    }
}

impl std::error::Error for Failure {}

/// Malformed and truncated data is refused; any other I/O error is a failed operation. A [`Failure`] that travelled
/// inside an `io::Error` (through a `Read` or `Write` of a library) comes out as itself.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if let Some(failure) = error.get_ref().and_then(|inner| inner.downcast_ref::<Failure>()) {
            return failure.clone();
        }
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Self::refused(error),
            _ => Self::failed(error),
        }
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        Self::other(failure)
    }
}

/// Puts what was being done before the cause of an error.
pub trait Doing<T> {
    /// See [`Failure::doing`]; the text is only made when there is an error.
    fn doing<D: Display>(self, what: impl FnOnce() -> D) -> Outcome<T>;
}

impl<T, E: Into<Failure>> Doing<T> for Result<T, E> {
    fn doing<D: Display>(self, what: impl FnOnce() -> D) -> Outcome<T> {
        self.map_err(|error| error.into().doing(what()))
    }
}

/// Runs a tool: parses its command line, runs it, and turns the result into one line and an exit code.
pub fn main<C: clap::Parser>(tool: &str, run: impl FnOnce(&C) -> Outcome) -> ExitCode {
    let failure = match C::try_parse() {
        Ok(cli) => match run(&cli) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(failure) => failure,
        },
        Err(error) if !error.use_stderr() => return print_help(&error),
        Err(error) => Failure::failed(format!("{} (try --help)", usage_error(&error))),
    };
    if failure.kind != Kind::ReaderGone {
        say(tool, &failure);
    }
    ExitCode::from(failure.exit_code())
}

/// One line on standard error, after the tool's name; it does not matter whether anyone reads it.
pub fn say(tool: &str, message: impl Display) {
    // Made first and written at once, so that the lines of two stages do not mix.
    let line = format!("{tool}: {}\n", one_line(&message.to_string()));
    let _ = io::stderr().write_all(line.as_bytes());
}

fn print_help(error: &clap::Error) -> ExitCode {
    match error.print() {
        Ok(()) => ExitCode::SUCCESS,
        Err(gone) if gone.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(141),
        Err(_) => ExitCode::from(2),
    }
}

/// The first paragraph of clap's message: the cause, with the nearest name where clap knows one, but not the usage.
fn usage_error(error: &clap::Error) -> String {
    let text = error.to_string();
    let cause: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let cause = cause.join(" ").replace(" tip: ", "; ").trim_start_matches("error: ").to_owned();
    // What pads a key is taken for the value of a flag that is not there.
    without_keys(&cause, has_both_cases)
}

/// Whether there are letters of both cases, as there are in any key.
#[must_use]
pub fn has_both_cases(digits: &str) -> bool {
    digits.contains(|c: char| c.is_ascii_uppercase()) && digits.contains(|c: char| c.is_ascii_lowercase())
}

/// What may be shown of a message. Control characters of hostile input (a newline in a file name, an escape sequence)
/// must not reach the terminal, nor a key that was given in the place of something else.
fn one_line(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    without_keys(&text, |digits| {
        digits.len() == PAIR_DIGITS || (WRAPPED_DIGITS.contains(&digits.len()) && has_both_cases(digits))
    })
}

/// Replaces what looks like a key: base 64 of 32 or 64 bytes, padded as everybody writes it. Hashes in base 16 and base
/// 32 and paths are shorter, or nothing pads them; of as many digits that nothing pads, `bare` says whether they are one.
fn without_keys(text: &str, bare: impl Fn(&str) -> bool) -> String {
    let is_digit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/');
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let (digits, after) = rest.split_at(rest.find(|c| !is_digit(c)).unwrap_or(rest.len()));
        let next = after.trim_start_matches('=');
        let padded = next.len() < after.len();
        if digits.len() >= KEY_DIGITS && (padded || bare(digits)) {
            shown.push_str("[a key?]");
        } else {
            shown.push_str(digits);
            shown.push_str(&after[..after.len() - next.len()]);
        }
        let (between, more) = next.split_at(next.find(is_digit).unwrap_or(next.len()));
        shown.push_str(between);
        rest = more;
    }
    shown
}

/// Standard input, which must not be a terminal: `wanted` says what to pipe in.
pub fn stdin(wanted: &str) -> Outcome<Input> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Failure::failed(format!("standard input is a terminal; pipe in {wanted}")));
    }
    let fd = stdin.as_fd().try_clone_to_owned().map_err(Failure::from).doing(|| "reading standard input")?;
    widen_pipe(&fd);
    Ok(BufReader::with_capacity(BUFFER, File::from(fd)))
}

/// Buffered standard output on the raw descriptor; binary data is not for a terminal.
pub fn stdout(binary: Option<&str>) -> Outcome<Output> {
    let stdout = io::stdout();
    if let Some(what) = binary.filter(|_| stdout.is_terminal()) {
        return Err(Failure::failed(format!("standard output is a terminal; redirect {what} to a file or a pipe")));
    }
    let fd = stdout.as_fd().try_clone_to_owned().map_err(Failure::from).doing(|| "writing standard output")?;
    widen_pipe(&fd);
    Ok(Output { inner: BufWriter::with_capacity(BUFFER, Raw(File::from(fd))) })
}

/// A pipe of 1 MiB lets two stages work at the same time; where the system refuses, the default size works too.
fn widen_pipe(fd: &impl AsFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(fd, 1 << 20);
}

/// Standard output. Errors are only sure to be seen by [`Output::finish`], which a stage calls when its stream is whole.
#[derive(Debug)]
pub struct Output {
    inner: BufWriter<Raw>,
}

impl Output {
    /// Writes out what is buffered.
    pub fn finish(mut self) -> Outcome {
        self.inner.flush()?;
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.inner.write(buf)
    }

    fn write_all(&mut self, buf: &[u8]) -> io::Result<()> {
        self.inner.write_all(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The descriptor itself; names the error when the reader went away.
#[derive(Debug)]
struct Raw(File);

impl Write for Raw {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(&buf[..buf.len().min(PIECE)]).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => {
                Failure { kind: Kind::ReaderGone, message: "the reader of standard output went away".into() }.into()
            }
            io::ErrorKind::Interrupted => error,
            _ => Failure::failed(format!("writing standard output: {error}")).into(),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads text of at most `limit` bytes to its end; `what` names it in errors.
pub fn read_text(input: &mut impl Read, limit: u64, what: &str) -> Outcome<String> {
    let mut text = Vec::new();
    input.take(limit + 1).read_to_end(&mut text).map_err(Failure::from).doing(|| format!("reading {what}"))?;
    if text.len() as u64 > limit {
        return Err(Failure::refused(format!("{what} is larger than {limit} bytes")));
    }
    utf8(text).doing(|| what.to_owned())
}

/// Text out of bytes.
///
/// # Errors
/// Refuses what is not UTF-8, and says in which line.
pub fn utf8(bytes: Vec<u8>) -> Outcome<String> {
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.split(|&byte| byte == b'\n').count();
        Failure::refused(format!("line {line}: not UTF-8 text"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_a_trip_through_io_error() {
        let failure = Failure::refused("bad hash").doing("reading x");
        let back = Failure::from(io::Error::from(failure));
        assert_eq!((back.exit_code(), back.message()), (1, "reading x: bad hash"));
    }

    #[test]
    fn what_is_not_text_is_refused_with_its_line() {
        assert_eq!(utf8(b"a: b\nc: d\xff\n".to_vec()).unwrap_err().message(), "line 2: not UTF-8 text");
        assert_eq!(utf8(b"a\n".to_vec()).unwrap(), "a\n");
    }

    #[test]
    fn malformed_data_is_refused_and_other_errors_fail() {
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::UnexpectedEof)).exit_code(), 1);
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::PermissionDenied)).exit_code(), 2);
    }

    #[test]
    fn what_looks_like_a_key_is_not_shown() {
        let (key, pair) = ("Ab3/".repeat(10) + "xY+=", "Ab3/".repeat(21) + "xY==");
        let bare = pair.trim_end_matches('=');
        for (text, shown) in [
            (format!("unexpected argument 'k-1:{pair}' found"), "unexpected argument 'k-1:[a key?]' found"),
            (pair.clone(), "[a key?]"),
            (format!("--seed={key}: --seed{key}"), "--seed=[a key?]: --[a key?]"),
            (format!("a:{bare} b:{pair}{pair}!"), "a:[a key?] b:[a key?][a key?]!"),
            (format!("ü{key}ü"), "ü[a key?]ü"),
            (format!("k-1:{}\n{}", &pair[..76], &pair[76..]), "k-1:[a key?]\u{fffd}Ab3/Ab3/xY=="),
        ] {
            assert_eq!(one_line(&text), shown);
        }
        for text in [
            "/nix/store/1b9p07z77phvv2hf6gm9f28syp39f1ag-name: sha256:1b9p07z77phvv2hf6gm9f28syp39f1ag1b9p07z77phvv2hf6gm9",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 = x==",
            "/a/very/long/path/without/any/dot/or/dash/in/it/that/goes/on/and/on/and/on/for/a/while/longer/x",
            "",
        ] {
            assert_eq!(one_line(text), text);
        }
    }

    #[test]
    fn hostile_text_stays_on_one_line() {
        assert_eq!(one_line("a\nb\x1b[2J"), "a\u{fffd}b\u{fffd}[2J");
    }
}
