//! The lifecycle configuration: S3 aborts multipart uploads that are not completed in time.

use nar_pack::error::Result;
use serde::Serialize;

use super::arn::check_prefix;

/// A lifecycle configuration with one rule.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Lifecycle {
    rules: [Rule; 1],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Rule {
    #[serde(rename = "ID")]
    id: &'static str,
    status: &'static str,
    filter: Filter,
    abort_incomplete_multipart_upload: Abort,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Filter {
    prefix: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Abort {
    days_after_initiation: u16,
}

impl Lifecycle {
    /// Aborts uploads to keys below `prefix` that are not complete `days` days after they started.
    ///
    /// # Errors
    /// A usage error for a prefix that is not allowed in a policy. It has no special meaning in this document, but the
    /// same prefix must work for all documents.
    pub fn abort_incomplete_uploads(prefix: &str, days: u16) -> Result<Self> {
        check_prefix(prefix)?;
        let rule = Rule {
            id: "abort-incomplete-uploads",
            status: "Enabled",
            filter: Filter { prefix: prefix.to_owned() },
            abort_incomplete_multipart_upload: Abort { days_after_initiation: days },
        };
        Ok(Self { rules: [rule] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_names_the_prefix_and_the_days() {
        let lifecycle = serde_json::to_value(Lifecycle::abort_incomplete_uploads("a/", 7).unwrap()).unwrap();
        let rule = &lifecycle["Rules"][0];
        assert_eq!(rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"], 7);
        assert_eq!((&rule["Filter"]["Prefix"], &rule["Status"]), (&"a/".into(), &"Enabled".into()));
        assert_eq!(Lifecycle::abort_incomplete_uploads("a*/", 7).unwrap_err().exit_code(), 2);
    }
}
