//! What `cache-policy` prints, on two real servers with real users: allowed is what its help says, and nothing else.

use std::fs;

use crate::fixtures::bucket::{Fields, narinfo_keys, snapshot};
use crate::fixtures::calls::{Answer, CALLS, Caller};
use crate::fixtures::site;
use crate::fixtures::site::Site;
use cache_sign::nix_conf::Settings;
use cache_tests::nix;
use cache_tests::{Credentials, Minio, Outcome, Random, Scratch, Versitygw};
use serde_json::Value;

/// The documents of the table in `cache-policy --help`, each with the answers to all calls.
fn table_of_help(scratch: &Scratch) -> Vec<(String, [Answer; 10])> {
    let help = scratch.sh("cache-policy --help").ok();
    let lines = help.lines().skip_while(|line| !line.trim_start().starts_with("document "));
    let mut lines = lines.take_while(|line| !line.trim().is_empty());
    let columns: Vec<&str> = lines.next().unwrap().split_whitespace().skip(1).collect();
    assert_eq!(columns, CALLS);
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (flags, answers) = words.split_at(words.len() - CALLS.len());
        let answers: Vec<Answer> = answers
            .iter()
            .map(|word| match *word {
                "yes" => Answer::Yes,
                "no" => Answer::No,
                other => panic!("{other} in {line}"),
            })
            .collect();
        (flags.join(" "), answers.try_into().unwrap())
    };
    let rows: Vec<_> = lines.map(row).collect();
    assert_eq!(rows.len(), 4);
    rows
}

fn document(scratch: &Scratch, arguments: &str) -> String {
    let document = scratch.sh(&format!("cache-policy {arguments}")).ok();
    assert_eq!(scratch.sh(&format!("cache-policy {arguments}")).ok(), document, "the same bytes each time");
    document
}

const NOTHING: [Answer; 10] = [Answer::No; 10];

/// What a server that cannot do a call makes of the row; a prefix takes the lifecycle away.
fn expected(mut row: [Answer; 10], found: [Answer; 10], prefix: &str) -> [Answer; 10] {
    if !prefix.is_empty() {
        row[8] = Answer::No;
    }
    for (answer, found) in row.iter_mut().zip(found) {
        if found == Answer::Never {
            *answer = Answer::Never;
        }
    }
    row
}

/// Prints a row and compares it with the one that is expected.
#[track_caller]
fn check(server: &str, document: &str, who: &str, found: [Answer; 10], wanted: [Answer; 10]) {
    let words: Vec<String> =
        found.iter().zip(CALLS).map(|(a, call)| format!("{:w$}", a.word(), w = call.len())).collect();
    println!("{server:9} {document:36} {who:9} {}", words.join(" "));
    assert_eq!(found, wanted, "{server}, {document}, {who}: {CALLS:?}");
}

fn print_head(server: &str) {
    println!("\n{server:9} {:36} {:9} {}", "document", "user", CALLS.join(" "));
}

/// Nobody gets at what lies beside the prefix.
#[track_caller]
fn assert_nothing_beside(caller: &Caller, owner: &Caller, bucket: &str) {
    for call in ["GET", "LIST", "PUT", "ABORT", "DELETE"] {
        assert_eq!(caller.call(call, owner, bucket, "beside/"), Err(Answer::No), "{call} beside the prefix");
    }
}

#[test]
fn minio_allows_what_help_says() {
    let Some(minio) = Minio::shared() else { return };
    let scratch = Scratch::new();
    let (server, endpoint) = ("MinIO", minio.endpoint());
    let owner = Caller::new(&endpoint, Some(&minio.root()));
    let anonymous = Caller::new(&endpoint, None);
    let unrelated = document(&scratch, "--read-only --identity unrelated-bucket");
    let stranger = Caller::new(&endpoint, Some(&minio.add_user(&unrelated)));
    print_head(server);
    for (flags, row) in table_of_help(&scratch) {
        for prefix in ["", "some/where/"] {
            let bucket = minio.make_bucket();
            let place = format!("s3://{bucket}/{prefix}");
            let shown = format!("{flags}{}", if prefix.is_empty() { "" } else { " PREFIX" });
            if flags.starts_with("--read-only") {
                minio.set_bucket_policy(&bucket, &document(&scratch, &format!("{flags} '{place}'")));
                let found = anonymous.row(&owner, &bucket, prefix);
                check(server, &shown, "anonymous", found, expected(row, found, prefix));
                check(server, &shown, "stranger", stranger.row(&owner, &bucket, prefix), NOTHING);
                if !prefix.is_empty() {
                    assert_nothing_beside(&anonymous, &owner, &bucket);
                }
            }
            let bucket = minio.make_bucket();
            let place = format!("s3://{bucket}/{prefix}");
            let identity = if flags.starts_with("--read-only") { " --identity" } else { "" };
            let shown = format!("{flags}{identity}{}", if prefix.is_empty() { "" } else { " PREFIX" });
            let user = minio.add_user(&document(&scratch, &format!("{flags}{identity} '{place}'")));
            let user = Caller::new(&endpoint, Some(&user));
            let found = user.row(&owner, &bucket, prefix);
            check(server, &shown, "named", found, expected(row, found, prefix));
            check(server, &shown, "stranger", stranger.row(&owner, &bucket, prefix), NOTHING);
            check(server, &shown, "anonymous", anonymous.row(&owner, &bucket, prefix), NOTHING);
            if !prefix.is_empty() {
                assert_nothing_beside(&user, &owner, &bucket);
            }
        }
    }
}

