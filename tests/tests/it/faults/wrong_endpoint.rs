//! URLs with the wrong region, scheme or port, and requests that the server refuses because of the host's clock or
//! credentials: the error names the next step.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use cache_tests::lying_server::{LyingServer, Response};
use cache_tests::tls_front::TlsFront;
use cache_tests::{Credentials, Minio, MinioOptions, Scratch, split_hint, store_path};

use super::for_each_in_parallel;
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture, PUBLISH};

const REGION: &str = "eu-west-2";
const WRONG_REGION: &str = "us-east-1";

/// Runs a command that must fail with status 2, and returns the hint.
#[track_caller]
fn hint_of(scratch: &Scratch, script: &str) -> String {
    let stderr = scratch.sh(script).fails(2);
    let hint = split_hint(&stderr).1;
    hint.unwrap_or_else(|| panic!("no hint from {script}:\n{stderr}")).to_owned()
}

/// Returns the commands that write, read and list the bucket at `url`.
fn commands(url: &str) -> [String; 3] {
    [
        format!("echo x | s3-push '{url}' --key log/x"),
        format!("s3-pull --root out '{url}' {}", store_path("absent", 1)),
        format!("s3-push --missing '{url}' < /dev/null; s3-pull --list --all '{url}'"),
    ]
}

#[test]
fn reads_are_repeated_in_the_region_of_the_bucket_and_writes_name_it() {
    let options = MinioOptions { region: Some(REGION), ..MinioOptions::default() };
    let Some(minio) = Minio::start_with(options) else { return };
    let mut fixture = Fixture::new();
    let bucket = minio.make_bucket();
    minio.root().apply(&mut fixture.scratch);
    let wrong = minio.cache_url(&bucket);
    assert!(wrong.contains(WRONG_REGION));
    fixture.scratch.env("C", &wrong);
    // Writes: nothing is stored, and the region is named.
    for push in ["echo x | s3-push \"$C\" --key log/x".to_owned(), format!("{ARCHIVE} | s3-push --no-nix \"$C\"")] {
        let stderr = fixture.scratch.sh(&push).fails(2);
        let (messages, hint) = split_hint(&stderr);
        let expected = format!("the bucket is in the region {REGION:?}, not in {WRONG_REGION:?}");
        assert!(messages.contains("cannot write ") && messages.contains(&expected), "{stderr}");
        assert_eq!(hint, Some("add region=eu-west-2 to the parameters of the URL"), "{stderr}");
    }
    assert_eq!(minio.objects(&bucket), [""; 0]);
    fixture.scratch.env("C", wrong.replace(WRONG_REGION, REGION));
    fixture.scratch.sh(PUBLISH).ok();
    // Reads, listings included: a warning, once.
    fixture.scratch.env("C", &wrong);
    fixture.assert_pulls("$C", "--quiet");
    for (command, lines) in [("s3-pull -q --list --all \"$C\"", 3), ("s3-push -q --missing \"$C\" < paths", 0)] {
        let output = fixture.scratch.sh(command);
        assert_eq!(output.lines().len(), lines, "{command}");
        assert_eq!(output.stderr.matches(&format!("add region={REGION} ")).count(), 1, "{}", output.stderr);
    }
}

/// A read is repeated once, and only for what can be a region.
#[test]
fn a_server_cannot_redirect_a_read_twice_or_to_a_host() {
    for (region, requests) in [("garage", 2), ("evil.example/", 1), ("", 1), (WRONG_REGION, 1)] {
        let server = LyingServer::start(move |_| Response::wrong_region(region));
        let mut scratch = Scratch::new();
        Credentials::random().apply(&mut scratch);
        let stderr = scratch.sh(&format!("s3-pull --list --all '{}'", server.s3_url())).fails(2);
        assert_eq!(server.requests().len(), requests, "{region:?}: {stderr}");
    }
}

#[test]
fn the_region_in_the_body_of_a_response_is_used() {
    let server = LyingServer::start(|request| {
        let is_right = request.header("authorization").is_some_and(|value| value.contains("/garage/s3/"));
        if is_right { Response::no_such_key() } else { Response::wrong_region("garage") }
    });
    let mut scratch = Scratch::new();
    Credentials::random().apply(&mut scratch);
    let path = store_path("absent", 1);
    let stderr = scratch.sh(&format!("s3-pull --root out '{}' {path}", server.s3_url())).fails(1);
    assert!(stderr.contains("add region=garage to ") && stderr.contains(&path), "{stderr}");
    let stderr = scratch.sh(&format!("echo x | s3-push '{}' --key log/x", server.s3_url())).fails(2);
    assert!(stderr.contains("the region \"garage\""), "{stderr}");
}

