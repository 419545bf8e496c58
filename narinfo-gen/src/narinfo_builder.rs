//! From a NAR or an export stream to narinfos: the work of `narinfo-gen`, also done by `s3-push` for such input.

use std::collections::HashMap;
use std::io::BufRead;
use std::sync::Arc;

use nar_pack::error::{Error, Result};
use nar_pack::export::{Trailer, read_marker, read_trailer};
use nar_pack::path_info::{PathInfo, PathInfoSource};
use nar_pack::references::{Candidates, Scanner};
use nar_pack::store_path::StorePath;

use crate::compress_nar::{CompressedNar, NarCompressor, compress_each};
use crate::compression::Settings;
use crate::content_address::in_base32;
use crate::extras::{Contents, Extras, Logs, Object, realisations};
use crate::hash::Sha256;
use crate::narinfo::NarInfo;
use crate::stream::{Kind, require_end};

/// Narinfos that wait for one question to the installed Nix about their content addresses and signatures. Where there is
/// no Nix to ask, none waits.
const BATCH: usize = 32;

/// What happens to what was found out. NARs come before their narinfos, narinfos in the order of the stream.
pub trait Sink: Send {
    /// A compressed NAR, under its key.
    fn nar(&mut self, key: &str, nar: CompressedNar) -> Result;
    /// A narinfo; `more` when another follows.
    fn narinfo(&mut self, narinfo: NarInfo, more: bool) -> Result;
    /// Another object of the path at hand, if any were asked for; after its NAR, before its narinfo.
    fn object(&mut self, _: Object) -> Result {
        Ok(())
    }
}

/// Turns NARs into narinfos.
pub struct NarInfoBuilder<'a, S> {
    /// How NARs are compressed.
    pub settings: Settings,
    /// Who knows about paths.
    pub registry: &'a mut PathInfoSource,
    /// What is made beside NARs and narinfos.
    pub extras: Extras,
    /// Where the result goes.
    pub sink: S,
    /// Where warnings go.
    pub warn: fn(&str),
}