#[test]
fn versitygw_allows_what_help_says() {
    let Some(gateway) = Versitygw::shared() else { return };
    let scratch = Scratch::new();
    let (server, endpoint) = ("versitygw", gateway.endpoint());
    let owner = Caller::new(&endpoint, Some(&gateway.root()));
    let anonymous = Caller::new(&endpoint, None);
    let named = gateway.add_user();
    let user = Caller::new(&endpoint, Some(&named));
    let stranger = Caller::new(&endpoint, Some(&gateway.add_user()));
    print_head(server);
    for (flags, row) in table_of_help(&scratch) {
        for prefix in ["", "some/where/"] {
            let shown = |more: &str| format!("{flags}{more}{}", if prefix.is_empty() { "" } else { " PREFIX" });
            if flags.starts_with("--read-only") {
                let bucket = owner.make_bucket();
                owner.set_policy(&bucket, &document(&scratch, &format!("{flags} s3://{bucket}/{prefix}"))).unwrap();
                for (who, caller) in [("anonymous", &anonymous), ("stranger", &stranger)] {
                    let found = caller.row(&owner, &bucket, prefix);
                    check(server, &shown(""), who, found, expected(row, found, prefix));
                }
            }
            let bucket = owner.make_bucket();
            let arguments = format!("{flags} --principal-key-id {} s3://{bucket}/{prefix}", named.access_key);
            owner.set_policy(&bucket, &document(&scratch, &arguments)).unwrap();
            let found = user.row(&owner, &bucket, prefix);
            check(server, &shown(" --principal-key-id"), "named", found, expected(row, found, prefix));
            for (who, caller) in [("stranger", &stranger), ("anonymous", &anonymous)] {
                let found = caller.row(&owner, &bucket, prefix);
                check(server, &shown(" --principal-key-id"), who, found, expected(NOTHING, found, prefix));
            }
            if !prefix.is_empty() {
                assert_nothing_beside(&user, &owner, &bucket);
            }
        }
    }
}

#[test]
fn conditions_are_looked_at() {
    let Some(minio) = Minio::shared() else { return };
    let scratch = Scratch::new();
    let owner = Caller::new(&minio.endpoint(), Some(&minio.root()));
    let of = |flags: &str| {
        let bucket = minio.make_bucket();
        let user = minio.add_user(&document(&scratch, &format!("--upload {flags} {bucket}")));
        let user = Caller::new(&minio.endpoint(), Some(&user));
        ["GET", "PUT", "LIST"].map(|call| user.call(call, &owner, &bucket, "").is_ok())
    };
    assert_eq!(of("--source-ip 127.0.0.0/8"), [true; 3]);
    assert_eq!(of("--source-ip 192.0.2.0/24"), [false; 3]);
    assert_eq!(of("--source-ip 192.0.2.0/24 --source-ip 127.0.0.1"), [true; 3]);
    // This server has no TLS.
    assert_eq!(of("--require-tls"), [false; 3]);
}

/// The document without one action.
fn without(document: &str, action: &str) -> String {
    let mut document: Value = serde_json::from_str(document).unwrap();
    let mut found = false;
    let statements = document["Statement"].as_array_mut().unwrap();
    for statement in statements.iter_mut() {
        let actions = statement["Action"].as_array_mut().unwrap();
        let before = actions.len();
        actions.retain(|other| other != action);
        found |= actions.len() < before;
    }
    statements.retain(|statement| !statement["Action"].as_array().unwrap().is_empty());
    assert!(found, "{action} is not in the document");
    document.to_string()
}

/// A site whose closure and one large path wait to be pushed, by somebody without `action`.
fn pusher_without(minio: &Minio, action: Option<&str>) -> (Site, String) {
    let mut site = Site::new();
    let bucket = minio.make_bucket();
    let upload = document(&site.scratch, &format!("--upload {bucket}"));
    let user = minio.add_user(&action.map_or(upload.clone(), |action| without(&upload, action)));
    user.apply(&mut site.scratch);
    site.scratch.env("C", minio.cache_url(&bucket));
    let large = cache_tests::store_path("large", site::random_seed());
    fs::write(site::below(&site.path("root"), &large), Random::new(site::random_seed()).bytes(11 << 20)).unwrap();
    site.scratch.env("LARGE", &large);
    site.scratch
        .sh("nar-pack --root root --no-nix --export $LARGE | narinfo-gen --no-nix --archive \
            | cache-sign -k key.sec > large")
        .ok();
    (site, bucket)
}

const LARGE: &str = "s3-push --no-nix --json --part-size 5MiB --memory 16MiB \"$C\" < large";
/// An archive of which the NAR is not what its narinfo says: the upload is given up.
const DAMAGED: &str = "cp large bad; printf 'xxxxxxxx' | dd of=bad bs=1 seek=8000000 conv=notrunc status=none; \
     s3-push --no-nix --part-size 5MiB --memory 16MiB \"$C\" < bad";
const ROTATE: &str = "s3-pull --narinfo --all \"$C\" | cache-sign -k key.sec | s3-push \"$C\"";

