//! The rest of a cache entry: what a cache may have of a path beside its NAR and narinfo.
//!
//! | key | what it is | Nix |
//! | --- | --- | --- |
//! | `<hash part>.ls` | the listing of the NAR | the store setting `write-nar-listing` |
//! | `debuginfo/<build id>.debug` | where the debug information of a program lies | the store setting `index-debug-info` |
//! | `log/<derivation>` | the build log, not compressed | `nix store copy-log` |
//! | `realisations/<derivation output>.doi` | the path that an output of a content-addressed derivation has | `nix copy` before 2.35 |
//! | `build-trace-v2/<derivation>/<output>.doi` | the same | `nix copy` from 2.35 on |
//!
//! The formats are those of Nix's `src/libstore/binary-cache-store.cc`.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Seek, Write};
use std::path::{Path, PathBuf};

use nar_pack::error::{Context, Error, Result};
use nar_pack::nar::{Lister, Visitor};
use nar_pack::path_info::parse_path_or_base_name;
use nar_pack::store_path::{StoreDir, StorePath};
use serde_json::{Value, json};
use tempfile::SpooledTempFile;

use crate::compression::{Compression, decoder};

/// Bytes of a listing or log that are kept in memory; what is larger goes to an unlinked temporary file.
const IN_MEMORY: usize = 1 << 20;
/// Largest log that is taken, in bytes unpacked; `s3-push` takes no larger one either.
const MAX_LOG: u64 = 64 << 20;
/// Where debug information lies in a path.
const BUILD_IDS: [&[u8]; 3] = [b"lib", b"debug", b".build-id"];
/// Digits of a build id after the two that name its directory.
const BUILD_ID_REST: usize = 38;
/// Most build ids that are taken from one path; they are kept until its NAR has a name.
const MOST_BUILD_IDS: usize = 100_000;

/// What is to be made beside NARs and narinfos.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// Listings.
    pub listing: bool,
    /// Links to debug information.
    pub debug_info: bool,
    /// The directory of build logs, `drvs` below it, if logs are wanted.
    pub logs: Option<PathBuf>,
    /// Realisations.
    pub realisations: bool,
}

/// An object that belongs to a path.
pub struct Object {
    /// Its key.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its bytes, at their beginning.
    pub body: SpooledTempFile,
}

impl Object {
    /// An object of bytes at hand.
    ///
    /// # Errors
    /// Fails where the temporary file does.
    pub fn new(key: String, bytes: &[u8]) -> Result<Self> {
        let mut body = SpooledTempFile::new(IN_MEMORY.max(bytes.len()));
        body.write_all(bytes)?;
        Self::written(key, body)
    }

    fn written(key: String, mut body: SpooledTempFile) -> Result<Self> {
        let size = body.stream_position()?;
        body.rewind()?;
        Ok(Self { key, size, body })
    }
}

/// Learns from a NAR what a cache may say of its contents.
#[derive(Debug, Default)]
pub struct Contents {
    listing: Option<Result<Lister<SpooledTempFile>, Error>>,
    build_ids: Option<BuildIds>,
}

impl Contents {
    /// Looks at what these extras need.
    #[must_use]
    pub fn new(extras: &Extras) -> Self {
        Self {
            listing: extras.listing.then(|| Ok(Lister::new(SpooledTempFile::new(IN_MEMORY)))),
            build_ids: extras.debug_info.then(BuildIds::default),
        }
    }

    /// The objects of a path whose NAR has the key `url`, and why the listing is missing where there can be none.
    ///
    /// # Errors
    /// Fails where the temporary file does.
    pub fn into_objects(self, path: &StorePath, url: &str) -> Result<(Vec<Object>, Option<Error>)> {
        let mut objects = Vec::new();
        let mut missing = None;
        match self.listing {
            None => {}
            Some(Ok(lister)) => {
                objects.push(Object::written(format!("{}.ls", path.hash_part()), lister.finish()?)?);
            }
            Some(Err(failure)) => missing = Some(failure),
        }
        for id in self.build_ids.unwrap_or_default().found {
            let member = format!("lib/debug/.build-id/{}/{}", &id[..2], &id[2..]);
            let link = json!({"archive": format!("../{url}"), "member": member});
            objects.push(Object::new(format!("debuginfo/{id}"), link.to_string().as_bytes())?);
        }
        Ok((objects, missing))
    }

