//! What networks and services do to a push and to a pull: it completes, or it fails with one line that names the cause;
//! the cache is closed either way, and the next run completes.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, LazyLock};
use std::thread;

use crate::fixtures::bucket::{Objects, Service, assert_closed, nar_keys, narinfo_keys, snapshot};
use crate::fixtures::site::{ARCHIVE, Site, below};
use cache_tests::fault_proxy::{
    ACCESS_DENIED, ERROR_IN_200, Fault, FaultProxy, INTERNAL_ERROR, Kind, NOT_IMPLEMENTED, Request, SLOW_DOWN,
    TOO_MANY_REQUESTS, What, always, every, once_per_kind, only,
};
use cache_tests::{EmbeddedS3, Minio, Node, Outcome, Random, Scratch, store_path, tree};

/// A fault, and the words of which one must be in the message when it ends a run.
struct Case {
    name: &'static str,
    fault: Fault,
    causes: &'static [&'static str],
}

/// Words for a connection that ends where it should not.
const BROKEN: &[&str] = &["reset", "closed", "refused", "broken pipe", "end of file", "cut off", "incomplete"];

/// What happens on the way to the service, and what it says when it cannot.
const CASES: [Case; 9] = [
    Case { name: "503 SlowDown", fault: SLOW_DOWN, causes: &["HTTP 503"] },
    Case { name: "500 InternalError", fault: INTERNAL_ERROR, causes: &["HTTP 500"] },
    Case { name: "429 with Retry-After", fault: TOO_MANY_REQUESTS, causes: &["HTTP 429"] },
    Case { name: "reset", fault: Fault::Reset, causes: BROKEN },
    Case { name: "stall", fault: Fault::Stall, causes: IDLE },
    Case { name: "cut off request", fault: Fault::TruncateRequest, causes: BROKEN },
    Case { name: "lost answer", fault: Fault::LoseResponse, causes: BROKEN },
    Case { name: "cut off answer", fault: Fault::TruncateResponse(60), causes: BROKEN },
    Case { name: "stalled answer", fault: Fault::StallResponse(60), causes: IDLE },
];

/// Words for a service that says nothing.
const IDLE: &[&str] = &["did not answer in time", "timed out", "time-out", "stalled", "throughput", "nothing moved"];

/// A closure with a multipart NAR, and everything that is known of it.
struct Goods {
    /// The signed cache archive.
    archive: Vec<u8>,
    /// The store paths, references first: three small ones, a large one, a small one that refers to it.
    paths: Vec<String>,
    trees: Vec<Vec<Node>>,
    /// The public key.
    key: String,
    /// The bucket that an undisturbed push makes of it.
    objects: Objects,
}

static GOODS: LazyLock<Goods> = LazyLock::new(|| {
    let (site, s3, bucket) = Site::embedded();
    let (big, last) = (store_path("big", 1), store_path("last", 1));
    let mut paths: Vec<String> = site.closure.paths().map(str::to_owned).to_vec();
    fs::write(below(&site.path("root"), &big), Random::new(1).bytes(12 << 20)).unwrap();
    fs::write(below(&site.path("root"), &last), format!("{big}\n{}\n", site.closure.lib)).unwrap();
    paths.extend([big, last]);
    fs::write(site.path("paths"), paths.join("\n") + "\n").unwrap();
    site.scratch.sh(&format!("{ARCHIVE} > archive; s3-push -q --no-nix --part-size 5MiB \"$C\" < archive")).ok();
    let objects = snapshot(s3, &bucket);
    assert_closed(&objects);
    assert_eq!(objects.len(), 11, "{:?}", objects.keys());
    let trees = paths.iter().map(|path| tree(below(&site.path("root"), path))).collect();
    Goods { archive: fs::read(site.path("archive")).unwrap(), paths, trees, key: site.key.clone(), objects }
});

/// A directory with the archive of the goods, a fresh bucket, and the credentials for it.
struct User<'a, S> {
    scratch: Scratch,
    service: &'a S,
    bucket: String,
}

impl<'a, S: Service> User<'a, S> {
    fn new(service: &'a S) -> Self {
        let bucket = service.fresh();
        Self::of(service, bucket)
    }

