//! The documents: what each allows, to whom, and where.
//!
//! Every document is a type whose fields stand in the order in which they are printed, so the same request gives the
//! same bytes. There are two kinds of [`Policy`]: one hangs on the bucket and so says whom it is about; the other hangs
//! on a user or role and cannot name one. What a statement may hold is a type of its own ([`Action`], [`Principal`],
//! [`Place`], [`Origins`]): text from the command line becomes part of a document only through one.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use clap::ValueEnum;
use nar_pack::error::{Context, Error, Result};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

/// The version of the policy language; there is no newer one.
const VERSION: &str = "2012-10-17";

/// The longest ARN, in bytes, that IAM takes.
const LONGEST_ARN: usize = 2048;

/// What a document lets people do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Read objects whose keys they know, and with `list` find out what there is.
    Read {
        /// Whether they may list.
        list: bool,
    },
    /// Read, list and write, but not delete.
    Upload,
    /// Read, list and delete, give up uploads and set lifecycle rules, but not write.
    Admin,
}

impl Role {
    /// What is allowed on objects.
    fn on_objects(self) -> &'static [Action] {
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

    fn lists(self) -> bool {
        self != Self::Read { list: false }
    }

    /// What is allowed on the bucket as a whole. A lifecycle rule reaches all of it, so one who administrates a part
    /// sets none.
    fn on_bucket(self, place: &Place) -> &'static [Action] {
        match self {
            Self::Read { .. } => &[],
            Self::Admin if place.prefix.is_empty() => &[
                Action::GetLifecycleConfiguration,
                Action::ListBucketMultipartUploads,
                Action::PutLifecycleConfiguration,
            ],
            Self::Upload | Self::Admin => &[Action::ListBucketMultipartUploads],
        }
    }

    fn sid(self) -> &'static str {
        match self {
            Self::Read { .. } => "CacheRead",
            Self::Upload => "CacheUpload",
            Self::Admin => "CacheAdmin",
        }
    }
}

/// A policy document, for a bucket or for a user or role.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Policy {
    version: &'static str,
    statement: Vec<Statement>,
}

/// One statement of a [`Policy`].
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Statement {
    sid: String,
    effect: Effect,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<Whom>,
    action: Vec<Action>,
    resource: Vec<String>,
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    condition: Conditions,
}

/// Operators, and the keys and values that each compares.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
struct Conditions(BTreeMap<&'static str, BTreeMap<&'static str, Vec<String>>>);

impl Conditions {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn and(mut self, operator: &'static str, key: &'static str, values: Vec<String>) -> Self {
        self.0.entry(operator).or_default().insert(key, values);
        self
    }
}

/// From where requests may come.
#[derive(Debug, Clone, Default)]
pub struct Origins {
    addresses: Vec<String>,
    endpoints: Vec<String>,
    /// Whether every request without TLS is denied.
    pub tls: bool,
}

impl Origins {
    /// From anywhere, or from these addresses, or through these VPC endpoints.
    ///
    /// # Errors
    /// A usage failure for what is neither an address nor a range of addresses, or no endpoint.
    pub fn new(addresses: &[String], endpoints: &[String], tls: bool) -> Result<Self> {
        for address in addresses {
            check_cidr(address).context(|| format!("source {address:?}"))?;
        }
        for endpoint in endpoints {
            let digits = endpoint.strip_prefix("vpce-").unwrap_or_default();
            if digits.is_empty() || digits.len() > 32 || !digits.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(Error::failed(format!("VPC endpoint {endpoint:?}: expected vpce- and digits")));
            }
        }
        Ok(Self { addresses: addresses.to_vec(), endpoints: endpoints.to_vec(), tls })
    }

    fn conditions(&self) -> Conditions {
        let mut conditions = Conditions::default();
        if !self.addresses.is_empty() {
            conditions = conditions.and("IpAddress", "aws:SourceIp", self.addresses.clone());
        }
        if !self.endpoints.is_empty() {
            conditions = conditions.and("StringEquals", "aws:SourceVpce", self.endpoints.clone());
        }
        conditions
    }
}

