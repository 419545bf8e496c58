//! Substituters and trusted keys from nix.conf, read as Nix reads it (manual, "nix.conf"; `AbstractConfig::applyConfig` in
//! `src/libutil/config.cc`): line by line, whatever a line ends in, and includes beside the path that was given.
//!
//! Nix knows no continuation: a backslash at the end of a line is the last word of that line or a part of it, and what
//! follows is a line of its own.

use std::ffi::OsStr;
use std::io::{self, ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

use nar_pack::error::{Context, Error, Result};

use crate::keys::PublicKey;

/// The cache that Nix asks, and the key that it trusts, when no file says otherwise.
const DEFAULT_SUBSTITUTER: &str = "https://cache.nixos.org/";
const DEFAULT_KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
/// Largest file that is read, in bytes.
const MAX_SIZE: u64 = 1 << 20;
/// Files that include each other deeper than this include themselves.
const MAX_INCLUDES: usize = 16;
const SUBSTITUTERS: [&str; 2] = ["substituters", "binary-caches"];
const KEYS: [&str; 2] = ["trusted-public-keys", "binary-cache-public-keys"];

/// What nix.conf says of binary caches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The caches that are asked, in their order.
    pub substituters: Vec<String>,
    /// The keys that are trusted, as they are written.
    pub trusted_public_keys: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        let one = |text: &str| vec![text.to_owned()];
        Self { substituters: one(DEFAULT_SUBSTITUTER), trusted_public_keys: one(DEFAULT_KEY) }
    }
}

/// What was read, and what Nix would not read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// What the lines say that Nix takes.
    pub settings: Settings,
    /// Lines for the sake of which Nix refuses the whole file (`illegal configuration line`): each with its file.
    pub illegal: Vec<String>,
}

impl Settings {
    /// What `file` says, or the system's and the user's nix.conf and `$NIX_CONFIG` together.
    ///
    /// # Errors
    /// Fails when `file` cannot be read or one includes a file that is not there; refuses a line that Nix refuses.
    pub fn read(file: Option<&Path>) -> Result<Self> {
        let mut reading = Reading::default();
        if let Some(file) = file {
            let bytes = std::fs::File::open(file).and_then(read_start);
            let bytes = bytes.map_err(|error| Error::failed(format!("reading {}: {error}", file.display())))?;
            reading.text(&String::from_utf8_lossy(&bytes), file, 0)?;
        } else {
            for file in default_files() {
                reading.file(&file, 0)?;
            }
            if let Ok(text) = std::env::var("NIX_CONFIG") {
                reading.text(&text, Path::new("$NIX_CONFIG"), 0)?;
            }
        }
        match reading.illegal.first() {
            None => Ok(reading.settings),
            Some(line) => Err(Error::refused(format!("{line}: not a line of nix.conf"))),
        }
    }

    /// The trusted keys.
    ///
    /// # Errors
    /// Refuses a malformed one.
    pub fn public_keys(&self) -> Result<Vec<PublicKey>> {
        self.trusted_public_keys.iter().map(|key| PublicKey::parse(key).context(|| "nix.conf")).collect()
    }

    fn set<'a>(&mut self, name: &str, words: impl Iterator<Item = &'a str>) {
        let (name, adds) = name.strip_prefix("extra-").map_or((name, false), |name| (name, true));
        let list = match name {
            name if SUBSTITUTERS.contains(&name) => &mut self.substituters,
            name if KEYS.contains(&name) => &mut self.trusted_public_keys,
            _ => return,
        };
        if !adds {
            list.clear();
        }
        list.extend(words.map(str::to_owned));
    }
}

impl Reading {
    /// What `text` says, the text of the file that Nix is given as `path`: what it includes lies beside that, also where
    /// `path` is a symbolic link to elsewhere.
    ///
    /// # Errors
    /// Fails when a file that it includes is not there.
    pub fn of_text(text: &str, path: &Path) -> Result<Self> {
        let mut reading = Self::default();
        reading.text(text, path, 0)?;
        Ok(reading)
    }

