//! `cargo xtask dist`: builds static programs and packages them, with man pages, completions and systemd units.

mod build;
mod debian;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;
use crate::build::{repository, run as run_command};

use build::Built;

/// The tools, which are also the names of their packages.
pub const TOOLS: [&str; 6] = ["nar-pack", "narinfo-gen", "cache-sign", "s3-push", "s3-pull", "cache-policy"];

/// What the command line selects.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The target triple; by default the best for static programs on this machine.
    target: Option<String>,
    /// Where the packages are written; by default `target/dist`.
    out: Option<PathBuf>,
}

impl Options {
    /// Parses the arguments after `dist`.
    ///
    /// # Errors
    /// A message about usage.
    pub fn parse(args: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut args = args.iter();
        while let Some(&flag) = args.next() {
            let mut value =
                || args.next().map(|&value| value.to_owned()).ok_or(format!("dist: {flag} requires a value"));
            match flag {
                "--target" => options.target = Some(value()?),
                "--out" => options.out = Some(value()?.into()),
                _ => return Err(format!("dist: unexpected argument {flag:?}")),
            }
        }
        Ok(options)
    }
}

/// Builds the programs and writes the packages and their checksums.
pub fn run(options: &Options) -> Result {
    let built = Built::find_or_build(options.target.as_deref())?;
    let out = options.out.clone().unwrap_or_else(|| built.target_dir.join("dist"));
    let release = Release { version: version()?, arch: built.arch()?, time: commit_time() };
    let name = format!("nix-s3-cache-{}-{}-linux", release.version, release.arch);
    // Removed recursively, so it must not be a directory of the user's.
    let staging = out.join(format!(".{name}.staging"));
    remove_dir(&staging)?;

    let tree = staging.join(&name);
    tree::write(&tree, &built)?;
    set_modes(&staging)?;
    let archive = format!("{name}.tar.gz");
    write_archive(&staging, &name, &out.join(&archive), &release)?;
    let mut files = vec![archive];
    if is_installed("dpkg-deb") {
        files.push(debian::write(&tree, &staging.join("debian"), &out, &release)?);
    } else {
        println!("!!! NOT WRITTEN: the .deb (dpkg-deb is not installed)");
    }
    remove_dir(&staging)?;
    write_checksums(&out, &files)?;
    for file in files.iter().map(String::as_str).chain(["SHA256SUMS"]) {
        println!("{}", out.join(file).display());
    }
    Ok(())
}

/// What the names and the metadata of the packages contain.
pub struct Release {
    version: String,
    /// The architecture as in target triples, such as `x86_64`.
    arch: String,
    /// The time of the commit in seconds since 1970, which is the time of all packaged files: the same commit gives the
    /// same packages.
    time: String,
}

/// Returns the version of the workspace.
fn version() -> Result<String> {
    let manifest = repository().join("Cargo.toml");
    let text = fs::read_to_string(&manifest).map_err(|error| format!("cannot read {}: {error}", manifest.display()))?;
    let version = text.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    version.map(str::to_owned).ok_or_else(|| format!("{} has no version", manifest.display()))
}

/// Returns the time of the commit; without git, the start of 1980, which every archive format can represent.
fn commit_time() -> String {
    let args = ["log", "-1", "--format=%ct"];
    let output = Command::new("git").args(args).current_dir(repository()).stderr(Stdio::null()).output();
    let time = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if time.is_empty() { "315532800".to_owned() } else { time }
}

/// Writes a .tar.gz whose bytes depend only on the files.
fn write_archive(dir: &Path, name: &str, archive: &Path, release: &Release) -> Result {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"]);
    tar.arg(format!("--mtime=@{}", release.time)).args(["--use-compress-program", "gzip -9n", "--file"]);
    run_command(tar.arg(archive).arg("--directory").arg(dir).arg(name), "tar")
}

/// Writes `SHA256SUMS` for `sha256sum --check`.
fn write_checksums(dir: &Path, files: &[String]) -> Result {
    let output = Command::new("sha256sum").arg("--").args(files).current_dir(dir).output();
    let output = output.map_err(|error| format!("cannot run sha256sum: {error}"))?;
    if !output.status.success() {
        return Err(format!("sha256sum failed: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    write(&dir.join("SHA256SUMS"), output.stdout)
}

/// Lets everyone read all files and run the programs, whatever the umask is.
fn set_modes(dir: &Path) -> Result {
    run_command(Command::new("chmod").args(["-R", "u=rwX,go=rX"]).arg(dir), "chmod")
}

fn is_installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result {
    fs::write(path, contents).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn create_dir(path: &Path) -> Result {
    fs::create_dir_all(path).map_err(|error| format!("cannot create {}: {error}", path.display()))
}

fn remove_dir(path: &Path) -> Result {
    match fs::remove_dir_all(path) {
        Err(error) if path.exists() => Err(format!("cannot remove {}: {error}", path.display())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::Options;

    #[test]
    fn arguments_are_parsed() {
        let options = Options::parse(&["--target", "x", "--out", "/y"]);
        assert_eq!(options, Ok(Options { target: Some("x".into()), out: Some("/y".into()) }));
        for args in [&["--out"][..], &["--what"], &["x"]] {
            assert!(Options::parse(args).is_err(), "{args:?}");
        }
    }
}
