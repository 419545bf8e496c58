//! Faults of networks and services: a push or a pull completes, or fails with one line that names the cause. Either way
//! the cache is closed, and the next run completes.

use crate::fixtures::bucket::{Objects, S3Server, assert_closed, snapshot};
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture, path_in_root};
use cache_tests::fault_proxy::{Fault, FaultProxy, INTERNAL_ERROR, Request, SLOW_DOWN, TOO_MANY_REQUESTS};
use cache_tests::{CommandOutput, EmbeddedS3, Node, Random, Scratch, split_hint, store_path, tree};
use std::fs;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

mod connection;
mod instance_metadata;
mod pull;
mod push;
mod quirks;
mod requests;
mod responses;
mod services;
mod throttling;
mod wrong_endpoint;

/// A fault, and the texts of which one must be in the error message if a run fails.
struct Case {
    name: &'static str,
    fault: Fault,
    causes: &'static [&'static str],
}

/// Expected texts if a connection ends unexpectedly.
const CONNECTION_ERRORS: &[&str] =
    &["reset", "closed", "refused", "broken pipe", "end of file", "truncated", "incomplete"];

/// Faults of the network, and errors of the service.
const CASES: [Case; 9] = [
    Case { name: "503 SlowDown", fault: SLOW_DOWN, causes: &["HTTP 503"] },
    Case { name: "500 InternalError", fault: INTERNAL_ERROR, causes: &["HTTP 500"] },
    Case { name: "429 with Retry-After", fault: TOO_MANY_REQUESTS, causes: &["HTTP 429"] },
    Case { name: "reset", fault: Fault::Reset, causes: CONNECTION_ERRORS },
    Case { name: "stall", fault: Fault::Stall, causes: TIMEOUT_ERRORS },
    Case { name: "truncated request", fault: Fault::TruncateRequest, causes: CONNECTION_ERRORS },
    Case { name: "lost response", fault: Fault::LoseResponse, causes: CONNECTION_ERRORS },
    Case { name: "truncated response", fault: Fault::TruncateResponse(60), causes: CONNECTION_ERRORS },
    Case { name: "stalled response", fault: Fault::StallResponse(60), causes: TIMEOUT_ERRORS },
];

/// Expected texts if a service does not respond.
const TIMEOUT_ERRORS: &[&str] =
    &["did not answer in time", "timed out", "time-out", "stalled", "throughput", "nothing moved"];

/// A closure with a NAR that is uploaded in parts, and its expected contents everywhere.
struct TestClosure {
    /// The signed cache archive.
    archive: Vec<u8>,
    /// The store paths, references first: three small ones, a large one, and a small one that refers to the large one.
    paths: Vec<String>,
    trees: Vec<Vec<Node>>,
    /// The public key.
    key: String,
    /// The objects that a push without faults writes.
    objects: Objects,
}

static CLOSURE: LazyLock<TestClosure> = LazyLock::new(|| {
    let (fixture, s3, bucket) = Fixture::embedded();
    let (big, last) = (store_path("big", 1), store_path("last", 1));
    let mut paths: Vec<String> = fixture.closure.paths().map(str::to_owned).to_vec();
    fs::write(path_in_root(&fixture.path("root"), &big), Random::new(1).bytes(12 << 20)).unwrap();
    fs::write(path_in_root(&fixture.path("root"), &last), format!("{big}\n{}\n", fixture.closure.lib)).unwrap();
    paths.extend([big, last]);
    fs::write(fixture.path("paths"), paths.join("\n") + "\n").unwrap();
    fixture.scratch.sh(&format!("{ARCHIVE} > archive; s3-push -q --no-nix --part-size 5MiB \"$C\" < archive")).ok();
    let objects = snapshot(s3, &bucket);
    assert_closed(&objects);
    assert_eq!(objects.len(), 11, "{:?}", objects.keys());
    let trees = paths.iter().map(|path| tree(path_in_root(&fixture.path("root"), path))).collect();
    TestClosure { archive: fs::read(fixture.path("archive")).unwrap(), paths, trees, key: fixture.key.clone(), objects }
});

/// A directory with the archive of the closure, a bucket, and the credentials for it.
struct FaultFixture<'a, S> {
    scratch: Scratch,
    service: &'a S,
    bucket: String,
}

