//! Queries to the `nix` command of the host. A host without Nix, or whose Nix does not know a path, is not an error: the
//! caller then falls back to a scan.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::store_path::{StoreDir, StorePath};

/// The `nix` command found in `PATH`, and the store that it queries.
#[derive(Debug)]
pub(super) struct InstalledNix {
    pub(super) store_dir: StoreDir,
    /// Root of the store, if it is not at its own location.
    pub(super) root: Option<PathBuf>,
}

/// The answer to a query for path info.
pub(super) enum Answer {
    /// The JSON that Nix printed.
    PathInfo(Vec<u8>),
    /// Nix does not know one of the paths.
    UnknownPath,
    /// The command cannot be run.
    NotInstalled,
}

impl InstalledNix {
    /// Runs `nix path-info --json` for the paths, or for their closure. Either all of them are derivations or none is: before
    /// Nix 2.15, a derivation stands for its outputs unless the option says otherwise.
    pub(super) fn path_info(&self, paths: &[StorePath], recursive: bool) -> Answer {
        let mut nix = self.command("nix-command");
        nix.args(["path-info", "--json"]);
        if recursive {
            nix.arg("--recursive");
        }
        if paths.iter().all(StorePath::is_derivation) {
            nix.arg("--derivation");
        }
        nix.args(paths.iter().map(|path| self.store_dir.join(path)));
        match nix.output() {
            Ok(output) if output.status.success() => Answer::PathInfo(output.stdout),
            Ok(_) => Answer::UnknownPath,
            Err(_) => Answer::NotInstalled,
        }
    }

    /// Returns what `nix store build-trace info --json`, or `nix realisation info --json` before Nix 2.35, prints for
    /// the outputs of a derivation.
    pub(super) fn realisations(&self, derivation: &StorePath) -> Option<String> {
        let derivation = self.store_dir.join(derivation);
        let all_outputs = format!("{derivation}^*");
        let import = format!("import {derivation}");
        let queries: [(&[&str], &[&str]); 3] = [
            // Nix 2.35 and later.
            (&["store", "build-trace", "info"], &[&all_outputs]),
            (&["realisation", "info"], &[&all_outputs]),
            // Nix before 2.15 does not support `^`; an imported derivation stands for its first output.
            (&["realisation", "info"], &["--impure", "--expr", &import]),
        ];
        queries.into_iter().find_map(|(subcommand, installable)| {
            let mut nix = self.command("nix-command ca-derivations");
            let output = nix.args(subcommand).arg("--json").args(installable).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    /// Returns a `nix` command for the store, with the messages of Nix discarded. It asks no substituter: what counts is
    /// what the store has, and a substituter that cannot be reached costs seconds per path.
    fn command(&self, experimental_features: &str) -> Command {
        let mut nix = Command::new("nix");
        nix.args(["--extra-experimental-features", experimental_features, "--option", "substituters", ""]);
        if let Some(root) = &self.root {
            nix.arg("--store").arg(root);
        }
        nix.env("NIX_STORE_DIR", self.store_dir.as_str()).stdin(Stdio::null()).stderr(Stdio::null());
        nix
    }
}
