//! Export streams: a written stream is read back; truncated and modified streams are refused without a panic.

#![allow(clippy::unwrap_used)] // a panic fails the test

use std::io::{BufRead, Write};

use nar_pack::error::Result;
use nar_pack::export::{Trailer, Writer, read_marker, read_trailer};
use nar_pack::nar::{Skip, parse, push_string};
use nar_pack::store_path::{StoreDir, StorePath};
use proptest::prelude::*;

fn path(digit: char, name: &str) -> StorePath {
    StorePath::from_base_name(&format!("{}-{name}", digit.to_string().repeat(32))).unwrap()
}

fn store_dir() -> StoreDir {
    StoreDir::new("/nix/store").unwrap()
}

fn trailers() -> Vec<Trailer> {
    let [a, b] = [path('a', "lib"), path('b', "app")];
    vec![
        Trailer { path: a.clone(), references: Vec::new(), deriver: Some(path('d', "lib.drv")) },
        Trailer { path: b.clone(), references: vec![a, b], deriver: None },
    ]
}

fn sample() -> Vec<u8> {
    let mut nar = Vec::new();
    for field in [b"nix-archive-1".as_slice(), b"(", b"type", b"symlink", b"target", b"x", b")"] {
        push_string(&mut nar, field);
    }
    let mut writer = Writer::new(Vec::new());
    for trailer in trailers() {
        writer.write_path(&store_dir(), &trailer, |out| Ok(out.write_all(&nar)?)).unwrap();
    }
    writer.finish().unwrap()
}

fn read(mut input: impl BufRead) -> Result<Vec<Trailer>> {
    let mut found = Vec::new();
    while read_marker(&mut input)? {
        parse(&mut input, &mut Skip)?;
        found.push(read_trailer(&mut input, &store_dir())?);
    }
    Ok(found)
}

#[test]
fn a_written_stream_is_read_back() {
    assert_eq!(read(sample().as_slice()).unwrap(), trailers());
    assert_eq!(read(&[0; 8][..]).unwrap(), []);
}

#[test]
fn a_truncated_stream_is_refused() {
    let stream = sample();
    for length in 0..stream.len() {
        assert!(read(&stream[..length]).unwrap_err().is_refusal(), "truncated to {length} bytes");
    }
}

#[test]
fn data_after_the_end_is_refused() {
    assert!(
        read([sample(), vec![0]].concat().as_slice()).unwrap_err().message().contains("unexpected data after the end")
    );
}

#[test]
fn paths_of_another_store_are_refused() {
    let stream = String::from_utf8(sample()).unwrap().replace("/nix/store/a", "/gnu/store/a");
    assert!(read(stream.as_bytes()).unwrap_err().message().contains("/gnu/store"));
}

proptest! {
    #[test]
    fn a_modified_stream_is_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut stream = sample();
        let at = at.index(stream.len());
        stream[at] = byte;
        if let Err(error) = read(stream.as_slice()) {
            prop_assert!(error.is_refusal(), "{}", error);
        }
    }
}
