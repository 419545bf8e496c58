//! Reads substituters and trusted keys from nix.conf exactly as Nix does (manual, "nix.conf";
//! `AbstractConfig::applyConfig` in `src/libutil/config.cc`): line by line, with includes relative to the path by which
//! the file was opened. Nix has no line continuation, so a backslash at the end of a line is an ordinary character. The
//! crate `nix-config-parser` is not used: it returns a map of names to values, which loses the order of settings and
//! `extra-` settings, it stops at the first invalid line, and its last release is of 2023.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};

use nar_pack::error::{Context, Error, Result};
use nar_pack::regular_file;
use nar_pack::stdio::read_limited;

use crate::keys::PublicKey;

/// The default values of Nix.
const DEFAULT_SUBSTITUTER: &str = "https://cache.nixos.org/";
const DEFAULT_KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
/// Maximum size of a file in bytes.
const MAX_FILE_SIZE: u64 = 1 << 20;
/// Maximum depth of includes. Files that exceed it include each other in a cycle.
const MAX_INCLUDE_DEPTH: usize = 16;
/// The names of the two settings, each with its older alias.
const SUBSTITUTERS: [&str; 2] = ["substituters", "binary-caches"];
const TRUSTED_PUBLIC_KEYS: [&str; 2] = ["trusted-public-keys", "binary-cache-public-keys"];
/// The setting for how long Nix keeps the answer that a cache has a path, in seconds.
const POSITIVE_TTL: &str = "narinfo-cache-positive-ttl";

/// The binary-cache settings of nix.conf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The URLs of the caches, in their order.
    pub substituters: Vec<String>,
    /// The trusted keys, as written in the file.
    pub trusted_public_keys: Vec<String>,
    /// The value of `narinfo-cache-positive-ttl`, as written in the file.
    pub positive_ttl: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        let one = |text: &str| vec![text.to_owned()];
        Self { substituters: one(DEFAULT_SUBSTITUTER), trusted_public_keys: one(DEFAULT_KEY), positive_ttl: None }
    }
}

/// The result of parsing a nix.conf and the files that it includes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParsedConf {
    /// The settings of all valid lines.
    pub settings: Settings,
    /// The positions (`FILE, line N`) of the invalid lines, for each of which Nix rejects the whole file.
    pub invalid_lines: Vec<String>,
}

impl Settings {
    /// Reads `file`, or without it the nix.conf files of the system and the user and `$NIX_CONFIG`.
    ///
    /// # Errors
    /// Fails if `file` cannot be read or an included file does not exist. Refuses an invalid line.
    pub fn read(file: Option<&Path>) -> Result<Self> {
        let mut parsed = ParsedConf::default();
        if let Some(file) = file {
            let bytes = read_opened(File::open(file)).context(|| format!("cannot read {}", file.display()))?;
            parsed.parse_text(&String::from_utf8_lossy(&bytes), file, 0)?;
        } else {
            for file in default_files() {
                parsed.parse_file(&file, 0)?;
            }
            if let Ok(text) = std::env::var("NIX_CONFIG") {
                parsed.parse_text(&text, Path::new("$NIX_CONFIG"), 0)?;
            }
        }
        match parsed.invalid_lines.first() {
            None => Ok(parsed.settings),
            Some(position) => Err(invalid_line_error(position)),
        }
    }

