//! The small files of a tree that is restored: gathered, and filled by other threads than the one that reads the NAR.
//!
//! Nearly all of the time of a small file is the file system's. Two threads that make files get into each other's way
//! where it looks for free inodes, but one that makes files does not get into the way of one that fills them: so the
//! thread that reads makes them all. What waits to be filled is bounded in bytes and in open files, so memory does not
//! grow with the tree.

use std::mem::take;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustix::fs::{Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::dir::{Dir, Parent, locked, path_of};
use crate::error::{Error, Result};

/// Bytes of files that are handed on at once; a file that is larger is written by the thread that reads.
pub(super) const BATCH: usize = 256 * 1024;
/// Directories that a batch holds open at most.
const DIRECTORIES: usize = 4;
/// Files of a batch at most.
const FILES: usize = 8;
/// Most threads that write, beside the one that reads.
const MOST_WRITERS: usize = 3;
/// Batches that wait to be written.
const WAITING: usize = 1;

/// Store objects are dated one second after the epoch (Nix's `canonicalisePathMetaData`).
pub(super) const MTIME: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 1, tv_nsec: 0 },
    last_modification: Timespec { tv_sec: 1, tv_nsec: 0 },
};

/// Makes new files, which have the mode of a store object from the beginning, where umask and ACLs permit.
#[derive(Default)]
pub(super) struct Maker {
    /// Whether a file gets the mode that it is made with: seen at the first plain and at the first executable one,
    /// because umask and default ACLs do to the others what they do to these.
    made_with_mode: [Option<bool>; 2],
}

impl Maker {
    /// An empty file where nothing is; no link is followed.
    pub(super) fn create(&mut self, dir: impl AsFd, name: &[u8], executable: bool) -> Result<OwnedFd, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(if executable { 0o555 } else { 0o444 });
        let fd = rustix::fs::openat(dir, name, flags, mode)?;
        let seen = &mut self.made_with_mode[usize::from(executable)];
        let has_it = match *seen {
            Some(has_it) => has_it,
            None => *seen.insert(Mode::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) == mode),
        };
        if !has_it {
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

pub(super) fn failed(parent: &Parent, name: &[u8], error: Errno) -> Error {
    let path = path_of(parent, name);
    // The parser lets no name come twice, and the directory is new.
    if error == Errno::EXIST && parent.is_some() {
        return Error::refused(format!(
            "unpacking {}: the file system takes this name and another one of the NAR for the same",
            path.display()
        ));
    }
    Error::failed(format!("unpacking {}: {}", path.display(), std::io::Error::from(error)))
}

/// Gives up a hold on a directory. The last to do so leaves it as a store object is.
pub(super) fn release(parent: Parent) -> Result {
    let Some(dir) = parent.and_then(Arc::into_inner) else { return Ok(()) };
    let done = rustix::fs::fchmod(&dir.fd, Mode::from_raw_mode(0o555));
    let done = done.and_then(|()| rustix::fs::futimens(&dir.fd, &MTIME));
    done.map_err(|error| failed(&None, dir.path.as_os_str().as_encoded_bytes(), error))
}

struct Small {
    parent: Parent,
    name: Vec<u8>,
    fd: OwnedFd,
    /// Where in the bytes of its batch its own end.
    end: usize,
}

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    files: Vec<Small>,
    directories: usize,
}

impl Batch {
    /// Fills the files, and leaves an empty batch. After a failure the other files stay empty.
    fn fill(&mut self) -> Result {
        let mut begin = 0;
        for file in self.files.drain(..) {
            let filled = write_all(&file.fd, &self.bytes[begin..file.end]);
            let filled = filled.and_then(|()| rustix::fs::futimens(&file.fd, &MTIME));
            begin = file.end;
            filled.map_err(|error| failed(&file.parent, &file.name, error))?;
            release(file.parent)?;
        }
        self.bytes.clear();
        self.directories = 0;
        Ok(())
    }
}

/// Where small files are gathered.
#[derive(Default)]
pub(super) struct Writers {
    batch: Batch,
    threads: Option<Threads>,
}

