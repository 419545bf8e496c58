//! The pipelines of the design page against the embedded server, without Nix, and what happens when a stage fails.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::panic;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use crate::fixtures::bucket;
use crate::fixtures::bucket::{Fields, Objects, assert_closed, head, nar_keys, narinfo_keys, snapshot};
use crate::fixtures::site::{ARCHIVE, PUBLISH, Site, below, make_key, random_seed};
use cache_tests::{EmbeddedS3, Outcome, Random, Scratch, store_path};

/// Asserts that the bucket holds the whole closure, once, and nothing else.
#[track_caller]
fn assert_complete(site: &Site, objects: &Objects) {
    assert_closed(objects);
    let mut expected: Vec<String> = site.closure.paths().iter().map(|path| Site::narinfo_key(path)).collect();
    expected.sort_unstable();
    assert_eq!(narinfo_keys(objects), expected);
    assert_eq!((nar_keys(objects).len(), objects.len()), (3, 7), "{:?}", objects.keys());
}

/// Pulls the closure of `$TOP` from `url` into a fresh root and compares the trees.
#[track_caller]
fn assert_pulls(site: &Site, url: &str, flags: &str) {
    let root = cache_tests::unique("out-");
    let outcome = site.scratch.sh(&format!("s3-pull -r --root {root} {flags} \"{url}\" \"$TOP\""));
    assert_eq!(outcome.ok(), "", "nothing but data goes to standard output");
    site.assert_trees(&root);
}

fn lines(outcome: &Outcome) -> Vec<String> {
    outcome.ok().lines().map(str::to_owned).collect()
}

// ---- What works ----

#[test]
fn five_stages_publish_a_closure_and_it_comes_back() {
    let (site, s3, bucket) = Site::embedded();
    assert_eq!(lines(&site.scratch.sh(PUBLISH)), site.closure.paths(), "s3-push prints what it published");
    let objects = snapshot(s3, &bucket);
    assert_complete(&site, &objects);
    assert_pulls(&site, "$C", "");
    assert_pulls(&site, "$C", "--no-sign-request");
    assert_pulls(&site, &s3.http_url(&bucket), "");
    for key in narinfo_keys(&objects) {
        let narinfo = Fields::parse(&objects[key]);
        assert_eq!(narinfo.one("Compression"), "zstd");
        assert_eq!(narinfo.all("Sig").len(), 1);
        assert!(narinfo.one("Sig").starts_with(site.key.split_once(':').unwrap().0));
    }
    let again = site.scratch.sh(PUBLISH);
    assert_eq!(again.ok(), "", "nothing is missing now, and nothing is published");
    assert_eq!(snapshot(s3, &bucket), objects);
}

#[test]
fn every_compression_comes_back() {
    for compression in ["none", "zstd", "xz", "bzip2", "gzip", "br"] {
        let (site, s3, bucket) = Site::embedded();
        let script = ARCHIVE.replace("--archive", &format!("--archive -c {compression} --level 1"));
        let script = if compression == "none" { script.replace(" --level 1", "") } else { script };
        site.scratch.sh(&format!("{script} | s3-push --no-nix \"$C\"")).ok();
        let objects = snapshot(s3, &bucket);
        assert_complete(&site, &objects);
        let narinfo = Fields::parse(&objects[narinfo_keys(&objects)[0]]);
        assert_eq!(narinfo.one("Compression"), compression);
        assert_pulls(&site, "$C", "");
    }
}

#[test]
fn one_path_by_its_nar_says_that_it_is_unsigned() {
    let (site, s3, bucket) = Site::embedded();
    let sh = |script: &str| site.scratch.sh(script);
    let pushed = sh("nar-pack --root root --no-nix \"$LIB\" | s3-push --no-nix \"$C\" \"$LIB\"");
    assert_eq!(pushed.ok(), site.closure.lib);
    assert!(pushed.stderr.contains(&site.closure.lib) && pushed.stderr.contains("sign"), "{}", pushed.stderr);
    // What a NAR refers to is found by looking for candidates.
    sh("nar-pack --root root --no-nix \"$APP\" | s3-push --no-nix --candidates paths \"$C\" \"$APP\"").ok();
    let objects = snapshot(s3, &bucket);
    assert_closed(&objects);
    let app = Fields::parse(&objects[&Site::narinfo_key(&site.closure.app)]);
    assert_eq!(format!("/nix/store/{}", app.one("References")), site.closure.lib);
    assert_eq!(app.all("Sig"), [""; 0]);
    let refused = sh("s3-pull --root out \"$C\" \"$LIB\"").fails(1);
    assert!(refused.contains(&site.closure.lib) && refused.contains("sign"), "{refused}");
    site.assert_nothing_below("out");
    sh("s3-pull -r --root out --no-verify-signatures \"$C\" \"$APP\"; cmp {root,out}\"$APP\"/bin/app").ok();
}

#[test]
fn an_export_stream_goes_straight_in_and_unsigned_paths_are_named() {
    let (site, s3, bucket) = Site::embedded();
    let export = "nar-pack --root root --no-nix --export --stdin < paths | s3-push --no-nix";
    let pushed = site.scratch.sh(&format!("{export} \"$C\""));
    assert_eq!(lines(&pushed), site.closure.paths());
    for path in site.closure.paths() {
        assert!(pushed.stderr.contains(path), "{path} is not named in {}", pushed.stderr);
    }
    assert_complete(&site, &snapshot(s3, &bucket));
    assert_pulls(&site, "$C", "--no-verify-signatures");
    let other = s3.make_bucket();
    let quiet = site.scratch.sh(&format!("{export} --quiet '{}'", s3.cache_url(&other)));
    quiet.ok();
    assert_eq!(quiet.stderr, "", "--quiet leaves only errors");
}

#[test]
fn the_bucket_may_come_from_the_environment() {
    let (mut site, s3, bucket) = Site::embedded();
    site.scratch.env("NIX_S3_CACHE", s3.cache_url(&bucket));
    site.scratch.sh(&PUBLISH.replace("\"$C\"", "")).ok();
    assert_complete(&site, &snapshot(s3, &bucket));
    site.scratch.sh("s3-pull -r --root out \"$TOP\"").ok();
    site.assert_trees("out");
    let policy = site.scratch.sh("cache-policy --read-only").ok();
    assert!(policy.contains(&format!("arn:aws:s3:::{bucket}/*")), "{policy}");
}

