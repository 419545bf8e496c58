//! Runs one [`Mode`]: prints a document, a page or the lines of nix.conf to standard output, or edits a nix.conf.

use std::io::Write as _;
use std::path::Path;

use cache_sign::nix_conf::invalid_line_error;
use nar_pack::error::{Error, Result};
use nar_pack::process;
use nar_pack::stdio;
use serde::Serialize;

use crate::cli::Cli;
use crate::infrastructure::{to_cloudformation, to_tofu};
use crate::landing_page::landing_page;
use crate::mode::{Mode, NixConfAction};
use crate::nix_conf::ClientConfig;

const TOOL: &str = "cache-policy";

/// Runs `cache-policy`.
///
/// # Errors
/// See the exit statuses in [`nar_pack::error`].
pub fn run(cli: &Cli) -> Result {
    match Mode::from_cli(cli)? {
        Mode::Policy(policy) => print_json(&policy),
        Mode::Lifecycle(lifecycle) => print_json(&lifecycle),
        Mode::Tofu(resource) => print(to_tofu(&resource)?.as_bytes()),
        Mode::CloudFormation(resource) => print_json(&to_cloudformation(&resource)?),
        Mode::Cors(cors) => print_json(&cors),
        Mode::OidcTrust(trust) => print_json(&trust),
        Mode::CheckUrl(report) => {
            print(report.to_string().as_bytes())?;
            report.require_portable()
        }
        Mode::LandingPage(config) => print(landing_page(&config).as_bytes()),
        Mode::NixConf { config, action: NixConfAction::Print } => print(config.lines().as_bytes()),
        Mode::NixConf { config, action: NixConfAction::Write(file) } => write_nix_conf(&config, &file),
        Mode::NixConf { config, action: NixConfAction::Remove(file) } => remove_from_nix_conf(&config, &file),
    }
}

fn write_nix_conf(config: &ClientConfig, file: &Path) -> Result {
    print_result(file, config.write(file)?);
    for position in config.inspect(file)?.invalid_lines {
        let error = invalid_line_error(&position);
        process::print_message(TOOL, format!("warning: {error}; Nix rejects the whole file because of this line"));
    }
    Ok(())
}

fn remove_from_nix_conf(config: &ClientConfig, file: &Path) -> Result {
    print_result(file, config.remove(file)?);
    let warning = match config.inspect(file).map(|conf| conf.is_cache_configured) {
        Ok(false) => return Ok(()),
        Ok(true) => "the cache is still configured by lines that cache-policy did not write".to_owned(),
        // The lines have been removed, even if the rest of the file cannot be parsed.
        Err(error) => error.to_string(),
    };
    process::print_message(TOOL, format!("warning: {}: {warning}", file.display()));
    Ok(())
}

fn print_result(file: &Path, is_changed: bool) {
    let result = if is_changed { "updated" } else { "unchanged" };
    process::print_message(TOOL, format!("{}: {result}", file.display()));
}

/// Prints a document and a newline.
fn print_json(document: &impl Serialize) -> Result {
    let mut text = serde_json::to_vec_pretty(document).map_err(Error::failed)?;
    text.push(b'\n');
    print(&text)
}

fn print(text: &[u8]) -> Result {
    let mut out = stdio::stdout(None)?;
    out.write_all(text)?;
    out.finish()
}
