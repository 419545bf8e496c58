//! Streams, redirects and listings.

use super::{PullFixture, correct, find_problems, table_cell};
use crate::fixtures::malicious_cache::{compressed, objects, small_nar};
use cache_tests::lying_server::{BUCKET, LyingServer, Request, Response};
use narinfo_gen::compression::Compression;
use narinfo_gen::hash::Sha256;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

/// The output of a refused path is incomplete, and the next stage refuses it.
#[test]
fn streams_with_refused_paths_are_truncated() {
    let fixture = PullFixture::new();
    let good = fixture.attacker.path("good", small_nar(b'g'), Compression::Zstd, &[]);
    let victim = fixture.attacker.path("victim", small_nar(b'v'), Compression::Zstd, &[&good]);
    let hostile = small_nar(b'e');
    assert_eq!(hostile.len(), victim.nar.len());
    let refused = victim.clone().stored_as("nar/lie".to_owned(), compressed(Compression::Zstd, &hostile));
    for (name, refused) in [
        ("another NAR of the same size", refused),
        ("FileHash of other bytes", victim.with(|n| n.file_hash = Some(Sha256::of(b"")))),
    ] {
        let server = LyingServer::start(correct(objects([&good, &refused])));
        for (flags, next) in [
            (&["--nar"][..], "nar-pack --list"),
            (&["--export", "-r"], "narinfo-gen --no-nix"),
            (&["--archive", "-r"], "cache-sign -k key.sec"),
        ] {
            let output = fixture.pull(&server.http_url(), flags, &[refused.full_path()]);
            println!(
                "| {name}, {} | http | {} | {} |",
                flags.join(" "),
                output.status,
                table_cell(output.stderr.trim_end())
            );
            assert_eq!((output.status, find_problems(&output.stderr)), (1, Vec::new()));
            assert!(!output.stdout.is_empty() || flags == ["--nar"], "the valid part was not written");
            fixture.scratch.sh("[ -e key.sec ] || cache-sign keygen k-1 key.sec key.pub").ok();
            let refused = fixture.scratch.sh_with_input(next, &output.stdout);
            assert_eq!(refused.status, 1, "{next} accepted it: {}", refused.stderr);
        }
    }
}

/// A redirect to another host must not include the password.
#[test]
fn passwords_are_not_sent_after_redirects() {
    let fixture = PullFixture::new();
    let victim = fixture.attacker.path("victim", small_nar(b'v'), Compression::Zstd, &[]);
    let all = objects([&victim]);
    let elsewhere = LyingServer::start(correct(all.clone()));
    let expected = elsewhere.http_url();
    let here = LyingServer::start(move |request: &Request| Response::redirect(format!("{expected}/{}", request.key)));
    let root = fixture.root();
    let url = here.http_url().replace("http://", "http://somebody:secret@");
    let output = fixture.pull_to(&url, &root, &[], &[victim.full_path()]);
    assert_eq!(output.status, 0, "{}", output.stderr);
    assert!(victim.is_in_root(&root));
    assert!(
        !here.requests().is_empty() && here.requests().iter().all(|request| request.header("authorization").is_some())
    );
    assert!(!elsewhere.requests().is_empty());
    let with_password: Vec<Request> =
        elsewhere.requests().into_iter().filter(|request| request.header("authorization").is_some()).collect();
    assert!(with_password.is_empty(), "{with_password:?}");
    assert!(!output.stderr.contains("secret"), "{}", output.stderr);
}

/// A listing that always claims that there are more pages.
#[test]
fn a_cyclic_listing_ends() {
    let fixture = PullFixture::new();
    let page = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult><Name>{BUCKET}</Name><KeyCount>1</KeyCount>\
         <IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>\
         <Contents><Key>{}.narinfo</Key><Size>1</Size></Contents></ListBucketResult>",
        "0".repeat(32)
    );
    let cache_info = objects([]);
    let server = LyingServer::start(move |request: &Request| {
        if request.key.is_empty() { Response::object(page.clone()) } else { Response::correct(&cache_info, request) }
    });
    let mut command = fixture.scratch.command("timeout");
    command.args(["--kill-after=5", "20", "s3-pull", "--all", "--list", "--no-verify-signatures", &server.s3_url()]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    println!("| a cyclic listing | s3 | {:?} | {} |", output.status.code(), table_cell(stderr.trim_end()));
    assert!(matches!(output.status.code(), Some(1 | 2)), "{:?}: {stderr}", output.status);
    assert_eq!(find_problems(&stderr), Vec::<String>::new());
}

/// The service fails once, with a date that the SDK takes for the time of the service.
#[test]
fn implausible_dates_are_ignored() {
    let fixture = PullFixture::new();
    let good = fixture.attacker.path("good", small_nar(b'g'), Compression::Zstd, &[]);
    for date in [
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Mon, 31 Dec 9999 23:59:59 GMT",
        "Fri, 31 Dec 9999 23:59:59.9 GMT",
        "Sat, 01 Jan 9000 00:00:00 GMT",
        "Mon, 01 Jan 0001 00:00:00 GMT",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Fri, 31 Dec 99999 23:59:59 GMT",
        "Fri, 32 Dec 2026 25:61:61 GMT",
        "today",
        "",
    ] {
        let (all, has_failed) = (objects([&good]), AtomicBool::new(false));
        let server = LyingServer::start(move |request: &Request| {
            if has_failed.swap(true, Ordering::Relaxed) {
                Response::correct(&all, request).header("Date", date)
            } else {
                Response::error(503, "SlowDown", "Reduce your request rate.").header("Date", date)
            }
        });
        let output = fixture.pull(&server.s3_url(), &["--nar"], &[good.full_path()]);
        assert_eq!((output.status, output.stdout == good.nar), (0, true), "{date}: {}", output.stderr);
    }
}
