//! The page that a visitor of the bucket sees.

use std::fs;

use cache_tests::{Minio, Scratch, nix};
use serde_json::Value;

use super::document;
use crate::fixtures::closure_fixture;
use crate::fixtures::web_page::WebPage;

/// What the pages link to.
const LINKS: [&str; 1] = ["https://nixos.org"];

fn with_key() -> Scratch {
    let mut scratch = Scratch::new();
    let key = closure_fixture::generate_key(&scratch, "key");
    scratch.env("KEY", key);
    scratch
}

/// Returns the text of a page, and what a browser reads in it.
fn page(scratch: &Scratch, arguments: &str) -> (String, WebPage) {
    let text = document(scratch, &format!("--landing-page {arguments}"));
    let page = WebPage::parse(&format!("{text}\n"));
    page.assert_valid_and_self_contained(&LINKS);
    (text, page)
}

/// Evaluates a snippet of attributes with a real Nix, and returns what is below `attribute`.
fn evaluate(scratch: &Scratch, snippet: &str, attribute: &str) -> Value {
    scratch.write("snippet.nix", format!("{{ {snippet} }}"));
    let json = scratch.sh(&format!("nix-instantiate --eval --strict --json snippet.nix -A {attribute}")).ok();
    serde_json::from_str(&json).unwrap()
}

#[test]
fn the_snippets_configure_the_cache() {
    let scratch = with_key();
    let key = scratch.sh("cat key.pub").ok();
    for (arguments, url) in [
        ("s3://my-cache/a?region=eu-west-2 --https cache.example.org", "https://cache.example.org/a"),
        ("--https 's3://my-cache?region=eu-west-2'", "https://my-cache.s3.eu-west-2.amazonaws.com"),
        ("'s3://my-cache?region=eu-west-2&profile=hidden&secret-key=/hidden'", "s3://my-cache?region=eu-west-2"),
        ("https://cache.example.org/", "https://cache.example.org"),
        ("'https://cache.example.org/?trusted=true&secret-key=/hidden'", "https://cache.example.org"),
    ] {
        let (text, page) = page(&scratch, &format!("--trusted-public-key \"$KEY\" {arguments}"));
        assert!(!text.contains("hidden"), "{text}");
        let snippets = page.texts("pre");
        let lines = format!("extra-substituters = {url}\nextra-trusted-public-keys = {key}\n");
        assert_eq!((snippets.len(), snippets[0]), (3, lines.as_str()));
        assert_eq!(text.contains("requires credentials"), url.starts_with("s3://"));
        // The buttons are made by the script.
        assert!(page.elements("button").is_empty());
        if nix::available() {
            let settings = serde_json::json!({ "extra-substituters": [url], "extra-trusted-public-keys": [key] });
            assert_eq!(evaluate(&scratch, snippets[1], "nix.settings"), settings);
            assert_eq!(evaluate(&scratch, snippets[2], "nixConfig"), settings);
        }
    }
    // The same settings as those of --nix-conf, with the bucket before or after --https.
    for arguments in ["s3://my-cache --https cache.example.org", "--https my-cache", "--https s3://my-cache"] {
        let lines = document(&scratch, &format!("--nix-conf --trusted-public-key \"$KEY\" {arguments}"));
        let host =
            if arguments.contains("example") { "cache.example.org" } else { "my-cache.s3.us-east-1.amazonaws.com" };
        assert!(lines.starts_with(&format!("extra-substituters = https://{host}\n")), "{lines}");
    }
}

#[test]
fn arguments_are_text_on_the_page() {
    let mut scratch = with_key();
    let hostile = "</pre></title><script>alert(1)</script><img/onerror='x'/src=x>${x}\"''\\&amp;";
    let key = scratch.sh("cat key.pub").ok();
    let key = format!("{hostile}:{}", key.split_once(':').unwrap().1);
    scratch.env("HOSTILE_KEY", &key).env("HOSTILE", hostile);
    for arguments in ["\"s3://my-cache/$HOSTILE\"", "\"https://cache.example.org/$HOSTILE\""] {
        let (_, page) = page(&scratch, &format!("--trusted-public-key \"$HOSTILE_KEY\" {arguments}"));
        let url = arguments.trim_matches('"').replace("$HOSTILE", hostile);
        assert_eq!(page.texts("h1"), [url.split_once("://").unwrap().1]);
        let snippets = page.texts("pre");
        assert_eq!(snippets[0], format!("extra-substituters = {url}\nextra-trusted-public-keys = {key}\n"));
        if nix::available() {
            let settings = serde_json::json!({ "extra-substituters": [url], "extra-trusted-public-keys": [key] });
            assert_eq!(evaluate(&scratch, snippets[1], "nix.settings"), settings);
            assert_eq!(evaluate(&scratch, snippets[2], "nixConfig"), settings);
        }
    }
    for arguments in [
        "s3://my-cache --https \"$HOSTILE\"",
        "s3://my-cache --https https://cache.example.org",
        "https://cache.example.org --https cache.example.org",
        "https://user:hidden@cache.example.org",
        "--https cache.example.org",
        "",
    ] {
        let output = scratch.sh(&format!("cache-policy --landing-page --trusted-public-key \"$KEY\" {arguments}"));
        assert!(output.fails(2).lines().count() <= 2 && output.stdout.is_empty(), "{arguments}: {}", output.stderr);
        assert!(!output.stderr.contains("hidden"), "{}", output.stderr);
    }
    scratch.sh("cache-policy --landing-page my-cache").fails(2);
}

/// A browser shows a page only if its content type says so.
#[test]
fn a_visitor_of_the_bucket_sees_the_page() {
    let Some(minio) = Minio::shared() else { return };
    let mut scratch = with_key();
    let bucket = minio.make_bucket();
    minio.make_public(&bucket);
    minio.root().apply(&mut scratch);
    let (url, endpoint) = (minio.cache_url(&bucket), minio.endpoint());
    scratch.env("C", &url);
    scratch
        .sh("cache-policy --landing-page \"$C\" --https cache.example.org --trusted-public-key-file key.pub > index.html
             s3-push -q --key index.html \"$C\" < index.html; s3-push -q --key index.html \"$C\" < index.html")
        .ok();
    let (host, port) = endpoint.split_once(':').unwrap();
    let request = format!("GET /{bucket}/index.html HTTP/1.0\\r\\nHost: {endpoint}\\r\\n\\r\\n");
    let response = scratch.sh(&format!("exec 3<>/dev/tcp/{host}/{port}; printf '{request}' >&3; cat <&3")).ok();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200") && head.contains("\r\nContent-Type: text/html\r\n"), "{head}");
    assert_eq!(body, fs::read_to_string(scratch.path().join("index.html")).unwrap().trim_end());
}
