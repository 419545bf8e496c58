//! Pulls write below their root and nowhere else, whatever symbolic links there are.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::sync::{Mutex, mpsc};
use std::thread;

use crate::fixtures::closure_fixture::{Fixture, PUBLISH};
use cache_tests::fault_proxy::{Fault, FaultProxy, ObjectKind};

#[test]
fn a_link_that_leaves_the_root_is_refused_and_one_within_is_followed() {
    let (fixture, _, _) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    let leaving = [
        ("ln -s \"$PWD/outside\" out/nix", "out/nix"),
        ("ln -s ../outside out/nix", "out/nix"),
        ("mkdir out/nix; ln -s ../../outside out/nix/store", "out/nix/store"),
        ("mkdir out/nix; ln -s \"$PWD/outside\" out/nix/store", "out/nix/store"),
        ("ln -s step out/nix; ln -s ../outside out/step", "out/step"),
    ];
    for (plant, link) in leaving {
        fixture.scratch.sh(&format!("mkdir -p out outside/store; {plant}")).ok();
        for flags in ["", "--verify-existing", "--dry-run"] {
            let stderr = fixture.scratch.sh(&format!("s3-pull -r --root out {flags} \"$C\" \"$TOP\"")).fails(2);
            assert!(stderr.contains(link), "{plant} {flags}: {stderr}");
            assert_eq!(fixture.scratch.sh("find outside -mindepth 1").ok(), "outside/store", "{plant} {flags}");
        }
        fixture.scratch.sh("rm -r out outside").ok();
    }
    fixture.scratch.sh("mkdir -p out/real; ln -s real out/nix; s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    fixture.assert_trees("out");
    assert_eq!(fixture.scratch.sh("ls out/real/store | wc -l; readlink out/nix").ok(), "3\nreal");
    // The root itself is the choice of the user.
    fixture.scratch.sh("mkdir target; ln -s target root-link; s3-pull -r --root root-link \"$C\" \"$TOP\"").ok();
    fixture.assert_trees("target");
}

/// The store directory is replaced by a link while the pull waits for the server.
#[test]
fn nothing_is_written_behind_a_link_that_replaces_the_store_directory() {
    let (fixture, s3, _) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    let (resume, resumed) = mpsc::channel::<()>();
    let (reached, is_reached) = mpsc::channel();
    let (resumed, reached) = (Mutex::new(resumed), Mutex::new(reached));
    let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
        if request.object_kind() == ObjectKind::Nar {
            let _ = reached.lock().unwrap().send(());
            // Returns when the sender is dropped.
            let _ = resumed.lock().unwrap().recv();
        }
        Fault::Pass
    });
    let url = fixture.scratch.sh("echo \"$C\"").ok().replace(&s3.endpoint(), proxy.endpoint());
    let mut command = fixture.scratch.command("s3-pull");
    command.args(["-r", "--root", "out", &url, &fixture.closure.top]).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    is_reached.recv().unwrap();
    let store = fixture.path("out/nix/store");
    while fs::read_dir(&store).map_or(0, Iterator::count) == 0 {
        thread::yield_now();
    }
    fixture.scratch.sh("mkdir victim moved; mv out/nix/store moved/").ok();
    symlink(fixture.path("victim"), &store).unwrap();
    drop(resume);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fixture.scratch.sh("ls -A victim; ls moved/store | wc -l").ok(), "3");
    fixture
        .scratch
        .sh("for p in \"$LIB\" \"$APP\" \"$TOP\"; do diff -r --no-dereference root$p moved/store/$(basename $p); done")
        .ok();
}