    fn of(service: &'a S, bucket: String) -> Self {
        let mut scratch = Scratch::new();
        fs::write(scratch.path().join("archive"), &GOODS.archive).unwrap();
        service.owner().apply(&mut scratch);
        scratch.env("NIX_CONFIG", format!("trusted-public-keys = {}\n", GOODS.key));
        // Four attempts take two seconds.
        scratch.env("AWS_MAX_ATTEMPTS", "4");
        Self { scratch, service, bucket }
    }

    /// The bucket behind a proxy.
    fn through(&self, proxy: &FaultProxy) -> String {
        self.service.url(&self.bucket).replace(&self.service.address(), proxy.endpoint())
    }

    fn proxy(&self, plan: impl Fn(&Request) -> Fault + Send + Sync + 'static) -> FaultProxy {
        FaultProxy::start(&self.service.address(), plan)
    }

    fn push(&self, url: &str, flags: &str) -> Outcome {
        let push = format!("timeout 100 s3-push -q --no-nix --part-size 5MiB {flags} '{url}' < archive");
        self.scratch.sh(&push)
    }

    fn push_through(&self, proxy: &FaultProxy, fault: Fault) -> Outcome {
        self.push(&self.through(proxy), idle_flag(fault))
    }

    fn objects(&self) -> Objects {
        snapshot(self.service, &self.bucket)
    }

    /// Asserts that the bucket is closed, and that another push, which nothing disturbs, completes it.
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
        assert_eq!(objects.keys().collect::<Vec<_>>(), GOODS.objects.keys().collect::<Vec<_>>(), "{what}");
        for (key, bytes) in &objects {
            assert!(GOODS.objects[key] == *bytes, "{what}: {key} has other bytes");
        }
    }
}

fn idle_flag(fault: Fault) -> &'static str {
    if matches!(fault, Fault::Stall | Fault::StallResponse(_)) { "--idle-timeout 2" } else { "" }
}

/// Asserts that a run completed, or failed with one line that names the cause; says whether it completed.
#[track_caller]
fn assert_clear(what: &str, outcome: &Outcome, causes: &[&str]) -> bool {
    let said = outcome.stderr.trim();
    if outcome.status == 0 {
        assert_eq!(said, "", "{what}: it completed and says");
        println!("{what}: completed");
        return true;
    }
    println!("{what}: {said}");
    assert_eq!(outcome.status, 2, "{what}: {said}");
    // A pull goes on with other paths, and tells of each.
    assert!(said.lines().count() == 1 || said.starts_with("s3-pull: "), "{what}: {said}");
    let tool = said.lines().all(|line| line.starts_with("s3-push: ") || line.starts_with("s3-pull: "));
    let lower = said.to_lowercase();
    let named = causes.iter().any(|cause| lower.contains(&cause.to_lowercase()));
    assert!(tool && named, "{what}: no word of {causes:?} in: {said}");
    false
}

/// Runs something for each item; most of what these tests do is to wait.
fn each<T: Sync>(items: &[T], run: impl Fn(&T) + Sync) {
    const AT_ONCE: usize = 6;
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(items.len()) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run(item);
                }
            });
        }
    });
}

// ---- Pushing ----

#[test]
fn the_proxy_lets_requests_through_and_counts_them() {
    let user = User::new(EmbeddedS3::shared());
    let proxy = user.proxy(always(Fault::Pass));
    user.push_through(&proxy, Fault::Pass).ok();
    user.assert_complete("nothing");
    let kinds = proxy.requests();
    let count = |kind| kinds.iter().filter(|found| **found == kind).count();
    assert_eq!(count(Kind::PutObject(What::Narinfo)), 5, "{kinds:?}");
    assert_eq!(count(Kind::PutObject(What::Nar)), 4, "{kinds:?}");
    assert_eq!(count(Kind::PutObject(What::CacheInfo)), 1, "{kinds:?}");
    assert_eq!(count(Kind::CreateMultipartUpload), 1, "{kinds:?}");
    assert_eq!(count(Kind::UploadPart), 3, "{kinds:?}");
    assert_eq!(count(Kind::CompleteMultipartUpload), 1, "{kinds:?}");
    assert_eq!(count(Kind::Other) + count(Kind::AbortMultipartUpload), 0, "{kinds:?}");
    assert_eq!(proxy.faults(), 0);
}

