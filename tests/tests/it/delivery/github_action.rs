//! `action.yml` and its script, run as GitHub's runner does.

use std::collections::BTreeSet;
use std::fs;

use cache_tests::lying_server::{LyingServer, Response};
use cache_tests::{CommandOutput, EmbeddedS3, Minio, repository};

use super::is_installed;
use crate::pipelines::examples::Project;

/// A job: a project with the variables of the runner and the inputs.
struct Job {
    project: Project,
}

impl Job {
    fn new() -> Option<Self> {
        let mut project = Project::new()?;
        let cache = project.sh("echo \"$NIX_S3_CACHE\"").ok();
        let runner = project.scratch.dir("runner");
        for (name, file) in [
            ("GITHUB_PATH", "path"),
            ("GITHUB_OUTPUT", "output"),
            ("GITHUB_STEP_SUMMARY", "summary"),
            ("GITHUB_ENV", "env"),
        ] {
            fs::write(runner.join(file), "").unwrap();
            project.scratch.env(name, runner.join(file));
        }
        let secret = fs::read_to_string(project.scratch.path().join("cache.sec")).unwrap();
        let public = project.key.clone();
        let scratch = &mut project.scratch;
        scratch.env("RUNNER_TEMP", &runner).env("GITHUB_ACTION_PATH", repository());
        scratch.env("GITHUB_REPOSITORY", "example/project").env("GITHUB_RUN_ID", "17").env("NIX_S3_CACHE", "");
        scratch.env("INPUT_CACHE", cache).env("INPUT_SIGNING_KEY", secret).env("INPUT_PUBLIC_KEY", public);
        Some(Self { project })
    }

    fn input(&mut self, name: &str, value: &str) {
        self.project.scratch.env(format!("INPUT_{name}"), value);
    }

    fn run(&self) -> CommandOutput {
        self.project.sh("exec bash --noprofile --norc -eo pipefail -c '\"$GITHUB_ACTION_PATH/.github/action/run\"'")
    }

    fn record(&mut self) {
        self.input("COMMAND", "record");
        self.run().ok();
        self.input("COMMAND", "push");
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.project.scratch.path().join("runner").join(name)).unwrap()
    }
}

#[test]
fn scripts_have_no_findings_of_shellcheck() {
    if !is_installed("shellcheck", "shellcheck") {
        return;
    }
    let scratch = cache_tests::Scratch::new();
    let top = repository().display().to_string();
    let scripts = ".github/action/run xtask/dist/lib/* xtask/dist/debian/* docs/examples/*.sh";
    scratch.sh(&format!("cd '{top}' && shellcheck {scripts}")).ok();
}

#[test]
fn every_input_is_passed_as_a_variable_and_never_as_text_of_a_script() {
    let action = fs::read_to_string(repository().join("action.yml")).unwrap();
    let script = fs::read_to_string(repository().join(".github/action/run")).unwrap();
    let section = action.split("inputs:\n").nth(1).unwrap().split("outputs:\n").next().unwrap();
    let inputs = section.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let inputs: BTreeSet<_> = inputs.map(|line| line.trim().trim_end_matches(':').to_owned()).collect();
    assert!(inputs.len() >= 9, "{inputs:?}");
    for input in &inputs {
        let variable = format!("INPUT_{}", input.to_uppercase().replace('-', "_"));
        assert!(action.contains(&format!("{variable}: ${{{{ inputs.{input} }}}}\n")), "{variable}");
        assert!(script.contains(&variable), "{variable} is not read");
    }
    for line in action.lines().filter(|line| line.contains("${{ inputs.")) {
        assert!(line.trim_start().starts_with("INPUT_"), "{line}");
    }
}