/// An address, or a range whose first address stands before the slash: one that has bits after it may be a slip of
/// either number.
fn check_cidr(text: &str) -> Result {
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let parsed = address.parse::<IpAddr>().ok();
    let (address, width) = match parsed {
        Some(IpAddr::V4(address)) => (u128::from(address.to_bits()), 32),
        Some(IpAddr::V6(address)) => (address.to_bits(), 128),
        None => return Err(Error::failed("expected an address or ADDRESS/BITS")),
    };
    let Some(bits) = bits else { return Ok(()) };
    let bits = Some(bits).filter(|bits| bits.bytes().all(|c| c.is_ascii_digit())).and_then(|bits| bits.parse().ok());
    let Some(rest) = bits.and_then(|bits: u32| u32::checked_sub(width, bits)) else {
        return Err(Error::failed(format!("expected at most {width} bits after the slash")));
    };
    // All bits of the last part may be free.
    let free = u128::MAX.checked_shr(128 - rest).unwrap_or(0);
    if address & free != 0 {
        return Err(Error::failed("the address is not the first of its range: more bits, or zeros after them"));
    }
    Ok(())
}

impl Policy {
    /// A policy for a bucket, about those it names.
    #[must_use]
    pub fn bucket(role: Role, place: &Place, readers: &Readers, origins: &Origins) -> Self {
        Self::new(role, place, Some(readers), origins)
    }

    /// A policy for a user, group or role, about whoever has it.
    #[must_use]
    pub fn identity(role: Role, place: &Place, origins: &Origins) -> Self {
        Self::new(role, place, None, origins)
    }

    fn new(role: Role, place: &Place, whom: Option<&Readers>, origins: &Origins) -> Self {
        let allow = |part: &str, action: &[Action], resource: String, condition: Conditions| Statement {
            sid: format!("{}{part}", role.sid()),
            effect: Effect::Allow,
            principal: whom.cloned().map(Whom::Readers),
            action: action.to_vec(),
            resource: vec![resource],
            condition,
        };
        let mut statement = vec![allow("Objects", role.on_objects(), place.objects(), origins.conditions())];
        if role.lists() {
            let mut condition = origins.conditions();
            if !place.prefix.is_empty() {
                condition = condition.and("StringLike", "s3:prefix", vec![format!("{}*", place.prefix)]);
            }
            statement.push(allow("List", &[Action::ListBucket], place.bucket_arn(), condition));
        }
        let on_bucket = role.on_bucket(place);
        if !on_bucket.is_empty() {
            statement.push(allow("Bucket", on_bucket, place.bucket_arn(), origins.conditions()));
        }
        if origins.tls {
            statement.push(Statement {
                sid: "DenyWithoutTls".to_owned(),
                effect: Effect::Deny,
                principal: whom.map(|_| Whom::Everybody),
                action: vec![Action::All],
                resource: vec![place.bucket_arn(), place.objects()],
                condition: Conditions::default().and("Bool", "aws:SecureTransport", vec!["false".to_owned()]),
            });
        }
        Self { version: VERSION, statement }
    }
}

