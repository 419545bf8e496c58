//! What a pull writes, from every kind of cache.

use crate::fixtures::bucket::{Fields, snapshot};
use crate::fixtures::site::{ARCHIVE, PUBLISH, Site, below};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::panic;

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
    assert_eq!(sh("s3-pull -r --list \"$C\" \"$TOP\" | sort").lines(), sh("sort paths").lines());
    assert_eq!(sh("s3-pull --all --list \"$C\" | sort").lines(), sh("sort paths").lines());
    assert_eq!(sh("s3-pull --list \"$C\" \"$TOP\"").lines(), [site.closure.top.as_str()]);
    assert_eq!(sh("s3-pull --stdin --list \"$C\" < paths | sort").lines(), sh("sort paths").lines());
    let narinfos = sh("s3-pull -r --narinfo \"$C\" \"$TOP\"").ok();
    assert_eq!(narinfos.split("\n\n").count(), 3, "{narinfos}");
    let verified = sh("s3-pull -r --narinfo \"$C\" \"$TOP\" | cache-sign verify --trusted-public-key \"$KEY\"").ok();
    assert_eq!(verified, narinfos);
    let members = sh("s3-pull -r --archive \"$C\" \"$TOP\" | tar t").lines();
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
    site.assert_pulls("file://$PWD/cache", "");
    site.assert_pulls("$C", "");
    site.assert_pulls(&s3.http_url(&bucket), "");
    for url in ["file://$PWD/cache", "$C"] {
        let all = site.scratch.sh(&format!("s3-pull --all --list \"{url}\" | sort"));
        assert_eq!(all.lines(), site.scratch.sh("sort paths").lines(), "{url}");
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
