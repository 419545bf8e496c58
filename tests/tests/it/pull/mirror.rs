//! Mirrors: cache archives with every kind of object, from one server to another.

use std::fs;

use crate::fixtures::bucket::{Fields, snapshot};
use crate::fixtures::closure_fixture::Fixture;
use cache_sign::keys::SecretKey;
use cache_tests::{EmbeddedS3, Minio, Versitygw, nix, store_path, unique};

/// The name of a file with debug information, within a store path.
const DEBUG_FILE: &str = "lib/debug/.build-id/ab/cdef0123456789abcdef0123456789abcdef01.debug";

/// Publishes the closure with listings.
const PUBLISH_WITH_LISTINGS: &str = "nar-pack --root root --no-nix --export --stdin < paths \
     | narinfo-gen --no-nix --archive --listing | cache-sign -k key.sec | s3-push --no-nix \"$C\"";

/// The build trace entry of Nix 2.35 for `path`: its key and its text.
fn build_trace_entry(fixture: &Fixture, path: &str, is_valid: bool) -> (String, String) {
    let key = SecretKey::parse(&fs::read_to_string(fixture.path("key.sec")).unwrap()).unwrap();
    let (derivation, output) = (&store_path("x.drv", 1)["/nix/store/".len()..], &path["/nix/store/".len()..]);
    let value = |out: &str| {
        format!(r#"{{"key":{{"drvPath":"{derivation}","outputName":"out"}},"value":{{"outPath":"{out}"}}}}"#)
    };
    let signed = if is_valid { value(output) } else { value("00000000000000000000000000000000-other") };
    let signature = key.sign(&signed);
    let (name, digits) = signature.split_once(':').unwrap();
    let text = format!(r#"{{"outPath":"{output}","signatures":[{{"keyName":"{name}","sig":"{digits}"}}]}}"#);
    (format!("build-trace-v2/{derivation}/out.doi"), text)
}

/// What `nix copy` writes with all of its settings, and what our tools write, is the same object by object after a mirror
/// from MinIO to versitygw. The realisations are signed by Nix.
#[test]
fn a_mirror_of_everything_is_equal_object_by_object() {
    let (Some(minio), Some(gateway)) = (Minio::shared(), Versitygw::shared()) else { return };
    if !nix::available() {
        return;
    }
    let mut fixture = Fixture::new();
    let (source, target) = (minio.make_bucket(), unique("mirror-"));
    let key_file = fixture.path("key.sec");
    fixture.scratch.env(
        "NIX_CONFIG",
        format!(
            "extra-experimental-features = ca-derivations\nsecret-key-files = {}\ntrusted-public-keys = {}\n",
            key_file.display(),
            fixture.key
        ),
    );
    minio.root().apply(&mut fixture.scratch);
    fixture.scratch.env("C", minio.cache_url(&source)).env("SOURCE", &source).env("TARGET", &target);
    let host = |user: &cache_tests::Credentials, endpoint: &str| {
        format!("http://{}:{}@{endpoint}", user.access_key, user.secret_key)
    };
    let scratch = &mut fixture.scratch;
    scratch.env("MC_HOST_a", host(&minio.root(), &minio.endpoint())).env("MC_CONFIG_DIR", "mc");
    scratch.env("MC_HOST_b", host(&gateway.root(), &gateway.endpoint()));
    scratch.env("D", format!("s3://{target}?endpoint={}&scheme=http&region=us-east-1", gateway.endpoint()));
    scratch.env("KEY_ID", gateway.root().access_key).env("SECRET", gateway.root().secret_key);
    let expression = format!(
        "derivation {{ name = \"{}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         args = [ \"-c\" \"export PATH=/bin:/usr/bin; echo a line of $name; mkdir -p $(dirname $out/{DEBUG_FILE}); \
         echo $name > $out/{DEBUG_FILE}\" ]; __contentAddressed = true; outputHashMode = \"recursive\"; \
         outputHashAlgo = \"sha256\"; }}",
        unique("mirrored-")
    );
    scratch.write("ca.nix", expression);
    fixture.scratch.sh(PUBLISH_WITH_LISTINGS).ok();
    fixture
        .scratch
        .sh("nix-build --no-out-link ca.nix > out 2>/dev/null
             to=\"file://$PWD/nix?compression=zstd&write-nar-listing=true&index-debug-info=true\"
             nix copy --to \"$to\" -f ca.nix
             nix store copy-log --to file://$PWD/nix $(nix-store -q --deriver $(cat out))
             tar c -C nix . | s3-push --no-nix \"$C\"
             printf 'StoreDir: /nix/store\\nWantMassQuery: 1\\nPriority: 37\\n' | mc pipe --quiet a/$SOURCE/nix-cache-info > /dev/null")
        .ok();
    let (key, text) = build_trace_entry(&fixture, &fixture.closure.lib, true);
    minio.put(&source, &key, text.as_bytes());
    fixture
        .scratch
        .sh("mc mb --quiet b/$TARGET > /dev/null
             s3-pull --all --with all --archive \"$C\" \
               | AWS_ACCESS_KEY_ID=$KEY_ID AWS_SECRET_ACCESS_KEY=$SECRET s3-push \"$D\"
             mc mirror --quiet a/$SOURCE copy-of-a > /dev/null; mc mirror --quiet b/$TARGET copy-of-b > /dev/null
             diff -r copy-of-a copy-of-b")
        .ok();
    let keys: Vec<String> = minio.objects(&source);
    let count = |part: &str| keys.iter().filter(|key| key.contains(part)).count();
    let counts = [".narinfo", "nar/", ".ls", "log/", "debuginfo/", "realisations/", "build-trace-v2/"].map(count);
    // A name in one path is not UTF-8, so it has no listing.
    assert_eq!(counts, [4, 4, 3, 1, 1, 1, 1], "{keys:?}");
    let realisation = keys.iter().find(|key| key.starts_with("realisations/")).unwrap();
    assert!(String::from_utf8(minio.get(&source, realisation)).unwrap().contains("test.example.org-"), "signed by Nix");
}

/// Every kind of object that does not belong to its path is left out with a warning, and all else is written.
#[test]
fn extras_that_lie_are_left_out() {
    let (fixture, s3, bucket) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH_WITH_LISTINGS).ok();
    let listing = |path: &str| Fixture::narinfo_key(path).replace(".narinfo", ".ls");
    let [lib, app, top] = fixture.closure.paths().map(listing);
    let pull = |with: &str| {
        fixture
            .scratch
            .sh(&format!("s3-pull --all --with {with} --archive \"$C\" > archive || echo status $?; tar tf archive"))
    };
    let good = pull("all");
    assert_eq!(good.lines().iter().filter(|key| key.contains(".ls")).count(), 2, "{good:?}");
    assert!(!pull("log,debuginfo").ok().contains(".ls"));
    // The listings of two paths are exchanged, and there is one of a path that cannot have one.
    let (of_app, of_top) = (s3.get(&bucket, &app), s3.get(&bucket, &top));
    s3.put(&bucket, &app, &of_top);
    s3.put(&bucket, &top, &of_app);
    s3.put(&bucket, &lib, b"{");
    let (key, text) = build_trace_entry(&fixture, &fixture.closure.lib, false);
    s3.put(&bucket, &key, text.as_bytes());
    s3.put(&bucket, "realisations/sha256:00!out.doi", b"{\"id\":\"sha256:11!out\",\"outPath\":\"x\"}");
    let bad = pull("all");
    let lines = bad.lines();
    assert!(lines.contains(&"status 1".to_owned()), "{lines:?}");
    let kept: Vec<&String> =
        lines.iter().filter(|key| !key.ends_with(".narinfo") && !key.starts_with("nar/")).collect();
    assert_eq!(kept, ["status 1", "nix-cache-info"]);
    assert_eq!(lines.iter().filter(|key| key.ends_with(".narinfo")).count(), 3);
    for refused in [&lib, &app, &top, &key, "realisations/sha256:00!out.doi"] {
        let warnings = bad.stderr.lines().filter(|line| line.contains(refused) && line.contains("is left out"));
        assert_eq!(warnings.count(), 1, "{refused}: {}", bad.stderr);
    }
    assert!(bad.stderr.contains("s3-pull: 5 objects were refused and are not in the archive"), "{}", bad.stderr);
    let objects = snapshot(s3, &bucket);
    assert_eq!([&lib, &app, &top].iter().filter(|key| objects.contains_key(**key)).count(), 3, "nothing was changed");
    let over_http = format!("s3-pull --with realisations --archive '{}' \"$LIB\" > archive", s3.http_url(&bucket));
    assert!(fixture.scratch.sh(&over_http).fails(2).contains("cannot be listed over HTTP"));
}

/// A link must name the NAR of its path and a file in it. If the NAR gets another key in the archive, so does the link.
#[test]
fn debug_information_links_name_a_file_of_their_nar() {
    let (mut fixture, s3, bucket): (Fixture, &EmbeddedS3, String) = Fixture::embedded();
    let path = store_path("debug", 7);
    fixture.scratch.env("DEBUG", &path);
    fixture
        .scratch
        .sh(&format!(
            "mkdir -p $(dirname tree/{DEBUG_FILE}); echo x > tree/{DEBUG_FILE}
             nar-pack tree | narinfo-gen --no-nix --archive --debug-info \"$DEBUG\" | cache-sign -k key.sec \
               | s3-push --no-nix \"$C\""
        ))
        .ok();
    let link = "debuginfo/abcdef0123456789abcdef0123456789abcdef01.debug";
    let text = String::from_utf8(s3.get(&bucket, link)).unwrap();
    let archive = |status: i32| {
        let output = fixture.scratch.sh("s3-pull --with debuginfo --archive \"$C\" \"$DEBUG\" > archive");
        assert_eq!(output.status, status, "{}", output.stderr);
        (
            fixture.scratch.sh("mkdir -p out; tar x -C out -f archive; tar tf archive; chmod -R u+w out").lines(),
            output.stderr,
        )
    };
    assert!(archive(0).0.contains(&link.to_owned()));
    let url = Fields::parse(&s3.get(&bucket, &Fixture::narinfo_key(&path))).one("URL").to_owned();
    for (lie, status) in [
        (text.replace(DEBUG_FILE, "lib/other"), 1),
        ("{}".to_owned(), 1),
        ("no JSON".to_owned(), 1),
        (text.replace(&url, "nar/0000000000000000000000000000000000000000000000000000.nar.zst"), 0),
    ] {
        s3.put(&bucket, link, lie.as_bytes());
        let (members, stderr) = archive(status);
        assert!(!members.contains(&link.to_owned()) && stderr.contains(link), "{lie}: {members:?} {stderr}");
    }
    // A NAR whose key does not contain its FileHash gets another key in the archive.
    let narinfo = String::from_utf8(s3.get(&bucket, &Fixture::narinfo_key(&path))).unwrap();
    s3.put(&bucket, "nar/other", &s3.get(&bucket, &url));
    s3.put(&bucket, &Fixture::narinfo_key(&path), narinfo.replace(&url, "nar/other").as_bytes());
    s3.put(&bucket, link, text.replace(&url, "nar/other").as_bytes());
    archive(0);
    assert_eq!(fs::read_to_string(fixture.path("out").join(link)).unwrap(), text);
}