    /// A name that JSON cannot hold is no fault of the NAR: then there is no listing.
    fn list(&mut self, look: impl FnOnce(&mut Lister<SpooledTempFile>) -> Result) -> Result {
        if let Some(Ok(lister)) = &mut self.listing
            && let Err(failure) = look(lister)
        {
            if !failure.is_refusal() {
                return Err(failure.context("keeping a listing"));
            }
            self.listing = Some(Err(failure));
        }
        Ok(())
    }
}

impl Visitor for Contents {
    fn directory(&mut self) -> Result {
        self.list(Lister::directory)
    }

    fn directory_end(&mut self) -> Result {
        self.list(Lister::directory_end)
    }

    fn enter(&mut self, name: &[u8]) -> Result {
        if let Some(ids) = &mut self.build_ids {
            ids.enter(name);
        }
        self.list(|lister| lister.enter(name))
    }

    fn leave(&mut self) -> Result {
        if let Some(ids) = &mut self.build_ids {
            ids.leave();
        }
        self.list(Lister::leave)
    }

    fn file(&mut self, executable: bool, size: u64, offset: u64) -> Result {
        if let Some(ids) = &mut self.build_ids {
            ids.file()?;
        }
        self.list(|lister| lister.file(executable, size, offset))
    }

    fn data(&mut self, _: &[u8]) -> Result {
        Ok(())
    }

    fn file_end(&mut self) -> Result {
        Ok(())
    }

    fn symlink(&mut self, target: &[u8]) -> Result {
        self.list(|lister| lister.symlink(target))
    }
}

/// Finds the files `lib/debug/.build-id/xx/….debug`.
#[derive(Debug, Default)]
struct BuildIds {
    depth: usize,
    /// How many of the names entered, from the first, lead to debug information.
    matched: usize,
    directory: String,
    name: String,
    found: Vec<String>,
}

impl BuildIds {
    fn enter(&mut self, name: &[u8]) {
        if self.matched == self.depth {
            let matches = match self.depth {
                0..3 => BUILD_IDS[self.depth] == name,
                3 => name.len() == 2 && take_digits(name, &mut self.directory),
                4 => match name.strip_suffix(b".debug") {
                    Some(digits) => digits.len() == BUILD_ID_REST && take_digits(digits, &mut self.name),
                    None => false,
                },
                _ => false,
            };
            self.matched += usize::from(matches);
        }
        self.depth += 1;
    }

    fn leave(&mut self) {
        self.depth -= 1;
        self.matched = self.matched.min(self.depth);
    }

    fn file(&mut self) -> Result {
        if (self.depth, self.matched) == (5, 5) {
            if self.found.len() == MOST_BUILD_IDS {
                return Err(Error::refused(format!("more than {MOST_BUILD_IDS} build ids in one path")));
            }
            self.found.push(format!("{}{}.debug", self.directory, self.name));
        }
        Ok(())
    }
}

/// Takes a text if it is hexadecimal digits in lower case, as Nix wants them in build ids.
fn take_digits(text: &[u8], into: &mut String) -> bool {
    let digits = text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if digits {
        into.clear();
        into.extend(text.iter().map(|&byte| char::from(byte)));
    }
    digits
}

/// The build logs of derivations, each once.
#[derive(Debug)]
pub struct Logs {
    dir: PathBuf,
    taken: HashSet<StorePath>,
}

impl Logs {
    /// Takes logs from a directory such as `/nix/var/log/nix`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.join("drvs"), taken: HashSet::new() }
    }

    /// The log of a derivation, as it is uploaded: not compressed. None if there is none here or it was taken before.
    ///
    /// # Errors
    /// Fails when a log that is there cannot be read; refuses one that does not unpack or is larger than 64 MiB.
    pub fn take(&mut self, derivation: &StorePath) -> Result<Option<Object>> {
        if !self.taken.insert(derivation.clone()) {
            return Ok(None);
        }
        // Nix keeps them in directories by the first two digits, compressed or not (`compress-build-log`).
        let (first, rest) = derivation.base_name().split_at(2);
        let plain = self.dir.join(first).join(rest);
        let packed = self.dir.join(first).join(format!("{rest}.bz2"));
        for (file, method) in [(plain, Compression::None), (packed, Compression::Bzip2)] {
            let doing = || format!("reading the build log {}", file.display());
            match open_log(&file) {
                Ok(log) => return read_log(derivation, log, method).context(doing).map(Some),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(error) => return Err(error).context(doing),
            }
        }
        Ok(None)
    }
}

/// Opens a log; neither waits for whoever may write one.
fn open_log(file: &Path) -> io::Result<File> {
    if fs::metadata(file)?.is_file() { File::open(file) } else { Err(Error::refused("not a file").into()) }
}

