//! Rules of the repository: its top level, dependencies between crates, and the files of each tool.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use cache_tests::repository;
use serde_json::Value;
use walkdir::WalkDir;

/// The tools, each of which may depend on those before it.
const TOOLS: [&str; 5] = ["nar-pack", "narinfo-gen", "cache-sign", "s3-push", "s3-pull"];

/// All directories with code.
const CODE: [&str; 8] =
    ["nar-pack", "narinfo-gen", "cache-sign", "s3-push", "s3-pull", "cache-policy", "xtask", "tests"];

/// Other files and directories at the top level.
const BESIDE: [&str; 15] = [
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "docs",
    "clippy.toml",
    "rustfmt.toml",
    "deny.toml",
    // Nix and GitHub find these two at the top level only.
    "flake.nix",
    "action.yml",
];

/// Crates for networking, by name or prefix of the name.
const NETWORK: [&str; 11] =
    ["aws-", "tokio", "reqwest", "futures", "hyper", "h2", "http", "rustls", "async-", "s3s", "tower"];

#[test]
fn top_level_is_the_list() {
    let found = top_level();
    let expected: BTreeSet<_> = CODE.iter().chain(&BESIDE).map(|&name| name.to_owned()).collect();
    let surplus: Vec<_> = found.difference(&expected).filter(|name| !name.starts_with('.')).collect();
    let missing: Vec<_> = expected.difference(&found).collect();
    assert!(surplus.is_empty(), "unexpected files at the top level: {surplus:?}");
    assert!(missing.is_empty(), "missing at the top level: {missing:?}");
}

#[test]
fn no_file_chooses_a_toolchain() {
    for dir in [""].iter().chain(&CODE) {
        for name in ["rust-toolchain", "rust-toolchain.toml"] {
            let found = repository().join(dir).join(name).exists();
            assert!(
                !found,
                "{dir}/{name} would make rustup download a toolchain; rust-version in Cargo.toml is sufficient"
            );
        }
    }
}

#[test]
fn every_member_is_known() {
    let members: BTreeSet<_> = packages().iter().map(|package| text(&package["name"])).collect();
    assert_eq!(members, CODE.iter().map(|&name| name.to_owned()).collect());
}

#[test]
fn only_push_and_pull_use_the_network() {
    for package in packages() {
        let name = text(&package["name"]);
        if ["s3-push", "s3-pull", "tests"].contains(&name.as_str()) {
            continue;
        }
        let network: Vec<_> = dependencies(&package, false).into_iter().filter(|name| is_network(name)).collect();
        assert!(network.is_empty(), "{name} depends on {network:?}; only s3-push and s3-pull may");
    }
}

#[test]
fn policy_and_format_tools_link_no_network() {
    for tool in ["nar-pack", "narinfo-gen", "cache-sign", "cache-policy", "xtask"] {
        let tree = cargo(&["tree", "-p", tool, "-e", "normal", "--offline", "--prefix", "none", "--format", "{p}"]);
        let network: BTreeSet<_> =
            tree.lines().filter_map(|line| line.split(' ').next()).filter(|name| is_network(name)).collect();
        assert!(network.is_empty(), "{tool} links {network:?}");
    }
}

#[test]
fn tools_depend_on_earlier_tools_only() {
    for package in packages() {
        let name = text(&package["name"]);
        let allowed: &[&str] = match name.as_str() {
            "tests" => &CODE,
            "cache-policy" => &TOOLS[..4],
            tool => &TOOLS[..TOOLS.iter().position(|&other| other == tool).unwrap_or(0)],
        };
        let siblings: Vec<_> =
            dependencies(&package, true).into_iter().filter(|name| CODE.contains(&name.as_str())).collect();
        let wrong: Vec<_> = siblings.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
        assert!(wrong.is_empty(), "{name} depends on {wrong:?}; the order is {TOOLS:?}");
    }
}

#[test]
fn no_module_has_a_generic_name() {
    const GRAB_BAGS: [&str; 9] =
        ["utils", "util", "common", "helpers", "helper", "manager", "misc", "shared", "utilities"];
    for path in sources() {
        let dir = path.parent().and_then(Path::file_name).unwrap_or_default();
        let stem = path.file_stem().unwrap_or_default();
        let bag = GRAB_BAGS.iter().find(|&&bag| stem == bag || dir == bag);
        assert!(bag.is_none(), "{}: the name {} does not describe the contents", path.display(), bag.unwrap_or(&""));
    }
}

#[test]
fn every_tool_is_a_library_a_command_line_and_a_thin_main() {
    for tool in TOOLS.iter().chain(&["cache-policy"]) {
        let src = repository().join(tool).join("src");
        for name in ["lib.rs", "cli.rs", "main.rs"] {
            assert!(src.join(name).is_file(), "{tool} lacks src/{name}");
        }
        let lines = read(&src.join("main.rs")).lines().count();
        assert!(lines <= 40, "{tool}/src/main.rs has {lines} lines; 40 is the limit");
    }
}

/// Help text, man pages and completions are generated from cli.rs alone.
#[test]
fn command_lines_are_clap_only() {
    const ALLOWED: [&str; 3] = ["std::", "clap::", "nar_pack::option_values::"];
    for tool in TOOLS.iter().chain(&["cache-policy"]) {
        let source = read(&repository().join(tool).join("src/cli.rs"));
        for import in source.lines().filter_map(|line| line.trim().strip_prefix("use ")) {
            let sibling = import.contains("::cli::");
            // The value of an option may be a type of the tool's own library.
            let own = import.starts_with("crate::");
            let fine = ALLOWED.iter().any(|prefix| import.starts_with(prefix)) || sibling || own;
            assert!(fine, "{tool}/src/cli.rs imports {import}");
        }
    }
}

fn is_network(name: &str) -> bool {
    NETWORK.iter().any(|prefix| name.starts_with(prefix))
}

/// Returns what git tracks or would track; without git, all files except build output.
fn top_level() -> BTreeSet<String> {
    let args = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(args).current_dir(repository()).output();
    match output {
        Ok(output) if output.status.success() => {
            let listing = String::from_utf8(output.stdout).unwrap();
            // A file that is about to be deleted is still listed.
            let present = listing.lines().filter(|line| repository().join(line).exists());
            present.filter_map(|line| line.split('/').next()).map(str::to_owned).collect()
        }
        _ => {
            let entries = fs::read_dir(repository()).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name != "target").collect()
        }
    }
}

/// Returns all Rust files of the repository.
pub(crate) fn sources() -> Vec<std::path::PathBuf> {
    let files = CODE.iter().flat_map(|dir| WalkDir::new(repository().join(dir)));
    let files = files.map(|entry| entry.unwrap().into_path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(super) fn packages() -> Vec<Value> {
    let metadata = cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Returns the names of a package's dependencies, including those of its tests on request.
pub(super) fn dependencies(package: &Value, with_tests: bool) -> Vec<String> {
    let dependencies = package["dependencies"].as_array().unwrap().iter();
    let dependencies = dependencies.filter(|dependency| with_tests || dependency["kind"] != "dev");
    dependencies.map(|dependency| text(&dependency["name"])).collect()
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn cargo(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(args).current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
