//! The lifecycle configuration: S3 aborts multipart uploads that are not completed in time, and in a bucket with
//! versioning removes the versions that were deleted or replaced long ago.

use nar_pack::error::Result;
use serde::Serialize;
use serde_json::{Value, json};

use super::arn::check_prefix;

/// A lifecycle configuration.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Lifecycle {
    rules: Vec<Rule>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Rule {
    #[serde(rename = "ID")]
    id: &'static str,
    status: &'static str,
    filter: Filter,
    #[serde(flatten)]
    action: Action,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Filter {
    prefix: String,
}

/// What a rule does. The documents are those of `PutBucketLifecycleConfiguration` in the Amazon S3 API reference.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Action {
    #[serde(rename_all = "PascalCase")]
    AbortUploads { abort_incomplete_multipart_upload: Abort },
    #[serde(rename_all = "PascalCase")]
    ExpireVersions { noncurrent_version_expiration: NoncurrentVersions, expiration: DeleteMarkers },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Abort {
    days_after_initiation: u16,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NoncurrentVersions {
    noncurrent_days: u16,
}

/// Removes delete markers of objects that have no version any more.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteMarkers {
    expired_object_delete_marker: bool,
}

impl Lifecycle {
    /// Aborts uploads to keys below `prefix` that are not complete `days` days after they started, and if
    /// `noncurrent_days` is given, removes versions so many days after they were deleted or replaced.
    ///
    /// # Errors
    /// A usage error for a prefix that is not allowed in a policy. It has no special meaning in this document, but the
    /// same prefix must work for all documents.
    pub fn new(prefix: &str, days: u16, noncurrent_days: Option<u16>) -> Result<Self> {
        check_prefix(prefix)?;
        let rule = |id, action| Rule { id, status: "Enabled", filter: Filter { prefix: prefix.to_owned() }, action };
        let abort = Action::AbortUploads { abort_incomplete_multipart_upload: Abort { days_after_initiation: days } };
        let expire = noncurrent_days.map(|days| Action::ExpireVersions {
            noncurrent_version_expiration: NoncurrentVersions { noncurrent_days: days },
            expiration: DeleteMarkers { expired_object_delete_marker: true },
        });
        let mut rules = vec![rule("abort-incomplete-uploads", abort)];
        rules.extend(expire.map(|expire| rule("expire-noncurrent-versions", expire)));
        Ok(Self { rules })
    }

    /// Returns the rules as CloudFormation has them (CloudFormation template reference, "AWS::S3::Bucket Rule").
    #[must_use]
    pub fn cloudformation_rules(&self) -> Vec<Value> {
        self.rules.iter().map(Rule::to_cloudformation).collect()
    }
}

impl Rule {
    fn to_cloudformation(&self) -> Value {
        let mut rule = json!({ "Id": self.id, "Status": self.status });
        if !self.filter.prefix.is_empty() {
            rule["Prefix"] = json!(self.filter.prefix);
        }
        match &self.action {
            Action::AbortUploads { abort_incomplete_multipart_upload } => {
                rule["AbortIncompleteMultipartUpload"] = json!(abort_incomplete_multipart_upload);
            }
            Action::ExpireVersions { noncurrent_version_expiration, expiration } => {
                rule["NoncurrentVersionExpiration"] = json!(noncurrent_version_expiration);
                rule["ExpiredObjectDeleteMarker"] = json!(expiration.expired_object_delete_marker);
            }
        }
        rule
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_name_the_prefix_and_the_days() {
        let lifecycle = serde_json::to_value(Lifecycle::new("a/", 7, None).unwrap()).unwrap();
        let rule = &lifecycle["Rules"][0];
        assert_eq!(rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"], 7);
        assert_eq!((&rule["Filter"]["Prefix"], &rule["Status"]), (&"a/".into(), &"Enabled".into()));
        assert_eq!(lifecycle["Rules"].as_array().unwrap().len(), 1);
        assert_eq!(Lifecycle::new("a*/", 7, None).unwrap_err().exit_status(), 2);
        let lifecycle = serde_json::to_value(Lifecycle::new("a/", 7, Some(30)).unwrap()).unwrap();
        assert_eq!(lifecycle["Rules"][0], *rule);
        let rule = &lifecycle["Rules"][1];
        assert_eq!(rule["NoncurrentVersionExpiration"]["NoncurrentDays"], 30);
        assert_eq!((&rule["Filter"]["Prefix"], &rule["Status"]), (&"a/".into(), &"Enabled".into()));
    }
}
