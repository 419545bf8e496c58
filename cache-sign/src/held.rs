//! NARs of a cache archive that wait for the verdict on their narinfo, in an unlinked file.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write};

use nar_pack::stage::{Doing, Failure, Outcome};
use narinfo_gen::archive;

/// What has come of an archive and may not pass yet.
#[derive(Debug, Default)]
pub struct Held {
    file: Option<File>,
    /// Where the file ends.
    end: u64,
    /// Key of each NAR that waits, with where it begins and its size.
    waiting: HashMap<String, (u64, u64)>,
    /// Keys of NARs that may pass when they come: a narinfo that holds was before them.
    welcome: HashSet<String>,
}

impl Held {
    /// Takes a NAR in: passes it on if it is welcome, else keeps it.
    ///
    /// # Errors
    /// What the body, the output or the temporary directory says.
    pub fn nar<W: Write>(
        &mut self,
        key: &str,
        size: u64,
        body: &mut dyn Read,
        out: &mut archive::Writer<W>,
    ) -> Outcome {
        if self.welcome.remove(key) {
            return out.member(key, size, body);
        }
        let at = || "keeping a NAR in the temporary directory";
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile().map_err(Failure::from).doing(at)?);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        file.seek(SeekFrom::Start(self.end)).map_err(Failure::from).doing(at)?;
        io::copy(body, file).doing(at)?;
        self.waiting.insert(key.to_owned(), (self.end, size));
        self.end += size;
        Ok(())
    }

    /// Lets the NAR with that key pass, now or when it comes.
    ///
    /// # Errors
    /// What the output or the temporary directory says.
    pub fn release<W: Write>(&mut self, key: &str, out: &mut archive::Writer<W>) -> Outcome {
        let (Some((start, size)), Some(file)) = (self.waiting.remove(key), &mut self.file) else {
            self.welcome.insert(key.to_owned());
            return Ok(());
        };
        let at = || "reading a NAR back from the temporary directory";
        file.seek(SeekFrom::Start(start)).map_err(Failure::from).doing(at)?;
        out.member(key, size, Read::take(&mut *file, size))?;
        // In an archive whose NARs come right before their narinfos, the file never holds more than one.
        if start + size == self.end {
            file.set_len(start).map_err(Failure::from).doing(at)?;
            self.end = start;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut members = Vec::new();
        let read = archive::read(bytes, |member| {
            let mut bytes = Vec::new();
            member.body.read_to_end(&mut bytes)?;
            members.push((member.key, bytes));
            Ok(())
        });
        read.unwrap();
        members
    }

    #[test]
    fn only_released_nars_pass_and_the_file_does_not_grow() {
        let mut out = archive::Writer::new(Vec::new());
        let mut held = Held::default();
        held.release("nar/late.nar", &mut out).unwrap();
        for round in 0..100_u8 {
            let key = format!("nar/{round}.nar");
            held.nar(&key, 1000, &mut &[round; 1000][..], &mut out).unwrap();
            held.release(&key, &mut out).unwrap();
        }
        assert_eq!((held.end, held.file.as_ref().unwrap().metadata().unwrap().len()), (0, 0));
        held.nar("nar/bad.nar", 3, &mut &b"bad"[..], &mut out).unwrap();
        held.nar("nar/late.nar", 4, &mut &b"late"[..], &mut out).unwrap();
        let members = members(&out.finish().unwrap());
        assert_eq!(members.len(), 101);
        assert!(members[..100].iter().zip(0..).all(|((_, bytes), round)| *bytes == [round; 1000]));
        assert_eq!(members[100], ("nar/late.nar".to_owned(), b"late".to_vec()));
    }
}
