//! Writes the contents of small files on other threads than the one that reads the NAR.
//!
//! Nearly all of the time for a small file is spent in the file system. Two threads that create files contend for its
//! inode allocator, but a thread that creates files does not contend with threads that write them, so the thread that
//! reads the NAR creates all files. The batches that wait are bounded in bytes and in open files, so memory does not grow
//! with the tree. The threads are not scoped, because they outlive the calls of the visitor, and take batches in any
//! order; [`mod@crate::nar::dump`] requires scoped threads and a fixed order.

use std::mem::take;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustix::fs::{Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::nar::open_dir::{Parent, path_of};
use crate::root_dir::OpenDir;
use crate::sync::lock;

/// Maximum size of a batch in bytes. A larger file is written by the thread that reads the NAR.
pub(super) const MAX_BATCH_SIZE: usize = 256 * 1024;
/// Maximum number of directories that a batch keeps open.
const MAX_BATCH_DIRECTORIES: usize = 4;
/// Maximum number of files in a batch.
const MAX_BATCH_FILES: usize = 8;
/// Maximum number of writer threads, besides the one that reads the NAR.
const MAX_WRITERS: usize = 3;
/// Maximum number of batches that wait to be written.
const MAX_BATCHES_WAITING: usize = 1;

/// The time of every store object: one second after the epoch (Nix's `canonicalisePathMetaData`).
pub(super) const MTIME: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 1, tv_nsec: 0 },
    last_modification: Timespec { tv_sec: 1, tv_nsec: 0 },
};

/// Creates files with the mode of a store object, without a further system call where umask and ACLs permit.
#[derive(Default)]
pub(super) struct FileCreator {
    /// Whether a file has the requested mode after its creation: tested with the first regular and the first executable
    /// file, since umask and default ACLs affect the others in the same way.
    mode_is_kept: [Option<bool>; 2],
}

impl FileCreator {
    /// Creates an empty file, which must not exist. Follows no symbolic link.
    pub(super) fn create(&mut self, dir: impl AsFd, name: &[u8], executable: bool) -> Result<OwnedFd, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(if executable { 0o555 } else { 0o444 });
        let fd = rustix::fs::openat(dir, name, flags, mode)?;
        let known = &mut self.mode_is_kept[usize::from(executable)];
        let is_kept = match *known {
            Some(is_kept) => is_kept,
            None => *known.insert(Mode::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) == mode),
        };
        if !is_kept {
            rustix::fs::fchmod(&fd, mode)?;
        }
        Ok(fd)
    }
}

pub(super) fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(super) fn unpack_error(parent: &Parent, name: &[u8], error: Errno) -> Error {
    Error::failed(format!("cannot unpack {}: {}", path_of(parent, name).display(), std::io::Error::from(error)))
}

/// Drops a reference to a directory. With the last one, the directory gets the mode and the time of a store object.
pub(super) fn release_dir(parent: Parent) -> Result {
    let Some(dir) = parent.and_then(Arc::into_inner) else { return Ok(()) };
    let result = rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o555));
    let result = result.and_then(|()| rustix::fs::futimens(&dir, &MTIME));
    result.map_err(|error| unpack_error(&None, dir.path().as_os_str().as_encoded_bytes(), error))
}

struct SmallFile {
    parent: Parent,
    name: Vec<u8>,
    fd: OwnedFd,
    /// End of its contents in the bytes of the batch.
    end: usize,
}

/// Small files, and their contents one after another.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    files: Vec<SmallFile>,
    directories: usize,
}

impl Batch {
    /// Writes the files and clears the batch. After an error the remaining files stay empty.
    fn write(&mut self) -> Result {
        let mut start = 0;
        for file in self.files.drain(..) {
            let result = write_all(&file.fd, &self.bytes[start..file.end]);
            let result = result.and_then(|()| rustix::fs::futimens(&file.fd, &MTIME));
            start = file.end;
            result.map_err(|error| unpack_error(&file.parent, &file.name, error))?;
            release_dir(file.parent)?;
        }
        self.bytes.clear();
        self.directories = 0;
        Ok(())
    }
}

/// Collects small files into batches and writes them on other threads.
#[derive(Default)]
pub(super) struct Writers {
    batch: Batch,
    /// None until the first batch is full.
    threads: Option<Threads>,
}

