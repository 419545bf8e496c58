//! The examples in `docs/examples`, run as a user runs them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use crate::fixtures::bucket::{assert_closed, narinfo_keys, snapshot};
use crate::fixtures::closure_fixture::generate_key;
use cache_tests::{CommandOutput, EmbeddedS3, Scratch, nix, repository, tree, unique};

/// A project with a `default.nix` that builds a program and a library, a key pair `cache.sec` and `cache.pub`, and a
/// bucket `$NIX_S3_CACHE`.
pub(crate) struct Project {
    pub(crate) scratch: Scratch,
    pub(crate) bucket: String,
    pub(crate) key: String,
    name: String,
}

impl Project {
    /// Returns None if Nix is not installed.
    pub(crate) fn new() -> Option<Self> {
        if !nix::available() {
            return None;
        }
        let mut scratch = Scratch::new();
        let name = unique("example-");
        fs::write(scratch.path().join("default.nix"), expression(&name)).unwrap();
        let s3 = EmbeddedS3::shared();
        let bucket = s3.make_bucket();
        s3.credentials().apply(&mut scratch);
        scratch.env("NIX_S3_CACHE", s3.cache_url(&bucket));
        let key = generate_key(&scratch, "cache");
        scratch.env("CACHE_KEY_FILE", scratch.path().join("cache.sec"));
        Some(Self { scratch, bucket, key, name })
    }

    pub(crate) fn sh(&self, script: &str) -> CommandOutput {
        self.scratch.sh(script)
    }

    /// Returns the number of narinfos in the bucket, which must be closed.
    pub(crate) fn published(&self) -> usize {
        let objects = snapshot(EmbeddedS3::shared(), &self.bucket);
        assert_closed(&objects);
        narinfo_keys(&objects).len()
    }

    /// Asserts that a Nix that trusts only the project's key can fetch the closure of `path` from the bucket.
    #[track_caller]
    pub(crate) fn assert_published(&self, path: &str) {
        let url = EmbeddedS3::shared().http_url(&self.bucket);
        let mut scratch = Scratch::new();
        scratch.env("NIX_CONFIG", format!("require-sigs = true\ntrusted-public-keys = {}\n", self.key));
        let store = nix::fresh_store(&scratch);
        scratch.sh(&format!("nix copy --from '{url}' --to '{store}' {path}")).ok();
        for path in self.sh(&format!("nix-store -qR {path}")).ok().lines() {
            assert_eq!(tree(format!("{store}{path}")), tree(path), "{path}");
        }
    }
}

fn expression(name: &str) -> String {
    let derivation = |name: &str, script: &str| {
        format!(
            "derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
             PATH = \"/usr/bin:/bin\"; args = [ \"-euc\" \"{script}\" ]; }}"
        )
    };
    let library = derivation(&format!("{name}-lib"), "echo library of {name} > $out");
    format!(
        "let lib = {library}; in {}\n",
        derivation(name, "mkdir -p $out/share/doc; echo ${lib} > $out/share/doc/README")
    )
}

fn example(file: &str) -> PathBuf {
    repository().join("docs/examples").join(file)
}

fn make(project: &Project, arguments: &str) -> CommandOutput {
    project.sh(&format!("make --no-print-directory -f '{}' {arguments}", example("Makefile").display()))
}

#[test]
fn the_makefile_builds_signs_and_pushes() {
    let Some(project) = Project::new() else { return };
    make(&project, "push").ok();
    let result = project.sh("readlink -f result").ok();
    assert!(result.ends_with(&project.name), "{result}");
    assert_eq!(project.published(), 2);
    project.assert_published(&result);
    assert!(project.sh("tar tf signed.tar").ok().contains("nix-cache-info"));
    let listed = make(&project, "--silent check").ok();
    assert_eq!(listed.lines().count(), 2);
    assert!(listed.contains(&result), "{listed}");
    make(&project, "push-missing").ok();
    make(&project, "clean").ok();
    assert_eq!(project.sh("ls").ok(), "cache.pub\ncache.sec\ndefault.nix\nhome\ntmp");
}

