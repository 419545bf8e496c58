//! Compression methods, by the names that narinfos use (Nix's `src/libutil/compression.cc`): how each one names the keys
//! of NARs, and the encoders and decoders of all of them.

mod decode;
mod encode;
mod lz4;
mod settings;
mod xz;
mod zstd;

use std::fmt;
use std::ops::RangeInclusive;

use nar_pack::error::{Error, Result};

use crate::archive::NAR_PREFIX;
use crate::hash::Sha256;

pub use decode::{
    DEFAULT_DECODER_MEMORY, Decoder, decode_content, decoder, decoder_error, parallel_decoder, set_decoder_memory,
};
pub use encode::Encoder;
pub use nar_pack::option_values::parse_byte_size;
pub use settings::Settings;
pub use xz::MAX_XZ_THREADING_MEMORY;

/// NAR bytes in one zstd frame. Frames are compressed independently, so this bounds the memory of a thread. It is a
/// constant because the output must not depend on the number of threads.
pub const FRAME_SIZE: usize = 4 << 20;

/// Size of the buffers of the brotli encoder and decoder, in bytes.
const BROTLI_BUFFER_SIZE: usize = 1 << 16;

/// The first bytes of a gzip file (RFC 1952, section 2.3.1).
pub(crate) const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// A compression method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not compressed.
    None,
    /// xz.
    Xz,
    /// bzip2, which is also the method of a narinfo without `Compression`.
    Bzip2,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// brotli.
    Brotli,
    /// lzip; only for decompression.
    Lzip,
    /// lz4 in its frame format; only for decompression.
    Lz4,
}

impl Compression {
    /// All methods that can be decompressed.
    pub const ALL: [Self; 8] =
        [Self::None, Self::Xz, Self::Bzip2, Self::Gzip, Self::Zstd, Self::Brotli, Self::Lzip, Self::Lz4];

    /// Returns the method with this name in a narinfo.
    ///
    /// # Errors
    /// Refuses an unknown name.
    pub fn from_name(name: &str) -> Result<Self> {
        Ok(match name {
            "none" => Self::None,
            "xz" => Self::Xz,
            "bzip2" => Self::Bzip2,
            "gzip" => Self::Gzip,
            "zstd" => Self::Zstd,
            "br" => Self::Brotli,
            "lzip" => Self::Lzip,
            "lz4" => Self::Lz4,
            _ => return Err(Error::refused(format!("compression method {name:?} is not supported"))),
        })
    }

