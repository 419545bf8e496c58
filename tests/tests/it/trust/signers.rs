//! `cache-sign --ssh-agent` and `--signer`: signatures by keys that `cache-sign` does not hold.

use super::contributors;
use crate::fixtures::bucket::{Fields, assert_closed, narinfo_keys, snapshot};
use crate::fixtures::closure_fixture::Fixture;
use cache_tests::{CommandOutput, EmbeddedS3, Scratch, nix, store_path};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::thread;

/// Creates an OpenSSH key `id` with a comment and an OpenSSL key `pem.pem`, `pem.pub` with a script `./sign` that signs
/// with it. The agent of [`with_agent`] has `id`.
fn create_keys(scratch: &Scratch) {
    scratch.write(
        "sign",
        "#!/bin/sh\nset -e\nwhile read -r line; do\n  file=$(mktemp)\n  printf %s \"$line\" | base64 -d > \"$file\"\n  \
         openssl pkeyutl -sign -rawin -inkey ${1:-pem.pem} -in \"$file\" | base64 -w0\n  echo; rm \"$file\"\ndone\n",
    );
    scratch
        .sh("chmod +x sign; ssh-keygen -q -t ed25519 -N '' -C agent.example.org-1 -f id
             for key in pem other; do openssl genpkey -algorithm ed25519 -out $key.pem
             echo \"$key-1:$(openssl pkey -in $key.pem -pubout -outform DER | tail -c 32 | base64)\" > $key.pub; done")
        .ok();
}

/// Runs a script with an agent that has the keys in these files.
fn with_agent(scratch: &Scratch, keys: &str, script: &str) -> CommandOutput {
    scratch.write("agent.sh", format!("for key in {keys}; do ssh-add -q $key; done\n{script}\n"));
    scratch.sh("exec ssh-agent bash -euo pipefail agent.sh")
}

/// Copies `top` with a Nix that trusts only `key` from the cache in `dir` of `scratch`.
fn copy_with_nix(scratch: &Scratch, dir: &str, key: &str, top: &str) -> CommandOutput {
    let mut client = Scratch::new();
    client.env("NIX_CONFIG", format!("require-sigs = true\ntrusted-public-keys = {key}\n"));
    let store = nix::fresh_store(&client);
    client.sh(&format!("nix copy --from file://{}/{dir} --to {store} {top}", scratch.path().display()))
}

#[test]
fn nix_accepts_signatures_of_an_ssh_agent_and_of_a_command() {
    if !nix::available() {
        return;
    }
    let mut scratch = Scratch::new();
    let closure = nix::build(&scratch);
    create_keys(&scratch);
    scratch.env("TOP", &closure.top);
    scratch.sh("nix copy --to file://$PWD/plain $TOP; mkdir agent command").ok();
    with_agent(
        &scratch,
        "id",
        "cache-sign public-key --ssh-agent id.pub > agent.pub
         tar c -C plain . | cache-sign --ssh-agent | tar x -C agent",
    )
    .ok();
    let command = "cache-sign --signer './sign' --public-key-file pem.pub";
    scratch.sh(&format!("tar c -C plain . | {command} | tar x -C command")).ok();
    let key_of = |file: &str| fs::read_to_string(scratch.path().join(file)).unwrap().trim().to_owned();
    let (agent, pem, other) = (key_of("agent.pub"), key_of("pem.pub"), key_of("other.pub"));
    assert!(agent.starts_with("agent.example.org-1:"), "{agent}");
    for (dir, key, accepted) in
        [("agent", &agent, true), ("command", &pem, true), ("agent", &pem, false), ("command", &other, false)]
    {
        let output = copy_with_nix(&scratch, dir, key, &closure.top);
        assert_eq!(output.status == 0, accepted, "{dir} {key}: {}", output.stderr);
    }
    copy_with_nix(&scratch, "plain", &agent, &closure.top).fails(1);
}

