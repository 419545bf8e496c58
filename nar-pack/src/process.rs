//! The process conventions of every tool: `main`, the parsing of the command line, and messages on standard error. All
//! messages go through this module, so that each is one line that begins with the tool's name and reveals no key
//! ([`crate::redact`]). [`crate::error`] defines the text of an error and its exit status.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue};

use crate::drawn_line::write_above;
use crate::error::{Error, Result};
use crate::json_lines::error_line;
use crate::redact::{one_line, usage_message};

/// Whether errors are printed as JSON.
static PRINTS_JSON: AtomicBool = AtomicBool::new(false);

/// Runs a tool: parses its command line, calls `run`, prints the error if there is one, and returns the exit status.
pub fn main<C: clap::Parser>(tool: &str, run: impl FnOnce(&C) -> Result) -> ExitCode {
    main_with_args(tool, std::env::args_os(), run)
}

/// Runs a tool as [`main`] does, with the given arguments, the first of which is the name of the program.
pub fn main_with_args<C: clap::Parser>(
    tool: &str,
    args: impl IntoIterator<Item = OsString>,
    run: impl FnOnce(&C) -> Result,
) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    PRINTS_JSON.store(requests_json(&args), Ordering::Relaxed);
    let first = args.get(1).and_then(|arg| arg.to_str()).map(str::to_owned);
    let error = match parse_args::<C>(args) {
        // A panic has printed its own message, and must not end with a status that is not documented.
        Ok(cli) => match catch_unwind(AssertUnwindSafe(|| run(&cli))) {
            Ok(Ok(())) => return ExitCode::SUCCESS,
            Ok(Err(error)) => error,
            Err(_) => Error::panicked("main thread"),
        },
        Err(error) if !error.use_stderr() => return print_help(tool, &error),
        Err(error) => Error::usage(usage_error::<C>(&error)),
    };
    let error = if error.is_usage() {
        let hint = format!("run '{} --help' for usage", named_command::<C>(tool, first.as_deref()));
        // An error that has a hint keeps it.
        error.with_hint(hint)
    } else {
        error
    };
    if !error.is_broken_pipe() {
        print_error(tool, &error);
    }
    ExitCode::from(error.exit_status())
}

/// Starts a thread.
///
/// # Errors
/// Fails if the system starts no more threads.
pub fn start_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    thread::Builder::new().spawn(work).map_err(thread_error)
}

/// Returns the error of a thread that the system did not start.
#[must_use]
#[allow(clippy::needless_pass_by_value)] // for `map_err`
pub fn thread_error(error: io::Error) -> Error {
    Error::failed(format!("cannot start a thread: {error}"))
}

/// Parses the command line. Variables of the environment that are blank are ignored, as by Nix.
fn parse_args<C: clap::Parser>(args: Vec<OsString>) -> Result<C, clap::Error> {
    let mut command = without_blank_variables(C::command());
    let matches = command.try_get_matches_from_mut(args)?;
    C::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

fn without_blank_variables(command: clap::Command) -> clap::Command {
    let is_blank = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.to_string_lossy().trim().is_empty());
    let ignore_blank = |arg: clap::Arg| match arg.get_env() {
        Some(name) if is_blank(name) => arg.env(Resettable::Reset),
        _ => arg,
    };
    command.mut_args(ignore_blank).mut_subcommands(without_blank_variables)
}

/// Returns the variable from which an option got the value that an error is about.
fn variable_of<C: clap::Parser>(error: &clap::Error) -> Option<(String, String)> {
    let context = |kind| match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        _ => None,
    };
    let (option, value) = (context(ContextKind::InvalidArg)?, context(ContextKind::InvalidValue)?);
    let mut command = C::command();
    command.build();
    let mut args = command.get_arguments().chain(command.get_subcommands().flat_map(clap::Command::get_arguments));
    let arg = args.find(|arg| arg.to_string() == option)?;
    let name = arg.get_env()?.to_str()?.to_owned();
    let flag = format!("--{}", arg.get_long()?);
    let is_flag = |given: &str| given == flag || given.starts_with(&format!("{flag}="));
    let is_given = std::env::args_os().any(|given| given.to_str().is_some_and(is_flag));
    (!is_given && std::env::var(&name).is_ok_and(|found| found == value)).then_some((option, name))
}

/// Returns the tool, with its command if the first argument is the name of one.
fn named_command<C: clap::Parser>(tool: &str, first: Option<&str>) -> String {
    match first.filter(|name| C::command().find_subcommand(name).is_some()) {
        Some(name) => format!("{tool} {name}"),
        None => tool.to_owned(),
    }
}

/// Returns the usage error for a command of another tool.
#[must_use]
pub fn command_of_other_tool(command: &str, tool: &str, other_tool: &str) -> Error {
    Error::usage(format!("{command} is not a command of {tool}")).with_hint(format!("run '{other_tool} {command}'"))
}

/// Returns the usage error for a word before a URL that is no command.
#[must_use]
pub fn unknown_command(command: &str, tool: &str) -> Error {
    Error::usage(format!("{command} is not a command of {tool}"))
        .with_hint(format!("run '{tool} --help' for the commands"))
}

/// Returns whether an argument has the form of a command: only lower-case letters.
#[must_use]
pub fn is_word(argument: &str) -> bool {
    !argument.is_empty() && argument.bytes().all(|c| c.is_ascii_lowercase())
}