/// Takes each permission away from the upload policy, and shows the command that misses it.
#[test]
fn a_push_needs_every_permission_and_names_the_one_that_it_lacks() {
    let Some(minio) = Minio::shared() else { return };
    let (site, bucket) = pusher_without(minio, None);
    for script in [site::PUBLISH, LARGE, ROTATE, "s3-pull -r --root out \"$C\" \"$TOP\""] {
        let outcome = site.scratch.sh(script);
        outcome.ok();
        assert!(!outcome.stderr.contains("s3:"), "nothing is missing: {}", outcome.stderr);
    }
    site.scratch.sh(DAMAGED).fails(1);
    assert_eq!(narinfo_keys(&snapshot(minio, &bucket)).len(), 4);
    let cases: [(&str, &str, i32); 6] = [
        ("s3:PutObject", site::PUBLISH, 2),
        ("s3:GetObject", "s3-pull -r --root out \"$C\" \"$TOP\"", 1),
        ("s3:ListBucket", "s3-pull --narinfo --all \"$C\" > narinfos", 2),
        ("s3:AbortMultipartUpload", DAMAGED, 1),
        // These two only cost bytes.
        ("s3:ListBucketMultipartUploads", LARGE, 0),
        ("s3:ListMultipartUploadParts", LARGE, 0),
    ];
    println!("\n{:30} {:60} status, message", "without", "command");
    for (action, script, status) in cases {
        let (site, bucket) = pusher_without(minio, Some(action));
        if action == "s3:ListMultipartUploadParts" {
            // Somebody began an upload of the same NAR.
            let archive = site.scratch.sh("tar xf large --wildcards '*.narinfo' -O").ok();
            let key = Fields::parse(archive.as_bytes()).one("URL").to_owned();
            Caller::new(&minio.endpoint(), Some(&minio.root())).begin(&bucket, &key).unwrap();
        }
        let outcome = site.scratch.sh(script);
        let named = outcome.stderr.lines().find(|line| line.contains(action)).unwrap_or("-");
        let shown: String = script.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(60).collect();
        println!("{action:30} {shown:60} {}, {named}", outcome.status);
        assert_eq!(outcome.status, status, "{action}: {}", outcome.stderr);
        let whole_word = |line: &str| {
            line.match_indices(action)
                .any(|(at, _)| !line[at + action.len()..].starts_with(|c: char| c.is_ascii_alphanumeric()))
        };
        assert!(outcome.stderr.lines().any(whole_word), "{action} is not named: {}", outcome.stderr);
    }
}

/// Reading takes one permission, through either door, and says which when it is not there.
#[test]
fn a_pull_needs_get_object_alone() {
    let Some(minio) = Minio::shared() else { return };
    let (mut site, bucket) = pusher_without(minio, None);
    site.scratch.sh(site::PUBLISH).ok();
    let read = document(&site.scratch, &format!("--read-only --identity {bucket}"));
    assert_eq!(read.matches("s3:").count(), 1 + read.matches("arn:aws:s3:").count(), "one action: {read}");
    minio.add_user(&read).apply(&mut site.scratch);
    site.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    site.assert_trees("out");
    let http = format!("s3-pull -r --root web '{}' \"$TOP\"", minio.http_url(&bucket));
    let said = site.scratch.sh(&http).fails(1);
    assert!(said.contains("s3:GetObject"), "{said}");
    minio.set_bucket_policy(&bucket, &document(&site.scratch, &format!("--read-only {bucket}")));
    site.scratch.sh(&http).ok();
    site.assert_trees("web");
    let said = site.scratch.sh("s3-pull --list --all \"$C\"").fails(2);
    assert!(said.contains("s3:ListBucket"), "{said}");
}

/// Push and pull on versitygw, with bucket policies that name who may.
#[test]
fn the_tools_work_on_versitygw_with_these_policies() {
    let Some(gateway) = Versitygw::shared() else { return };
    let mut site = Site::new();
    let owner = Caller::new(&gateway.endpoint(), Some(&gateway.root()));
    let (user, bucket): (Credentials, String) = (gateway.add_user(), owner.make_bucket());
    site.scratch.env("C", format!("s3://{bucket}?endpoint={}&scheme=http&region=us-east-1", gateway.endpoint()));
    user.apply(&mut site.scratch);
    let said = site.scratch.sh(site::PUBLISH).fails(2);
    assert!(said.contains("s3:PutObject"), "{said}");
    let upload = format!("--upload --principal-key-id {} {bucket}", user.access_key);
    owner.set_policy(&bucket, &document(&site.scratch, &upload)).unwrap();
    site.scratch.sh(site::PUBLISH).ok();
    site.scratch.sh("s3-pull -r --root out \"$C\" \"$TOP\"").ok();
    site.assert_trees("out");
    owner.set_policy(&bucket, &document(&site.scratch, &format!("--read-only {bucket}"))).unwrap();
    let http = format!("http://{}/{bucket}", gateway.endpoint());
    site.scratch.sh(&format!("s3-pull -r --root web '{http}' \"$TOP\"")).ok();
    site.assert_trees("web");
}

