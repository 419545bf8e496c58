//! The documents, as types that serialize to the JSON of S3 and IAM. Fields are declared in the order in which they are
//! printed, so the same arguments give the same bytes. Text from the command line becomes part of a document only
//! through a type that validates it.
//!
//! | module | responsibility |
//! | --- | --- |
//! | [`policy`] | bucket policies and identity policies, and the actions that each allows |
//! | [`principal`] | who a bucket policy applies to |
//! | [`condition`] | from which networks requests may come |
//! | [`arn`] | partitions, and the ARNs of a bucket and its objects |
//! | [`lifecycle`] | the rule that aborts incomplete uploads |
//! | [`cors`] | which web pages may read |
//! | [`oidc_trust`] | which CI jobs may assume a role |

pub mod arn;
pub mod condition;
pub mod cors;
pub mod lifecycle;
pub mod oidc_trust;
pub mod policy;
pub mod principal;

use serde::Serialize;

/// The current version of the policy language (IAM user guide, "IAM JSON policy elements: Version").
const POLICY_VERSION: &str = "2012-10-17";

/// Whether a statement allows or denies.
#[derive(Debug, Clone, Copy, Serialize)]
enum Effect {
    Allow,
    Deny,
}

/// Whether `text` is an AWS account ID.
fn is_account_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}
