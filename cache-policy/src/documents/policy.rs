//! Bucket policies and identity policies. A bucket policy is attached to the bucket and names its principals; an identity
//! policy is attached to a user, group or role and cannot name any. Both have the same statements otherwise.

use serde::Serialize;

use super::arn::BucketArns;
use super::condition::{Condition, RequestConditions};
use super::principal::Principals;
use super::{Effect, POLICY_VERSION};

/// What a policy allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading objects whose keys are known.
    Read {
        /// Whether listing the keys is also allowed.
        list: bool,
    },
    /// Reading, listing and writing, but not deleting.
    Upload,
    /// Reading, listing, deleting, aborting uploads and setting lifecycle rules, but not writing.
    Admin,
}

impl Access {
    fn object_actions(self) -> &'static [Action] {
        match self {
            Self::Read { .. } => &[Action::GetObject],
            Self::Upload => {
                &[Action::AbortMultipartUpload, Action::GetObject, Action::ListMultipartUploadParts, Action::PutObject]
            }
            Self::Admin => &[
                Action::AbortMultipartUpload,
                Action::DeleteObject,
                Action::GetObject,
                Action::ListMultipartUploadParts,
            ],
        }
    }

    fn allows_list(self) -> bool {
        self != Self::Read { list: false }
    }

    /// Returns the actions on the bucket as a whole, other than listing. Lifecycle rules apply to the whole bucket, so
    /// they are not allowed to the administrator of a prefix.
    fn bucket_actions(self, arns: &BucketArns) -> &'static [Action] {
        match self {
            Self::Read { .. } => &[],
            Self::Admin if arns.prefix().is_empty() => &[
                Action::GetLifecycleConfiguration,
                Action::ListBucketMultipartUploads,
                Action::PutLifecycleConfiguration,
            ],
            Self::Upload | Self::Admin => &[Action::ListBucketMultipartUploads],
        }
    }

    fn sid_prefix(self) -> &'static str {
        match self {
            Self::Read { .. } => "CacheRead",
            Self::Upload => "CacheUpload",
            Self::Admin => "CacheAdmin",
        }
    }
}

/// A policy document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Policy {
    version: &'static str,
    statement: Vec<Statement>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Statement {
    sid: String,
    effect: Effect,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<Principals>,
    action: Vec<Action>,
    resource: Vec<String>,
    #[serde(skip_serializing_if = "Condition::is_empty")]
    condition: Condition,
}

impl Policy {
    /// Creates a policy for a bucket.
    #[must_use]
    pub fn bucket(access: Access, arns: &BucketArns, principals: &Principals, conditions: &RequestConditions) -> Self {
        Self::new(access, arns, Some(principals), conditions)
    }

    /// Creates a policy for a user, group or role.
    #[must_use]
    pub fn identity(access: Access, arns: &BucketArns, conditions: &RequestConditions) -> Self {
        Self::new(access, arns, None, conditions)
    }

    fn new(access: Access, arns: &BucketArns, principals: Option<&Principals>, conditions: &RequestConditions) -> Self {
        let allow = |sid_suffix: &str, action: &[Action], resource: String, condition: Condition| Statement {
            sid: format!("{}{sid_suffix}", access.sid_prefix()),
            effect: Effect::Allow,
            principal: principals.cloned(),
            action: action.to_vec(),
            resource: vec![resource],
            condition,
        };
        let mut statement = vec![allow("Objects", access.object_actions(), arns.objects(), conditions.condition())];
        if access.allows_list() {
            let mut condition = conditions.condition();
            if !arns.prefix().is_empty() {
                condition = condition.and("StringLike", "s3:prefix", vec![format!("{}*", arns.prefix())]);
            }
            statement.push(allow("List", &[Action::ListBucket], arns.bucket(), condition));
        }
        let bucket_actions = access.bucket_actions(arns);
        if !bucket_actions.is_empty() {
            statement.push(allow("Bucket", bucket_actions, arns.bucket(), conditions.condition()));
        }
        if conditions.require_tls {
            statement.push(Statement {
                sid: "DenyWithoutTls".to_owned(),
                effect: Effect::Deny,
                principal: principals.map(|_| Principals::everybody()),
                action: vec![Action::All],
                resource: vec![arns.bucket(), arns.objects()],
                condition: Condition::default().and("Bool", "aws:SecureTransport", vec!["false".to_owned()]),
            });
        }
        Self { version: POLICY_VERSION, statement }
    }
}

/// An action that a statement allows or denies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Action {
    #[serde(rename = "s3:*")]
    All,
    #[serde(rename = "s3:AbortMultipartUpload")]
    AbortMultipartUpload,
    #[serde(rename = "s3:DeleteObject")]
    DeleteObject,
    #[serde(rename = "s3:GetLifecycleConfiguration")]
    GetLifecycleConfiguration,
    #[serde(rename = "s3:GetObject")]
    GetObject,
    #[serde(rename = "s3:ListBucket")]
    ListBucket,
    #[serde(rename = "s3:ListBucketMultipartUploads")]
    ListBucketMultipartUploads,
    #[serde(rename = "s3:ListMultipartUploadParts")]
    ListMultipartUploadParts,
    #[serde(rename = "s3:PutLifecycleConfiguration")]
    PutLifecycleConfiguration,
    #[serde(rename = "s3:PutObject")]
    PutObject,
}