#[test]
fn the_key_of_an_agent_is_chosen_and_named() {
    let (fixture, _) = contributors();
    let scratch = &fixture.scratch;
    create_keys(scratch);
    scratch
        .sh("ssh-keygen -q -t ed25519 -N '' -C 'two words' -f words; ssh-keygen -q -t rsa -b 2048 -N '' -C rsa -f rsa
             ssh-keygen -q -t ed25519 -N '' -C absent-1 -f absent; : > empty.pub; mkdir some")
        .ok();
    let run = |keys: &str, script: &str| with_agent(scratch, keys, script);
    let name = "agent.example.org-1";
    // Each way to choose the key makes the same signatures as any other, also next to a key file and on signed text.
    let script = "cache-sign --ssh-agent id.pub < narinfos > signed
         cache-sign --ssh-agent < narinfos | cmp - signed
         cache-sign --ssh-agent=agent.example.org-1 < narinfos | cmp - signed
         cache-sign --ssh-agent agent.example.org-1 --name agent.example.org-1 < narinfos | cmp - signed
         cache-sign --ssh-agent id.pub < signed | cmp - signed
         cache-sign -k key.sec --ssh-agent < narinfos > both
         cache-sign public-key --ssh-agent id.pub > id.key; cache-sign public-key --ssh-agent > only.key; cmp id.key only.key
         cache-sign public-key --ssh-agent --name other-1 > other.key; cache-sign --ssh-agent --name other-1 < narinfos > named";
    run("id rsa", script).ok();
    for (file, key) in [("signed", "id.key"), ("both", "id.key"), ("both", "key.pub"), ("named", "other.key")] {
        scratch.sh(&format!("cache-sign verify --trusted-public-key-file {key} < {file} > /dev/null")).ok();
    }
    assert_eq!(scratch.sh("grep -c '^Sig: ' both").ok(), "6");
    for (keys, script, message) in [
        ("", "--ssh-agent", "found no key"),
        ("rsa", "--ssh-agent", "found ssh-rsa \"rsa\""),
        ("id words", "--ssh-agent", "ssh-ed25519 \"two words\""),
        ("id", "--ssh-agent absent.pub", "the key in absent.pub"),
        ("id", "--ssh-agent no-such.pub", "cannot read no-such.pub"),
        ("id", "--ssh-agent absent-1", "one key called \"absent-1\""),
        ("id", "--ssh-agent some", "one key called \"some\""),
        ("id", "--ssh-agent ''", "found an empty value"),
        ("id", "--ssh-agent empty.pub", "contains no public key"),
        ("id", "--ssh-agent --name ''", "found an empty value"),
        ("id", "--ssh-agent --name a:b", "--name: a key name must"),
        ("id", "--name x -k key.sec", "--ssh-agent"),
        ("words", "--ssh-agent", "\"two words\", is not a valid key name"),
        ("id", "--ssh-agent; unset SSH_AUTH_SOCK; cache-sign --ssh-agent", "SSH_AUTH_SOCK is not set"),
        ("id", "--ssh-agent; SSH_AUTH_SOCK= cache-sign --ssh-agent", "SSH_AUTH_SOCK is not set"),
        (
            "id",
            "--ssh-agent; SSH_AUTH_SOCK=nowhere cache-sign --ssh-agent",
            "cannot connect to the SSH agent at nowhere",
        ),
    ] {
        let script = script.split("; ").collect::<Vec<_>>().join(" < narinfos > /dev/null; ");
        let output = run(keys, &format!("cache-sign {script} < narinfos"));
        assert_eq!(output.status, 2, "{script}: {}", output.stderr);
        assert!(output.stderr.contains(message) && output.stdout.is_empty(), "{script}: {}", output.stderr);
    }
    let with_words = run("words", "cache-sign --ssh-agent 'two words' --name words-1 < narinfos");
    assert_eq!(with_words.ok().matches("Sig: words-1:").count(), 3, "{name}");
}

/// Answers every request on a new socket `agent.sock` with `answers`, in order.
fn lying_agent(scratch: &Scratch, answers: Vec<Vec<u8>>) {
    let path = scratch.path().join("agent.sock");
    drop(fs::remove_file(&path));
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        let Ok((mut socket, _)) = listener.accept() else { return };
        for answer in answers {
            let mut size = [0; 4];
            if socket.read_exact(&mut size).is_err() {
                return;
            }
            let mut request = vec![0; u32::from_be_bytes(size) as usize];
            socket.read_exact(&mut request).unwrap();
            // The client may have refused the size.
            drop(socket.write_all(&answer));
        }
    });
}

