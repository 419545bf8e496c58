//! Bucket policies and identity policies. A bucket policy is attached to the bucket and names its principals; an identity
//! policy is attached to a user, group or role and cannot name any. Both have the same statements otherwise.
//!
//! By default, the policies for reading and uploading are those of the Nix manual (section "S3 Binary Cache Store"), because
//! clients other than these tools also call GetBucketLocation. The minimal form allows only what these tools need.

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
    /// Reading, listing and deleting, and writing the objects of the collector.
    Collect,
}

/// Where `s3-push` keeps the objects of the collector.
const COLLECTOR_DIRECTORY: &str = "gc/";

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
            Self::Collect => &[Action::DeleteObject, Action::GetObject],
        }
    }

    fn allows_list(self) -> bool {
        self != Self::Read { list: false }
    }

    /// Returns the actions on the bucket as a whole, other than listing. Lifecycle rules apply to the whole bucket, so
    /// they are not allowed to the administrator of a prefix.
    fn bucket_actions(self, arns: &BucketArns) -> &'static [Action] {
        match self {
            Self::Read { .. } | Self::Collect => &[],
            Self::Admin if arns.prefix().is_empty() => &[
                Action::GetLifecycleConfiguration,
                Action::ListBucketMultipartUploads,
                Action::PutLifecycleConfiguration,
            ],
            Self::Upload | Self::Admin => &[Action::ListBucketMultipartUploads],
        }
    }

    /// Returns the name and the actions of the statement in the Nix manual. Listing is not among them.
    fn manual_statement(self) -> Option<(&'static str, &'static [Action])> {
        match self {
            Self::Read { .. } => Some(("AllowDirectReads", &[Action::GetObject, Action::GetBucketLocation])),
            Self::Upload => Some((
                "UploadToCache",
                &[
                    Action::AbortMultipartUpload,
                    Action::GetBucketLocation,
                    Action::GetObject,
                    Action::ListBucketMultipartUploads,
                    Action::ListMultipartUploadParts,
                    Action::PutObject,
                ],
            )),
            Self::Admin | Self::Collect => None,
        }
    }

    fn sid_prefix(self) -> &'static str {
        match self {
            Self::Read { .. } => "CacheRead",
            Self::Upload => "CacheUpload",
            Self::Admin => "CacheAdmin",
            Self::Collect => "CacheCollect",
        }
    }
}

/// Which statements allow the access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The statement of the Nix manual, where it has one.
    NixManual,
    /// Only the actions that these tools need, each only on the resources to which it applies.
    Minimal,
}

/// A policy document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Policy {
    /// Only in a bucket policy: identity policies have no `Id` (IAM user guide, "Grammar of the IAM JSON policy language").
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'static str>,
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
    pub fn bucket(
        access: Access,
        form: Form,
        arns: &BucketArns,
        principals: &Principals,
        conditions: &RequestConditions,
    ) -> Self {
        let id = matches!((access, form), (Access::Read { .. }, Form::NixManual)).then_some("DirectReads");
        Self { id, ..Self::new(access, form, arns, Some(principals), conditions) }
    }

    /// Creates a policy for a user, group or role.
    #[must_use]
    pub fn identity(access: Access, form: Form, arns: &BucketArns, conditions: &RequestConditions) -> Self {
        Self::new(access, form, arns, None, conditions)
    }

    fn new(
        access: Access,
        form: Form,
        arns: &BucketArns,
        principals: Option<&Principals>,
        conditions: &RequestConditions,
    ) -> Self {
        let manual = access.manual_statement().filter(|_| form == Form::NixManual);
        let mut statement = match manual {
            Some((sid, actions)) => manual_statements(access, sid, actions, arns, conditions),
            None => minimal_statements(access, arns, conditions),
        };
        if conditions.require_tls {
            statement.push(Statement {
                sid: "DenyWithoutTls".to_owned(),
                effect: Effect::Deny,
                principal: None,
                action: vec![Action::All],
                resource: vec![arns.bucket(), arns.objects()],
                condition: Condition::default().and("Bool", "aws:SecureTransport", vec!["false".to_owned()]),
            });
        }
        for statement in &mut statement {
            statement.principal = principals.map(|allowed| match statement.effect {
                Effect::Allow => allowed.clone(),
                Effect::Deny => Principals::everybody(),
            });
        }
        Self { id: None, version: POLICY_VERSION, statement }
    }
}

/// Returns the statement of the Nix manual. Below a prefix, listing is a statement of its own, because its condition would
/// deny the other actions.
fn manual_statements(
    access: Access,
    sid: &str,
    actions: &[Action],
    arns: &BucketArns,
    conditions: &RequestConditions,
) -> Vec<Statement> {
    let mut statement = Statement::allow(sid, actions, vec![arns.bucket(), arns.objects()], conditions.condition());
    if !access.allows_list() {
        return vec![statement];
    }
    if arns.prefix().is_empty() {
        statement.action.push(Action::ListBucket);
        statement.action.sort_unstable();
        return vec![statement];
    }
    vec![statement, list_statement(&format!("{sid}List"), arns, conditions)]
}