fn read_log(derivation: &StorePath, log: File, method: Compression) -> Result<Object> {
    let mut body = SpooledTempFile::new(IN_MEMORY);
    let mut log = io::Read::take(decoder(method, BufReader::new(log))?, MAX_LOG + 1);
    let size = io::copy(&mut log, &mut body).map_err(|error| match error.raw_os_error() {
        Some(_) => error.into(),
        None => Error::refused(format!("it does not unpack as {method}: {error}")),
    })?;
    if size > MAX_LOG {
        return Err(Error::refused(format!("it is larger than {MAX_LOG} bytes")));
    }
    Object::written(format!("log/{derivation}"), body)
}

/// The realisations of `path` in what Nix prints (`PathInfoSource::realisations`), each under the key that the same Nix would
/// give it.
///
/// # Errors
/// Refuses what is not such a document.
pub fn realisations(json: &str, path: &StorePath, store_dir: &StoreDir) -> Result<Vec<Object>> {
    let malformed = || Error::refused("Nix printed realisations that are not understood");
    let document: Value = serde_json::from_str(json).map_err(|_| malformed())?;
    let mut objects = Vec::new();
    for entry in document.as_array().ok_or_else(malformed)? {
        // From Nix 2.35 on the key of an entry is apart, and in the cache it is the name of the object alone.
        let value = entry.get("value").unwrap_or(entry);
        let out = value["outPath"].as_str().and_then(|out| parse_path_or_base_name(out, store_dir).ok());
        if out.as_ref() != Some(path) {
            continue;
        }
        let key = match (&entry["id"], entry.get("key")) {
            (Value::String(id), None) => key_by_id(id),
            (_, Some(key)) => key_by_derivation(key, store_dir),
            // A path that is not the output of a content-addressed derivation.
            _ => continue,
        };
        let key = key.ok_or_else(malformed)?;
        if objects.iter().all(|object: &Object| object.key != key) {
            objects.push(Object::new(key, value.to_string().as_bytes())?);
        }
    }
    Ok(objects)
}

/// Where a realisation with the id `sha256:<digits>!<output>` lies.
fn key_by_id(id: &str) -> Option<String> {
    let (hash, output) = id.split_once('!')?;
    (is_plain(hash) && is_plain(output)).then(|| format!("realisations/{id}.doi"))
}

/// Where the realisation of an output of a derivation lies.
fn key_by_derivation(key: &Value, store_dir: &StoreDir) -> Option<String> {
    let (derivation, output) = (key["drvPath"].as_str()?, key["outputName"].as_str()?);
    let derivation = parse_path_or_base_name(derivation, store_dir).ok()?;
    let is_derivation = derivation.base_name().strip_suffix(".drv").is_some();
    (is_derivation && is_plain(output)).then(|| format!("build-trace-v2/{derivation}/{output}.doi"))
}

