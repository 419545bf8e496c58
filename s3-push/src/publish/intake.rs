//! Reads standard input and turns it into events for the publisher. It runs on a thread of its own, because reading,
//! decompression and hashing block. It waits when the memory budget is used up, which limits the memory of the push.

use std::collections::HashMap;
use std::io::{BufRead, Read};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use nar_pack::error::{Context, Error, Result};
use nar_pack::path_info::PathInfoSource;
use nar_pack::process;
use nar_pack::store_path::StoreDir;
use nar_pack::sync::lock;
use narinfo_gen::archive::{self, Member, Object};
use narinfo_gen::buffer_pool::BufferPool;
use narinfo_gen::cache_info::CacheInfo;
use narinfo_gen::compress_nar::CompressedNar;
use narinfo_gen::compression::{Compression, Settings};
use narinfo_gen::extras::{Extras, MAX_EXTRA_SIZE, check_format};
use narinfo_gen::hash::Sha256;
use narinfo_gen::narinfo::{self, NarInfo};
use narinfo_gen::narinfo_builder::{EntryWriter, NarInfoBuilder, NarPath};
use narinfo_gen::verify_nar::{NarDigests, NarSizeLimit, digest_named_file, digest_named_nar};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::TOOL;
use crate::publish::body::{Body, MAX_PREALLOCATION, Part, read_part};
use crate::publish::byte_budget::ByteBudget;
use crate::publish::part_sizes::{self, PartSizes};
use crate::remote::chunks::{Chunk, ChunkReader};

/// Parts that are buffered between the intake and an upload or a verifier.
const PART_CHANNEL_CAPACITY: usize = 2;

/// A piece of the input.
pub enum Event {
    /// `nix-cache-info`.
    CacheInfo(CacheInfo),
    /// A NAR. Its body may still be arriving.
    Nar(ReceivedNar),
    /// A narinfo.
    Narinfo(Box<NarInfo>),
    /// Any other object of a cache.
    Object {
        /// Its key.
        key: String,
        /// Its kind.
        object: Object,
        /// Its whole body.
        body: Part,
    },
    /// The intake waits for memory. Bodies that are kept for later must be uploaded now.
    MemoryFull,
    /// A narinfo is malformed, which ends the push. The NAR before it may be the one that it describes.
    NarinfoRefused,
}

/// A compressed NAR that has arrived, or is arriving.
pub struct ReceivedNar {
    /// Its key.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its body.
    pub body: Body,
    /// Its digests, sent when all of it has been read and verified.
    pub digests: oneshot::Receiver<Result<NarDigests>>,
}

/// Waits for the digests of the NAR with that key.
///
/// # Errors
/// Refuses a NAR that failed verification or is truncated.
pub async fn await_digests(key: &str, digests: oneshot::Receiver<Result<NarDigests>>) -> Result<NarDigests> {
    digests.await.unwrap_or_else(|_| Err(truncated_nar())).context(|| key.to_owned())
}

fn truncated_nar() -> Error {
    Error::refused("the NAR is truncated")
}

/// How the NARs of a cache archive are checked before they are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum NarCheck {
    /// Decompress each NAR, and check NarHash, NarSize, FileHash and FileSize
    #[default]
    Nar,
    /// Check FileHash and FileSize only
    File,
}

/// The reader of standard input.
pub struct Intake {
    /// The publisher's channel.
    pub events: mpsc::Sender<Event>,
    /// The memory budget of all bodies.
    pub memory: ByteBudget,
    /// Buffers of `part_size` bytes.
    pub buffers: BufferPool,
    /// Minimum part size in bytes.
    pub part_size: u64,
    /// How the NARs of archives are checked.
    pub nar_check: NarCheck,
    /// Permits to verify a NAR; one per verifier thread.
    pub verifiers: Arc<Semaphore>,
    /// The runtime of the publisher.
    pub runtime: Handle,
    /// NarSize of the narinfos read so far, by the key of the NAR.
    pub nar_sizes: NarSizes,
}

/// The limits on the sizes of NARs, by key: NarSize as soon as a narinfo has stated it, before or after its NAR. If
/// several narinfos name a NAR, the limit is the largest NarSize.
#[derive(Debug, Default)]
pub struct NarSizes(Mutex<HashMap<String, NarSize>>);

#[derive(Debug)]
struct NarSize {
    /// 0 if no narinfo has stated it.
    stated: u64,
    limit: NarSizeLimit,
}

