//! One row with one server: a bucket of its own, and the means to use it.

use std::fs;

use cache_tests::{CommandOutput, tree, unique};

use crate::fixture::Fixture;
use crate::servers::Running;
use cache_tests::s3::{Response, S3};

/// The region that requests are signed for, unless a server has only its own.
pub const REGION: &str = "us-east-1";

/// One row with one server.
pub struct Trial<'a> {
    /// The server.
    pub server: &'a Running,
    /// What is published.
    pub fixture: &'a Fixture,
    /// The bucket.
    pub bucket: String,
    /// The administrator's requests.
    pub s3: S3,
    /// Size in bytes of the object of the row about large objects.
    pub large_size: u64,
}

impl<'a> Trial<'a> {
    /// Creates a bucket.
    pub fn start(server: &'a Running, fixture: &'a Fixture, large_size: u64) -> Result<Self, String> {
        let s3 = S3 {
            endpoint: server.endpoint.clone(),
            credentials: Some(server.credentials.clone()),
            region: server.region.to_owned(),
        };
        let bucket = unique("bucket-");
        let created = s3.send("PUT", &format!("/{bucket}"), &[], b"");
        created.and_then(Response::success).map_err(|error| format!("cannot create a bucket: {error}"))?;
        Ok(Self { server, fixture, bucket, s3, large_size })
    }

    /// Returns the `s3://` URL of the bucket.
    pub fn url(&self) -> String {
        self.url_at(&self.server.endpoint)
    }

    /// Returns the `s3://` URL of the bucket at another endpoint, such as that of a proxy.
    pub fn url_at(&self, endpoint: &str) -> String {
        format!("s3://{}?endpoint=http://{endpoint}&region={}", self.bucket, self.server.region)
    }

    /// Returns the `http://` URL of the bucket.
    pub fn http_url(&self) -> String {
        format!("http://{}/{}", self.server.endpoint, self.bucket)
    }

    /// Runs a script with `$C`, the URL of the bucket.
    pub fn sh(&self, script: &str) -> CommandOutput {
        let credentials = &self.server.credentials;
        self.fixture.scratch.sh(&format!(
            "export C='{}' AWS_ACCESS_KEY_ID='{}' AWS_SECRET_ACCESS_KEY='{}'; {script}",
            self.url(),
            credentials.access_key,
            credentials.secret_key
        ))
    }

    /// Runs a script without credentials.
    pub fn anonymous_sh(&self, script: &str) -> CommandOutput {
        self.fixture.scratch.sh(&format!("export C='{}'; {script}", self.url()))
    }

    /// Runs a script, which must succeed, and returns what it prints.
    pub fn run(&self, script: &str) -> Result<String, String> {
        self.sh(script).succeed()
    }

    /// Runs a script without credentials, which must succeed.
    pub fn run_anonymously(&self, script: &str) -> Result<String, String> {
        self.anonymous_sh(script).succeed()
    }

    /// Publishes the closure.
    pub fn push(&self) -> Result<String, String> {
        self.run("s3-push --no-nix \"$C\" < closure.tar")
    }

    /// Pulls the closure with a command that unpacks below `$OUT`, and compares all trees.
    pub fn pull(&self, command: &str) -> Result<(), String> {
        let out = unique("out-");
        self.run(&format!("export OUT={out}; {command}"))?;
        let result = self.compare(&out);
        drop(cache_tests::remove_tree(&self.fixture.file(&out)));
        result
    }

    /// Compares all trees of the closure below a directory with the original ones.
    pub fn compare(&self, out: &str) -> Result<(), String> {
        let at = |root: &str, path: &str| self.fixture.file(root).join(path.trim_start_matches('/'));
        for path in &self.fixture.paths {
            if !at(out, path).exists() {
                return Err(format!("{path} was not unpacked"));
            }
            if tree(at(out, path)) != tree(at("root", path)) {
                return Err(format!("{path} differs from what was published"));
            }
        }
        Ok(())
    }

    /// Sends a request about an object; the key must be encoded.
    pub fn object(&self, method: &str, key: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Response, String> {
        self.s3.send(method, &format!("/{}/{key}", self.bucket), headers, body)
    }

    /// Returns the keys of all objects. A server that stores them in directories may list those too.
    pub fn keys(&self) -> Result<Vec<String>, String> {
        let list = self.s3.send("GET", &format!("/{}?list-type=2", self.bucket), &[], b"")?.success()?;
        Ok(list.elements("Key").into_iter().filter(|key| !key.ends_with('/')).collect())
    }

    /// Lets anonymous clients read, with the policy of `cache-policy --read-only`. Returns false if the server refuses.
    pub fn make_public(&self) -> Result<bool, String> {
        let policy = self.run(&format!("cache-policy --read-only {}", self.bucket))?;
        Ok((200..300).contains(&self.set_policy(&policy)?.status))
    }

    /// Sets the bucket policy.
    pub fn set_policy(&self, policy: &str) -> Result<Response, String> {
        self.s3.send("PUT", &format!("/{}?policy=", self.bucket), &[], policy.as_bytes())
    }

    /// Writes a file in the scratch directory.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), String> {
        fs::write(self.fixture.file(name), bytes).map_err(|error| format!("cannot write {name}: {error}"))
    }

    /// Replaces what differs from run to run, so that two reports can be compared.
    pub fn stable(&self, text: &str) -> String {
        let mut text = text.replace(&self.server.endpoint, "SERVER").replace(&self.bucket, "BUCKET");
        text = text.replace(&self.fixture.scratch.path().display().to_string(), "DIR");
        text.lines().filter(|line| !line.trim().is_empty()).take(3).collect::<Vec<_>>().join(" / ")
    }
}
