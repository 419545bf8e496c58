//! `cargo xtask demo`: a cache's first day, with the commands that a user types, against a server of
//! its own.

use std::env;
use std::fs::{self, Permissions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::Outcome;
use crate::build::{Profile, tools};
use crate::session::{self, Temporary, random_hex};

const GREETING: &str = "/nix/store/1b9p07z77phvv2hf6gm9f28syp39f1ag-greeting";
const GREETER: &str = "/nix/store/kx8gfk8vz4y9smcmls2x5cb8kxv1s2dl-greeter";

const NEXT: &str = "
All of it went as it should. With a bucket of your own:

  export NIX_S3_CACHE='s3://my-cache?region=eu-west-2'                              # AWS; credentials as for `aws s3`
  export NIX_S3_CACHE='s3://my-cache?endpoint=minio.example.org:9000&region=us-east-1'   # MinIO, R2, Garage
  cache-sign keygen cache.example.org-1 key.sec key.pub
  nix-store -qR ./result | s3-push --missing | nar-pack --export --stdin | narinfo-gen --archive \\
    | cache-sign -k key.sec | s3-push
  aws s3api put-bucket-policy --bucket my-cache --policy \"$(cache-policy --read-only)\"    # let everybody read

Each tool's --help has more pipelines.";

pub fn run(profile: Profile) -> Outcome {
    let bin = tools(profile)?;
    let dir = Temporary::new("demo")?;
    let made = make_closure(&dir.path.join("store"))
        .and_then(|()| fs::write(dir.path.join("paths"), format!("{GREETING}\n{GREETER}\n")));
    made.map_err(|error| format!("cannot make two store paths in {}: {error}", dir.path.display()))?;
    let server = Server::start(&bin, dir)?;
    let demo = Demo { bin, server };
    demo.introduce();
    demo.tell()?;
    println!("{NEXT}");
    Ok(())
}

/// Where the commands run.
struct Demo {
    bin: PathBuf,
    server: Server,
}

/// What must be true of a command's standard output.
enum Says {
    /// Something; it is for the reader.
    Something,
    /// Nothing at all.
    Nothing,
    /// Nothing, and exit status 1: the data is refused.
    No,
    /// This, among other things.
    All(&'static [&'static str]),
}

impl Demo {
    /// The session's environment, as the user would set it.
    fn introduce(&self) {
        println!("# An S3 server with an empty bucket listens on {}; all files are below", self.server.endpoint);
        println!(
            "# {}, which goes away in the end. Two store paths are in store/nix/store.",
            self.server.dir.path.display()
        );
        println!("$ export NIX_S3_CACHE='{}'", self.server.url());
        println!("$ export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…");
    }

    fn tell(&self) -> Outcome {
        self.publish()?;
        self.fetch()
    }

    fn publish(&self) -> Outcome {
        self.step(
            "What there is to publish: a program, and the text that it refers to",
            &[("cat paths", Says::All(&[GREETING, GREETER]))],
        )?;
        self.step(
            "A key pair; clients trust what is signed with it",
            &[("cache-sign keygen demo-1 key.sec key.pub", Says::Nothing), ("cat key.pub", Says::All(&["demo-1:"]))],
        )?;
        self.step(
            "The policy that lets everybody read the bucket; this little server has none to set, so just a look",
            &[("cache-policy --read-only", Says::All(&["s3:GetObject"]))],
        )?;
        self.step(
            "Pack, describe, sign and push what the cache lacks",
            &[
                ("s3-push --missing < paths", Says::All(&[GREETING, GREETER])),
                (
                    "s3-push --missing < paths | nar-pack --root store --no-nix --export --stdin \\\n    \
                 | narinfo-gen --archive --no-nix | cache-sign -k key.sec | s3-push",
                    Says::All(&[GREETING, GREETER]),
                ),
                ("s3-push --missing < paths        # now it lacks nothing", Says::Nothing),
            ],
        )?;
        self.step(
            "What is in the cache",
            &[
                ("s3-pull --list --all --trusted-public-key \"$(cat key.pub)\"", Says::All(&[GREETING, GREETER])),
                (
                    "s3-pull --narinfo --trusted-public-key \"$(cat key.pub)\" GREETER",
                    Says::All(&["StorePath: ", "NarHash: sha256:", "Sig: demo-1:", "-greeting"]),
                ),
            ],
        )
    }