/// One accident for each kind of request: a retry heals it.
#[test]
fn a_push_outlives_each_fault_once() {
    each(&CASES, |case| {
        let what = format!("{} once for each kind of request", case.name);
        let user = User::new(EmbeddedS3::shared());
        let proxy = user.proxy(once_per_kind(case.fault));
        let outcome = user.push_through(&proxy, case.fault);
        assert!(proxy.faults() > 8, "{what}: {:?}", proxy.seen());
        let completed = assert_clear(&what, &outcome, case.causes);
        user.assert_closed_and_completed(&what);
        assert!(completed, "{what}: a single accident ended the push: {}", outcome.stderr);
    });
}

#[test]
fn a_push_outlives_each_fault_at_every_third_request() {
    each(&CASES, |case| {
        let what = format!("{} at every third request", case.name);
        let user = User::new(EmbeddedS3::shared());
        let proxy = user.proxy(every(3, case.fault));
        assert_clear(&what, &user.push_through(&proxy, case.fault), case.causes);
        assert!(proxy.faults() > 0, "{what}");
        user.assert_closed_and_completed(&what);
    });
}

/// A real server: with ListMultipartUploads, locks, and an opinion on broken requests.
#[test]
fn minio_behind_faults() {
    let Some(minio) = Minio::shared() else { return };
    each(&CASES, |case| {
        let what = format!("MinIO, {} at every third request", case.name);
        let user = User::new(minio);
        let proxy = user.proxy(every(3, case.fault));
        assert_clear(&what, &user.push_through(&proxy, case.fault), case.causes);
        assert!(proxy.faults() > 0, "{what}");
        user.assert_closed_and_completed(&what);
    });
}

#[test]
fn a_fault_that_stays_ends_the_push_in_time() {
    each(&CASES[..7], |case| {
        let what = format!("{} at every request", case.name);
        let user = User::new(EmbeddedS3::shared());
        let proxy = user.proxy(always(case.fault));
        let flags = format!("--attempts 2 {}", idle_flag(case.fault));
        let completed = assert_clear(&what, &user.push(&user.through(&proxy), &flags), case.causes);
        assert!(!completed, "{what}: who has answered?");
        user.assert_closed_and_completed(&what);
    });
}

/// One thing that the service never does; all else works.
#[test]
fn a_fault_that_stays_at_one_kind_of_request_leaves_the_cache_closed() {
    use Kind::{
        CompleteMultipartUpload, CreateMultipartUpload, GetObject, HeadObject, ListMultipartUploads, ListObjects,
        PutObject, UploadPart,
    };
    // Whether the push can do without it.
    let kinds = [
        (GetObject(What::CacheInfo), false),
        (ListObjects, false),
        (PutObject(What::CacheInfo), false),
        (PutObject(What::Nar), false),
        (PutObject(What::Narinfo), false),
        (HeadObject(What::Nar), false),
        (ListMultipartUploads, true),
        (CreateMultipartUpload, false),
        (UploadPart, false),
        (CompleteMultipartUpload, false),
    ];
    let pairs: Vec<_> = kinds.iter().flat_map(|kind| [0, 3, 4].map(|at| (*kind, &CASES[at]))).collect();
    each(&pairs, |((kind, dispensable), case)| {
        let (kind, what) = (*kind, format!("{} at every {kind:?}", case.name));
        let user = User::new(EmbeddedS3::shared());
        let proxy = user.proxy(only(move |request| request.kind() == kind, always(case.fault)));
        let flags = format!("--attempts 2 {}", idle_flag(case.fault));
        let completed = assert_clear(&what, &user.push(&user.through(&proxy), &flags), case.causes);
        assert!(proxy.faults() > 0, "{what}: there was none");
        assert_eq!(completed, *dispensable, "{what}");
        user.assert_closed_and_completed(&what);
    });
}