fn minimal_statements(access: Access, arns: &BucketArns, conditions: &RequestConditions) -> Vec<Statement> {
    let sid = |suffix: &str| format!("{}{suffix}", access.sid_prefix());
    let mut statements =
        vec![Statement::allow(&sid("Objects"), access.object_actions(), vec![arns.objects()], conditions.condition())];
    if access == Access::Collect {
        let resource = vec![arns.objects_below(COLLECTOR_DIRECTORY)];
        statements.push(Statement::allow(&sid("Records"), &[Action::PutObject], resource, conditions.condition()));
    }
    if access.allows_list() {
        statements.push(list_statement(&sid("List"), arns, conditions));
    }
    let actions = access.bucket_actions(arns);
    if !actions.is_empty() {
        statements.push(Statement::allow(&sid("Bucket"), actions, vec![arns.bucket()], conditions.condition()));
    }
    statements
}

/// Allows listing the keys below the prefix.
fn list_statement(sid: &str, arns: &BucketArns, conditions: &RequestConditions) -> Statement {
    let mut condition = conditions.condition();
    if !arns.prefix().is_empty() {
        condition = condition.and("StringLike", "s3:prefix", vec![format!("{}*", arns.prefix())]);
    }
    Statement::allow(sid, &[Action::ListBucket], vec![arns.bucket()], condition)
}

impl Statement {
    /// Creates a statement without a principal.
    fn allow(sid: &str, actions: &[Action], resource: Vec<String>, condition: Condition) -> Self {
        Self {
            sid: sid.to_owned(),
            effect: Effect::Allow,
            principal: None,
            action: actions.to_vec(),
            resource,
            condition,
        }
    }
}

/// An action that a statement allows or denies, in alphabetical order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
enum Action {
    #[serde(rename = "s3:*")]
    All,
    #[serde(rename = "s3:AbortMultipartUpload")]
    AbortMultipartUpload,
    #[serde(rename = "s3:DeleteObject")]
    DeleteObject,
    #[serde(rename = "s3:GetBucketLocation")]
    GetBucketLocation,
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
    use serde_json::Value;

    use super::super::arn::Partition;
    use super::super::principal::Principal;
    use super::*;

    const READ: Access = Access::Read { list: false };

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

