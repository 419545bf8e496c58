//! What commands run in: a directory that goes away, and an environment without the user's accounts.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Removes a directory when the pipe on standard input closes; store paths may be read-only.
const KEEPER: &str = r#"read -r _; chmod -R u+w -- "$1" 2>/dev/null; rm -rf -- "$1""#;

/// A directory of our own. It goes away when this is dropped, and just as well when this process is interrupted or
/// killed: the kernel closes the pipe, and the process behind it tidies up.
pub struct Temporary {
    pub path: PathBuf,
    keeper: Child,
}

impl Temporary {
    /// Makes one; `name` is for whoever looks into /tmp.
    pub fn new(name: &str) -> Result<Self, String> {
        let path = env::temp_dir().join(format!("nix-s3-cache-{name}-{}", random_hex()?));
        let failed = |error| format!("cannot make {}: {error}", path.display());
        DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let mut command = Command::new("bash");
        command.args(["-c", KEEPER, "keeper"]).arg(&path).stdin(Stdio::piped());
        // An interrupt from the terminal is for us; the keeper has to outlive us to tidy up.
        let keeper = command.process_group(0).spawn();
        let keeper = keeper.map_err(|error| format!("cannot run bash: {error}"))?;
        // Nix wants directories without a symbolic link on the way.
        let path = fs::canonicalize(&path).map_err(failed)?;
        Ok(Self { path, keeper })
    }

    /// Makes a directory in this one.
    pub fn dir(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(|error| format!("cannot make {}: {error}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        drop(self.keeper.wait());
    }
}

/// A command without what of the user's own session must not reach it: accounts, caches and proxies.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if is_private(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    // Nor the accounts in ~/.aws.
    command.env("AWS_CONFIG_FILE", "/dev/null").env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

fn is_private(name: &str) -> bool {
    let prefixes = ["AWS_", "NIX_", "MC_", "RCLONE_"];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) || name.to_ascii_lowercase().ends_with("_proxy")
}

/// Runs a command to its end and returns what it says; what it says on standard error is for the failure.
pub fn output(command: &mut Command) -> Result<String, String> {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("cannot run {name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} failed ({}): {}", output.status, said.trim().lines().last().unwrap_or_default()))
}

/// How many things can be done at once here.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Sixteen digits that nobody guesses.
pub fn random_hex() -> Result<String, String> {
    let mut bytes = [0; 8];
    let read = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|error| format!("cannot read /dev/urandom: {error}"))?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}
