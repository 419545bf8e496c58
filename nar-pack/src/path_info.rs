//! What is known of a store path beside its contents: from `nix path-info --json`, or by asking an installed Nix.

use std::collections::HashMap;
use std::fs::{DirEntry, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::cli::PathInfoArgs;
use crate::error::{Context, Error, Result};
use crate::stdio::utf8;
use crate::store_path::{StoreDir, StorePath, read_path_list};

/// What `nix path-info --json` says of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// What the path refers to, sorted.
    pub references: Vec<StorePath>,
    /// The derivation that built it.
    pub deriver: Option<StorePath>,
    /// Hash of its NAR as Nix wrote it, in whatever base.
    pub nar_hash: String,
    /// Size of its NAR in bytes, where it is told.
    pub nar_size: Option<u64>,
    /// Content address as in a narinfo, where it has one; its hash in whatever base.
    pub ca: Option<String>,
    /// Signatures, `NAME:BASE64` each.
    pub signatures: Vec<String>,
}

/// Reads the output of `nix path-info --json` in each of its forms: a list of objects, an object from store paths or
/// base names to objects, or such an object under `info`. Paths that it calls invalid are left out. Hashes, content
/// addresses and signatures may be text or objects (Nix's schemas `store-object-info-v2` and `-v3`).
///
/// # Errors
/// Refuses what is not such a document, and names the path.
pub fn parse_path_info(json: &str, store_dir: &StoreDir) -> Result<HashMap<StorePath, PathInfo>> {
    let document: Value = serde_json::from_str(json).map_err(|error| Error::refused(format!("not JSON: {error}")))?;
    if let Some(other) = document.get("storeDir") {
        let dir = other.as_str().and_then(|dir| StoreDir::new(dir).ok());
        if dir.is_none_or(|dir| dir.as_str() != store_dir.as_str()) {
            return Err(Error::refused(format!("it is about the store {other}, not {}", store_dir.as_str())));
        }
    }
    let document = document.get("info").unwrap_or(&document);
    let mut infos = HashMap::new();
    let mut add = |path: &str, entry: &Value| -> Result {
        if entry.is_null() || entry.get("valid") == Some(&Value::Bool(false)) || entry.get("narHash").is_none() {
            return Ok(());
        }
        let info = parse_entry(entry, store_dir).context(|| path.to_owned())?;
        infos.insert(parse_path_or_base_name(path, store_dir)?, info);
        Ok(())
    };
    match document {
        Value::Array(entries) => {
            for entry in entries {
                let path = entry.get("path").and_then(Value::as_str);
                add(path.ok_or_else(|| Error::refused("an entry without a path"))?, entry)?;
            }
        }
        Value::Object(entries) => {
            for (path, entry) in entries {
                add(path, entry)?;
            }
        }
        _ => return Err(Error::refused("expected a list or an object of store paths")),
    }
    Ok(infos)
}

/// A full store path, or a base name as recent versions of Nix print.
///
/// # Errors
/// Refuses what is neither, and paths of another store.
pub fn parse_path_or_base_name(text: &str, store_dir: &StoreDir) -> Result<StorePath> {
    if text.starts_with('/') { store_dir.parse(text) } else { StorePath::from_base_name(text) }
}

fn parse_entry(entry: &Value, store_dir: &StoreDir) -> Result<PathInfo> {
    let text = |key: &str| match entry.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(_) => Err(Error::refused(format!("{key} is not a string"))),
    };
    let items = |key: &str| match entry.get(key) {
        None | Some(Value::Null) => Ok([].as_slice()),
        Some(Value::Array(items)) => Ok(items.as_slice()),
        Some(_) => Err(Error::refused(format!("{key} is not a list"))),
    };
    let reference = |path: &Value| {
        let path = path.as_str().ok_or_else(|| Error::refused("references holds what is not a string"))?;
        parse_path_or_base_name(path, store_dir)
    };
    let mut references = items("references")?.iter().map(reference).collect::<Result<Vec<_>>>()?;
    references.sort_unstable();
    references.dedup();
    Ok(PathInfo {
        references,
        deriver: text("deriver")?.map(|path| parse_path_or_base_name(path, store_dir)).transpose()?,
        nar_hash: entry.get("narHash").map(parse_hash).transpose().context(|| "narHash")?.unwrap_or_default(),
        nar_size: entry.get("narSize").and_then(Value::as_u64),
        ca: entry.get("ca").map(parse_ca).transpose().context(|| "ca")?.flatten().map(one_line).transpose()?,
        signatures: items("signatures")?.iter().map(parse_signature).collect::<Result<_>>()?,
    })
}