#[test]
fn a_mirror_has_the_same_objects() {
    let (mut site, s3, bucket) = Site::embedded();
    site.scratch.sh(PUBLISH).ok();
    let mirror = s3.make_bucket();
    site.scratch.env("B", s3.cache_url(&mirror));
    site.scratch.sh("s3-pull -r --archive \"$C\" \"$TOP\" | s3-push \"$B\"").ok();
    assert_eq!(snapshot(s3, &mirror), snapshot(s3, &bucket));
    assert_pulls(&site, "$B", "");
    let third = s3.make_bucket();
    site.scratch.sh(&format!("s3-pull --all --archive \"$C\" | s3-push '{}'", s3.cache_url(&third))).ok();
    assert_eq!(snapshot(s3, &third), snapshot(s3, &bucket));
}

#[test]
fn a_key_rotates_and_nars_stay_as_they_are() {
    let (site, s3, bucket) = Site::embedded();
    let sh = |script: &str| site.scratch.sh(script);
    sh(PUBLISH).ok();
    let before = snapshot(s3, &bucket);
    let new = make_key(&site.scratch, "new");
    let rotate = "s3-pull --narinfo --all \"$C\" | cache-sign -k new.sec | s3-push \"$C\"";
    assert_eq!(lines(&sh(rotate)).len(), 3);
    let after = snapshot(s3, &bucket);
    assert_complete(&site, &after);
    for key in nar_keys(&before) {
        assert_eq!(after[key], before[key], "{key}");
    }
    for key in narinfo_keys(&after) {
        assert_eq!(Fields::parse(&after[key]).all("Sig").len(), 2);
    }
    assert_pulls(&site, "$C", "");
    assert_pulls(&site, "$C", &format!("--trusted-public-key {new}"));
    assert_pulls(&site, "$C", &format!("--trusted-public-key {new} --trusted-public-key \"$KEY\" --threshold 2"));
    sh(rotate).ok();
    assert_eq!(snapshot(s3, &bucket), after, "no signature is made twice");
}

#[test]
fn a_threshold_wants_different_keys() {
    let (site, s3, bucket) = Site::embedded();
    site.scratch.sh(PUBLISH).ok();
    let new = make_key(&site.scratch, "new");
    let pull = format!("s3-pull -r --root out --trusted-public-key \"$KEY\" --trusted-public-key {new}");
    let refused = site.scratch.sh(&format!("{pull} --threshold 2 \"$C\" \"$TOP\"")).fails(1);
    assert!(refused.contains("/nix/store/") && refused.contains('2'), "{refused}");
    site.assert_nothing_below("out");
    site.scratch.sh("s3-pull --narinfo --all \"$C\" | cache-sign -k new.sec | s3-push \"$C\"").ok();
    site.scratch.sh(&format!("{pull} --threshold 2 \"$C\" \"$TOP\"")).ok();
    site.assert_trees("out");
    assert_complete(&site, &snapshot(s3, &bucket));
}

#[test]
fn missing_prints_what_the_cache_lacks() {
    let (site, s3, bucket) = Site::embedded();
    let missing = "s3-push --missing \"$C\"";
    let sh = |script: &str| site.scratch.sh(script);
    assert_eq!(lines(&sh(&format!("{missing} < paths"))), site.closure.paths());
    assert_eq!(s3.objects(&bucket), [""; 0], "a question changes nothing");
    sh("nar-pack --root root --no-nix \"$LIB\" | s3-push --no-nix \"$C\" \"$LIB\"").ok();
    assert_eq!(lines(&sh(&format!("{missing} < paths"))), [site.closure.app.as_str(), &site.closure.top]);
    assert_eq!(lines(&sh(&format!("tac paths | {missing}"))), [site.closure.top.as_str(), &site.closure.app]);
    assert_eq!(sh(&format!("head -n 1 paths | {missing}")).ok(), "");
    assert_eq!(sh(&format!("{missing} < /dev/null")).ok(), "", "an empty path list lacks nothing");
}

#[test]
fn any_bytes_go_under_a_key() {
    let (site, s3, bucket) = Site::embedded();
    let sh = |script: &str| site.scratch.sh(script);
    let body = Random::new(random_seed()).bytes(12 << 20);
    let push = "s3-push \"$C\" --part-size 5MiB --key";
    // A pipe has no length; a file has one.
    site.scratch.sh_with_input(&format!("cat | {push} log/pipe"), &body).ok();
    fs::write(site.path("body"), &body).unwrap();
    sh(&format!("{push} log/file < body")).ok();
    sh(&format!("{push} log/empty < /dev/null; printf x | {push} log/short --content-type text/x-test")).ok();
    assert_eq!(s3.objects(&bucket), ["log/empty", "log/file", "log/pipe", "log/short"]);
    assert!(s3.get(&bucket, "log/pipe") == body && s3.get(&bucket, "log/file") == body);
    assert_eq!((s3.get(&bucket, "log/empty").len(), s3.get(&bucket, "log/short").len()), (0, 1));
    let about = head(&site.scratch, &s3.endpoint(), &format!("/{bucket}/log/short"));
    assert!(about.contains("content-type: text/x-test"), "{about}");
}

#[test]
fn a_large_nar_goes_in_parts() {
    let (site, s3, bucket) = Site::embedded();
    let big = store_path("big", random_seed());
    let noise = Random::new(random_seed()).bytes(20 << 20);
    fs::write(below(&site.path("root"), &big), &noise).unwrap();
    let push = "s3-push --no-nix --part-size 5MiB --memory 16MiB -v \"$C\"";
    let pack = format!("nar-pack --root root --no-nix --export {big} | narinfo-gen --no-nix --archive");
    site.scratch.sh(&format!("{pack} | cache-sign -k key.sec | {push}")).ok();
    assert_closed(&snapshot(s3, &bucket));
    site.scratch.sh(&format!("s3-pull --root out \"$C\" {big}; cmp root{big} out{big}")).ok();
    // The same straight from the NAR.
    let other = s3.make_bucket();
    let push = push.replace("$C", &s3.cache_url(&other));
    site.scratch.sh(&format!("nar-pack --root root --no-nix {big} | {push} {big}")).ok();
    assert_eq!(nar_keys(&snapshot(s3, &other)), nar_keys(&snapshot(s3, &bucket)), "the same bytes, the same name");
    assert_closed(&snapshot(s3, &other));
}

#[test]
fn an_archive_may_have_any_order() {
    let (mut site, s3, bucket) = Site::embedded();
    site.scratch.sh(&format!("mkdir cache; {ARCHIVE} | tar x -C cache")).ok();
    site.scratch.sh("tar c -C cache . | s3-push --no-nix \"$C\"").ok();
    let objects = snapshot(s3, &bucket);
    assert_complete(&site, &objects);
    // The worst order: narinfos first, each before those that it references, the NARs at the end.
    let keys: Vec<String> = site.closure.paths().iter().rev().map(|path| Site::narinfo_key(path)).collect();
    for order in [format!("{} nar nix-cache-info", keys.join(" ")), format!("nar {}", keys.join(" "))] {
        let other = site.fresh_bucket(s3);
        let pushed = site.scratch.sh(&format!("tar c -C cache {order} | s3-push --no-nix \"$C\""));
        assert_eq!(lines(&pushed).len(), 3);
        let other = snapshot(s3, &other);
        assert_complete(&site, &other);
        assert_eq!(narinfo_keys(&other), narinfo_keys(&objects));
        assert_pulls(&site, "$C", "");
    }
}

