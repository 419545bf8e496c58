//! The support library works as the other tests assume.

use std::fs;
use std::panic;
use std::thread;

use crate::fixtures::bucket::{Fields, Objects, assert_closed, head, snapshot};
use crate::fixtures::closure_fixture::{Fixture, PUBLISH};
use cache_tests::s3::{S3, path_of};
use cache_tests::{EmbeddedS3, Minio, Scratch, http_status, make_tree, nix, store_path, tree};

fn status(endpoint: &str, method: &str, path: &str) -> u16 {
    http_status(endpoint, method, path, b"").unwrap()
}

#[test]
fn minio_enforces_policies() {
    let Some(minio) = Minio::shared() else { return };
    let (bucket, endpoint) = (minio.make_bucket(), minio.endpoint());
    let statement = |who: &str, action: &str| {
        format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow",{who}"Action":["{action}"],"Resource":["arn:aws:s3:::{bucket}/*"]}}]}}"#
        )
    };
    minio.put(&bucket, "nar/a b", b"hello");
    minio.put(&bucket, "empty", b"");
    assert_eq!(minio.objects(&bucket), ["empty", "nar/a b"]);
    assert_eq!(minio.get(&bucket, "nar/a b"), b"hello");

    assert_eq!(status(&endpoint, "GET", &format!("/{bucket}/empty")), 403);
    minio.set_bucket_policy(&bucket, &statement(r#""Principal":"*","#, "s3:GetObject"));
    assert_eq!(status(&endpoint, "GET", &format!("/{bucket}/empty")), 200);
    assert_eq!(status(&endpoint, "PUT", &format!("/{bucket}/x")), 403);

    minio.remove(&bucket, "empty");
    assert_eq!(minio.objects(&bucket), ["nar/a b"]);

    let user = minio.add_user(&statement("", "s3:PutObject"));
    let mut scratch = Scratch::new();
    minio.mc_alias(&mut scratch, "admin");
    let host = format!("http://{}:{}@{endpoint}", user.access_key, user.secret_key);
    scratch.env("MC_HOST_user", host);
    assert!(scratch.sh(&format!("mc ls -r admin/{bucket}")).ok().contains("nar/a b"));
    scratch.sh(&format!("echo x | mc pipe user/{bucket}/x")).ok();
    scratch.sh(&format!("mc rm user/{bucket}/x")).fails(1);
}

#[test]
fn embedded_s3_writes_one_of_two_new_objects_with_the_same_key() {
    let s3 = EmbeddedS3::shared();
    let bucket = s3.make_bucket();
    let client = S3 { endpoint: s3.endpoint(), credentials: Some(s3.credentials()), region: "us-east-1".to_owned() };
    for round in 0..20 {
        let target = path_of(&bucket, &format!("flag-{round}"));
        let put = || client.send("PUT", &target, &[("If-None-Match", "*")], b"x").unwrap().status;
        let mut statuses = thread::scope(|scope| [scope.spawn(put), scope.spawn(put)].map(|put| put.join().unwrap()));
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 412]);
    }
}

/// Other tests write objects as another client would.
#[test]
fn embedded_s3_sees_what_another_client_has_written() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh("s3-push --set-cache-info --priority 1 \"$C\"").fails(1);
    fixture.scratch.sh(PUBLISH).ok();
    let key = Fixture::narinfo_key(&fixture.closure.lib);
    let etag = || {
        let head = head(&fixture.scratch, &s3.endpoint(), &format!("/{bucket}/{key}"));
        head.lines().find(|line| line.starts_with("etag: ")).expect("an entity tag").to_owned()
    };
    let written = etag();
    s3.put(&bucket, &key, b"other");
    assert_ne!(etag(), written);
}

#[test]
fn embedded_s3_allows_anonymous_reads_and_multipart_uploads() {
    let s3 = EmbeddedS3::shared();
    let (bucket, endpoint) = (s3.make_bucket(), s3.endpoint());
    s3.put(&bucket, "a/b", b"x");
    assert_eq!(s3.objects(&bucket), ["a/b"]);
    assert_eq!(status(&endpoint, "GET", &format!("/{bucket}/a/b")), 200);
    assert_eq!(status(&endpoint, "PUT", &format!("/{bucket}/a/c")), 403);
    assert_eq!(status(&endpoint, "GET", &format!("/{bucket}?list-type=2")), 403);

    // Without mc there is no other S3 client; s3-push is tested elsewhere.
    let (mut scratch, credentials) = (Scratch::new(), s3.credentials());
    if scratch.sh("command -v mc").status != 0 {
        return;
    }
    let host = format!("http://{}:{}@{endpoint}", credentials.access_key, credentials.secret_key);
    scratch.env("MC_HOST_s3", host).env("MC_CONFIG_DIR", "mc");
    let script = "head -c 20000000 /dev/urandom > big; mc put --part-size 5MiB big s3/BUCKET/big; \
                  mc cat s3/BUCKET/big | cmp - big; mc ls s3/BUCKET";
    assert!(scratch.sh(&script.replace("BUCKET", &bucket)).ok().contains("big"));
}

#[test]
fn nix_builds_copies_and_deletes_a_closure() {
    if !nix::available() {
        return;
    }
    let scratch = Scratch::new();
    let closure = nix::build(&scratch);
    let (store, top) = (nix::fresh_store(&scratch), &closure.top);
    let mut paths = closure.paths();
    paths.sort_unstable();
    assert_eq!(scratch.sh(&format!("nix-store -qR {top} | LC_ALL=C sort")).ok(), paths.join("\n"));
    assert_eq!(scratch.sh(&format!("{top}/bin/app")).ok(), closure.greeting);

    scratch.sh(&format!("nix copy --to file://$PWD/cache {top}")).ok();
    scratch.sh(&format!("nix copy --no-check-sigs --from file://$PWD/cache --to {store} {top}")).ok();
    assert_eq!(tree(&closure.app), tree(format!("{store}{}", closure.app)));
    assert_eq!(scratch.sh(&format!("GREETING_ROOT={store} {store}{}/bin/app", closure.app)).ok(), closure.greeting);

    nix::delete(&scratch, &closure);
    assert!(!fs::exists(&closure.lib).unwrap());
}

#[test]
fn scratch_reports_status_and_output() {
    let scratch = Scratch::new();
    assert_eq!(scratch.sh("false | true").status, 1);
    assert_eq!(scratch.sh("kill -9 $$").status, 137);
    assert_eq!(scratch.sh_with_input("cat", b"x y").ok(), "x y");
    assert_eq!(scratch.sh_with_input("exit 3", &vec![0; 1 << 20]).fails(3), "");
    assert_eq!(scratch.sh("pwd").ok(), scratch.path().to_str().unwrap());
}

#[test]
fn scratch_removes_read_only_trees() {
    let scratch = Scratch::new();
    let path = scratch.path().to_owned();
    make_tree(path.join("tree"), 1);
    scratch.sh("chmod -R a-w tree").ok();
    drop(scratch);
    assert!(!path.exists());
}

#[test]
fn trees_are_equal_only_if_all_entries_are() {
    let scratch = Scratch::new();
    let dir = scratch.path();
    make_tree(dir.join("one"), 1);
    make_tree(dir.join("two"), 1);
    assert_eq!(tree(dir.join("one")), tree(dir.join("two")));
    for change in ["chmod -x bin/hello", "ln -sf elsewhere link", "rmdir empty-directory", "printf 8 > share/doc/x"] {
        let before = tree(dir.join("two"));
        scratch.sh(&format!("cd two; {change}")).ok();
        assert_ne!(before, tree(dir.join("two")), "{change}");
    }
}

#[test]
fn store_paths_look_valid_and_are_reproducible() {
    let path = store_path("hello", 1);
    let hash = path.strip_prefix("/nix/store/").unwrap().strip_suffix("-hello").unwrap();
    assert!(hash.len() == 32 && hash.bytes().all(|byte| b"0123456789abcdfghijklmnpqrsvwxyz".contains(&byte)));
    assert_eq!(path, store_path("hello", 1));
    assert_ne!(path, store_path("hello", 2));
}

#[test]
fn the_closure_check_finds_every_damage() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    let whole = snapshot(s3, &bucket);
    assert_closed(&whole);
    let lib = Fixture::narinfo_key(&fixture.closure.lib);
    let top = Fixture::narinfo_key(&fixture.closure.top);
    let url = Fields::parse(&whole[&top]).one("URL").to_owned();
    let broken = |change: &dyn Fn(&mut Objects)| {
        let mut objects = whole.clone();
        change(&mut objects);
        assert!(panic::catch_unwind(|| assert_closed(&objects)).is_err());
    };
    broken(&|objects| drop(objects.remove(&lib)));
    broken(&|objects| drop(objects.remove(&url)));
    broken(&|objects| drop(objects.remove("nix-cache-info")));
    broken(&|objects| objects.get_mut(&url).unwrap().push(0));
    broken(&|objects| *objects.get_mut(&url).unwrap().last_mut().unwrap() ^= 1);
    broken(&|objects| objects.get_mut(&top).unwrap().truncate(100));
}