impl Writers {
    /// Adds a new, empty file of `size` bytes, fewer than [`MAX_BATCH_SIZE`]; [`Self::add_data`] then adds its contents.
    pub(super) fn add_file(&mut self, dir: Arc<OpenDir>, name: Vec<u8>, fd: OwnedFd, size: usize) -> Result {
        let batch = &self.batch;
        let is_new_dir =
            batch.files.last().and_then(|file| file.parent.as_ref()).is_none_or(|last| !Arc::ptr_eq(last, &dir));
        let directories = batch.directories + usize::from(is_new_dir);
        if batch.bytes.len() + size > MAX_BATCH_SIZE
            || batch.files.len() == MAX_BATCH_FILES
            || directories > MAX_BATCH_DIRECTORIES
        {
            let threads = self.threads.get_or_insert_with(Threads::start);
            threads.write(&mut self.batch)?;
            self.batch.directories = 1;
        } else {
            self.batch.directories = directories;
        }
        let end = self.batch.bytes.len();
        self.batch.files.push(SmallFile { parent: Some(dir), name, fd, end });
        Ok(())
    }

    /// Adds contents of the file that was added last.
    pub(super) fn add_data(&mut self, bytes: &[u8]) {
        self.batch.bytes.extend_from_slice(bytes);
        if let Some(file) = self.batch.files.last_mut() {
            file.end = self.batch.bytes.len();
        }
    }

    /// Writes the last batch and waits until all files are written.
    pub(super) fn finish(&mut self) -> Result {
        match self.threads.take() {
            Some(mut threads) => {
                let sent = threads.write(&mut self.batch);
                threads.join().and(sent)
            }
            None => self.batch.write(),
        }
    }

    /// Discards the batches that wait and stops the threads.
    pub(super) fn cancel(&mut self) {
        self.batch = Batch::default();
        self.threads = None;
    }
}

/// The writer threads and the state that they share.
struct Threads {
    /// None when the threads are to stop.
    sender: Option<SyncSender<Batch>>,
    /// Written batches, to be reused.
    free_batches: Receiver<Batch>,
    handles: Vec<JoinHandle<()>>,
    /// The first error; after it no batch is written.
    error: Arc<Mutex<Option<Error>>>,
}

impl Threads {
    /// Starts one thread per processor, leaving one processor to the thread that reads the NAR.
    fn start() -> Self {
        let count = thread::available_parallelism().map_or(1, usize::from).min(MAX_WRITERS + 1) - 1;
        let (sender, batches) = sync_channel(MAX_BATCHES_WAITING);
        let (free_sender, free_batches) = sync_channel(MAX_BATCHES_WAITING + count);
        let batches = Arc::new(Mutex::new(batches));
        let error = Arc::new(Mutex::new(None));
        let mut handles = Vec::new();
        for _ in 0..count {
            let (batches, free_sender, error) = (Arc::clone(&batches), free_sender.clone(), Arc::clone(&error));
            let thread = thread::Builder::new().spawn(move || write_batches(&batches, &free_sender, &error));
            // Works with any number of threads, so a thread that cannot be started is not an error.
            handles.extend(thread);
        }
        Self { sender: Some(sender), free_batches, handles, error }
    }

    /// Sends the batch to the threads and replaces it by an empty one.
    fn write(&mut self, batch: &mut Batch) -> Result {
        if let Some(error) = lock(&self.error).clone() {
            return Err(error);
        }
        match &self.sender {
            Some(sender) if !self.handles.is_empty() => {
                let empty = self.free_batches.try_recv().unwrap_or_default();
                sender.send(std::mem::replace(batch, empty)).map_err(|_| Error::panicked("writer thread"))
            }
            _ => batch.write(),
        }
    }

    /// Waits until all batches sent are written and the threads have ended.
    fn join(&mut self) -> Result {
        self.sender = None;
        let panicked = take(&mut self.handles).into_iter().filter_map(|thread| thread.join().err()).count() > 0;
        match lock(&self.error).take() {
            Some(error) => Err(error),
            None if panicked => Err(Error::panicked("writer thread")),
            None => Ok(()),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if !self.handles.is_empty() {
            lock(&self.error).get_or_insert_with(Error::canceled);
            // The code that cancels reports the reason.
            let _ = self.join();
        }
    }
}

fn write_batches(batches: &Mutex<Receiver<Batch>>, free: &SyncSender<Batch>, error: &Mutex<Option<Error>>) {
    loop {
        let Ok(mut batch) = lock(batches).recv() else { return };
        // Batches that were sent before an error are discarded.
        if lock(error).is_some() {
            continue;
        }
        match batch.write() {
            // The receiver may be gone or full; then the batch is freed.
            Ok(()) => drop(free.try_send(batch)),
            Err(first) => drop(lock(error).get_or_insert(first)),
        }
    }
}
