//! The output of `--help` of every tool is pinned, so that a change of the interface is visible in the diff.
//!
//! After an intended change, run `PIN_HELP=1 cargo test -p tests --test it cli::help` and review the diff.

use std::fs;

use cache_tests::{Scratch, repository};

pub(crate) const COMMANDS: [&str; 17] = [
    "nar-pack",
    "narinfo-gen",
    "cache-sign",
    "cache-sign keygen",
    "cache-sign public-key",
    "cache-sign verify",
    "s3-push",
    "s3-push pin",
    "s3-push unpin",
    "s3-push delete",
    "s3-push collect",
    "s3-pull",
    "s3-pull pins",
    "s3-pull dead",
    "s3-pull check",
    "s3-pull stats",
    "cache-policy",
];

#[test]
fn help_matches_the_pinned_text() {
    let scratch = Scratch::new();
    for command in COMMANDS {
        let output = scratch.sh(&format!("{command} --help"));
        let help = output.ok() + "\n";
        assert_eq!(output.stderr, "", "{command} --help");
        let pinned = repository().join("tests/tests/it/cli/help").join(format!("{}.txt", command.replace(' ', "-")));
        if std::env::var_os("PIN_HELP").is_some() {
            fs::create_dir_all(pinned.parent().unwrap()).unwrap();
            fs::write(&pinned, &help).unwrap();
        }
        let wanted = fs::read_to_string(&pinned).unwrap_or_default();
        assert!(help == wanted, "{command} --help differs from {}:\n{help}", pinned.display());
    }
}

#[test]
fn help_has_examples_and_exit_statuses() {
    let scratch = Scratch::new();
    for tool in COMMANDS.iter().filter(|command| !command.contains(' ')) {
        let help = scratch.sh(&format!("{tool} --help")).ok();
        assert!(help.contains("Examples:") && help.contains("Exit status:"), "{tool}");
        // cache-policy prints documents of a few hundred bytes, so its help does not mention memory.
        assert!(help.contains("Memory:") || *tool == "cache-policy", "{tool}");
        assert!(help.lines().all(|line| line.len() <= 160), "{tool}: a line is too long");
        assert_eq!(scratch.sh(&format!("{tool} --version")).ok(), format!("{tool} {}", env!("CARGO_PKG_VERSION")));
    }
}

/// A summary is read on one screen.
#[test]
fn short_help_fits_40_lines() {
    let scratch = Scratch::new();
    for command in COMMANDS {
        let help = scratch.sh(&format!("COLUMNS=100 {command} -h")).ok();
        assert!(help.lines().count() <= 40, "{command} -h has {} lines", help.lines().count());
    }
}