/// Takes each permission away from the administration policy, and shows what misses it. Our tools name the permission;
/// of other clients, mc, the server says what it says.
#[test]
fn an_admin_needs_every_permission() {
    let Some(minio) = Minio::shared() else { return };
    let mut site = Site::new();
    let bucket = minio.make_bucket();
    let owner = Caller::new(&minio.endpoint(), Some(&minio.root()));
    minio.root().apply(&mut site.scratch);
    site.scratch.env("C", minio.cache_url(&bucket)).env("BUCKET", &bucket);
    site.scratch.env("MC_CONFIG_DIR", site.path("mc"));
    site.scratch.sh(site::PUBLISH).ok();
    let admin = document(&site.scratch, &format!("--admin {bucket}"));
    // MinIO has no rule for unfinished uploads, so the rule does something else besides.
    let mut lifecycle: Value =
        serde_json::from_str(&document(&site.scratch, &format!("--lifecycle 7 {bucket}"))).unwrap();
    lifecycle["Rules"][0]["Expiration"] = serde_json::json!({ "Days": 400 });
    fs::write(site.path("lifecycle.json"), lifecycle.to_string()).unwrap();
    let cases = [
        ("s3:GetObject", "s3-pull -r --root $(mktemp -d) \"$C\" \"$TOP\"", 1),
        ("s3:ListBucket", "s3-pull --list --all \"$C\"", 2),
        ("s3:DeleteObject", "mc rm admin/$BUCKET/log/old", 1),
        ("s3:PutLifecycleConfiguration", "mc ilm import admin/$BUCKET < lifecycle.json", 1),
        ("s3:GetLifecycleConfiguration", "mc ilm export admin/$BUCKET", 1),
        ("s3:ListBucketMultipartUploads", "mc ls --incomplete admin/$BUCKET/", 1),
        ("s3:AbortMultipartUpload", "(AbortMultipartUpload, by the SDK)", 1),
        ("s3:ListMultipartUploadParts", "(ListParts, by the SDK)", 1),
    ];
    let parsed: Value = serde_json::from_str(&admin).unwrap();
    let actions =
        parsed["Statement"].as_array().unwrap().iter().flat_map(|statement| statement["Action"].as_array().unwrap());
    assert_eq!(actions.count(), cases.len(), "each action has its case");
    println!("\n{:30} {:60} status, message", "without", "command");
    let whole = minio.add_user(&admin);
    for (action, script, status) in cases {
        let reduced = minio.add_user(&without(&admin, action));
        for (user, wanted) in [(&whole, 0), (&reduced, status)] {
            owner.put(&bucket, "log/old").unwrap();
            if script.starts_with('(') {
                let caller = Caller::new(&minio.endpoint(), Some(user));
                let found = if action == "s3:AbortMultipartUpload" {
                    caller.call("ABORT", &owner, &bucket, "")
                } else {
                    let id = owner.begin(&bucket, "log/unfinished").unwrap();
                    caller.list_parts(&bucket, "log/unfinished", &id)
                };
                assert_eq!(found.is_ok(), wanted == 0, "{action}: {found:?}");
                if wanted != 0 {
                    println!("{action:30} {script:60} 403");
                }
                continue;
            }
            user.apply(&mut site.scratch);
            let host = format!("http://{}:{}@{}", user.access_key, user.secret_key, minio.endpoint());
            site.scratch.env("MC_HOST_admin", host);
            let outcome = site.scratch.sh(script);
            assert_eq!(outcome.status, wanted, "{action}, {script}: {}", outcome.stderr);
            if wanted != 0 {
                let said = outcome.stderr.trim();
                println!("{action:30} {script:60} {}, {said}", outcome.status);
                let named = if script.starts_with("s3-") { action } else { "Access Denied" };
                assert!(said.contains(named), "{action}: {said}");
            }
        }
    }
}

