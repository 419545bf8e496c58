//! `log/<derivation>`: build logs, uncompressed, as `nix store copy-log` writes them.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use nar_pack::error::{Context, Error, Result};
use nar_pack::regular_file;
use nar_pack::store_path::StorePath;

use super::{ExtraObject, MAX_EXTRA_SIZE, MAX_IN_MEMORY};
use crate::archive::log_key;
use crate::compression::{Compression, decoder, decoder_error};
use crate::spool::Spool;

/// Reads the build logs of derivations, each at most once.
#[derive(Debug)]
pub struct BuildLogs {
    dir: PathBuf,
    already_read: HashSet<StorePath>,
}

impl BuildLogs {
    /// Reads logs from a log directory of Nix, such as `/nix/var/log/nix`.
    #[must_use]
    pub fn new(log_dir: &Path) -> Self {
        Self { dir: log_dir.join("drvs"), already_read: HashSet::new() }
    }

    /// Returns the build log of a derivation. None if there is no log, or if it was returned before.
    ///
    /// # Errors
    /// Fails if the log cannot be read. Refuses a log that cannot be decompressed or is larger than [`MAX_EXTRA_SIZE`].
    pub fn read(&mut self, derivation: &StorePath) -> Result<Option<ExtraObject>> {
        if !self.already_read.insert(derivation.clone()) {
            return Ok(None);
        }
        // Nix keeps logs in directories by the first two digits, compressed or not (`compress-build-log`).
        let (first, rest) = derivation.base_name().split_at(2);
        let uncompressed = self.dir.join(first).join(rest);
        let compressed = self.dir.join(first).join(format!("{rest}.bz2"));
        for (file, method) in [(uncompressed, Compression::None), (compressed, Compression::Bzip2)] {
            let reading = || format!("cannot read the build log {}", file.display());
            match regular_file::open(&file) {
                Ok(log) => return read_log(derivation, log, method).context(reading).map(Some),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(error) => return Err(error).context(reading),
            }
        }
        Ok(None)
    }
}

fn read_log(derivation: &StorePath, log: File, method: Compression) -> Result<ExtraObject> {
    let mut spool = Spool::new(MAX_IN_MEMORY);
    let mut log = decoder(method, BufReader::new(log))?.take(MAX_EXTRA_SIZE as u64 + 1);
    let size = io::copy(&mut log, &mut spool).map_err(|error| decoder_error(method, error))?;
    if size > MAX_EXTRA_SIZE as u64 {
        return Err(Error::refused(format!("larger than {MAX_EXTRA_SIZE} bytes")));
    }
    ExtraObject::from_spool(log_key(derivation), spool)
}