    /// The documents of the Nix manual, `src/libstore/s3-binary-cache-store.md`.
    const MANUAL_READ: &str = r#"{
    "Id": "DirectReads",
    "Version": "2012-10-17",
    "Statement": [
        {
            "Sid": "AllowDirectReads",
            "Action": [
                "s3:GetObject",
                "s3:GetBucketLocation"
            ],
            "Effect": "Allow",
            "Resource": [
                "arn:aws:s3:::example-nix-cache",
                "arn:aws:s3:::example-nix-cache/*"
            ],
            "Principal": "*"
        }
    ]
}"#;
    const MANUAL_UPLOAD: &str = r#"{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Sid": "UploadToCache",
      "Effect": "Allow",
      "Action": [
        "s3:AbortMultipartUpload",
        "s3:GetBucketLocation",
        "s3:GetObject",
        "s3:ListBucket",
        "s3:ListBucketMultipartUploads",
        "s3:ListMultipartUploadParts",
        "s3:PutObject"
      ],
      "Resource": [
        "arn:aws:s3:::example-nix-cache",
        "arn:aws:s3:::example-nix-cache/*"
      ]
    }
  ]
}"#;

    fn value(document: &impl Serialize) -> Value {
        serde_json::to_value(document).unwrap()
    }

    #[test]
    fn reading_and_uploading_are_allowed_by_the_documents_of_the_nix_manual() {
        let (arns, conditions) = (arns("example-nix-cache", ""), RequestConditions::default());
        let read = Policy::bucket(READ, Form::NixManual, &arns, &principals(&[]), &conditions);
        assert_eq!(value(&read), serde_json::from_str::<Value>(MANUAL_READ).unwrap());
        let upload = Policy::identity(Access::Upload, Form::NixManual, &arns, &conditions);
        assert_eq!(value(&upload), serde_json::from_str::<Value>(MANUAL_UPLOAD).unwrap());
        let named = Policy::bucket(READ, Form::NixManual, &arns, &principals(&[USER]), &conditions);
        let mut expected: Value = serde_json::from_str(MANUAL_READ).unwrap();
        expected["Statement"][0]["Principal"] = serde_json::json!({ "AWS": [USER] });
        assert_eq!(value(&named), expected);
        // Identity policies must not have an Id.
        let identity = value(&Policy::identity(READ, Form::NixManual, &arns, &conditions));
        assert!(identity.get("Id").is_none() && identity["Statement"][0].get("Principal").is_none(), "{identity}");
    }

    #[test]
    fn listing_is_part_of_the_manual_statement_unless_there_is_a_prefix() {
        let conditions = RequestConditions::new(&[], &["vpce-1a".to_owned()], false).unwrap();
        let list = Access::Read { list: true };
        let whole = value(&Policy::bucket(list, Form::NixManual, &arns("cache", ""), &principals(&[]), &conditions));
        assert_eq!(whole["Statement"].as_array().unwrap().len(), 1);
        assert!(text(&whole).contains("s3:ListBucket"), "{whole}");
        for access in [list, Access::Upload] {
            let below = Policy::bucket(access, Form::NixManual, &arns("cache", "a/"), &principals(&[]), &conditions);
            let below = value(&below);
            let statements = below["Statement"].as_array().unwrap();
            assert_eq!(statements.len(), 2, "{below}");
            assert!(!text(&statements[0]).contains("s3:ListBucket\""), "{below}");
            assert_eq!(statements[0]["Resource"], serde_json::json!(["arn:aws:s3:::cache", "arn:aws:s3:::cache/a/*"]));
            assert_eq!(statements[1]["Action"], serde_json::json!(["s3:ListBucket"]));
            assert_eq!(statements[1]["Condition"]["StringLike"]["s3:prefix"][0], "a/*");
            for statement in statements {
                assert_eq!(statement["Condition"]["StringEquals"]["aws:SourceVpce"][0], "vpce-1a", "{below}");
            }
        }
    }

    #[test]
    fn the_minimal_policies_allow_what_the_tools_need() {
        let (arns, conditions) = (arns("example-nix-cache", ""), RequestConditions::default());
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
        assert_eq!(text(&Policy::bucket(READ, Form::Minimal, &arns, &principals(&[]), &conditions)), golden);
        let upload = Policy::identity(Access::Upload, Form::Minimal, &arns, &conditions);
        let expected = [
            "s3:AbortMultipartUpload",
            "s3:GetObject",
            "s3:ListBucket",
            "s3:ListBucketMultipartUploads",
            "s3:ListMultipartUploadParts",
            "s3:PutObject",
        ];
        assert_eq!(actions(&upload), expected);
        assert!(!text(&upload).contains("Principal"));
    }

    #[test]
    fn a_collector_writes_below_gc_only() {
        let policy =
            Policy::identity(Access::Collect, Form::NixManual, &arns("c", "a/"), &RequestConditions::default());
        assert_eq!(actions(&policy), ["s3:DeleteObject", "s3:GetObject", "s3:ListBucket", "s3:PutObject"]);
        let policy = value(&policy);
        let statements = policy["Statement"].as_array().unwrap();
        let put = statements.iter().find(|statement| statement["Action"][0] == "s3:PutObject").unwrap();
        assert_eq!(put["Resource"], serde_json::json!(["arn:aws:s3:::c/a/gc/*"]));
        assert_eq!(put["Action"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_prefix_restricts_objects_listing_and_administration() {
        let below_prefix = arns("cache", "a/b/");
        let policy = Policy::identity(Access::Admin, Form::NixManual, &below_prefix, &RequestConditions::default());
        assert!(!actions(&policy).iter().any(|action| action.contains("Lifecycle")));
        let policy = serde_json::to_value(policy).unwrap();
        assert_eq!(policy["Statement"][0]["Resource"][0], "arn:aws:s3:::cache/a/b/*");
        assert_eq!(policy["Statement"][1]["Condition"]["StringLike"]["s3:prefix"][0], "a/b/*");
        for prefix in ["*/", "a?/", "${aws:username}/", "a/b*c/"] {
            let error = BucketArns::new(Partition::Aws, "cache", prefix).unwrap_err();
            assert_eq!(error.exit_status(), 2, "{prefix}: {error}");
        }
        assert_eq!(arns("cache", "\"quoted$/").objects(), "arn:aws:s3:::cache/\"quoted$/*");
    }

    #[test]
    fn conditions_restrict_allow_statements_and_tls_is_a_deny_statement() {
        let conditions =
            RequestConditions::new(&["192.0.2.0/24".to_owned(), "2001:db8::1".to_owned()], &[], true).unwrap();
        for form in [Form::NixManual, Form::Minimal] {
            let policy = Policy::bucket(Access::Upload, form, &arns("cache", ""), &principals(&[USER]), &conditions);
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
    }

    #[test]
    fn principals_are_listed_once_in_the_order_given() {
        let readers = principals(&["999999999999", USER, "999999999999"]);
        let policy = Policy::bucket(READ, Form::Minimal, &arns("cache", ""), &readers, &RequestConditions::default());
        let policy = serde_json::to_value(policy).unwrap();
        assert_eq!(policy["Statement"][0]["Principal"], serde_json::json!({ "AWS": ["999999999999", USER] }));
        assert_eq!(text(&principals(&[USER])), format!("{{\n  \"AWS\": [\n    \"{USER}\"\n  ]\n}}"));
    }
}