/// What the documents that are no policies say reaches the servers that know of such things.
#[test]
fn configurations_are_accepted_by_the_servers_that_have_them() {
    let scratch = Scratch::new();
    if let Some(minio) = Minio::shared() {
        let bucket = minio.make_bucket();
        let mut scratch = Scratch::new();
        minio.mc_alias(&mut scratch, "cache");
        let rule = document(&scratch, &format!("--lifecycle 7 s3://{bucket}/nar"));
        let import = |text: &str| scratch.sh_with_input(&format!("mc ilm import cache/{bucket}"), text.as_bytes());
        // Read, and refused for the one thing that MinIO has not.
        let said = import(&rule).fails(1);
        assert!(said.contains("did not validate"), "{said}");
        let mut more: Value = serde_json::from_str(&rule).unwrap();
        more["Rules"][0]["Expiration"] = serde_json::json!({ "Days": 400 });
        import(&more.to_string()).ok();
        let set: Value = serde_json::from_str(&scratch.sh(&format!("mc ilm export cache/{bucket}")).ok()).unwrap();
        println!("lifecycle on MinIO: {set}");
        assert_eq!(set["Rules"][0]["ID"], "abort-incomplete-uploads");
        assert_eq!(
            (&set["Rules"][0]["Status"], &set["Rules"][0]["Filter"]["Prefix"]),
            (&"Enabled".into(), &"nar/".into())
        );
        // The reader of policies gets as far as the provider's own keys, which it does not know; it names one, any.
        let trust = "--oidc-trust token.actions.githubusercontent.com --account 123456789012 --subject repo:a/b:ref:refs/heads/main";
        fs::write(scratch.path().join("trust.json"), document(&scratch, trust)).unwrap();
        let said = scratch.sh("mc admin policy create cache trust trust.json").fails(1);
        assert!(said.contains("invalid condition key 'token.actions.githubusercontent.com:"), "{said}");
    }
    if let Some(gateway) = Versitygw::shared() {
        let owner = Caller::new(&gateway.endpoint(), Some(&gateway.root()));
        let bucket = owner.make_bucket();
        let cors = document(&scratch, "--cors --origin https://example.org");
        owner.set_cors(&bucket, &serde_json::from_str(&cors).unwrap()).unwrap();
        let (host, port) = (gateway.endpoint(), gateway.endpoint());
        let (host, port) = (host.split_once(':').unwrap().0, port.split_once(':').unwrap().1);
        let ask = |origin: &str| {
            let request = format!(
                "OPTIONS /{bucket}/nix-cache-info HTTP/1.1\\r\\nHost: {host}:{port}\\r\\nOrigin: {origin}\\r\\n\
                 Access-Control-Request-Method: GET\\r\\nAccess-Control-Request-Headers: range\\r\\nConnection: close\\r\\n\\r\\n"
            );
            let answer = scratch.sh(&format!("exec 3<>/dev/tcp/{host}/{port}; printf '{request}' >&3; cat <&3")).ok();
            answer.to_lowercase()
        };
        let allowed = ask("https://example.org");
        println!("CORS on versitygw: {allowed}");
        assert!(allowed.contains("access-control-allow-origin: https://example.org"), "{allowed}");
        assert!(!ask("https://elsewhere.example.org").contains("access-control-allow-origin"));
    }
}

#[test]
fn configurations_and_misplaced_flags() {
    let mut scratch = Scratch::new();
    let key = site::make_key(&scratch, "key");
    scratch.env("KEY", key);
    for arguments in [
        "--lifecycle 7 s3://my-cache/prefix",
        "--lifecycle 7",
        "--cors --origin https://example.org",
        "--oidc-trust token.actions.githubusercontent.com --account 123456789012 --subject repo:a/b:ref:refs/heads/main",
        "--admin --principal 123456789012 --require-tls my-cache",
        "--upload --partition aws-cn --vpc-endpoint vpce-1a2b my-cache",
        "--upload 's3://my-cache?region=us-gov-west-1'",
    ] {
        let parsed: Value = serde_json::from_str(&document(&scratch, arguments)).unwrap();
        assert!(parsed.is_object(), "{arguments}");
    }
    let partition = document(&scratch, "--upload 's3://my-cache?region=us-gov-west-1'");
    assert!(partition.contains("arn:aws-us-gov:s3:::my-cache/*"), "{partition}");
    for arguments in [
        "--cors my-cache",
        "--lifecycle 0 my-cache",
        "--lifecycle 7 --require-tls my-cache",
        "--upload --allow-list my-cache",
        "--upload --identity my-cache",
        "--read-only --upload my-cache",
        "--nix-conf my-cache",
        "--nix-conf --trusted-public-key x my-cache",
        "--nix-conf --trusted-public-key x --write a --remove b my-cache",
        "--oidc-trust example.org",
        "--upload",
        "--upload 192.0.2.1",
        "--upload s3://192.0.2.1",
        "--upload --source-ip 192.0.2.1/24 my-cache",
        "--upload --partition aws-cn 's3://my-cache?region=eu-west-2'",
        "--read-only --principal arn:aws-cn:iam::123456789012:root 's3://my-cache?region=eu-west-2'",
        "--lifecycle 7 's3://my-cache/a*'",
        "--oidc-trust example.org:443 --account 123456789012 --subject a:b/c",
        "--nix-conf --trusted-public-key \"$KEY\" 'https://example.org?token=hidden'",
    ] {
        let said = scratch.sh(&format!("cache-policy {arguments}"));
        let bad_key = arguments.contains("--trusted-public-key x my-cache");
        assert!(said.status == if bad_key { 1 } else { 2 } && said.stdout.is_empty(), "{arguments}: {}", said.stderr);
        assert!(!said.stderr.contains("hidden"), "{arguments}: {}", said.stderr);
        assert_eq!(said.stderr.lines().count(), 1, "{arguments}: {}", said.stderr);
    }
}

/// What help says of MinIO.
#[test]
fn minio_has_no_rule_for_unfinished_uploads() {
    let Some(minio) = Minio::shared() else { return };
    let owner = Caller::new(&minio.endpoint(), Some(&minio.root()));
    assert!(!owner.abort_after(&minio.make_bucket(), 7));
}

// ---- nix.conf ----

const BEFORE: &str = "# hand-written\nsubstituters =   # none of the public ones\n!include machine.conf\n\
     extra-substituters = file:///nowhere/at/all\nbuild-users-group =\nsandbox = false\n\
     extra-experimental-features = nix-command";

fn with_conf(script: &str) -> String {
    format!("unset NIX_CONFIG; export NIX_CONF_DIR=$PWD/etc; {script}")
}

