//! Decompression bombs and endless bodies.

use super::{Said, Scene, at, shown, unclear};
use crate::fixtures::forgery::{Forged, compressed, nar_of, objects, visible};
use cache_tests::lying_server::{Answer, LyingServer};
use narinfo_gen::compression::{Compression, decoder};
use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;

const MIB: u64 = 1 << 20;

/// Bombs and bodies without an end: refused, and never in memory.
#[test]
fn bombs_and_endless_bodies_take_no_memory() {
    let scene = Scene::new();
    let zeros = vec![0; 8 << 20];
    // A NAR that holds 1 TiB of zeros and begins to; the narinfo says that it has 1,000 bytes.
    let mut start = nar_of(&[b"(", b"type", b"regular", b"contents"]);
    start.extend((1_u64 << 40).to_le_bytes());
    let claim = |method: Compression| {
        let forged = scene.forger.stored(&format!("bomb-{method}"), start.clone(), Vec::new(), method.name(), &[]);
        let forged = forged.but(|narinfo| {
            narinfo.nar_size = 1000;
            narinfo.file_hash = None;
            narinfo.file_size = None;
        });
        scene.forger.signed(forged)
    };
    for method in Compression::ALL {
        let forged = claim(method);
        let (first, again) = (compressed(method, &start), compressed(method, &zeros));
        // One stream after another is one file to all of them but brotli.
        let file = match method {
            Compression::Brotli => compressed(method, &[start.as_slice(), &zeros.repeat(32)].concat()),
            Compression::None => start.clone(),
            _ => [first.clone(), again.repeat(32)].concat(),
        };
        let (size, unpacked) = (file.len(), if method == Compression::None { 0 } else { unpacked_size(method, &file) });
        let server = LyingServer::start(at(objects([&forged]), &forged.narinfo.url, Answer::object(file)));
        let (said, peak) = measured(&scene, &server, &forged);
        println!(
            "| a bomb in {method}: {size} bytes for {} MiB, NarSize 1000 | http | {} | {} | peak {} KiB |",
            unpacked / MIB,
            said.status,
            shown(said.stderr.trim_end()),
            peak / 1024
        );
        assert_eq!((said.status, unclear(&said.stderr)), (1, Vec::new()));
        assert!(peak < 100 * MIB, "{method}: {peak} bytes");
        let endless = at(objects([&forged]), &forged.narinfo.url, Answer::endless(first, again));
        let server = LyingServer::start(endless);
        let (said, peak) = measured(&scene, &server, &forged);
        println!(
            "| a file without an end in {method}, NarSize 1000 | http | {} | {} | peak {} KiB, {} bytes sent |",
            said.status,
            shown(said.stderr.trim_end()),
            peak / 1024,
            server.sent()
        );
        assert_eq!((said.status, unclear(&said.stderr)), (1, Vec::new()));
        assert!(peak < 100 * MIB, "{method}: {peak} bytes");
    }
}

/// How much a bomb unpacks to, at most 1 GiB.
fn unpacked_size(method: Compression, file: &[u8]) -> u64 {
    std::io::copy(&mut decoder(method, file).unwrap().take(1 << 30), &mut std::io::sink()).unwrap()
}

/// Pulls one path that must not appear, and returns the largest resident size of `s3-pull` too.
fn measured(scene: &Scene, server: &LyingServer, forged: &Forged) -> (Said, u64) {
    let root = scene.root();
    let mut command = scene.scratch.command("s3-pull");
    command.args(["--idle-timeout", "2", "--trusted-public-key", &scene.forger.public(), "--root"]).arg(&root);
    command.arg(server.http_url()).arg(forged.full_path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = 0;
    // It only rises; a process that has ended has none.
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        peak = peak.max(line.trim().trim_end_matches(" kB").parse().unwrap_or(0) * 1024);
        thread::yield_now();
    }
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(visible(&root), Vec::<String>::new(), "{stderr}");
    (Said { status: child.wait().unwrap().code().unwrap_or(-1), stderr, stdout: Vec::new() }, peak)
}