#[test]
fn an_error_inside_200_is_an_error() {
    let completing = |request: &Request| request.kind() == Kind::CompleteMultipartUpload;
    let user = User::new(EmbeddedS3::shared());
    let proxy = user.proxy(only(completing, always(ERROR_IN_200)));
    let what = "200 with an error inside";
    assert!(!assert_clear(what, &user.push_through(&proxy, ERROR_IN_200), &["InternalError"]));
    assert!(proxy.faults() > 0);
    // Neither the NAR, which was never completed, nor the two narinfos that need it.
    let objects = user.objects();
    let big = GOODS.objects.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().0;
    assert!(!objects.contains_key(big));
    for path in &GOODS.paths[3..] {
        assert!(!objects.contains_key(&Site::narinfo_key(path)), "{path}");
    }
    user.assert_closed_and_completed(what);

    let user = User::new(EmbeddedS3::shared());
    let proxy = user.proxy(only(completing, once_per_kind(ERROR_IN_200)));
    let completed = assert_clear(what, &user.push_through(&proxy, ERROR_IN_200), &["InternalError"]);
    if completed {
        user.assert_complete(what);
    }
    user.assert_closed_and_completed(what);
}

/// Somebody else is faster with each object in turn: 412, and the push is content.
#[test]
fn an_object_of_the_same_bytes_that_comes_first_is_as_good() {
    let s3 = EmbeddedS3::shared();
    let user = User::new(s3);
    let bucket = user.bucket.clone();
    let plan = move |request: &Request| {
        if matches!(request.kind(), Kind::PutObject(_) | Kind::CompleteMultipartUpload) {
            let key = request.path.trim_start_matches(&format!("/{bucket}/")).to_owned();
            assert_eq!(request.header("if-none-match"), Some("*"), "{request:?}");
            s3.put(&bucket, &key, &GOODS.objects[&key]);
        }
        Fault::Pass
    };
    let proxy = user.proxy(plan);
    let outcome = user.push_through(&proxy, Fault::Pass);
    assert_eq!(outcome.ok(), "", "nothing of this was published here");
    assert_eq!(outcome.stderr, "");
    user.assert_complete("each object was there a moment before");
}

/// Under the key of a NAR lies something else, which came first or was cut off: it stays, and no narinfo names it.
#[test]
fn an_object_of_other_bytes_that_comes_first_is_refused() {
    let s3 = EmbeddedS3::shared();
    for which in [Kind::PutObject(What::Nar), Kind::CompleteMultipartUpload] {
        let user = User::new(s3);
        let bucket = user.bucket.clone();
        let plan = move |request: &Request| {
            if request.kind() == which {
                s3.put(&bucket, request.path.trim_start_matches(&format!("/{bucket}/")), b"cut off");
            }
            Fault::Pass
        };
        let proxy = user.proxy(plan);
        let said = user.push_through(&proxy, Fault::Pass).fails(1);
        assert!(said.contains("an object of 7 bytes"), "{said}");
        let objects = user.objects();
        assert_closed(&objects);
        let damaged: Vec<_> = nar_keys(&objects).into_iter().filter(|key| objects[*key] == b"cut off").collect();
        assert!(!damaged.is_empty());
        for key in damaged {
            s3.remove(&user.bucket, key);
        }
        user.assert_closed_and_completed("an object of other bytes was removed");
    }
}

/// Two pushers that both see an empty bucket before either writes.
fn race(service: &(impl Service + Sync)) -> String {
    let user = User::new(service);
    // Both have asked for nix-cache-info when they list, and both have listed when they write.
    let gates = [Kind::ListObjects, Kind::PutObject(What::CacheInfo)];
    let gates = Arc::new(gates.map(|kind| (kind, AtomicUsize::new(0), Barrier::new(2))));
    let proxy = user.proxy(move |request| {
        for (kind, passed, barrier) in gates.iter() {
            // One that is repeated finds the gate open.
            if request.kind() == *kind && passed.fetch_add(1, Ordering::SeqCst) < 2 {
                barrier.wait();
            }
        }
        Fault::Pass
    });
    let url = user.through(&proxy);
    let outcomes = thread::scope(|scope| {
        let pushers = [(); 2].map(|()| scope.spawn(|| user.push(&url, "")));
        pushers.map(|pusher| pusher.join().unwrap())
    });
    for outcome in &outcomes {
        outcome.ok();
        assert_eq!(outcome.stderr, "");
    }
    let lists = proxy.requests().into_iter().filter(|kind| *kind == Kind::ListObjects).count();
    assert_eq!(lists, 2, "nobody gave up and began again");
    user.assert_complete("two pushers at once");
    user.bucket
}