#[test]
fn the_wrong_scheme_or_port_gets_a_hint() {
    let plain = MinioOptions { has_console: true, ..MinioOptions::default() };
    let Some(plain) = Minio::start_with(plain) else { return };
    let Some(tls) = Minio::start_with(MinioOptions { has_tls: true, ..MinioOptions::default() }) else { return };
    let alert = TlsFront::start(&plain.endpoint());
    let path = store_path("absent", 1);
    let mut cases = Vec::new();
    for (scheme, host, expected) in [
        ("https", plain.endpoint(), format!("does not use TLS: write endpoint=http://{}", plain.endpoint())),
        ("http", tls.endpoint(), format!("uses TLS, write endpoint=https://{}", tls.endpoint())),
        ("http", alert.endpoint().to_owned(), format!("uses TLS, write endpoint=https://{}", alert.endpoint())),
        ("http", plain.console().to_owned(), "port of a console or a web site".to_owned()),
    ] {
        let url = format!("s3://bucket?endpoint={scheme}://{host}");
        cases.extend(commands(&url).map(|command| (command, expected.clone())));
        let expected = match scheme {
            "https" => "use an http:// URL",
            _ if host == plain.console() => continue,
            _ => "use an https:// URL",
        };
        let pull = format!("s3-pull --root out {scheme}://{host}/bucket {path}");
        cases.push((pull, expected.to_owned()));
    }
    let mut scratch = Scratch::new();
    plain.root().apply(&mut scratch);
    scratch.env("AWS_MAX_ATTEMPTS", "2");
    for_each_in_parallel(&cases, |(command, expected)| {
        let hint = hint_of(&scratch, command);
        assert!(hint.contains(expected), "{command}: {hint}");
    });
    // A console answers every request of a browser or a client of HTTP with its page.
    let stderr = scratch.sh(&format!("s3-pull --root out http://{}/bucket {path}", plain.console())).fails(1);
    assert!(stderr.contains("nix-cache-info: a web page, not an object"), "{stderr}");
    assert!(stderr.contains("\nhint: the URL is that of a web site or a console"), "{stderr}");
}

/// Unlike a refused connection, which may be that of a server that restarts.
#[test]
fn a_connection_that_cannot_succeed_is_not_repeated() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::Relaxed);
            // Reads the TLS message, so that the response is not lost with it.
            drop(client.read(&mut [0; 4096]));
            drop(client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
        }
    });
    let mut scratch = Scratch::new();
    Credentials::random().apply(&mut scratch);
    let path = store_path("absent", 1);
    for url in [format!("s3://bucket?endpoint=https://{address}"), format!("https://{address}")] {
        connections.store(0, Ordering::Relaxed);
        let stderr = scratch.sh(&format!("s3-pull --root out '{url}' {path}")).fails(2);
        assert_eq!(connections.load(Ordering::Relaxed), 1, "{url}: {stderr}");
    }
}

#[test]
fn a_connection_with_an_untrusted_certificate_is_not_repeated() {
    let Some(minio) = Minio::shared() else { return };
    let tls = TlsFront::start(&minio.endpoint());
    let mut scratch = Scratch::new();
    minio.root().apply(&mut scratch);
    let path = store_path("absent", 1);
    for url in [format!("s3://bucket?endpoint=https://{}", tls.endpoint()), format!("https://{}/b", tls.endpoint())] {
        // More attempts than a test could wait for.
        let stderr = scratch.sh(&format!("s3-pull --attempts 100 --root out '{url}' {path}")).fails(2);
        assert!(stderr.contains("certificate"), "{stderr}");
    }
}

/// Other consoles answer requests for S3 with a page as well.
#[test]
fn a_web_page_instead_of_a_response_of_s3_gets_a_hint() {
    let server =
        LyingServer::start(|_| Response::object("<!DOCTYPE html><html></html>").header("Content-Type", "text/html"));
    let mut scratch = Scratch::new();
    Credentials::random().apply(&mut scratch);
    let stderr = scratch.sh(&format!("s3-push --missing '{}' < /dev/null", server.s3_url())).fails(2);
    assert!(stderr.contains(&format!(": http://{} sent a web page\n", server.endpoint())), "{stderr}");
    assert!(stderr.contains("is the port of a console or a web site"), "{stderr}");
    let stderr = scratch.sh(&format!("s3-pull --list --all '{}'", server.s3_url())).fails(1);
    assert!(stderr.contains("a web page, not an object") && stderr.contains("\nhint: the URL is that of "), "{stderr}");
}

/// The parser of the SDK calls it a bug of the SDK.
#[test]
fn an_unexpected_document_is_not_blamed_on_the_sdk() {
    let server = LyingServer::start(|_| Response::object("<?xml version=\"1.0\"?><Status>ok</Status>"));
    let mut scratch = Scratch::new();
    Credentials::random().apply(&mut scratch);
    let stderr = scratch.sh(&format!("s3-push --missing '{}' < /dev/null", server.s3_url())).fails(2);
    assert!(stderr.contains("cannot read the response of http://") && stderr.contains("Status"), "{stderr}");
    assert!(!stderr.contains("SDK"), "{stderr}");
}