#[test]
fn pushing_again_changes_nothing() {
    let (site, s3, bucket) = Site::embedded();
    site.scratch.sh(&format!("{ARCHIVE} > archive; s3-push --no-nix \"$C\" < archive")).ok();
    let before = snapshot(s3, &bucket);
    let again = site.scratch.sh("s3-push --no-nix \"$C\" < archive");
    assert_eq!(again.ok(), "", "nothing was published");
    assert_eq!(snapshot(s3, &bucket), before);
    // A path that is there is not made less trusted by somebody without the key.
    site.scratch.sh(&format!("{} | s3-push --no-nix \"$C\"", ARCHIVE.replace("| cache-sign -k key.sec", ""))).ok();
    assert_eq!(snapshot(s3, &bucket), before, "the signatures are still there");
}

#[test]
fn two_pushes_share_a_bucket() {
    let (site, s3, bucket) = Site::embedded();
    site.scratch
        .sh(&format!(
            "{ARCHIVE} > archive; make() {{ s3-push --no-nix \"$C\" < archive; }}; make & first=$!; make & wait $!; wait $first"
        ))
        .ok();
    assert_complete(&site, &snapshot(s3, &bucket));
    assert_pulls(&site, "$C", "");
}

#[test]
fn the_report_may_be_json() {
    let (site, _, _) = Site::embedded();
    let report = site.scratch.sh(&format!("{ARCHIVE} | s3-push --no-nix --json \"$C\""));
    let entries: Vec<serde_json::Value> = report.ok().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(entries.len(), 4, "one object per path and a summary: {}", report.text());
    for path in site.closure.paths() {
        assert!(entries[..3].iter().any(|entry| entry.to_string().contains(path)), "{path} in {}", report.text());
    }
}

#[test]
fn a_prefix_is_a_cache_of_its_own() {
    let (mut site, s3, bucket) = Site::embedded();
    let url = |prefix: &str| s3.cache_url(&bucket).replacen('?', &format!("/{prefix}?"), 1);
    let sites: Vec<String> = ["some/prefix", "other"].map(url).to_vec();
    for url in &sites {
        site.scratch.env("C", url);
        site.scratch.sh(PUBLISH).ok();
        assert_pulls(&site, "$C", "");
    }
    site.scratch.sh("echo log | s3-push \"$C\" --key log/x").ok();
    let objects = snapshot(s3, &bucket);
    assert_closed(&objects);
    assert_eq!(objects.len(), 15, "{:?}", objects.keys());
    assert!(objects.keys().all(|key| key.starts_with("some/prefix/") || key.starts_with("other/")));
    assert!(objects.contains_key("other/log/x"));
    let listed = site.scratch.sh("s3-pull --list --all \"$C\"");
    assert_eq!(lines(&listed).len(), 3, "--all stays below the prefix");
    assert_pulls(&site, &format!("{}/some/prefix", s3.http_url(&bucket)), "");
}

#[test]
fn objects_have_the_types_that_nix_gives_them() {
    let (site, s3, bucket) = Site::embedded();
    site.scratch.sh(PUBLISH).ok();
    for key in s3.objects(&bucket) {
        let about = head(&site.scratch, &s3.endpoint(), &format!("/{bucket}/{key}"));
        let expected = match key.as_str() {
            "nix-cache-info" => "text/x-nix-cache-info",
            key if key.starts_with("nar/") => "application/x-nix-nar",
            _ => "text/x-nix-narinfo",
        };
        assert!(about.contains(&format!("content-type: {expected}")), "{key}: {about}");
        assert!(!about.contains("content-encoding"), "{key}: {about}");
    }
}

#[test]
fn nix_cache_info_is_made_once() {
    let (site, s3, bucket) = Site::embedded();
    site.scratch.sh(&format!("{ARCHIVE} | s3-push --no-nix --priority 17 --want-mass-query=true \"$C\"")).ok();
    let info = String::from_utf8(s3.get(&bucket, "nix-cache-info")).unwrap();
    for line in ["StoreDir: /nix/store", "Priority: 17", "WantMassQuery: 1"] {
        assert!(info.lines().any(|found| found == line), "{line} in {info}");
    }
    site.scratch.sh(&format!("{ARCHIVE} | s3-push --no-nix --priority 18 \"$C\"")).ok();
    assert_eq!(s3.get(&bucket, "nix-cache-info"), info.as_bytes(), "one that is there stays");
}

// ---- Pulling ----

#[test]
fn a_pull_writes_every_stream() {
    let (site, s3, bucket) = Site::embedded();
    let sh = |script: &str| site.scratch.sh(script);
    sh(PUBLISH).ok();
    sh("nar-pack --root root --no-nix \"$LIB\" > lib.nar; s3-pull --nar \"$C\" \"$LIB\" | cmp - lib.nar").ok();
    sh("nar-pack --root root --no-nix \"$APP\" | nar-pack --list > a; s3-pull --nar \"$C\" \"$APP\" | nar-pack --list | cmp - a").ok();
    sh("nar-pack --root root --no-nix --export --stdin < paths > closure; s3-pull -r --export \"$C\" \"$TOP\" | cmp - closure").ok();
    sh("s3-pull --all --export \"$C\" | cmp - closure").ok();
    let paths = site.closure.paths();
    assert_eq!(lines(&sh("s3-pull -r --list \"$C\" \"$TOP\" | sort")), lines(&sh("sort paths")));
    assert_eq!(lines(&sh("s3-pull --all --list \"$C\" | sort")), lines(&sh("sort paths")));
    assert_eq!(lines(&sh("s3-pull --list \"$C\" \"$TOP\"")), [site.closure.top.as_str()]);
    assert_eq!(lines(&sh("s3-pull --stdin --list \"$C\" < paths | sort")), lines(&sh("sort paths")));
    let narinfos = sh("s3-pull -r --narinfo \"$C\" \"$TOP\"").ok();
    assert_eq!(narinfos.split("\n\n").count(), 3, "{narinfos}");
    let verified = sh("s3-pull -r --narinfo \"$C\" \"$TOP\" | cache-sign verify --trusted-public-key \"$KEY\"").ok();
    assert_eq!(verified, narinfos);
    let members = lines(&sh("s3-pull -r --archive \"$C\" \"$TOP\" | tar t"));
    let at =
        |key: &str| members.iter().position(|member| member == key).unwrap_or_else(|| panic!("{key} in {members:?}"));
    let objects = snapshot(s3, &bucket);
    let narinfo_at = paths.map(|path| at(&Site::narinfo_key(path)));
    assert!(narinfo_at.is_sorted(), "references come first: {members:?}");
    for (path, narinfo) in paths.iter().zip(narinfo_at) {
        let url = Fields::parse(&objects[&Site::narinfo_key(path)]).one("URL").to_owned();
        assert!(at(&url) < narinfo, "a NAR comes before its narinfo: {members:?}");
    }
}