#[test]
fn two_pushers_at_once_both_succeed() {
    for _ in 0..3 {
        race(EmbeddedS3::shared());
    }
    let Some(minio) = Minio::shared() else { return };
    for _ in 0..2 {
        let bucket = race(minio);
        assert_eq!(
            String::from_utf8(minio.mc(&["ls", "--recursive", "--incomplete", &format!("cache/{bucket}")])).unwrap(),
            "",
            "an upload is left unfinished"
        );
    }
}

#[test]
fn a_service_without_conditional_writes_will_do() {
    let conditional =
        |request: &Request| request.header("if-none-match").is_some() || request.header("if-match").is_some();
    let user = User::new(EmbeddedS3::shared());
    let proxy = user.proxy(only(conditional, always(NOT_IMPLEMENTED)));
    assert!(assert_clear("no conditional writes", &user.push_through(&proxy, NOT_IMPLEMENTED), &[]));
    assert!(proxy.faults() > 0);
    user.assert_complete("no conditional writes");
    // Also where they are missing for uploads in parts only.
    let user = User::new(EmbeddedS3::shared());
    let completing = move |request: &Request| conditional(request) && request.kind() == Kind::CompleteMultipartUpload;
    let proxy = user.proxy(only(completing, always(NOT_IMPLEMENTED)));
    assert!(assert_clear("no conditional completing", &user.push_through(&proxy, NOT_IMPLEMENTED), &[]));
    assert_eq!(proxy.faults(), 1);
    user.assert_complete("no conditional completing");
}

// ---- What is there ----

#[test]
fn a_failed_check_is_never_missing() {
    let s3 = EmbeddedS3::shared();
    let bucket = stocked(s3);
    // By listing, and, where that is forbidden, path by path.
    let pairs: Vec<_> = CASES.iter().flat_map(|case| [(case, false), (case, true)]).collect();
    each(&pairs, |(case, by_head)| {
        let (fault, by_head) = (case.fault, *by_head);
        let what = format!("--missing, {} at every {}", case.name, if by_head { "HEAD" } else { "LIST" });
        if by_head && matches!(fault, Fault::TruncateResponse(_) | Fault::StallResponse(_)) {
            return; // its answer has no body
        }
        let user = User::of(s3, bucket.clone());
        fs::write(user.scratch.path().join("paths"), GOODS.paths.join("\n") + "\n").unwrap();
        let proxy = user.proxy(move |request| match request.kind() {
            Kind::ListObjects if by_head => ACCESS_DENIED,
            Kind::ListObjects | Kind::HeadObject(_) => fault,
            _ => Fault::Pass,
        });
        let url = user.through(&proxy);
        let script = format!("timeout 100 s3-push -q --attempts 2 --missing {} '{url}' < paths", idle_flag(fault));
        let outcome = user.scratch.sh(&script);
        assert!(!assert_clear(&what, &outcome, case.causes), "{what}: who has answered?");
        assert_eq!(outcome.text(), "", "{what}: it names paths that are there");
    });
}

/// A bucket with the goods in it.
fn stocked(s3: &EmbeddedS3) -> String {
    let bucket = s3.make_bucket();
    for (key, bytes) in &GOODS.objects {
        s3.put(&bucket, key, bytes);
    }
    bucket
}

#[test]
fn what_is_there_is_known_by_asking_where_listing_is_forbidden() {
    let s3 = EmbeddedS3::shared();
    let user = User::of(s3, stocked(s3));
    let absent = store_path("absent", 1);
    fs::write(user.scratch.path().join("paths"), format!("{}\n{absent}\n", GOODS.paths.join("\n"))).unwrap();
    let proxy = user.proxy(only(|request| request.kind() == Kind::ListObjects, always(ACCESS_DENIED)));
    let url = user.through(&proxy);
    assert_eq!(user.scratch.sh(&format!("s3-push --missing '{url}' < paths")).ok(), absent);
    let again = user.push(&url, "");
    assert_eq!((again.ok().as_str(), again.stderr.as_str()), ("", ""));
    user.assert_complete("listing is forbidden");
}

// ---- Pulling ----

