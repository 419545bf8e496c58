//! No secret is printed, neither a signing key nor an AWS secret key or session token, on success or failure, at any
//! verbosity.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::process::Stdio;
use std::thread;

use crate::fixtures::bucket::S3Server;
use crate::fixtures::closure_fixture::{ARCHIVE, Fixture, PUBLISH};
use cache_tests::{CommandOutput, Credentials, EmbeddedS3, Minio};

/// A fixture whose secrets are all known.
struct SecretFixture {
    fixture: Fixture,
    secrets: Vec<String>,
}

impl SecretFixture {
    /// Creates a fixture with a bucket `$C` of `service`, and with environment variables that make libraries verbose.
    fn new(service: &impl S3Server) -> Self {
        let mut fixture = Fixture::new();
        let owner = service.owner();
        owner.apply(&mut fixture.scratch);
        fixture.scratch.env("C", service.url(&service.new_bucket()));
        fixture.scratch.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full");
        let file = fs::read_to_string(fixture.path("key.sec")).unwrap();
        let mut secrets = secret_fragments(file.split_once(':').unwrap().1.trim());
        secrets.push(owner.secret_key);
        Self { fixture, secrets }
    }

    fn add_secret(&mut self, secret: &str) {
        self.secrets.push(secret.to_owned());
    }

    /// Runs a script and checks that its output contains no secret.
    #[track_caller]
    fn run(&self, script: &str) -> CommandOutput {
        let output = self.fixture.scratch.sh(script);
        let stdout = String::from_utf8_lossy(&output.stdout);
        for secret in &self.secrets {
            assert!(!stdout.contains(secret), "a secret on standard output of {script}");
            assert!(!output.stderr.contains(secret), "a secret on standard error of {script}");
        }
        output
    }
}

/// Returns the secret half of a key in base 64, and parts of it that must not be printed either. The last third is the
/// public key.
fn secret_fragments(base64: &str) -> Vec<String> {
    let seed = &base64[..42];
    vec![base64.to_owned(), seed.to_owned(), seed[..20].to_owned(), seed[20..].to_owned()]
}

fn succeed(fixture: &SecretFixture) {
    let verbose = PUBLISH.replace("s3-push", "s3-push -v");
    let output = fixture.run(&verbose);
    output.ok();
    assert!(output.stderr.contains("credentials from the environment"), "{}", output.stderr);
    fixture.run(&verbose).ok();
    fixture.run("cache-sign public-key key.sec").ok();
    fixture.run("cache-sign public-key - < key.sec").ok();
    fixture.run("cache-sign keygen more-1 more.sec more.pub").ok();
    fixture.run("s3-pull -v -r --root out \"$C\" \"$TOP\"").ok();
    for output in ["--narinfo", "--export", "--archive", "--list"] {
        fixture.run(&format!("s3-pull -v -r {output} \"$C\" \"$TOP\"")).ok();
    }
    fixture.run("s3-pull -v --narinfo --all \"$C\" | cache-sign -k key.sec | s3-push -v --json \"$C\"").ok();
    fixture.run("head -c 12000000 /dev/zero | s3-push -v --part-size 5MiB \"$C\" --key log/x").ok();
    fixture.run("cache-policy --read-only \"$C\"; cache-policy --upload \"$C\"").ok();
}

#[test]
fn success_prints_no_secret() {
    succeed(&SecretFixture::new(EmbeddedS3::shared()));
    if let Some(minio) = Minio::shared() {
        succeed(&SecretFixture::new(minio));
    }
}

