//! Hosts without credentials on which the instance metadata service answers with errors or not at all, as where a proxy
//! or a firewall answers in its place.

use cache_tests::Scratch;
use cache_tests::lying_server::{LyingServer, Request, Response};
use narinfo_gen::compression::Compression;

use super::for_each_in_parallel;
use crate::fixtures::malicious_cache::{Attacker, small_nar};

/// A metadata service, and how many requests it gets from one tool: at least and at most.
struct Case {
    name: &'static str,
    respond: fn(&Request) -> Response,
    requests: (usize, usize),
    /// What a message says about it.
    cause: &'static str,
}

/// Answers with a session token, and every other request as given.
fn with_token(request: &Request, other: Response) -> Response {
    if request.method == "PUT" {
        return Response::object("token").header("x-aws-ec2-metadata-token-ttl-seconds", "21600");
    }
    other
}

/// The client repeats requests that fail with 5xx, as long as it has time.
const CASES: [Case; 8] = [
    Case { name: "403", respond: |_| Response::status(403), requests: (1, 1), cause: "HTTP 403" },
    Case { name: "404", respond: |_| Response::status(404), requests: (1, 1), cause: "HTTP 404" },
    Case { name: "500", respond: |_| Response::status(500), requests: (1, 4), cause: "instance metadata service: " },
    Case { name: "silence", respond: |_| Response::silent(), requests: (1, 1), cause: "no AWS credentials found" },
    Case { name: "a web page", respond: |_| Response::status(200), requests: (1, 1), cause: "not one of the instance" },
    Case {
        name: "403 after the token",
        respond: |request| with_token(request, Response::status(403)),
        requests: (2, 2),
        cause: "HTTP 403",
    },
    Case {
        name: "silence after the token",
        respond: |request| with_token(request, Response::silent()),
        requests: (2, 2),
        cause: "instance metadata service: ",
    },
    Case {
        name: "a body that stalls",
        respond: |request| with_token(request, Response::stalled("role", 100)),
        requests: (2, 2),
        cause: "no credentials within 2 seconds",
    },
];

fn use_service(scratch: &mut Scratch, service: &LyingServer) {
    scratch.env("AWS_EC2_METADATA_DISABLED", "false");
    scratch.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{}", service.endpoint()));
}

#[test]
fn pull_reads_a_public_bucket_if_the_instance_metadata_service_fails() {
    let attacker = Attacker::new();
    let path = attacker.path("public", small_nar(b'p'), Compression::Zstd, &[]);
    for_each_in_parallel(&CASES, |case| {
        let objects = path.objects();
        let cache = LyingServer::start(move |request| Response::correct(&objects, request));
        let service = LyingServer::start(case.respond);
        let mut scratch = Scratch::new();
        use_service(&mut scratch, &service);
        scratch.env("NIX_CONFIG", format!("trusted-public-keys = {}\n", attacker.public()));
        let output = scratch.sh(&format!("s3-pull -q --root out '{}' {}", cache.s3_url(), path.full_path()));
        assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{}", case.name);
        assert!(path.is_in_root(&scratch.path().join("out")), "{}", case.name);
        assert!(cache.requests().iter().all(|request| request.header("authorization").is_none()), "{}", case.name);
        let (min, max) = case.requests;
        assert!((min..=max).contains(&service.requests().len()), "{}: {:?}", case.name, service.requests());
    });
}

#[test]
fn push_names_the_failure_of_the_instance_metadata_service() {
    for_each_in_parallel(&CASES, |case| {
        let service = LyingServer::start(case.respond);
        let bucket = LyingServer::start(|_| Response::access_denied());
        let mut scratch = Scratch::new();
        use_service(&mut scratch, &service);
        let stderr = scratch.sh(&format!("echo x | s3-push '{}' --key log/x", bucket.s3_url())).fails(2);
        assert!(stderr.contains("no AWS credentials found") && stderr.contains(case.cause), "{}: {stderr}", case.name);
        assert!(stderr.contains("\nhint: set AWS_ACCESS_KEY_ID and "), "{}: {stderr}", case.name);
        assert!(bucket.requests().is_empty(), "{}: nothing is sent unsigned", case.name);
    });
}

