//! Decompression bombs and endless bodies.

use super::{CommandOutput, PullFixture, find_problems, table_cell, with_response};
use crate::fixtures::malicious_cache::{CachedPath, compressed, nar_of, objects, visible_names};
use cache_tests::lying_server::{LyingServer, Response};
use cache_tests::pipeline::peak_memory;
use narinfo_gen::compression::{Compression, decoder};
use std::io::Read as _;
use std::process::Stdio;
use std::thread;

const MIB: u64 = 1 << 20;

/// Decompression bombs and endless bodies are refused and never held in memory.
#[test]
fn decompression_bombs_and_endless_bodies_use_little_memory() {
    let fixture = PullFixture::new();
    let zeros = vec![0; 8 << 20];
    // The beginning of a NAR with 1 TiB of zeros; according to the narinfo it has 1,000 bytes.
    let mut start = nar_of(&[b"(", b"type", b"regular", b"contents"]);
    start.extend((1_u64 << 40).to_le_bytes());
    let claim = |method: Compression| {
        let cached = fixture.attacker.stored(&format!("bomb-{method}"), start.clone(), Vec::new(), method.name(), &[]);
        let cached = cached.with(|narinfo| {
            narinfo.nar_size = 1000;
            narinfo.file_hash = None;
            narinfo.file_size = None;
        });
        fixture.attacker.signed(cached)
    };
    for method in Compression::ALL {
        let cached = claim(method);
        let (first, repeated) = (compressed(method, &start), compressed(method, &zeros));
        // Concatenated streams are valid in all formats but brotli.
        let file = match method {
            Compression::Brotli => compressed(method, &[start.as_slice(), &zeros.repeat(32)].concat()),
            Compression::None => start.clone(),
            _ => [first.clone(), repeated.repeat(32)].concat(),
        };
        let (size, unpacked) = (file.len(), if method == Compression::None { 0 } else { unpacked_size(method, &file) });
        let server = LyingServer::start(with_response(objects([&cached]), &cached.narinfo.url, Response::object(file)));
        let (output, peak) = pull_and_measure(&fixture, &server, &cached);
        println!(
            "| a bomb in {method}: {size} bytes for {} MiB, NarSize 1000 | http | {} | {} | peak {} KiB |",
            unpacked / MIB,
            output.status,
            table_cell(output.stderr.trim_end()),
            peak / 1024
        );
        assert_eq!((output.status, find_problems(&output.stderr)), (1, Vec::new()));
        assert!(peak < 100 * MIB, "{method}: {peak} bytes");
        let endless = with_response(objects([&cached]), &cached.narinfo.url, Response::endless(first, repeated));
        let server = LyingServer::start(endless);
        let (output, peak) = pull_and_measure(&fixture, &server, &cached);
        println!(
            "| a file without an end in {method}, NarSize 1000 | http | {} | {} | peak {} KiB, {} bytes sent |",
            output.status,
            table_cell(output.stderr.trim_end()),
            peak / 1024,
            server.sent()
        );
        assert_eq!((output.status, find_problems(&output.stderr)), (1, Vec::new()));
        assert!(peak < 100 * MIB, "{method}: {peak} bytes");
    }
}

/// Returns the decompressed size, at most 1 GiB.
fn unpacked_size(method: Compression, file: &[u8]) -> u64 {
    std::io::copy(&mut decoder(method, file).unwrap().take(1 << 30), &mut std::io::sink()).unwrap()
}

/// Pulls one path, which must not appear; also returns the peak memory of `s3-pull` in bytes.
fn pull_and_measure(fixture: &PullFixture, server: &LyingServer, cached: &CachedPath) -> (CommandOutput, u64) {
    let root = fixture.root();
    let mut command = fixture.scratch.command("s3-pull");
    command.args(["--idle-timeout", "2", "--trusted-public-key", &fixture.attacker.public(), "--root"]).arg(&root);
    command.arg(server.http_url()).arg(cached.full_path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut peak = 0;
    // The peak only rises; a process that has exited has none.
    while child.try_wait().unwrap().is_none() {
        peak = peak.max(peak_memory(&child).unwrap_or(0));
        thread::yield_now();
    }
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(visible_names(&root), Vec::<String>::new(), "{stderr}");
    let status = child.wait().unwrap().code().unwrap_or(-1);
    (CommandOutput { script: "s3-pull".to_owned(), status, stderr, stdout: Vec::new() }, peak)
}
