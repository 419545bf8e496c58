//! Export streams: what is written is read back; anything cut off or changed is refused calmly.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

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
        writer.path(&store_dir(), &trailer, |out| Ok(out.write_all(&nar)?)).unwrap();
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
fn what_is_written_is_read_back() {
    assert_eq!(read(sample().as_slice()).unwrap(), trailers());
    assert_eq!(read(&[0; 8][..]).unwrap(), []);
}

#[test]
fn a_stream_cut_off_anywhere_is_refused() {
    let stream = sample();
    for cut in 0..stream.len() {
        assert!(read(&stream[..cut]).unwrap_err().is_refusal(), "cut at {cut}");
    }
}

#[test]
fn nothing_may_follow_the_end() {
    assert!(read([sample(), vec![0]].concat().as_slice()).unwrap_err().message().contains("follows"));
}

#[test]
fn paths_of_another_store_are_refused() {
    let stream = String::from_utf8(sample()).unwrap().replace("/nix/store/a", "/gnu/store/a");
    assert!(read(stream.as_bytes()).unwrap_err().message().contains("/gnu/store"));
}

proptest! {
    #[test]
    fn a_changed_stream_is_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut stream = sample();
        let at = at.index(stream.len());
        stream[at] = byte;
        if let Err(failure) = read(stream.as_slice()) {
            prop_assert!(failure.is_refusal(), "{}", failure);
        }
    }
}
