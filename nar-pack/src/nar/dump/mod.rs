//! Packs a file tree as a NAR.
//!
//! Packing small files is dominated by system calls, so several threads read a large tree: each takes the next batch of
//! entries in NAR order ([`walk`]) and reads it ([`leaf`]), and the calling thread writes the batches in order. The number
//! of batches and chunks read ahead is bounded, so memory does not grow with the tree. A small tree is read by the calling
//! thread alone. The threads of [`mod@super::restore`] are not built on the same pipeline: here scoped threads produce
//! chunks whose order matters, there threads that outlive the call consume batches in any order.

mod leaf;
mod walk;

use std::ffi::OsStr;
use std::io::{self, Write};
use std::mem::replace;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use self::walk::{Names, Walk};
use crate::error::{Error, Result};
use crate::process::thread_error;
use crate::root_dir::OpenDir;
use crate::sync::lock;

/// Size of a chunk of the NAR that a reader passes to the writer, in bytes. A larger file is read in chunks of this size.
const CHUNK_SIZE: usize = 512 * 1024;
/// Maximum number of reader threads.
const MAX_READERS: usize = 4;
/// Maximum number of batches that have been taken by a reader and wait to be written.
const MAX_BATCHES_AHEAD: usize = 4;
/// Maximum number of chunks of one batch that wait to be written.
const MAX_CHUNKS_AHEAD: usize = 2;

/// Writes `path` as a NAR, byte for byte as `nix-store --dump` does. `warn` receives a warning for each name that some
/// readers refuse.
///
/// Files are read, never mapped: breakpoints set by tracing tools are visible in mappings.
///
/// # Errors
/// Fails if a file cannot be read, is neither a regular file, a directory nor a symbolic link, or is seen to change while
/// it is read; the error names it. The NAR is then truncated.
pub fn dump(path: &Path, out: &mut impl Write, warn: &mut impl FnMut(&str)) -> Result {
    write_walk(Walk::new(None, path.as_os_str(), Names::OnDisk)?, out, warn)
}

/// Writes the entry `name` of an open directory as a NAR, as [`dump`] does.
///
/// # Errors
/// As [`dump`].
pub fn dump_in(
    dir: &Arc<OpenDir>,
    name: impl AsRef<OsStr>,
    out: &mut impl Write,
    warn: &mut impl FnMut(&str),
) -> Result {
    write_walk(Walk::new(Some(Arc::clone(dir)), name.as_ref(), Names::OnDisk)?, out, warn)
}

/// Writes the entry `name` of an open directory, as [`dump_in`] does, with the names that its files had before
/// [`CaseHack`](super::CaseHack) renamed them: the result is the NAR that was unpacked.
///
/// # Errors
/// As [`dump`]; also fails if two files of a directory had the same name.
pub fn dump_undoing_case_hack_in(dir: &Arc<OpenDir>, name: impl AsRef<OsStr>, out: &mut impl Write) -> Result {
    write_walk(Walk::new(Some(Arc::clone(dir)), name.as_ref(), Names::BeforeCaseHack)?, out, &mut |_| {})
}

fn write_walk(mut walk: Walk, out: &mut impl Write, warn: &mut impl FnMut(&str)) -> Result {
    let mut buf = Vec::with_capacity(CHUNK_SIZE);
    // A tree of few entries does not justify a thread.
    while let Some(batch) = walk.next()? {
        batch.warnings.iter().for_each(|warning| warn(warning));
        let flush = |buf: &mut Vec<u8>| {
            out.write_all(buf)?;
            buf.clear();
            Ok(())
        };
        batch.read(&mut buf, flush)?;
        if !walk.is_nearly_done() {
            return read_ahead(walk, buf, out, warn);
        }
    }
    Ok(())
}

/// What a reader thread sends to the writer.
enum Message {
    Warning(String),
    Chunk(Vec<u8>),
}

/// Sends the receiver of each batch to the writer, in NAR order.
type BatchSender = SyncSender<Receiver<Result<Message>>>;

/// Writes the rest of the walk, read by several threads.
fn read_ahead(walk: Walk, buf: Vec<u8>, out: &mut impl Write, warn: &mut impl FnMut(&str)) -> Result {
    let walk = Mutex::new(walk);
    let free_buffers = Mutex::new(vec![buf]);
    let (batch_sender, batches) = sync_channel(MAX_BATCHES_AHEAD);
    thread::scope(|scope| {
        let started: io::Result<Vec<_>> = (0..reader_count())
            .map(|_| {
                let (walk, free_buffers, batch_sender) = (&walk, &free_buffers, batch_sender.clone());
                thread::Builder::new().spawn_scoped(scope, move || read_batches(walk, free_buffers, &batch_sender))
            })
            .collect();
        let readers = started.map_err(thread_error)?;
        drop(batch_sender);
        let result = write_batches(batches, &free_buffers, out, warn);
        // The batch of a panicked thread is incomplete.
        let panicked = readers.into_iter().filter_map(|reader| reader.join().err()).count() > 0;
        result.and(if panicked { Err(Error::panicked("reader thread")) } else { Ok(()) })
    })
}

/// Leaves one processor to the thread that writes: more threads than processors made packing from memory slower.
fn reader_count() -> usize {
    thread::available_parallelism().map_or(1, |processors| (processors.get() - 1).clamp(1, MAX_READERS))
}

fn write_batches(
    batches: Receiver<Receiver<Result<Message>>>,
    free_buffers: &Mutex<Vec<Vec<u8>>>,
    out: &mut impl Write,
    warn: &mut impl FnMut(&str),
) -> Result {
    for batch in batches {
        for message in batch {
            match message? {
                Message::Warning(warning) => warn(&warning),
                Message::Chunk(mut chunk) => {
                    out.write_all(&chunk)?;
                    chunk.clear();
                    lock(free_buffers).push(chunk);
                }
            }
        }
    }
    Ok(())
}

/// Reads batches until the walk ends, an error occurs, or the writer has stopped.
fn read_batches(walk: &Mutex<Walk>, free_buffers: &Mutex<Vec<Vec<u8>>>, batch_sender: &BatchSender) {
    let take_buffer = || lock(free_buffers).pop().unwrap_or_else(|| Vec::with_capacity(CHUNK_SIZE));
    let mut buf = take_buffer();
    loop {
        let (sender, receiver) = sync_channel(MAX_CHUNKS_AHEAD);
        let batch = {
            let mut walk = lock(walk);
            let batch = walk.next();
            // Sent while the walk is locked, so that the batches arrive in its order.
            if matches!(batch, Ok(None)) || batch_sender.send(receiver).is_err() {
                return;
            }
            batch
        };
        let writer_stopped = |_| Error::failed("the writer has stopped");
        let result = batch.and_then(|batch| {
            let batch = batch.unwrap_or_default();
            for warning in &batch.warnings {
                sender.send(Ok(Message::Warning(warning.clone()))).map_err(writer_stopped)?;
            }
            batch.read(&mut buf, |buf| {
                sender.send(Ok(Message::Chunk(replace(buf, take_buffer())))).map_err(writer_stopped)
            })
        });
        if let Err(error) = result {
            // Stops the writer, unless it has already stopped.
            let _ = sender.send(Err(error));
            return;
        }
    }
}

fn pack_error(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::failed(format!("cannot pack {}: {reason}", path.display()))
}