#[test]
fn the_makefile_pushes_what_is_missing() {
    let Some(project) = Project::new() else { return };
    make(&project, "push-missing").ok();
    assert_eq!(project.published(), 2);
    project.assert_published(&project.sh("readlink -f result").ok());
}

#[test]
fn the_makefile_generates_a_key_once_and_policies() {
    let Some(project) = Project::new() else { return };
    make(&project, "key KEY=mine.sec NAME=mine-1").ok();
    assert!(project.sh("cat mine.pub").ok().starts_with("mine-1:"));
    let secret = fs::read(project.scratch.path().join("mine.sec")).unwrap();
    assert_ne!(make(&project, "key KEY=mine.sec NAME=mine-1").status, 0);
    assert_eq!(fs::read(project.scratch.path().join("mine.sec")).unwrap(), secret);
    make(&project, "policy CACHE=s3://my-cache").ok();
    for file in ["read-only.json", "upload.json"] {
        let policy: serde_json::Value =
            serde_json::from_slice(&fs::read(project.scratch.path().join(file)).unwrap()).unwrap();
        assert_eq!(policy["Version"], "2012-10-17", "{file}");
    }
}

#[test]
fn the_makefile_fails_if_a_stage_fails() {
    let Some(project) = Project::new() else { return };
    assert_ne!(make(&project, "push KEY=no-such-key").status, 0);
    assert!(!fs::exists(project.scratch.path().join("signed.tar")).unwrap(), "a partial archive remains");
    assert_ne!(make(&project, "push-missing KEY=no-such-key").status, 0);
    assert_ne!(make(&project, "push CACHE=").status, 0);
    assert_eq!(project.published(), 0);
}

/// Copies publish.sh to where the jobs expect it.
fn copy_publish_script(project: &Project) {
    project.sh(&format!("mkdir -p ci; cp '{}' ci", example("publish.sh").display())).ok();
}

fn publish(project: &Project, arguments: &str) -> CommandOutput {
    project.sh(&format!("'{}' {arguments}", example("publish.sh").display()))
}

#[test]
fn the_publish_script_signs_and_pushes_what_is_missing() {
    let Some(mut project) = Project::new() else { return };
    let built = project.sh("nix-build --out-link result default.nix").ok();
    assert_eq!(publish(&project, "./result").ok().lines().count(), 2);
    project.assert_published(&built);
    assert_eq!(publish(&project, "./result").ok(), "", "nothing is missing");
    // A path without a signature by this key is missing.
    let key = generate_key(&project.scratch, "second");
    project.scratch.env("CACHE_KEY_FILE", "second.sec");
    publish(&project, "./result").ok();
    project.sh(&format!("s3-pull -r --list --trusted-public-key '{key}' \"$NIX_S3_CACHE\" {built}")).ok();
}

#[test]
fn the_publish_script_tells_what_is_wrong() {
    let Some(mut project) = Project::new() else { return };
    project.sh("nix-build --out-link result default.nix").ok();
    assert!(publish(&project, "").fails(2).contains("expected store paths"));
    assert_ne!(publish(&project, "./no-such-link").status, 0);
    for (name, value, message) in [
        ("CACHE_KEY_FILE", "/no/such/key", "/no/such/key"),
        ("CACHE_KEY_FILE", "", "CACHE_SECRET_KEY"),
        ("NIX_S3_CACHE", "", "in NIX_S3_CACHE"),
    ] {
        let before = project.sh(&format!("printf %s \"${name}\"")).ok();
        project.scratch.env(name, value);
        let output = publish(&project, "./result");
        assert!(output.status != 0 && output.stderr.contains(message), "{name}={value}: {}", output.stderr);
        project.scratch.env(name, before);
    }
    // The stages after the one that fails refuse what it did not write.
    project.scratch.env("TMPDIR", "/no/such/directory");
    let large = "dd if=/dev/urandom of=large bs=1M count=20 2> large.log; nix-store --add large";
    let large = project.sh(large).ok();
    let stderr = publish(&project, &large).fails(2);
    assert!(stderr.contains("narinfo-gen: cannot write to the spool file in /no/such/directory"), "{stderr}");
    assert_eq!(project.published(), 0);
}