/// A signature: text as in a narinfo, or an object with `keyName` and `sig`.
fn parse_signature(value: &Value) -> Result<String> {
    let field = |key: &str| value.get(key).and_then(Value::as_str);
    let signature = match (value, field("keyName"), field("sig")) {
        (Value::String(text), ..) => text.clone(),
        (_, Some(key), Some(signature)) => format!("{key}:{signature}"),
        _ => return Err(Error::refused("signatures holds what is no signature")),
    };
    one_line(signature)
}

/// Characters of a value that an error shows.
const SHOWN: usize = 60;

/// Refuses what would be more than one line of a narinfo.
fn one_line(text: String) -> Result<String> {
    if text.contains(char::is_control) {
        let start: String = text.chars().take(SHOWN).collect();
        return Err(Error::refused(format!("{start:?} holds a control character, or what follows it does")));
    }
    Ok(text)
}

/// A hash: text with its algorithm, or an object with `algorithm` and `hash`.
fn parse_hash(value: &Value) -> Result<String> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Object(_) => {
            let field = |key: &str| value.get(key).and_then(Value::as_str);
            let algorithm = field("algorithm").ok_or_else(|| Error::refused("a hash without an algorithm"))?;
            let hash = field("hash").ok_or_else(|| Error::refused("a hash without digits"))?;
            // The digits may have their algorithm with them, as in SRI.
            let named = hash.strip_prefix(algorithm).is_some_and(|rest| rest.starts_with(['-', ':']));
            Ok(if named { hash.to_owned() } else { format!("{algorithm}:{hash}") })
        }
        _ => Err(Error::refused("not a hash")),
    }
}

/// A content address: text as in a narinfo, or an object with `method` and `hash`.
fn parse_ca(value: &Value) -> Result<Option<String>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Value::Object(_) => {
            let prefix = match value.get("method").and_then(Value::as_str) {
                Some("text") => "text:",
                Some("flat") => "fixed:",
                Some("nar") => "fixed:r:",
                Some("git") => "fixed:git:",
                _ => return Err(Error::refused("a content address of an unknown method")),
            };
            match parse_hash(value.get("hash").unwrap_or(&Value::Null))?.as_str() {
                "" => Err(Error::refused("a content address without a hash")),
                hash => Ok(Some(format!("{prefix}{hash}"))),
            }
        }
        _ => Err(Error::refused("not a content address")),
    }
}

/// Where the tools learn about store paths: a file, else the installed Nix, else nothing but candidates for a scan.
#[derive(Debug)]
pub struct PathInfoSource {
    /// The store directory in force.
    pub store_dir: StoreDir,
    root: Option<PathBuf>,
    given: HashMap<StorePath, PathInfo>,
    candidates: Option<PathBuf>,
    ask_nix: bool,
}

impl PathInfoSource {
    /// Reads `--path-info`, if given. `root` is where the store lies when it is not at its own place.
    ///
    /// # Errors
    /// Fails when a file cannot be read, refuses a malformed one.
    pub fn open(path_info_args: &PathInfoArgs, root: Option<&Path>) -> Result<Self> {
        let store_dir = StoreDir::new(&path_info_args.store_dir)?;
        let given = match &path_info_args.path_info {
            Some(file) => read_file(file)
                .and_then(|json| parse_path_info(&json, &store_dir))
                .context(|| format!("path info {}", file.display()))?,
            None => HashMap::new(),
        };
        // A store elsewhere is one that Nix knows only if it has a database there.
        let known = root.is_none_or(|root| root.join("nix/var/nix/db").is_dir());
        Ok(Self {
            store_dir,
            root: root.map(Path::to_owned),
            given,
            candidates: path_info_args.candidates.clone(),
            ask_nix: known && !path_info_args.no_nix,
        })
    }

