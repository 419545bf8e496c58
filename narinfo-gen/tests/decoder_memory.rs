//! Files whose decompression requires more memory than the limit. Tests of their own process, because the limit applies to
//! the whole process.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use nar_pack::nar::{Skip, push_string};
use narinfo_gen::compression::{Compression, DEFAULT_DECODER_MEMORY, Encoder, Settings, set_decoder_memory};
use narinfo_gen::verify_nar::{NarSizeLimit, Threads, digest_nar_with};

const MIB: u64 = 1 << 20;

fn nar() -> Vec<u8> {
    let mut nar = Vec::new();
    for field in [b"nix-archive-1".as_slice(), b"(", b"type", b"symlink", b"target", b"x", b")"] {
        push_string(&mut nar, field);
    }
    nar
}

/// An xz file with a dictionary of 512 MiB. The property of the LZMA2 filter and the checksum of the block header are
/// changed, because an encoder would need several GiB (the .xz file format, sections 3.1 and 5.3.1).
fn xz_with_large_dictionary() -> Vec<u8> {
    let settings = Settings::new(Compression::Xz, Some(0), Some(1)).unwrap();
    let mut encoder = Encoder::new(&settings, Vec::new()).unwrap();
    encoder.push(&nar()).unwrap();
    let mut file = encoder.finish().unwrap();
    let header = &mut file[12..];
    let size = (usize::from(header[0]) + 1) * 4;
    let filter = header[..size].windows(2).position(|bytes| bytes == [0x21, 1]).unwrap();
    header[filter + 2] = 34;
    let mut crc = flate2::Crc::new();
    crc.update(&header[..size - 4]);
    header[size - 4..size].copy_from_slice(&crc.sum().to_le_bytes());
    file
}

/// A zstd file with a window of 512 MiB (RFC 8878, section 3.1.1.1.2).
fn zstd_with_large_window() -> Vec<u8> {
    let mut file = zstd::stream::encode_all(nar().as_slice(), 1).unwrap();
    assert_eq!(file[4] & 0x20, 0, "the frame has a window descriptor");
    file[5] = (29 - 10) << 3;
    file
}

#[test]
fn the_memory_limit_is_named_as_the_cause_and_can_be_raised() {
    let files = [(Compression::Xz, xz_with_large_dictionary()), (Compression::Zstd, zstd_with_large_window())];
    for (method, file) in &files {
        for threads in [Threads::One, Threads::All] {
            let digest =
                || digest_nar_with(file.as_slice(), *method, threads, &NarSizeLimit::unknown(), &mut Skip, |_| Ok(()));
            set_decoder_memory(DEFAULT_DECODER_MEMORY);
            let error = digest().unwrap_err();
            let expected = format!("cannot decompress as {method}: it requires more memory than the limit, 256");
            assert!(error.is_refusal() && error.message().starts_with(&expected), "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains("--decoder-memory")), "{error}");
            set_decoder_memory(600 * MIB);
            assert_eq!(digest().unwrap().nar.map(|(_, size)| size), Some(nar().len() as u64), "{method}");
        }
    }
}

/// The first bytes show whether the input is a NAR, but not whether a decoder fails.
#[test]
fn data_that_cannot_be_decompressed_is_not_reported_as_another_format() {
    for method in Compression::ALL.into_iter().filter(|method| *method != Compression::None) {
        let digest =
            |file: &[u8]| digest_nar_with(file, method, Threads::One, &NarSizeLimit::unknown(), &mut Skip, |_| Ok(()));
        let error = digest(b"this is neither compressed nor a NAR, and longer than every header").unwrap_err();
        assert!(error.is_refusal() && error.message().starts_with("cannot decompress as "), "{method}: {error}");
    }
    let error =
        digest_nar_with(&b"text"[..], Compression::None, Threads::One, &NarSizeLimit::unknown(), &mut Skip, |_| Ok(()));
    assert!(error.unwrap_err().message().starts_with("not a NAR"));
}