/// Returns the items of the YAML list `key: `, which are one line each.
fn list_items<'a>(job: &'a str, key: &str) -> Vec<&'a str> {
    let after = job.lines().skip_while(|line| line.trim() != format!("{key}:")).skip(1);
    after.map_while(|line| line.trim().strip_prefix("- ")).collect()
}

#[test]
fn the_jobs_of_gitlab_and_buildkite_publish_a_closure() {
    for (file, key) in [("gitlab-ci.yml", "script"), ("buildkite.yml", "commands")] {
        let Some(mut project) = Project::new() else { return };
        copy_publish_script(&project);
        let public_key = project.key.clone();
        project.scratch.env("CACHE_PUBLIC_KEY", public_key);
        let job = fs::read_to_string(example(file)).unwrap();
        let commands = list_items(&job, key);
        assert_eq!(commands.len(), 3, "{file}: {commands:?}");
        for command in commands {
            // Buildkite writes $$ for a variable of the job.
            project.sh(&command.replace("$$", "$")).ok();
        }
        assert_eq!(project.published(), 2, "{file}");
        project.assert_published(&project.sh("readlink -f result").ok());
    }
}

fn build_with_hook(project: &Project, flags: &str) -> CommandOutput {
    let hook = example("post-build-hook.sh");
    project.sh(&format!("nix-build --no-out-link --option post-build-hook '{}' {flags}", hook.display()))
}

#[test]
fn the_hook_publishes_what_nix_builds() {
    let Some(project) = Project::new() else { return };
    let built = build_with_hook(&project, "default.nix").ok();
    let built = built.lines().last().unwrap();
    assert!(built.ends_with(&project.name), "{built}");
    assert_eq!(project.published(), 2);
    project.assert_published(built);
}

#[test]
fn the_hook_runs_by_hand() {
    let Some(project) = Project::new() else { return };
    let hook = example("post-build-hook.sh");
    let built = project.sh("nix-build --no-out-link default.nix").ok();
    let lib = project.sh(&format!("nix-store -q --references {built}")).ok();
    // As recent versions of Nix run it, and as versions that leave OUT_PATHS empty.
    project.sh(&format!("OUT_PATHS={lib} DRV_PATH=/nowhere '{}'", hook.display())).ok();
    assert_eq!(project.published(), 1);
    project.sh(&format!("OUT_PATHS= DRV_PATH=$(nix-store -q --deriver {built}) '{}'", hook.display())).ok();
    assert_eq!(project.published(), 2);
    project.assert_published(&built);
    let again = project.sh(&format!("OUT_PATHS='{lib} {built}' DRV_PATH=/nowhere '{}'", hook.display()));
    assert_eq!(again.ok(), "", "nothing is missing");
}

#[test]
fn a_hook_that_fails_stops_the_build() {
    let Some(mut project) = Project::new() else { return };
    project.scratch.env("CACHE_KEY_FILE", "/no/such/key");
    let built = build_with_hook(&project, "default.nix");
    assert_ne!(built.status, 0);
    assert!(built.stderr.contains("/no/such/key"), "{}", built.stderr);
    assert_eq!(project.published(), 0);
    // As README.md describes, the library was built and remains, and the program was not built.
    let outputs = "$(nix-store -q --outputs $(nix-instantiate default.nix 2>/dev/null))";
    assert_ne!(project.sh(&format!("ls {outputs}")).status, 0);
    let kept =
        project.sh("nix-store -q --outputs $(nix-store -q --references $(nix-instantiate default.nix 2>/dev/null))");
    project.sh(&format!("nix-store --check-validity {}", kept.ok())).ok();
}

/// A step of the job: its name and its script.
struct Step {
    name: String,
    script: String,
}

