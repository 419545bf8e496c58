//! The queue of the post-build hook: builds never fail because of the bucket, and the queue is pushed later.

use std::path::PathBuf;

use cache_tests::{CommandOutput, repository};

use crate::pipelines::examples::Project;

fn script(name: &str) -> String {
    let path: PathBuf = repository().join("xtask/dist/lib").join(name);
    path.display().to_string()
}

/// A project whose queue is `queue`, an empty directory.
fn project() -> Option<Project> {
    let mut project = Project::new()?;
    let queue = project.scratch.dir("queue");
    project.scratch.env("NIX_S3_CACHE_QUEUE", queue);
    Some(project)
}

fn build(project: &Project) -> String {
    let hook = script("queue-hook");
    let built = project.sh(&format!("nix-build --no-out-link --option post-build-hook '{hook}' default.nix")).ok();
    built.lines().last().unwrap().to_owned()
}

fn push_queue(project: &Project) -> CommandOutput {
    project.sh(&script("push-queue"))
}

fn queued(project: &Project) -> Vec<String> {
    project.sh("ls -A queue").lines()
}

#[test]
fn a_bucket_that_fails_does_not_fail_the_build_and_gets_the_paths_later() {
    let Some(mut project) = project() else { return };
    let bucket = project.scratch.sh("echo \"$NIX_S3_CACHE\"").ok();
    // Nothing listens on the discard port.
    project.scratch.env("NIX_S3_CACHE", "s3://cache?endpoint=http://127.0.0.1:9&region=us-east-1");
    project.scratch.env("AWS_MAX_ATTEMPTS", "1");
    let built = build(&project);
    assert_eq!(queued(&project).len(), 2);
    let output = push_queue(&project);
    assert_eq!(output.status, 2, "{}", output.stderr);
    assert!(output.stderr.contains("push-queue: the push failed: 2 paths stay in the queue"), "{}", output.stderr);
    assert_eq!(queued(&project).len(), 2);

    // Nor does the Nix daemon answer. No path is to blame for that.
    let daemon = "NIX_REMOTE=unix:///nonexistent/socket";
    let output = project.sh(&format!("{daemon} {}", script("push-queue")));
    assert_eq!(output.status, 2, "{}", output.stderr);
    assert!(output.stderr.contains("cannot query the Nix store: 2 paths stay in the queue"), "{}", output.stderr);
    assert!(!output.stderr.contains("refused, and stays"), "{}", output.stderr);

    project.scratch.env("NIX_S3_CACHE", bucket);
    push_queue(&project).ok();
    assert_eq!(queued(&project), [""; 0]);
    assert_eq!(project.published(), 2);
    project.assert_published(&built);
    assert_eq!(push_queue(&project).ok(), "", "an empty queue is not an error");
}

#[test]
fn a_hook_without_its_queue_does_not_fail_the_build() {
    let Some(mut project) = project() else { return };
    project.scratch.env("NIX_S3_CACHE_QUEUE", "/no/such/queue");
    let hook = script("queue-hook");
    let output = project.sh(&format!("nix-build --no-out-link --option post-build-hook '{hook}' default.nix"));
    output.ok();
    assert!(output.stderr.contains("queue-hook: not queued: /nix/store/"), "{}", output.stderr);
    // As versions of Nix that set neither variable.
    project.sh(&format!("env -u OUT_PATHS -u DRV_PATH '{hook}'")).ok();
}

#[test]
fn the_hook_queues_the_outputs_of_the_derivation_if_it_gets_no_paths() {
    let Some(project) = project() else { return };
    let built = project.sh("nix-build --no-out-link default.nix").ok();
    let hook = script("queue-hook");
    project.sh(&format!("OUT_PATHS= DRV_PATH=$(nix-store -q --deriver {built}) '{hook}'")).ok();
    assert_eq!(queued(&project), [built.trim_start_matches("/nix/store/")]);
}

#[test]
fn a_path_that_is_refused_stays_and_the_others_are_pushed() {
    let Some(project) = project() else { return };
    let built = build(&project);
    // A store path that is there but not valid: nix-store refuses it.
    let invalid = "/nix/store/00000000000000000000000000000000-invalid";
    project.sh(&format!("ln -s {invalid} queue/${{RANDOM}}-gone; mkdir -p tmp/x; ln -s $PWD/tmp/x queue/x")).ok();
    let output = push_queue(&project);
    assert_eq!(output.status, 1, "{}", output.stderr);
    assert!(output.stderr.contains("dropped: /nix/store/00000000000000000000000000000000-invalid is no longer"));
    assert!(output.stderr.contains("refused, and stays in the queue: "), "{}", output.stderr);
    assert_eq!(queued(&project), ["x"]);
    assert_eq!(project.published(), 2);
    project.assert_published(&built);
    // Also when refused paths fill what is pushed at once.
    project
        .sh(&format!("mv queue/x queue/0; ln -s {built} queue; sed 's/< 1000/< 1/' '{}' > one", script("push-queue")))
        .ok();
    assert_eq!(project.sh("NIX_S3_CACHE_QUEUE=$PWD/queue bash one").status, 1);
    assert_eq!(queued(&project), ["0"]);
}

