//! What a user may write for a store path: a full path, `HASH-NAME`, a file within a path, a symbolic link into the store
//! such as `./result`, each with or without slashes at the end. Every tool resolves its arguments here, and path lists
//! accept what needs no file system.
//!
//! Links are followed as by Nix's `Store::followLinksToStore` (`src/libstore/store-api.cc`): only until the path is in the
//! store directory, so a link within a store path names that path. Beyond Nix, a link may be followed by the name of a
//! file, as in `./result/bin/hello`, and `HASH-NAME` needs no directory.

use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::process::print_message;
use crate::root_dir::MAX_LINKS;
use crate::store_path::{HashPart, StoreDir, StorePath};

/// Endings of the names of NARs in a cache.
const NAR_ENDINGS: [&str; 6] = [".nar", ".nar.xz", ".nar.zst", ".nar.gz", ".nar.bz2", ".nar.br"];

/// The store path that an argument names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathArgument {
    /// The store path.
    pub path: StorePath,
    /// The file within it, beginning with a slash; empty for the store path itself.
    pub file: String,
}

impl PathArgument {
    /// Resolves an argument.
    ///
    /// # Errors
    /// Returns a usage error that states what the argument looks like instead, and fails if it cannot be resolved.
    pub fn resolve(argument: &Path, store_dir: &StoreDir) -> Result<Self> {
        if argument.as_os_str().is_empty() {
            return Err(
                Error::usage("empty argument: expected a store path").with_hint("check that the variable is set")
            );
        }
        let found = match parse(argument, store_dir) {
            Some(found) => found,
            None => match follow_links(argument, store_dir) {
                Ok(Ok(found)) => found,
                Ok(Err(outside)) => return Err(outside_error(argument, &outside, store_dir)),
                Err(error) => return Err(unresolved_error(argument, &error, store_dir)),
            },
        };
        found.map_err(|error| match lookalike_error(argument, store_dir) {
            Some(lookalike) => lookalike,
            None => Error::usage(error.message()),
        })
    }

    /// Returns the store path of a NAR on standard input. Prints a warning if the argument named a file within it, because
    /// the NAR has to be that of the whole path.
    #[must_use]
    pub fn into_path_of_nar(self, store_dir: &StoreDir, tool: &str) -> StorePath {
        if !self.file.is_empty() {
            let path = store_dir.join(&self.path);
            print_message(tool, format!("warning: {path}{}: expected the NAR of {path} on standard input", self.file));
        }
        self.path
    }
}

/// Returns whether an argument that may be the URL of a cache or a store path is meant as a store path.
#[must_use]
pub fn is_path_argument(argument: &str, store_dir: &StoreDir) -> bool {
    !argument.contains("://")
        && (argument.starts_with(['/', '.'])
            || parse(Path::new(argument), store_dir).is_some()
            || lookalike(argument).is_some()
            || Path::new(argument).symlink_metadata().is_ok())
}

/// Parses a line of a path list: all that [`PathArgument::resolve`] accepts, except links.
///
/// # Errors
/// Refuses any other line; the error states what it looks like.
pub(crate) fn parse_line(line: &str, store_dir: &StoreDir) -> Result<StorePath> {
    if let Some(found) = parse(Path::new(line), store_dir) {
        return found.map(|found| found.path);
    }
    if line.contains('\0') {
        return Err(Error::refused(format!("expected a store path in {store_dir}, found binary data")));
    }
    Err(match lookalike(line) {
        Some((what, hint)) => {
            Error::refused(format!("{line:?}: expected a store path in {store_dir}, found {what}")).with_hint(hint)
        }
        None => Error::refused(format!("{line:?} is not a store path in {store_dir}"))
            .with_hint("symbolic links such as ./result are followed in arguments, not in a path list"),
    })
}

/// Parses a path in the store directory, or `HASH-NAME` with or without a file, without following links. Returns none for
/// any other path.
fn parse(path: &Path, store_dir: &StoreDir) -> Option<Result<PathArgument>> {
    let normalized = normalize(path);
    let in_store = normalized.strip_prefix(store_dir.as_str());
    let mut names = in_store.as_ref().map_or(normalized.as_path(), |rest| rest).components();
    let base = StorePath::from_base_name(names.next()?.as_os_str().to_str().unwrap_or_default());
    if in_store.is_err() && (base.is_err() || path.starts_with(".")) {
        return None;
    }
    Some(base.and_then(|path| {
        let file = names.as_path();
        let text = file.to_str().ok_or_else(|| Error::refused(format!("{} is not valid UTF-8", file.display())))?;
        Ok(PathArgument { path, file: if text.is_empty() { String::new() } else { format!("/{text}") } })
    }))
}

/// Removes `.`, `..` and repeated slashes by name, as Nix's `canonPath` does.
fn normalize(path: &Path) -> PathBuf {
    let mut normalized = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if matches!(normalized.components().next_back(), Some(Component::Normal(_))) => {
                normalized.pop();
            }
            Component::ParentDir if normalized.has_root() => {}
            component => normalized.push(component),
        }
    }
    normalized
}

