//! Standard input to events: runs on a thread of its own, because reading, decompressing and hashing block.

use std::io::{BufRead, Read};
use std::sync::Arc;

use bytes::Bytes;
use nar_pack::error::{Context, Error, Result};
use nar_pack::path_info::PathInfoSource;
use nar_pack::process;
use nar_pack::store_path::{StoreDir, StorePath};
use narinfo_gen::archive::{self, Member, Object};
use narinfo_gen::cache_info::CacheInfo;
use narinfo_gen::compress_nar::CompressedNar;
use narinfo_gen::compression::{Compression, Settings};
use narinfo_gen::extras::Extras;
use narinfo_gen::narinfo::{self, NarInfo};
use narinfo_gen::narinfo_builder::{EntryWriter, NarInfoBuilder};
use narinfo_gen::stream::Kind;
use narinfo_gen::verify_nar::{NarDigests, digest_named_nar};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::TOOL;
use crate::publish::upload::{Body, BodyLength, ByteBudget, Part, PartSizes};
use crate::remote::chunks::{Chunk, ChunkReader};

/// Largest object beside NARs and narinfos (a build log, a listing), in bytes.
const MAX_OBJECT: u64 = 64 << 20;

/// Largest object that S3 takes, in bytes: 5 TiB.
const MAX_NAR: u64 = 5 << 40;
/// Bytes that are set aside for a part before any of it is there.
const MAX_PREALLOCATION: usize = 16 << 20;

/// What comes in.
pub enum Event {
    /// `nix-cache-info`.
    CacheInfo(CacheInfo),
    /// A NAR; its body may still be arriving.
    Nar(Nar),
    /// A narinfo.
    Narinfo(Box<NarInfo>),
    /// Any other object of a cache.
    Object {
        /// Its key.
        key: String,
        /// What it is.
        object: Object,
        /// All of it.
        body: Part,
    },
    /// Reading waits for memory, which bodies that wait for something hold.
    Pressure,
}

/// A compressed NAR on its way.
pub struct Nar {
    /// Its key.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its bytes.
    pub body: Body,
    /// What it turned out to be, once all of it has been read.
    pub verdict: oneshot::Receiver<Result<NarDigests>>,
}

/// What a NAR of that key turned out to be; one whose reading ended before its verdict is cut off.
///
/// # Errors
/// What the verdict says.
pub async fn verified(key: &str, verdict: oneshot::Receiver<Result<NarDigests>>) -> Result<NarDigests> {
    verdict.await.unwrap_or_else(|_| Err(Error::refused("the NAR is cut off"))).context(|| key.to_owned())
}

/// The reading side.
pub struct Intake {
    /// Where events go.
    pub events: mpsc::Sender<Event>,
    /// What bodies share.
    pub memory: ByteBudget,
    /// Least size of a part.
    pub part_size: u64,
    /// NARs that may be examined at once.
    pub examiners: Arc<Semaphore>,
    /// The runtime on which the other side runs.
    pub runtime: Handle,
}

impl Intake {
    fn send(&self, event: Event) -> Result {
        // Closed only when the push has failed, and that failure is the one to report.
        self.events.blocking_send(event).map_err(|_| Error::failed("the push was given up"))
    }

    /// Reads `size` bytes into memory that the budget allows.
    fn part(&self, body: &mut dyn Read, size: usize) -> Result<Part> {
        let share = if let Some(share) = self.memory.try_take(size) {
            share
        } else {
            self.send(Event::Pressure)?;
            self.runtime.block_on(self.memory.take(size))?
        };
        // Not more at once than is sure to come: sizes are what somebody claims.
        let mut bytes = Vec::with_capacity(size.min(MAX_PREALLOCATION));
        body.take(size as u64).read_to_end(&mut bytes)?;
        Ok(Part::new(Bytes::from(bytes), share))
    }

    /// Reads a cache archive.
    pub fn archive(&self, input: impl BufRead, store_dir: &StoreDir) -> Result {
        archive::read(input, |member| self.member(member, store_dir))
    }

    fn member(&self, mut member: Member<'_>, store_dir: &StoreDir) -> Result {
        match member.object {
            Object::CacheInfo => {
                let info = CacheInfo::parse(&member.text(member.text_limit())?)?;
                self.send(Event::CacheInfo(info))
            }
            Object::Narinfo(hash) => {
                let narinfo = NarInfo::parse(&member.text(member.text_limit())?, store_dir)?;
                if narinfo.path.hash_part() != hash {
                    return Err(Error::refused(format!("it describes another path, {}", narinfo.path)));
                }
                self.send(Event::Narinfo(Box::new(narinfo)))
            }
            Object::Nar(hash) => self.received_nar(&mut member, hash),
            object => {
                if member.size > MAX_OBJECT {
                    return Err(Error::refused(format!("larger than {MAX_OBJECT} bytes")));
                }
                let size = usize::try_from(member.size).unwrap_or(usize::MAX);
                let body = self.part(member.body, size)?;
                self.send(Event::Object { key: member.key, object, body })
            }
        }
    }