fn fail_at_the_server(fixture: &mut SecretFixture, endpoint: &str) {
    let other = Credentials::random();
    fixture.add_secret(&other.secret_key);
    let Credentials { access_key, secret_key } = &other;
    fixture.fixture.scratch.sh(&format!("{ARCHIVE} > archive")).ok();
    let wrong = [
        format!("export AWS_SECRET_ACCESS_KEY={secret_key}"),
        format!("export AWS_ACCESS_KEY_ID={access_key} AWS_SECRET_ACCESS_KEY={secret_key}"),
        format!("export AWS_SESSION_TOKEN={secret_key}"),
        format!("export C='s3://no-such-bucket-here?scheme=http&endpoint={endpoint}'"),
        "export AWS_MAX_ATTEMPTS=2 C='s3://bucket?scheme=http&endpoint=127.0.0.1:1'".to_owned(),
    ];
    let commands = [
        "s3-push -v --no-nix \"$C\" < archive",
        "s3-push -v --missing \"$C\" < paths",
        "s3-push -v \"$C\" --key log/x < paths",
        "s3-pull -v --root out \"$C\" \"$LIB\"",
        "s3-pull -v --all --list \"$C\"",
    ];
    // In parallel, because failing requests are retried.
    let fixture = &*fixture;
    thread::scope(|scope| {
        for script in wrong.iter().flat_map(|wrong| commands.map(|command| format!("{wrong}; {command}"))) {
            scope.spawn(move || fixture.run(&script));
        }
    });
}

#[test]
fn failure_at_the_server_prints_no_secret() {
    let s3 = EmbeddedS3::shared();
    fail_at_the_server(&mut SecretFixture::new(s3), &s3.endpoint());
    if let Some(minio) = Minio::shared() {
        fail_at_the_server(&mut SecretFixture::new(minio), &minio.endpoint());
    }
}

#[test]
fn credentials_of_a_profile_are_not_printed() {
    let s3 = EmbeddedS3::shared();
    let mut fixture = SecretFixture::new(s3);
    let owner = s3.credentials();
    let dir = fixture.fixture.path("home/.aws");
    fs::create_dir(&dir).unwrap();
    let profile = |name: &str, owner: &Credentials| {
        format!("[{name}]\naws_access_key_id = {}\naws_secret_access_key = {}\n", owner.access_key, owner.secret_key)
    };
    let other = Credentials::random();
    fixture.add_secret(&other.secret_key);
    fs::write(dir.join("credentials"), profile("good", &owner) + &profile("bad", &other)).unwrap();
    let unset = "unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY";
    let output = fixture.run(&format!("{unset}; C=\"$C&profile=good\"; {}", PUBLISH.replace("s3-push", "s3-push -v")));
    output.ok();
    assert!(output.stderr.contains("credentials from a profile"), "{}", output.stderr);
    fixture.run(&format!("{unset}; s3-push -v \"$C&profile=bad\" --key log/x < paths")).fails(2);
    // An invalid credentials file.
    fs::write(dir.join("credentials"), format!("[bad\naws_secret_access_key = {}\n", other.secret_key)).unwrap();
    fixture.run(&format!("{unset}; s3-push -v \"$C&profile=bad\" --key log/x < paths")).fails(2);
    fixture.run(&format!("{unset}; s3-pull -v --all --list \"$C&profile=bad\"")).fails(2);
}

#[test]
fn invalid_key_files_are_not_quoted() {
    let fixture = SecretFixture::new(EmbeddedS3::shared());
    let secret = fs::read_to_string(fixture.fixture.path("key.sec")).unwrap();
    let (name, base64) = secret.split_once(':').unwrap();
    let base64 = base64.trim();
    let bad = [
        base64.to_owned(),
        format!(":{base64}"),
        format!("{name} {base64}"),
        format!("{name}:{}", &base64[..80]),
        format!("{name}:{base64}{base64}"),
        format!("{name}:!{base64}"),
        format!("{name}:{base64}\nmore"),
    ];
    fixture
        .fixture
        .scratch
        .sh("nar-pack --root root --no-nix --export --stdin < paths | narinfo-gen --no-nix > narinfos")
        .ok();
    for text in bad {
        fs::write(fixture.fixture.path("bad.sec"), text).unwrap();
        fixture.run("cache-sign -k bad.sec < narinfos").fails(1);
        fixture.run("cache-sign public-key bad.sec").fails(1);
        fixture.run("cache-sign public-key - < bad.sec").fails(1);
    }
}

