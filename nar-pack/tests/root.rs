//! `nar-pack --root` reads nothing outside of the root: symbolic links are resolved as after `chroot`.

#![allow(clippy::unwrap_used)] // a panic fails the test

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

const BASE: &str = "02dlwc21njky62v7q7ffcb10000n2grx-x";
const OTHER: &str = "h7jx3wrzn6m9vjl9604id854qx1xyqw6-y";

/// Runs `nar-pack --root root --no-nix` in `dir`.
fn nar_pack(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nar-pack"))
        .current_dir(dir)
        .env_remove("NIX_STORE_DIR")
        .args(["--root", "root", "--no-nix"])
        .args(args)
        .output()
        .unwrap()
}

fn contains(output: &Output, text: &str) -> bool {
    output.stdout.windows(text.len()).any(|window| window == text.as_bytes())
}

/// A store outside of the root, and the same path within it at `root/data/store`.
fn fixture() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    for (store, contents) in [("outside/store", "secret"), ("root/data/store", "public")] {
        fs::create_dir_all(path.join(store)).unwrap();
        fs::write(path.join(store).join(BASE), format!("{contents} {OTHER}")).unwrap();
    }
    dir
}

#[test]
fn links_in_the_path_of_the_store_are_resolved_below_the_root() {
    for target in ["/data", "../data", "data"] {
        let dir = fixture();
        symlink(target, dir.path().join("root/nix")).unwrap();
        for args in [&[BASE][..], &["--export", BASE]] {
            let path = format!("/nix/store/{}", args[args.len() - 1]);
            let args = [&args[..args.len() - 1], &[path.as_str()]].concat();
            let output = nar_pack(dir.path(), &args);
            assert!(output.status.success() && contains(&output, "public"), "{target}: {output:?}");
        }
    }
}

#[test]
fn nothing_is_read_outside_of_the_root() {
    let dir = fixture();
    let outside = dir.path().join("outside");
    let path = format!("/nix/store/{BASE}");
    for (link, target) in [("root/nix", outside.clone()), ("root/nix", "../outside".into())] {
        symlink(target, dir.path().join(link)).unwrap();
        for args in [&[path.as_str()][..], &["--export", &path]] {
            let output = nar_pack(dir.path(), args);
            assert_eq!(output.status.code(), Some(2), "{output:?}");
            assert!(String::from_utf8_lossy(&output.stderr).contains("root/nix/store"), "{output:?}");
            assert!(!contains(&output, "secret"), "{output:?}");
        }
        fs::remove_file(dir.path().join(link)).unwrap();
    }
    // The candidates of a scan are listed below the root, too.
    fs::create_dir_all(dir.path().join("root/data/nix/store")).unwrap();
    fs::write(outside.join("store").join(OTHER), "").unwrap();
    fs::rename(dir.path().join("root/data/store").join(BASE), dir.path().join("root/data/nix/store").join(BASE))
        .unwrap();
    symlink("/data/nix", dir.path().join("root/nix")).unwrap();
    let output = nar_pack(dir.path(), &["--export", &path]);
    assert!(contains(&output, "public") && !contains(&output, &format!("/nix/store/{OTHER}")), "{output:?}");
    fs::write(dir.path().join("root/data/nix/store").join(OTHER), "").unwrap();
    let output = nar_pack(dir.path(), &["--export", &path]);
    assert!(contains(&output, &format!("/nix/store/{OTHER}")), "{output:?}");
}