    /// What is known of these paths; a path that nobody knows is absent.
    ///
    /// # Errors
    /// Fails when the installed Nix prints what is not path info.
    pub fn query(&mut self, paths: &[StorePath]) -> Result<HashMap<StorePath, PathInfo>> {
        let mut known: HashMap<_, _> =
            paths.iter().filter_map(|path| Some((path.clone(), self.given.get(path)?.clone()))).collect();
        let unknown: Vec<StorePath> = paths.iter().filter(|path| !known.contains_key(*path)).cloned().collect();
        // Bounded command lines.
        for some in unknown.chunks(256) {
            match self.ask(some, false)? {
                Some(infos) => known.extend(infos),
                // One path that it does not know makes Nix refuse them all.
                None if some.len() > 1 => {
                    for one in some {
                        known.extend(self.ask(std::slice::from_ref(one), false)?.unwrap_or_default());
                    }
                }
                None => {}
            }
        }
        Ok(known)
    }

    /// Whether a query may start a Nix, which is worth doing for many paths at once.
    #[must_use]
    pub fn asks_nix(&self) -> bool {
        self.ask_nix
    }

    /// The closure of these paths, in no order.
    ///
    /// # Errors
    /// Refuses when neither `--path-info` nor the installed Nix knows it.
    pub fn closure(&mut self, paths: &[StorePath]) -> Result<HashMap<StorePath, PathInfo>> {
        let mut closure = HashMap::new();
        let mut next: Vec<StorePath> = paths.to_vec();
        let mut unknown = Vec::new();
        while let Some(path) = next.pop() {
            match self.given.get(&path) {
                _ if closure.contains_key(&path) => {}
                Some(info) => {
                    next.extend(info.references.iter().cloned());
                    closure.insert(path, info.clone());
                }
                None => unknown.push(path),
            }
        }
        for some in unknown.chunks(256) {
            let Some(infos) = self.ask(some, true)? else {
                return Err(Error::refused(format!(
                    "no Nix here knows the closure of {}; give --path-info, or a path list with --stdin",
                    self.store_dir.join(&some[0])
                )));
            };
            closure.extend(infos);
        }
        Ok(closure)
    }