/// Returns the steps that run a script, parsed by indentation: enough YAML for this file.
fn steps(workflow: &str) -> Vec<Step> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let lines: Vec<&str> = workflow.lines().collect();
    let mut steps = Vec::new();
    let mut name = "";
    for (at, line) in lines.iter().enumerate() {
        let text = line.trim_start().trim_start_matches("- ");
        if let Some(found) = text.strip_prefix("name: ") {
            name = found;
        }
        match text.strip_prefix("run: ") {
            None => {}
            Some("|") => {
                let block = lines[at + 1..].iter().take_while(|next| next.is_empty() || indent(next) > indent(line));
                let script: Vec<&str> = block.map(|next| next.trim()).collect();
                steps.push(Step { name: name.to_owned(), script: script.join("\n") });
            }
            Some(script) => steps.push(Step { name: name.to_owned(), script: script.to_owned() }),
        }
    }
    steps
}

/// Returns the environment variables that the workflow sets from secrets and variables.
fn variables(workflow: &str) -> Vec<&str> {
    let assigned = workflow.lines().filter_map(|line| line.trim().split_once(": ${{ "));
    // The inputs of actions are written in lower case.
    assigned.map(|(name, _)| name).filter(|name| name.to_uppercase() == *name).collect()
}

/// Runs the steps as GitHub's runner does for `shell: bash` until one fails, and returns that one.
fn run_job(project: &mut Project, values: &BTreeMap<&str, String>) -> Result<(), (String, CommandOutput)> {
    let workflow = fs::read_to_string(example("github-actions.yml")).unwrap();
    assert!(workflow.contains("shell: bash"), "without it a pipeline fails with its last stage only");
    copy_publish_script(project);
    // The secret is in a variable, and not in a file.
    project.scratch.env("CACHE_KEY_FILE", "");
    for name in variables(&workflow) {
        project.scratch.env(name, values.get(name).unwrap_or_else(|| panic!("{name} has no value")));
    }
    let steps = steps(&workflow);
    assert_eq!(steps.len(), 4);
    for Step { name, script } in steps {
        fs::write(project.scratch.path().join("step.sh"), script).unwrap();
        let output = project.sh("exec bash --noprofile --norc -eo pipefail step.sh");
        if output.status != 0 {
            return Err((name, output));
        }
    }
    Ok(())
}

/// Returns what a user configures in the settings of the repository.
fn settings(project: &Project) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("NIX_S3_CACHE", EmbeddedS3::shared().cache_url(&project.bucket)),
        ("CACHE_PUBLIC_KEY", project.key.clone()),
        ("CACHE_SECRET_KEY", fs::read_to_string(project.scratch.path().join("cache.sec")).unwrap()),
    ])
}

#[test]
fn the_ci_job_publishes_a_closure() {
    let Some(mut project) = Project::new() else { return };
    let settings = settings(&project);
    for _ in 0..2 {
        if let Err((step, output)) = run_job(&mut project, &settings) {
            panic!("{step}: {}", output.stderr);
        }
        assert_eq!(project.published(), 2);
    }
    project.assert_published(&project.sh("readlink -f result").ok());
}

#[test]
fn the_ci_job_fails_without_its_key() {
    let Some(mut project) = Project::new() else { return };
    let mut settings = settings(&project);
    settings.insert("CACHE_SECRET_KEY", String::new());
    let (step, output) = run_job(&mut project, &settings).unwrap_err();
    assert!(step.starts_with("Sign and push") && output.stderr.contains("CACHE_KEY_FILE"), "{step}: {}", output.stderr);
    assert_eq!(project.published(), 0);
}

#[test]
fn the_ci_job_fails_when_no_client_would_trust_the_paths() {
    let Some(mut project) = Project::new() else { return };
    let mut settings = settings(&project);
    settings.insert("CACHE_PUBLIC_KEY", generate_key(&project.scratch, "other"));
    let (step, output) = run_job(&mut project, &settings).unwrap_err();
    assert!(step.starts_with("Check"), "{step}: {}", output.stderr);
}
