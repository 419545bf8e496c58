//! The table of permissions in `cache-policy --help` holds on two servers.

use super::document;
use crate::fixtures::s3_calls::{Access, CALLS, S3Client};
use cache_tests::{Minio, Scratch, Versitygw};

/// Parses the table in `cache-policy --help`: the documents, each with the access to all calls.
fn table_of_help(scratch: &Scratch) -> Vec<(String, [Access; CALLS.len()])> {
    let help = scratch.sh("cache-policy --help").ok();
    let lines = help.lines().skip_while(|line| !line.trim_start().starts_with("document "));
    let mut lines = lines.take_while(|line| !line.trim().is_empty());
    let columns: Vec<&str> = lines.next().unwrap().split_whitespace().skip(1).collect();
    assert_eq!(columns, CALLS);
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (flags, accesses) = words.split_at(words.len() - CALLS.len());
        let accesses: Vec<Access> = accesses
            .iter()
            .map(|word| match *word {
                "yes" => Access::Allowed,
                "no" => Access::Denied,
                other => panic!("{other} in {line}"),
            })
            .collect();
        (flags.join(" "), accesses.try_into().unwrap())
    };
    let rows: Vec<_> = lines.map(row).collect();
    assert_eq!(rows.len(), 7);
    rows
}

const NO_ACCESS: [Access; CALLS.len()] = [Access::Denied; CALLS.len()];

/// Returns the expected row for a server, which may not implement all calls; with a prefix, lifecycle is denied.
fn expected(mut row: [Access; CALLS.len()], found: [Access; CALLS.len()], prefix: &str) -> [Access; CALLS.len()] {
    if !prefix.is_empty() {
        row[8] = Access::Denied;
    }
    for (access, found) in row.iter_mut().zip(found) {
        if found == Access::Unsupported {
            *access = Access::Unsupported;
        }
    }
    row
}

/// Prints a row and compares it with the expected one.
#[track_caller]
fn check(server: &str, document: &str, who: &str, found: [Access; CALLS.len()], expected_row: [Access; CALLS.len()]) {
    let words: Vec<String> =
        found.iter().zip(CALLS).map(|(a, call)| format!("{:w$}", a.word(), w = call.len())).collect();
    println!("{server:9} {document:36} {who:9} {}", words.join(" "));
    assert_eq!(found, expected_row, "{server}, {document}, {who}: {CALLS:?}");
}

fn print_head(server: &str) {
    println!("\n{server:9} {:36} {:9} {}", "document", "user", CALLS.join(" "));
}

/// Asserts that the client has no access to objects outside the prefix.
#[track_caller]
fn assert_no_access_outside(caller: &S3Client, owner: &S3Client, bucket: &str) {
    for call in ["GET", "LIST", "PUT", "ABORT", "DELETE"] {
        assert_eq!(caller.call(call, owner, bucket, "beside/"), Err(Access::Denied), "{call} outside the prefix");
    }
}

#[test]
fn minio_allows_exactly_what_help_lists() {
    let Some(minio) = Minio::shared() else { return };
    let scratch = Scratch::new();
    let (server, endpoint) = ("MinIO", minio.endpoint());
    let owner = S3Client::new(&endpoint, Some(&minio.root()));
    let anonymous = S3Client::new(&endpoint, None);
    let unrelated = document(&scratch, "--read-only --identity unrelated-bucket");
    let other = S3Client::new(&endpoint, Some(&minio.add_user(&unrelated)));
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
                check(server, &shown, "unrelated", other.row(&owner, &bucket, prefix), NO_ACCESS);
                if !prefix.is_empty() {
                    assert_no_access_outside(&anonymous, &owner, &bucket);
                }
            }
            let bucket = minio.make_bucket();
            let place = format!("s3://{bucket}/{prefix}");
            let identity = if flags.starts_with("--read-only") { " --identity" } else { "" };
            let shown = format!("{flags}{identity}{}", if prefix.is_empty() { "" } else { " PREFIX" });
            let user = minio.add_user(&document(&scratch, &format!("{flags}{identity} '{place}'")));
            let user = S3Client::new(&endpoint, Some(&user));
            let found = user.row(&owner, &bucket, prefix);
            check(server, &shown, "named", found, expected(row, found, prefix));
            check(server, &shown, "unrelated", other.row(&owner, &bucket, prefix), NO_ACCESS);
            check(server, &shown, "anonymous", anonymous.row(&owner, &bucket, prefix), NO_ACCESS);
            if !prefix.is_empty() {
                assert_no_access_outside(&user, &owner, &bucket);
            }
        }
    }
}

#[test]
fn versitygw_allows_exactly_what_help_lists() {
    let Some(gateway) = Versitygw::shared() else { return };
    let scratch = Scratch::new();
    let (server, endpoint) = ("versitygw", gateway.endpoint());
    let owner = S3Client::new(&endpoint, Some(&gateway.root()));
    let anonymous = S3Client::new(&endpoint, None);
    let named = gateway.add_user();
    let user = S3Client::new(&endpoint, Some(&named));
    let other = S3Client::new(&endpoint, Some(&gateway.add_user()));
    print_head(server);
    for (flags, row) in table_of_help(&scratch) {
        for prefix in ["", "some/where/"] {
            let shown = |more: &str| format!("{flags}{more}{}", if prefix.is_empty() { "" } else { " PREFIX" });
            if flags.starts_with("--read-only") {
                let bucket = owner.make_bucket();
                owner.set_policy(&bucket, &document(&scratch, &format!("{flags} s3://{bucket}/{prefix}"))).unwrap();
                for (who, caller) in [("anonymous", &anonymous), ("unrelated", &other)] {
                    let found = caller.row(&owner, &bucket, prefix);
                    check(server, &shown(""), who, found, expected(row, found, prefix));
                }
            }
            let bucket = owner.make_bucket();
            let arguments = format!("{flags} --principal-key-id {} s3://{bucket}/{prefix}", named.access_key);
            owner.set_policy(&bucket, &document(&scratch, &arguments)).unwrap();
            let found = user.row(&owner, &bucket, prefix);
            check(server, &shown(" --principal-key-id"), "named", found, expected(row, found, prefix));
            for (who, caller) in [("unrelated", &other), ("anonymous", &anonymous)] {
                let found = caller.row(&owner, &bucket, prefix);
                check(server, &shown(" --principal-key-id"), who, found, expected(NO_ACCESS, found, prefix));
            }
            if !prefix.is_empty() {
                assert_no_access_outside(&user, &owner, &bucket);
            }
        }
    }
}

#[test]
fn policy_conditions_are_enforced() {
    let Some(minio) = Minio::shared() else { return };
    let scratch = Scratch::new();
    let owner = S3Client::new(&minio.endpoint(), Some(&minio.root()));
    let of = |flags: &str| {
        let bucket = minio.make_bucket();
        let user = minio.add_user(&document(&scratch, &format!("--upload {flags} {bucket}")));
        let user = S3Client::new(&minio.endpoint(), Some(&user));
        ["GET", "PUT", "LIST"].map(|call| user.call(call, &owner, &bucket, "").is_ok())
    };
    assert_eq!(of("--source-ip 127.0.0.0/8"), [true; 3]);
    assert_eq!(of("--source-ip 192.0.2.0/24"), [false; 3]);
    assert_eq!(of("--source-ip 192.0.2.0/24 --source-ip 127.0.0.1"), [true; 3]);
    // This server has no TLS.
    assert_eq!(of("--require-tls"), [false; 3]);
}