#[test]
fn refused_credentials_and_clocks_get_a_hint() {
    let Some(minio) = Minio::shared() else { return };
    let url = minio.cache_url(&minio.make_bucket());
    let [write, read, _] = commands(&url);
    let mut scratch = Scratch::new();
    scratch.env("AWS_MAX_ATTEMPTS", "2");
    // No credentials at all.
    for command in [&write, &read] {
        let hint = hint_of(&scratch, command);
        assert!(hint.starts_with("set AWS_ACCESS_KEY_ID and "), "{command}: {hint}");
    }
    // Unknown ones.
    Credentials::random().apply(&mut scratch);
    assert_eq!(hint_of(&scratch, &read), "if the bucket is public, use --no-sign-request");
    let stderr = scratch.sh(&write).fails(2);
    assert!(!stderr.contains("--no-sign-request"), "s3-push has no such option: {stderr}");
    // A clock that is two hours and a half behind the server's.
    let date = scratch.sh("LC_ALL=C date -u -d '+150 minutes' '+%a, %d %b %Y %H:%M:%S GMT'").ok();
    let server = LyingServer::start(move |_| {
        Response::error(403, "RequestTimeTooSkewed", "The difference is too large.").header("Date", date.clone())
    });
    for command in &commands(&server.s3_url())[..2] {
        let hint = hint_of(&scratch, command);
        assert!(
            hint.starts_with("set the clock of this host: it is 2h") && hint.ends_with(" behind the server's"),
            "{hint}"
        );
    }
}

#[test]
fn a_proxy_that_requires_a_login_gets_a_hint() {
    let proxy = LyingServer::start(|_| Response::status(407));
    let path = store_path("absent", 1);
    let mut scratch = Scratch::new();
    Credentials::random().apply(&mut scratch);
    scratch.env("AWS_MAX_ATTEMPTS", "2");
    let variables =
        format!("export HTTP_PROXY=http://{0} http_proxy=http://{0} HTTPS_PROXY=http://{0}", proxy.endpoint());
    let cases = [
        format!("s3-pull --root out http://cache.example {path}"),
        format!("s3-pull --root out https://cache.example {path}"),
        format!("s3-pull --root out 's3://bucket?endpoint=http://cache.example' {path}"),
        format!("s3-pull --root out 's3://bucket?endpoint=https://cache.example' {path}"),
        "echo x | s3-push 's3://bucket?endpoint=http://cache.example' --key log/x".to_owned(),
    ];
    for_each_in_parallel(&cases, |command| {
        let hint = hint_of(&scratch, &format!("{variables}; {command}"));
        assert_eq!(
            hint, "add the user name and password of the proxy to the URL in HTTP_PROXY or HTTPS_PROXY",
            "{command}"
        );
    });
    assert!(!proxy.requests().is_empty());
}

/// Whatever the code of the error is, a listing that is forbidden is replaced by lookups, or the permission is named.
#[test]
fn a_forbidden_listing_gets_a_hint_or_is_replaced_by_lookups() {
    let listings = Arc::new(Mutex::new(0));
    for code in ["AccessDenied", "Forbidden", ""] {
        let counted = Arc::clone(&listings);
        let server = LyingServer::start(move |request| match request.key.as_str() {
            "" => {
                *counted.lock().unwrap() += 1;
                Response::error(403, code, "Access Denied")
            }
            "nix-cache-info" => Response::object("StoreDir: /nix/store\n"),
            _ => Response::no_such_key(),
        });
        let mut scratch = Scratch::new();
        Credentials::random().apply(&mut scratch);
        let hint = hint_of(&scratch, &format!("s3-pull --list --all '{}'", server.s3_url()));
        assert_eq!(hint, "'cache-policy --read-only --allow-list' prints a policy with this permission", "{code}");
        let path = store_path("absent", 1);
        let missing = format!("echo {path} | s3-push -q --missing '{}'", server.s3_url());
        assert_eq!(scratch.sh(&missing).ok(), path, "{code}");
    }
    // One of s3-pull, and two of s3-push: the records of collectors, and the paths.
    assert_eq!(*listings.lock().unwrap(), 9);
}

/// The real policy: a reader of MinIO that may not list.
#[test]
fn a_reader_without_list_bucket_gets_the_policy_that_allows_it() {
    let Some(minio) = Minio::shared() else { return };
    let bucket = minio.make_bucket();
    let reader = minio.add_user(&format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":["s3:GetObject"],
            "Resource":["arn:aws:s3:::{bucket}/*"]}}]}}"#
    ));
    minio.put(&bucket, "nix-cache-info", b"StoreDir: /nix/store\n");
    let mut scratch = Scratch::new();
    reader.apply(&mut scratch);
    let stderr = scratch.sh(&format!("s3-pull --list --all '{}'", minio.cache_url(&bucket))).fails(2);
    assert!(stderr.contains(&format!("cannot list s3://{bucket}/: ")) && stderr.contains("s3:ListBucket"), "{stderr}");
    assert!(stderr.contains("\nhint: 'cache-policy --read-only --allow-list' prints a policy"), "{stderr}");
}