/// Pulls the last path's closure and the three small ones into `out`.
fn pull(user: &User<EmbeddedS3>, url: &str, flags: &str) -> Outcome {
    user.scratch.sh(&format!("timeout 100 s3-pull -q -r --root out {flags} '{url}' {}", GOODS.paths.join(" ")))
}

/// Asserts that whatever lies below `out` is whole, and, when the pull has completed, that nothing is missing.
#[track_caller]
fn assert_whole(what: &str, user: &User<EmbeddedS3>, completed: bool) {
    let out = user.scratch.path().join("out");
    for (path, expected) in GOODS.paths.iter().zip(&GOODS.trees) {
        let there = below(&out, path).exists();
        assert!(there || !completed, "{what}: {path} is missing");
        assert!(!there || tree(below(&out, path)) == *expected, "{what}: {path} is not what it was");
    }
    if completed {
        let left = fs::read_dir(out.join("nix/store")).unwrap().count();
        assert_eq!(left, GOODS.paths.len(), "{what}: something temporary is left");
    }
}

/// Pulls by S3 and by HTTP through faults, and then without; `heals` when the faults must not end the pull.
fn assert_pulls<P>(how: &str, heals: bool, plan: impl Fn(Fault) -> P + Sync)
where
    P: Fn(&Request) -> Fault + Send + Sync + 'static,
{
    let s3 = EmbeddedS3::shared();
    let bucket = stocked(s3);
    let pairs: Vec<_> = CASES.iter().flat_map(|case| [(case, false), (case, true)]).collect();
    each(&pairs, |(case, by_http)| {
        let what = format!("{} pull, {} {how}", if *by_http { "HTTP" } else { "S3" }, case.name);
        let user = User::of(s3, bucket.clone());
        let url = if *by_http { s3.http_url(&bucket) } else { s3.cache_url(&bucket) };
        let proxy = user.proxy(plan(case.fault));
        let flags = format!("{} --attempts {}", idle_flag(case.fault), if heals { 4 } else { 2 });
        let outcome = pull(&user, &url.replace(&s3.endpoint(), proxy.endpoint()), &flags);
        assert!(proxy.faults() > 0, "{what}: there was none");
        let completed = assert_clear(&what, &outcome, case.causes);
        assert_whole(&what, &user, completed);
        let again = pull(&user, &url, "");
        assert_eq!(again.status, 0, "{what}, then the next pull: {}", again.stderr);
        assert_whole(&what, &user, true);
        assert!(completed || !heals, "{what}: a single accident ended the pull: {}", outcome.stderr);
    });
}

#[test]
fn a_pull_outlives_each_fault_once() {
    assert_pulls("once for each kind of request", true, once_per_kind);
}

#[test]
fn a_pull_outlives_each_fault_at_every_third_request() {
    assert_pulls("at every third request", false, |fault| every(3, fault));
}

#[test]
fn a_fault_that_stays_ends_the_pull_in_time() {
    let nar = |request: &Request| request.kind() == Kind::GetObject(What::Nar);
    assert_pulls("at every NAR", false, move |fault| only(nar, always(fault)));
    assert_pulls("at every request", false, always);
}

#[test]
fn a_narinfo_that_is_forbidden_is_missing_and_a_hint_says_so() {
    let s3 = EmbeddedS3::shared();
    let bucket = stocked(s3);
    for url in [s3.cache_url(&bucket), s3.http_url(&bucket)] {
        let user = User::of(s3, bucket.clone());
        let narinfo = |request: &Request| request.kind() == Kind::GetObject(What::Narinfo);
        let proxy = user.proxy(only(narinfo, always(ACCESS_DENIED)));
        let script = format!(
            "s3-pull --root out '{}' {}",
            url.replace(&s3.endpoint(), proxy.endpoint()),
            GOODS.paths[..2].join(" ")
        );
        let said = user.scratch.sh(&script).fails(1);
        assert_eq!(said.matches("forbidden (403)").count(), 1, "one hint: {said}");
        for path in &GOODS.paths[..2] {
            assert!(said.contains(&format!("{path}: the cache does not have it")), "{said}");
        }
        let store = below(&user.scratch.path().join("out"), "/nix/store");
        assert_eq!(fs::read_dir(store).map_or(0, Iterator::count), 0, "nothing is left");
        assert_eq!(proxy.faults(), 2, "a refusal is not repeated: {:?}", proxy.seen());
    }
}