#[test]
fn a_pull_reads_every_kind_of_cache() {
    let (site, s3, bucket) = Site::embedded();
    site.scratch
        .sh(&format!("mkdir cache; {ARCHIVE} | tee archive | tar x -C cache; s3-push --no-nix \"$C\" < archive"))
        .ok();
    assert_pulls(&site, "file://$PWD/cache", "");
    assert_pulls(&site, "$C", "");
    assert_pulls(&site, &s3.http_url(&bucket), "");
    for url in ["file://$PWD/cache", "$C"] {
        let all = site.scratch.sh(&format!("s3-pull --all --list \"{url}\" | sort"));
        assert_eq!(lines(&all), lines(&site.scratch.sh("sort paths")), "{url}");
        site.scratch.sh(&format!("s3-pull --all --root all-{} \"{url}\"", url.len())).ok();
        site.assert_trees(&format!("all-{}", url.len()));
    }
}

#[test]
fn two_pulls_share_a_root() {
    let (site, _, _) = Site::embedded();
    site.scratch.sh(PUBLISH).ok();
    let pull = "s3-pull -r --root out \"$C\" \"$TOP\"";
    site.scratch.sh(&format!("{pull} & a=$!; {pull} & b=$!; wait $a; wait $b")).ok();
    site.assert_trees("out");
    let left = site.scratch.sh("ls -A out/nix/store | wc -l").ok();
    assert_eq!(left, "3", "nothing temporary is left");
}

#[test]
fn what_is_there_is_left_alone() {
    let (site, _, _) = Site::embedded();
    site.scratch.sh(PUBLISH).ok();
    site.scratch.sh("s3-pull --root out \"$C\" \"$LIB\"").ok();
    let lib = below(&site.path("out"), &site.closure.lib);
    let inode = |name: &str| fs::metadata(lib.join(name)).unwrap().ino();
    let before = [inode(""), inode("noise"), inode("bin/hello")];
    site.scratch.sh("chmod u+w \"out$LIB\"; touch \"out$LIB/marker\"").ok();
    site.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    assert_eq!([inode(""), inode("noise"), inode("bin/hello")], before);
    assert!(lib.join("marker").exists());
}

#[test]
fn a_wrong_key_leaves_nothing_visible() {
    let (site, _, _) = Site::embedded();
    site.scratch.sh(PUBLISH).ok();
    let other = make_key(&site.scratch, "other");
    // One under another name, and one that has the right name.
    let name = site.key.split_once(':').unwrap().0;
    let forged = format!("{name}:{}", other.split_once(':').unwrap().1);
    for key in [other, forged] {
        for output in ["--root out", "--nar", "--export", "--archive", "--narinfo"] {
            let pulled = site.scratch.sh(&format!("s3-pull {output} --trusted-public-key {key} \"$C\" \"$LIB\""));
            let line = pulled.fails(1);
            assert!(line.contains(&site.closure.lib), "{output}: {line}");
            assert_eq!(pulled.stdout.len(), 0, "{output}: nothing unverified goes out");
            site.assert_nothing_below("out");
        }
    }
    let trusting_nobody = site.scratch.sh("s3-pull --root out --nix-conf /dev/null \"$C\" \"$LIB\"").fails(1);
    assert!(trusting_nobody.contains(&site.closure.lib), "{trusting_nobody}");
    site.assert_nothing_below("out");
    site.scratch.sh("s3-pull -r --root out --nix-conf /dev/null --no-verify-signatures \"$C\" \"$TOP\"").ok();
    site.assert_trees("out");
}

#[test]
fn damaged_objects_are_refused_on_the_way_in() {
    let (site, s3, bucket) = Site::embedded();
    site.scratch.sh(PUBLISH).ok();
    let narinfo_key = Site::narinfo_key(&site.closure.lib);
    let narinfo = s3.get(&bucket, &narinfo_key);
    let url = Fields::parse(&narinfo).one("URL").to_owned();
    let nar = s3.get(&bucket, &url);
    let mut flipped = nar.clone();
    flipped[nar.len() / 2] ^= 1;
    let longer = [nar.as_slice(), b"x"].concat();
    for damaged in [&nar[..nar.len() - 1], &[], &flipped, &longer] {
        s3.put(&bucket, &url, damaged);
        // Hashes are checked whoever signed.
        for trust in ["", "--no-verify-signatures"] {
            let line = site.scratch.sh(&format!("s3-pull {trust} --root out \"$C\" \"$LIB\"")).fails(1);
            assert!(line.contains(&site.closure.lib), "{line}");
            site.assert_nothing_below("out");
        }
    }
    s3.remove(&bucket, &url);
    let line = site.scratch.sh("s3-pull --root out \"$C\" \"$LIB\"").fails(1);
    assert!(line.contains(&url) || line.contains(&site.closure.lib), "{line}");
    site.assert_nothing_below("out");
    s3.put(&bucket, &url, &nar);
    for cut in [0, 1, narinfo.len() / 2, narinfo.len() - 1] {
        s3.put(&bucket, &narinfo_key, &narinfo[..cut]);
        let line = site.scratch.sh("s3-pull --root out \"$C\" \"$LIB\"").fails(1);
        assert!(line.contains(&narinfo_key) || line.contains(&site.closure.lib), "{line}");
        site.assert_nothing_below("out");
    }
}

#[test]
fn a_signed_lie_is_refused_on_the_way_in() {
    let (site, s3, bucket) = Site::embedded();
    site.scratch.sh(PUBLISH).ok();
    let narinfos: Vec<_> = site.closure.paths().iter().map(|path| Site::narinfo_key(path)).collect();
    let [lib, app] = [0, 1].map(|at| Fields::parse(&s3.get(&bucket, &narinfos[at])));
    let truth = String::from_utf8(s3.get(&bucket, &narinfos[0])).unwrap();
    let lies = [
        truth.replace(lib.one("NarHash"), app.one("NarHash")),
        truth.replace(&format!("NarSize: {}", lib.one("NarSize")), "NarSize: 400"),
        truth.replace(&format!("NarSize: {}", lib.one("NarSize")), &format!("NarSize: 1{}", lib.one("NarSize"))),
    ];
    for lie in lies {
        assert_ne!(lie, truth);
        let unsigned: String =
            lie.lines().filter(|line| !line.starts_with("Sig:")).fold(String::new(), |text, line| text + line + "\n");
        let signed = site.scratch.sh_with_input("cache-sign -k key.sec", unsigned.as_bytes());
        signed.ok();
        s3.put(&bucket, &narinfos[0], &signed.stdout);
        let line = site.scratch.sh("s3-pull --root out \"$C\" \"$LIB\"").fails(1);
        assert!(line.contains(&site.closure.lib), "{line}");
        site.assert_nothing_below("out");
    }
}

