//! Man pages and completions, which the example `command-line-docs` writes.

use std::collections::BTreeSet;
use std::fs;

use cache_tests::{Scratch, bin_dir};

use super::is_installed;
use crate::cli::help::COMMANDS;

const TOOLS: [&str; 6] = ["nar-pack", "narinfo-gen", "cache-sign", "s3-push", "s3-pull", "cache-policy"];

/// Writes them to `share` in a scratch directory.
fn write_docs() -> Scratch {
    let scratch = Scratch::new();
    let program = bin_dir().join("examples/command-line-docs");
    assert_eq!(scratch.sh(&format!("'{}' share", program.display())).ok(), "");
    scratch
}

fn file_names(scratch: &Scratch, dir: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(scratch.path().join(dir)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn every_tool_and_command_has_a_man_page() {
    let scratch = write_docs();
    let expected = COMMANDS.iter().map(|command| format!("{}.1", command.replace(' ', "-"))).collect();
    assert_eq!(file_names(&scratch, "share/man/man1"), expected);
}

#[test]
fn man_pages_have_no_errors() {
    let scratch = write_docs();
    if is_installed("mandoc", "mandoc") {
        assert_eq!(scratch.sh("mandoc -T lint -W error share/man/man1/*.1").ok(), "");
    }
    if is_installed("groff", "groff-base") {
        let output = scratch.sh("groff -man -ww -z -K utf8 -T utf8 share/man/man1/*.1");
        assert_eq!((output.ok(), output.stderr), (String::new(), String::new()));
    }
}

#[test]
fn man_pages_show_sections_and_examples_as_they_are() {
    let scratch = write_docs();
    if !is_installed("mandoc", "mandoc") {
        return;
    }
    let page = |name: &str| scratch.sh(&format!("mandoc -T utf8 -O width=110 share/man/man1/{name}.1 | col -bx")).ok();
    let push = page("s3-push");
    for heading in ["SYNOPSIS", "DESCRIPTION", "NETWORK", "EXAMPLES", "MEMORY", "EXIT STATUS", "SEE ALSO"] {
        assert!(push.lines().any(|line| line == heading), "no {heading} in\n{push}");
    }
    for line in ["| narinfo-gen --archive | cache-sign -k key.sec | s3-push s3://my-cache", "s3-push <COMMAND>"] {
        assert!(push.lines().any(|found| found.trim() == line), "no line {line:?} in\n{push}");
    }
    assert!(push.contains("s3-push-collect(1)") && push.contains("s3-pull(1)"), "{push}");
    let collect = page("s3-push-collect");
    for line in [
        "STANDARD OUTPUT",
        "       About 400 bytes per path of the cache.",
        "              Set the store directory of the paths",
    ] {
        assert!(collect.lines().any(|found| found == line), "no line {line:?} in\n{collect}");
    }
    assert!(collect.contains("s3-push-collect - Delete the paths"), "{collect}");
    assert!(collect.lines().any(|line| line.trim().starts_with("0 success")), "{collect}");
}

#[test]
fn every_tool_has_completions_that_each_shell_parses() {
    let scratch = write_docs();
    for (shell, package, dir, name) in [
        ("bash", "bash", "bash-completion/completions", "TOOL"),
        ("zsh", "zsh", "zsh/site-functions", "_TOOL"),
        ("fish", "fish", "fish/vendor_completions.d", "TOOL.fish"),
    ] {
        let dir = format!("share/{dir}");
        let expected = TOOLS.iter().map(|tool| name.replace("TOOL", tool)).collect();
        assert_eq!(file_names(&scratch, &dir), expected, "{shell}");
        if is_installed(shell, package) {
            assert_eq!(scratch.sh(&format!("for file in {dir}/*; do {shell} -n $file; done")).stderr, "", "{shell}");
        }
    }
}

/// Returns what bash completes after these words.
fn complete(scratch: &Scratch, words: &[&str]) -> Vec<String> {
    let (tool, word, previous) = (words[0], words[words.len() - 1], words[words.len().saturating_sub(2)]);
    let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "set +eu; source share/bash-completion/completions/{tool}; COMP_WORDS=({}); COMP_CWORD={}; \
         function=$(complete -p {tool} | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
         $function {tool} '{word}' '{previous}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        quoted.join(" "),
        words.len() - 1,
    );
    scratch.sh(&script).lines()
}

#[test]
fn bash_completes_commands_options_files_and_the_cache_of_the_environment() {
    let mut scratch = write_docs();
    let cache = "s3://my-cache?region=eu-west-2";
    let commands = complete(&scratch, &["s3-push", "co"]);
    assert_eq!(commands, ["collect"]);
    assert_eq!(complete(&scratch, &["s3-pull", "--ro"]), ["--root"]);
    assert!(complete(&scratch, &["s3-pull", "dead", "--older"]).contains(&"--older-than".to_owned()));
    assert_eq!(complete(&scratch, &["cache-sign", "public-key", "--ssh"]), ["--ssh-agent"]);
    assert_eq!(complete(&scratch, &["s3-pull", "--root", "sha"]), ["share"]);
    assert_eq!(complete(&scratch, &["s3-push", "-c", "zs"]), ["zstd"]);
    scratch.env("NIX_S3_CACHE", cache);
    // Quoted for the shell.
    assert_eq!(complete(&scratch, &["s3-pull", "-r", "s3"]), [r"s3://my-cache\?region=eu-west-2"]);
    assert_eq!(complete(&scratch, &["s3-push", "co"]), ["collect"]);
    assert_eq!(complete(&scratch, &["s3-pull", "--ro"]), ["--root"]);
}

#[test]
fn zsh_completes_the_cache_of_the_environment_for_arguments_only() {
    let scratch = write_docs();
    let script = fs::read_to_string(scratch.path().join("share/zsh/site-functions/_s3-pull")).unwrap();
    let uses: Vec<_> = script.lines().filter(|line| line.contains(":_nix_s3_cache")).collect();
    assert!(!uses.is_empty() && uses.iter().all(|line| line.contains("targets -- ")), "{uses:?}");
}

#[test]
fn fish_completes_the_cache_of_the_environment() {
    let mut scratch = write_docs();
    if !is_installed("fish", "fish") {
        return;
    }
    scratch.env("NIX_S3_CACHE", "s3://my-cache?region=eu-west-2");
    let script = "source share/fish/vendor_completions.d/s3-pull.fish; complete -C 's3-pull '";
    let found = scratch.sh(&format!("fish --no-config -c \"{script}\"")).ok();
    assert!(found.lines().any(|line| line.starts_with("s3://my-cache?region=eu-west-2\t")), "{found}");
    assert!(found.lines().any(|line| line.starts_with("dead\t")), "{found}");
}
