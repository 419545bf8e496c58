//! Templates of CloudFormation, in JSON.

use nar_pack::error::{Error, Result};
use serde_json::{Value, json};

use super::{Resource, access_name, value};

/// CloudFormation replaces `{{resolve:…}}` in every string (CloudFormation user guide, "Get values stored in other services
/// using dynamic references").
const DYNAMIC_REFERENCE: &str = "{{resolve:";

/// Returns a template with one resource.
///
/// # Errors
/// A usage error for a prefix that would be replaced when the template is applied.
pub fn to_cloudformation(resource: &Resource) -> Result<Value> {
    let template = match resource {
        Resource::BucketPolicy { bucket, access, policy } => {
            let properties = json!({ "Bucket": bucket, "PolicyDocument": value(policy)? });
            let name = format!("NixCache{}Policy", access_name(*access));
            template("Policy of a bucket that is a Nix binary cache", &name, "AWS::S3::BucketPolicy", &properties)
        }
        Resource::IdentityPolicy { access, policy } => {
            let name = format!("NixCache{}Policy", access_name(*access));
            let description = "Policy for users and roles of a Nix binary cache";
            template(description, &name, "AWS::IAM::ManagedPolicy", &json!({ "PolicyDocument": value(policy)? }))
        }
        Resource::Lifecycle { bucket, lifecycle } => {
            let rules = lifecycle.cloudformation_rules();
            let properties = json!({ "BucketName": bucket, "LifecycleConfiguration": { "Rules": rules } });
            let description = "Bucket of a Nix binary cache, with its lifecycle rules";
            let mut template = template(description, "NixCacheBucket", "AWS::S3::Bucket", &properties);
            // Deleting the stack must not delete the cache. An existing bucket can be imported only with these.
            for policy in ["DeletionPolicy", "UpdateReplacePolicy"] {
                template["Resources"]["NixCacheBucket"][policy] = json!("Retain");
            }
            template
        }
    };
    if template.to_string().contains(DYNAMIC_REFERENCE) {
        return Err(Error::usage(format!(
            "a prefix with {DYNAMIC_REFERENCE:?} cannot be used with --format cloudformation"
        )));
    }
    Ok(template)
}

fn template(description: &str, name: &str, kind: &str, properties: &Value) -> Value {
    json!({
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": description,
        "Resources": { name: { "Type": kind, "Properties": properties } },
    })
}
