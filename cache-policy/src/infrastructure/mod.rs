//! The documents as resources of tools that manage infrastructure: OpenTofu and Terraform, and CloudFormation.

mod cloudformation;
mod tofu;

pub use cloudformation::to_cloudformation;
pub use tofu::to_tofu;

use clap::ValueEnum;
use nar_pack::error::{Error, Result};
use serde::Serialize;
use serde_json::Value;

use crate::documents::lifecycle::Lifecycle;
use crate::documents::policy::{Access, Policy};

/// The form in which a document is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// The document itself
    #[default]
    Json,
    /// A resource of OpenTofu or Terraform
    Tofu,
    /// A template of CloudFormation
    Cloudformation,
}

/// A resource, with the document that is its contents.
#[derive(Debug)]
pub enum Resource {
    /// The policy of a bucket.
    BucketPolicy {
        /// The name of the bucket.
        bucket: String,
        /// What the policy allows.
        access: Access,
        /// The policy.
        policy: Policy,
    },
    /// A policy to be attached to users and roles.
    IdentityPolicy {
        /// What the policy allows.
        access: Access,
        /// The policy.
        policy: Policy,
    },
    /// The lifecycle rules of a bucket.
    Lifecycle {
        /// The name of the bucket.
        bucket: String,
        /// The rules.
        lifecycle: Lifecycle,
    },
}

/// Returns what a resource with this access is named after, in upper camel case.
fn access_name(access: Access) -> &'static str {
    match access {
        Access::Read { .. } => "Read",
        Access::Upload => "Upload",
        Access::Admin => "Admin",
        Access::Collect => "Collect",
    }
}

fn value(document: &impl Serialize) -> Result<Value> {
    serde_json::to_value(document).map_err(Error::failed)
}