// ---- How many requests ----

/// The archives of a site of three paths, of all of them and of the first two, and a directory for them.
fn small(service: &impl Service) -> (Site, String) {
    let mut site = Site::new();
    let bucket = service.fresh();
    service.owner().apply(&mut site.scratch);
    let two = ARCHIVE.replace("< paths", "< two");
    site.scratch.sh(&format!("head -n 2 paths > two; {ARCHIVE} > three.tar; {two} > two.tar")).ok();
    (site, bucket)
}

/// The requests of a push that succeeds.
#[track_caller]
fn requests(site: &Site, service: &impl Service, bucket: &str, script: &str) -> Vec<Kind> {
    let proxy = FaultProxy::start(&service.address(), always(Fault::Pass));
    let url = service.url(bucket).replace(&service.address(), proxy.endpoint());
    site.scratch.sh(&script.replace("$C", &url)).ok();
    proxy.requests()
}

fn assert_few_requests(service: &impl Service, tells_md5: bool) {
    let (site, bucket) = small(service);
    let push = |archive: &str| requests(&site, service, &bucket, &format!("s3-push -q --no-nix '$C' < {archive}"));
    // Two for each path; beside it nix-cache-info, read and written, and a listing.
    let new = push("two.tar");
    assert!(new.len() <= 2 * 2 + 3, "two new paths: {new:?}");
    // A service whose listings tell no MD5 is asked for the narinfos that are there, to see what they lack.
    let asked = |there: usize| if tells_md5 { 0 } else { there };
    let one_more = push("three.tar");
    assert!(one_more.len() <= 2 + 2 + asked(2), "one new path and two that are there: {one_more:?}");
    let nothing = push("three.tar");
    assert!(nothing.len() <= 3 + asked(3), "nothing new: {nothing:?}");
    let objects = snapshot(service, &bucket);
    assert_closed(&objects);
    assert_eq!(narinfo_keys(&objects).len(), 3);
}

#[test]
fn a_push_takes_two_requests_for_a_new_path_and_none_for_one_that_is_there() {
    if let Some(minio) = Minio::shared() {
        assert_few_requests(minio, true);
    }
    assert_few_requests(EmbeddedS3::shared(), false);
}

/// Where nothing can be listed, a path is asked for once.
#[test]
fn a_push_asks_once_for_a_path_where_listing_is_forbidden() {
    let s3 = EmbeddedS3::shared();
    let (site, bucket) = small(s3);
    let proxy =
        FaultProxy::start(&s3.address(), only(|request| request.kind() == Kind::ListObjects, always(ACCESS_DENIED)));
    let url = s3.url(&bucket).replace(&s3.address(), proxy.endpoint());
    site.scratch.sh(&format!("s3-push -q --no-nix '{url}' < three.tar")).ok();
    let asked = proxy.requests().into_iter().filter(|kind| *kind == Kind::HeadObject(What::Narinfo)).count();
    assert_eq!(asked, 3, "{:?}", proxy.requests());
}

#[test]
fn a_thousand_paths_that_are_there_take_five_requests() {
    let s3 = EmbeddedS3::shared();
    let (site, bucket) = small(s3);
    let paths: Vec<String> = (0..1000).map(|seed| store_path("tiny", seed)).collect();
    fs::write(site.path("many"), paths.join("\n") + "\n").unwrap();
    for path in &paths {
        s3.put(&bucket, &Site::narinfo_key(path), b"StorePath: that it is there is all that is asked\n");
    }
    let missing = "s3-push -q --missing '$C' < many > missing; test ! -s missing";
    let kinds = requests(&site, s3, &bucket, missing);
    assert!(kinds.len() <= 5, "{} requests: {kinds:?}", kinds.len());
    // As a cache of a thousand paths is: what lies beside its narinfos makes the listing longer than one page.
    s3.put(&bucket, "nix-cache-info", b"StoreDir: /nix/store\n");
    s3.put(&bucket, "nar/0000000000000000000000000000000000000000000000000000.nar.zst", b"x");
    let kinds = requests(&site, s3, &bucket, missing);
    assert!(kinds.len() <= 5, "{} requests: {kinds:?}", kinds.len());
}