/// Returns the usage error for a command of this tool after an option.
#[must_use]
pub fn command_after_option(command: &str, tool: &str) -> Error {
    Error::usage(format!("{command} is a command, and must be the first argument"))
        .with_hint(format!("run '{tool} {command}', with the options after it"))
}

/// Replaces a command that stands for a flag by the flag: with the command `narinfo`, `s3-pull narinfo …` is
/// `s3-pull --narinfo …`. The first argument is the name of the program. A command of another tool, one of
/// `other_commands`, loses its arguments, so that the error is about the command and not about one of its options.
pub fn expand_flag_command(
    args: impl IntoIterator<Item = OsString>,
    commands: &[&str],
    other_commands: &[&str],
) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let is_one_of = |names: &[&str], arg: &OsString| names.iter().any(|name| arg == name);
    if let [_, help, command, ..] = args.as_slice()
        && help == "help"
    {
        if is_one_of(commands, command) {
            return vec![args.swap_remove(0), "--help".into()];
        }
        if is_one_of(other_commands, command) {
            args.remove(1);
        }
    }
    let Some(command) = args.get_mut(1) else { return args };
    if is_one_of(commands, command) {
        *command = format!("--{}", command.to_string_lossy()).into();
    } else if is_one_of(other_commands, command) && !Path::new(command).exists() {
        let is_json = requests_json(&args);
        args.truncate(2);
        args.extend(is_json.then(|| "--json".into()));
    }
    args
}

/// Returns whether the command line has `--json`. It is searched for before parsing, which may be what fails.
fn requests_json(args: &[OsString]) -> bool {
    args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json")
}

/// Prints a note or a warning of one line on standard error, after the tool's name. An error of standard error itself is
/// ignored.
pub fn print_message(tool: &str, message: impl Display) {
    write_stderr(&format!("{tool}: {}\n", one_line(&message.to_string())));
}

/// Prints an error on standard error: its message, and on a second line its hint. With `--json`, prints one object.
pub fn print_error(tool: &str, error: &Error) {
    let hint = error.hint().map(one_line);
    if PRINTS_JSON.load(Ordering::Relaxed) {
        return write_stderr(&format!("{}\n", error_line(tool, error, hint.as_deref())));
    }
    let hint = hint.map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
    write_stderr(&format!("{tool}: {error}\n{hint}"));
}

/// Writes the text with one call, so that the lines of processes that share a terminal are not interleaved.
fn write_stderr(text: &str) {
    let _ = write_above(|| io::stderr().write_all(text.as_bytes()).map(|()| text.len()));
}

fn print_help(tool: &str, error: &clap::Error) -> ExitCode {
    match error.print() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(141),
        Err(error) => {
            print_message(tool, format!("cannot write to standard output: {error}"));
            ExitCode::from(2)
        }
    }
}

/// Returns the first paragraph of clap's message: the cause, with the nearest name where clap knows one, but without the
/// usage.
fn usage_error<C: clap::Parser>(error: &clap::Error) -> String {
    let mut text = error.to_string();
    if let Some((option, variable)) = variable_of::<C>(error) {
        text = text.replacen(&format!("'{option}'"), &variable, 1);
    }
    let cause: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    usage_message(cause.join(" ").replace(" tip: ", "; ").trim_start_matches("error: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::panic)] // the subject of the test
    fn a_panic_ends_with_the_status_of_a_failed_operation() {
        #[derive(clap::Parser)]
        struct Cli {}
        let status = |run: fn(&Cli) -> Result| format!("{:?}", main_with_args("tool", ["tool".into()], run));
        assert_eq!(status(|_| panic!("on purpose")), format!("{:?}", ExitCode::from(2)));
        assert_eq!(status(|_| Ok(())), format!("{:?}", ExitCode::SUCCESS));
    }

    #[test]
    fn json_is_requested_before_the_arguments_that_are_no_options() {
        let requests = |args: &str| requests_json(&args.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(requests("s3-push --json --no-such-option") && requests("s3-pull check --json s3://x"));
        assert!(!requests("s3-push --js") && !requests("s3-push -- --json"));
    }

    #[test]
    fn only_a_first_argument_is_a_command() {
        let expand = |args: &str| {
            let args = expand_flag_command(args.split(' ').map(OsString::from), &["narinfo", "archive"], &["pin"]);
            args.join(OsStr::new(" ")).into_string().unwrap()
        };
        assert_eq!(expand("s3-pull narinfo --all x"), "s3-pull --narinfo --all x");
        assert_eq!(expand("s3-pull archive --stdin x"), "s3-pull --archive --stdin x");
        assert_eq!(expand("s3-pull pin --no-such-option --json x"), "s3-pull pin --json");
        assert_eq!(expand("s3-pull pin -- --json"), "s3-pull pin");
        assert_eq!(expand("s3-pull help pin"), "s3-pull pin");
        assert_eq!(expand("s3-pull help archive"), "s3-pull --help");
        assert_eq!(expand("s3-pull help dead"), "s3-pull help dead");
        for unchanged in ["s3-pull", "s3-pull dead x", "s3-pull x narinfo", "s3-pull --list x"] {
            assert_eq!(expand(unchanged), unchanged);
        }
    }
}