#[test]
fn a_missing_path_is_a_no() {
    let (site, _, _) = Site::embedded();
    site.scratch.sh(PUBLISH).ok();
    let absent = store_path("absent", random_seed());
    for url in ["$C", "file://$PWD/cache"] {
        site.scratch.sh(&format!("mkdir -p cache; {ARCHIVE} | tar x -C cache")).ok();
        for output in ["--root out", "--nar", "--export", "--archive", "--narinfo", "--list"] {
            let pulled = site.scratch.sh(&format!("s3-pull {output} \"{url}\" {absent}"));
            let line = pulled.fails(1);
            assert!(line.contains(&absent), "{line}");
            assert_eq!(pulled.stdout.len(), 0);
            site.assert_nothing_below("out");
        }
    }
}

// ---- What is refused on the way out ----

/// A site whose closure lies as a binary cache in `cache/`, and the narinfo of `lib` in it.
fn site_with_cache() -> (Site, &'static EmbeddedS3, String, Fields) {
    let (site, s3, bucket) = Site::embedded();
    site.scratch.sh(&format!("mkdir cache; {ARCHIVE} | tar x -C cache; chmod -R u+w cache")).ok();
    let narinfo = fs::read(site.path("cache").join(Site::narinfo_key(&site.closure.lib))).unwrap();
    (site, s3, bucket, Fields::parse(&narinfo))
}

/// Pushes the archive of `members` of `cache/` and expects a refusal that says `word`, after which no narinfo is there.
#[track_caller]
fn assert_refused(site: &Site, s3: &EmbeddedS3, bucket: &str, members: &str, word: &str) {
    let pushed = site.scratch.sh(&format!("tar c -C cache {members} | s3-push --no-nix \"$C\""));
    let said = pushed.fails(1);
    assert!(said.contains(word), "{word:?} in {said}");
    assert_eq!(pushed.stdout.len(), 0, "nothing was published");
    let objects = snapshot(s3, bucket);
    assert_eq!(narinfo_keys(&objects), [""; 0]);
}

#[test]
fn a_narinfo_without_its_nar_is_refused() {
    let (site, s3, bucket, lib) = site_with_cache();
    let key = Site::narinfo_key(&site.closure.lib);
    assert_refused(&site, s3, &bucket, &format!("nix-cache-info {key}"), lib.one("URL"));
    let said = site.scratch.sh(&format!("s3-push \"$C\" < cache/{key}")).fails(1);
    assert!(said.contains(lib.one("URL")), "{said}");
    assert_eq!(narinfo_keys(&snapshot(s3, &bucket)), [""; 0]);
    // With the NAR there, narinfo text is enough.
    s3.put(&bucket, lib.one("URL"), &fs::read(site.path("cache").join(lib.one("URL"))).unwrap());
    assert_eq!(site.scratch.sh(&format!("s3-push \"$C\" < cache/{key}")).ok(), site.closure.lib);
    assert_closed(&snapshot(s3, &bucket));
}

#[test]
fn changed_nar_bytes_are_refused() {
    let (site, s3, bucket, lib) = site_with_cache();
    let file = site.path("cache").join(lib.one("URL"));
    let bytes = fs::read(&file).unwrap();
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    let cases = [flipped, bytes[..bytes.len() - 1].to_vec(), [bytes.as_slice(), b"x"].concat(), Vec::new()];
    for changed in cases {
        fs::write(&file, changed).unwrap();
        assert_refused(&site, s3, &bucket, ".", lib.one("URL"));
        // In the order of our own archives too.
        let order = format!("nix-cache-info {} {}", lib.one("URL"), Site::narinfo_key(&site.closure.lib));
        assert_refused(&site, s3, &bucket, &order, lib.one("URL"));
        assert!(
            !s3.objects(&bucket).contains(&lib.one("URL").to_owned()),
            "wrong bytes under the name of the right ones"
        );
    }
}

#[test]
fn a_narinfo_that_lies_is_refused() {
    let (site, s3, bucket, lib) = site_with_cache();
    let key = Site::narinfo_key(&site.closure.lib);
    let file = site.path("cache").join(&key);
    let truth = fs::read_to_string(&file).unwrap();
    let other = format!("sha256:{}", bucket::sha256(b"other"));
    let lies = [
        ("NarHash", truth.replace(lib.one("NarHash"), &other)),
        ("FileHash", truth.replace(&format!("FileHash: {}", lib.one("FileHash")), &format!("FileHash: {other}"))),
        ("NarSize", truth.replace(&format!("NarSize: {}", lib.one("NarSize")), "NarSize: 408")),
        ("FileSize", truth.replace(&format!("FileSize: {}", lib.one("FileSize")), "FileSize: 7")),
    ];
    for (field, lie) in lies {
        assert_ne!(lie, truth, "{field}");
        fs::write(&file, lie).unwrap();
        assert_refused(&site, s3, &bucket, ".", field);
        assert_refused(&site, s3, &bucket, &format!("nix-cache-info nar {key}"), field);
    }
    // A narinfo under the name of another path.
    fs::write(&file, fs::read(site.path("cache").join(Site::narinfo_key(&site.closure.app))).unwrap()).unwrap();
    assert_refused(&site, s3, &bucket, ".", &key);
}

#[test]
fn missing_references_are_refused_unless_they_are_allowed() {
    let (site, s3, bucket, _) = site_with_cache();
    let app = Site::narinfo_key(&site.closure.app);
    let lib = &site.closure.lib["/nix/store/".len()..];
    assert_refused(&site, s3, &bucket, &format!("nix-cache-info nar {app}"), lib);
    assert_refused(&site, s3, &bucket, &format!("{app} nar"), lib);
    let allowed =
        format!("tar c -C cache nix-cache-info nar {app} | s3-push --no-nix --allow-missing-references \"$C\"");
    assert_eq!(site.scratch.sh(&allowed).ok(), site.closure.app);
    // What is in the cache already counts.
    let lib = Site::narinfo_key(&site.closure.lib);
    let top = Site::narinfo_key(&site.closure.top);
    site.scratch.sh(&format!("tar c -C cache nar {lib} | s3-push --no-nix \"$C\"")).ok();
    site.scratch.sh(&format!("tar c -C cache nar {top} | s3-push --no-nix \"$C\"")).ok();
    assert_complete(&site, &snapshot(s3, &bucket));
}

