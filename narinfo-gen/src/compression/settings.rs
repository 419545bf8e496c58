//! The method, level and number of threads with which NARs are compressed.

use nar_pack::error::{Error, Result};

use super::Compression;
use crate::cli::CompressionArgs;

/// How to compress. The output depends on the method and the level, not on the number of threads.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The method.
    pub method: Compression,
    pub(super) level: u32,
    pub(super) threads: usize,
}

impl Settings {
    /// Checks the level against the range of the method. By default there is one thread per processor.
    ///
    /// # Errors
    /// A usage error if the method does not have this level.
    pub fn new(method: Compression, level: Option<u32>, threads: Option<u16>) -> Result<Self> {
        let (levels, default) = method.levels();
        let level = level.unwrap_or(default);
        if !levels.contains(&level) {
            let (min, max) = levels.into_inner();
            let error = Error::usage(format!("compression level {level} is out of range for {method}"));
            return Err(match max {
                0 => error.with_hint("remove --level: this method has no levels"),
                _ => error.with_hint(format!("pass a --level from {min} to {max}")),
            });
        }
        let threads = match threads {
            Some(threads) => usize::from(threads.max(1)),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        Ok(Self { method, level, threads })
    }

    /// Returns the number of threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }
}

impl CompressionArgs {
    /// Returns the settings that the command line selects.
    ///
    /// # Errors
    /// A usage error if the method does not have the level.
    pub fn settings(&self) -> Result<Settings> {
        Settings::new(self.compression.into(), self.level, self.threads)
    }
}
