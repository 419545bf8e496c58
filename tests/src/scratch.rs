//! A temporary directory in which command lines run as a user types them.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use walkdir::WalkDir;

use crate::bin_dir;
use crate::minio::find_mc;

/// Seconds until `timeout` ends a command with status 124.
pub const TIMEOUT_SECONDS: &str = "300";

/// Configuration of Nix in a scratch directory: no network, no build users, the new command line.
const NIX_CONFIG: &str = "experimental-features = nix-command\nsubstituters =\nbuild-users-group =\nsandbox = false\n";

/// Removes a directory when the pipe on standard input closes; store paths may be read-only.
const CLEANER: &str = r#"read -r _; chmod -R u+w -- "$1" 2>/dev/null; rm -rf -- "$1""#;

/// A temporary directory with an environment of its own; removed when dropped, read-only store paths included.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    env: BTreeMap<OsString, OsString>,
    cleaner: Option<Child>,
}

impl Scratch {
    /// Creates the directory.
    #[allow(clippy::new_without_default)] // it creates a directory
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("nix-s3-cache-").tempdir().expect("a temporary directory");
        // /tmp may be a symbolic link; Nix requires store roots without one.
        let path = dir.keep().canonicalize().expect("the real path of the temporary directory");
        for name in ["home", "home/.cache", "tmp"] {
            fs::create_dir(path.join(name)).expect("a directory in the scratch directory");
        }
        Self { path, env: BTreeMap::new(), cleaner: None }
    }

    /// Creates a directory that is removed even if this process is interrupted or killed.
    ///
    /// The kernel then closes the pipe to a process that waits to remove it.
    pub fn removed_on_interrupt() -> Self {
        let mut scratch = Self::new();
        let mut command = Command::new("bash");
        command.args(["-c", CLEANER, "cleaner"]).arg(&scratch.path).stdin(Stdio::piped());
        // An interrupt from the terminal is for this process; the cleaner has to outlive it.
        scratch.cleaner = Some(command.process_group(0).spawn().expect("bash"));
        scratch
    }

    /// Returns the directory, which is also the working directory of its commands.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates a directory in this one, unless it exists, and returns its path.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
        path
    }

    /// Writes a file in the directory.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        let path = self.path.join(name);
        fs::write(&path, contents).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }

    /// Sets an environment variable for later commands. `NIX_CONFIG` is appended to the default configuration.
    pub fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.env.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Runs `bash -euo pipefail -c SCRIPT` with an empty standard input.
    pub fn sh(&self, script: &str) -> CommandOutput {
        self.run(script, Stdio::null(), None)
    }

    /// Runs `bash -euo pipefail -c SCRIPT` with `input` on standard input.
    pub fn sh_with_input(&self, script: &str, input: &[u8]) -> CommandOutput {
        self.run(script, Stdio::piped(), Some(input))
    }

    /// Returns a command with the directory and the environment of this scratch directory.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let path = self.env.get(OsStr::new("PATH")).cloned().unwrap_or_else(search_path);
        let mut command = Command::new(find_program(program.as_ref(), &path));
        command.current_dir(&self.path);
        for (name, _) in env::vars_os() {
            if is_private(&name) {
                command.env_remove(name);
            }
        }
        command.env("PATH", path);
        command.env("HOME", self.path.join("home")).env("XDG_CACHE_HOME", self.path.join("home/.cache"));
        command.env("TMPDIR", self.path.join("tmp"));
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        command.envs(&self.env);
        let mut nix_config = OsString::from(NIX_CONFIG);
        nix_config.push(self.env.get(OsStr::new("NIX_CONFIG")).map_or(OsStr::new(""), OsString::as_os_str));
        command.env("NIX_CONFIG", nix_config);
        command
    }

    /// Returns one of our tools with arguments.
    pub fn tool(&self, name: &str, args: &[&str]) -> Command {
        let mut command = self.command(bin_dir().join(name));
        command.args(args);
        command
    }

    fn run(&self, script: &str, stdin: Stdio, input: Option<&[u8]>) -> CommandOutput {
        let mut command = self.command("timeout");
        command.args(["--kill-after=10", TIMEOUT_SECONDS, "bash", "-euo", "pipefail", "-c", script]);
        let mut child =
            command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("timeout and bash");
        let pipe = child.stdin.take();
        let output = thread::scope(|scope| {
            if let (Some(mut pipe), Some(input)) = (pipe, input) {
                // A command may stop reading early: a broken pipe is not an error.
                scope.spawn(move || drop(pipe.write_all(input)));
            }
            child.wait_with_output().expect("the output of the command")
        });
        CommandOutput {
            script: script.to_owned(),
            status: status_of(output.status),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A second panic during unwinding would hide the first.
        if let Err(error) = remove_tree(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
        if let Some(mut cleaner) = self.cleaner.take() {
            drop(cleaner.stdin.take());
            drop(cleaner.wait());
        }
    }
}

/// The output and exit status of a command.
#[derive(Debug, Clone)]
pub struct CommandOutput {
    /// The script that ran.
    pub script: String,
    /// The exit status, or 128 plus the number of the signal that killed it.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl CommandOutput {
    /// Returns standard output without surrounding white space; panics unless the status is 0.
    #[track_caller]
    pub fn ok(&self) -> String {
        self.expect_status(0);
        self.text()
    }

    /// Returns the lines of standard output; panics unless the status is 0.
    #[track_caller]
    pub fn lines(&self) -> Vec<String> {
        self.ok().lines().map(str::to_owned).collect()
    }

    /// Returns standard error; panics unless the status is `code`.
    #[track_caller]
    pub fn fails(&self, code: i32) -> String {
        self.expect_status(code);
        self.stderr.clone()
    }

    /// Returns standard output as text, without surrounding white space.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Returns standard output as text, or the messages if the status is not 0: for a program that reports it.
    ///
    /// # Errors
    /// The messages, or the exit status if there are none.
    pub fn succeed(&self) -> Result<String, String> {
        if self.status == 0 {
            return Ok(self.text());
        }
        let stderr = self.stderr.trim();
        Err(if stderr.is_empty() { format!("exit status {}", self.status) } else { stderr.to_owned() })
    }

    /// Returns the lines of standard error without the hint at its end; see [`split_hint`].
    pub fn error_lines(&self) -> Vec<&str> {
        split_hint(&self.stderr).0.lines().collect()
    }

    #[track_caller]
    fn expect_status(&self, code: i32) {
        assert!(
            self.status == code,
            "expected status {code}, found {} from\n{}\n--- standard output ---\n{}\n--- standard error ---\n{}",
            self.status,
            self.script,
            shorten(&self.text()),
            shorten(&self.stderr),
        );
    }
}

/// Splits what a tool printed on standard error into its messages and the hint that may follow on a last line.
pub fn split_hint(stderr: &str) -> (&str, Option<&str>) {
    let stderr = stderr.trim_end();
    let (messages, last) = stderr.rsplit_once('\n').unwrap_or(("", stderr));
    match last.strip_prefix("hint: ") {
        Some(hint) => (messages, Some(hint)),
        None => (stderr, None),
    }
}

/// Returns at most 4000 characters of `text`, for a message.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(4000) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

/// Returns the status as a shell reports it.
fn status_of(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).expect("an exit status or a signal")
}

