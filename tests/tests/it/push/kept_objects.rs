//! What is in the bucket is not overwritten: by what arrives for the same key, and by what another process wrote meanwhile.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::fixtures::bucket::{assert_closed, snapshot};
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture};
use cache_tests::fault_proxy::{Fault, FaultProxy, ObjectKind, RequestKind};
use cache_tests::{EmbeddedS3, cache_url};

/// Runs `act` before the first request of this kind reaches the server; returns the proxy, and sets `$C` to it.
fn before_first(
    fixture: &mut Fixture,
    s3: &'static EmbeddedS3,
    bucket: &str,
    kind: RequestKind,
    act: impl Fn(&str) + Send + Sync + 'static,
) -> FaultProxy {
    let is_done = AtomicBool::new(false);
    let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
        if request.kind() == kind && !is_done.swap(true, Ordering::Relaxed) {
            act(request.key());
        }
        Fault::Pass
    });
    fixture.scratch.env("C", cache_url(proxy.endpoint(), bucket));
    proxy
}

/// A debug information link or a realisation may be that of another path, which the push does not bring.
#[test]
fn objects_beside_paths_are_kept_and_logs_replaced() {
    let (fixture, s3, bucket, lib) = Fixture::with_cache();
    let listing = Fixture::narinfo_key(&fixture.closure.lib).replace(".narinfo", ".ls");
    let realisation = format!("realisations/sha256:{}!out.doi", "0".repeat(64));
    let link = format!("debuginfo/{}.debug", "0".repeat(40));
    let cache = fixture.path("cache");
    for directory in ["realisations", "debuginfo", "log"] {
        fs::create_dir(cache.join(directory)).unwrap();
    }
    let write = |number: u32| {
        let out_path = fixture.closure.lib.trim_start_matches("/nix/store/");
        let id = realisation.trim_start_matches("realisations/").trim_end_matches(".doi");
        let texts = [
            (&listing, format!(r#"{{"version":1,"root":{{"type":"symlink","target":"{number}"}}}}"#)),
            (&realisation, format!(r#"{{"id":"{id}","outPath":"{out_path}","signatures":["k:{number}AAA"]}}"#)),
            (&link, format!(r#"{{"archive":"../{}","member":"{number}"}}"#, lib.one("URL"))),
            (&"log/x.drv".to_owned(), number.to_string()),
        ];
        for (key, text) in &texts {
            fs::write(cache.join(key), text).unwrap();
        }
        texts.map(|(key, text)| (key.clone(), text.into_bytes()))
    };
    let members = "nix-cache-info nar debuginfo realisations log *.ls *.narinfo";
    let push =
        |flags: &str| fixture.scratch.sh(&format!("cd cache; tar c {members} | s3-push --no-nix {flags} \"$C\""));
    let first = write(1);
    push("").ok();
    let second = write(2);
    push("").ok();
    for (key, text) in first.iter().take(3).chain(&second[3..]) {
        assert_eq!(&s3.get(&bucket, key), text, "{key}");
    }
    push("--repair").ok();
    for (key, text) in &second {
        assert_eq!(&s3.get(&bucket, key), text, "{key}");
    }
    // What is left of a path that the cache does not have any more is replaced.
    s3.remove(&bucket, &Fixture::narinfo_key(&fixture.closure.lib));
    s3.put(&bucket, &link, br#"{"archive":"../nar/gone.nar","member":"x"}"#);
    let third = write(3);
    push("").ok();
    for (key, text) in &third {
        assert_eq!(&s3.get(&bucket, key), text, "{key}");
    }
}

#[test]
fn narinfo_text_does_not_overwrite_what_was_published_meanwhile() {
    let (mut fixture, s3, bucket, lib) = Fixture::with_cache();
    let key = Fixture::narinfo_key(&fixture.closure.lib);
    let cache = fixture.path("cache");
    let nar = fs::read(cache.join(lib.one("URL"))).unwrap();
    s3.put(&bucket, lib.one("URL"), &nar);
    let other = fs::read_to_string(cache.join(&key))
        .unwrap()
        .replace(lib.one("NarHash"), &format!("sha256:{}", "0".repeat(52)));
    let (target, published) = (bucket.clone(), (key.clone(), other.clone().into_bytes()));
    let _proxy = before_first(&mut fixture, s3, &bucket, RequestKind::GetObject(ObjectKind::Nar), move |_| {
        s3.put(&target, &published.0, &published.1);
    });
    let output = fixture.scratch.sh(&format!("s3-push \"$C\" < cache/{key}"));
    assert!(output.stderr.contains("different contents under this path"), "{output:?}");
    assert_eq!(String::from_utf8(s3.get(&bucket, &key)).unwrap(), other);
}

#[test]
fn a_narinfo_that_is_deleted_after_it_was_found_is_written() {
    let (mut fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(&format!("{ARCHIVE} | tee archive | s3-push -q --no-nix \"$C\"")).ok();
    let before = snapshot(s3, &bucket);
    let key = Fixture::narinfo_key(&fixture.closure.top);
    let text = Arc::new(before[&key].clone());
    s3.remove(&bucket, &key);
    let (target, found, name) = (bucket.clone(), AtomicBool::new(false), key.clone());
    let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
        if request.key() == name {
            match request.kind() {
                RequestKind::PutObject(_) if !found.swap(true, Ordering::Relaxed) => s3.put(&target, &name, &text),
                RequestKind::GetObject(_) if found.load(Ordering::Relaxed) => s3.remove(&target, &name),
                _ => {}
            }
        }
        Fault::Pass
    });
    fixture.scratch.env("C", cache_url(proxy.endpoint(), &bucket));
    assert_eq!(fixture.scratch.sh("s3-push --no-nix \"$C\" < archive").ok(), fixture.closure.top);
    assert!(s3.objects(&bucket).contains(&key));
    assert_closed(&snapshot(s3, &bucket));
}

#[test]
fn the_nix_cache_info_of_another_process_is_kept() {
    let (mut fixture, s3, bucket, _) = Fixture::with_cache();
    let target = bucket.clone();
    let _proxy = before_first(&mut fixture, s3, &bucket, RequestKind::PutObject(ObjectKind::CacheInfo), move |key| {
        s3.put(&target, key, b"StoreDir: /nix/store\nPriority: 10\n");
    });
    fixture.scratch.sh("cd cache; tar c nar *.narinfo nix-cache-info | s3-push --no-nix \"$C\"").ok();
    assert_eq!(s3.get(&bucket, "nix-cache-info"), b"StoreDir: /nix/store\nPriority: 10\n");
}

#[test]
fn the_second_contents_of_a_path_are_reported() {
    let (fixture, s3, bucket, lib) = Fixture::with_cache();
    let key = Fixture::narinfo_key(&fixture.closure.lib);
    fixture
        .scratch
        .sh(&format!(
            "cp -r cache other; sed -i 's|^NarHash: .*|NarHash: sha256:{}|' other/{key}; tar c -C cache nix-cache-info {key} > a
             tar c -C other {key} > b; tar c -C cache {} > c; tar A -f a b; tar A -f a c",
            "0".repeat(52),
            lib.one("URL")
        ))
        .ok();
    let output = fixture.scratch.sh("s3-push -v --no-nix \"$C\" < a");
    assert_eq!(output.ok(), fixture.closure.lib);
    assert!(output.stderr.contains(": other-contents-kept\n"), "{}", output.stderr);
    assert_closed(&snapshot(s3, &bucket));
}

/// The SDK panicked, although plain HTTP needs no certificates.
#[test]
fn a_host_without_trusted_certificates_can_use_http() {
    let (fixture, _, _) = Fixture::embedded();
    let without = "SSL_CERT_FILE=/dev/null SSL_CERT_DIR=/no/such/directory";
    fixture.scratch.sh(&format!("{ARCHIVE} | {without} s3-push -q --no-nix \"$C\"")).ok();
    fixture.scratch.sh(&format!("{without} s3-pull -r --list \"$C\" \"$TOP\"")).ok();
}