#[test]
fn nix_conf_is_merged_in_place_and_a_real_nix_substitutes() {
    if !nix::available() {
        return;
    }
    let Some(minio) = Minio::shared() else { return };
    let mut scratch = Scratch::new();
    let closure = nix::build(&scratch);
    site::make_key(&scratch, "key");
    let bucket = minio.make_bucket();
    minio.root().apply(&mut scratch);
    scratch.env("C", minio.cache_url(&bucket)).env("TOP", &closure.top);
    scratch.sh("nar-pack --export -r $TOP | narinfo-gen --archive | cache-sign -k key.sec | s3-push \"$C\"").ok();
    minio.set_bucket_policy(&bucket, &document(&scratch, &format!("--read-only {bucket}")));
    let conf = scratch.path().join("etc/nix.conf");
    fs::create_dir(scratch.path().join("etc")).unwrap();
    fs::write(scratch.path().join("etc/machine.conf"), "max-jobs = 1\n").unwrap();
    fs::write(&conf, BEFORE).unwrap();
    scratch.sh("chmod 640 etc/nix.conf; ln -s etc/nix.conf link.conf").ok();
    let write = "cache-policy --nix-conf --https --trusted-public-key-file key.pub --write link.conf \"$C\"";
    scratch.sh(write).ok();
    let after = fs::read_to_string(&conf).unwrap();
    println!("--- before\n{BEFORE}\n--- after\n{after}\n---");
    assert!(after.starts_with(&format!("{BEFORE}\n")), "nothing else is touched");
    scratch.sh(write).ok();
    assert_eq!(fs::read_to_string(&conf).unwrap(), after, "twice gives the same file");
    assert_eq!(
        scratch.sh("stat -c %a etc/nix.conf; readlink link.conf; ls -A etc").ok(),
        "640\netc/nix.conf\nmachine.conf\nnix.conf"
    );
    let shown: Value = serde_json::from_str(&scratch.sh(&with_conf("nix show-config --json")).ok()).unwrap();
    let url = minio.http_url(&bucket);
    let listed = |name: &str| shown[name]["value"].as_array().unwrap().clone();
    assert!(listed("substituters").iter().any(|value| *value == url.as_str()), "{:?}", listed("substituters"));
    let key = scratch.sh("cat key.pub").ok();
    assert!(listed("trusted-public-keys").iter().any(|value| *value == key.as_str()));
    assert_eq!(shown["max-jobs"]["value"], 1, "the include is still read");
    let store = nix::fresh_store(&scratch);
    scratch.sh(&with_conf(&format!("NIX_REMOTE={store} nix-store -r $TOP"))).ok();
    let program = format!("GREETING_ROOT={store} {store}{}/bin/app", closure.app);
    assert_eq!(scratch.sh(&program).ok(), closure.greeting);
    scratch.sh("cache-policy --nix-conf --https --remove link.conf \"$C\"").ok();
    assert_eq!(fs::read_to_string(&conf).unwrap(), BEFORE, "byte for byte");
    let store = nix::fresh_store(&scratch);
    assert_ne!(scratch.sh(&with_conf(&format!("NIX_REMOTE={store} nix-store -r $TOP"))).status, 0);
}

/// The same over `s3://`: a real Nix takes the URL from the file, and reads the bucket if it was built with S3.
#[test]
fn nix_conf_names_a_bucket_and_a_real_nix_reads_it() {
    if !nix::available() {
        return;
    }
    let Some(minio) = Minio::shared() else { return };
    let mut scratch = Scratch::new();
    let closure = nix::build(&scratch);
    let key = site::make_key(&scratch, "key");
    let bucket = minio.make_bucket();
    minio.root().apply(&mut scratch);
    let url = minio.cache_url(&bucket);
    scratch.env("C", &url).env("TOP", &closure.top);
    scratch.sh("nar-pack --export -r $TOP | narinfo-gen --archive | cache-sign -k key.sec | s3-push \"$C\"").ok();
    let read = document(&scratch, &format!("--read-only --identity {bucket}"));
    minio.add_user(&read).apply(&mut scratch);
    fs::create_dir(scratch.path().join("etc")).unwrap();
    let conf = scratch.path().join("etc/nix.conf");
    fs::write(&conf, BEFORE).unwrap();
    scratch
        .sh("cache-policy --nix-conf --trusted-public-key-file key.pub --write etc/nix.conf \"$C&priority=10\"")
        .ok();
    scratch.sh("cache-policy --nix-conf --trusted-public-key-file key.pub --write etc/nix.conf \"$C\"").ok();
    println!("--- after\n{}\n---", fs::read_to_string(&conf).unwrap());
    let shown: Value = serde_json::from_str(&scratch.sh(&with_conf("nix show-config --json")).ok()).unwrap();
    assert_eq!(shown["substituters"]["value"], serde_json::json!(["file:///nowhere/at/all", url]));
    let keys = shown["trusted-public-keys"]["value"].as_array().unwrap();
    assert!(keys.iter().any(|listed| *listed == key.as_str()));
    // The reader of ours that takes its keys from the same file.
    scratch.sh("s3-pull -r --root out --nix-conf etc/nix.conf \"$C\" \"$TOP\"").ok();
    let asked = scratch.sh(&with_conf("nix path-info --store \"$C\" $TOP"));
    if asked.stderr.contains("don't know how to open Nix store 's3://") {
        println!("NOT RUN: this Nix was built without S3, and does not read {url}");
        return;
    }
    asked.ok();
    let store = nix::fresh_store(&scratch);
    scratch.sh(&with_conf(&format!("NIX_REMOTE={store} nix-store -r $TOP"))).ok();
    let program = format!("GREETING_ROOT={store} {store}{}/bin/app", closure.app);
    assert_eq!(scratch.sh(&program).ok(), closure.greeting);
}

