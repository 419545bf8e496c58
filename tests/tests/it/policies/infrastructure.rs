//! Policies as resources of OpenTofu and CloudFormation: they contain the same documents as the JSON.

use cache_tests::Scratch;
use hcl::eval::{Context, Evaluate as _, FuncArgs, FuncDef, ParamType};
use serde_json::{Value, json};

use super::document;

/// Arguments of documents, and the kinds of their resources.
const DOCUMENTS: [(&str, &str, &str); 9] = [
    ("--read-only s3://my-cache/a", "aws_s3_bucket_policy", "AWS::S3::BucketPolicy"),
    ("--read-only --minimal --allow-list --require-tls my-cache", "aws_s3_bucket_policy", "AWS::S3::BucketPolicy"),
    (
        "--read-only --principal arn:aws:iam::123456789012:role/ci --source-ip 192.0.2.0/24 my-cache",
        "aws_s3_bucket_policy",
        "AWS::S3::BucketPolicy",
    ),
    ("--read-only --identity my-cache", "aws_iam_policy", "AWS::IAM::ManagedPolicy"),
    ("--upload --vpc-endpoint vpce-1a2b my-cache", "aws_iam_policy", "AWS::IAM::ManagedPolicy"),
    ("--upload --minimal --partition aws-cn s3://my-cache/a", "aws_iam_policy", "AWS::IAM::ManagedPolicy"),
    ("--admin --principal 123456789012 my-cache", "aws_s3_bucket_policy", "AWS::S3::BucketPolicy"),
    ("--collect s3://my-cache/a", "aws_iam_policy", "AWS::IAM::ManagedPolicy"),
    ("--upload \"s3://my-cache/$HOSTILE\"", "aws_iam_policy", "AWS::IAM::ManagedPolicy"),
];

/// What a prefix may contain, and a template or a quoted string interprets.
const HOSTILE: &str = "\"quoted\" \\u0041 \\$$%%{if true}%{ endif }{{}} }) # // ü <<EOF";