/// nar-pack exits with 2, as for a failure of the bucket.
#[test]
fn a_path_that_cannot_be_read_stays_and_the_others_are_pushed() {
    let Some(project) = project() else { return };
    let built = build(&project);
    project.sh("echo unreadable-$RANDOM > file; nix-store --add file > bad; ln -s $(cat bad) queue/0-bad").ok();
    let bad = project.sh("cat bad").ok();
    // Valid according to Nix's database, and there, but not what a NAR can contain.
    project.sh(&format!("rm -f {bad}; mkfifo {bad}")).ok();
    let output = push_queue(&project);
    project.sh(&format!("rm -f {bad}; cp file {bad}")).ok();
    assert_eq!(output.status, 2, "{}", output.stderr);
    assert!(output.stderr.contains(&format!("could not be read, and stays in the queue: {bad}")), "{}", output.stderr);
    assert_eq!(queued(&project), ["0-bad"]);
    project.assert_published(&built);
}

/// The store path is a symbolic link whose target exists on another host only.
#[test]
fn a_path_that_is_a_dangling_link_is_pushed() {
    let Some(project) = project() else { return };
    project.sh("ln -s /run/does-not-exist-$RANDOM link; nix-store --add link > added; ln -s $(cat added) queue").ok();
    let added = project.sh("cat added").ok();
    push_queue(&project).ok();
    assert_eq!(queued(&project), [""; 0]);
    project.assert_published(&added);
}

/// As for a user who may not write to the directory.
#[test]
fn a_link_that_cannot_be_removed_ends_the_run() {
    let Some(project) = project() else { return };
    build(&project);
    project.sh("mkdir bin; printf '#!/bin/sh\nexit 1\n' > bin/rm; chmod +x bin/rm").ok();
    let output = project.sh(&format!("PATH=$PWD/bin:$PATH {}", script("push-queue")));
    assert_eq!(output.status, 2, "{}", output.stderr);
    assert!(output.stderr.contains("cannot remove links from "), "{}", output.stderr);
    assert_eq!(project.published(), 2);
}

#[test]
fn a_queue_with_other_files_and_names_is_pushed() {
    let Some(project) = project() else { return };
    let built = build(&project);
    project.sh(&format!("rm queue/*; touch queue/00-note; ln -s {built} queue/my-name")).ok();
    let output = push_queue(&project);
    assert_eq!(output.status, 1, "{}", output.stderr);
    assert!(output.stderr.contains("not a link to a store path, and stays in the queue: "), "{}", output.stderr);
    assert_eq!(queued(&project), ["00-note"]);
    project.assert_published(&built);
    // What is wrong for every path is not the fault of one.
    project.sh(&format!("ln -s {built} queue")).ok();
    for unset in ["NIX_S3_CACHE=", "CACHE_KEY_FILE=", "CACHE_KEY_FILE=/no/such/key"] {
        assert_eq!(project.sh(&format!("{unset} {}", script("push-queue"))).status, 2, "{unset}");
        assert_eq!(project.sh(&format!("NIX_S3_CACHE= {}", script("check-cache"))).status, 2);
    }
}

#[test]
fn queued_paths_are_roots_of_the_garbage_collector() {
    let Some(mut project) = project() else { return };
    let queue = format!("/nix/var/nix/gcroots/{}", cache_tests::unique("queue-"));
    project.sh(&format!("mkdir {queue}")).ok();
    project.scratch.env("NIX_S3_CACHE_QUEUE", &queue);
    let built = build(&project);
    let roots = project.sh(&format!("nix-store --query --roots {built}")).ok();
    project.sh(&format!("rm -r {queue}")).ok();
    assert!(roots.contains(&queue), "{roots}");
}

/// A path that was pushed without a signature, or before the key was replaced, is signed.
#[test]
fn queued_paths_that_the_key_has_not_signed_are_signed() {
    let Some(mut project) = project() else { return };
    let built = build(&project);
    project.sh(&format!("nar-pack --export -r {built} | s3-push -q \"$NIX_S3_CACHE\"")).ok();
    project.scratch.env("CACHE_PUBLIC_KEY", &project.key);
    assert_eq!(project.sh(&script("check-cache")).status, 1);
    push_queue(&project).ok();
    assert_eq!(project.sh(&script("check-cache")).ok(), "");
}

#[test]
fn the_check_finds_a_nar_that_is_missing() {
    let Some(mut project) = project() else { return };
    build(&project);
    push_queue(&project).ok();
    project.scratch.env("CACHE_PUBLIC_KEY", &project.key);
    assert_eq!(project.sh(&script("check-cache")).ok(), "");
    let server = cache_tests::EmbeddedS3::shared();
    let keys = server.objects(&project.bucket);
    let nar = keys.iter().find(|key| key.starts_with("nar/")).unwrap();
    server.remove(&project.bucket, nar);
    let output = project.sh(&script("check-cache"));
    assert_eq!(output.status, 1, "{}", output.stderr);
    assert!(output.text().starts_with("/nix/store/") && output.text().lines().count() == 1, "{}", output.text());
    assert!(output.stderr.contains("1 path or object is broken"), "{}", output.stderr);
}

#[test]
fn the_check_finds_a_path_without_a_trusted_signature() {
    let Some(mut project) = project() else { return };
    build(&project);
    push_queue(&project).ok();
    let other = crate::fixtures::closure_fixture::generate_key(&project.scratch, "other");
    project.scratch.env("CACHE_PUBLIC_KEY", other);
    let output = project.sh(&script("check-cache"));
    assert_eq!(output.status, 1, "{}", output.stderr);
}