#[test]
fn a_bucket_of_another_store_directory_is_refused() {
    let (site, s3, bucket) = Site::embedded();
    s3.put(&bucket, "nix-cache-info", b"StoreDir: /gnu/store\n");
    let said = site.scratch.sh(&format!("{ARCHIVE} | s3-push --no-nix \"$C\"")).fails(1);
    assert!(said.contains("/gnu/store"), "{said}");
    assert_eq!(narinfo_keys(&snapshot(s3, &bucket)), [""; 0]);
    assert_eq!(s3.get(&bucket, "nix-cache-info"), b"StoreDir: /gnu/store\n");
    let said = site.scratch.sh("s3-pull --root out \"$C\" \"$LIB\"").fails(1);
    assert!(said.contains(&site.closure.lib) || said.contains("/gnu/store"), "{said}");
}

// ---- A stage that fails ----

#[test]
fn the_checker_sees_what_is_missing() {
    let (site, s3, bucket) = Site::embedded();
    site.scratch.sh(PUBLISH).ok();
    let whole = snapshot(s3, &bucket);
    assert_closed(&whole);
    let lib = Site::narinfo_key(&site.closure.lib);
    let top = Site::narinfo_key(&site.closure.top);
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

/// A pipeline by its stages, and what all of them but the last write.
struct Pipeline {
    name: &'static str,
    stages: &'static [&'static str],
    streams: &'static [Stream],
}

/// How a stream tells its end.
#[derive(Clone, Copy)]
enum Stream {
    /// A path list, or narinfo text: may by chance be cut where it still is whole.
    Text,
    /// Its very last byte is needed.
    Export,
    /// It ends in a block of zeros, and then in padding that nobody needs.
    Archive,
}

impl Stream {
    /// Whether the first `bytes` of `whole` are for certain not a whole stream.
    fn is_cut(self, whole: &[u8], bytes: usize) -> bool {
        match self {
            Self::Text => false,
            Self::Export => bytes < whole.len(),
            Self::Archive => whole[bytes..].iter().any(|&byte| byte != 0),
        }
    }
}

const PIPELINES: [Pipeline; 5] = [
    Pipeline {
        name: "five stages",
        stages: &[
            "s3-push --missing \"$C\" < paths",
            "nar-pack --root root --no-nix --export --stdin",
            "narinfo-gen --no-nix --archive",
            "cache-sign -k key.sec",
            "s3-push --no-nix \"$C\"",
        ],
        streams: &[Stream::Text, Stream::Export, Stream::Archive, Stream::Archive],
    },
    Pipeline {
        name: "an export stream",
        stages: &["nar-pack --root root --no-nix --export --stdin < paths", "s3-push --no-nix \"$C\""],
        streams: &[Stream::Export],
    },
    Pipeline {
        name: "an unsorted archive",
        stages: &["tar c -C cache $NARINFOS nar nix-cache-info", "s3-push --no-nix \"$C\""],
        streams: &[Stream::Archive],
    },
    Pipeline {
        name: "a mirror",
        stages: &["s3-pull -r --archive \"file://$PWD/cache\" \"$TOP\"", "s3-push \"$C\""],
        streams: &[Stream::Archive],
    },
    Pipeline {
        name: "a mirror by an export stream",
        stages: &["s3-pull -r --export \"file://$PWD/cache\" \"$TOP\"", "s3-push --no-nix \"$C\""],
        streams: &[Stream::Export],
    },
];

/// The pipeline with `head -c BYTES` after the stage `at`.
fn cut(stages: &[&str], at: usize, bytes: usize) -> String {
    let head = format!("head -c {bytes}");
    let mut stages = stages.to_vec();
    stages.insert(at + 1, &head);
    stages.join(" | ")
}

