//! What is delivered besides the programs: man pages, completions, packages, systemd units, the GitHub action, and the
//! modules for NixOS.

mod command_line_docs;
mod github_action;
mod nix_expressions;
mod packages;
mod queue;
mod units;

use std::process::{Command, Stdio};

use cache_tests::report_missing;

/// Returns whether a program is installed. If not, prints a line, and panics if `CI=true`.
fn is_installed(program: &str, package: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", "command -v \"$0\"", program]).stdin(Stdio::null()).stdout(Stdio::null());
    let found = command.status().is_ok_and(|status| status.success());
    if !found {
        report_missing(program, &format!("`apt-get install {package}` gets it on Debian"));
    }
    found
}