#[test]
fn an_upstream_cache_that_is_public_needs_no_credentials() {
    let attacker = Attacker::new();
    let path = attacker.path("public", small_nar(b'p'), Compression::Zstd, &[]);
    let mut objects = path.objects();
    objects.insert("nix-cache-info".to_owned(), b"StoreDir: /nix/store\n".to_vec());
    let upstream = LyingServer::start(move |request| Response::correct(&objects, request));
    let bucket = LyingServer::start(|request| match request.key.as_str() {
        "" => Response::object("<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"),
        _ => Response::no_such_key(),
    });
    let scratch = Scratch::new();
    // Only the bucket's profile has credentials.
    scratch.write("credentials", "[push]\naws_access_key_id = a\naws_secret_access_key = b\n");
    let url = format!("{}&profile=push", bucket.s3_url());
    let missing =
        format!("AWS_SHARED_CREDENTIALS_FILE=credentials s3-push --missing --upstream '{}'", upstream.s3_url());
    assert_eq!(scratch.sh(&format!("echo {} | {missing} '{url}'", path.full_path())).ok(), "");
    assert!(upstream.requests().iter().all(|request| request.header("authorization").is_none()));
}

/// Neither a variable nor the instance may stand in for the profile that the URL names.
#[test]
fn a_profile_in_the_url_is_the_only_source_of_credentials() {
    let bucket = LyingServer::start(|request| match request.key.as_str() {
        "" => Response::object("<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"),
        _ => Response::no_such_key(),
    });
    let service = LyingServer::start(|_| Response::status(403));
    let mut scratch = Scratch::new();
    use_service(&mut scratch, &service);
    scratch.env("AWS_ACCESS_KEY_ID", "FROMENVIRONMENT");
    scratch.env("AWS_SECRET_ACCESS_KEY", "secret");
    scratch.env("AWS_SHARED_CREDENTIALS_FILE", "credentials");
    scratch.write("credentials", "[push]\naws_access_key_id = FROMPROFILE\naws_secret_access_key = b\n[empty]\n");
    let missing = |profile: &str| {
        let path = cache_tests::store_path("x", 1);
        scratch.sh(&format!("echo {path} | s3-push --missing '{}{profile}'", bucket.s3_url()))
    };
    missing("&profile=push").ok();
    let signed_by = |key: &str| {
        let requests = bucket.requests();
        let used = |request: &Request| request.header("authorization").is_some_and(|value| value.contains(key));
        requests.iter().filter(|request| used(request)).count()
    };
    assert_eq!((signed_by("FROMENVIRONMENT"), signed_by("FROMPROFILE")), (0, bucket.requests().len()));
    let count = bucket.requests().len();
    let stderr = missing("&profile=empty").fails(2);
    assert!(stderr.contains("the AWS profile \"empty\" has no credentials"), "{stderr}");
    assert!(stderr.contains("hint: add credentials to the profile"), "{stderr}");
    assert_eq!((bucket.requests().len(), service.requests().len()), (count, 0));
    missing("").ok();
    assert!(signed_by("FROMENVIRONMENT") > 0);
}

/// A provider that was configured must not be skipped silently: the bucket may not be public.
#[test]
fn a_provider_that_fails_is_an_error_that_names_the_option_without_signatures() {
    let cache = LyingServer::start(|_| Response::no_such_key());
    let scratch = Scratch::new();
    scratch.write("config", "[default]\ncredential_process = /bin/false\n");
    let config = "export AWS_CONFIG_FILE=$PWD/config";
    let pull = format!("{config}; s3-pull --list --all '{}'", cache.s3_url());
    let stderr = scratch.sh(&pull).fails(2);
    assert!(stderr.ends_with("\nhint: if the bucket is public, use --no-sign-request\n"), "{stderr}");
    let stderr = scratch.sh(&format!("{config}; echo x | s3-push '{}' --key log/x", cache.s3_url())).fails(2);
    assert!(stderr.contains("\nhint: set AWS_ACCESS_KEY_ID and "), "{stderr}");
    assert!(cache.requests().is_empty());
}

/// The program of a `credential_process` may wait for ever, for a login that never comes.
#[test]
fn a_provider_that_does_not_answer_has_a_limit() {
    let cache = LyingServer::start(|_| Response::no_such_key());
    let scratch = Scratch::new();
    scratch.write("config", "[default]\ncredential_process = echo $$ >> started; exec sleep 600\n");
    let run = |command: &str| {
        let url = cache.s3_url();
        let stderr = scratch.sh(&format!("AWS_CONFIG_FILE=config {command} --idle-timeout 1s '{url}'")).fails(2);
        assert!(stderr.contains("no AWS credentials within 1 seconds"), "{stderr}");
        assert!(stderr.contains("\nhint: check the credential_process"), "{stderr}");
    };
    run("s3-pull --list --all");
    // The time is over for all attempts at all requests.
    assert_eq!(scratch.sh("wc -l < started").ok().trim(), "1");
    run("s3-push --key log/x < config");
    assert!(cache.requests().is_empty());
    scratch.sh("kill $(cat started)").ok();
}