impl NarSizes {
    /// Sets the limit of a NAR that is being verified, or that comes later.
    fn add(&self, narinfo: &NarInfo) {
        self.with(&narinfo.url, |size| {
            size.stated = size.stated.max(narinfo.nar_size);
            size.limit.set(size.stated);
        });
    }

    fn limit_of(&self, key: &str) -> NarSizeLimit {
        self.with(key, |size| size.limit.clone())
    }

    fn with<T>(&self, key: &str, work: impl FnOnce(&mut NarSize) -> T) -> T {
        let mut sizes = lock(&self.0);
        let unknown = || NarSize { stated: 0, limit: NarSizeLimit::unknown() };
        work(sizes.entry(key.to_owned()).or_insert_with(unknown))
    }
}

impl Intake {
    fn send(&self, event: Event) -> Result {
        // The channel is closed only after the push has failed; that failure is reported.
        self.events.blocking_send(event).map_err(|_| Error::canceled())
    }

    /// Reads at most `size` bytes, after waiting for memory.
    fn read_part(&self, body: &mut dyn Read, size: usize) -> Result<Part> {
        let is_whole = size as u64 == self.part_size && size <= MAX_PREALLOCATION;
        let permit = if let Some(permit) = self.memory.try_acquire(size) {
            permit
        } else {
            self.send(Event::MemoryFull)?;
            self.runtime.block_on(self.memory.acquire(size))?
        };
        // Idle buffers are within the budget too. A whole part uses one of them.
        if !is_whole && self.memory.available() < self.buffers.idle_bytes() as u64 {
            self.buffers.clear();
        }
        let bytes = if is_whole {
            let mut buffer = self.buffers.take();
            buffer.append_from(&mut body.take(size as u64))?;
            Bytes::from_owner(buffer)
        } else {
            Bytes::from(read_part(body, size)?)
        };
        Ok(Part::new(bytes, permit))
    }

    /// Reads a cache archive.
    ///
    /// # Errors
    /// Refuses a malformed or truncated archive.
    pub fn read_archive(&self, input: impl BufRead, store_dir: &StoreDir) -> Result {
        archive::read(input, |member| self.read_member(member, store_dir))
    }

    fn read_member<R: Read>(&self, mut member: Member<'_, R>, store_dir: &StoreDir) -> Result {
        match member.object {
            Object::CacheInfo => {
                let info = CacheInfo::parse(&member.text(member.text_limit())?)?;
                self.send(Event::CacheInfo(info))
            }
            Object::Narinfo(hash) => {
                let text = member.text(member.text_limit());
                let narinfo = match text.and_then(|text| NarInfo::parse_of(hash, &text, store_dir)) {
                    Ok(narinfo) => narinfo,
                    Err(error) => {
                        self.send(Event::NarinfoRefused)?;
                        return Err(error);
                    }
                };
                self.nar_sizes.add(&narinfo);
                self.send(Event::Narinfo(Box::new(narinfo)))
            }
            Object::Nar(hash) => self.read_archived_nar(&mut member, hash),
            object => {
                if member.size > MAX_EXTRA_SIZE as u64 {
                    return Err(Error::refused(format!("larger than {MAX_EXTRA_SIZE} bytes")));
                }
                let size = usize::try_from(member.size).unwrap_or(usize::MAX);
                let body = self.read_part(member.body, size)?;
                check_format(object, &member.key, body.as_ref(), store_dir)?;
                self.send(Event::Object { key: member.key, object, body })
            }
        }
    }

    /// Reads a NAR of a cache archive. Another thread verifies it while it is uploaded.
    fn read_archived_nar(&self, member: &mut Member<'_, impl Read>, file_hash: Option<Sha256>) -> Result {
        if member.size > part_sizes::MAX_OBJECT_SIZE {
            return Err(Error::refused(format!("{} bytes; the maximum object size of S3 is 5 TiB", member.size)));
        }
        let verifiers = Arc::clone(&self.verifiers);
        let permit = self.runtime.block_on(verifiers.acquire_owned()).map_err(|_| Error::canceled())?;
        let (chunks, chunks_to_verify) = mpsc::channel(PART_CHANNEL_CAPACITY);
        let (sender, digests) = oneshot::channel();
        let (key, limit, check) = (member.key.clone(), self.nar_sizes.limit_of(&member.key), self.nar_check);
        self.runtime.spawn_blocking(move || {
            let digests = digest_archived_nar(ChunkReader::new(chunks_to_verify), &key, file_hash, check, &limit);
            drop(permit);
            // Fails if the push has failed.
            let _ = sender.send(digests);
        });
        self.read_nar(&member.key, member.size, member.body, digests, |part| {
            // Fails if the verifier has already refused the NAR.
            let _ = chunks.blocking_send(Ok(part.map_or(Chunk::End, Chunk::Data)));
        })
    }

