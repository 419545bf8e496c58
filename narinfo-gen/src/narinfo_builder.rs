//! Builds the narinfos of a NAR or an export stream: the work of `narinfo-gen`, which `s3-push` also does for such input.
//! Compression, path info and the extras have modules of their own; this one combines them in the order of the stream.

use std::collections::HashMap;
use std::io::BufRead;
use std::sync::Arc;

use nar_pack::error::{Error, Result};
use nar_pack::export::{Trailer, read_marker, read_trailer};
use nar_pack::nar::require_end;
use nar_pack::path_info::{PathInfo, PathInfoSource};
use nar_pack::references::{Candidates, Scanner};
use nar_pack::store_path::{HashPart, StorePath};

use crate::compress_nar::{CompressedNar, NarCompressor, compress_each};
use crate::compression::Settings;
use crate::content_address::{self, added_path, of_added_path, to_base32};
use crate::extras::{BuildLogs, ExtraObject, Extras, NarExtras, build_trace_entries};
use crate::hash::Sha256;
use crate::narinfo::{NarInfo, is_signature};
use crate::stream::Kind;

/// Maximum number of narinfos that wait for one query of the installed Nix, which returns their content addresses and
/// signatures. Without an installed Nix, none waits.
const MAX_QUERY_BATCH: usize = 32;

/// Receives the objects of cache entries. A NAR precedes its narinfo; narinfos have the order of the stream.
///
/// # Errors
/// An error of any method ends the reading of the stream, and the builder returns it.
pub trait EntryWriter: Send {
    /// Writes a compressed NAR with this key.
    fn write_nar(&mut self, key: &str, nar: CompressedNar) -> Result;
    /// Writes a narinfo; `more` states whether another one follows.
    fn write_narinfo(&mut self, narinfo: NarInfo, more: bool) -> Result;
    /// Writes another object of the current path, if extras are selected. It follows the NAR and precedes the narinfo.
    fn write_object(&mut self, _: ExtraObject) -> Result {
        Ok(())
    }
}

/// The store path of a NAR, which does not contain it.
#[derive(Debug, Clone)]
pub enum NarPath {
    /// This path.
    Given(StorePath),
    /// The content-addressed path without references that `nix-store --add` computes.
    Added {
        /// The name of the path.
        name: String,
        /// Whether hash parts of other paths in the NAR are ignored. Otherwise such a NAR is refused.
        no_references: bool,
    },
}

/// Builds narinfos from NARs.
pub struct NarInfoBuilder<'a, W> {
    /// How to compress NARs.
    pub settings: Settings,
    /// Where references, derivers, content addresses and signatures come from.
    pub path_info: &'a mut PathInfoSource,
    /// The objects to write besides NARs and narinfos.
    pub extras: Extras,
    /// Where the objects are written.
    pub writer: W,
    /// Prints a warning.
    pub warn: fn(&str),
}