    /// A file that cannot be read says nothing (`AbstractConfig::applyConfigFile`).
    fn file(&mut self, file: &Path, depth: usize) -> Result {
        if depth > MAX_INCLUDES {
            return Err(Error::refused(format!("{}: included too deeply", file.display())));
        }
        match read_regular(file) {
            Ok(bytes) => self.text(&String::from_utf8_lossy(&bytes), file, depth),
            Err(_) => Ok(()),
        }
    }

    fn text(&mut self, text: &str, file: &Path, depth: usize) -> Result {
        for (number, line) in (1..).zip(text.split('\n')) {
            let plain = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = plain.split([' ', '\t', '\r']).filter(|word| !word.is_empty()).collect();
            match words.as_slice() {
                [] => {}
                [include @ ("include" | "!include"), name] => {
                    let included = beside(file, name).context(|| format!("{}, line {number}", file.display()))?;
                    if is_there(&included) {
                        self.file(&included, depth + 1)?;
                    } else if *include == "include" {
                        let (included, file) = (included.display(), file.display());
                        return Err(Error::failed(format!("reading {included}, which {file} includes: not found")));
                    }
                }
                ["include" | "!include", ..] => self.illegal.push(shown(file, number)),
                [name, "=", values @ ..] => self.settings.set(name, values.iter().copied()),
                _ => self.illegal.push(shown(file, number)),
            }
        }
        Ok(())
    }
}

/// A line by its number alone: what is no setting may be a password.
fn shown(file: &Path, number: u32) -> String {
    format!("{}, line {number}", file.display())
}