/// A lifecycle configuration that gives unfinished uploads up.
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
    /// Gives uploads below `prefix` up that are not complete after so many days.
    ///
    /// # Errors
    /// A usage failure for a prefix that a policy could not have either: there `*` is a wildcard, here it is a star.
    pub fn abort_incomplete(prefix: &str, days: u16) -> Result<Self> {
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

/// A CORS configuration: web pages may read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Cors {
    #[serde(rename = "CORSRules")]
    rules: [CorsRule; 1],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct CorsRule {
    #[serde(rename = "ID")]
    id: &'static str,
    allowed_origins: Vec<String>,
    allowed_methods: [&'static str; 2],
    allowed_headers: [&'static str; 2],
    expose_headers: [&'static str; 3],
    max_age_seconds: u32,
}

impl Cors {
    /// For pages of these origins, or of all.
    ///
    /// # Errors
    /// A usage failure for what is no origin: a scheme and a host, and nothing after it.
    pub fn read(origins: &[String]) -> Result<Self> {
        for origin in origins {
            let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            let plain = |host: &str| {
                !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-.:[]*".contains(c))
            };
            if !host.is_some_and(plain) || origin.matches('*').count() > 1 {
                return Err(Error::failed(format!("origin {origin:?}: expected https://HOST[:PORT]")));
            }
        }
        let all = || vec!["*".to_owned()];
        let rule = CorsRule {
            id: "read-cache",
            allowed_origins: if origins.is_empty() { all() } else { origins.to_vec() },
            allowed_methods: ["GET", "HEAD"],
            allowed_headers: ["If-None-Match", "Range"],
            expose_headers: ["Content-Length", "Content-Range", "ETag"],
            max_age_seconds: 86_400,
        };
        Ok(Self { rules: [rule] })
    }
}

/// Who may assume a role: jobs of a CI provider that signs tokens for them.
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
    /// Lets jobs with these subjects assume the role that has this policy.
    ///
    /// # Errors
    /// A usage failure for a malformed provider, account, audience or subject, and of a subject that would let in the jobs of
    /// other projects: one with a wildcard before its first slash.
    pub fn oidc(
        partition: Partition,
        provider: &str,
        account: &str,
        audience: &str,
        subjects: &[String],
    ) -> Result<Self> {
        let provider = provider.strip_prefix("https://").unwrap_or(provider).trim_end_matches('/');
        if !is_provider(provider) {
            return Err(Error::failed(format!("provider {provider:?}: expected HOST[/PATH], without a port")));
        }
        if !is_account(account) {
            return Err(Error::failed(format!("account {account:?}: expected 12 digits")));
        }
        if audience.is_empty() || audience.contains(|c: char| c.is_control() || "*?$".contains(c)) {
            return Err(Error::failed(format!("audience {audience:?}: expected what the token says, without * and ?")));
        }
        for subject in subjects {
            let project = subject.split_once('/').map(|(project, rest)| project.contains(':') && !rest.is_empty());
            // What is before the first slash, and up to the second colon, names the project.
            let mut named = subject.split('/').take(1).chain(subject.split(':').take(2));
            let open = named.any(|part| part.contains(['*', '?']));
            if subject.contains(|c: char| c.is_control() || c == '$') || project != Some(true) || open {
                return Err(Error::failed(format!(
                    "subject {subject:?}: expected KIND:OWNER/PROJECT…, without a wildcard in KIND:OWNER/PROJECT"
                )));
            }
        }
        let mut condition: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        condition.entry("StringEquals").or_default().insert(format!("{provider}:aud"), vec![audience.to_owned()]);
        // One operator for all subjects: two would have to match both.
        let wild = subjects.iter().any(|subject| subject.contains(['*', '?']));
        let operator = if wild { "StringLike" } else { "StringEquals" };
        condition.entry(operator).or_default().insert(format!("{provider}:sub"), subjects.to_vec());
        let statement = TrustStatement {
            sid: "CacheUploadFromCi",
            effect: Effect::Allow,
            principal: Federated { federated: format!("arn:{partition}:iam::{account}:oidc-provider/{provider}") },
            action: "sts:AssumeRoleWithWebIdentity",
            condition,
        };
        Ok(Self { version: VERSION, statement: [statement] })
    }
}

/// A host, and the path that some providers' issuers have (IAM user guide, "Create an OpenID Connect identity
/// provider": no port, no query).
fn is_provider(text: &str) -> bool {
    let (host, path) = text.split_once('/').map_or((text, None), |(host, path)| (host, Some(path)));
    let plain = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let label = |label: &str| plain(label, "-") && !label.starts_with('-') && !label.ends_with('-') && label.len() < 64;
    host.contains('.')
        && host.parse::<IpAddr>().is_err()
        && host.split('.').all(label)
        && path.is_none_or(|path| path.split('/').all(|part| plain(part, "-._~") && !matches!(part, "." | "..")))
}

/// What a statement allows or denies.
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

#[derive(Debug, Clone, Copy, Serialize)]
enum Effect {
    Allow,
    Deny,
}

/// Whom a statement of a bucket policy is about.
#[derive(Debug, Clone)]
enum Whom {
    Everybody,
    Readers(Readers),
}

impl Serialize for Whom {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Everybody => serializer.serialize_str("*"),
            Self::Readers(readers) => readers.serialize(serializer),
        }
    }
}

/// Whom a bucket policy allows something: everybody, or those who are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readers(Vec<Principal>);

impl Readers {
    /// These, each once, in this order; everybody when there are none.
    #[must_use]
    pub fn new(mut principals: Vec<Principal>) -> Self {
        let mut seen = Vec::with_capacity(principals.len());
        principals.retain(|principal| {
            let new = !seen.contains(principal);
            seen.extend(new.then(|| principal.clone()));
            new
        });
        Self(principals)
    }
}

/// `"*"`, or `{"AWS": [...]}`.
impl Serialize for Readers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_empty() {
            return serializer.serialize_str("*");
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("AWS", &self.0)?;
        map.end()
    }
}