    /// Returns the name of the method in a narinfo.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Lzip => "lzip",
            Self::Lz4 => "lz4",
        }
    }

    /// Returns the extension that follows `.nar` in the key of a NAR. Nix gives gzip none
    /// (`src/libstore/binary-cache-store.cc`).
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::None | Self::Gzip => "",
            Self::Xz => ".xz",
            Self::Bzip2 => ".bz2",
            Self::Zstd => ".zst",
            Self::Brotli => ".br",
            Self::Lzip => ".lzip",
            Self::Lz4 => ".lz4",
        }
    }

    /// Returns the key of a NAR that is compressed with this method.
    #[must_use]
    pub fn key_of_nar(self, file_hash: Sha256) -> String {
        format!("{NAR_PREFIX}{}.nar{}", file_hash.base32(), self.extension())
    }

    /// Returns the method of a NAR from the extension of its key. `start` is the beginning of the object: with no extension
    /// after `.nar`, it is gzip if it starts with the gzip magic number, which no NAR does.
    #[must_use]
    pub fn from_key(key: &str, start: &[u8]) -> Option<Self> {
        match &key[key.rfind(".nar")? + 4..] {
            "" if start.starts_with(&GZIP_MAGIC) => Some(Self::Gzip),
            ".gz" => Some(Self::Gzip),
            ".lz" => Some(Self::Lzip),
            extension => Self::ALL.into_iter().find(|method| method.extension() == extension),
        }
    }

    /// Returns whether [`Compression::from_key`] returns this method for the key, given the right first bytes.
    #[must_use]
    pub fn matches_key(self, key: &str) -> bool {
        [&GZIP_MAGIC[..], &[]].into_iter().any(|start| Self::from_key(key, start) == Some(self))
    }

    /// Returns the range of levels and the default level.
    fn levels(self) -> (RangeInclusive<u32>, u32) {
        match self {
            Self::None | Self::Lzip | Self::Lz4 => (0..=0, 0),
            Self::Xz | Self::Gzip => (0..=9, 6),
            Self::Bzip2 => (1..=9, 9),
            Self::Zstd => (1..=19, 3),
            Self::Brotli => (0..=11, 6),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Read;

    use super::*;

    const ALL: [Compression; 6] = [
        Compression::None,
        Compression::Xz,
        Compression::Bzip2,
        Compression::Gzip,
        Compression::Zstd,
        Compression::Brotli,
    ];

    fn compress(method: Compression, threads: u16, data: &[u8]) -> Vec<u8> {
        let level = if method == Compression::Xz { Some(0) } else { None };
        let settings = Settings::new(method, level, Some(threads)).unwrap();
        let mut encoder = Encoder::new(&settings, Vec::new()).unwrap();
        for chunk in data.chunks(FRAME_SIZE) {
            encoder.push(chunk).unwrap();
        }
        encoder.finish().unwrap()
    }

    /// Bytes that are alike in every run, with 5 random bits each.
    pub(crate) fn pseudo_random_bytes(size: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8 & 0x1f
        };
        (0..size).map(|_| next()).collect()
    }

    #[test]
    fn decompressing_returns_the_input() {
        for size in [1, 1000, FRAME_SIZE, FRAME_SIZE + 1, 3 * FRAME_SIZE + 17] {
            let data = pseudo_random_bytes(size);
            for method in ALL {
                let compressed = compress(method, 2, &data);
                for new_decoder in [decoder, parallel_decoder] {
                    let mut decompressed = Vec::new();
                    new_decoder(method, compressed.as_slice()).unwrap().read_to_end(&mut decompressed).unwrap();
                    assert!(decompressed == data, "{method}, {size} bytes");
                }
            }
        }
    }

    #[test]
    fn the_output_does_not_depend_on_the_number_of_threads() {
        let data = pseudo_random_bytes(5 * FRAME_SIZE + 3);
        for method in [Compression::Zstd, Compression::Xz] {
            let one = compress(method, 1, &data);
            assert!([2, 3, 8].into_iter().all(|threads| compress(method, threads, &data) == one), "{method}");
        }
    }

    #[test]
    fn truncated_and_random_input_is_an_error_not_a_panic() {
        let data = pseudo_random_bytes(100_000);
        for method in ALL.into_iter().skip(1) {
            let compressed = compress(method, 1, &data);
            for bytes in [&compressed[..compressed.len() - 1], &compressed[..compressed.len() / 2], &data[..1000]] {
                for new_decoder in [decoder, parallel_decoder] {
                    let mut decompressed = Vec::new();
                    assert!(new_decoder(method, bytes).unwrap().read_to_end(&mut decompressed).is_err(), "{method}");
                }
            }
        }
    }

    #[test]
    fn concatenated_files_are_decompressed_as_one() {
        let data = pseudo_random_bytes(100_000);
        for method in [Compression::Zstd, Compression::Xz] {
            let compressed = compress(method, 1, &data);
            let padding = if method == Compression::Xz { vec![0; 8] } else { Vec::new() };
            let file = [&compressed[..], &padding, &compressed, &padding].concat();
            for new_decoder in [decoder, parallel_decoder] {
                let mut decompressed = Vec::new();
                new_decoder(method, file.as_slice()).unwrap().read_to_end(&mut decompressed).unwrap();
                assert!(decompressed == [&data[..], &data].concat(), "{method}");
            }
        }
    }

    #[test]
    fn the_extension_selects_the_method_and_the_first_bytes_select_gzip() {
        for method in Compression::ALL {
            let key = format!("nar/x.nar{}", method.extension());
            let start: &[u8] = if method == Compression::Gzip { &GZIP_MAGIC } else { b"\x0d\0" };
            assert_eq!(Compression::from_key(&key, start), Some(method));
            assert!(method.matches_key(&key) && !method.matches_key("nar/x.nar.what"));
        }
        assert!(Compression::Gzip.matches_key("nar/x.nar.gz") && !Compression::Gzip.matches_key("nar/x.nar.xz"));
        assert_eq!(Compression::from_key("nar/x", &[]), None);
    }

    #[test]
    fn levels_out_of_range_are_usage_errors() {
        assert_eq!(Settings::new(Compression::Zstd, Some(20), None).unwrap_err().exit_status(), 2);
        assert_eq!(Settings::new(Compression::None, Some(1), None).unwrap_err().exit_status(), 2);
    }
}