/// What an include or a hand says already is not said again; what a hand wrote stays.
#[test]
fn nix_conf_respects_what_is_there() {
    let scratch = Scratch::new();
    let key = site::make_key(&scratch, "key");
    let run = |arguments: &str| -> Outcome {
        scratch
            .sh(&format!("cache-policy --nix-conf --trusted-public-key '{key}' {arguments} https://cache.example.org"))
    };
    let conf = |text: &str| fs::write(scratch.path().join("nix.conf"), text).unwrap();
    let now = || fs::read_to_string(scratch.path().join("nix.conf")).unwrap();
    fs::write(scratch.path().join("more.conf"), format!("extra-trusted-public-keys = {key} \\\n")).unwrap();
    conf("include more.conf\n");
    run("--write nix.conf").ok();
    assert!(!now().contains(&key) && now().contains("extra-substituters = https://cache.example.org\n"), "{}", now());
    let said = run("--remove nix.conf");
    said.ok();
    assert_eq!(now(), "include more.conf\n");
    conf("substituters = https://cache.example.org/\n");
    run("--write nix.conf").ok();
    let said = run("--remove nix.conf");
    said.ok();
    assert!(said.stderr.contains("still names the cache"), "{}", said.stderr);
    assert_eq!(now(), "substituters = https://cache.example.org/\n");
    // Nothing is written where it cannot be: not half of it either.
    conf("include absent.conf\n");
    run("--write nix.conf").fails(2);
    assert_eq!(now(), "include absent.conf\n");
    // To remove is not to judge what is left.
    let said = run("--remove nix.conf");
    said.ok();
    assert!(said.stderr.contains("absent.conf"), "{}", said.stderr);
    // Nix joins no lines.
    conf("substituters = a \\");
    run("--write nix.conf").ok();
    assert!(now().starts_with("substituters = a \\\n# cache-policy begin"), "{}", now());
    run("--remove nix.conf").ok();
    assert_eq!(now(), "substituters = a \\");
    // What Nix refuses stays, and is said.
    conf("no setting at all\n\u{b} = 1\n");
    let said = run("--write nix.conf");
    said.ok();
    assert!(said.stderr.contains("nix.conf, line 1: not a line of nix.conf"), "{}", said.stderr);
    assert!(now().starts_with("no setting at all\n\u{b} = 1\n# cache-policy begin"), "{}", now());
    run("--write no/such/directory/nix.conf").fails(2);
    run("--write new.conf").ok();
    let printed = run("").ok();
    assert!(scratch.sh("cat new.conf").ok().contains(&printed));
    run("--remove new.conf").ok();
    assert_eq!(scratch.sh("wc -c < new.conf").ok(), "0", "it stays, empty");
    run("--remove never.conf").ok();
    assert_eq!(scratch.sh("ls -A | grep -c 'cache-policy\\|never'").status, 1, "nothing temporary is left");
    for arguments in ["--write -", "--remove -", "--write ''"] {
        run(arguments).fails(2);
    }
    let said = run("--write /proc/self/nix.conf").fails(2);
    assert!(said.contains("writing /proc/self/nix.conf") && !said.contains(".cache-policy."), "{said}");
    let only = run("--only").ok();
    assert_eq!(only, format!("substituters = https://cache.example.org\ntrusted-public-keys = {key}"));
}

/// Nix's own opinion of a nix.conf: its substituters, or none where it refuses the file.
fn as_nix_reads(scratch: &Scratch, dir: &str) -> Option<Vec<String>> {
    let show = format!(
        "unset NIX_CONFIG; export NIX_CONF_DIR=$PWD/{dir} NIX_USER_CONF_FILES=
         nix --extra-experimental-features nix-command show-config --json"
    );
    let shown = scratch.sh(&show);
    let shown: Value = (shown.status == 0).then(|| serde_json::from_slice(&shown.stdout).unwrap())?;
    let values = shown["substituters"]["value"].as_array().unwrap().iter();
    Some(values.map(|value| value.as_str().unwrap().to_owned()).collect())
}