/// An account, user or role, as a bucket policy names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Principal(String);

impl Principal {
    /// Parses `arn:aws:iam::ACCOUNT:root`, `…:user/NAME` or `…:role/NAME`, of any partition, or the 12 digits of an
    /// account.
    ///
    /// # Errors
    /// A usage failure, for anything else. A wildcard too: S3 knows none within a principal, and takes `*` for everybody.
    pub fn parse(text: &str) -> Result<Self> {
        Self::check(text).context(|| format!("principal {text:?}"))?;
        Ok(Self(text.to_owned()))
    }

    /// A user whom a service knows by the access key ID (versitygw, `auth/bucket_policy_principals.go`).
    ///
    /// # Errors
    /// A usage failure for what would mean something else.
    pub fn key_id(text: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-".contains(c);
        if text.is_empty() || text.len() > 128 || !text.chars().all(plain) {
            return Err(Error::failed(format!("access key ID {text:?}: expected letters and digits")));
        }
        Ok(Self(text.to_owned()))
    }

    fn check(text: &str) -> Result {
        let wrong = |why: &str| Err(Error::failed(why));
        if text == "*" {
            return wrong("without --principal everybody may read");
        }
        if is_account(text) {
            return Ok(());
        }
        let expected = "expected arn:aws:iam::ACCOUNT:user/NAME, …:role/NAME or …:root, or an account of 12 digits";
        let mut parts = text.splitn(6, ':');
        let mut part = || parts.next().unwrap_or_default();
        let (arn, partition, service, region, account, resource) = (part(), part(), part(), part(), part(), part());
        if text.len() > LONGEST_ARN || (arn, service, region) != ("arn", "iam", "") || !is_account(account) {
            return wrong(expected);
        }
        if Partition::named(partition).is_none() {
            return wrong("the partition is none of aws, aws-cn, aws-us-gov");
        }
        let name = resource.strip_prefix("user/").or_else(|| resource.strip_prefix("role/"));
        let plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "+=,.@_-/".contains(c));
        let whole = |name: &str| plain(name) && name.split('/').all(|segment| !segment.is_empty());
        if resource == "root" || name.is_some_and(whole) { Ok(()) } else { wrong(expected) }
    }

    /// The partition of an ARN; an account's number tells none.
    fn partition(&self) -> Option<Partition> {
        Partition::named(self.0.split(':').nth(1)?)
    }
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// A part of AWS that shares no accounts with the others; services that are not AWS use the name of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Partition {
    /// All but the two below.
    #[default]
    Aws,
    /// China.
    AwsCn,
    /// The United States' government.
    AwsUsGov,
}

