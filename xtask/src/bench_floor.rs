//! What the file system alone takes for a tree: the least that `nar-pack --unpack` could take.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

/// Files that one thread hands to the other at once, and how often it may be ahead.
const FILES: usize = 16;
const AHEAD: usize = 4;

enum Entry {
    Directory(PathBuf),
    File(PathBuf, Vec<u8>),
}

/// How long it takes to make the directories and files of `tree` again, as `place`, from memory: mkdir and open by one
/// thread, write and close by another. Links, modes and times are left out.
pub fn measure(tree: &Path, place: &Path) -> io::Result<Duration> {
    let mut entries = Vec::new();
    read(tree, place, &mut entries)?;
    let start = Instant::now();
    let (batches, waiting) = sync_channel::<Vec<(File, &[u8])>>(AHEAD);
    thread::scope(|scope| {
        let filling = scope
            .spawn(move || waiting.into_iter().flatten().try_for_each(|(mut file, contents)| file.write_all(contents)));
        let mut batch = Vec::new();
        for entry in &entries {
            match entry {
                Entry::Directory(path) => DirBuilder::new().create(path)?,
                Entry::File(path, contents) => batch.push((File::create_new(path)?, contents.as_slice())),
            }
            if batch.len() == FILES && batches.send(std::mem::take(&mut batch)).is_err() {
                break;
            }
        }
        // Whoever does not take it has failed.
        let _ = batches.send(batch);
        drop(batches);
        filling.join().map_err(|_| io::Error::other("a thread died"))?
    })?;
    Ok(start.elapsed())
}

fn read(from: &Path, to: &Path, entries: &mut Vec<Entry>) -> io::Result<()> {
    entries.push(Entry::Directory(to.to_owned()));
    let mut below: Vec<_> = fs::read_dir(from)?.collect::<io::Result<_>>()?;
    below.sort_by_key(fs::DirEntry::file_name);
    for entry in below {
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

    #[test]
    fn the_tree_is_made_again() {
        let dir = crate::session::Temporary::new("floor").unwrap_or_else(|error| panic!("{error}"));
        let (tree, place) = (dir.path.join("tree"), dir.path.join("place"));
        let made = fs::create_dir_all(tree.join("a"))
            .and_then(|()| (0..40).try_for_each(|file| fs::write(tree.join(format!("a/{file}")), "x".repeat(file))));
        assert!(made.is_ok() && super::measure(&tree, &place).is_ok());
        assert!((0..40).all(|file| fs::read(place.join(format!("a/{file}"))).is_ok_and(|read| read.len() == file)));
    }
}
