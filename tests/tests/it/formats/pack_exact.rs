//! How `nar-pack` and `narinfo-gen` handle changing, special and unreadable files, invalid streams and unusual
//! narinfos.

use std::fs;
use std::os::unix::net::UnixListener;

use cache_tests::{Random, Scratch, make_tree, store_path};
use narinfo_gen::hash::Sha256;

/// Larger than the pipe and the read-ahead together.
const LARGE_SIZE: usize = 12 << 20;

/// Packs `tree`, runs `change` after the first bytes have arrived, and reads the rest. Returns standard error.
fn pack_while(scratch: &Scratch, change: &str) -> String {
    let output = scratch.sh(&format!(
        "rm -f pipe; mkfifo pipe
         nar-pack tree > pipe & packer=$!
         {{ head -c 65536; {change}; cat; }} < pipe > nar
         wait $packer"
    ));
    let stderr = output.fails(2);
    // A reader of the partial NAR reports that it is truncated.
    let refused = scratch.sh("nar-pack --list < nar > /dev/null").fails(1);
    assert!(refused.contains("truncated"), "{refused}");
    stderr
}

#[test]
fn a_file_that_changes_during_packing_truncates_the_nar() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path().join("tree")).unwrap();
    let make = || fs::write(scratch.path().join("tree/large"), vec![7; LARGE_SIZE]).unwrap();
    for (change, why) in [
        ("truncate -s 10M tree/large", "shorter"),
        ("truncate -s 13M tree/large", "grew"),
        ("printf x | dd of=tree/large bs=1 seek=12000000 conv=notrunc status=none", "changed"),
    ] {
        make();
        let stderr = pack_while(&scratch, change);
        assert!(stderr.contains("tree/large") && stderr.contains(why), "{change}: {stderr}");
    }
    make();
    fs::write(scratch.path().join("tree/z"), "").unwrap();
    // The directory was listed, but this file was not read yet.
    for index in 0..200 {
        fs::write(scratch.path().join(format!("tree/m{index}")), "x").unwrap();
    }
    let stderr = pack_while(&scratch, "rm tree/z; mkdir tree/z");
    assert!(stderr.contains("tree/z") && stderr.contains("the file type changed"), "{stderr}");
}

#[test]
fn special_files_are_named_and_truncate_the_nar() {
    let scratch = Scratch::new();
    let is_root = scratch.sh("id -u").ok() == "0";
    let dir = scratch.path().join("tree");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a"), "first").unwrap();
    let mut cases = vec![("mkfifo tree/b", "a FIFO")];
    if is_root {
        cases.push(("mknod tree/b c 1 3", "a device"));
        cases.push(("mknod tree/b b 7 200", "a device"));
    }
    let expect = |kind: &str| {
        let output = scratch.sh("nar-pack tree > nar");
        let stderr = output.fails(2);
        assert!(stderr.trim_end() == format!("nar-pack: cannot pack tree/b: a NAR cannot contain {kind}"), "{stderr}");
        scratch.sh("nar-pack --list < nar").fails(1);
    };
    for (make, kind) in cases {
        scratch.sh(make).ok();
        expect(kind);
        fs::remove_file(dir.join("b")).unwrap();
    }
    let _socket = UnixListener::bind(dir.join("b")).unwrap();
    expect("a socket");
}