/// Line by line, with every oddity: what Nix says of a file is what ours read.
#[test]
fn nix_conf_is_read_as_a_real_nix_reads_it() {
    if !nix::available() {
        return;
    }
    let scratch = Scratch::new();
    scratch
        .sh("mkdir -p etc/sub real elsewhere/deep; ln -s ../elsewhere/deep etc/link; ln -s nowhere etc/dangling")
        .ok();
    scratch.sh("ln -s etc linked-dir; ln -s ../nix.conf real/nix.conf; ln -s ../../elsewhere/inner.conf etc/sub/inner.conf").ok();
    for (file, text) in [
        ("etc/more.conf", "extra-substituters = more"),
        ("etc/sub/outer.conf", "include inner.conf\ninclude last.conf"),
        ("elsewhere/inner.conf", "extra-substituters = inner\n!include last.conf"),
        ("etc/sub/last.conf", "extra-substituters = beside-the-link"),
        ("elsewhere/last.conf", "extra-substituters = beside-the-target"),
        ("nix.conf", "include more.conf"),
        ("more.conf", "substituters = beside-the-target"),
        ("real/more.conf", "substituters = beside-the-link"),
    ] {
        fs::write(scratch.path().join(file), text).unwrap();
    }
    let read = |dir: &str| {
        let found = Settings::read(Some(&scratch.path().join(dir).join("nix.conf")));
        found.ok().map(|settings| settings.substituters)
    };
    for text in [
        "substituters = a \\\n  b\n",
        "substituters = a \\\n  max-jobs = 2\nextra-substituters = d\n",
        "substituters = a\\\nextra-substituters = b",
        "substituters = a \\",
        "substituters = a # x \\\nextra-substituters = b",
        "# x \\\nsubstituters = a",
        "substituters = a\r\nextra-substituters =\tb\r\n\r\n",
        "binary-caches = a\nextra-binary-caches = b",
        "substituters =\nextra-substituters = a a a/",
        "  substituters   =   a   ",
        "substituters=a",
        "substituters",
        "substituters a",
        "substituters = a\u{b}b\u{3000}c",
        "= a",
        "substituters = a = b",
        "include more.conf",
        "include more.conf # twice\ninclude ./more.conf",
        "include more.conf more.conf",
        "include",
        "include absent.conf",
        "!include absent.conf\nsubstituters = a",
        "include sub/outer.conf",
        "include link/../more.conf",
        "include dangling\nsubstituters = a",
        "include sub\nsubstituters = a",
        "include more.conf/x",
    ] {
        fs::write(scratch.path().join("etc/nix.conf"), text).unwrap();
        let nix = as_nix_reads(&scratch, "etc");
        assert_eq!(read("etc"), nix, "{text:?}");
    }
    fs::write(scratch.path().join("etc/nix.conf"), "substituters = a\ninclude ../etc/more.conf").unwrap();
    for (dir, wanted) in [("real", &["beside-the-link"][..]), ("linked-dir", &["a", "more"])] {
        assert_eq!(as_nix_reads(&scratch, dir).unwrap(), wanted, "{dir}");
        assert_eq!(read(dir).unwrap(), wanted, "{dir}");
    }
}

/// A nix.conf that is a link, as NixOS and Debian lay it out: what it includes lies beside the link.
#[test]
fn a_linked_nix_conf_includes_what_lies_beside_the_link() {
    let scratch = Scratch::new();
    let key = site::make_key(&scratch, "key");
    scratch
        .sh("mkdir etc static; echo 'include keys.conf' > static/nix.conf; ln -s ../static/nix.conf etc/nix.conf")
        .ok();
    fs::write(scratch.path().join("etc/keys.conf"), format!("extra-trusted-public-keys = {key}\n")).unwrap();
    let run = |arguments: &str| {
        let outcome = scratch
            .sh(&format!("cache-policy --nix-conf --trusted-public-key '{key}' {arguments} https://c.example.org"));
        outcome.ok();
        outcome
    };
    run("--write etc/nix.conf");
    let text = scratch.sh("cat static/nix.conf").ok();
    assert!(text.contains("extra-substituters = https://c.example.org") && !text.contains(&key), "{text}");
    assert_eq!(scratch.sh("readlink etc/nix.conf").ok(), "../static/nix.conf");
    fs::write(scratch.path().join("etc/keys.conf"), "substituters = https://c.example.org/?priority=3\n").unwrap();
    let said = run("--remove etc/nix.conf");
    assert!(said.stderr.contains("still names the cache"), "{}", said.stderr);
    assert_eq!(scratch.sh("cat static/nix.conf").ok(), "include keys.conf");
}

/// Many that write at once lose nothing of each other, and what a killed one left is swept.
#[test]
fn parallel_writers_of_one_nix_conf_wait_for_each_other() {
    let scratch = Scratch::new();
    site::make_key(&scratch, "key");
    fs::write(scratch.path().join("nix.conf"), "max-jobs = 1\n").unwrap();
    let write = "cache-policy --nix-conf --trusted-public-key-file key.pub --write nix.conf";
    // Writing is what the limit forbids, so the kernel kills it after it has made its temporary file.
    let killed = scratch.sh(&format!("ulimit -f 0; {write} https://killed.example.org"));
    assert_eq!(killed.status, 128 + 25, "{}", killed.stderr);
    assert_eq!(scratch.sh("cat nix.conf; ls -A | grep -c cache-policy").ok(), "max-jobs = 1\n1");
    let all = format!(
        "for n in {{1..24}}; do {write} https://c$n.example.org & pids+=($!); done; for p in ${{pids[@]}}; do wait $p; done"
    );
    scratch.sh(&all).ok();
    assert_eq!(scratch.sh("grep -c '^extra-substituters' nix.conf; grep -c '^extra-trusted' nix.conf").ok(), "24\n1");
    assert_eq!(scratch.sh("ls -A | grep -c cache-policy").status, 1, "nothing temporary is left");
    let remove = "cache-policy --nix-conf --remove nix.conf";
    scratch.sh(&all.replace(write, remove)).ok();
    assert_eq!(scratch.sh("cat nix.conf").ok(), "max-jobs = 1");
}