/// Follows symbolic links until the path is in the store directory. Returns the path that they lead to if it is outside.
fn follow_links(argument: &Path, store_dir: &StoreDir) -> io::Result<Result<Result<PathArgument>, PathBuf>> {
    let mut current = std::env::current_dir()?;
    let mut pending = argument.to_owned();
    for _ in 0..=MAX_LINKS {
        if let Some(found) = parse(&current.join(&pending), store_dir) {
            return Ok(Ok(found));
        }
        let Some(link) = next_link(&mut current, &pending)? else { return Ok(Err(current)) };
        pending = link;
    }
    Err(Errno::LOOP.into())
}

/// Resolves `pending` relative to `current` up to the first symbolic link. Returns its target followed by the names that
/// remain; none if there is no link. `current` is then the directory of the link, or the resolved path.
fn next_link(current: &mut PathBuf, pending: &Path) -> io::Result<Option<PathBuf>> {
    let names: Vec<OsString> = pending.components().map(|component| component.as_os_str().to_owned()).collect();
    for (index, name) in names.iter().enumerate() {
        if name == ".." {
            current.pop();
            continue;
        }
        // The root replaces the path.
        current.push(name);
        match std::fs::read_link(&*current) {
            Ok(target) => {
                current.pop();
                return Ok(Some(target.join(names[index + 1..].iter().collect::<PathBuf>())));
            }
            // Not a link.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Returns the error for an argument that leads out of the store directory.
fn outside_error(argument: &Path, outside: &Path, store_dir: &StoreDir) -> Error {
    let expected = format!("{}: expected a store path in {store_dir}, found", argument.display());
    if outside == Path::new(store_dir.as_str()) {
        return Error::usage(format!("{expected} the store directory")).with_hint("pass one of the store paths in it");
    }
    let is_store_path = |path: &&Path| path.file_name().is_some_and(|name| is_base_name(&name.to_string_lossy()));
    if let Some(other) = outside.ancestors().find(is_store_path).and_then(Path::parent) {
        let other = other.display();
        return Error::usage(format!("{expected} one in {other}"))
            .with_hint(format!("pass --store-dir {other} for the paths of that store"));
    }
    if normalize(argument) == outside || argument.is_relative() && outside.ends_with(normalize(argument)) {
        return Error::usage(format!("{expected} a path outside of it"));
    }
    Error::usage(format!("{expected} a link to {}", outside.display()))
}

/// Returns the error for an argument that cannot be resolved.
fn unresolved_error(argument: &Path, error: &io::Error, store_dir: &StoreDir) -> Error {
    if let Some(lookalike) = lookalike_error(argument, store_dir) {
        return lookalike;
    }
    if argument.is_absolute() {
        return outside_error(argument, &normalize(argument), store_dir);
    }
    Error::usage(format!("{}: {error}", argument.display()))
        .with_hint("pass a store path, its HASH-NAME, or a symbolic link to it such as ./result")
}

/// Returns the error for an argument that looks like something else than a store path.
fn lookalike_error(argument: &Path, store_dir: &StoreDir) -> Option<Error> {
    let (what, hint) = lookalike(&argument.to_string_lossy())?;
    let expected = format!("{}: expected a store path in {store_dir}", argument.display());
    Some(Error::usage(format!("{expected}, found {what}")).with_hint(hint))
}

fn is_base_name(name: &str) -> bool {
    StorePath::from_base_name(name).is_ok()
}

/// Returns what a text looks like that is often passed by mistake for a store path, and a hint.
fn lookalike(text: &str) -> Option<(&'static str, String)> {
    let name = text.rsplit_once('/').map_or(text, |(_, name)| name);
    if text.contains("://") {
        let hint = "s3-push and s3-pull take the URL of a cache, before the store paths";
        return Some(("a URL", hint.to_owned()));
    }
    if let Some((derivation, _)) =
        text.split_once(['^', '!']).filter(|(derivation, _)| derivation.strip_suffix(".drv").is_some())
    {
        let hint = format!("pass the output path, which nix-store --query --outputs {derivation} prints");
        return Some(("an output of a derivation", hint));
    }
    if text.starts_with('#') {
        return Some(("a comment", "remove it: a path list has no comments".to_owned()));
    }
    if text.contains('#') {
        let hint = format!("build it first, and pass the path that nix build --print-out-paths {text} prints");
        return Some(("a flake reference", hint));
    }
    if HashPart::parse(name.as_bytes()).is_some() {
        let hint = format!("pass HASH-NAME: the field StorePath of the narinfo {name}.narinfo has the full path");
        return Some(("a hash part without a name", hint));
    }
    if name.ends_with(".narinfo") {
        return Some(("the name of a narinfo", "pass the store path in its field StorePath".to_owned()));
    }
    if NAR_ENDINGS.iter().any(|ending| name.ends_with(ending)) {
        return Some(("the name of a NAR", "pass the store path whose contents it has".to_owned()));
    }
    if name.strip_suffix(".drv").is_some() {
        let hint = "pass the full path of the derivation, or of its output: nix-store --query --outputs";
        return Some(("the name of a derivation", hint.to_owned()));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const BASE: &str = "02dlwc21njky62v7q7ffcb10000n2grx-hello-2.12.1";

    fn store_dir() -> StoreDir {
        StoreDir::new("/nix/store").unwrap()
    }

    fn resolve(argument: impl AsRef<Path>) -> Result<PathArgument> {
        PathArgument::resolve(argument.as_ref(), &store_dir())
    }

    #[track_caller]
    fn resolves(argument: impl AsRef<Path>, file: &str) {
        let found = resolve(argument).unwrap();
        assert_eq!((found.path.base_name(), found.file.as_str()), (BASE, file));
    }

    #[test]
    fn forms_that_need_no_file_system_are_accepted_in_arguments_and_path_lists() {
        for (argument, file) in [
            (format!("/nix/store/{BASE}"), ""),
            (format!("/nix/store/{BASE}/"), ""),
            (format!("/nix//store/./{BASE}//"), ""),
            (format!("/nix/store/{BASE}/bin/hello"), "/bin/hello"),
            (format!("/nix/store/other/../{BASE}/bin/../share/"), "/share"),
            (BASE.to_owned(), ""),
            (format!("{BASE}/"), ""),
            (format!("{BASE}/bin/hello"), "/bin/hello"),
        ] {
            resolves(&argument, file);
            assert_eq!(parse_line(&argument, &store_dir()).unwrap().base_name(), BASE, "{argument}");
        }
    }

    #[test]
    fn links_are_followed_until_the_path_is_in_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        symlink(format!("/nix/store/{BASE}"), path.join("result")).unwrap();
        fs::create_dir(path.join("profiles")).unwrap();
        symlink("profile-42-link", path.join("profiles/profile")).unwrap();
        symlink("../result", path.join("profiles/profile-42-link")).unwrap();
        symlink("profiles", path.join("dir")).unwrap();
        symlink(format!("/nix/store/{BASE}/bin/hello"), path.join("hello")).unwrap();
        resolves(path.join("result"), "");
        resolves(path.join("result/"), "");
        resolves(path.join("result/bin/hello"), "/bin/hello");
        resolves(path.join("dir/profile"), "");
        resolves(path.join("dir/../result"), "");
        resolves(path.join("hello"), "/bin/hello");
        symlink("b", path.join("a")).unwrap();
        symlink("a", path.join("b")).unwrap();
        assert!(resolve(path.join("a")).is_err());
    }

    #[test]
    fn the_error_for_another_argument_names_what_it_looks_like() {
        let hash = &BASE[..32];
        for (argument, expected, hint) in [
            ("", "empty argument", "variable"),
            ("s3://bucket?region=eu-west-2", "found a URL", "before the store paths"),
            ("nixpkgs#hello", "found a flake reference", "nix build"),
            (hash, "found a hash part without a name", ".narinfo"),
            (&format!("/nix/store/{hash}.narinfo"), "found the name of a narinfo", ""),
            (&format!("{hash}.narinfo"), "found the name of a narinfo", "StorePath"),
            ("nar/1bn7.nar.xz", "found the name of a NAR", "store path"),
            ("hello.drv", "found the name of a derivation", "--outputs"),
            ("./no/such/file", "No such file", "./result"),
            ("/nix/store", "found the store directory", "store paths in it"),
            (&format!("/gnu/store/{BASE}/bin"), "found one in /gnu/store", "--store-dir /gnu/store"),
            ("/", "found a path outside of it", ""),
            ("/usr", "found a path outside of it", ""),
            ("/nix/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-x", "base-32", ""),
            ("/nix/store/.links", "expected 32 digits", ""),
        ] {
            let error = resolve(argument).unwrap_err();
            assert_eq!(error.exit_status(), 2, "{argument}: {error}");
            assert!(error.message().contains(expected), "{argument}: {error}");
            assert!(error.hint().unwrap_or_default().contains(hint), "{argument}: {:?}", error.hint());
        }
        let output = resolve(format!("/nix/store/{BASE}.drv^out")).unwrap_err();
        assert!(output.message().contains("an output of a derivation"), "{output}");
        let dir = tempfile::tempdir().unwrap();
        symlink("/usr", dir.path().join("link")).unwrap();
        assert!(resolve(dir.path().join("link")).unwrap_err().message().contains("found a link to /usr"));
        let line = parse_line("./result", &store_dir()).unwrap_err();
        assert!(line.is_refusal() && line.hint().unwrap().contains("not in a path list"), "{line}");
    }

    #[test]
    fn a_url_is_distinguished_from_a_path() {
        for path in ["/nix/store/x", "./result", BASE, &BASE[..32], "nixpkgs#hello", "src"] {
            assert!(is_path_argument(path, &store_dir()), "{path}");
        }
        for url in ["s3://bucket", "file:///nix/store", "my-bucket", "s3:/bucket", "https://cache/x.narinfo"] {
            assert!(!is_path_argument(url, &store_dir()), "{url}");
        }
    }
}