/// Returns whether a variable of the surrounding session must not reach a test.
fn is_private(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    // CARGO_ variables are for the test itself.
    let prefixes = ["AWS_", "NIX_", "MC_", "RCLONE_", "XDG_", "CARGO_"];
    prefixes.iter().any(|prefix| name.starts_with(prefix))
        // The last ones change the help, and which keys an agent has.
        || ["LD_LIBRARY_PATH", "COLUMNS", "CLICOLOR", "CLICOLOR_FORCE", "NO_COLOR", "SSH_AUTH_SOCK"].contains(&&*name)
        || name.to_ascii_lowercase().ends_with("_proxy")
}

/// Returns the file of a program that is given by name. A command with a name and another PATH is started with `fork`, which
/// copies the page tables of the process with all tests, and not with `posix_spawn`.
fn find_program(program: &OsStr, path: &OsStr) -> PathBuf {
    let has_slash = program.as_encoded_bytes().contains(&b'/');
    let mut files = env::split_paths(path).map(|dir| dir.join(program)).filter(|_| !has_slash);
    let is_program =
        |file: &PathBuf| file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0);
    files.find(is_program).unwrap_or_else(|| program.into())
}

/// Our tools first, then mc, then the session's PATH.
fn search_path() -> OsString {
    let mut dirs = vec![bin_dir()];
    dirs.extend(find_mc().and_then(|mc| mc.parent().map(Path::to_owned)));
    dirs.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    env::join_paths(dirs).expect("directories on PATH have no colon")
}

/// Removes a directory. Store paths are read-only trees, which only root can remove without changing their modes.
///
/// # Errors
/// If a file cannot be removed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = WalkDir::new(path).into_iter().filter_map(Result::ok);
    for dir in entries.filter(|entry| entry.file_type().is_dir()) {
        // If the mode cannot be changed, the removal fails below.
        drop(fs::set_permissions(dir.path(), Permissions::from_mode(0o700)));
    }
    fs::remove_dir_all(path)
}

#[cfg(test)]
mod tests {
    use super::split_hint;

    #[test]
    fn only_the_last_line_is_a_hint() {
        assert_eq!(split_hint("s3-push: no\nhint: try this\n"), ("s3-push: no", Some("try this")));
        assert_eq!(split_hint("s3-push: hint: none\n"), ("s3-push: hint: none", None));
        assert_eq!(split_hint("hint: a\nhint: b"), ("hint: a", Some("b")));
        assert_eq!(split_hint(""), ("", None));
    }
}
