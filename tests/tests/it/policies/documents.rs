//! Documents that are not policies: lifecycle, CORS and trust.

use super::document;
use crate::fixtures::closure_fixture;
use crate::fixtures::s3_calls::S3Client;
use cache_tests::{Minio, Scratch, Versitygw};
use serde_json::Value;
use std::fs;

/// The documents that are not policies are accepted by the servers that support them.
#[test]
fn configurations_are_accepted_by_the_servers_that_have_them() {
    let scratch = Scratch::new();
    if let Some(minio) = Minio::shared() {
        let bucket = minio.make_bucket();
        let mut scratch = Scratch::new();
        minio.mc_alias(&mut scratch, "cache");
        let rule = document(&scratch, &format!("--lifecycle 7 s3://{bucket}/nar"));
        let import = |text: &str| scratch.sh_with_input(&format!("mc ilm import cache/{bucket}"), text.as_bytes());
        // MinIO reads the rule and refuses it, because it does not support this action.
        let stderr = import(&rule).fails(1);
        assert!(stderr.contains("did not validate"), "{stderr}");
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
        let versions = document(&scratch, &format!("--lifecycle --noncurrent 30 s3://{bucket}/nar"));
        let mut versions: Value = serde_json::from_str(&versions).unwrap();
        versions["Rules"].as_array_mut().unwrap().remove(0);
        import(&versions.to_string()).ok();
        let set: Value = serde_json::from_str(&scratch.sh(&format!("mc ilm export cache/{bucket}")).ok()).unwrap();
        let rule = &set["Rules"][0];
        assert_eq!(rule["NoncurrentVersionExpiration"]["NoncurrentDays"], 30, "{set}");
        assert_eq!((&rule["Status"], &rule["Filter"]["Prefix"]), (&"Enabled".into(), &"nar/".into()), "{set}");
        // MinIO reads the policy up to the condition keys of the provider, which it does not know, and names one of
        // them.
        let trust = "--oidc-trust token.actions.githubusercontent.com --account 123456789012 --subject repo:a/b:ref:refs/heads/main";
        fs::write(scratch.path().join("trust.json"), document(&scratch, trust)).unwrap();
        let stderr = scratch.sh("mc admin policy create cache trust trust.json").fails(1);
        assert!(stderr.contains("invalid condition key 'token.actions.githubusercontent.com:"), "{stderr}");
    }
    if let Some(gateway) = Versitygw::shared() {
        let owner = S3Client::new(&gateway.endpoint(), Some(&gateway.root()));
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
            let access = scratch.sh(&format!("exec 3<>/dev/tcp/{host}/{port}; printf '{request}' >&3; cat <&3")).ok();
            access.to_lowercase()
        };
        let allowed = ask("https://example.org");
        println!("CORS on versitygw: {allowed}");
        assert!(allowed.contains("access-control-allow-origin: https://example.org"), "{allowed}");
        assert!(!ask("https://elsewhere.example.org").contains("access-control-allow-origin"));
    }
}

/// The documents of the Nix manual (`src/libstore/s3-binary-cache-store.md`) for `example-nix-cache`.
#[test]
fn policies_are_those_of_the_nix_manual() {
    let scratch = Scratch::new();
    let parse = |arguments: &str| -> Value {
        serde_json::from_str(&document(&scratch, &format!("{arguments} example-nix-cache"))).unwrap()
    };
    let resource = serde_json::json!(["arn:aws:s3:::example-nix-cache", "arn:aws:s3:::example-nix-cache/*"]);
    let read = serde_json::json!({
        "Id": "DirectReads",
        "Version": "2012-10-17",
        "Statement": [{
            "Sid": "AllowDirectReads",
            "Action": ["s3:GetObject", "s3:GetBucketLocation"],
            "Effect": "Allow",
            "Resource": resource,
            "Principal": "*",
        }],
    });
    assert_eq!(parse("--read-only"), read);
    let upload = serde_json::json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Sid": "UploadToCache",
            "Effect": "Allow",
            "Action": [
                "s3:AbortMultipartUpload",
                "s3:GetBucketLocation",
                "s3:GetObject",
                "s3:ListBucket",
                "s3:ListBucketMultipartUploads",
                "s3:ListMultipartUploadParts",
                "s3:PutObject",
            ],
            "Resource": resource,
        }],
    });
    assert_eq!(parse("--upload"), upload);
    for (arguments, location) in
        [("--read-only", true), ("--upload", true), ("--read-only --minimal", false), ("--upload --minimal", false)]
    {
        assert_eq!(parse(arguments).to_string().contains("s3:GetBucketLocation"), location, "{arguments}");
    }
}

#[test]
fn configurations_are_printed_and_misplaced_flags_are_refused() {
    let mut scratch = Scratch::new();
    let key = closure_fixture::generate_key(&scratch, "key");
    scratch.env("KEY", key);
    for arguments in [
        "--lifecycle 7 s3://my-cache/prefix",
        "--lifecycle 7",
        "--lifecycle --noncurrent 30 my-cache",
        "--collect s3://my-cache/prefix",
        "--cors --origin https://example.org",
        "--oidc-trust token.actions.githubusercontent.com --account 123456789012 --subject repo:a/b:ref:refs/heads/main",
        "--admin --principal 123456789012 --require-tls my-cache",
        "--upload --partition aws-cn --vpc-endpoint vpce-1a2b my-cache",
        "--collect --partition aws-cn my-cache",
        "--upload 's3://my-cache?region=us-gov-west-1'",
    ] {
        let parsed: Value = serde_json::from_str(&document(&scratch, arguments)).unwrap();
        assert!(parsed.is_object(), "{arguments}");
    }
    let ambiguous = "NIX_S3_CACHE=s3://my-cache cache-policy --nix-conf --https cache.example.org \
                     --trusted-public-key \"$KEY\"";
    assert!(scratch.sh(ambiguous).fails(2).contains("ambiguous"));
    let partition = document(&scratch, "--upload 's3://my-cache?region=us-gov-west-1'");
    assert!(partition.contains("arn:aws-us-gov:s3:::my-cache/*"), "{partition}");
    for arguments in [
        "--cors my-cache",
        "--lifecycle 0 my-cache",
        "--lifecycle 7 --noncurrent 0 my-cache",
        "--upload --noncurrent 30 my-cache",
        "--collect --minimal my-cache",
        "--upload --pusher my-cache",
        "--lifecycle 7 --require-tls my-cache",
        "--upload --allow-list my-cache",
        "--upload --identity my-cache",
        "--admin --minimal my-cache",
        "--read-only --audience sts.example.org my-cache",
        "--nix-conf --https --trusted-public-key \"$KEY\" https://cache.example.org",
        "--nix-conf --https --trusted-public-key \"$KEY\" 's3://my-cache?region=a.evil.example'",
        "--nix-conf --trusted-public-key \"$KEY\" 's3://my-cache?endpoint=a;b'",
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
        let output = scratch.sh(&format!("cache-policy {arguments}"));
        assert!(output.status == 2 && output.stdout.is_empty(), "{arguments}: {}", output.stderr);
        assert!(!output.stderr.contains("hidden"), "{arguments}: {}", output.stderr);
        assert_eq!(output.error_lines().len(), 1, "{arguments}: {}", output.stderr);
    }
}

/// As the help describes.
#[test]
fn minio_does_not_support_rules_for_incomplete_uploads() {
    let Some(minio) = Minio::shared() else { return };
    let owner = S3Client::new(&minio.endpoint(), Some(&minio.root()));
    assert!(!owner.supports_abort_rule(&minio.make_bucket(), 7));
}