impl<W: EntryWriter> NarInfoBuilder<'_, W> {
    /// Builds the narinfo of `path` from its NAR, which must be all of `input`.
    ///
    /// # Errors
    /// Refuses a malformed NAR, data after its end, and a NAR with other contents than its path info describes.
    pub fn nar(&mut self, input: &mut impl BufRead, path: &StorePath, deriver: Option<&StorePath>) -> Result {
        let path_info = self.path_info.query(std::slice::from_ref(path))?.remove(path);
        let scanner = if path_info.is_none() { Some(self.scanner(path)?) } else { None };
        self.compress_nar(input, scanner, |builder, nar, extras| {
            if let Some(info) = &path_info {
                builder.require_contents(info, path, nar.nar_hash)?;
            }
            let trailer = Trailer {
                path: path.clone(),
                references: match &path_info {
                    Some(info) => info.references.clone(),
                    None => nar.references.clone().unwrap_or_default(),
                },
                deriver: deriver.cloned().or_else(|| path_info.as_ref().and_then(|info| info.deriver.clone())),
            };
            let mut narinfo = builder.narinfo(&trailer, &nar);
            builder.writer.write_nar(&narinfo.url, nar)?;
            let mut logs = builder.extras.log_dir.as_deref().map(BuildLogs::new);
            builder.write_objects(extras, &narinfo, logs.as_mut())?;
            add_path_info(&mut narinfo, path_info.clone());
            builder.write_build_trace(&narinfo)?;
            builder.writer.write_narinfo(narinfo, false)
        })
    }

    /// Builds the narinfo of the content-addressed path with the name `name` from its NAR, which must be all of `input`.
    ///
    /// # Errors
    /// Refuses a malformed NAR, data after its end, an invalid name and, unless `no_references` is set, a NAR that
    /// contains the hash part of a candidate path, since the path would have no references.
    pub fn added_nar(&mut self, input: &mut impl BufRead, name: &str, no_references: bool) -> Result {
        let store_dir = self.path_info.store_dir.clone();
        let scanner = if no_references {
            None
        } else {
            let candidates: Candidates = self.path_info.candidates()?.into_iter().collect();
            Some(Scanner::new(Arc::new(candidates)))
        };
        // Fails before anything is read if the name is invalid.
        added_path(&store_dir, Sha256::of(b""), name)?;
        self.compress_nar(input, scanner, |builder, nar, extras| {
            refuse_references(nar.references.as_deref().unwrap_or_default())?;
            let path = added_path(&store_dir, nar.nar_hash, name)?;
            let mut narinfo = builder.narinfo(&Trailer { path, references: Vec::new(), deriver: None }, &nar);
            narinfo.ca = Some(of_added_path(nar.nar_hash));
            builder.writer.write_nar(&narinfo.url, nar)?;
            builder.write_objects(extras, &narinfo, None)?;
            builder.writer.write_narinfo(narinfo, false)
        })
    }

    /// Compresses and scans the NAR that is all of `input`, and passes it to `write`.
    fn compress_nar(
        &mut self,
        input: &mut impl BufRead,
        scanner: Option<Scanner>,
        mut write: impl FnMut(&mut Self, CompressedNar, NarExtras) -> Result + Send,
    ) -> Result {
        let (settings, mut extras) = (self.settings, NarExtras::new(&self.extras));
        let read = |compressor: &mut NarCompressor<NarExtras>| {
            compressor.read_nar(input, scanner, &mut extras)?;
            require_end(input)?;
            compressor.finish_nar(extras)
        };
        compress_each(&settings, read, |nar, extras| write(self, nar, extras))
    }

    /// Returns a scanner for the references of `path`. The path itself replaces candidates with the same hash part.
    fn scanner(&self, path: &StorePath) -> Result<Scanner> {
        self.path_info.require_scannable(path)?;
        let mut candidates = self.path_info.candidates()?;
        candidates.retain(|candidate| candidate.hash_part() != path.hash_part());
        let candidates: Candidates = candidates.into_iter().chain([path.clone()]).collect();
        Ok(Scanner::new(Arc::new(candidates)))
    }

    /// Builds the narinfos of all paths of an export stream.
    ///
    /// # Errors
    /// Refuses a malformed or truncated stream, and a NAR with other contents than its path info describes.
    pub fn export(&mut self, input: &mut impl BufRead) -> Result {
        let (settings, store_dir, selected) = (self.settings, self.path_info.store_dir.clone(), self.extras.clone());
        let read = |compressor: &mut NarCompressor<(NarExtras, Trailer, bool)>| {
            let mut more = read_marker(input)?;
            while more {
                let mut extras = NarExtras::new(&selected);
                compressor.read_nar(input, None, &mut extras)?;
                let trailer = read_trailer(input, &store_dir)?;
                more = read_marker(input)?;
                compressor.finish_nar((extras, trailer, more))?;
            }
            Ok(())
        };
        let mut batch: Vec<NarInfo> = Vec::new();
        let mut seen: HashMap<HashPart, Sha256> = HashMap::new();
        let mut logs = self.extras.log_dir.as_deref().map(BuildLogs::new);
        compress_each(&settings, read, |nar, (extras, trailer, more)| {
            let narinfo = self.narinfo(&trailer, &nar);
            let other = seen.insert(narinfo.path.hash_part(), nar.nar_hash);
            if other.is_some_and(|nar_hash| nar_hash != narinfo.nar_hash) {
                let path = narinfo.full_path();
                return Err(Error::refused(format!("export stream: {path} occurs twice, with different contents")));
            }
            self.writer.write_nar(&narinfo.url, nar)?;
            self.write_objects(extras, &narinfo, logs.as_mut())?;
            batch.push(narinfo);
            if batch.len() < MAX_QUERY_BATCH && more && self.path_info.asks_nix() {
                return Ok(());
            }
            self.write_batch(std::mem::take(&mut batch), more)
        })
    }

    /// Adds path info to the narinfos and writes them.
    fn write_batch(&mut self, batch: Vec<NarInfo>, more: bool) -> Result {
        let paths: Vec<StorePath> = batch.iter().map(|narinfo| narinfo.path.clone()).collect();
        let mut path_infos: HashMap<StorePath, PathInfo> = self.path_info.query(&paths)?;
        let count = batch.len();
        for (index, mut narinfo) in batch.into_iter().enumerate() {
            let info = path_infos.remove(&narinfo.path);
            if let Some(info) = &info {
                self.require_contents(info, &narinfo.path, narinfo.nar_hash)?;
                self.require_references(info, &narinfo)?;
            }
            add_path_info(&mut narinfo, info);
            self.write_build_trace(&narinfo)?;
            self.writer.write_narinfo(narinfo, more || index + 1 < count)?;
        }
        Ok(())
    }

    /// Writes the listing, the debug information links and the build log of a path.
    fn write_objects(&mut self, extras: NarExtras, narinfo: &NarInfo, logs: Option<&mut BuildLogs>) -> Result {
        let (mut objects, no_listing) = extras.into_objects(&narinfo.path, &narinfo.url)?;
        if let Some(reason) = no_listing {
            (self.warn)(&format!("warning: {}: no listing is written: {reason}", narinfo.path));
        }
        if let (Some(logs), Some(deriver)) = (logs, &narinfo.deriver) {
            // An interrupted build may leave half a log, which does not make the path invalid.
            objects.extend(self.warn_if_refused(logs.read(deriver), &narinfo.path, "log")?.flatten());
        }
        objects.into_iter().try_for_each(|object| self.writer.write_object(object))
    }

    /// Writes the build trace entries of a path. Only outputs of content-addressed derivations have a content address and
    /// a deriver.
    fn write_build_trace(&mut self, narinfo: &NarInfo) -> Result {
        let (true, Some(_), Some(deriver)) = (self.extras.realisations, &narinfo.ca, &narinfo.deriver) else {
            return Ok(());
        };
        let Some(json) = self.path_info.realisations(deriver) else {
            let path = &narinfo.path;
            (self.warn)(&format!(
                "warning: {path}: no realisation is written: no installed Nix has the realisations of {deriver}"
            ));
            return Ok(());
        };
        let objects = build_trace_entries(&json, &narinfo.path, &self.path_info.store_dir);
        let objects = self.warn_if_refused(objects, &narinfo.path, &format!("realisation of {deriver}"))?;
        objects.into_iter().flatten().try_for_each(|object| self.writer.write_object(object))
    }

    /// Turns a refusal into a warning, because a path is complete without its extras.
    fn warn_if_refused<T>(&self, result: Result<T>, path: &StorePath, what: &str) -> Result<Option<T>> {
        match result {
            Err(error) if error.is_refusal() => {
                (self.warn)(&format!("warning: {path}: no {what} is written: {error}"));
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    /// Requires that path info describes this NAR. A store path that has been damaged must not be signed, and signatures and
    /// a content address do not apply to the same path that was built elsewhere with different contents.
    fn require_contents(&self, info: &PathInfo, path: &StorePath, nar_hash: Sha256) -> Result {
        let full_path = self.path_info.store_dir.join(path);
        let has_no_value = |field: &str, value: &str| {
            Error::refused(format!("{full_path}: its path info has the {field} {value:?}, which is not valid"))
        };
        if let Some(signature) = info.signatures.iter().find(|signature| !is_signature(signature)) {
            return Err(has_no_value("signature", signature));
        }
        if let Some(ca) = info.ca.as_ref().filter(|ca| !content_address::is_valid(&to_base32(ca))) {
            return Err(has_no_value("content address", ca));
        }
        if Sha256::parse(&info.nar_hash).is_ok_and(|hash| hash == nar_hash) {
            return Ok(());
        }
        let error = Error::refused(format!(
            "{full_path}: NarHash is {}, but its path info has {}: the path is damaged, or was built elsewhere",
            nar_hash.sri(),
            info.nar_hash
        ));
        let check =
            format!("'nix-store --verify-path {full_path}' checks it; pass --no-nix if it is from another host");
        Err(if self.path_info.is_from_document(path) { error } else { error.with_hint(check) })
    }

    /// Requires that the references in an export stream are those of the path info: signatures are of both, and without a
    /// reference the closure of the path is incomplete.
    fn require_references(&self, info: &PathInfo, narinfo: &NarInfo) -> Result {
        // Both are sorted.
        let differing =
            |of: &[StorePath], other: &[StorePath]| of.iter().find(|path| other.binary_search(path).is_err()).cloned();
        let path = narinfo.full_path();
        let message = if let Some(missing) = differing(&info.references, &narinfo.references) {
            format!("{path}: its path info has the reference {missing}, which the export stream does not have")
        } else if let Some(unknown) = differing(&narinfo.references, &info.references) {
            format!("{path}: the export stream has the reference {unknown}, which its path info does not have")
        } else {
            return Ok(());
        };
        let error = Error::refused(message);
        let hint = "pass --no-nix if the path is from another host";
        Err(if self.path_info.is_from_document(&narinfo.path) { error } else { error.with_hint(hint) })
    }

    fn narinfo(&self, trailer: &Trailer, nar: &CompressedNar) -> NarInfo {
        NarInfo {
            store_dir: self.path_info.store_dir.clone(),
            path: trailer.path.clone(),
            url: nar.key(&self.settings),
            compression: self.settings.method.name().to_owned(),
            file_hash: Some(nar.file_hash),
            file_size: Some(nar.file_size),
            nar_hash: nar.nar_hash,
            nar_size: nar.nar_size,
            references: trailer.references.clone(),
            deriver: trailer.deriver.clone(),
            signatures: Vec::new(),
            ca: None,
            unknown: Vec::new(),
        }
    }
}

fn add_path_info(narinfo: &mut NarInfo, path_info: Option<PathInfo>) {
    if let Some(info) = path_info {
        narinfo.ca = info.ca.as_deref().map(to_base32);
        for signature in info.signatures {
            narinfo.add_signature(signature);
        }
    }
}

/// Refuses references of a path that is added without any.
fn refuse_references(references: &[StorePath]) -> Result {
    let Some(first) = references.first() else { return Ok(()) };
    let others = match references.len() - 1 {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    let error = Error::refused(format!(
        "the NAR contains the hash part of {first}{others}, but a path that is added by name has no references"
    ));
    Err(error.with_hint("pass --no-references if the path does not need them"))
}

/// Checks that a store path or a name is given if and only if standard input is a NAR, and returns it. `hint` is the next
/// step for a NAR without one.
///
/// # Errors
/// A usage error if not.
pub fn require_path(kind: Kind, path: Option<NarPath>, hint: impl FnOnce() -> String) -> Result<Option<NarPath>> {
    match (kind, path) {
        (Kind::Nar, None) => {
            let error = Error::usage("standard input is a NAR, which does not contain its store path");
            Err(error.with_hint(hint()))
        }
        (Kind::Nar, path) => Ok(path),
        (_, Some(NarPath::Given(path))) => {
            let error = Error::usage(format!("unexpected argument {path}: standard input is {}", kind.name()));
            Err(error.with_hint("remove the argument: only a NAR needs a store path"))
        }
        (_, Some(NarPath::Added { .. })) => {
            let error = Error::usage(format!("unexpected --name: standard input is {}", kind.name()));
            Err(error.with_hint("remove the option: only a NAR is added under a name"))
        }
        (_, None) => Ok(None),
    }
}
