//! The command line of `nar-pack`: no option is ignored, and nothing incomplete is printed.

#![allow(clippy::unwrap_used)] // a panic fails the test

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use nar_pack::nar::push_string;

fn nar_pack(args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nar-pack"));
    command.args(args).env_remove("NIX_STORE_DIR");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // The tool may stop reading early.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// Returns the NAR of a directory with empty files.
fn nar_with_names(names: &[&str]) -> Vec<u8> {
    let mut nar = Vec::new();
    for field in ["nix-archive-1", "(", "type", "directory"] {
        push_string(&mut nar, field.as_bytes());
    }
    for name in names {
        for field in ["entry", "(", "name", name, "node", "(", "type", "regular", "contents", "", ")", ")"] {
            push_string(&mut nar, field.as_bytes());
        }
    }
    push_string(&mut nar, b")");
    nar
}

#[track_caller]
fn assert_refused(output: &Output, status: i32, message: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(status) && stderr.contains(message), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

#[test]
fn an_option_of_another_output_is_a_usage_error() {
    let nar = nar_with_names(&["a"]);
    for output in [&["--list"][..], &["--cat", "a"], &["--unpack", "no-such-dir/x"]] {
        for option in [&["--stdin"][..], &["-r"], &["--root", "."]] {
            let args = [output, option].concat();
            let name = if option[0] == "-r" { "--recursive" } else { option[0] };
            assert_refused(&nar_pack(&args, &nar), 2, &format!("{name} cannot be used with {}", output[0]));
        }
    }
}

#[test]
fn the_listing_of_a_refused_nar_is_not_printed() {
    let nar = nar_with_names(&["a", "b"]);
    assert!(nar_pack(&["--list"], &nar).stdout.ends_with(b"\"version\":1}\n"));
    for length in [nar.len() - 1, nar.len() - 8, nar.len() / 2] {
        assert_refused(&nar_pack(&["--list"], &nar[..length]), 1, "truncated NAR");
    }
    assert_refused(&nar_pack(&["--list"], &[nar.as_slice(), b"x"].concat()), 1, "unexpected data after the end");
    assert_refused(&nar_pack(&["--list"], &nar_with_names(&["b", "a"])), 1, "unsorted");
}

#[test]
fn a_name_of_more_than_255_bytes_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("t");
    let unpack = ["--unpack", target.to_str().unwrap()];
    for length in [256, 300, 5000] {
        let nar = nar_with_names(&[&"n".repeat(length)]);
        for args in [&["--list"][..], &["--cat", "n"], &unpack, &[&unpack[..], &["--case-hack"]].concat()] {
            assert_refused(&nar_pack(args, &nar), 1, &format!("file name of {length} bytes"));
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(nar_pack(&unpack, &nar_with_names(&[&"n".repeat(255)])).status.success());
}

#[test]
fn two_names_are_never_unpacked_as_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("t");
    let unpack = ["--unpack", target.to_str().unwrap(), "--case-hack"];
    let nar = nar_with_names(&["Foo", "foo", "foo~nix~case~hack~1"]);
    assert_refused(&nar_pack(&unpack, &nar), 1, "reserved for renamed files");
    assert!(!target.exists());
    assert!(nar_pack(&unpack, &nar_with_names(&["FOO", "Foo", "foo"])).status.success());
    let mut names: Vec<_> = fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["FOO", "Foo~nix~case~hack~1", "foo~nix~case~hack~2"]);
}
