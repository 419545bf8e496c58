//! Substituters and trusted keys from nix.conf (Nix manual, "nix.conf": files, `include`, `extra-`; Nix's
//! `AbstractConfig::applyConfig`).

use std::path::{Path, PathBuf};

use nar_pack::stage::{Doing, Failure, Outcome};

use crate::keys::PublicKey;

/// The cache that Nix asks, and the key that it trusts, when no file says otherwise.
const DEFAULT_SUBSTITUTER: &str = "https://cache.nixos.org/";
const DEFAULT_KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
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

impl Settings {
    /// What `file` says, or the system's and the user's nix.conf and `$NIX_CONFIG` together.
    ///
    /// # Errors
    /// Fails when `file`, or a file that one of them includes, cannot be read.
    pub fn read(file: Option<&Path>) -> Outcome<Self> {
        let mut settings = Self::default();
        if let Some(file) = file {
            settings.file(file, true, 0)?;
        } else {
            for file in default_files() {
                settings.file(&file, false, 0)?;
            }
            if let Ok(text) = std::env::var("NIX_CONFIG") {
                settings.text(&text, Path::new("$NIX_CONFIG"), 0)?;
            }
        }
        Ok(settings)
    }

    /// What `text` says, the text of the file `path`: what it includes lies beside that.
    ///
    /// # Errors
    /// Fails when a file that it includes cannot be read.
    pub fn of_text(text: &str, path: &Path) -> Outcome<Self> {
        let mut settings = Self::default();
        settings.text(text, path, 0)?;
        Ok(settings)
    }

    /// The trusted keys.
    ///
    /// # Errors
    /// Refuses a malformed one.
    pub fn public_keys(&self) -> Outcome<Vec<PublicKey>> {
        self.trusted_public_keys.iter().map(|key| PublicKey::parse(key).doing(|| "nix.conf")).collect()
    }

    fn file(&mut self, file: &Path, required: bool, depth: usize) -> Outcome {
        if depth > MAX_INCLUDES {
            return Err(Failure::refused(format!("{}: included too deeply", file.display())));
        }
        match std::fs::read(file) {
            Ok(bytes) => self.text(&String::from_utf8_lossy(&bytes), file, depth),
            Err(_) if !required => Ok(()),
            Err(error) => Err(Failure::failed(format!("reading {}: {error}", file.display()))),
        }
    }

    fn text(&mut self, text: &str, file: &Path, depth: usize) -> Outcome {
        for line in logical_lines(text) {
            let mut words = line.split([' ', '\t', '\r']).filter(|word| !word.is_empty());
            match (words.next(), words.next()) {
                (Some(include @ ("include" | "!include")), Some(name)) => {
                    let name = file.parent().unwrap_or(Path::new("/")).join(name);
                    self.file(&name, include == "include", depth + 1)?;
                }
                (Some(name), Some("=")) => self.set(name, words),
                _ => {}
            }
        }
        Ok(())
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

/// The lines without comments. A backslash at the end of a line joins the next one to it; a comment ends with its line.
fn logical_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open: Option<String> = None;
    for line in text.split('\n') {
        let plain = line.split('#').next().unwrap_or_default();
        let mut whole = open.take().unwrap_or_default();
        match plain.trim_end_matches([' ', '\t', '\r']).strip_suffix('\\') {
            Some(begun) if plain.len() == line.len() => {
                whole.push_str(begun);
                whole.push(' ');
                open = Some(whole);
            }
            _ => {
                whole.push_str(plain);
                lines.push(whole);
            }
        }
    }
    lines.extend(open);
    lines
}

/// Whether what is added to the end of `text` would be joined to its last line.
#[must_use]
pub fn ends_open(text: &str) -> bool {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let last = text.rsplit('\n').next().unwrap_or_default();
    !last.contains('#') && last.trim_end_matches([' ', '\t', '\r']).ends_with('\\')
}

/// The system's file, then the user's, in the order in which Nix applies them.
fn default_files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let mut files =
        vec![variable("NIX_CONF_DIR").map_or_else(|| PathBuf::from("/etc/nix"), PathBuf::from).join("nix.conf")];
    if let Some(list) = variable("NIX_USER_CONF_FILES") {
        let mut user: Vec<PathBuf> = std::env::split_paths(&list).collect();
        user.reverse();
        files.extend(user);
        return files;
    }
    if let Some(dirs) = variable("XDG_CONFIG_DIRS") {
        let mut dirs: Vec<PathBuf> = std::env::split_paths(&dirs).collect();
        dirs.reverse();
        files.extend(dirs.into_iter().map(|dir| dir.join("nix/nix.conf")));
    }
    let home = variable("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| PathBuf::from(home).join(".config")));
    files.extend(home.map(|home| home.join("nix/nix.conf")));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "a-1:gKkVNqzMzpoNLo6VNl1o+5QLrbnCTwKuuNTTjwwPUk4=";

    fn keys(files: &[(&str, &str)]) -> Outcome<Vec<String>> {
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

    #[test]
    fn lines_go_on_after_a_backslash_and_not_after_a_comment() {
        let of = |text: &str| Settings::of_text(text, Path::new("/etc/nix/nix.conf")).unwrap().substituters;
        assert_eq!(of("substituters = a \\\n  b\\\r\n c\nextra-binary-caches = d"), ["a", "b", "c", "d"]);
        assert_eq!(of("# x \\\nsubstituters = a # \\\nextra-substituters = b"), ["a", "b"]);
        assert_eq!(of("substituters = a \\"), ["a"]);
        for (text, open) in [("a \\\n", true), ("a \\", true), ("a \\\n\n", false), ("# a \\\n", false), ("", false)] {
            assert_eq!(ends_open(text), open, "{text:?}");
        }
    }

    #[test]
    fn bad_files_are_errors() {
        assert_eq!(keys(&[]).unwrap_err().exit_code(), 2);
        assert_eq!(keys(&[("nix.conf", "include absent.conf")]).unwrap_err().exit_code(), 2);
        assert_eq!(keys(&[("nix.conf", "include nix.conf")]).unwrap_err().exit_code(), 1);
        assert_eq!(keys(&[("nix.conf", "trusted-public-keys = x")]).unwrap_err().exit_code(), 1);
    }
}