    fn fetch(&self) -> Outcome {
        self.step(
            "Fetch the program and all that it refers to, verified",
            &[
                ("s3-pull -r --root fetched --trusted-public-key \"$(cat key.pub)\" GREETER", Says::Something),
                (
                    "diff -r --no-dereference store/nix/store fetched/nix/store && echo 'The trees are the same.'",
                    Says::All(&["same"]),
                ),
                ("STORE_ROOT=fetched fetchedGREETER/bin/greet", Says::All(&["Hello from the other side"])),
            ],
        )?;
        self.step(
            "Who trusts another key gets nothing",
            &[
                ("cache-sign keygen other-1 other.sec other.pub", Says::Nothing),
                ("s3-pull -r --root refused --trusted-public-key \"$(cat other.pub)\" GREETER", Says::No),
                ("test ! -e refusedGREETER        # and nothing is there under its name", Says::Nothing),
            ],
        )?;
        self.step(
            "Nor does anybody get what was tampered with",
            &[
                (
                    "for nar in server/demo/nar/*; do \\\n    \
                 printf tampered | dd of=\"$nar\" bs=1 seek=20 conv=notrunc status=none; done",
                    Says::Nothing,
                ),
                ("s3-pull -r --root refused --trusted-public-key \"$(cat key.pub)\" GREETER", Says::No),
                ("test ! -e refusedGREETER        # and nothing is there under its name", Says::Nothing),
            ],
        )
    }

    /// Prints and runs some commands, in which GREETER is the program's store path, and demands that each does what it
    /// should.
    fn step(&self, title: &str, commands: &[(&str, Says)]) -> Outcome {
        println!("\n# {title}");
        for (command, expected) in commands {
            let command = command.replace("GREETER", GREETER);
            println!("$ {command}");
            let (status, output) = self.shell(&command)?;
            print!("{output}{}", if output.is_empty() || output.ends_with('\n') { "" } else { "\n" });
            if status == 1 {
                println!("[exit status 1]");
            }
            expected.check(status, &output).map_err(|problem| format!("{problem}: {command}"))?;
        }
        Ok(())
    }

    /// Runs a command line in the demo's directory; returns its exit status and what it says.
    fn shell(&self, script: &str) -> Result<(i32, String), String> {
        let mut command = session::command("bash");
        command.args(["-euo", "pipefail", "-c", script]).current_dir(&self.server.dir.path);
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths([self.bin.clone()].into_iter().chain(env::split_paths(&path)));
        command.env("PATH", path.map_err(|error| format!("cannot extend PATH: {error}"))?);
        command.env("NIX_S3_CACHE", self.server.url());
        command.env("AWS_ACCESS_KEY_ID", &self.server.access_key);
        command.env("AWS_SECRET_ACCESS_KEY", &self.server.secret_key);
        command.stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = command.output().map_err(|error| format!("cannot run bash: {error}"))?;
        let status = output.status.code().ok_or_else(|| format!("{}: {script}", output.status))?;
        Ok((status, String::from_utf8_lossy(&output.stdout).into_owned()))
    }
}

impl Says {
    fn check(&self, status: i32, output: &str) -> Outcome {
        let expected = i32::from(matches!(self, Self::No));
        if status != expected {
            return Err(format!("exit status {status} instead of {expected}"));
        }
        match self {
            Self::Something => Ok(()),
            Self::No | Self::Nothing if output.is_empty() => Ok(()),
            Self::No | Self::Nothing => Err("this should say nothing".to_owned()),
            Self::All(words) => match words.iter().find(|word| !output.contains(**word)) {
                None => Ok(()),
                Some(word) => Err(format!("this should say {word:?}")),
            },
        }
    }
}

/// The embedded S3 server. It ends when its standard input closes: when this is dropped, and just as well when the
/// demo is interrupted or killed.
struct Server {
    child: Child,
    endpoint: String,
    access_key: String,
    secret_key: String,
    /// Removed when the server has ended.
    dir: Temporary,
}

impl Server {
    fn start(bin: &Path, dir: Temporary) -> Result<Self, String> {
        let program = bin.join("embedded-s3");
        let root = dir.path.join("server");
        // A directory below the root is a bucket.
        fs::create_dir_all(root.join("demo")).map_err(|error| format!("cannot make the bucket: {error}"))?;
        let (access_key, secret_key) = (random_hex()?, random_hex()?);
        let mut child = Command::new(&program)
            .arg(&root)
            .env("EMBEDDED_S3_ACCESS_KEY", &access_key)
            .env("EMBEDDED_S3_SECRET_KEY", &secret_key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // An interrupt from the terminal is for the demo; the server sees its standard input close.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot run {}: {error}", program.display()))?;
        let endpoint = endpoint(&mut child)?;
        Ok(Self { child, endpoint, access_key, secret_key, dir })
    }

    fn url(&self) -> String {
        format!("s3://demo?endpoint={}&scheme=http&region=us-east-1", self.endpoint)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

/// Waits until the server says where it listens.
fn endpoint(server: &mut Child) -> Result<String, String> {
    let mut line = String::new();
    if let Some(stdout) = server.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(|error| format!("cannot read from embedded-s3: {error}"))?;
    }
    let endpoint = line.strip_prefix("ENDPOINT ").map(|endpoint| endpoint.trim().to_owned());
    endpoint.ok_or_else(|| "embedded-s3 did not start".to_owned())
}

/// Two store paths: a text, and a program that names the text's path and so refers to it.
fn make_closure(root: &Path) -> io::Result<()> {
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
