//! Where the tools look up path info: `--path-info`, then the installed Nix, then the candidates for a scan.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Stat, statat};

use super::installed_nix::{Answer, InstalledNix};
use super::{PathInfo, parse_path_info};
use crate::cli::PathInfoArgs;
use crate::error::{Context, Error, Result};
use crate::root_dir::{LeavingLinks, OpenDir, RootDir};
use crate::stdio::{read_limited, utf8};
use crate::store_path::{StoreDir, StorePath, read_path_list};

/// Store paths per `nix` command, so that the command line stays below the limits of the system.
const MAX_PATHS_PER_COMMAND: usize = 256;
/// Maximum size of `--path-info` in bytes: about a million paths.
const MAX_DOCUMENT_SIZE: u64 = 1 << 30;

/// Looks up path info in a document, else with the installed Nix.
#[derive(Debug)]
pub struct PathInfoSource {
    /// The store directory in use.
    pub store_dir: StoreDir,
    root: Option<PathBuf>,
    /// The contents of `--path-info`.
    document: HashMap<StorePath, PathInfo>,
    candidates: Option<PathBuf>,
    /// None if Nix must not or cannot be queried.
    nix: Option<InstalledNix>,
}

impl PathInfoSource {
    /// Reads `--path-info`, if given. `root` is the root of a store that is not at its own location.
    ///
    /// # Errors
    /// Fails if the file cannot be read; refuses a malformed one.
    pub fn open(args: &PathInfoArgs, root: Option<&Path>) -> Result<Self> {
        let store_dir = StoreDir::new(&args.store_dir)?;
        let document = match &args.path_info {
            Some(file) => {
                let json = File::open(file).map_err(Error::from);
                let json = json.and_then(|mut json| read_limited(&mut json, MAX_DOCUMENT_SIZE));
                let json = json.context(|| format!("cannot read the path info in {}", file.display()))?;
                let parsed = utf8(json).and_then(|json| parse_path_info(&json, &store_dir));
                parsed.context(|| format!("path info {}", file.display()))?
            }
            None => HashMap::new(),
        };
        // Nix knows the paths below another root only if there is a database.
        let has_database = root.map_or(Ok(true), has_database)?;
        let root = root.map(Path::to_owned);
        let nix =
            (has_database && !args.no_nix).then(|| InstalledNix { store_dir: store_dir.clone(), root: root.clone() });
        Ok(Self { store_dir, root, document, candidates: args.candidates.clone(), nix })
    }

    /// Returns the path info of these paths; unknown paths are absent.
    ///
    /// # Errors
    /// Refuses malformed output of the installed Nix.
    pub fn query(&mut self, paths: &[StorePath]) -> Result<HashMap<StorePath, PathInfo>> {
        let mut known: HashMap<_, _> =
            paths.iter().filter_map(|path| Some((path.clone(), self.document.get(path)?.clone()))).collect();
        let unknown: Vec<StorePath> = paths.iter().filter(|path| !known.contains_key(*path)).cloned().collect();
        let kinds = by_kind(unknown);
        for chunk in kinds.iter().flat_map(|paths| paths.chunks(MAX_PATHS_PER_COMMAND)) {
            match self.query_nix(chunk, false)? {
                Some(infos) => known.extend(infos),
                // Nix prints nothing if it does not know one of the paths.
                None if chunk.len() > 1 => {
                    for path in chunk {
                        known.extend(self.query_nix(std::slice::from_ref(path), false)?.unwrap_or_default());
                    }
                }
                None => {}
            }
        }
        Ok(known)
    }

    /// Returns whether the path info of a path is that of `--path-info`.
    #[must_use]
    pub fn is_from_document(&self, path: &StorePath) -> bool {
        self.document.contains_key(path)
    }

    /// Returns whether a query may run `nix`; then one query for many paths is cheaper than many queries.
    #[must_use]
    pub fn asks_nix(&self) -> bool {
        self.nix.is_some()
    }

    /// Returns the closure of these paths, in no particular order.
    ///
    /// # Errors
    /// Refuses a path that neither `--path-info` nor the installed Nix knows.
    pub fn closure(&mut self, paths: &[StorePath]) -> Result<HashMap<StorePath, PathInfo>> {
        let mut closure = HashMap::new();
        let mut next: Vec<StorePath> = paths.to_vec();
        let mut unknown = Vec::new();
        while let Some(path) = next.pop() {
            match self.document.get(&path) {
                _ if closure.contains_key(&path) => {}
                Some(info) => {
                    next.extend(info.references.iter().cloned());
                    closure.insert(path, info.clone());
                }
                None => unknown.push(path),
            }
        }
        let kinds = by_kind(unknown);
        for chunk in kinds.iter().flat_map(|paths| paths.chunks(MAX_PATHS_PER_COMMAND)) {
            let infos = self.query_nix(chunk, true)?.unwrap_or_default();
            if let Some(path) = chunk.iter().find(|path| !infos.contains_key(*path)) {
                let path = self.store_dir.join(path);
                let why = "neither --path-info nor an installed Nix has its path info";
                return Err(Error::refused(format!("cannot determine the closure of {path}: {why}"))
                    .with_hint("pass --path-info, or pass every path of the closure with --stdin"));
            }
            closure.extend(infos);
        }
        Ok(closure)
    }

