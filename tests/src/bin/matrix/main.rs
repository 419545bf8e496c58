//! `matrix`: installs S3 servers from package registries, runs our tools and Nix with each, and writes what it found to
//! docs/compatibility.md.
//!
//! `cargo xtask matrix` installs MinIO and versitygw and builds everything.

// Its report goes to standard output.
#![allow(clippy::print_stdout)]

mod debian_testing;
mod fixture;
mod install;
mod known;
mod outcome;
mod report;
mod rows;
mod servers;
mod trial;

use std::fs;
use std::io::Write as _;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Instant, SystemTime};

use bytesize::ByteSize;
use clap::Parser;

use crate::fixture::Fixture;
use crate::outcome::{Outcome, Verdict};
use crate::report::{Column, Report};
use crate::rows::{Client, ROWS, Row};
use crate::servers::{SERVERS, Server};
use crate::trial::Trial;

/// Install S3 servers from package registries, run our tools and Nix with each, and print what works
///
/// A run with all servers and all rows also writes docs/compatibility.md and docs/compatibility.json.
#[derive(Parser)]
#[command(name = "cargo xtask matrix")]
struct Cli {
    /// Run only this server; can be repeated
    #[arg(long = "server", value_name = "NAME", value_parser = server_names())]
    servers: Vec<String>,
    /// Run only the rows of this client; can be repeated
    #[arg(long = "client", value_name = "CLIENT")]
    clients: Vec<Client>,
    /// Run only this row; can be repeated
    #[arg(long = "row", value_name = "NAME", value_parser = row_names())]
    rows: Vec<String>,
    /// Skip rows that take more than a few seconds
    #[arg(long)]
    quick: bool,
    /// Size of the object in the row about large objects
    #[arg(long, value_name = "SIZE", default_value = "100MiB")]
    large: ByteSize,
    /// Write the table as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table as HTML
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the table as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

fn server_names() -> Vec<&'static str> {
    SERVERS.iter().map(|server| server.name).collect()
}

fn row_names() -> Vec<&'static str> {
    ROWS.iter().map(|row| row.id).collect()
}

impl Cli {
    fn servers(&self) -> Vec<&'static Server> {
        let is_selected = |name: &str| self.servers.is_empty() || self.servers.iter().any(|server| server == name);
        SERVERS.iter().filter(|server| is_selected(server.name)).collect()
    }

    fn rows(&self) -> Vec<&'static Row> {
        let is_selected = |row: &&Row| {
            (self.rows.is_empty() || self.rows.iter().any(|name| name == row.id))
                && (self.clients.is_empty() || self.clients.contains(&row.client))
                && (row.is_quick || !self.quick)
        };
        ROWS.iter().filter(is_selected).collect()
    }
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("matrix: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), String> {
    // A panic of the test library is the failure of a row, which is reported with it.
    panic::set_hook(Box::new(|_| {}));
    let fixture = Fixture::prepare()?;
    let (servers, rows) = (cli.servers(), cli.rows());
    let is_whole = servers.len() == SERVERS.len() && rows.len() == ROWS.len();
    let (mut columns, mut missing) = (Vec::new(), Vec::new());
    for server in servers {
        match run_server(server, &rows, &fixture, cli.large.as_u64()) {
            Ok(column) => columns.push(column),
            Err(error) => {
                println!("{}: NOT RUN: {error}", server.name);
                missing.push((server, error));
            }
        }
    }
    let asks_nix_testing = rows.iter().any(|row| row.client == Client::NixTesting);
    let nix_testing = asks_nix_testing.then(debian_testing::nix).and_then(Result::ok).map(|nix| nix.version.clone());
    let report = Report {
        date: today(),
        nix: nix_version(),
        nix_testing,
        large_size: cli.large.as_u64(),
        rows,
        columns,
        missing,
    };
    write_report(cli, &report, is_whole)?;
    summarize(&report)
}

fn run_server(server: &'static Server, rows: &[&'static Row], fixture: &Fixture, large: u64) -> Result<Column, String> {
    let start = Instant::now();
    let running = panic::catch_unwind(server.start).unwrap_or_else(|error| Err(panic_message(&*error)))?;
    println!("{} {} (started after {:.1} s)", server.name, running.version, start.elapsed().as_secs_f32());
    let mut outcomes = Vec::new();
    for row in rows {
        print!("  {:<24}", row.id);
        // Standard output may be a pipe that is closed.
        drop(std::io::stdout().flush());
        let start = Instant::now();
        let trial = Trial::start(&running, fixture, large)?;
        let result = panic::catch_unwind(AssertUnwindSafe(|| (row.run)(&trial)));
        let result = result.unwrap_or_else(|error| Err(panic_message(&*error)));
        let outcome = result.unwrap_or_else(|error| Outcome::fails(trial.stable(&error)));
        println!("{:>6.1} s  {:<14} {}", start.elapsed().as_secs_f32(), outcome.verdict.name(), outcome.note);
        outcomes.push(outcome);
    }
    Ok(Column { server, version: running.version.clone(), outcomes })
}

fn panic_message(error: &(dyn std::any::Any + Send)) -> String {
    let text = error.downcast_ref::<String>().map(String::as_str).or_else(|| error.downcast_ref::<&str>().copied());
    text.unwrap_or("panicked").to_owned()
}

fn write_report(cli: &Cli, report: &Report, is_whole: bool) -> Result<(), String> {
    let docs = cache_tests::repository().join("docs");
    let default = |name: &str| is_whole.then(|| docs.join(name));
    let outputs = [
        (cli.markdown.clone().or_else(|| default("compatibility.md")), report.markdown()),
        (cli.json.clone().or_else(|| default("compatibility.json")), report.json()),
        (cli.html.clone(), report.html()),
    ];
    for (file, text) in outputs {
        if let Some(file) = file {
            write(&file, &text)?;
        }
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    fs::write(file, text).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    println!("wrote {}", file.display());
    Ok(())
}

/// Prints the totals; a failure and a server that did not start are errors.
fn summarize(report: &Report) -> Result<(), String> {
    let count = |verdict| report.count(verdict);
    println!(
        "matrix: {} ok, {} worked around, {} not supported by the server, {} not run, {} failed",
        count(Verdict::Ok),
        count(Verdict::WorksAround),
        count(Verdict::NotSupported),
        count(Verdict::NotRun),
        count(Verdict::Fails)
    );
    if !report.missing.is_empty() {
        let names: Vec<_> = report.missing.iter().map(|(server, _)| server.name).collect();
        return Err(format!("not run: {}", names.join(", ")));
    }
    match count(Verdict::Fails) {
        0 => Ok(()),
        failed => Err(format!("{failed} failed")),
    }
}

/// Returns the day in UTC.
fn today() -> String {
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    time.split('T').next().unwrap_or_default().to_owned()
}

fn nix_version() -> Option<String> {
    let output = Command::new("nix-store").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().last().filter(|_| output.status.success()).map(str::to_owned)
}