#[test]
fn unreadable_files_are_named() {
    let scratch = Scratch::new();
    // Root can read everything, so the tool runs as another user, from a directory that this user can access.
    let is_root = scratch.sh("id -u").ok() == "0";
    let drop = if is_root { "setpriv --reuid=65534 --regid=65534 --clear-groups" } else { "" };
    scratch
        .sh("chmod 755 .; cp $(command -v nar-pack) tool; chmod 755 tool
             mkdir -p tree/sub tree/open; echo x > tree/sub/file; echo y > tree/open/secret; chmod 0 tree/sub")
        .ok();
    let pack = format!("{drop} ./tool tree > nar");
    let stderr = scratch.sh(&pack).fails(2);
    scratch.sh("chmod 755 tree/sub; chmod 0 tree/open/secret").ok();
    let file = scratch.sh(&pack).fails(2);
    for (stderr, path) in [(stderr, "tree/sub"), (file, "tree/open/secret")] {
        assert!(stderr.contains(&format!("cannot pack {path}: Permission denied")), "{stderr}");
        scratch.sh("nar-pack --list < nar").fails(1);
    }
}

#[test]
fn unpacked_files_have_store_modes_for_every_umask() {
    let scratch = Scratch::new();
    make_tree(scratch.path().join("tree"), 6);
    scratch.sh("nar-pack tree > nar").ok();
    for umask in ["000", "022", "077", "333", "111"] {
        let wrong = scratch.sh(&format!(
            "(umask {umask}; nar-pack --unpack out-{umask} < nar)
             find out-{umask} -type d ! -perm 555 -o -type f ! -perm 444 ! -perm 555
             cmp nar <(nar-pack out-{umask}); find out-{umask} -printf '%T@\\n' | sort -u"
        ));
        assert_eq!(wrong.ok(), "1.0000000000", "umask {umask}");
    }
}

#[test]
fn data_after_a_nar_is_refused() {
    let scratch = Scratch::new();
    scratch.sh("echo x > file; nar-pack file > nar; { cat nar; printf '\\0'; } > longer; cat nar nar > twice").ok();
    for input in ["longer", "twice"] {
        for read in ["--list", "--cat /", "--unpack out"] {
            let stderr = scratch.sh(&format!("nar-pack {read} < {input}")).fails(1);
            assert!(stderr.contains("unexpected data after the end of the NAR"), "{read}: {stderr}");
            assert!(!fs::exists(scratch.path().join("out")).unwrap());
        }
        let path = store_path("x", 1);
        let stderr = scratch.sh(&format!("narinfo-gen --no-nix {path} < {input}")).fails(1);
        assert!(stderr.contains("unexpected data after the end of the NAR"), "{stderr}");
    }
}

#[test]
fn unpacking_renames_names_that_differ_only_in_case_on_request() {
    let scratch = Scratch::new();
    scratch
        .sh("mkdir -p tree/sub; for name in MAKEFILE Makefile makefile sub/a sub/A; do echo $name > tree/$name; done")
        .ok();
    scratch.sh("nar-pack tree > nar; nar-pack --unpack out --case-hack < nar; nar-pack --unpack plain nar").ok();
    let names = |dir: &str| scratch.sh(&format!("export LC_ALL=C; cd {dir}; find . -type f | sort; cat [Mm]*")).ok();
    assert_eq!(
        names("out"),
        "./MAKEFILE\n./Makefile~nix~case~hack~1\n./makefile~nix~case~hack~2\n./sub/A\n./sub/a~nix~case~hack~1\n\
         MAKEFILE\nMakefile\nmakefile"
    );
    scratch.sh("nar-pack plain | cmp - nar").ok();
    // A tree with such names is packed as it is, with a warning.
    let packed = scratch.sh("nar-pack out > /dev/null");
    packed.ok();
    assert!(packed.stderr.starts_with("nar-pack: warning: out/Makefile~nix~case~hack~1: "), "{}", packed.stderr);
    // What could not be renamed is refused, and nothing is left.
    scratch
        .sh("mkdir clash; touch clash/X clash/X~nix~case~hack~1 clash/x; nar-pack clash > clash.nar 2> /dev/null")
        .ok();
    let message = scratch.sh("nar-pack --unpack other --case-hack clash.nar").fails(1);
    assert!(message.contains("reserved for renamed files"), "{message}");
    assert!(!fs::exists(scratch.path().join("other")).unwrap());
    scratch.sh("nar-pack --case-hack --list nar").fails(2);
}

#[test]
fn one_file_is_read_from_a_nar() {
    let scratch = Scratch::new();
    make_tree(scratch.path().join("tree"), 5);
    scratch
        .sh("nar-pack tree > nar
             cmp <(nar-pack --cat share/doc/deep/deeper/text < nar) tree/share/doc/deep/deeper/text
             cmp <(nar-pack --cat /noise nar) tree/noise
             cmp <(nar-pack tree | nar-pack --cat ./bin//hello) tree/bin/hello
             cmp <(nar-pack --cat $'share/not-utf8-\\xff\\xfe' nar) $'tree/share/not-utf8-\\xff\\xfe'
             [ $(nar-pack --cat empty nar | wc -c) = 0 ]
             nar-pack tree/noise | nar-pack --cat / | cmp - tree/noise")
        .ok();
    for (file, why) in [
        ("link", "\"link\" in the NAR is a symbolic link to bin/hello, not a file"),
        ("share", "a directory"),
        ("/", "a directory"),
        ("nowhere", "\"nowhere\" does not exist in the NAR"),
        ("bin/hello/x", "\"bin/hello/x\" does not exist in the NAR"),
        ("share/doc/hello", "does not exist"),
        ("doc/deep", "does not exist"),
    ] {
        let stderr = scratch.sh(&format!("nar-pack --cat {file} nar")).fails(1);
        assert!(stderr.contains(why), "{file}: {stderr}");
    }
    // The listing has the offset of each file.
    scratch
        .sh("mkdir one; cp tree/noise tree/Zebra one; nar-pack one > one.nar
             offset=$(nar-pack --list one.nar | grep -o '\"noise\":{\"narOffset\":[0-9]*' | grep -o '[0-9]*$')
             tail -c +$((offset + 1)) one.nar | { head -c 1048576; cat > /dev/null; } | cmp - tree/noise")
        .ok();
    let stderr = scratch.sh("head -c 5000 nar | nar-pack --cat noise").fails(1);
    assert!(stderr.contains("truncated"), "{stderr}");
    scratch.sh("nar-pack --cat x --list nar").fails(2);
}

#[test]
fn a_tree_of_many_files_is_packed_as_nix_does() {
    if !cache_tests::nix::available() {
        return;
    }
    let scratch = Scratch::new();
    // Several batches of files, several chunks, nested and empty directories.
    let mut random = Random::new(11);
    for index in 0..700 {
        let dir = scratch.path().join(format!("tree/d{}/e{}", index % 7, index % 29));
        fs::create_dir_all(&dir).unwrap();
        let size = [0, 1, 7, 8, 9, 4096, 70_000, 300_000][random.below(8)] / (1 + index % 3);
        fs::write(dir.join(format!("f{index}")), random.bytes(size)).unwrap();
    }
    scratch
        .sh("mkdir -p tree/empty tree/d0/empty; ln -s x tree/d3/link; chmod +x tree/d1/e1/*
             nar-pack tree > nar; cmp nar <(nix-store --dump tree)
             nar-pack --unpack out < nar; cmp nar <(nix-store --dump out)")
        .ok();
    // It exits at once and without a message if the reader closes the pipe.
    let gone =
        scratch.sh("set +o pipefail; nar-pack tree 2> stderr | head -c 100 | wc -c; echo ${PIPESTATUS[0]}; cat stderr");
    assert_eq!(gone.ok().split_whitespace().collect::<Vec<_>>(), ["100", "141"]);
}

#[test]
fn the_archive_is_the_same_for_any_number_of_threads() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path().join("tree")).unwrap();
    let mut random = Random::new(4);
    // Half of the data is compressible, so that frames are finished out of order.
    let data: Vec<u8> =
        (0..11).flat_map(|part| if part % 2 == 0 { vec![b'a'; 1 << 20] } else { random.bytes(1 << 20) }).collect();
    fs::write(scratch.path().join("tree/data"), data).unwrap();
    let path = store_path("threads", 1);
    for method in ["zstd", "zstd --level 1"] {
        let digests = scratch.sh(&format!(
            "nar-pack tree > nar; for n in 1 2 3 8; do narinfo-gen --no-nix --archive -c {method} --threads $n {path} < nar \
             | sha256sum; done | sort -u | wc -l"
        ));
        assert_eq!(digests.ok(), "1", "{method}");
    }
}

#[test]
fn unknown_fields_are_passed_through() {
    let scratch = Scratch::new();
    let path = store_path("x", 2);
    scratch
        .sh(&format!(
            "cache-sign keygen k-1 key.sec key.pub
             echo x > file; nar-pack file | narinfo-gen --no-nix -c none {path} > narinfo
             printf 'Provenance: {{\"a\": [1, \"x: y\"]}}\\nX-Empty: \\nFoo: 1\\nFoo: 2\\n' >> narinfo
             cache-sign -k key.sec < narinfo > signed"
        ))
        .ok();
    let signed = fs::read_to_string(scratch.path().join("signed")).unwrap();
    let unsigned: String = signed.split_inclusive('\n').filter(|line| !line.starts_with("Sig: ")).collect();
    assert_eq!(unsigned, fs::read_to_string(scratch.path().join("narinfo")).unwrap());
    assert!(signed.contains("\nReferences: \n"), "{signed}");
    // Sizes have 64 bits, not 63 or 53.
    scratch
        .sh("sed 's/^NarSize: .*/NarSize: 18446744073709551615/; s/^FileSize: .*/FileSize: 9007199254740993/' narinfo > big
             cache-sign -k key.sec < big | grep -qx 'NarSize: 18446744073709551615'
             cache-sign -k key.sec < big | grep -qx 'FileSize: 9007199254740993'")
        .ok();
    let stderr =
        scratch.sh("sed 's/^NarSize: .*/NarSize: 18446744073709551616/' narinfo | cache-sign -k key.sec").fails(1);
    assert!(stderr.contains("line 7: NarSize"), "{stderr}");
    // A narinfo of 1 MiB is written and read, one byte more is neither written nor read.
    scratch
        .sh("size=$(stat -c %s signed); { cat narinfo; printf 'X: '; head -c $((1048576 - size - 4)) /dev/zero | tr '\\0' x; echo; } > most
             cache-sign -k key.sec < most > full; [ $(stat -c %s full) = 1048576 ]
             cache-sign -k key.sec < full | cmp - full")
        .ok();
    for file in ["most", "full"] {
        let stderr = scratch.sh(&format!("sed 's/^X: /X: y/' {file} | cache-sign -k key.sec")).fails(1);
        assert!(stderr.contains("larger than 1048576 bytes"), "{stderr}");
    }
}

#[test]
fn every_version_of_path_info_gives_the_same_narinfo() {
    let scratch = Scratch::new();
    let (path, other, deriver) = (store_path("x", 3), store_path("y", 3), store_path("x.drv", 3));
    scratch.sh(&format!("echo x > file; nar-pack file > nar; narinfo-gen --no-nix -c none {path} < nar > bare")).ok();
    let bare = fs::read_to_string(scratch.path().join("bare")).unwrap();
    let nix32 = bare.lines().find_map(|line| line.strip_prefix("NarHash: sha256:")).unwrap().to_owned();
    // The same hash in the other bases.
    let hex = scratch.sh("sha256sum < nar | cut -c1-64").ok();
    let base64 = scratch.sh("printf \"$(sha256sum < nar | cut -c1-64 | sed 's/../\\\\x&/g')\" | base64 -w0").ok();
    let name_of = |path: &str| path["/nix/store/".len()..].to_owned();
    let old = |hash: &str, ca: &str| {
        format!(
            r#""narHash":{hash},"narSize":120,"references":["{other}"],"deriver":"{deriver}","signatures":["k-1:abc"],"ca":{ca}"#
        )
    };
    let new = |fields: String| fields.replace("/nix/store/", "");
    let text = |prefix: &str, digits: &str| format!("\"{prefix}{digits}\"");
    let object =
        |digits: &str, format: &str| format!(r#"{{"algorithm":"sha256","format":"{format}","hash":"{digits}"}}"#);
    let nar = |hash: &str| format!(r#"{{"hash":{hash},"method":"nar"}}"#);
    let ca32 = text("fixed:r:sha256:", &nix32);
    let documents = [
        // Nix 2.3 to 2.18 with each base of hashes; the later map; and base names.
        format!(r#"[{{"path":"{path}",{}}}]"#, old(&text("sha256:", &nix32), &ca32)),
        format!(r#"[{{"path":"{path}",{}}}]"#, old(&text("sha256:", &hex), &text("fixed:r:sha256:", &hex))),
        format!(r#"[{{"path":"{path}",{}}}]"#, old(&text("sha256:", &base64), &ca32)),
        format!(r#"{{"{path}":{{{}}}}}"#, old(&text("sha256-", &base64), &text("fixed:r:sha256-", &base64))),
        format!(r#"{{"{}":{{{}}}}}"#, name_of(&path), new(old(&text("sha256-", &base64), &ca32))),
        // Version 2 with objects for hashes.
        format!(
            r#"{{"version":2,"storeDir":"/nix/store","info":{{"{}":{{"version":2,{}}}}}}}"#,
            name_of(&path),
            new(old(&object(&base64, "base64"), &nar(&object(&base64, "base64"))))
        ),
        format!(
            r#"{{"version":3,"storeDir":"/nix/store","info":{{"{}":{{{}}}}}}}"#,
            name_of(&path),
            new(old(&text("sha256-", &base64), &nar(&text("sha256-", &base64))))
        ),
        format!(
            r#"{{"{}":{{{}}}}}"#,
            name_of(&path),
            new(old(&object(&nix32, "nix32"), &nar(&object(&hex, "base16"))))
        ),
    ];
    for document in documents {
        fs::write(scratch.path().join("info.json"), &document).unwrap();
        let ours = scratch.sh(&format!("narinfo-gen --path-info info.json -c none {path} < nar"));
        ours.ok();
        let wanted = bare.replace("References: \n", &format!("References: {}\n", name_of(&other)))
            + &format!("Deriver: {}\nSig: k-1:abc\nCA: fixed:r:sha256:{nix32}\n", name_of(&deriver));
        assert_eq!(String::from_utf8_lossy(&ours.stdout), wanted, "{document}");
        assert_eq!(ours.stderr, "", "{document}");
    }
}

/// A path that was damaged after it was registered is not published under a new NarHash.
#[test]
fn contents_that_path_info_does_not_describe_are_refused() {
    let mut scratch = Scratch::new();
    let path = store_path("x", 1);
    let file = scratch.path().join("root").join(path.trim_start_matches('/'));
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    scratch.env("P", &path);
    let write = |contents: &str| fs::write(&file, contents).unwrap();
    let nar_hash = |scratch: &Scratch| {
        let packed = scratch.sh("nar-pack --root root --no-nix $P");
        packed.ok();
        Sha256::of(&packed.stdout).sri()
    };
    write("as registered");
    let info = format!(r#"[{{"path":"{path}","narHash":"{}","narSize":128,"references":[]}}]"#, nar_hash(&scratch));
    scratch.write("info.json", info);
    let export = "nar-pack --root root --no-nix --path-info info.json --export $P";
    scratch.sh(&format!("{export} | narinfo-gen --no-nix --path-info info.json")).ok();
    write("as damaged!!!");
    let damaged = nar_hash(&scratch);
    for build in [
        format!("{export} | narinfo-gen --no-nix --path-info info.json"),
        "nar-pack --root root --no-nix $P | narinfo-gen --no-nix --path-info info.json $P".to_owned(),
    ] {
        let output = scratch.sh(&build);
        assert!(output.fails(1).contains(&format!("{path}: NarHash is {damaged}, but its path info has ")), "{build}");
        assert_eq!(output.text(), "", "{build}");
    }
    // Values that no reader accepts.
    for (field, value) in [("ca", "\"junk\""), ("signatures", "[\"junk\"]"), ("signatures", "[\"a:AAAA \"]")] {
        let info =
            format!(r#"[{{"path":"{path}","narHash":"{damaged}","narSize":128,"references":[],"{field}":{value}}}]"#);
        scratch.write("bad.json", info);
        let output = scratch
            .sh(&format!("{} $P", "nar-pack --root root --no-nix $P | narinfo-gen --no-nix --path-info bad.json"));
        assert!(output.fails(1).contains("which is not valid"), "{value}: {output:?}");
    }
    // Without path info, the contents are those of another host.
    scratch.sh(&format!("{export} | narinfo-gen --no-nix")).ok();
    write("as damaged, and of another size");
    assert!(scratch.sh(&format!("{export} > export")).fails(1).contains("NarSize of its path info is 128"));
    scratch.sh("narinfo-gen --no-nix < export").fails(1);
}

#[test]
fn files_that_cannot_be_written_are_named_and_nothing_remains() {
    let scratch = Scratch::new();
    // First small enough for the writer thread, then too large for the limit.
    for (size, count) in [(200_000, 40), (900_000, 3)] {
        let tree = scratch.path().join("tree");
        for index in 0..count {
            let dir = tree.join(format!("d{index}"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("small"), "x").unwrap();
            fs::write(dir.join("zlarge"), vec![7; if index == count - 2 { size } else { 50_000 }]).unwrap();
        }
        let stderr =
            scratch.sh("nar-pack tree > nar; trap '' XFSZ; ulimit -f 100; nar-pack --unpack out < nar").fails(2);
        let wanted = format!("nar-pack: cannot unpack out/d{}/zlarge: File too large", count - 2);
        assert!(stderr.starts_with(&wanted), "{stderr}");
        assert!(!fs::exists(scratch.path().join("out")).unwrap());
        fs::remove_dir_all(tree).unwrap();
    }
}

#[test]
fn a_tree_of_many_directories_uses_few_descriptors() {
    let scratch = Scratch::new();
    scratch
        .sh("mkdir tree; (cd tree; mkdir $(seq 2000); for i in $(seq 2000); do echo $i > $i/f; done)
             nar-pack tree > nar; (ulimit -n 128; nar-pack --unpack out < nar); nar-pack out | cmp - nar")
        .ok();
}
