//! Trusted keys from nix.conf (Nix manual, "nix.conf": files, `include`, `extra-`).

use std::path::{Path, PathBuf};

use nar_pack::stage::{Doing, Failure, Outcome};

use crate::keys::PublicKey;

/// The key that Nix trusts when no file says otherwise.
const DEFAULT_KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
/// Files that include each other deeper than this include themselves.
const MAX_INCLUDES: usize = 16;
const KEYS: [&str; 2] = ["trusted-public-keys", "binary-cache-public-keys"];

/// The keys that `file` trusts, or those that the system's and the user's nix.conf and `$NIX_CONFIG` trust together.
///
/// # Errors
/// Fails when `file` cannot be read; refuses a malformed key.
pub fn trusted_public_keys(file: Option<&Path>) -> Outcome<Vec<PublicKey>> {
    let mut setting = Setting { keys: vec![DEFAULT_KEY.to_owned()] };
    if let Some(file) = file {
        setting.file(file, true, 0)?;
    } else {
        for file in default_files() {
            setting.file(&file, false, 0)?;
        }
        if let Ok(text) = std::env::var("NIX_CONFIG") {
            setting.text(&text, Path::new("$NIX_CONFIG"), 0)?;
        }
    }
    setting.keys.iter().map(|key| PublicKey::parse(key).doing(|| "nix.conf")).collect()
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

struct Setting {
    keys: Vec<String>,
}

impl Setting {
    fn file(&mut self, file: &Path, required: bool, depth: usize) -> Outcome {
        if depth > MAX_INCLUDES {
            return Err(Failure::refused(format!("{}: included too deeply", file.display())));
        }
        match std::fs::read_to_string(file) {
            Ok(text) => self.text(&text, file, depth),
            Err(_) if !required => Ok(()),
            Err(error) => Err(Failure::failed(format!("reading {}: {error}", file.display()))),
        }
    }

    fn text(&mut self, text: &str, file: &Path, depth: usize) -> Outcome {
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            match (words.next(), words.next()) {
                (Some(include @ ("include" | "!include")), Some(name)) => {
                    let name = file.parent().unwrap_or(Path::new("/")).join(name);
                    self.file(&name, include == "include", depth + 1)?;
                }
                (Some(key), Some("=")) if KEYS.contains(&key) => self.keys = words.map(str::to_owned).collect(),
                (Some(key), Some("=")) if key.strip_prefix("extra-").is_some_and(|key| KEYS.contains(&key)) => {
                    self.keys.extend(words.map(str::to_owned));
                }
                _ => {}
            }
        }
        Ok(())
    }
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
        let keys = trusted_public_keys(Some(&dir.path().join("nix.conf")))?;
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
    fn bad_files_are_errors() {
        assert_eq!(keys(&[]).unwrap_err().exit_code(), 2);
        assert_eq!(keys(&[("nix.conf", "include absent.conf")]).unwrap_err().exit_code(), 2);
        assert_eq!(keys(&[("nix.conf", "include nix.conf")]).unwrap_err().exit_code(), 1);
        assert_eq!(keys(&[("nix.conf", "trusted-public-keys = x")]).unwrap_err().exit_code(), 1);
    }
}
