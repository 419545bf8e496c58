//! A NAR in, a compressed NAR with its hashes out, in one pass.

use std::io::{self, BufRead, Seek, Write};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use nar_pack::nar::{Tee, Visitor, parse};
use nar_pack::references::Scanner;
use nar_pack::stage::{Doing, Failure, Outcome};
use nar_pack::store_path::StorePath;
use tempfile::SpooledTempFile;

use crate::compression::{Encoder, FRAME, Settings};
use crate::hash::{Hasher, Sha256};

/// Compressed bytes that are kept in memory; what is larger goes to an unlinked temporary file.
pub const IN_MEMORY: usize = 16 << 20;

/// A compressed NAR, kept until it is sent: its key is its own hash, which is known only at its end.
pub struct PackedNar {
    /// The compressed bytes, at their beginning.
    pub body: SpooledTempFile,
    /// Hash of the compressed bytes.
    pub file_hash: Sha256,
    /// How many they are.
    pub file_size: u64,
    /// Hash of the NAR.
    pub nar_hash: Sha256,
    /// Size of the NAR in bytes.
    pub nar_size: u64,
    /// The candidates that the NAR mentions, if it was scanned.
    pub references: Option<Vec<StorePath>>,
}

impl PackedNar {
    /// Key of the NAR in its cache.
    #[must_use]
    pub fn key(&self, settings: &Settings) -> String {
        format!("nar/{}.nar{}", self.file_hash.base32(), settings.method.extension())
    }
}

/// Reads one NAR from `input`, and no further; compresses, hashes and, with a scanner, looks for references. Its tree
/// goes to `visitor`.
///
/// # Errors
/// Refuses a malformed or truncated NAR; fails where the temporary file does.
pub fn pack(
    input: &mut impl BufRead,
    settings: &Settings,
    scanner: Option<Scanner>,
    visitor: &mut impl Visitor,
) -> Outcome<PackedNar> {
    let file = FileSink { body: SpooledTempFile::new(IN_MEMORY), hasher: Hasher::default(), failed: None };
    let mut pieces = Pieces::new(Encoder::new(settings, file)?, scanner);
    parse(&mut Tee::new(&mut *input, |bytes| pieces.add(bytes)), visitor)?;
    pieces.finish()
}

/// Where compressed bytes go: hashed and kept.
struct FileSink {
    body: SpooledTempFile,
    hasher: Hasher,
    /// The first failure; not every encoder passes on what happens while it writes its end.
    failed: Option<Failure>,
}

impl Write for FileSink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_all(buf)?;
        Ok(buf.len())
    }

    fn write_all(&mut self, buf: &[u8]) -> io::Result<()> {
        self.hasher.update(buf);
        self.body.write_all(buf).map_err(|error| {
            let failure = Failure::failed(format!("keeping a compressed NAR: {error}"));
            self.failed.get_or_insert(failure).clone().into()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hash and references of the NAR itself.
struct Reading {
    hasher: Hasher,
    scanner: Option<Scanner>,
}

impl Reading {
    fn add(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        if let Some(scanner) = &mut self.scanner {
            scanner.feed(bytes);
        }
    }
}

/// Gathers the NAR into pieces; each goes to the encoder and, beside it, to a thread that hashes and scans. A NAR of
/// one piece needs no thread.
struct Pieces {
    encoder: Encoder<FileSink>,
    reading: ReadingAt,
    piece: Vec<u8>,
}

enum ReadingAt {
    Here(Reading),
    Beside { pieces: SyncSender<Arc<Vec<u8>>>, thread: JoinHandle<Reading> },
}

impl Pieces {
    fn new(encoder: Encoder<FileSink>, scanner: Option<Scanner>) -> Self {
        let reading = ReadingAt::Here(Reading { hasher: Hasher::default(), scanner });
        Self { encoder, reading, piece: Vec::new() }
    }

    fn add(&mut self, mut bytes: &[u8]) -> Outcome {
        while !bytes.is_empty() {
            let room = (FRAME - self.piece.len()).min(bytes.len());
            self.piece.extend_from_slice(&bytes[..room]);
            bytes = &bytes[room..];
            if self.piece.len() == FRAME {
                self.hand_on()?;
            }
        }
        Ok(())
    }

    fn hand_on(&mut self) -> Outcome {
        let piece = Arc::new(std::mem::replace(&mut self.piece, Vec::with_capacity(FRAME)));
        self.reading = match std::mem::replace(&mut self.reading, ReadingAt::Here(Reading::nothing())) {
            ReadingAt::Here(reading) => ReadingAt::beside(reading),
            beside @ ReadingAt::Beside { .. } => beside,
        };
        if let ReadingAt::Beside { pieces, .. } = &self.reading {
            pieces.send(Arc::clone(&piece)).map_err(|_| Failure::failed("the hashing thread died"))?;
        }
        self.encoder.push(&piece).doing(|| "compressing")
    }

    fn finish(mut self) -> Outcome<PackedNar> {
        let last = Arc::new(std::mem::take(&mut self.piece));
        if !last.is_empty() {
            self.encoder.push(&last).doing(|| "compressing")?;
        }
        let mut reading = match self.reading {
            ReadingAt::Here(reading) => reading,
            ReadingAt::Beside { pieces, thread } => {
                drop(pieces);
                thread.join().map_err(|_| Failure::failed("the hashing thread died"))?
            }
        };
        reading.add(&last);
        let FileSink { mut body, hasher, failed } = self.encoder.finish().doing(|| "compressing")?;
        failed.map_or(Ok(()), Err)?;
        body.rewind().map_err(Failure::from).doing(|| "reading back a compressed NAR")?;
        let (file_hash, file_size) = hasher.finish();
        let (nar_hash, nar_size) = reading.hasher.finish();
        let references = reading.scanner.map(Scanner::finish);
        Ok(PackedNar { body, file_hash, file_size, nar_hash, nar_size, references })
    }
}

impl Reading {
    fn nothing() -> Self {
        Self { hasher: Hasher::default(), scanner: None }
    }
}

impl ReadingAt {
    fn beside(mut reading: Reading) -> Self {
        let (pieces, queue) = sync_channel::<Arc<Vec<u8>>>(1);
        let thread = std::thread::spawn(move || {
            for piece in queue {
                reading.add(&piece);
            }
            reading
        });
        Self::Beside { pieces, thread }
    }
}