fn scratch() -> Scratch {
    let mut scratch = Scratch::new();
    scratch.env("HOSTILE", HOSTILE);
    scratch
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Evaluates a file with one resource, and returns its type and its attributes. `jsonencode` is the identity.
fn evaluate(tofu: &str) -> (String, Value) {
    fn jsonencode(arguments: FuncArgs) -> Result<hcl::Value, String> {
        arguments.into_values().into_iter().next().ok_or_else(|| "an argument is missing".to_owned())
    }
    let mut context = Context::new();
    context.declare_func("jsonencode", FuncDef::builder().param(ParamType::Any).build(jsonencode));
    let body = hcl::parse(tofu).unwrap().evaluate(&context).unwrap();
    let value: Value = hcl::from_body(body).unwrap();
    let (kind, resources) = value["resource"].as_object().unwrap().iter().next().unwrap();
    (kind.clone(), resources.as_object().unwrap().values().next().unwrap().clone())
}

#[test]
fn resources_contain_the_policies() {
    let scratch = scratch();
    for (arguments, tofu_kind, cloudformation_kind) in DOCUMENTS {
        let policy = parse(&document(&scratch, arguments));
        assert_eq!(parse(&document(&scratch, &format!("--format json {arguments}"))), policy);
        let (kind, resource) = evaluate(&document(&scratch, &format!("--format tofu {arguments}")));
        assert_eq!((kind.as_str(), &resource["policy"]), (tofu_kind, &policy), "{arguments}");
        let template = parse(&document(&scratch, &format!("--format cloudformation {arguments}")));
        assert_eq!(template["AWSTemplateFormatVersion"], "2010-09-09");
        let resources = template["Resources"].as_object().unwrap();
        let cloudformation = resources.values().next().unwrap();
        assert_eq!(resources.len(), 1, "{template}");
        assert_eq!(cloudformation["Type"], cloudformation_kind, "{arguments}");
        assert_eq!(cloudformation["Properties"]["PolicyDocument"], policy, "{arguments}");
        // A bucket policy names its bucket, and an identity policy gets a name that is not taken.
        let bucket = if tofu_kind == "aws_s3_bucket_policy" { json!("my-cache") } else { Value::Null };
        assert_eq!((&resource["bucket"], &cloudformation["Properties"]["Bucket"]), (&bucket, &bucket), "{arguments}");
        assert_eq!(resource["name_prefix"].is_string(), bucket.is_null(), "{arguments}");
    }
}

#[test]
fn lifecycle_rules_are_those_of_the_document() {
    let scratch = scratch();
    let arguments = "--lifecycle 7 --noncurrent 30 s3://my-cache/a";
    let (kind, resource) = evaluate(&document(&scratch, &format!("--format tofu {arguments}")));
    let rule = |id: &str| json!({ "id": id, "status": "Enabled", "filter": { "prefix": "a/" } });
    let mut abort = rule("abort-incomplete-uploads");
    abort["abort_incomplete_multipart_upload"] = json!({ "days_after_initiation": 7 });
    let mut expire = rule("expire-noncurrent-versions");
    expire["noncurrent_version_expiration"] = json!({ "noncurrent_days": 30 });
    expire["expiration"] = json!({ "expired_object_delete_marker": true });
    assert_eq!(kind, "aws_s3_bucket_lifecycle_configuration");
    assert_eq!(resource, json!({ "bucket": "my-cache", "rule": [abort, expire] }));
    let template = parse(&document(&scratch, &format!("--format cloudformation {arguments}")));
    let bucket = &template["Resources"]["NixCacheBucket"];
    assert_eq!((&bucket["Type"], &bucket["DeletionPolicy"]), (&json!("AWS::S3::Bucket"), &json!("Retain")));
    let rules = json!([
        {
            "Id": "abort-incomplete-uploads", "Status": "Enabled", "Prefix": "a/",
            "AbortIncompleteMultipartUpload": { "DaysAfterInitiation": 7 },
        },
        {
            "Id": "expire-noncurrent-versions", "Status": "Enabled", "Prefix": "a/",
            "NoncurrentVersionExpiration": { "NoncurrentDays": 30 }, "ExpiredObjectDeleteMarker": true,
        },
    ]);
    assert_eq!(bucket["Properties"], json!({ "BucketName": "my-cache", "LifecycleConfiguration": { "Rules": rules } }));
    let whole = parse(&document(&scratch, "--format cloudformation --lifecycle 7 my-cache"));
    let rules = &whole["Resources"]["NixCacheBucket"]["Properties"]["LifecycleConfiguration"]["Rules"];
    assert_eq!((rules.as_array().unwrap().len(), rules[0].get("Prefix")), (1, None));
}

/// In the layout of `tofu fmt`.
#[test]
fn a_resource_is_laid_out_as_by_hand() {
    let expected = "\
resource \"aws_s3_bucket_policy\" \"nix_cache_read\" {
  bucket = \"my-cache\"
  policy = jsonencode({
    Version = \"2012-10-17\"
    Statement = [
      {
        Sid       = \"CacheReadObjects\"
        Effect    = \"Allow\"
        Principal = \"*\"
        Action = [
          \"s3:GetObject\",
        ]
        Resource = [
          \"arn:aws:s3:::my-cache/*\",
        ]
      },
    ]
  })
}";
    assert_eq!(document(&scratch(), "--read-only --minimal --format tofu my-cache"), expected);
}

#[test]
fn what_cannot_be_a_resource_is_refused() {
    let scratch = scratch();
    for arguments in [
        "--lifecycle 7 --format tofu",
        "--lifecycle 7 --format cloudformation",
        "--cors --format tofu",
        "--upload --format yaml my-cache",
        "--upload --format tofu 's3://my-cache/${x}'",
        "--upload --format cloudformation 's3://my-cache/{{resolve:ssm:x}}'",
    ] {
        let output = scratch.sh(&format!("cache-policy {arguments}"));
        assert!(output.status == 2 && output.stdout.is_empty(), "{arguments}: {}", output.stderr);
        assert_eq!(output.error_lines().len(), 1, "{arguments}: {}", output.stderr);
    }
}