impl Writers {
    /// The next file, new and empty, to which `data` then adds its bytes, fewer than [`BATCH`].
    pub(super) fn file(&mut self, dir: Arc<Dir>, name: Vec<u8>, fd: OwnedFd, size: usize) -> Result {
        let batch = &self.batch;
        let is_new =
            batch.files.last().and_then(|file| file.parent.as_ref()).is_none_or(|last| !Arc::ptr_eq(last, &dir));
        let directories = batch.directories + usize::from(is_new);
        if batch.bytes.len() + size > BATCH || batch.files.len() == FILES || directories > DIRECTORIES {
            self.hand_on()?;
            self.batch.directories = 1;
        } else {
            self.batch.directories = directories;
        }
        let end = self.batch.bytes.len();
        self.batch.files.push(Small { parent: Some(dir), name, fd, end });
        Ok(())
    }

    pub(super) fn data(&mut self, bytes: &[u8]) {
        self.batch.bytes.extend_from_slice(bytes);
        if let Some(file) = self.batch.files.last_mut() {
            file.end = self.batch.bytes.len();
        }
    }

    /// Hands a batch on to the threads, which are begun with the first one.
    fn hand_on(&mut self) -> Result {
        let threads = self.threads.get_or_insert_with(Threads::begin);
        threads.fill(&mut self.batch)
    }

    /// Fills what is left, and waits until everything is done.
    pub(super) fn finish(&mut self) -> Result {
        match self.threads.take() {
            Some(mut threads) => {
                let handed_on = threads.fill(&mut self.batch);
                threads.join().and(handed_on)
            }
            None => self.batch.fill(),
        }
    }

    /// Fills nothing any more; afterwards no thread is at work.
    pub(super) fn give_up(&mut self) {
        self.batch = Batch::default();
        self.threads = None;
    }
}

/// The threads, and what they share.
struct Threads {
    /// None as soon as they are to end.
    batches: Option<SyncSender<Batch>>,
    emptied: Receiver<Batch>,
    running: Vec<JoinHandle<()>>,
    /// The first failure; whoever sees one does nothing any more.
    failure: Arc<Mutex<Option<Error>>>,
}

impl Threads {
    /// One for each processor but the one of the thread that reads.
    fn begin() -> Self {
        let count = thread::available_parallelism().map_or(1, usize::from).min(MOST_WRITERS + 1) - 1;
        let (batches, waiting) = sync_channel(WAITING);
        let (give_back, emptied) = sync_channel(WAITING + count);
        let waiting = Arc::new(Mutex::new(waiting));
        let failure = Arc::new(Mutex::new(None));
        let mut running = Vec::new();
        for _ in 0..count {
            let (waiting, give_back, failure) = (Arc::clone(&waiting), give_back.clone(), Arc::clone(&failure));
            let thread = thread::Builder::new().spawn(move || fill_batches(&waiting, &give_back, &failure));
            // What threads there are will do.
            running.extend(thread);
        }
        Self { batches: Some(batches), emptied, running, failure }
    }

    /// Has the files of a batch filled, and leaves an empty one.
    fn fill(&mut self, batch: &mut Batch) -> Result {
        if let Some(failure) = locked(&self.failure).clone() {
            return Err(failure);
        }
        match &self.batches {
            Some(batches) if !self.running.is_empty() => {
                let empty = self.emptied.try_recv().unwrap_or_default();
                let died = |_| Error::failed("a writing thread died");
                batches.send(std::mem::replace(batch, empty)).map_err(died)
            }
            _ => batch.fill(),
        }
    }

    /// Waits until the threads have filled what they were handed.
    fn join(&mut self) -> Result {
        self.batches = None;
        let died = take(&mut self.running).into_iter().filter_map(|thread| thread.join().err()).count() > 0;
        match locked(&self.failure).take() {
            Some(failure) => Err(failure),
            None if died => Err(Error::failed("a writing thread died")),
            None => Ok(()),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if !self.running.is_empty() {
            locked(&self.failure).get_or_insert_with(|| Error::failed("given up"));
            // Why they are given up is known already.
            let _ = self.join();
        }
    }
}

fn fill_batches(waiting: &Mutex<Receiver<Batch>>, emptied: &SyncSender<Batch>, failure: &Mutex<Option<Error>>) {
    loop {
        let Ok(mut batch) = locked(waiting).recv() else { return };
        // What was handed on before a failure is thrown away.
        if locked(failure).is_some() {
            continue;
        }
        match batch.fill() {
            // Nobody may want it any more.
            Ok(()) => drop(emptied.try_send(batch)),
            Err(failed) => drop(locked(failure).get_or_insert(failed)),
        }
    }
}