/// Where to cut a stream of so many bytes: at its ends, in the middle, and anywhere.
fn cuts(length: usize, random: &mut Random) -> Vec<usize> {
    assert_ne!(length, 0, "there is nothing to cut");
    let mut cuts = vec![0, 1, 8, 513, length / 2, length.saturating_sub(1025)];
    cuts.extend([random.below(length), random.below(length)]);
    cuts.retain(|&bytes| bytes < length);
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

fn assert_cuts_are_harmless(pipeline: &Pipeline) {
    let mut site = Site::new();
    let s3 = EmbeddedS3::shared();
    site.scratch.sh(&format!("mkdir cache; {ARCHIVE} | tar x -C cache")).ok();
    let narinfos: Vec<_> = site.closure.paths().iter().rev().map(|path| Site::narinfo_key(path)).collect();
    site.scratch.env("NARINFOS", narinfos.join(" "));
    let mut random = Random::new(random_seed());
    for (at, stream) in pipeline.streams.iter().enumerate() {
        site.fresh_bucket(s3);
        let whole = site.scratch.sh(&pipeline.stages[..=at].join(" | "));
        whole.ok();
        for bytes in cuts(whole.stdout.len(), &mut random) {
            let bucket = site.fresh_bucket(s3);
            let script = cut(pipeline.stages, at, bytes);
            let outcome = site.scratch.sh(&script);
            let objects = snapshot(s3, &bucket);
            assert_closed(&objects);
            if stream.is_cut(&whole.stdout, bytes) {
                assert_ne!(outcome.status, 0, "{}: {script}\n{}", pipeline.name, outcome.stderr);
                let last = outcome.stderr.lines().rfind(|line| line.starts_with("s3-push: "));
                assert!(last.is_some(), "{script}: the last stage says nothing\n{}", outcome.stderr);
            }
            let again = site.scratch.sh(&pipeline.stages.join(" | "));
            again.ok();
            assert_complete(&site, &snapshot(s3, &bucket));
        }
    }
}

#[test]
fn five_stages_may_be_cut_anywhere() {
    assert_cuts_are_harmless(&PIPELINES[0]);
}

#[test]
fn an_export_stream_may_be_cut_anywhere() {
    assert_cuts_are_harmless(&PIPELINES[1]);
}

#[test]
fn an_unsorted_archive_may_be_cut_anywhere() {
    assert_cuts_are_harmless(&PIPELINES[2]);
}

#[test]
fn a_mirror_may_be_cut_anywhere() {
    assert_cuts_are_harmless(&PIPELINES[3]);
}

#[test]
fn a_mirror_by_an_export_stream_may_be_cut_anywhere() {
    assert_cuts_are_harmless(&PIPELINES[4]);
}

#[test]
fn a_nar_may_be_cut_anywhere() {
    let (site, s3, bucket) = Site::embedded();
    site.scratch.sh("nar-pack --root root --no-nix \"$LIB\" > nar").ok();
    let length = usize::try_from(fs::metadata(site.path("nar")).unwrap().len()).unwrap();
    for bytes in cuts(length, &mut Random::new(random_seed())).into_iter().chain([length - 1]) {
        let consumers = [
            "s3-push --no-nix \"$C\" \"$LIB\"",
            "nar-pack --unpack out",
            "narinfo-gen --no-nix \"$LIB\"",
            "narinfo-gen --no-nix --archive \"$LIB\" | s3-push \"$C\"",
        ];
        for consumer in consumers {
            let said = site.scratch.sh(&format!("head -c {bytes} nar | {consumer}"));
            assert_eq!(said.status, 1, "{consumer} of {bytes} bytes: {}", said.stderr);
            assert_eq!(said.text(), "");
        }
        assert!(!site.path("out").exists(), "a half of it was unpacked");
        assert_eq!(narinfo_keys(&snapshot(s3, &bucket)), [""; 0]);
    }
    site.scratch.sh("s3-push --no-nix \"$C\" \"$LIB\" < nar; nar-pack --unpack out < nar").ok();
    assert_closed(&snapshot(s3, &bucket));
}

#[test]
fn a_rotation_may_be_cut_anywhere() {
    let (site, s3, bucket) = Site::embedded();
    site.scratch.sh(PUBLISH).ok();
    make_key(&site.scratch, "new");
    let stages = ["s3-pull --narinfo --all \"$C\"", "cache-sign -k new.sec", "s3-push \"$C\""];
    let mut random = Random::new(random_seed());
    for at in 0..2 {
        let length = site.scratch.sh(&stages[..=at].join(" | ")).stdout.len();
        for bytes in cuts(length, &mut random) {
            site.scratch.sh(&cut(&stages, at, bytes));
            assert_complete(&site, &snapshot(s3, &bucket));
            assert_pulls(&site, "$C", "");
        }
    }
    site.scratch.sh(&stages.join(" | ")).ok();
    let objects = snapshot(s3, &bucket);
    assert!(narinfo_keys(&objects).iter().all(|key| Fields::parse(&objects[*key]).all("Sig").len() == 2));
}

#[test]
fn any_bytes_cut_off_leave_no_object() {
    let (site, s3, bucket) = Site::embedded();
    // Whoever feeds it tells nobody that it failed, but the shell does; a multipart upload that breaks is no object.
    let body = "head -c 12000000 /dev/urandom";
    let killed = "s3-push \"$C\" --part-size 5MiB --key log/x < fifo & pid=$!; exec 3>fifo; \
                  head -c 12000000 /dev/urandom >&3; kill -KILL $pid; wait $pid || echo \"status $?\"";
    assert_eq!(site.scratch.sh(&format!("mkfifo fifo; {killed}")).ok(), "status 137");
    assert_eq!(s3.objects(&bucket), [""; 0]);
    site.scratch.sh(&format!("{body} | s3-push \"$C\" --part-size 5MiB --key log/x")).ok();
    assert_eq!(s3.get(&bucket, "log/x").len(), 12_000_000);
}

#[test]
fn a_killed_push_leaves_a_valid_cache_and_the_next_completes_it() {
    let mut site = Site::new();
    let s3 = EmbeddedS3::shared();
    site.scratch.sh(&format!("mkfifo fifo; {ARCHIVE} > archive")).ok();
    let length = usize::try_from(fs::metadata(site.path("archive")).unwrap().len()).unwrap();
    let mut random = Random::new(random_seed());
    for bytes in cuts(length, &mut random).into_iter().chain([length]) {
        let bucket = site.fresh_bucket(s3);
        // It dies after it was given so much, wherever it is then. All of it is held back from the end: the pipe stays open.
        let killed = format!(
            "s3-push --no-nix \"$C\" < fifo & pid=$!; exec 3>fifo; head -c {bytes} archive >&3; kill -KILL $pid; \
             wait $pid || echo \"status $?\""
        );
        assert_eq!(site.scratch.sh(&killed).ok().lines().last(), Some("status 137"));
        assert_closed(&snapshot(s3, &bucket));
        site.scratch.sh("s3-push --no-nix \"$C\" < archive").ok();
        assert_complete(&site, &snapshot(s3, &bucket));
    }
}

#[test]
fn a_pull_that_stops_in_the_middle_leaves_only_whole_paths_and_the_next_completes_it() {
    let (site, s3, bucket) = Site::embedded();
    site.scratch.sh(PUBLISH).ok();
    // The second path of three is damaged: the pull stops in the middle.
    let url = Fields::parse(&s3.get(&bucket, &Site::narinfo_key(&site.closure.app))).one("URL").to_owned();
    let nar = s3.get(&bucket, &url);
    s3.put(&bucket, &url, b"damaged");
    let said = site.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"").fails(1);
    assert!(said.contains(&site.closure.app), "{said}");
    let left = site.scratch.sh("mkdir -p out/nix/store; ls -A out/nix/store").ok();
    for name in left.lines() {
        let path = format!("/nix/store/{name}");
        assert_ne!(path, site.closure.app);
        assert!(site.closure.paths().contains(&path.as_str()), "{name} is left");
        assert_eq!(
            cache_tests::tree(below(&site.path("out"), &path)),
            cache_tests::tree(below(&site.path("root"), &path))
        );
    }
    s3.put(&bucket, &url, &nar);
    site.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    site.assert_trees("out");
}

#[test]
fn narinfo_text_cut_at_the_end_of_a_line_loses_nothing() {
    let (site, s3, bucket) = Site::embedded();
    site.scratch.sh(PUBLISH).ok();
    make_key(&site.scratch, "new");
    let before = snapshot(s3, &bucket);
    let signed = site.scratch.sh("s3-pull --narinfo --all \"$C\" | cache-sign -k new.sec").ok() + "\n";
    let last = signed.rfind("\n\n").unwrap() + 2;
    // Each is the beginning of the text, and looks like the end of a narinfo that has fewer lines.
    for (at, _) in signed.match_indices('\n').filter(|(at, _)| *at > last) {
        let cut = &signed[..=at];
        site.scratch.sh_with_input("s3-push --no-nix \"$C\"", cut.as_bytes());
        let after = snapshot(s3, &bucket);
        assert_complete(&site, &after);
        for key in narinfo_keys(&after) {
            let [old, new] = [&before, &after].map(|objects| Fields::parse(&objects[key]));
            for field in &old.0 {
                assert!(new.0.contains(field), "{key} lost {field:?} to\n{cut}");
            }
        }
    }
    site.scratch.sh_with_input("s3-push --no-nix \"$C\"", signed.as_bytes()).ok();
}

