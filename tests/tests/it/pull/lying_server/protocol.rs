//! Streams, redirects and listings.

use super::{Scene, honest, shown, unclear};
use crate::fixtures::forgery::{compressed, objects, small_nar};
use cache_tests::lying_server::{Answer, Asked, BUCKET, LyingServer};
use narinfo_gen::compression::Compression;
use narinfo_gen::hash::Sha256;
use std::process::Stdio;

/// What goes to standard output of a lie is never whole: the next stage refuses it.
#[test]
fn streams_of_lies_are_cut_off() {
    let scene = Scene::new();
    let good = scene.forger.path("good", small_nar(b'g'), Compression::Zstd, &[]);
    let victim = scene.forger.path("victim", small_nar(b'v'), Compression::Zstd, &[&good]);
    let evil = small_nar(b'e');
    assert_eq!(evil.len(), victim.nar.len());
    let lie = victim.clone().filed("nar/lie".to_owned(), compressed(Compression::Zstd, &evil));
    for (name, lie) in [
        ("another NAR of the same size", lie),
        ("FileHash of other bytes", victim.but(|n| n.file_hash = Some(Sha256::of(b"")))),
    ] {
        let server = LyingServer::start(honest(objects([&good, &lie])));
        for (flags, next) in [
            (&["--nar"][..], "nar-pack --list"),
            (&["--export", "-r"], "narinfo-gen --no-nix"),
            (&["--archive", "-r"], "cache-sign -k key.sec"),
        ] {
            let said = scene.pull(&server.http_url(), flags, &[lie.full_path()]);
            println!("| {name}, {} | http | {} | {} |", flags.join(" "), said.status, shown(said.stderr.trim_end()));
            assert_eq!((said.status, unclear(&said.stderr)), (1, Vec::new()));
            assert!(!said.stdout.is_empty() || flags == ["--nar"], "what is good was not written");
            scene.scratch.sh("[ -e key.sec ] || cache-sign keygen k-1 key.sec key.pub").ok();
            let refused = scene.scratch.sh_with_input(next, &said.stdout);
            assert_eq!(refused.status, 1, "{next} took it: {}", refused.stderr);
        }
    }
}

/// Who is sent to another host is not to take the password along.
#[test]
fn passwords_do_not_follow_redirects() {
    let scene = Scene::new();
    let victim = scene.forger.path("victim", small_nar(b'v'), Compression::Zstd, &[]);
    let all = objects([&victim]);
    let elsewhere = LyingServer::start(honest(all.clone()));
    let there = elsewhere.http_url();
    let here = LyingServer::start(move |asked: &Asked| Answer::redirect(format!("{there}/{}", asked.key)));
    let root = scene.root();
    let url = here.http_url().replace("http://", "http://somebody:secret@");
    let said = scene.pull_to(&url, &root, &[], &[victim.full_path()]);
    assert_eq!(said.status, 0, "{}", said.stderr);
    assert!(victim.lies_below(&root));
    assert!(!here.asked().is_empty() && here.asked().iter().all(|asked| asked.header("authorization").is_some()));
    assert!(!elsewhere.asked().is_empty());
    let told: Vec<Asked> =
        elsewhere.asked().into_iter().filter(|asked| asked.header("authorization").is_some()).collect();
    assert!(told.is_empty(), "{told:?}");
    assert!(!said.stderr.contains("secret"), "{}", said.stderr);
}

/// A listing that says for ever that there is more.
#[test]
fn a_listing_that_goes_in_circles_ends() {
    let scene = Scene::new();
    let page = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult><Name>{BUCKET}</Name><KeyCount>1</KeyCount>\
         <IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>\
         <Contents><Key>{}.narinfo</Key><Size>1</Size></Contents></ListBucketResult>",
        "0".repeat(32)
    );
    let cache_info = objects([]);
    let server = LyingServer::start(move |asked: &Asked| {
        if asked.key.is_empty() { Answer::object(page.clone()) } else { Answer::honest(&cache_info, asked) }
    });
    let mut command = scene.scratch.command("timeout");
    command.args(["--kill-after=5", "20", "s3-pull", "--all", "--list", "--no-verify-signatures", &server.s3_url()]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    println!("| a listing that goes in circles | s3 | {:?} | {} |", output.status.code(), shown(said.trim_end()));
    assert!(matches!(output.status.code(), Some(1 | 2)), "{:?}: {said}", output.status);
    assert_eq!(unclear(&said), Vec::<String>::new());
}