    /// A NAR that somebody else packed is examined while it is sent.
    fn received_nar(&self, member: &mut Member<'_>, hash: Option<narinfo_gen::hash::Sha256>) -> Result {
        if member.size > MAX_NAR {
            return Err(Error::refused(format!("{} bytes; S3 takes no object above 5 TiB", member.size)));
        }
        let place = Arc::clone(&self.examiners);
        let place = self.runtime.block_on(place.acquire_owned()).map_err(|_| Error::failed("the push was given up"))?;
        let (chunks, to_examine) = mpsc::channel(2);
        let (verdict, verified) = oneshot::channel();
        let key = member.key.clone();
        self.runtime.spawn_blocking(move || {
            let digests = digest_named_nar(ChunkReader::new(to_examine), &key, &mut nar_pack::nar::Skip);
            let digests = digests.and_then(|digests| match hash {
                Some(hash) if hash != digests.file_hash => {
                    Err(Error::refused(format!("its FileHash is {}, not what its name says", digests.file_hash)))
                }
                _ => Ok(digests),
            });
            drop(place);
            // Nobody listens any more when the push has failed.
            let _ = verdict.send(digests);
        });
        self.nar(&member.key, member.size, member.body, verified, |part| {
            // An examiner that has seen enough has given its verdict.
            let _ = chunks.blocking_send(Ok(part.map_or(Chunk::End, Chunk::Data)));
        })
    }

    /// Announces a NAR and sends its parts, each also to `each`, and none to it at the end.
    fn nar(
        &self,
        key: &str,
        size: u64,
        body: &mut dyn Read,
        verdict: oneshot::Receiver<Result<NarDigests>>,
        mut each: impl FnMut(Option<Part>),
    ) -> Result {
        let sizes = PartSizes::new(self.part_size, Some(size));
        let (parts, arriving) = mpsc::channel(2);
        let nar = Nar { key: key.to_owned(), size, body: Body { parts: arriving, form: sizes.form() }, verdict };
        let mut nar = Some(nar);
        if matches!(sizes.form(), BodyLength::Large { .. }) {
            self.announce(&mut nar)?;
        }
        let mut left = size;
        for index in 0.. {
            if left == 0 {
                break;
            }
            let want = sizes.of(index).min(usize::try_from(left).unwrap_or(usize::MAX));
            let part = self.part(body, want)?;
            if part.bytes.len() < want {
                return Err(Error::refused("the NAR is cut off"));
            }
            left -= want as u64;
            each(Some(part.clone()));
            // Closed when the bucket has this NAR already; it is read to its end all the same, to be verified.
            let _ = parts.blocking_send(part);
        }
        each(None);
        self.announce(&mut nar)
    }

    fn announce(&self, nar: &mut Option<Nar>) -> Result {
        nar.take().map_or(Ok(()), |nar| self.send(Event::Nar(nar)))
    }

    /// Reads narinfo text.
    pub fn text(&self, input: impl BufRead, store_dir: &StoreDir) -> Result {
        narinfo::read_text(input, store_dir, |narinfo, _| self.send(Event::Narinfo(Box::new(narinfo))))
    }

    /// Reads a NAR or an export stream, and does what `narinfo-gen` does.
    pub fn describe(
        &self,
        kind: Kind,
        mut input: impl BufRead,
        path: Option<StorePath>,
        settings: Settings,
        path_info: &mut PathInfoSource,
    ) -> Result {
        let writer = Packed { intake: self, method: settings.method };
        let (extras, warn) = (Extras::default(), |warning: &str| process::print_message(TOOL, warning));
        let mut builder = NarInfoBuilder { settings, path_info, extras, writer, warn };
        match path {
            Some(path) if kind == Kind::Nar => builder.nar(&mut input, &path, None).context(|| path.to_string()),
            _ => builder.export(&mut input),
        }
    }
}

/// What is packed here, on its way to the bucket.
struct Packed<'a> {
    intake: &'a Intake,
    method: Compression,
}

impl EntryWriter for Packed<'_> {
    fn write_nar(&mut self, key: &str, mut nar: CompressedNar) -> Result {
        let digests = NarDigests {
            method: self.method,
            file_hash: nar.file_hash,
            file_size: nar.file_size,
            nar_hash: nar.nar_hash,
            nar_size: nar.nar_size,
        };
        let (verdict, verified) = oneshot::channel();
        let _ = verdict.send(Ok(digests));
        self.intake.nar(key, nar.file_size, &mut nar.body, verified, |_| {})
    }

    fn write_narinfo(&mut self, narinfo: NarInfo, _: bool) -> Result {
        self.intake.send(Event::Narinfo(Box::new(narinfo)))
    }
}