#[cfg(test)]
mod tests {
    use super::super::arn::Partition;
    use super::super::principal::Principal;
    use super::*;

    const USER: &str = "arn:aws:iam::123456789012:user/ci/alice";

    fn text(document: &impl Serialize) -> String {
        serde_json::to_string_pretty(document).unwrap()
    }

    fn arns(bucket: &str, prefix: &str) -> BucketArns {
        BucketArns::new(Partition::Aws, bucket, prefix).unwrap()
    }

    fn principals(principals: &[&str]) -> Principals {
        Principals::new(principals.iter().map(|text| Principal::parse(text).unwrap()).collect())
    }

    fn actions(policy: &Policy) -> Vec<String> {
        let policy = serde_json::to_value(policy).unwrap();
        let statements = policy["Statement"].as_array().unwrap().clone();
        let mut actions: Vec<String> = statements
            .iter()
            .flat_map(|statement| statement["Action"].as_array().unwrap().clone())
            .map(|action| action.as_str().unwrap().to_owned())
            .collect();
        actions.sort_unstable();
        actions
    }

    #[test]
    fn anonymous_read_is_one_statement() {
        let golden = r#"{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Sid": "CacheReadObjects",
      "Effect": "Allow",
      "Principal": "*",
      "Action": [
        "s3:GetObject"
      ],
      "Resource": [
        "arn:aws:s3:::example-nix-cache/*"
      ]
    }
  ]
}"#;
        let access = Access::Read { list: false };
        let policy =
            Policy::bucket(access, &arns("example-nix-cache", ""), &principals(&[]), &RequestConditions::default());
        assert_eq!(text(&policy), golden);
    }

    /// The documents in the Nix manual also allow `s3:GetBucketLocation`, which neither Nix nor these tools use.
    #[test]
    fn upload_allows_what_the_nix_manual_allows_except_get_bucket_location() {
        let policy = Policy::identity(Access::Upload, &arns("example-nix-cache", ""), &RequestConditions::default());
        let expected = [
            "s3:AbortMultipartUpload",
            "s3:GetObject",
            "s3:ListBucket",
            "s3:ListBucketMultipartUploads",
            "s3:ListMultipartUploadParts",
            "s3:PutObject",
        ];
        assert_eq!(actions(&policy), expected);
        assert!(!text(&policy).contains("Principal"));
    }

    #[test]
    fn a_prefix_restricts_objects_listing_and_administration() {
        let below_prefix = arns("cache", "a/b/");
        let policy = Policy::identity(Access::Admin, &below_prefix, &RequestConditions::default());
        assert!(!actions(&policy).iter().any(|action| action.contains("Lifecycle")));
        let policy = serde_json::to_value(policy).unwrap();
        assert_eq!(policy["Statement"][0]["Resource"][0], "arn:aws:s3:::cache/a/b/*");
        assert_eq!(policy["Statement"][1]["Condition"]["StringLike"]["s3:prefix"][0], "a/b/*");
        for prefix in ["*/", "a?/", "${aws:username}/", "a/b*c/"] {
            let error = BucketArns::new(Partition::Aws, "cache", prefix).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{prefix}: {error}");
        }
        assert_eq!(arns("cache", "\"quoted$/").objects(), "arn:aws:s3:::cache/\"quoted$/*");
    }

    #[test]
    fn conditions_restrict_allow_statements_and_tls_is_a_deny_statement() {
        let conditions =
            RequestConditions::new(&["192.0.2.0/24".to_owned(), "2001:db8::1".to_owned()], &[], true).unwrap();
        let policy = Policy::bucket(Access::Upload, &arns("cache", ""), &principals(&[USER]), &conditions);
        let policy = serde_json::to_value(policy).unwrap();
        let statements = policy["Statement"].as_array().unwrap();
        for statement in statements {
            let allows = statement["Effect"] == "Allow";
            let condition = &statement["Condition"];
            assert_eq!(condition["IpAddress"]["aws:SourceIp"][1] == "2001:db8::1", allows, "{statement}");
            assert_eq!(condition["Bool"]["aws:SecureTransport"][0] == "false", !allows, "{statement}");
            assert_eq!(statement["Principal"] == "*", !allows, "{statement}");
        }
        assert_eq!(statements.last().unwrap()["Effect"], "Deny");
    }

    #[test]
    fn principals_are_listed_once_in_the_order_given() {
        let readers = principals(&["999999999999", USER, "999999999999"]);
        let access = Access::Read { list: false };
        let policy = Policy::bucket(access, &arns("cache", ""), &readers, &RequestConditions::default());
        let policy = serde_json::to_value(policy).unwrap();
        assert_eq!(policy["Statement"][0]["Principal"], serde_json::json!({ "AWS": ["999999999999", USER] }));
        assert_eq!(text(&principals(&[USER])), format!("{{\n  \"AWS\": [\n    \"{USER}\"\n  ]\n}}"));
    }
}