    /// What a path may refer to when only a scan can tell: `--candidates`, else what lies in the store directory.
    ///
    /// # Errors
    /// Fails when the list cannot be read. A store directory that is not there holds nothing.
    pub fn candidates(&self) -> Result<Vec<StorePath>> {
        if let Some(file) = &self.candidates {
            return std::fs::File::open(file)
                .map_err(Error::from)
                .and_then(|list| read_path_list(std::io::BufReader::new(list), &self.store_dir))
                .context(|| format!("candidates {}", file.display()));
        }
        let dir = self.store_dir.dir_below(self.root.as_deref());
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(Error::failed(format!("reading {}: {error}", dir.display()))),
        };
        let objects = entries.filter_map(Result::ok).filter(|entry| !is_lock(entry));
        let names = objects.filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter_map(|name| StorePath::from_base_name(&name).ok()).collect())
    }

    /// What `nix store build-trace info --json`, or `nix realisation info --json` before Nix 2.35, prints of a
    /// derivation's outputs; none when no Nix here can tell.
    #[must_use]
    pub fn realisations(&self, derivation: &StorePath) -> Option<String> {
        if !self.ask_nix {
            return None;
        }
        let derivation = self.store_dir.join(derivation);
        let by_name = format!("{derivation}^*");
        let imported = format!("import {derivation}");
        let questions: [(&[&str], &[&str]); 3] = [
            // From Nix 2.35 on.
            (&["store", "build-trace", "info"], &[&by_name]),
            (&["realisation", "info"], &[&by_name]),
            // Nix before 2.15 has no `^`; what it imports is the derivation with its first output.
            (&["realisation", "info"], &["--impure", "--expr", &imported]),
        ];
        questions.into_iter().find_map(|(question, installable)| {
            let mut nix = self.nix("nix-command ca-derivations");
            let output = nix.args(question).arg("--json").args(installable).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    /// A `nix` that speaks to the store of this registry and says nothing.
    fn nix(&self, features: &str) -> Command {
        let mut nix = Command::new("nix");
        nix.args(["--extra-experimental-features", features]);
        if let Some(root) = &self.root {
            nix.arg("--store").arg(root);
        }
        nix.env("NIX_STORE_DIR", self.store_dir.as_str()).stdin(Stdio::null()).stderr(Stdio::null());
        nix
    }

    /// Asks the installed Nix; none when there is no Nix or it does not know one of the paths.
    fn ask(&mut self, paths: &[StorePath], recursive: bool) -> Result<Option<HashMap<StorePath, PathInfo>>> {
        if !self.ask_nix || paths.is_empty() {
            return Ok(None);
        }
        let mut nix = self.nix("nix-command");
        nix.args(["path-info", "--json"]);
        if recursive {
            nix.arg("--recursive");
        }
        nix.args(paths.iter().map(|path| self.store_dir.join(path)));
        let Ok(output) = nix.output() else {
            self.ask_nix = false;
            return Ok(None);
        };
        if !output.status.success() {
            return Ok(None);
        }
        let json = String::from_utf8_lossy(&output.stdout);
        parse_path_info(&json, &self.store_dir).context(|| "asking nix path-info").map(Some)
    }
}

/// Whether this is a lock of Nix's, whose name is a path with `.lock` after it (`src/libstore/pathlocks.cc`): of mode
/// 0600, and empty or the one byte of a lock that nobody holds any more.
fn is_lock(entry: &DirEntry) -> bool {
    let is_one = |metadata: Metadata| metadata.is_file() && metadata.len() <= 1 && metadata.mode() & 0o7777 == 0o600;
    entry.path().extension().is_some_and(|extension| extension == "lock") && entry.metadata().is_ok_and(is_one)
}

fn read_file(path: &Path) -> Result<String> {
    utf8(std::fs::read(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "02dlwc21njky62v7q7ffcb10000n2grx-a";
    const B: &str = "h7jx3wrzn6m9vjl9604id854qx1xyqw6-b";

    fn parse(json: &str) -> Result<HashMap<StorePath, PathInfo>> {
        parse_path_info(json, &StoreDir::new("/nix/store").unwrap())
    }

    #[test]
    fn every_form_says_the_same() {
        let full = format!(
            r#""narHash":"sha256-x","references":["/nix/store/{B}","/nix/store/{A}"],"deriver":"/nix/store/{B}","signatures":["k:s"],"ca":null"#
        );
        let base = full.replace("/nix/store/", "");
        let forms = [
            format!(r#"[{{"path":"/nix/store/{A}",{full}}},{{"path":"/nix/store/{B}","valid":false}}]"#),
            format!(r#"{{"/nix/store/{A}":{{{full}}},"/nix/store/{B}":null}}"#),
            format!(r#"{{"{A}":{{{base}}}}}"#),
            format!(r#"{{"version":2,"storeDir":"/nix/store","info":{{"{A}":{{{base}}}}}}}"#),
            format!(
                r#"{{"version":3,"storeDir":"/nix/store","info":{{"{A}":{{{}}}}}}}"#,
                base.replace(r#""k:s""#, r#"{"keyName":"k","sig":"s"}"#)
            ),
        ];
        for form in forms {
            let infos = parse(&form).unwrap();
            let info = &infos[&StorePath::from_base_name(A).unwrap()];
            assert_eq!(infos.len(), 1, "{form}");
            assert_eq!(info.references.iter().map(StorePath::base_name).collect::<Vec<_>>(), [A, B]);
            assert_eq!((info.deriver.as_ref().unwrap().base_name(), info.ca.as_deref()), (B, None));
            assert_eq!(info.signatures, ["k:s"]);
        }
    }

    #[test]
    fn hashes_and_content_addresses_may_be_objects() {
        let one = |fields: &str| parse(&format!(r#"{{"version":2,"info":{{"{A}":{{{fields}}}}}}}"#));
        let sri = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        let hash = format!(r#"{{"algorithm":"sha256","format":"base64","hash":"{sri}"}}"#);
        for (method, prefix) in [("nar", "fixed:r:"), ("flat", "fixed:"), ("text", "text:"), ("git", "fixed:git:")] {
            let ca = format!(r#"{{"hash":{hash},"method":"{method}"}}"#);
            let infos = one(&format!(r#""narHash":{hash},"references":["{B}"],"ca":{ca},"deriver":null"#)).unwrap();
            let info = &infos[&StorePath::from_base_name(A).unwrap()];
            assert_eq!(info.nar_hash, format!("sha256:{sri}"));
            assert_eq!(info.ca.as_deref(), Some(format!("{prefix}sha256:{sri}").as_str()));
        }
        let named = one(&format!(r#""narHash":{{"algorithm":"sha256","hash":"sha256-{sri}"}}"#)).unwrap();
        assert_eq!(named.values().next().unwrap().nar_hash, format!("sha256-{sri}"));
        for wrong in [
            r#""narHash":3"#,
            r#""narHash":{"hash":"x"}"#,
            r#""narHash":{"algorithm":"sha256"}"#,
            r#""narHash":"x","ca":[]"#,
            r#""narHash":"x","ca":{"method":"nar"}"#,
            r#""narHash":"x","ca":{"method":"new","hash":"sha256:x"}"#,
            r#""narHash":"x","ca":"text:sha256:x\nSig: k:s""#,
            r#""narHash":"x","signatures":["k:s\nURL: nar/x.nar"]"#,
            r#""narHash":"x","signatures":[{"keyName":"k"}]"#,
            r#""narHash":"x","signatures":"k:s""#,
        ] {
            assert!(one(wrong).unwrap_err().is_refusal(), "{wrong}");
        }
    }

    #[test]
    fn what_lies_in_the_store_is_a_candidate_unless_it_is_a_lock() {
        let root = tempfile::tempdir().unwrap();
        let store = root.path().join("nix/store");
        std::fs::create_dir_all(&store).unwrap();
        let object = format!("{}-yarn.lock", "1".repeat(32));
        let lock = |base: &str| format!("{base}.lock");
        for (name, mode) in [(A, 0o555), (&object, 0o444), (&lock(A), 0o600), (&lock(B), 0o600), (".links", 0o755)] {
            std::fs::write(store.join(name), "").unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(store.join(name), mode).unwrap();
        }
        let path_info_args =
            PathInfoArgs { store_dir: "/nix/store".to_owned(), path_info: None, candidates: None, no_nix: true };
        let candidates = PathInfoSource::open(&path_info_args, Some(root.path())).unwrap().candidates().unwrap();
        let mut names: Vec<&str> = candidates.iter().map(StorePath::base_name).collect();
        names.sort_unstable();
        assert_eq!(names, [A, object.as_str()]);
    }

    #[test]
    fn malformed_documents_are_refused() {
        assert!(parse(r#"{"version":2,"storeDir":"/nix/store/","info":{}}"#).unwrap().is_empty());
        let elsewhere = r#"{"version":2,"storeDir":"/gnu/store","info":{}}"#;
        for json in ["", "x", "3", r#"[{"narHash":"x"}]"#, r#"{"/nix/store/x":{"narHash":"x"}}"#, elsewhere] {
            assert!(parse(json).unwrap_err().is_refusal(), "{json}");
        }
        let wrong = format!(r#"{{"/nix/store/{A}":{{"narHash":"x","references":[1]}}}}"#);
        assert!(parse(&wrong).unwrap_err().message().contains(A));
    }
}