impl<S: Sink> NarInfoBuilder<'_, S> {
    /// Describes the NAR of one path; nothing may follow it.
    ///
    /// # Errors
    /// Refuses a malformed NAR, and one that `--path-info` describes otherwise.
    pub fn nar(&mut self, input: &mut impl BufRead, path: &StorePath, deriver: Option<&StorePath>) -> Result {
        let known = self.registry.query(std::slice::from_ref(path))?.remove(path);
        // Scanned even when the references are known: only its hash will tell whether this is the NAR that Nix knows.
        let mut candidates = self.registry.candidates()?;
        candidates.retain(|candidate| candidate.hash_part() != path.hash_part());
        let candidates: Candidates = candidates.into_iter().chain([path.clone()]).collect();
        let scanner = Scanner::new(Arc::new(candidates));
        let (settings, contents) = (self.settings, Contents::new(&self.extras));
        let read = |compressor: &mut NarCompressor<Contents>| {
            let mut contents = contents;
            compressor.nar(input, Some(scanner), &mut contents)?;
            require_end(input, Kind::Nar)?;
            compressor.described(contents)
        };
        compress_each(&settings, read, |nar, contents| {
            let known = known.clone().filter(|info| self.is_of(info, path, nar.nar_hash));
            let trailer = Trailer {
                path: path.clone(),
                references: match &known {
                    Some(info) => info.references.clone(),
                    None => nar.references.clone().unwrap_or_default(),
                },
                deriver: deriver.cloned().or_else(|| known.as_ref().and_then(|info| info.deriver.clone())),
            };
            let mut narinfo = self.narinfo_of(&trailer, &nar);
            self.sink.nar(&narinfo.url, nar)?;
            let mut logs = self.extras.logs.as_deref().map(Logs::new);
            self.objects(contents, &narinfo, logs.as_mut())?;
            add_known(&mut narinfo, known);
            self.realisations(&narinfo)?;
            self.sink.narinfo(narinfo, false)
        })
    }

    /// Describes every path of an export stream.
    ///
    /// # Errors
    /// Refuses a malformed or truncated stream.
    pub fn export(&mut self, input: &mut impl BufRead) -> Result {
        let (settings, store_dir, extras) = (self.settings, self.registry.store_dir.clone(), self.extras.clone());
        let read = |compressor: &mut NarCompressor<(Contents, Trailer, bool)>| {
            let mut more = read_marker(input)?;
            while more {
                let mut contents = Contents::new(&extras);
                compressor.nar(input, None, &mut contents)?;
                let trailer = read_trailer(input, &store_dir)?;
                more = read_marker(input)?;
                compressor.described((contents, trailer, more))?;
            }
            Ok(())
        };
        let mut waiting: Vec<NarInfo> = Vec::new();
        let logs = self.extras.logs.clone();
        let mut logs = logs.as_deref().map(Logs::new);
        compress_each(&settings, read, |nar, (contents, trailer, more)| {
            let narinfo = self.narinfo_of(&trailer, &nar);
            self.sink.nar(&narinfo.url, nar)?;
            self.objects(contents, &narinfo, logs.as_mut())?;
            waiting.push(narinfo);
            if waiting.len() < BATCH && more && self.registry.asks_nix() {
                return Ok(());
            }
            self.hand_on(std::mem::take(&mut waiting), more)
        })
    }

    fn hand_on(&mut self, narinfos: Vec<NarInfo>, more: bool) -> Result {
        let paths: Vec<StorePath> = narinfos.iter().map(|narinfo| narinfo.path.clone()).collect();
        let mut known: HashMap<StorePath, PathInfo> = self.registry.query(&paths)?;
        let last = narinfos.len();
        for (index, mut narinfo) in narinfos.into_iter().enumerate() {
            let info = known.remove(&narinfo.path);
            let info = info.filter(|info| self.is_of(info, &narinfo.path, narinfo.nar_hash));
            add_known(&mut narinfo, info);
            self.realisations(&narinfo)?;
            self.sink.narinfo(narinfo, more || index + 1 < last)?;
        }
        Ok(())
    }

    /// What follows from the contents of a path and from its deriver.
    fn objects(&mut self, contents: Contents, narinfo: &NarInfo, logs: Option<&mut Logs>) -> Result {
        let (mut objects, missing) = contents.into_objects(&narinfo.path, &narinfo.url)?;
        if let Some(failure) = missing {
            (self.warn)(&format!("{}: no listing is written: {failure}", narinfo.path));
        }
        if let (Some(logs), Some(deriver)) = (logs, &narinfo.deriver) {
            // A build that was killed may leave half of one; the path is whole all the same.
            objects.extend(self.or_warn(logs.take(deriver), &narinfo.path, "log")?.flatten());
        }
        objects.into_iter().try_for_each(|object| self.sink.object(object))
    }

    /// Only the outputs of content-addressed derivations have a content address and a deriver.
    fn realisations(&mut self, narinfo: &NarInfo) -> Result {
        let (true, Some(_), Some(deriver)) = (self.extras.realisations, &narinfo.ca, &narinfo.deriver) else {
            return Ok(());
        };
        let Some(json) = self.registry.realisations(deriver) else {
            (self.warn)(&format!("{}: no Nix here tells the realisations of {deriver}", narinfo.path));
            return Ok(());
        };
        let objects = realisations(&json, &narinfo.path, &self.registry.store_dir);
        let objects = self.or_warn(objects, &narinfo.path, &format!("realisation of {deriver}"))?;
        objects.into_iter().flatten().try_for_each(|object| self.sink.object(object))
    }

    /// What an entry is good without: a refusal only warns.
    fn or_warn<T>(&self, made: Result<T>, path: &StorePath, what: &str) -> Result<Option<T>> {
        match made {
            Err(failure) if failure.is_refusal() => {
                (self.warn)(&format!("{path}: no {what} is written: {failure}"));
                Ok(None)
            }
            made => made.map(Some),
        }
    }

    /// Whether what is known of a path is about this very NAR. The same path may have been built elsewhere with other
    /// contents, for which signatures and content address of this one would not hold.
    fn is_of(&self, info: &PathInfo, path: &StorePath, nar_hash: Sha256) -> bool {
        let same = Sha256::parse(&info.nar_hash).is_ok_and(|hash| hash == nar_hash);
        if !same {
            (self.warn)(&format!(
                "{path}: the path info known here is of other contents ({}); it is not used",
                info.nar_hash
            ));
        }
        same
    }

    fn narinfo_of(&self, trailer: &Trailer, nar: &CompressedNar) -> NarInfo {
        NarInfo {
            store_dir: self.registry.store_dir.clone(),
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

fn add_known(narinfo: &mut NarInfo, known: Option<PathInfo>) {
    if let Some(info) = known {
        narinfo.ca = info.ca.as_deref().map(in_base32);
        for signature in info.signatures {
            narinfo.add_signature(signature);
        }
    }
}

/// The path of a NAR on standard input, which must be given, and must not be for an export stream.
///
/// # Errors
/// A usage failure when it is not as it must be.
pub fn require_path(kind: Kind, path: Option<StorePath>) -> Result<Option<StorePath>> {
    match (kind, path) {
        (Kind::Nar, None) => Err(Error::failed("standard input is a NAR; say which STORE-PATH it is of")),
        (Kind::Nar, path) => Ok(path),
        (_, Some(path)) => Err(Error::failed(format!(
            "standard input is {}, which names its paths; {path} is one too many",
            kind.name()
        ))),
        (_, None) => Ok(None),
    }
}
