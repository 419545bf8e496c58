//! A NAR whose decompression requires more memory than the limit: every tool names the cause and the option, and accepts
//! the NAR with a higher limit.

use crate::fixtures::closure_fixture::Fixture;
use crate::fixtures::malicious_cache::{Attacker, nar_of};
use narinfo_gen::compression::Compression;
use std::fs;

/// Sets the dictionary of an xz file to 512 MiB: the property of the LZMA2 filter in the header of the first block, and
/// the checksum of that header (the .xz file format, sections 3.1 and 5.3.1).
fn set_large_dictionary(file: &mut [u8]) {
    let header = &mut file[12..];
    let size = (usize::from(header[0]) + 1) * 4;
    let filter = header[..size].windows(2).position(|bytes| bytes == [0x21, 1]).unwrap();
    header[filter + 2] = 34;
    let mut crc = flate2::Crc::new();
    crc.update(&header[..size - 4]);
    header[size - 4..size].copy_from_slice(&crc.sum().to_le_bytes());
}

#[test]
fn every_tool_names_the_memory_limit_and_the_option_that_raises_it() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let attacker = Attacker::new();
    let mut cached = attacker.path(
        "large-dictionary",
        nar_of(&[b"(", b"type", b"symlink", b"target", b"x", b")"]),
        Compression::Xz,
        &[],
    );
    let mut file = cached.file.clone();
    set_large_dictionary(&mut file);
    let url = Compression::Xz.key_of_nar(narinfo_gen::hash::Sha256::of(&file));
    cached = cached.stored_as(url, file);
    fs::create_dir_all(fixture.path("cache/nar")).unwrap();
    fs::write(fixture.path("cache/nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
    for (key, bytes) in cached.objects() {
        fs::write(fixture.path("cache").join(key), bytes).unwrap();
    }
    let (path, key) = (cached.full_path(), attacker.public());
    let archive = "tar c -C cache nix-cache-info nar $(cd cache; echo *.narinfo)";
    for command in [
        format!("s3-pull OPTION --trusted-public-key '{key}' --root out \"file://$PWD/cache\" {path}"),
        format!("{archive} | cache-sign verify OPTION --trusted-public-key '{key}'"),
        format!("{archive} | s3-push OPTION --no-nix \"$C\""),
    ] {
        let run = |option: &str| fixture.scratch.sh(&format!("{} > output", command.replace("OPTION", option)));
        for option in ["", "--decoder-memory 500MiB"] {
            let stderr = run(option).fails(1);
            assert!(stderr.contains("cannot decompress as xz: it requires more memory than the limit"), "{stderr}");
            let hints: Vec<&str> = stderr.lines().filter(|line| line.starts_with("hint: ")).collect();
            assert_eq!(hints, ["hint: raise the limit with --decoder-memory SIZE"], "{command}: {stderr}");
        }
        run("--decoder-memory 600MiB").ok();
    }
    assert!(s3.objects(&bucket).contains(&cached.narinfo.key()));
}