/// An HTTP cache that breaks off in the middle of one file.
struct Breaking {
    listener: TcpListener,
    dir: PathBuf,
    key: String,
    /// Hears of each break, and holds the connection until it has said what to do: go on listening, or end.
    broken: Sender<()>,
    go_on: Receiver<()>,
}

impl Breaking {
    /// Answers one request after the other until a client goes away whom nobody wants to wait for.
    fn serve(&self) {
        for connection in self.listener.incoming() {
            let Ok(true) = self.answer(&mut connection.unwrap()) else { return };
        }
    }

    /// Whether to listen further.
    fn answer(&self, connection: &mut TcpStream) -> io::Result<bool> {
        let mut request = String::new();
        let mut reader = BufReader::new(connection.try_clone()?);
        while reader.read_line(&mut request)? > 2 {}
        let key = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
        let Ok(body) = fs::read(self.dir.join(&key)) else {
            write!(connection, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
            return Ok(true);
        };
        write!(connection, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
        if key != self.key {
            connection.write_all(&body)?;
            return Ok(true);
        }
        connection.write_all(&body[..body.len() / 2])?;
        self.broken.send(()).unwrap();
        Ok(self.go_on.recv().is_ok())
    }
}

/// A site with its cache in `cache/`, and such a server for it on a thread: the URL, who hears of breaks, and who answers.
fn breaking_site() -> (Site, String, Receiver<()>, Sender<()>) {
    let (site, _, _, lib) = site_with_cache();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (broken, hear) = mpsc::channel();
    let (say, go_on) = mpsc::channel();
    let server = Breaking { listener, dir: site.path("cache"), key: lib.one("URL").to_owned(), broken, go_on };
    thread::spawn(move || server.serve());
    (site, url, hear, say)
}

#[test]
fn a_server_that_breaks_off_is_a_failure() {
    let (site, url, hear, say) = breaking_site();
    // However often it is asked.
    thread::spawn(move || while hear.recv().is_ok_and(|()| say.send(()).is_ok()) {});
    for output in ["--root out", "--export", "--nar", "--archive"] {
        let pulled = site.scratch.sh(&format!("timeout 60 s3-pull {output} {url} \"$LIB\" | cat > got"));
        assert!([1, 2].contains(&pulled.status), "{output}: status {}: {}", pulled.status, pulled.stderr);
        assert!(pulled.stderr.contains(&site.closure.lib), "{output}: {}", pulled.stderr);
        site.assert_nothing_below("out");
        // Whoever reads on gets nothing that could pass for whole.
        for reader in ["nar-pack --unpack tree", "s3-push --no-nix \"$C\"", "s3-push --no-nix \"$C\" \"$LIB\""] {
            assert_ne!(site.scratch.sh(&format!("{reader} < got")).status, 0, "{output} | {reader}");
        }
        assert!(!site.path("tree").exists());
    }
}

#[test]
fn a_killed_pull_leaves_nothing_under_a_final_name_and_the_next_tidies_up() {
    let (site, url, hear, say) = breaking_site();
    let mut pull = site.scratch.command("s3-pull").args(["--root", "out", &url, &site.closure.lib]).spawn().unwrap();
    hear.recv().unwrap();
    pull.kill().unwrap();
    pull.wait().unwrap();
    drop(say);
    assert!(!below(&site.path("out"), &site.closure.lib).exists());
    site.scratch.sh("s3-pull -r --root out file://$PWD/cache \"$TOP\"").ok();
    site.assert_trees("out");
    assert_eq!(site.scratch.sh("ls -A out/nix/store | wc -l").ok(), "3", "nothing temporary is left");
}

/// Two paths of the same contents share a NAR. The cache has one of them, compressed otherwise, so that its own NAR is
/// not needed for this one, but it is for the other.
#[test]
fn paths_of_the_same_contents_share_a_nar_that_one_of_them_does_not_need() {
    let s3 = EmbeddedS3::shared();
    let mut scratch = Scratch::new();
    s3.credentials().apply(&mut scratch);
    let bucket = s3.make_bucket();
    scratch.env("C", s3.cache_url(&bucket));
    let [one, two] = ["one", "two"].map(|name| store_path(name, 77));
    for path in [&one, &two] {
        let file = scratch.path().join("root").join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "the same\n").unwrap();
    }
    scratch.env("ONE", &one).env("TWO", &two);
    scratch.sh("nar-pack --root root --no-nix --export \"$ONE\" | s3-push --no-nix -c none -q \"$C\"").ok();
    scratch
        .sh("nar-pack --root root --no-nix --export \"$ONE\" \"$TWO\" | narinfo-gen -c xz --no-nix --archive > twice
             mkdir cache; tar x -C cache -f twice; tar c -C cache nix-cache-info nar $(cd cache; ls *.narinfo) > once")
        .ok();
    for archive in ["twice", "once"] {
        scratch.sh(&format!("s3-push -q \"$C\" < {archive}")).ok();
        let listed = scratch.sh("s3-pull --list --all --no-verify-signatures \"$C\" | sort").ok();
        let mut wanted = [one.as_str(), two.as_str()];
        wanted.sort_unstable();
        assert_eq!(listed.lines().collect::<Vec<_>>(), wanted, "{archive}");
        scratch
            .sh("s3-pull --nar --no-verify-signatures \"$C\" \"$TWO\" | cmp - <(nar-pack --root root \"$TWO\")")
            .ok();
        let hash = &two["/nix/store/".len()..][..32];
        s3.remove(&bucket, &format!("{hash}.narinfo"));
        for nar in s3.objects(&bucket).iter().filter(|key| key.contains(".xz")) {
            s3.remove(&bucket, nar);
        }
    }
}

/// Of paths whose sizes are known the largest goes first, after what it references.
#[test]
fn the_largest_path_goes_first() {
    let mut site = Site::new();
    let names = ["small", "large", "base", "middle"];
    let paths = names.map(|name| store_path(name, 1));
    for path in &paths {
        fs::write(below(&site.path("root"), path), path).unwrap();
    }
    let entry = |index: usize, size: u64, references: &[&String]| {
        serde_json::json!({
            "path": paths[index], "narHash": "sha256-x", "narSize": size, "references": references,
        })
    };
    let info = [entry(0, 10, &[]), entry(1, 9000, &[&paths[2]]), entry(2, 5, &[]), entry(3, 800, &[])];
    fs::write(site.path("info.json"), serde_json::Value::from(info.to_vec()).to_string()).unwrap();
    site.scratch.env("PATHS", paths.join(" "));
    let script = "nar-pack --root root --no-nix --path-info info.json --export $PATHS | narinfo-gen --no-nix \
                  | sed -n 's/^StorePath: //p'";
    let expected = [2, 1, 3, 0].map(|index: usize| paths[index].as_str());
    assert_eq!(site.scratch.sh(script).ok(), expected.join("\n"));
}
