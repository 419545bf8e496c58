//! The trust policy of a role that jobs of a CI provider assume with an OpenID Connect token. Subjects must name one
//! project without wildcards, so that jobs of other projects cannot assume the role.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nar_pack::error::{Error, Result};
use s3_push::remote::location::is_host_label;
use serde::Serialize;

use super::arn::Partition;
use super::{Effect, POLICY_VERSION, is_account_id};

/// The trust policy of a role.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TrustPolicy {
    version: &'static str,
    statement: [TrustStatement; 1],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct TrustStatement {
    sid: &'static str,
    effect: Effect,
    principal: Federated,
    action: &'static str,
    condition: BTreeMap<&'static str, BTreeMap<String, Vec<String>>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Federated {
    federated: String,
}

impl TrustPolicy {
    /// Allows jobs with these subjects to assume the role.
    ///
    /// # Errors
    /// A usage error for an invalid provider, account, audience or subject.
    pub fn oidc(
        partition: Partition,
        provider: &str,
        account: &str,
        audience: &str,
        subjects: &[String],
    ) -> Result<Self> {
        let provider = provider.strip_prefix("https://").unwrap_or(provider).trim_end_matches('/');
        if !is_provider(provider) {
            return Err(Error::usage(format!("invalid provider {provider:?}: expected HOST[/PATH] without a port")));
        }
        if !is_account_id(account) {
            return Err(Error::usage(format!("invalid account {account:?}: expected 12 digits")));
        }
        if audience.is_empty() || audience.contains(|c: char| c.is_control() || "*?$".contains(c)) {
            return Err(Error::usage(format!(
                "invalid audience {audience:?}: it must not be empty or contain *, ? or $"
            )));
        }
        for subject in subjects {
            check_subject(subject, provider)?;
        }
        let mut condition: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        condition.entry("StringEquals").or_default().insert(format!("{provider}:aud"), vec![audience.to_owned()]);
        // One operator for all subjects, because a token would have to match both of two operators.
        let has_wildcard = subjects.iter().any(|subject| subject.contains(['*', '?']));
        let operator = if has_wildcard { "StringLike" } else { "StringEquals" };
        condition.entry(operator).or_default().insert(format!("{provider}:sub"), subjects.to_vec());
        let statement = TrustStatement {
            sid: "CacheUploadFromCi",
            effect: Effect::Allow,
            principal: Federated { federated: format!("arn:{partition}:iam::{account}:oidc-provider/{provider}") },
            action: "sts:AssumeRoleWithWebIdentity",
            condition,
        };
        Ok(Self { version: POLICY_VERSION, statement: [statement] })
    }
}

/// Requires `KIND:OWNER/PROJECT…`, with wildcards only after the part that names the project: the text before the first
/// slash, and the text before the second colon. KIND must not be something that anyone can choose, such as the name of a
/// branch, where that is known.
fn check_subject(subject: &str, provider: &str) -> Result {
    let host = provider.split('/').next().unwrap_or_default().to_ascii_lowercase();
    let kinds: &[&str] = match host.as_str() {
        "token.actions.githubusercontent.com" => &["repo:", "repository:"],
        "gitlab.com" => &["project_path:"],
        _ => &[""],
    };
    if !kinds.iter().any(|kind| subject.starts_with(kind)) {
        let kind = kinds[0];
        return Err(Error::usage(format!("invalid subject {subject:?}: expected {kind}OWNER/PROJECT… for {provider}")));
    }
    let names_project = subject.split_once('/').is_some_and(|(owner, rest)| owner.contains(':') && !rest.is_empty());
    let mut project_parts = subject.split('/').take(1).chain(subject.split(':').take(2));
    let has_open_project = project_parts.any(|part| part.contains(['*', '?']));
    let has_variable = subject.contains(|c: char| c.is_control() || c == '$');
    if !names_project || has_open_project || has_variable {
        return Err(Error::usage(format!(
            "invalid subject {subject:?}: expected KIND:OWNER/PROJECT…, without wildcards in KIND:OWNER/PROJECT"
        )));
    }
    Ok(())
}

/// Whether `text` is the issuer of an identity provider without its scheme: a host, and for some providers a path (IAM
/// user guide, "Create an OpenID Connect (OIDC) identity provider in IAM": no port, no query).
fn is_provider(text: &str) -> bool {
    let (host, path) = text.split_once('/').map_or((text, None), |(host, path)| (host, Some(path)));
    let is_label = |label: &str| is_host_label(label) && !label.contains('_');
    let is_path_part = |part: &str| {
        !matches!(part, "" | "." | "..") && part.chars().all(|c| c.is_ascii_alphanumeric() || "-._~".contains(c))
    };
    host.contains('.')
        && host.parse::<IpAddr>().is_err()
        && host.split('.').all(is_label)
        && path.is_none_or(|path| path.split('/').all(is_path_part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_must_name_a_project() {
        let trust = |subjects: &[&str]| {
            let subjects: Vec<String> = subjects.iter().map(|&text| text.to_owned()).collect();
            let provider = "token.actions.githubusercontent.com";
            TrustPolicy::oidc(Partition::AwsUsGov, provider, "123456789012", "sts.amazonaws.com", &subjects)
        };
        let exact = serde_json::to_value(trust(&["repo:example/project:ref:refs/heads/main"]).unwrap()).unwrap();
        let statement = &exact["Statement"][0];
        let provider = "arn:aws-us-gov:iam::123456789012:oidc-provider/token.actions.githubusercontent.com";
        assert_eq!(statement["Principal"]["Federated"], provider);
        let equals = &statement["Condition"]["StringEquals"];
        assert_eq!(equals["token.actions.githubusercontent.com:aud"][0], "sts.amazonaws.com");
        assert_eq!(equals["token.actions.githubusercontent.com:sub"][0], "repo:example/project:ref:refs/heads/main");
        let wild = serde_json::to_value(trust(&["repo:example/project:*"]).unwrap()).unwrap();
        assert!(wild["Statement"][0]["Condition"]["StringLike"].is_object());
        for open in [
            "",
            "*",
            "repo:*",
            "repo:exam*/project",
            "repo:example",
            "example/project",
            "repo:example/",
            "a:b/${c}",
            "repo:example/*",
            "repo:example/proj*",
            "repo:x:y*/z",
        ] {
            assert_eq!(trust(&[open]).unwrap_err().exit_status(), 2, "{open}");
        }
    }

    #[test]
    fn providers_are_a_host_and_a_path() {
        let trust = |provider: &str| {
            let kind = if provider.contains("gitlab.com") { "project_path" } else { "a" };
            let subjects = [format!("{kind}:b/c")];
            TrustPolicy::oidc(Partition::Aws, provider, "123456789012", "sts.amazonaws.com", &subjects)
        };
        for good in ["gitlab.com", "https://gitlab.com/", "agent.buildkite.com", "oidc.circleci.com/org/1a2b-3c"] {
            assert!(trust(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "gitlab",
            "gitlab..com",
            ".gitlab.com",
            "gitlab.com.",
            "-a.example.org",
            "gitlab.com:443",
            "http://gitlab.com",
            "u@gitlab.com",
            "gitlab.com//x",
            "gitlab.com/../x",
            "gitlab.com/a?b",
            "192.0.2.1",
            "*.example.org",
            "gitlab.com/${x}",
        ] {
            assert_eq!(trust(bad).unwrap_err().exit_status(), 2, "{bad}");
        }
    }
}