/// Returns a string as SSH encodes it.
fn ssh_string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

#[test]
fn a_hostile_agent_is_refused() {
    let (mut fixture, _) = contributors();
    fixture.scratch.env("SSH_AUTH_SOCK", fixture.path("agent.sock"));
    let key = [ssh_string(b"ssh-ed25519"), ssh_string(&[&[9_u8][..], &[0; 31]].concat())].concat();
    let identities = ssh_string(&[&[12, 0, 0, 0, 1][..], &ssh_string(&key), &ssh_string(b"lying-1")].concat());
    let signature = [ssh_string(b"ssh-ed25519"), ssh_string(&[1; 64])].concat();
    let cases = [
        (vec![ssh_string(&[5])], 2, "refused to list"),
        (vec![ssh_string(&[])], 1, "malformed response"),
        (vec![ssh_string(&[12, 255, 255, 255, 255])], 1, "malformed response"),
        (vec![ssh_string(&[12, 0, 0, 0, 1, 255, 255, 255, 255])], 1, "malformed response"),
        (vec![u32::MAX.to_be_bytes().to_vec()], 1, "announced a response of 4294967295 bytes"),
        (vec![vec![0, 0, 1, 0, 12]], 2, "cannot talk to the SSH agent"),
        (vec![], 2, "cannot talk to the SSH agent"),
        (vec![identities.clone(), ssh_string(&[5])], 2, "refused to sign"),
        (vec![identities.clone(), identities.clone()], 1, "malformed response"),
        (vec![identities.clone(), ssh_string(&[&[14][..], &ssh_string(&signature)].concat())], 1, "is not valid"),
    ];
    for (answers, status, message) in cases {
        lying_agent(&fixture.scratch, answers);
        let output = fixture.scratch.sh("cache-sign --ssh-agent < narinfos");
        assert_eq!(output.status, status, "{message}: {}", output.stderr);
        assert!(output.stderr.contains(message) && output.stdout.is_empty(), "{message}: {}", output.stderr);
        assert_eq!(output.error_lines().len(), 1, "{}", output.stderr);
    }
}

