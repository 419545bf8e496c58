//! `demo`: publishes a small closure and fetches it, with the commands that a user types, against an S3 server in a
//! temporary directory. Requires no Nix, network or account.

// The demo is its standard output.
#![allow(clippy::print_stdout)]

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{ExitCode, Stdio};

use cache_tests::{EmbeddedS3, Scratch};

const GREETING: &str = "/nix/store/1b9p07z77phvv2hf6gm9f28syp39f1ag-greeting";
const GREETER: &str = "/nix/store/kx8gfk8vz4y9smcmls2x5cb8kxv1s2dl-greeter";

const NEXT_STEPS: &str = "
All steps succeeded. With a bucket of your own:

  export NIX_S3_CACHE='s3://my-cache?region=eu-west-2'                              # AWS; credentials as for `aws s3`
  export NIX_S3_CACHE='s3://my-cache?endpoint=https://minio.example.org:9000&region=us-east-1'   # MinIO, R2, Garage
  cache-sign keygen cache.example.org-1 key.sec key.pub
  nix-store -qR ./result | s3-push --missing | nar-pack --export --stdin | narinfo-gen --archive \\
    | cache-sign -k key.sec | s3-push
  aws s3api put-bucket-policy --bucket my-cache --policy \"$(cache-policy --read-only)\"    # allow anonymous reads

Each tool's --help has more pipelines.";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut scratch = Scratch::removed_on_interrupt();
    let written = write_closure(&scratch.dir("store"));
    written.map_err(|error| format!("cannot write two store paths in {}: {error}", scratch.path().display()))?;
    scratch.write("paths", format!("{GREETING}\n{GREETER}\n"));
    let server = EmbeddedS3::start_in(&scratch.dir("server"));
    server.make_named_bucket("demo");
    server.credentials().apply(&mut scratch);
    let url = server.cache_url("demo");
    scratch.env("NIX_S3_CACHE", &url);
    println!("# An S3 server with an empty bucket listens on {}. All files are in the temporary", server.endpoint());
    println!("# directory {}. Two store paths are in store/nix/store.", scratch.path().display());
    println!("$ export NIX_S3_CACHE='{url}'");
    println!("$ export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…");
    let demo = Demo { scratch };
    demo.publish()?;
    demo.collect()?;
    demo.fetch()?;
    println!("{NEXT_STEPS}");
    Ok(())
}

/// Runs the commands.
struct Demo {
    scratch: Scratch,
}

/// The expected result of a command.
enum Expect {
    /// Success with any output.
    Success,
    /// Success without output.
    NoOutput,
    /// Exit status 1 without output: the data is refused.
    Refused,
    /// Success with output that contains these words.
    Output(&'static [&'static str]),
}

impl Demo {
    fn publish(&self) -> Result<(), String> {
        self.step(
            "Two store paths to publish: a program, and the text that it refers to",
            &[("cat paths", Expect::Output(&[GREETING, GREETER]))],
        )?;
        self.step(
            "Generate a key pair; clients trust what is signed with it",
            &[
                ("cache-sign keygen demo-1 key.sec key.pub", Expect::NoOutput),
                ("cat key.pub", Expect::Output(&["demo-1:"])),
            ],
        )?;
        self.step(
            "Print the bucket policy that allows anonymous reads (the server of this demo does not support policies)",
            &[("cache-policy --read-only", Expect::Output(&["s3:GetObject"]))],
        )?;
        self.step(
            "Pack, describe, sign and push what the cache lacks",
            &[
                ("s3-push --missing < paths", Expect::Output(&[GREETING, GREETER])),
                (
                    "s3-push --missing < paths | nar-pack --root store --no-nix --export --stdin \\\n    \
                 | narinfo-gen --archive --no-nix | cache-sign -k key.sec | s3-push",
                    Expect::Output(&[GREETING, GREETER]),
                ),
                ("s3-push --missing < paths        # nothing is missing now", Expect::NoOutput),
            ],
        )?;
        self.step(
            "List the cache, and show a narinfo",
            &[
                ("s3-pull --list --all --trusted-public-key \"$(cat key.pub)\"", Expect::Output(&[GREETING, GREETER])),
                (
                    "s3-pull --narinfo --trusted-public-key \"$(cat key.pub)\" GREETER",
                    Expect::Output(&["StorePath: ", "NarHash: sha256:", "Sig: demo-1:", "-greeting"]),
                ),
            ],
        )
    }