impl<'a, S: S3Server> FaultFixture<'a, S> {
    fn new(service: &'a S) -> Self {
        let bucket = service.new_bucket();
        Self::with_bucket(service, bucket)
    }

    fn with_bucket(service: &'a S, bucket: String) -> Self {
        let mut scratch = Scratch::new();
        fs::write(scratch.path().join("archive"), &CLOSURE.archive).unwrap();
        service.owner().apply(&mut scratch);
        scratch.env("NIX_CONFIG", format!("trusted-public-keys = {}\n", CLOSURE.key));
        // Four attempts take about two seconds.
        scratch.env("AWS_MAX_ATTEMPTS", "4");
        Self { scratch, service, bucket }
    }

    /// Returns the URL of the bucket through a proxy.
    fn url_through(&self, proxy: &FaultProxy) -> String {
        self.service.url(&self.bucket).replace(&self.service.address(), proxy.endpoint())
    }

    fn proxy(&self, plan: impl Fn(&Request) -> Fault + Send + Sync + 'static) -> FaultProxy {
        FaultProxy::start(&self.service.address(), plan)
    }

    fn push(&self, url: &str, flags: &str) -> CommandOutput {
        let push = format!("timeout 100 s3-push -q --no-nix --part-size 5MiB {flags} '{url}' < archive");
        self.scratch.sh(&push)
    }

    fn push_through(&self, proxy: &FaultProxy, fault: Fault) -> CommandOutput {
        self.push(&self.url_through(proxy), idle_flag(fault))
    }

    fn objects(&self) -> Objects {
        snapshot(self.service, &self.bucket)
    }

    /// Asserts that the bucket is closed, and that another push without faults completes it.
    #[track_caller]
    fn assert_closed_and_completed(&self, what: &str) {
        let objects = self.objects();
        assert_closed(&objects);
        let again = self.push(&self.service.url(&self.bucket), "");
        assert_eq!(again.status, 0, "{what}, then the next push: {}", again.stderr);
        self.assert_complete(what);
    }

    #[track_caller]
    fn assert_complete(&self, what: &str) {
        let objects = self.objects();
        assert_closed(&objects);
        assert_eq!(objects.keys().collect::<Vec<_>>(), CLOSURE.objects.keys().collect::<Vec<_>>(), "{what}");
        for (key, bytes) in &objects {
            assert!(CLOSURE.objects[key] == *bytes, "{what}: {key} has other bytes");
        }
    }
}

fn idle_flag(fault: Fault) -> &'static str {
    if matches!(fault, Fault::Stall | Fault::StallResponse(_)) { "--idle-timeout 2" } else { "" }
}

/// Asserts that a run completed, or failed with one line that names the cause; returns whether it completed.
#[track_caller]
fn assert_clear_result(what: &str, output: &CommandOutput, expected_causes: &[&str]) -> bool {
    let (messages, _) = split_hint(&output.stderr);
    if output.status == 0 {
        assert_eq!(messages, "", "{what}: it completed, but printed a message");
        println!("{what}: completed");
        return true;
    }
    println!("{what}: {messages}");
    assert_eq!(output.status, 2, "{what}: {messages}");
    // A pull continues with other paths and reports each.
    assert!(messages.lines().count() == 1 || messages.starts_with("s3-pull: "), "{what}: {messages}");
    let has_prefix = messages.lines().all(|line| line.starts_with("s3-push: ") || line.starts_with("s3-pull: "));
    let lower = messages.to_lowercase();
    let names_cause = expected_causes.iter().any(|cause| lower.contains(&cause.to_lowercase()));
    assert!(has_prefix && names_cause, "{what}: expected one of {expected_causes:?} in: {messages}");
    false
}

/// Runs a function for each item, several at a time, because these tests mostly wait.
fn for_each_in_parallel<T: Sync>(items: &[T], run: impl Fn(&T) + Sync) {
    const CONCURRENCY: usize = 6;
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CONCURRENCY.min(items.len()) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run(item);
                }
            });
        }
    });
}

/// Creates a bucket that contains the closure.
fn bucket_with_closure(s3: &EmbeddedS3) -> String {
    let bucket = s3.make_bucket();
    for (key, bytes) in &CLOSURE.objects {
        s3.put(&bucket, key, bytes);
    }
    bucket
}