#[test]
fn a_command_signs_text_and_archives() {
    let (fixture, _) = contributors();
    let sh = |script: &str| fixture.scratch.sh(script);
    create_keys(&fixture.scratch);
    let signer = "--signer ./sign --public-key \"$(cat pem.pub)\"";
    sh(&format!("cache-sign {signer} < narinfos > signed; cache-sign {signer} < archive > signed.tar")).ok();
    for file in ["signed", "signed.tar"] {
        sh(&format!("cache-sign verify --trusted-public-key-file pem.pub < {file} > passed")).ok();
        // What is signed already is not signed again: this command cannot sign.
        sh(&format!("cache-sign --signer 'cat > /dev/null' --public-key-file pem.pub < {file} | cmp - {file}")).ok();
    }
    // The command does not get other keys.
    sh("KEY=$(cat key.sec) cache-sign --key-env KEY --signer 'env > environment; ./sign' --public-key-file pem.pub \\
          < narinfos > all; ! grep ^KEY= environment")
    .ok();
    // Nothing but the signature is added, and other signatures are kept.
    sh(&format!("sed '/^Sig: pem-1:/d' signed | cmp - narinfos; cache-sign -k key.sec {signer} < narinfos > both"))
        .ok();
    sh("cache-sign verify --threshold 2 --trusted-public-key-file pem.pub --trusted-public-key-file key.pub < both")
        .ok();
    // The order of an archive is kept: each NAR before its narinfo, narinfos after their references.
    let narinfos = |file: &str| sh(&format!("tar t < {file} | grep narinfo")).ok();
    assert_eq!(narinfos("signed.tar"), narinfos("archive"));
    let mut fixture = fixture;
    let bucket = fixture.fresh_bucket(EmbeddedS3::shared());
    fixture.scratch.sh("s3-push --no-nix \"$C\" < signed.tar").ok();
    assert_closed(&snapshot(EmbeddedS3::shared(), &bucket));
}

#[test]
fn nothing_is_written_as_signed_when_the_command_fails() {
    let (fixture, _) = contributors();
    let sh = |script: &str| fixture.scratch.sh(script);
    create_keys(&fixture.scratch);
    let cases = [
        ("exit 3", 2, "ended without a signature: exit status: 3"),
        ("true", 2, "ended without a signature: exit status: 0"),
        ("kill -9 $$", 2, "ended without a signature: signal: 9"),
        ("no-such-command", 2, "exit status: 127"),
        ("./sign | head -n 2", 2, "ended without a signature"),
        ("head -n 1 | ./sign", 2, "ended without a signature"),
        ("cat", 1, "is not a signature of 64 bytes in base64"),
        ("yes \"\"", 1, "a line of 0 bytes"),
        ("yes garbage", 1, "a line of 7 bytes"),
        ("cat /dev/zero", 1, "a line of more than 4096 bytes"),
        ("./sign other.pem", 1, "is not valid for pem-1"),
        ("./sign | tac", 1, "is not valid for pem-1"),
        ("base64 | ./sign", 1, "is not valid for pem-1"),
        ("./sign; echo more", 2, "wrote more lines than it read"),
        ("./sign; exit 5", 2, "failed: exit status: 5"),
    ];
    for (command, status, message) in cases {
        for (input, verify) in [("narinfos", "text"), ("archive", "archive")] {
            let output = sh(&format!(
                "cache-sign --signer '{command}' --public-key-file pem.pub < {input} > out 2> error || s=$?; cat error >&2; exit ${{s:-0}}"
            ));
            assert_eq!(output.status, status, "{command}: {}", output.stderr);
            assert!(output.stderr.contains(message), "{command}: {}", output.stderr);
            // What was written is signed, and the stream is truncated.
            let output = sh("cache-sign verify --trusted-public-key-file pem.pub < out > passed");
            let stderr = output.fails(1);
            assert!(!stderr.contains("not trusted"), "{command}, {verify}: {stderr}");
        }
    }
    for (options, message) in [
        ("--signer ./sign", "--public-key"),
        ("--signer '' --public-key-file pem.pub", "found an empty value"),
        ("--signer ./sign --public-key ''", "found an empty value"),
        ("--signer ./sign --public-key-file /dev/null", "contains no public key"),
        ("--signer ./sign --public-key-file two.pub", "expected one public key, found 2"),
        ("--public-key-file pem.pub -k key.sec", "--signer"),
    ] {
        let output = sh(&format!("cat pem.pub other.pub > two.pub; cache-sign {options} < narinfos"));
        assert!(output.fails(2).contains(message) && output.stdout.is_empty(), "{options}: {}", output.stderr);
    }
}

/// Writes `count` narinfos with fingerprints of about `size` bytes to `many`.
fn write_many(fixture: &Fixture, count: usize, size: usize) {
    let narinfo = fs::read_to_string(fixture.path("narinfos")).unwrap();
    let narinfo = narinfo.split("\n\n").next().unwrap().trim();
    let reference = |number: usize| store_path(&format!("ref-{number}"), 1)["/nix/store/".len()..].to_owned();
    let path_size = reference(0).len() + "/nix/store/,".len();
    let mut references: Vec<String> = (0..size / path_size).map(reference).collect();
    references.sort_unstable();
    let references = references.join(" ");
    let with_size = |number: usize| {
        let lines = narinfo.lines().map(|line| match line.split_once(':') {
            Some(("NarSize", _)) => format!("NarSize: {}", number + 1),
            Some(("References", _)) => format!("References: {references}"),
            _ => line.to_owned(),
        });
        lines.collect::<Vec<_>>().join("\n") + "\n"
    };
    fixture.scratch.write("many", (0..count).map(with_size).collect::<Vec<_>>().join("\n"));
}

/// The command may read all of its input before it answers, and answer in blocks.
#[test]
fn many_fingerprints_are_in_flight() {
    let (fixture, _) = contributors();
    create_keys(&fixture.scratch);
    write_many(&fixture, 100, 2000);
    for command in ["tac | tac | ./sign", "./sign | tac | tac"] {
        fixture
            .scratch
            .sh(&format!(
                "cache-sign --signer '{command}' --public-key-file pem.pub < many > signed
                 cache-sign verify --trusted-public-key-file pem.pub < signed | cmp - signed
                 sed '/^Sig: pem-1:/d' signed | cmp - many"
            ))
            .ok();
    }
}

#[test]
fn paths_beyond_the_limit_of_the_command_are_named() {
    let (fixture, _) = contributors();
    create_keys(&fixture.scratch);
    let sh = |script: &str| fixture.scratch.sh(script);
    // The fingerprints of `app` and `top` contain references.
    let limit = 150;
    let signer = format!("cache-sign --signer ./sign --public-key-file pem.pub --signer-max-bytes {limit}");
    for input in ["narinfos", "archive"] {
        let output = sh(&format!("{signer} < {input} > out"));
        let stderr = output.fails(1);
        for (path, is_named) in
            [(&fixture.closure.lib, false), (&fixture.closure.app, true), (&fixture.closure.top, true)]
        {
            assert_eq!(stderr.contains(&format!("{path}: its fingerprint has")), is_named, "{input}: {stderr}");
        }
        assert!(stderr.contains("2 fingerprints have more than 150 bytes"), "{stderr}");
        sh("cache-sign verify --trusted-public-key-file pem.pub < out > passed").fails(1);
    }
    sh(&format!("{signer}0 < narinfos | cache-sign verify --trusted-public-key-file pem.pub > /dev/null")).ok();
    // An agent has a limit too.
    write_many(&fixture, 1, 300_000);
    let output = with_agent(&fixture.scratch, "id", "cache-sign --ssh-agent < many");
    assert!(output.fails(1).contains("more than an SSH agent accepts"), "{}", output.stderr);
}

/// A cache that was published without signatures is signed with the lines of README.md and the help.
#[test]
fn an_unsigned_cache_is_signed() {
    let (mut fixture, _) = contributors();
    let s3 = EmbeddedS3::shared();
    let bucket = fixture.fresh_bucket(s3);
    let sh = |script: &str| fixture.scratch.sh(script);
    sh("s3-push --no-nix \"$C\" < archive").ok();
    // Without the option, the pipeline fails, changes nothing, and the error names the option.
    let before = snapshot(s3, &bucket);
    for pull in ["s3-pull --narinfo --all", "s3-pull --narinfo -r", "s3-pull --archive --all"] {
        let path = if pull.ends_with("-r") { "\"$TOP\"" } else { "" };
        let output = sh(&format!(
            "{pull} --trusted-public-key \"$KEY\" \"$C\" {path} | cache-sign -k key.sec | s3-push --no-nix \"$C\""
        ));
        assert_ne!(output.status, 0, "{pull}");
        assert!(
            output.stderr.contains("hint: ") && output.stderr.contains("--no-verify-signatures"),
            "{}",
            output.stderr
        );
        assert_eq!(snapshot(s3, &bucket), before, "{pull}");
    }
    // A pull that does not feed cache-sign gets no hint to skip the verification.
    let output = sh("s3-pull -r --root out \"$C\" \"$TOP\"");
    assert!(!output.fails(1).contains("--no-verify-signatures"), "{}", output.stderr);
    let readme = fs::read_to_string(cache_tests::repository().join("README.md")).unwrap();
    let lines: Vec<&str> = readme.lines().filter(|line| line.contains("--no-verify-signatures \"$C\" |")).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    sh(lines[0]).ok();
    let after = snapshot(s3, &bucket);
    assert_closed(&after);
    for key in narinfo_keys(&after) {
        assert_eq!(Fields::parse(&after[key]).all("Sig").len(), 1, "{key}");
    }
    fixture.assert_pulls("$C", "--trusted-public-key \"$KEY\"");
    // The line that rotates a key works now.
    sh("cache-sign keygen new-1 new.sec new.pub").ok();
    sh("s3-pull --narinfo --all --trusted-public-key \"$KEY\" \"$C\" | cache-sign -k new.sec | s3-push \"$C\"").ok();
    fixture.assert_pulls("$C", "--trusted-public-key-file new.pub");
}
