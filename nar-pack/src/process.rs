//! A tool as a process: `main`, messages on standard error, and what must not appear in them.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::ExitCode;

use crate::error::{Error, Result};

/// Digits of base 64 of a key of 32 bytes, and of one of 64, without what pads them.
const KEY_DIGITS: usize = 43;
const PAIR_DIGITS: usize = 86;
/// Digits on a line of the same, as `base64` and `openssl` wrap them.
const WRAPPED_DIGITS: [usize; 2] = [76, 64];

/// Runs a tool: parses its command line, calls `run`, prints the error if there is one, and returns the exit code.
pub fn main<C: clap::Parser>(tool: &str, run: impl FnOnce(&C) -> Result) -> ExitCode {
    let error = match C::try_parse() {
        Ok(cli) => match run(&cli) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => error,
        },
        Err(error) if !error.use_stderr() => return print_help(&error),
        Err(error) => Error::usage(usage_error(&error)),
    };
    if !error.is_broken_pipe() {
        print_error(tool, &error);
    }
    ExitCode::from(error.exit_code())
}

/// Prints a message of one line on standard error, after the tool's name. A failure to write it is ignored.
pub fn print_message(tool: &str, message: impl Display) {
    write_stderr(&format!("{tool}: {}\n", one_line(&message.to_string())));
}

/// Prints an error on standard error: its message, and on a second line its hint.
pub fn print_error(tool: &str, error: &Error) {
    let hint = match error.hint() {
        Some(hint) => format!("hint: {}\n", one_line(hint)),
        None if error.is_usage() => format!("hint: run '{tool} --help' for usage\n"),
        None => String::new(),
    };
    write_stderr(&format!("{tool}: {error}\n{hint}"));
}

/// Writes the whole text in one call, so that the lines of two processes on one terminal do not mix.
fn write_stderr(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
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
pub(crate) fn one_line(text: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

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