#[test]
fn a_job_publishes_what_it_built() {
    let Some(mut job) = Job::new() else { return };
    // A store of its own: other tests build in that of the host at the same time.
    for (name, dir) in [("NIX_STORE_DIR", "store"), ("NIX_STATE_DIR", "var"), ("NIX_LOG_DIR", "log")] {
        let dir = job.project.scratch.dir(dir);
        job.project.scratch.env(name, dir);
    }
    job.project.scratch.write("old.nix", "builtins.toFile \"old\" \"\"");
    job.project.sh("nix-instantiate --eval old.nix").ok();
    job.record();
    job.run().ok();
    assert_eq!(job.file("output"), "published=0\n", "nothing was built");
    let built = job.project.sh("nix-build --no-out-link default.nix").ok();
    let output = job.run();
    assert!(output.ok().contains(&built), "{}", output.text());
    assert_eq!(job.project.published(), 2);
    assert_eq!(job.file("output"), "published=0\npublished=2\n");
    assert!(
        job.file("summary").starts_with("2 store paths were published in `s3://bucket-"),
        "{}",
        job.file("summary")
    );
    let secret = fs::read_to_string(job.project.scratch.path().join("cache.sec")).unwrap();
    let printed = format!("{}{}{}", output.text(), output.stderr, job.file("summary"));
    assert!(!printed.contains(secret.trim().split_once(':').unwrap().1), "the key is printed");
}

#[test]
fn a_job_publishes_the_given_paths_to_minio() {
    let (Some(mut job), Some(minio)) = (Job::new(), Minio::start()) else { return };
    let bucket = minio.make_bucket();
    minio.root().apply(&mut job.project.scratch);
    job.input("CACHE", &minio.cache_url(&bucket));
    job.input("PATHS", "./result*");
    job.project.sh("nix-build default.nix").ok();
    job.run().ok();
    assert_eq!(job.file("output"), "published=2\n");
    job.run().ok();
    assert_eq!(job.file("output"), "published=2\npublished=0\n", "nothing is missing");
}

#[test]
fn a_job_fails_if_the_public_key_is_not_that_of_the_signing_key() {
    let Some(mut job) = Job::new() else { return };
    let other = crate::fixtures::closure_fixture::generate_key(&job.project.scratch, "other");
    job.input("PUBLIC_KEY", &other);
    job.input("PATHS", "./result");
    job.project.sh("nix-build default.nix").ok();
    let output = job.run();
    assert!(output.status == 2 && output.stderr.contains("public-key is not that of signing-key"), "{}", output.stderr);
    assert_eq!(job.project.published(), 0);
}

/// The key may end with a newline, as in YAML.
#[test]
fn a_job_signs_what_the_cache_has_without_a_signature() {
    let Some(mut job) = Job::new() else { return };
    let key = format!("{}\n", job.project.key);
    job.input("PUBLIC_KEY", &key);
    job.input("PATHS", "./result");
    let built = job.project.sh("nix-build default.nix").ok();
    job.project.sh(&format!("nar-pack --export -r {built} | s3-push -q \"$INPUT_CACHE\"")).ok();
    job.run().ok();
    let verified = format!("s3-pull --list --trusted-public-key {} \"$INPUT_CACHE\" {built}", job.project.key);
    assert_eq!(job.project.sh(&verified).ok(), built);
}

#[test]
fn a_job_without_its_inputs_says_what_is_missing() {
    let Some(mut job) = Job::new() else { return };
    let fails = |job: &Job, message: &str| {
        let output = job.run();
        assert!(output.status == 2 && output.stderr.contains(message), "{}: {}", output.status, output.stderr);
    };
    fails(&job, "::error title=nix-s3-cache::nothing is recorded: use 'command: record'");
    job.input("PATHS", "./no-such-result");
    fails(&job, "no such path: ./no-such-result");
    job.input("CACHE", "");
    fails(&job, "the input 'cache' is missing");
    job.input("COMMAND", "publish");
    fails(&job, "unknown command 'publish'");
    assert_eq!(job.project.published(), 0);
}

