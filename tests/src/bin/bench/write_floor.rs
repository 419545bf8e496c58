//! The time that the file system alone needs for a tree: a lower bound for `nar-pack --unpack`.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

/// Number of files that one thread passes to the other at once.
const BATCH_SIZE: usize = 16;

/// Maximum number of batches that wait for the second thread.
const MAX_WAITING_BATCHES: usize = 4;

enum Entry {
    Directory(PathBuf),
    File(PathBuf, Vec<u8>),
}

/// Copies the directories and files of `tree` to `destination` from memory, and returns the elapsed time: one thread
/// calls mkdir and open, another write and close. Links, modes and times are not copied.
pub fn measure(tree: &Path, destination: &Path) -> io::Result<Duration> {
    let mut entries = Vec::new();
    read(tree, destination, &mut entries)?;
    let start = Instant::now();
    let (sender, receiver) = sync_channel::<Vec<(File, &[u8])>>(MAX_WAITING_BATCHES);
    thread::scope(|scope| {
        let writer = scope.spawn(move || {
            receiver.into_iter().flatten().try_for_each(|(mut file, contents)| file.write_all(contents))
        });
        let mut batch = Vec::new();
        for entry in &entries {
            match entry {
                Entry::Directory(path) => DirBuilder::new().create(path)?,
                Entry::File(path, contents) => batch.push((File::create_new(path)?, contents.as_slice())),
            }
            if batch.len() == BATCH_SIZE && sender.send(std::mem::take(&mut batch)).is_err() {
                break;
            }
        }
        // If the writer has failed, its error is returned below.
        let _ = sender.send(batch);
        drop(sender);
        writer.join().map_err(|_| io::Error::other("the writer thread panicked"))?
    })?;
    Ok(start.elapsed())
}

fn read(from: &Path, to: &Path, entries: &mut Vec<Entry>) -> io::Result<()> {
    entries.push(Entry::Directory(to.to_owned()));
    let mut children: Vec<_> = fs::read_dir(from)?.collect::<io::Result<_>>()?;
    children.sort_by_key(fs::DirEntry::file_name);
    for entry in children {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            read(&from, &to, entries)?;
        } else if kind.is_file() {
            entries.push(Entry::File(to, fs::read(&from)?));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use cache_tests::Scratch;

    #[test]
    fn every_file_of_the_tree_is_copied() {
        let scratch = Scratch::new();
        let (tree, copy) = (scratch.path().join("tree"), scratch.path().join("copy"));
        fs::create_dir_all(tree.join("a")).unwrap();
        (0..40).for_each(|file| fs::write(tree.join(format!("a/{file}")), "x".repeat(file)).unwrap());
        super::measure(&tree, &copy).unwrap();
        assert!((0..40).all(|file| fs::read(copy.join(format!("a/{file}"))).is_ok_and(|read| read.len() == file)));
    }
}