    /// Parses the trusted keys. Of several with one name, Nix uses the first, and so only that is returned.
    ///
    /// # Errors
    /// Refuses a malformed key. The error does not name the file.
    pub fn public_keys(&self) -> Result<Vec<PublicKey>> {
        let mut keys: Vec<PublicKey> = Vec::new();
        for key in &self.trusted_public_keys {
            let key = PublicKey::parse(key)?;
            if keys.iter().all(|first| first.name() != key.name()) {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// Applies one setting. Without the prefix `extra-` it replaces the values of earlier lines.
    fn apply<'a>(&mut self, name: &str, values: impl Iterator<Item = &'a str>) {
        if name == POSITIVE_TTL {
            self.positive_ttl = Some(values.collect::<Vec<_>>().join(" "));
            return;
        }
        let (name, is_extra) = name.strip_prefix("extra-").map_or((name, false), |name| (name, true));
        let list = match name {
            name if SUBSTITUTERS.contains(&name) => &mut self.substituters,
            name if TRUSTED_PUBLIC_KEYS.contains(&name) => &mut self.trusted_public_keys,
            _ => return,
        };
        if !is_extra {
            list.clear();
        }
        list.extend(values.map(str::to_owned));
    }
}

impl ParsedConf {
    /// Parses `text`, the contents of the file that Nix opens as `path`. Includes are relative to the directory of
    /// `path`, even if `path` is a symbolic link to a file elsewhere.
    ///
    /// # Errors
    /// Fails if an included file does not exist; refuses includes that form a cycle.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let mut parsed = Self::default();
        parsed.parse_text(text, path, 0)?;
        Ok(parsed)
    }

    /// Parses a file. Like Nix (`AbstractConfig::applyConfigFile`), ignores a file that cannot be read.
    fn parse_file(&mut self, file: &Path, depth: usize) -> Result {
        if depth > MAX_INCLUDE_DEPTH {
            let error = Error::refused(format!("{}: includes are nested too deeply", file.display()));
            return Err(error.with_hint("remove the include that leads back to the same file"));
        }
        match read_opened(regular_file::open(file)) {
            Ok(bytes) => self.parse_text(&String::from_utf8_lossy(&bytes), file, depth),
            Err(_) => Ok(()),
        }
    }

    fn parse_text(&mut self, text: &str, file: &Path, depth: usize) -> Result {
        for (number, line) in (1..).zip(text.split('\n')) {
            let without_comment = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = without_comment.split([' ', '\t', '\r']).filter(|word| !word.is_empty()).collect();
            match words.as_slice() {
                [] => {}
                [include @ ("include" | "!include"), name] => {
                    let included = resolve_include(file, name).context(|| line_position(file, number))?;
                    if exists(&included) {
                        self.parse_file(&included, depth + 1)?;
                    } else if *include == "include" {
                        let error = Error::failed(format!("included file {} not found", included.display()));
                        return Err(error.context(line_position(file, number)));
                    }
                }
                ["include" | "!include", ..] => self.invalid_lines.push(line_position(file, number)),
                [name, "=", values @ ..] => self.settings.apply(name, values.iter().copied()),
                _ => self.invalid_lines.push(line_position(file, number)),
            }
        }
        Ok(())
    }
}

/// Returns the error of an invalid line at `position`, an element of [`ParsedConf::invalid_lines`].
#[must_use]
pub fn invalid_line_error(position: &str) -> Error {
    Error::refused(format!("{position}: invalid line, expected NAME = VALUE or include FILE"))
}

/// The position of a line in messages. They do not quote the line, because it may contain a password.
fn line_position(file: &Path, number: u32) -> String {
    format!("{}, line {number}", file.display())
}

/// Returns the path of an included file: relative to the directory of the including file, with `..` resolved in the text
/// of the path and symbolic links not followed (`absPath(name, dirOf(path))`, `canonPath`).
fn resolve_include(file: &Path, name: &str) -> Result<PathBuf> {
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

/// Whether the path exists; a dangling symbolic link does (`pathExists`).
fn exists(path: &Path) -> bool {
    let metadata = std::fs::symlink_metadata(path);
    !metadata.is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
}

/// Returns the nix.conf files of the system and then of the user, in the order in which Nix applies them.
fn default_files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name);
    let non_empty = |name: &str| variable(name).filter(|value| !value.is_empty());
    let paths = |list: &OsStr| -> Vec<PathBuf> {
        std::env::split_paths(list).filter(|path| !path.as_os_str().is_empty()).collect()
    };
    let mut files =
        vec![non_empty("NIX_CONF_DIR").map_or_else(|| PathBuf::from("/etc/nix"), PathBuf::from).join("nix.conf")];
    // The first file of the list has the highest priority, so it is applied last. An empty list replaces the default.
    if let Some(list) = variable("NIX_USER_CONF_FILES") {
        files.extend(paths(&list).into_iter().rev());
        return files;
    }
    let dirs = paths(&variable("XDG_CONFIG_DIRS").unwrap_or_else(|| "/etc/xdg".into()));
    files.extend(dirs.into_iter().rev().map(|dir| dir.join("nix/nix.conf")));
    let home = || non_empty("HOME").map(|home| Path::new(&home).join(".config"));
    let nix_config = non_empty("NIX_CONFIG_HOME").map(PathBuf::from);
    let user = nix_config.or_else(|| Some(non_empty("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home)?.join("nix")));
    files.extend(user.map(|dir| dir.join("nix.conf")));
    files
}

fn read_opened(file: io::Result<File>) -> Result<Vec<u8>> {
    read_limited(&mut file?, MAX_FILE_SIZE)
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
    fn of_two_keys_with_one_name_the_first_counts() {
        let other = crate::keys::SecretKey::generate("a-1").unwrap().public();
        let text = format!("trusted-public-keys = {KEY} {other}\n");
        assert_eq!(keys(&[("nix.conf", &text)]).unwrap(), [KEY]);
    }

    #[test]
    fn settings_replace_and_extra_settings_append() {
        let b = KEY.replace("a-1", "b-1");
        let replace = format!("# comment\nsubstituters = x\ntrusted-public-keys = {KEY} # and so on\n");
        assert_eq!(keys(&[("nix.conf", &replace)]).unwrap(), [KEY]);
        let add = format!("extra-trusted-public-keys = {KEY} {b}\n");
        assert_eq!(keys(&[("nix.conf", &add)]).unwrap(), [DEFAULT_KEY, KEY, &b]);
        let include = [("nix.conf", "include more.conf\n!include absent.conf\n"), ("more.conf", replace.as_str())];
        assert_eq!(keys(&include).unwrap(), [KEY]);
    }

    /// An integration test compares the same cases with `nix show-config`.
    #[test]
    fn a_backslash_does_not_continue_a_line() {
        let parse = |text: &str| ParsedConf::parse(text, Path::new("/etc/nix/nix.conf")).unwrap();
        let parsed = parse("substituters = a \\\n  b\\\r\n  extra-binary-caches = d");
        assert_eq!(parsed.settings.substituters, ["a", "\\", "d"]);
        assert_eq!(parsed.invalid_lines, ["/etc/nix/nix.conf, line 2"]);
        assert_eq!(parse("substituters = a\\\nextra-substituters = b").settings.substituters, ["a\\", "b"]);
        assert_eq!(parse("# x \\\nsubstituters = a # \\\nextra-substituters = b").settings.substituters, ["a", "b"]);
    }

    #[test]
    fn lines_that_nix_rejects_are_reported() {
        for line in ["a", "a b", "a=b", "include", "include a b", "!include = x", "= x", "a\u{b}= b"] {
            let text = format!("substituters = x\n{line}\n");
            let parsed = ParsedConf::parse(&text, Path::new("/etc/nix/nix.conf")).unwrap();
            assert_eq!(parsed.invalid_lines, ["/etc/nix/nix.conf, line 2"], "{line}");
            assert_eq!(parsed.settings.substituters, ["x"]);
            assert_eq!(keys(&[("nix.conf", &text)]).unwrap_err().exit_status(), 1);
        }
    }

    #[test]
    fn includes_are_relative_to_the_path_as_given() {
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
    fn unreadable_and_malformed_files_are_errors() {
        assert_eq!(keys(&[]).unwrap_err().exit_status(), 2);
        assert_eq!(keys(&[("nix.conf", "include absent.conf")]).unwrap_err().exit_status(), 2);
        assert_eq!(keys(&[("nix.conf", "include nix.conf")]).unwrap_err().exit_status(), 1);
        assert_eq!(keys(&[("nix.conf", "trusted-public-keys = x")]).unwrap_err().exit_status(), 1);
    }
}