    fn collect(&self) -> Result<(), String> {
        self.step(
            "Pin the text, and find the paths that nothing keeps",
            &[
                ("head -n 1 paths | s3-push pin main/2026-11-24", Expect::NoOutput),
                (
                    "s3-pull dead --older-than 0s > dead.narinfo; grep StorePath dead.narinfo",
                    Expect::Output(&[GREETER]),
                ),
            ],
        )?;
        self.step(
            "Delete them: the first run dooms them, and a run a day later deletes them",
            &[
                ("s3-push delete --max-delete 50% < dead.narinfo", Expect::NoOutput),
                (
                    "touch -d '2 days ago' server/demo/*.narinfo; touch -d '25 hours ago' server/demo/gc/* # a day passes",
                    Expect::NoOutput,
                ),
                ("s3-push delete --max-delete 50% < dead.narinfo", Expect::Output(&[GREETER])),
                ("s3-push --missing < paths", Expect::Output(&[GREETER])),
            ],
        )?;
        self.step(
            "Undo: the same text publishes the path again",
            &[
                ("s3-push < dead.narinfo", Expect::Output(&[GREETER])),
                ("s3-pull list --all --trusted-public-key \"$(cat key.pub)\"", Expect::Output(&[GREETING, GREETER])),
            ],
        )
    }

    fn fetch(&self) -> Result<(), String> {
        self.step(
            "Fetch and verify the program and everything that it refers to",
            &[
                ("s3-pull -r --root fetched --trusted-public-key \"$(cat key.pub)\" GREETER", Expect::Success),
                (
                    "diff -r --no-dereference store/nix/store fetched/nix/store && echo 'The trees are identical.'",
                    Expect::Output(&["identical"]),
                ),
                ("STORE_ROOT=fetched fetchedGREETER/bin/greet", Expect::Output(&["Hello from the other side"])),
            ],
        )?;
        self.step(
            "A client that trusts another key refuses the path",
            &[
                ("cache-sign keygen other-1 other.sec other.pub", Expect::NoOutput),
                ("s3-pull -r --root refused --trusted-public-key \"$(cat other.pub)\" GREETER", Expect::Refused),
                ("test ! -e refusedGREETER        # nothing appeared under its name", Expect::NoOutput),
            ],
        )?;
        self.step(
            "Tampered NARs are refused",
            &[
                (
                    "for nar in server/demo/nar/*; do \\\n    \
                 printf tampered | dd of=\"$nar\" bs=1 seek=20 conv=notrunc status=none; done",
                    Expect::NoOutput,
                ),
                ("s3-pull -r --root refused --trusted-public-key \"$(cat key.pub)\" GREETER", Expect::Refused),
                ("test ! -e refusedGREETER        # nothing appeared under its name", Expect::NoOutput),
            ],
        )
    }

    /// Prints and runs commands, in which GREETER is replaced by the store path, and checks the result of each.
    fn step(&self, title: &str, commands: &[(&str, Expect)]) -> Result<(), String> {
        println!("\n# {title}");
        for (command, expected) in commands {
            let command = command.replace("GREETER", GREETER);
            println!("$ {command}");
            let (status, output) = self.run(&command)?;
            print!("{output}{}", if output.is_empty() || output.ends_with('\n') { "" } else { "\n" });
            if status == 1 {
                println!("[exit status 1]");
            }
            expected.check(status, &output).map_err(|problem| format!("{problem}: {command}"))?;
        }
        Ok(())
    }

    /// Runs a command line; returns its exit status and its standard output.
    fn run(&self, script: &str) -> Result<(i32, String), String> {
        let mut command = self.scratch.command("bash");
        command.args(["-euo", "pipefail", "-c", script]).stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = command.output().map_err(|error| format!("cannot run bash: {error}"))?;
        let status = output.status.code().ok_or_else(|| format!("{}: {script}", output.status))?;
        Ok((status, String::from_utf8_lossy(&output.stdout).into_owned()))
    }
}

impl Expect {
    fn check(&self, status: i32, output: &str) -> Result<(), String> {
        let expected = i32::from(matches!(self, Self::Refused));
        if status != expected {
            return Err(format!("expected exit status {expected}, found {status}"));
        }
        match self {
            Self::Success => Ok(()),
            Self::Refused | Self::NoOutput if output.is_empty() => Ok(()),
            Self::Refused | Self::NoOutput => Err("expected no output".to_owned()),
            Self::Output(words) => match words.iter().find(|word| !output.contains(**word)) {
                None => Ok(()),
                Some(word) => Err(format!("expected {word:?} in the output")),
            },
        }
    }
}

/// Writes two store paths: a text, and a program that contains the path of the text and so refers to it.
fn write_closure(root: &Path) -> io::Result<()> {
    let at = |path: &str| root.join(path.trim_start_matches('/'));
    let (greeting, greeter) = (at(GREETING), at(GREETER));
    fs::create_dir_all(greeting.join("share"))?;
    fs::write(greeting.join("share/greeting"), "Hello from the other side of an S3 bucket.\n")?;
    symlink("share/greeting", greeting.join("greeting"))?;
    fs::create_dir_all(greeter.join("bin"))?;
    let program = greeter.join("bin/greet");
    let mut file = fs::File::create(&program)?;
    writeln!(file, "#!/bin/sh\nexec cat \"${{STORE_ROOT:-}}{GREETING}/share/greeting\"")?;
    drop(file);
    fs::set_permissions(program, Permissions::from_mode(0o755))
}