    /// Reads a NAR part by part. Passes each part to `on_part` too, and `None` at the end.
    fn read_nar(
        &self,
        key: &str,
        size: u64,
        body: &mut dyn Read,
        digests: oneshot::Receiver<Result<NarDigests>>,
        mut on_part: impl FnMut(Option<Part>),
    ) -> Result {
        let sizes = PartSizes::new(self.part_size, Some(size));
        let length = sizes.body_length();
        let (sender, parts) = mpsc::channel(PART_CHANNEL_CAPACITY);
        let mut nar = Some(ReceivedNar { key: key.to_owned(), size, body: Body { parts, length }, digests });
        // The upload of a large NAR starts before all of it has arrived.
        if length.is_multipart() {
            self.announce_nar(&mut nar)?;
        }
        let mut remaining = size;
        while remaining > 0 {
            let part_size = sizes.part_size().min(usize::try_from(remaining).unwrap_or(usize::MAX));
            let part = self.read_part(body, part_size)?;
            if part.bytes.len() < part_size {
                return Err(truncated_nar());
            }
            remaining -= part_size as u64;
            on_part(Some(part.clone()));
            // Fails if the bucket has the NAR already. It is read to the end nevertheless, to be verified.
            let _ = sender.blocking_send(part);
        }
        on_part(None);
        self.announce_nar(&mut nar)
    }

    /// Sends the event of a NAR, the first time it is called.
    fn announce_nar(&self, nar: &mut Option<ReceivedNar>) -> Result {
        nar.take().map_or(Ok(()), |nar| self.send(Event::Nar(nar)))
    }

    /// Reads narinfo text.
    ///
    /// # Errors
    /// Refuses malformed text.
    pub fn read_text(&self, input: impl BufRead, store_dir: &StoreDir) -> Result {
        narinfo::read_text(input, store_dir, |narinfo, _| self.send(Event::Narinfo(Box::new(narinfo))))
    }

    /// Reads a NAR, if a path is given, or an export stream, compresses its NARs and describes them, as `narinfo-gen`
    /// does.
    ///
    /// # Errors
    /// Refuses a malformed or truncated stream.
    pub fn read_nars(
        &self,
        mut input: impl BufRead,
        path: Option<NarPath>,
        settings: Settings,
        path_info: &mut PathInfoSource,
    ) -> Result {
        let writer = EventWriter { intake: self, compression: settings.method };
        let (extras, warn) = (Extras::default(), |warning: &str| process::print_message(TOOL, warning));
        let mut builder = NarInfoBuilder { settings, path_info, extras, writer, warn };
        match path {
            Some(NarPath::Given(path)) => builder.nar(&mut input, &path, None).context(|| path.to_string()),
            Some(NarPath::Added { name, no_references }) => builder.added_nar(&mut input, &name, no_references),
            None => builder.export(&mut input),
        }
    }
}

/// Computes the digests of a NAR of a cache archive, and compares its hash with the one in its key.
fn digest_archived_nar(
    body: ChunkReader<Part>,
    key: &str,
    file_hash: Option<Sha256>,
    check: NarCheck,
    limit: &NarSizeLimit,
) -> Result<NarDigests> {
    let digests = match check {
        NarCheck::Nar => digest_named_nar(body, key, limit, &mut nar_pack::nar::Skip)?,
        NarCheck::File => digest_named_file(body, key)?,
    };
    match file_hash {
        Some(hash) if hash != digests.file_hash => {
            Err(Error::refused(format!("its FileHash is {}, which differs from its file name", digests.file_hash)))
        }
        _ => Ok(digests),
    }
}

/// Sends the output of [`NarInfoBuilder`] as events.
struct EventWriter<'a> {
    intake: &'a Intake,
    compression: Compression,
}

impl EntryWriter for EventWriter<'_> {
    fn write_nar(&mut self, key: &str, mut nar: CompressedNar) -> Result {
        let (sender, digests) = oneshot::channel();
        let _ = sender.send(Ok(NarDigests {
            method: self.compression,
            file_hash: nar.file_hash,
            file_size: nar.file_size,
            nar: Some((nar.nar_hash, nar.nar_size)),
        }));
        self.intake.read_nar(key, nar.file_size, &mut nar.body, digests, |_| {})
    }

    fn write_narinfo(&mut self, narinfo: NarInfo, _: bool) -> Result {
        self.intake.send(Event::Narinfo(Box::new(narinfo)))
    }
}