#[test]
fn a_secret_key_given_as_a_public_key_is_not_quoted() {
    let fixture = SecretFixture::new(EmbeddedS3::shared());
    fixture.run(PUBLISH).ok();
    fixture.run("s3-pull --narinfo --all \"$C\" > narinfos").ok();
    fixture.run("cache-sign verify --trusted-public-key \"$(cat key.sec)\" < narinfos").fails(2);
    fixture.run("cache-sign verify --trusted-public-key \"$(cut -d: -f2 key.sec)\" < narinfos").fails(2);
    fixture.run("s3-pull --root out --trusted-public-key \"$(cat key.sec)\" \"$C\" \"$LIB\"").fails(2);
    fixture.run("echo \"trusted-public-keys = $(cat key.sec)\" > nix.conf; s3-pull --root out --nix-conf nix.conf \"$C\" \"$LIB\"").fails(1);
    // A key file instead of a stream.
    fixture.run("cache-sign -k key.sec < key.sec").fails(1);
    fixture.run("s3-push \"$C\" < key.sec").fails(1);
    fixture.run("narinfo-gen < key.sec").fails(1);
    fixture.run("nar-pack --list < key.sec").fails(1);
    fixture.run("s3-push --missing \"$C\" < key.sec").fails(1);
}

/// A key is pasted as any argument and in any form; neither our messages nor those of clap print it.
#[test]
fn a_key_given_as_any_other_argument_is_not_quoted() {
    let fixture = SecretFixture::new(EmbeddedS3::shared());
    fixture
        .fixture
        .scratch
        .sh("nar-pack --root root --no-nix --export --stdin < paths | narinfo-gen --no-nix > narinfos
             cut -d: -f2 key.sec > bare; (cut -d: -f1 key.sec; base64 -d bare | head -c 32 | base64 -w0) | paste -sd: > seed")
        .ok();
    let misplaced = [
        "cache-sign \"$K\" < narinfos",
        "cache-sign verify \"$K\" < narinfos",
        "cache-sign \"$K\" verify < narinfos",
        "cache-sign -k key.sec \"$K\" < narinfos",
        "cache-sign -k \"$K\" < narinfos",
        "cache-sign -k\"$K\" < narinfos",
        "cache-sign --key-file=\"$K\" < narinfos",
        "cache-sign --key-fd \"$K\" < narinfos",
        "cache-sign --key-env \"$K\" < narinfos",
        "cache-sign --seed=\"$K\" < narinfos",
        "cache-sign --seed\"$K\" < narinfos",
        "cache-sign --\"$K\" < narinfos",
        "cache-sign -k key.sec --store-dir \"$K\" < narinfos",
        "NIX_STORE_DIR=\"$K\" cache-sign -k key.sec < narinfos",
        "cache-sign public-key \"$K\"",
        "cache-sign public-key key.sec \"$K\"",
        "cache-sign keygen name \"$K/x\" key.pub",
        "cache-sign verify --nix-conf \"$K\" < narinfos",
        "cache-sign verify --threshold \"$K\" < narinfos",
        "cache-sign verify --trusted-public-key-file \"$K\" < narinfos",
        "cache-policy --read-only \"$K\"",
        "cache-policy --read-only --principal \"$K\" my-cache",
        "cache-policy --nix-conf --trusted-public-key-file \"$K\" my-cache",
        "cache-policy --nix-conf --trusted-public-key-file key.pub \"https://$K\"/x#",
        "s3-pull --root out --nix-conf \"$K\" \"$C\" \"$LIB\"",
        "s3-pull --root out \"$C\" \"$K\"",
        "s3-push \"$K\" < narinfos",
        "nar-pack \"$K\"",
        "narinfo-gen \"$K\" < narinfos",
    ];
    for form in ["key.sec", "bare", "seed"] {
        for script in misplaced {
            let output = fixture.run(&format!("K=$(cat {form}); {script}"));
            assert!(matches!(output.status, 1 | 2), "{script} with {form}: {}", output.stderr);
            assert_eq!(output.error_lines().len(), 1, "{script} with {form}: {}", output.stderr);
        }
        let output = fixture.run(&format!("K=$(cat {form}); cache-sign -k key.sec --replace \"$K\" < narinfos"));
        output.ok();
        assert!(output.stderr.contains("no signature by a key of this name"), "{}", output.stderr);
    }
}

/// Counts the occurrences of `needle` in the memory of a child process.
fn count_in_memory(pid: u32, needle: &[u8]) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut count = 0;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw"))) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|digits| u64::from_str_radix(digits, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        // Some regions are not readable.
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            count += bytes.windows(needle.len()).filter(|window| *window == needle).count();
        }
    }
    count
}