impl Partition {
    fn named(name: &str) -> Option<Self> {
        [Self::Aws, Self::AwsCn, Self::AwsUsGov].into_iter().find(|partition| partition.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::AwsCn => "aws-cn",
            Self::AwsUsGov => "aws-us-gov",
        }
    }

    /// The partition that a region is in.
    #[must_use]
    pub fn of_region(region: &str) -> Self {
        match region {
            region if region.starts_with("cn-") => Self::AwsCn,
            region if region.starts_with("us-gov-") => Self::AwsUsGov,
            _ => Self::Aws,
        }
    }

    /// The partition that the principals are of, and so the bucket that they read; none where no ARN tells.
    ///
    /// # Errors
    /// A usage failure when they are of different ones, between which there are no permissions.
    pub fn of(principals: &[Principal]) -> Result<Option<Self>> {
        let mut partitions = principals.iter().filter_map(Principal::partition);
        let Some(first) = partitions.next() else { return Ok(None) };
        match partitions.find(|&other| other != first) {
            None => Ok(Some(first)),
            Some(other) => Err(Error::failed(format!("principals of {first} and of {other} cannot share a bucket"))),
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn check_prefix(prefix: &str) -> Result {
    if prefix.contains(['*', '?']) || prefix.contains("${") {
        return Err(Error::failed(format!("prefix {prefix:?}: *, ? and ${{ have a meaning of their own in a policy")));
    }
    Ok(())
}

/// A bucket and the objects of the cache in it.
#[derive(Debug, Clone)]
pub struct Place {
    partition: Partition,
    bucket: String,
    prefix: String,
}

impl Place {
    /// A bucket, and the prefix of its keys: empty, or ending in a slash.
    ///
    /// # Errors
    /// A usage failure for a prefix that would mean something else in a policy: `*` and `?` match other keys there, `${…}` is
    /// a variable.
    pub fn new(partition: Partition, bucket: &str, prefix: &str) -> Result<Self> {
        check_prefix(prefix)?;
        Ok(Self { partition, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }

    /// The ARN of the bucket.
    fn bucket_arn(&self) -> String {
        format!("arn:{}:s3:::{}", self.partition, self.bucket)
    }

    /// The ARN of all objects below the prefix.
    fn objects(&self) -> String {
        format!("arn:{}:s3:::{}/{}*", self.partition, self.bucket, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = "arn:aws:iam::123456789012:user/ci/alice";

    fn text(document: &impl Serialize) -> String {
        serde_json::to_string_pretty(document).unwrap()
    }

    fn at(bucket: &str, prefix: &str) -> Place {
        Place::new(Partition::Aws, bucket, prefix).unwrap()
    }

    fn named(principals: &[&str]) -> Readers {
        Readers::new(principals.iter().map(|text| Principal::parse(text).unwrap()).collect())
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
        let role = Role::Read { list: false };
        let policy = Policy::bucket(role, &at("example-nix-cache", ""), &named(&[]), &Origins::default());
        assert_eq!(text(&policy), golden);
    }

    /// The Nix manual's documents also allow `s3:GetBucketLocation`, for which neither Nix nor these tools ask.
    #[test]
    fn upload_is_what_the_manual_allows_but_the_location() {
        let policy = Policy::identity(Role::Upload, &at("example-nix-cache", ""), &Origins::default());
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
    fn a_prefix_narrows_objects_listing_and_administration() {
        let place = at("cache", "a/b/");
        let policy = Policy::identity(Role::Admin, &place, &Origins::default());
        assert!(!actions(&policy).iter().any(|action| action.contains("Lifecycle")));
        let policy = serde_json::to_value(policy).unwrap();
        assert_eq!(policy["Statement"][0]["Resource"][0], "arn:aws:s3:::cache/a/b/*");
        assert_eq!(policy["Statement"][1]["Condition"]["StringLike"]["s3:prefix"][0], "a/b/*");
        for hostile in ["*/", "a?/", "${aws:username}/", "a/b*c/"] {
            let failure = Place::new(Partition::Aws, "cache", hostile).unwrap_err();
            assert_eq!(failure.exit_code(), 2, "{hostile}: {failure}");
        }
        assert_eq!(at("cache", "\"quoted$/").objects(), "arn:aws:s3:::cache/\"quoted$/*");
    }

    #[test]
    fn origins_narrow_what_is_allowed_and_tls_is_a_denial() {
        let origins = Origins::new(&["192.0.2.0/24".to_owned(), "2001:db8::1".to_owned()], &[], true).unwrap();
        let policy = Policy::bucket(Role::Upload, &at("cache", ""), &named(&[USER]), &origins);
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
        for bad in [
            "",
            "x",
            "192.0.2.0/33",
            "192.0.2.0/+8",
            "192.0.2.0/",
            "2001:db8::/129",
            "*",
            "192.0.2.0/8/8",
            "192.0.2.1/24",
            "192.0.2.0/0",
            "2001:db8::1/64",
            "192.0.2.0/4294967296",
        ] {
            assert_eq!(Origins::new(&[bad.to_owned()], &[], false).unwrap_err().exit_code(), 2, "{bad}");
        }
        let good =
            ["0.0.0.0/0", "192.0.2.0/23", "192.0.2.1/32", "192.0.2.1", "::/0", "2001:db8::/32", "2001:db8::1/128"];
        assert!(Origins::new(&good.map(str::to_owned), &[], false).is_ok());
        for bad in ["", "vpce-", "vpc-1a", "vpce-*", "vpce-1 "] {
            assert_eq!(Origins::new(&[], &[bad.to_owned()], false).unwrap_err().exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn a_ci_provider_is_trusted_for_named_projects_only() {
        let of = |subjects: &[&str]| {
            let subjects: Vec<String> = subjects.iter().map(|&text| text.to_owned()).collect();
            let provider = "token.actions.githubusercontent.com";
            TrustPolicy::oidc(Partition::AwsUsGov, provider, "123456789012", "sts.amazonaws.com", &subjects)
        };
        let exact = serde_json::to_value(of(&["repo:example/project:ref:refs/heads/main"]).unwrap()).unwrap();
        let statement = &exact["Statement"][0];
        let provider = "arn:aws-us-gov:iam::123456789012:oidc-provider/token.actions.githubusercontent.com";
        assert_eq!(statement["Principal"]["Federated"], provider);
        let equals = &statement["Condition"]["StringEquals"];
        assert_eq!(equals["token.actions.githubusercontent.com:aud"][0], "sts.amazonaws.com");
        assert_eq!(equals["token.actions.githubusercontent.com:sub"][0], "repo:example/project:ref:refs/heads/main");
        let wild = serde_json::to_value(of(&["repo:example/project:*"]).unwrap()).unwrap();
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
            assert_eq!(of(&[open]).unwrap_err().exit_code(), 2, "{open}");
        }
    }

    #[test]
    fn providers_are_hosts_with_a_path() {
        let of = |provider: &str| {
            let subjects = ["a:b/c".to_owned()];
            TrustPolicy::oidc(Partition::Aws, provider, "123456789012", "sts.amazonaws.com", &subjects)
        };
        for good in ["gitlab.com", "https://gitlab.com/", "agent.buildkite.com", "oidc.circleci.com/org/1a2b-3c"] {
            assert!(of(good).is_ok(), "{good}");
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
            assert_eq!(of(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn configurations_are_what_the_service_reads() {
        let lifecycle = serde_json::to_value(Lifecycle::abort_incomplete("a/", 7).unwrap()).unwrap();
        let rule = &lifecycle["Rules"][0];
        assert_eq!(rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"], 7);
        assert_eq!((&rule["Filter"]["Prefix"], &rule["Status"]), (&"a/".into(), &"Enabled".into()));
        assert_eq!(Lifecycle::abort_incomplete("a*/", 7).unwrap_err().exit_code(), 2);
        let cors = |origins: &[&str]| Cors::read(&origins.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        let all = serde_json::to_value(cors(&[]).unwrap()).unwrap();
        assert_eq!(all["CORSRules"][0]["AllowedOrigins"][0], "*");
        assert!(cors(&["https://example.org", "http://[::1]:8080", "https://*.example.org"]).is_ok());
        for bad in ["*", "example.org", "https://", "https://a/b", "https://*.*", "https://a\n"] {
            assert_eq!(cors(&[bad]).unwrap_err().exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn readers_are_a_list_each_once_in_their_order() {
        let readers = named(&["999999999999", USER, "999999999999"]);
        let role = Role::Read { list: false };
        let policy = Policy::bucket(role, &at("cache", ""), &readers, &Origins::default());
        let policy = serde_json::to_value(policy).unwrap();
        assert_eq!(policy["Statement"][0]["Principal"], serde_json::json!({ "AWS": ["999999999999", USER] }));
        assert_eq!(text(&named(&[USER])), format!("{{\n  \"AWS\": [\n    \"{USER}\"\n  ]\n}}"));
    }

    #[test]
    fn principals_of_every_partition() {
        let of = |texts: &[&str]| {
            Partition::of(&texts.iter().map(|text| Principal::parse(text).unwrap()).collect::<Vec<_>>())
        };
        let china = "arn:aws-cn:iam::123456789012:role/service-role/nix.cache_+=,@-reader";
        let government = "arn:aws-us-gov:iam::123456789012:root";
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&["123456789012"]).unwrap(), None);
        assert_eq!(of(&["123456789012", china, china]).unwrap(), Some(Partition::AwsCn));
        assert_eq!(of(&[government]).unwrap(), Some(Partition::AwsUsGov));
        assert_eq!(Partition::of_region("cn-north-1"), Partition::AwsCn);
        assert_eq!(Partition::of_region("us-gov-west-1"), Partition::AwsUsGov);
        assert_eq!(Partition::of_region("eu-west-2"), Partition::Aws);
        assert_eq!(of(&[USER, government]).unwrap_err().exit_code(), 2);
        let place = Place::new(Partition::AwsCn, "cache", "").unwrap();
        assert_eq!(
            (place.bucket_arn().as_str(), place.objects().as_str()),
            ("arn:aws-cn:s3:::cache", "arn:aws-cn:s3:::cache/*")
        );
    }

    #[test]
    fn what_is_no_principal_is_refused() {
        for hostile in [
            "",
            "*",
            "alice",
            "12345678901",
            "1234567890123",
            "12345678901a",
            "١٢٣٤٥٦٧٨٩٠١٢",
            "arn",
            "arn:aws:iam::123456789012",
            "arn:aws:iam::123456789012:",
            "arn:aws:iam::123456789012:*",
            "arn:aws:iam::123456789012:user/",
            "arn:aws:iam::123456789012:user/*",
            "arn:aws:iam::123456789012:user/a//b",
            "arn:aws:iam::123456789012:user/a b",
            "arn:aws:iam::123456789012:user/a\nb",
            "arn:aws:iam::123456789012:user/a\"b",
            "arn:aws:iam::123456789012:user/${aws:username}",
            "arn:aws:iam::123456789012:group/readers",
            "arn:aws:iam::123456789012:root/x",
            "arn:aws:iam:eu-west-2:123456789012:root",
            "arn:aws:iam::*:root",
            "arn:aws:iam:::root",
            "arn:aws:s3:::my-cache",
            "arn:gcp:iam::123456789012:root",
            "ARN:aws:iam::123456789012:root",
            " arn:aws:iam::123456789012:root",
        ] {
            let failure = Principal::parse(hostile).unwrap_err();
            assert_eq!(failure.exit_code(), 2, "{hostile:?}: {failure}");
            assert!(!failure.to_string().contains(char::is_control), "{hostile:?}: {failure}");
        }
        let long = format!("arn:aws:iam::123456789012:user/{}", "a".repeat(LONGEST_ARN));
        assert_eq!(Principal::parse(&long).unwrap_err().exit_code(), 2);
    }
}
