//! A temporary directory in which command lines run as a user types them.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use walkdir::WalkDir;

use crate::bin_dir;
use crate::minio::find_mc;

/// A command line that takes longer hangs; `timeout` ends it with status 124.
pub const TIME_LIMIT: &str = "300";

/// What every Nix in a scratch directory is told: no network, no build users, the new command line.
const NIX_CONFIG: &str = "experimental-features = nix-command\nsubstituters =\nbuild-users-group =\nsandbox = false\n";

/// A temporary directory with an environment of its own; removed when dropped, read-only store paths included.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    env: BTreeMap<OsString, OsString>,
}

impl Scratch {
    /// A fresh one.
    #[allow(clippy::new_without_default)] // it makes a directory; that is no default value
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("nix-s3-cache-").tempdir().expect("a temporary directory");
        // /tmp may be a symbolic link; Nix wants store roots without one.
        let path = dir.keep().canonicalize().expect("the temporary directory's real path");
        for name in ["home", "home/.cache", "tmp"] {
            fs::create_dir(path.join(name)).expect("a directory in the scratch directory");
        }
        Self { path, env: BTreeMap::new() }
    }

    /// The directory, which is also the working directory of its commands.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets an environment variable for later commands. `NIX_CONFIG` is added to what every command gets.
    pub fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.env.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Runs `bash -euo pipefail -c SCRIPT` with nothing on standard input.
    pub fn sh(&self, script: &str) -> Outcome {
        self.run(script, Stdio::null(), None)
    }

    /// Runs `bash -euo pipefail -c SCRIPT` with `input` on standard input.
    pub fn sh_with_input(&self, script: &str, input: &[u8]) -> Outcome {
        self.run(script, Stdio::piped(), Some(input))
    }

    /// A command with the directory and the environment of this scratch directory, for tests that want the process.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.path);
        for (name, _) in env::vars_os() {
            if is_private(&name) {
                command.env_remove(name);
            }
        }
        command.env("PATH", search_path());
        command.env("HOME", self.path.join("home")).env("XDG_CACHE_HOME", self.path.join("home/.cache"));
        command.env("TMPDIR", self.path.join("tmp"));
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        command.envs(&self.env);
        let mut nix_config = OsString::from(NIX_CONFIG);
        nix_config.push(self.env.get(OsStr::new("NIX_CONFIG")).map_or(OsStr::new(""), OsString::as_os_str));
        command.env("NIX_CONFIG", nix_config);
        command
    }

    fn run(&self, script: &str, stdin: Stdio, input: Option<&[u8]>) -> Outcome {
        let mut command = self.command("timeout");
        command.args(["--kill-after=10", TIME_LIMIT, "bash", "-euo", "pipefail", "-c", script]);
        let mut child =
            command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("timeout and bash");
        let pipe = child.stdin.take();
        let output = thread::scope(|scope| {
            if let (Some(mut pipe), Some(input)) = (pipe, input) {
                // A command that stops reading early is part of what is tested: a broken pipe is fine.
                scope.spawn(move || drop(pipe.write_all(input)));
            }
            child.wait_with_output().expect("the command's output")
        });
        Outcome {
            script: script.to_owned(),
            status: status_of(output.status),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A second panic while one unwinds would hide the first.
        if let Err(error) = remove_tree(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// What became of a command.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The script that ran.
    pub script: String,
    /// The exit status, 128 and the signal where one killed it.
    pub status: i32,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Outcome {
    /// Standard output without the white space around it; panics unless the status is 0.
    #[track_caller]
    pub fn ok(&self) -> String {
        self.expect_status(0);
        self.text()
    }

    /// Standard error; panics unless the status is `code`.
    #[track_caller]
    pub fn fails(&self, code: i32) -> String {
        self.expect_status(code);
        self.stderr.clone()
    }

    /// Standard output as text, without the white space around it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// The lines of standard output; panics unless the status is 0.
    #[track_caller]
    pub fn lines(&self) -> Vec<String> {
        self.ok().lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn expect_status(&self, code: i32) {
        assert!(
            self.status == code,
            "status {} instead of {code} from\n{}\n--- standard output ---\n{}\n--- standard error ---\n{}",
            self.status,
            self.script,
            shorten(&self.text()),
            shorten(&self.stderr),
        );
    }
}

/// At most 4000 characters of `text`, for a message.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(4000) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

/// The status as a shell tells it.
fn status_of(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).expect("it ended by exit or by signal")
}

/// Variables of the surrounding session that must not reach a test.
fn is_private(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("AWS_")
        || name.starts_with("NIX_")
        || name.starts_with("MC_")
        || name.starts_with("XDG_")
        // Cargo's, for the test itself.
        || name.starts_with("CARGO_")
        || name == "LD_LIBRARY_PATH"
        || name.to_ascii_lowercase().ends_with("_proxy")
}

/// Our tools first, then mc, then what the session has.
fn search_path() -> OsString {
    let mut dirs = vec![bin_dir()];
    dirs.extend(find_mc().and_then(|mc| mc.parent().map(Path::to_owned)));
    dirs.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    env::join_paths(dirs).expect("no directory on PATH has a colon")
}

/// Removes a directory; store paths are read-only trees, which nobody but root can remove as they are.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = WalkDir::new(path).into_iter().filter_map(Result::ok);
    for dir in entries.filter(|entry| entry.file_type().is_dir()) {
        // What cannot be changed shows when the removal fails.
        drop(fs::set_permissions(dir.path(), Permissions::from_mode(0o700)));
    }
    fs::remove_dir_all(path)
}