/// While the tool signs, the buffer that held the text of the key is wiped: the text is nowhere in memory, and the key
/// itself exists once.
#[test]
fn the_text_of_a_key_is_wiped_from_memory() {
    let mut fixture = Fixture::new();
    let s3 = EmbeddedS3::shared();
    fixture.fresh_bucket(s3);
    fixture.scratch.sh(&format!("{ARCHIVE} > archive; cut -d: -f2 key.sec | base64 -d > raw")).ok();
    let archive = fs::read(fixture.path("archive")).unwrap();
    let secret = fs::read_to_string(fixture.path("key.sec")).unwrap();
    let digits = &secret.split_once(':').unwrap().1.as_bytes()[..42];
    let seed = &fs::read(fixture.path("raw")).unwrap()[..32];
    let mut command = fixture.scratch.command("cache-sign");
    command.args(["-k", "key.sec"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    // All but the end of the archive, so that the tool has signed and waits for more input.
    let (begin, end) = archive.split_at(archive.len() - 1024);
    let (mut signed, mut piece) = (Vec::new(), [0; 4096]);
    thread::scope(|scope| {
        scope.spawn(|| stdin.write_all(begin).unwrap());
        while !signed.windows(5).any(|window| window == b"Sig: ") {
            let n = stdout.read(&mut piece).unwrap();
            assert_ne!(n, 0, "the tool ended");
            signed.extend_from_slice(&piece[..n]);
        }
    });
    let (text, raw) = (count_in_memory(child.id(), digits), count_in_memory(child.id(), seed));
    println!("the key's text {text} times, the key {raw} times");
    assert_eq!(text, 0, "the text of the key is still in memory");
    assert_eq!(raw, 1, "what signs, and no copy of it");
    stdin.write_all(end).unwrap();
    drop(stdin);
    stdout.read_to_end(&mut signed).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_password_in_a_url_is_not_quoted() {
    let mut fixture = SecretFixture::new(EmbeddedS3::shared());
    // No server listens at the address.
    fixture.fixture.scratch.env("AWS_MAX_ATTEMPTS", "1");
    let other = Credentials::random();
    fixture.add_secret(&other.secret_key);
    let user = format!("{}:{}@127.0.0.1:1", other.access_key, other.secret_key);
    fixture.run(&format!("s3-pull --root out http://{user}/x \"$LIB\"")).fails(2);
    fixture.run(&format!("s3-pull --root out 's3://bucket?scheme=http&endpoint={user}' \"$LIB\"")).fails(2);
    fixture.run(&format!("s3-push 's3://bucket?scheme=http&endpoint={user}' --key log/x < paths")).fails(2);
}

/// `base64` wraps lines after 76 digits and so wraps a key, which may be pasted instead of a file name.
#[test]
fn a_wrapped_key_is_not_printed() {
    let fixture = Fixture::new();
    for wrapped in [
        "\"$(cut -d: -f1 key.sec):$(cut -d: -f2 key.sec | fold -w 76)\"",
        "\"$(cut -d: -f2 key.sec | fold -w 76)\"",
        "\"$(cut -d: -f2 key.sec | sed 's/^.\\{40\\}/& /')\"",
    ] {
        for command in ["cache-sign -k KEY", "cache-sign public-key KEY", "cache-sign -k key.sec --store-dir KEY"] {
            // A key that is split elsewhere is recognized only where a key file is expected.
            if wrapped.contains("sed") && command.contains("--store-dir") {
                continue;
            }
            let output = fixture.scratch.sh(&format!("{} < paths", command.replace("KEY", wrapped)));
            assert_ne!(output.status, 0);
            let secret = fs::read_to_string(fixture.path("key.sec")).unwrap();
            let digits = &secret.split_once(':').unwrap().1[..30];
            assert!(!output.stderr.contains(digits), "{command} {wrapped}: {}", output.stderr);
        }
    }
}