/// Whether a text may be part of a key.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":+-._?=".contains(&byte))
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read as _};

    use nar_pack::nar::{parse, push_string};

    use super::*;

    fn path() -> StorePath {
        StorePath::from_base_name(&format!("{}-x", "0".repeat(32))).unwrap()
    }

    /// The NAR of a file under these names.
    fn nar(names: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        push_string(&mut out, b"nix-archive-1");
        for name in names {
            for field in [b"(".as_slice(), b"type", b"directory", b"entry", b"(", b"name", name, b"node"] {
                push_string(&mut out, field);
            }
        }
        for field in [b"(".as_slice(), b"type", b"regular", b"contents", b"text", b")"] {
            push_string(&mut out, field);
        }
        for _ in names {
            push_string(&mut out, b")");
            push_string(&mut out, b")");
        }
        out
    }

    fn objects(names: &[&[u8]]) -> (Vec<(String, String)>, bool) {
        let extras = Extras { listing: true, debug_info: true, ..Extras::default() };
        let mut contents = Contents::new(&extras);
        parse(&mut Cursor::new(nar(names)), &mut contents).unwrap();
        let (objects, missing) = contents.into_objects(&path(), "nar/x.nar.zst").unwrap();
        let text = |mut object: Object| {
            let mut text = String::new();
            object.body.read_to_string(&mut text).unwrap();
            assert_eq!(text.len() as u64, object.size);
            (object.key, text)
        };
        (objects.into_iter().map(text).collect(), missing.is_some())
    }

    #[test]
    fn only_files_where_nix_looks_are_debug_information() {
        let rest = format!("{}.debug", "0a".repeat(19));
        let good: [&[u8]; 5] = [b"lib", b"debug", b".build-id", b"ab", rest.as_bytes()];
        let (found, _) = objects(&good);
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].0, format!("debuginfo/ab{rest}"));
        assert_eq!(
            found[1].1,
            format!("{{\"archive\":\"../nar/x.nar.zst\",\"member\":\"lib/debug/.build-id/ab/{rest}\"}}")
        );
        let short = &rest[1..];
        let upper = rest.to_uppercase();
        for (at, name) in
            [(0, &b"Lib"[..]), (2, b"build-id"), (3, b"abc"), (3, b"zz"), (4, short.as_bytes()), (4, upper.as_bytes())]
        {
            let mut names = good;
            names[at] = name;
            assert_eq!(objects(&names).0.len(), 1, "{}", name.escape_ascii());
        }
        let mut deeper: Vec<&[u8]> = good.to_vec();
        deeper.push(b"x");
        assert_eq!(objects(&deeper).0.len(), 1);
        deeper.rotate_right(1);
        assert_eq!(objects(&deeper).0.len(), 1);
    }

    #[test]
    fn a_name_that_json_cannot_hold_costs_the_listing_only() {
        let (found, missing) = objects(&[b"\xff"]);
        assert!(found.is_empty() && missing);
        let (found, missing) = objects(&[b"a\"\n"]);
        assert!(!missing);
        let offset = nar(&[b"a\"\n"]).windows(4).position(|window| window == b"text").unwrap();
        let file = format!(r#"{{"narOffset":{offset},"size":4,"type":"regular"}}"#);
        let wanted = format!(r#"{{"root":{{"entries":{{"a\"\n":{file}}},"type":"directory"}},"version":1}}"#);
        assert_eq!(found[0].1, wanted);
    }

    #[test]
    fn realisations_of_other_paths_and_strange_ids_are_not_taken() {
        let dir = StoreDir::new("/nix/store").unwrap();
        let entry = |id: &str, out: &str| {
            format!(r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{out}","signatures":[]}}"#)
        };
        let own = path().base_name().to_owned();
        let good = entry("sha256:00ff!out", &own);
        let json = format!(r#"[{good},{},{{"opaquePath":"/nix/store/{own}"}}]"#, entry("sha256:1!dev", "other"));
        let found = realisations(&json, &path(), &dir).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].key.as_str(), found[0].size), ("realisations/sha256:00ff!out.doi", good.len() as u64));
        for id in ["../x!out", "sha256:1!a/b", "!out", "x"] {
            assert!(realisations(&format!("[{}]", entry(id, &own)), &path(), &dir).is_err(), "{id}");
        }
        assert!(realisations("{}", &path(), &dir).is_err());
    }

    #[test]
    fn realisations_of_newer_versions_lie_under_their_derivation() {
        let dir = StoreDir::new("/nix/store").unwrap();
        let derivation = format!("{}-x.drv", "1".repeat(32));
        let value = format!(r#"{{"outPath":"{}","signatures":[{{"keyName":"k","sig":"s"}}]}}"#, path().base_name());
        let entry = |derivation: &str, output: &str| {
            format!(r#"[{{"key":{{"drvPath":"{derivation}","outputName":"{output}"}},"value":{value}}}]"#)
        };
        for named in [derivation.clone(), format!("/nix/store/{derivation}")] {
            let mut found = realisations(&entry(&named, "out"), &path(), &dir).unwrap();
            assert_eq!(found[0].key, format!("build-trace-v2/{derivation}/out.doi"));
            let mut text = String::new();
            found[0].body.read_to_string(&mut text).unwrap();
            assert_eq!((found.len(), text.as_str()), (1, value.as_str()));
        }
        let twice = format!("[{0},{0}]", entry(&derivation, "out").trim_matches(['[', ']']));
        assert_eq!(realisations(&twice, &path(), &dir).unwrap().len(), 1);
        let [whole, output] = [derivation.as_str(), path().base_name()].map(str::to_owned);
        for (derivation, output) in [("x", "out"), (&output, "out"), (&whole, "../x"), (&whole, "")] {
            assert!(realisations(&entry(derivation, output), &path(), &dir).is_err(), "{derivation} {output}");
        }
        assert!(
            realisations(&entry(&derivation, "out").replace(path().base_name(), "y"), &path(), &dir)
                .unwrap()
                .is_empty()
        );
    }
}