/// Where an included file is: beside the path by which the file was read, links in which are not followed, and without
/// what `..` takes away (`absPath(name, dirOf(path))`, `canonPath`).
fn beside(file: &Path, name: &str) -> Result<PathBuf> {
    let file = std::path::absolute(file).map_err(Error::from)?;
    let mut path = PathBuf::new();
    for component in file.parent().unwrap_or(Path::new("/")).join(name).components() {
        match component {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    Ok(path)
}

/// A link is there, wherever it leads (`pathExists`).
fn is_there(path: &Path) -> bool {
    let found = std::fs::symlink_metadata(path);
    !found.is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
}

/// The system's file, then the user's, in the order in which Nix applies them.
fn default_files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name);
    let some = |name: &str| variable(name).filter(|value| !value.is_empty());
    let paths = |list: &OsStr| -> Vec<PathBuf> {
        std::env::split_paths(list).filter(|path| !path.as_os_str().is_empty()).collect()
    };
    let mut files =
        vec![some("NIX_CONF_DIR").map_or_else(|| PathBuf::from("/etc/nix"), PathBuf::from).join("nix.conf")];
    // What comes first in a list counts most, so it is applied last. An empty list is a list.
    if let Some(list) = variable("NIX_USER_CONF_FILES") {
        files.extend(paths(&list).into_iter().rev());
        return files;
    }
    let dirs = paths(&variable("XDG_CONFIG_DIRS").unwrap_or_else(|| "/etc/xdg".into()));
    files.extend(dirs.into_iter().rev().map(|dir| dir.join("nix/nix.conf")));
    let home = some("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| some("HOME").map(|home| Path::new(&home).join(".config")));
    files.extend(home.map(|home| home.join("nix/nix.conf")));
    files
}

/// A file that is included; a device or a FIFO may have no end.
fn read_regular(file: &Path) -> io::Result<Vec<u8>> {
    if std::fs::metadata(file)?.is_file() {
        return std::fs::File::open(file).and_then(read_start);
    }
    Err(io::Error::other("not a regular file"))
}

fn read_start(file: std::fs::File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SIZE {
        Err(io::Error::other(format!("larger than {MAX_SIZE} bytes")))
    } else {
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "a-1:gKkVNqzMzpoNLo6VNl1o+5QLrbnCTwKuuNTTjwwPUk4=";

    fn keys(files: &[(&str, &str)]) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let keys = Settings::read(Some(&dir.path().join("nix.conf")))?.public_keys()?;
        Ok(keys.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn settings_replace_and_extra_settings_add() {
        let b = KEY.replace("a-1", "b-1");
        let replace = format!("# comment\nsubstituters = x\ntrusted-public-keys = {KEY} # and so on\n");
        assert_eq!(keys(&[("nix.conf", &replace)]).unwrap(), [KEY]);
        let add = format!("extra-trusted-public-keys = {KEY} {b}\n");
        assert_eq!(keys(&[("nix.conf", &add)]).unwrap(), [DEFAULT_KEY, KEY, &b]);
        let include = [("nix.conf", "include more.conf\n!include absent.conf\n"), ("more.conf", replace.as_str())];
        assert_eq!(keys(&include).unwrap(), [KEY]);
    }

    /// `nix show-config` says the same of each (`tests/tests/policies.rs` asks it).
    #[test]
    fn a_backslash_joins_nothing() {
        let of = |text: &str| Reading::of_text(text, Path::new("/etc/nix/nix.conf")).unwrap();
        let reading = of("substituters = a \\\n  b\\\r\n  extra-binary-caches = d");
        assert_eq!(reading.settings.substituters, ["a", "\\", "d"]);
        assert_eq!(reading.illegal, ["/etc/nix/nix.conf, line 2"]);
        assert_eq!(of("substituters = a\\\nextra-substituters = b").settings.substituters, ["a\\", "b"]);
        assert_eq!(of("# x \\\nsubstituters = a # \\\nextra-substituters = b").settings.substituters, ["a", "b"]);
    }

    #[test]
    fn lines_that_nix_refuses_are_found() {
        for line in ["a", "a b", "a=b", "include", "include a b", "!include = x", "= x", "a\u{b}= b"] {
            let text = format!("substituters = x\n{line}\n");
            let reading = Reading::of_text(&text, Path::new("/etc/nix/nix.conf")).unwrap();
            assert_eq!(reading.illegal, ["/etc/nix/nix.conf, line 2"], "{line}");
            assert_eq!(reading.settings.substituters, ["x"]);
            assert_eq!(keys(&[("nix.conf", &text)]).unwrap_err().exit_code(), 1);
        }
    }

    #[test]
    fn includes_lie_beside_the_path_that_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["real", "real/deep", "given", "given/sub"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("real/nix.conf"), "include more.conf\n!include sub/../last.conf\n").unwrap();
        std::os::unix::fs::symlink("../real/nix.conf", at("given/nix.conf")).unwrap();
        std::os::unix::fs::symlink(at("real/deep"), at("given/link")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("given/dangling")).unwrap();
        std::fs::write(at("real/more.conf"), "substituters = target").unwrap();
        std::fs::write(at("given/more.conf"), "substituters = given\ninclude link/../last.conf\ninclude dangling")
            .unwrap();
        std::fs::write(at("given/last.conf"), "extra-substituters = last").unwrap();
        let settings = Settings::read(Some(&at("given/nix.conf"))).unwrap();
        assert_eq!(settings.substituters, ["given", "last", "last"]);
        assert_eq!(Settings::read(Some(&at("real/nix.conf"))).unwrap().substituters, ["target"]);
    }

    #[test]
    fn bad_files_are_errors() {
        assert_eq!(keys(&[]).unwrap_err().exit_code(), 2);
        assert_eq!(keys(&[("nix.conf", "include absent.conf")]).unwrap_err().exit_code(), 2);
        assert_eq!(keys(&[("nix.conf", "include nix.conf")]).unwrap_err().exit_code(), 1);
        assert_eq!(keys(&[("nix.conf", "trusted-public-keys = x")]).unwrap_err().exit_code(), 1);
    }
}
