//! Rules about layers: which crate and which module may use what. ARCHITECTURE.md gives the reasons.

use std::path::Path;

use cache_tests::repository;

use super::tidy::{dependencies, packages, read, sources, text};

/// The crates of one HTTP client and of the AWS SDK.
const CLIENTS: [&str; 7] =
    ["reqwest::", "aws_sdk_s3::", "aws_config::", "aws_runtime::", "aws_smithy_", "aws_credential_types::", "rustls::"];

/// HTTP clients that no crate may depend on directly. The tests serve HTTP with hyper-util.
const HTTP_CLIENTS: [&str; 8] = ["attohttpc", "curl", "hyper", "isahc", "minreq", "surf", "ureq", "awc"];

/// Source files of a crate or of a directory in it.
fn sources_below(dir: &str) -> Vec<std::path::PathBuf> {
    let dir = repository().join(dir);
    sources().into_iter().filter(|path| path.starts_with(&dir)).collect()
}

/// The lines of a file that are not comments, with their numbers.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = read(path);
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    lines.map(|(index, line)| (index + 1, line.to_owned())).collect()
}

/// Lines of these files that mention `what` and are not allowed to.
fn violations(dir: &str, is_violation: impl Fn(&Path, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for path in sources_below(dir) {
        let lines = code(&path).into_iter().filter(|(_, line)| is_violation(&path, line));
        found.extend(lines.map(|(number, line)| format!("{}:{number}: {}", path.display(), line.trim())));
    }
    found
}

/// Whether every `s3_push` of a line continues with `::` and one of `allowed`. The crate as a whole, renamed or in
/// braces, is not allowed.
fn uses_only(line: &str, allowed: &[&str]) -> bool {
    line.split("s3_push")
        .skip(1)
        .all(|rest| rest.strip_prefix("::").is_some_and(|rest| allowed.iter().any(|prefix| rest.starts_with(prefix))))
}

#[test]
fn a_renamed_crate_is_a_use_of_all_of_it() {
    for line in ["use s3_push as x;", "use {s3_push, std::fs};", "use s3_push::{remote, cli};", "s3_push::cli::Cli"] {
        assert!(!uses_only(line, &["remote::"]), "{line}");
    }
    assert!(uses_only("use s3_push::remote::progress::Verbosity;", &["remote::"]));
}

#[test]
fn pull_uses_only_the_remote_layer_of_push() {
    let found = violations("s3-pull/src", |path, line| {
        // The binary calls only its own library.
        !path.ends_with("main.rs") && !uses_only(line, &["remote::", "remote;", "remote as"])
    });
    assert!(found.is_empty(), "s3-pull may use s3_push::remote only:\n{}", found.join("\n"));
}

#[test]
fn policy_uses_only_the_location_of_push() {
    let found = violations("cache-policy/src", |_, line| !uses_only(line, &["remote::location"]));
    assert!(found.is_empty(), "cache-policy may use s3_push::remote::location only:\n{}", found.join("\n"));
}

#[test]
fn only_the_remote_layer_connects_to_a_server() {
    let remote = repository().join("s3-push/src/remote");
    for dir in ["nar-pack/src", "narinfo-gen/src", "cache-sign/src", "cache-policy/src", "s3-push/src", "s3-pull/src"] {
        let found = violations(dir, |path, line| {
            !path.starts_with(&remote) && CLIENTS.iter().any(|client| line.contains(client))
        });
        assert!(found.is_empty(), "only s3-push/src/remote may use the AWS SDK or HTTP:\n{}", found.join("\n"));
    }
}

#[test]
fn there_is_one_http_client() {
    let found = violations("s3-push/src", |path, line| line.contains("reqwest") && !path.ends_with("remote/http.rs"));
    assert!(found.is_empty(), "only remote/http.rs may use reqwest:\n{}", found.join("\n"));
    for package in packages() {
        let name = text(&package["name"]);
        let others: Vec<_> =
            dependencies(&package, true).into_iter().filter(|name| HTTP_CLIENTS.contains(&name.as_str())).collect();
        assert!(others.is_empty(), "{name} depends on {others:?}; the HTTP client is reqwest");
    }
}

#[test]
fn the_remote_layer_uses_no_module_above_it() {
    const ABOVE: [&str; 8] = [
        "crate::publish",
        "crate::collect",
        "crate::cli",
        "crate::mode",
        "crate::run",
        "crate::report",
        "crate::refusals",
        "crate::TOOL",
    ];
    let found = violations("s3-push/src/remote", |_, line| ABOVE.iter().any(|module| line.contains(module)));
    assert!(found.is_empty(), "s3-push/src/remote must not use the modules above it:\n{}", found.join("\n"));
}

#[test]
fn publishing_code_reads_no_flags() {
    // cli.rs is read once, in mode.rs; ObjectOptions and the compression settings are converted there.
    let found = violations("s3-push/src/publish", |_, line| line.contains("crate::cli::Cli"));
    let pull = ["closure", "fetch", "unpack", "staging", "streams"];
    let pull = violations("s3-pull/src", |path, line| {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        pull.iter().any(|name| stem.starts_with(name)) && line.contains("crate::cli::Cli")
    });
    assert!(
        found.is_empty() && pull.is_empty(),
        "flags are read in mode.rs only:\n{}{}",
        found.join("\n"),
        pull.join("\n")
    );
}