#[test]
fn a_role_is_assumed_with_the_token_of_the_job() {
    let Some(mut job) = Job::new() else { return };
    job.input("PATHS", "./result");
    job.input("ROLE", "arn:aws:iam::123456789012:role/cache-upload");
    job.project.sh("nix-build default.nix").ok();
    let output = job.run();
    assert!(output.status == 2 && output.stderr.contains("permissions: id-token: write"), "{}", output.stderr);

    let issuer = LyingServer::start(|_| Response::object(r#"{"count":1,"value":"header.claims.signature"}"#));
    // Also the proxy, so that no test asks the real STS.
    let proxy = LyingServer::start(|_| Response::status(403));
    let scratch = &mut job.project.scratch;
    scratch.env("ACTIONS_ID_TOKEN_REQUEST_URL", format!("http://{}/token?api-version=2", issuer.endpoint()));
    scratch.env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "request-token");
    scratch.env("AWS_ACCESS_KEY_ID", "").env("AWS_SECRET_ACCESS_KEY", "").env("AWS_REGION", "eu-west-2");
    scratch.env("HTTPS_PROXY", format!("http://{}", proxy.endpoint())).env("AWS_MAX_ATTEMPTS", "1");
    // Every stage starts, so this one sees the environment of all.
    let path = job.project.sh("printf %s \"$PATH\"").ok();
    job.project
        .sh("mkdir stub; printf '#!/bin/sh\\nenv > environment\\n[ \"$1\" != public-key ] || echo \"$INPUT_PUBLIC_KEY\"\\n' \\
             > stub/cache-sign; chmod +x stub/cache-sign")
        .ok();
    let stub = job.project.scratch.path().join("stub");
    job.project.scratch.env("PATH", format!("{}:{path}", stub.display()));
    let output = job.run();
    assert_ne!(output.status, 0, "the proxy refuses the connection to STS");
    let environment = job.project.sh("cat environment").ok();
    let session = environment.lines().find_map(|line| line.strip_prefix("AWS_ROLE_SESSION_NAME=")).unwrap();
    assert!((2..=64).contains(&session.len()), "{session:?}");
    assert!(!environment.contains("INPUT_SIGNING_KEY=") && !environment.contains("request-token"), "{environment}");
    let requests = issuer.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].header("authorization"), Some("bearer request-token"));
    let asked: Vec<_> = proxy.requests().iter().map(|request| format!("{request:?}")).collect();
    assert!(asked.iter().any(|request| request.contains("sts.")), "{asked:?}\n{}", output.stderr);
    // The runner replaces the token in its log; nothing else prints it, and its file is removed.
    assert_eq!(output.text().matches("header.claims.signature").count(), 1);
    assert!(output.text().contains("::add-mask::header.claims.signature") && !output.stderr.contains("claims"));
    assert_eq!(job.project.sh("find runner -name 'oidc-token*'").ok(), "");
    assert_eq!(job.project.published(), 0);
}

#[test]
fn tools_come_from_a_package_with_the_right_checksum_only() {
    let Some(mut job) = Job::new() else { return };
    job.project.sh("nix-build default.nix").ok();
    job.input("PATHS", "./result");
    // A PATH without the tools.
    let path = job.project.sh("printf %s \"$PATH\" | cut -d: -f2-").ok();
    let bin = cache_tests::bin_dir().display().to_string();
    assert!(!path.split(':').any(|dir| dir == bin), "{path}");
    job.project
        .sh(&format!(
            "mkdir -p package/bin && ln -s '{bin}'/{{nar-pack,narinfo-gen,cache-sign,s3-push,s3-pull}} package/bin"
        ))
        .ok();
    let sum = job.project.sh("tar czf package.tgz package && sha256sum package.tgz | cut -d' ' -f1").ok();
    job.input("TOOLS_URL", &format!("file://{}/package.tgz", job.project.scratch.path().display()));
    job.project.scratch.env("PATH", &path);
    job.input("TOOLS_SHA256", &"0".repeat(64));
    let output = job.run();
    assert!(output.status == 2 && output.stderr.contains("tools-url has another checksum"), "{}", output.stderr);
    job.input("TOOLS_SHA256", &sum);
    job.run().ok();
    assert_eq!(job.file("output"), "published=2\n");
    assert!(job.file("path").ends_with("/runner/nix-s3-cache/bin\n"), "{}", job.file("path"));
    assert_eq!(
        EmbeddedS3::shared().objects(&job.project.bucket).iter().filter(|key| key.ends_with(".narinfo")).count(),
        2
    );
}