    /// Refuses to scan a derivation: its text contains its own outputs, which it does not refer to.
    ///
    /// # Errors
    /// The refusal, if the path is a derivation.
    pub fn require_scannable(&self, path: &StorePath) -> Result {
        if !path.is_derivation() {
            return Ok(());
        }
        let path = self.store_dir.join(path);
        let error = Error::refused(format!("{path}: the references of a derivation cannot be found by a scan"));
        Err(error.with_hint(
            "pass --path-info with the output of 'nix path-info --json --derivation', or use 'nix-store --export'",
        ))
    }

    /// Returns the paths that a scanned path may refer to: those in `--candidates`, else the contents of the store
    /// directory.
    ///
    /// # Errors
    /// Fails if the list or the directory cannot be read. A store directory that does not exist is empty.
    pub fn candidates(&self) -> Result<Vec<StorePath>> {
        if let Some(file) = &self.candidates {
            let list = File::open(file).map_err(Error::from);
            return list
                .and_then(|list| read_path_list(BufReader::new(list), &self.store_dir))
                .context(|| format!("cannot read the candidates in {}", file.display()));
        }
        let Some(dir) = self.store_dir.open(self.root.as_deref())? else { return Ok(Vec::new()) };
        let entries = Dir::read_from(&dir).map_err(|error| {
            Error::failed(format!("cannot read {}: {}", dir.path().display(), std::io::Error::from(error)))
        })?;
        let names =
            entries.filter_map(Result::ok).filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
        let objects = names.filter(|name| !is_lock_file(&dir, name));
        Ok(objects.filter_map(|name| StorePath::from_base_name(&name).ok()).collect())
    }

    /// Returns the realisations of a derivation's outputs, as the JSON that the installed Nix prints; none if it is not
    /// installed or does not know them.
    #[must_use]
    pub fn realisations(&self, derivation: &StorePath) -> Option<String> {
        self.nix.as_ref()?.realisations(derivation)
    }

    /// Queries the installed Nix; none if it is not installed or does not know one of the paths.
    fn query_nix(&mut self, paths: &[StorePath], recursive: bool) -> Result<Option<HashMap<StorePath, PathInfo>>> {
        let Some(nix) = self.nix.as_ref().filter(|_| !paths.is_empty()) else { return Ok(None) };
        match nix.path_info(paths, recursive) {
            Answer::PathInfo(json) => {
                let json = String::from_utf8_lossy(&json);
                parse_path_info(&json, &self.store_dir).context(|| "output of nix path-info").map(Some)
            }
            Answer::UnknownPath => Ok(None),
            Answer::NotInstalled => {
                self.nix = None;
                Ok(None)
            }
        }
    }
}

/// Returns the derivations, and the other paths: one command cannot query both.
fn by_kind(paths: Vec<StorePath>) -> [Vec<StorePath>; 2] {
    let (derivations, others) = paths.into_iter().partition(StorePath::is_derivation);
    [derivations, others]
}

/// Returns whether a file is a lock of Nix, whose name is that of a store path with `.lock` appended
/// (`src/libstore/pathlocks.cc`): it has mode 0600, and is empty or has the single byte that marks a stale lock.
fn is_lock_file(dir: &OpenDir, name: &str) -> bool {
    // 0o100600 is a regular file with mode 0600.
    let is_lock = |stat: Stat| stat.st_mode == 0o100_600 && stat.st_size <= 1;
    Path::new(name).extension().is_some_and(|extension| extension == "lock")
        && statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(is_lock)
}

/// Returns whether Nix has a database below `root`. Nix resolves symbolic links outside of the root, so one that leaves
/// the root counts as none.
fn has_database(root: &Path) -> Result<bool> {
    let database = RootDir::open(root)?.open_dir(Path::new("nix/var/nix/db"), LeavingLinks::Refuse);
    Ok(database.is_ok_and(|dir| dir.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_directory_entries_are_candidates_unless_they_are_locks() {
        const PATH: &str = "02dlwc21njky62v7q7ffcb10000n2grx-a";
        const LOCKED: &str = "h7jx3wrzn6m9vjl9604id854qx1xyqw6-b";
        let root = tempfile::tempdir().unwrap();
        let store = root.path().join("nix/store");
        std::fs::create_dir_all(&store).unwrap();
        let object = format!("{}-yarn.lock", "1".repeat(32));
        let lock = |base: &str| format!("{base}.lock");
        for (name, mode) in
            [(PATH, 0o555), (&object, 0o444), (&lock(PATH), 0o600), (&lock(LOCKED), 0o600), (".links", 0o755)]
        {
            std::fs::write(store.join(name), "").unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(store.join(name), mode).unwrap();
        }
        let args = PathInfoArgs { store_dir: "/nix/store".to_owned(), path_info: None, candidates: None, no_nix: true };
        let candidates = PathInfoSource::open(&args, Some(root.path())).unwrap().candidates().unwrap();
        let mut names: Vec<&str> = candidates.iter().map(StorePath::base_name).collect();
        names.sort_unstable();
        assert_eq!(names, [PATH, object.as_str()]);
    }
}
