//! What is in a bucket, on either server, and the checker of the first invariant.

#![allow(dead_code, clippy::expect_used)] // each test file takes a part of it, and a panic is how a test fails

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use cache_tests::{Credentials, EmbeddedS3, Minio, Scratch};

/// What both servers can do.
pub trait Service {
    /// The keys of a bucket, sorted.
    fn keys(&self, bucket: &str) -> Vec<String>;
    /// An object.
    fn bytes(&self, bucket: &str, key: &str) -> Vec<u8>;
    /// `127.0.0.1:PORT`.
    fn address(&self) -> String;
    /// Who may do everything.
    fn owner(&self) -> Credentials;
    /// A fresh bucket.
    fn fresh(&self) -> String;
    /// The bucket as our tools take it.
    fn url(&self, bucket: &str) -> String;
    /// Whether it makes a bucket of what is written to, and has nothing in a bucket that is not there.
    fn hides_missing_buckets(&self) -> bool {
        false
    }
}

impl Service for EmbeddedS3 {
    fn keys(&self, bucket: &str) -> Vec<String> {
        self.objects(bucket)
    }
    fn bytes(&self, bucket: &str, key: &str) -> Vec<u8> {
        self.get(bucket, key)
    }
    fn address(&self) -> String {
        self.endpoint()
    }
    fn owner(&self) -> Credentials {
        self.credentials()
    }
    fn fresh(&self) -> String {
        self.make_bucket()
    }
    fn url(&self, bucket: &str) -> String {
        self.cache_url(bucket)
    }
    fn hides_missing_buckets(&self) -> bool {
        true
    }
}

impl Service for Minio {
    fn keys(&self, bucket: &str) -> Vec<String> {
        self.objects(bucket)
    }
    fn bytes(&self, bucket: &str, key: &str) -> Vec<u8> {
        self.get(bucket, key)
    }
    fn address(&self) -> String {
        self.endpoint()
    }
    fn owner(&self) -> Credentials {
        self.root()
    }
    fn fresh(&self) -> String {
        self.make_bucket()
    }
    fn url(&self, bucket: &str) -> String {
        self.cache_url(bucket)
    }
}

/// The objects of a bucket, by key.
pub type Objects = BTreeMap<String, Vec<u8>>;

/// Every object of a bucket.
pub fn snapshot(service: &impl Service, bucket: &str) -> Objects {
    service.keys(bucket).into_iter().map(|key| (key.clone(), service.bytes(bucket, &key))).collect()
}

/// The keys of narinfos.
pub fn narinfo_keys(objects: &Objects) -> Vec<&str> {
    objects.keys().map(String::as_str).filter(|key| has_extension(key, "narinfo")).collect()
}

/// The keys of NARs.
pub fn nar_keys(objects: &Objects) -> Vec<&str> {
    objects.keys().map(String::as_str).filter(|key| key.starts_with("nar/") || key.contains("/nar/")).collect()
}

fn has_extension(key: &str, extension: &str) -> bool {
    Path::new(key).extension().is_some_and(|found| found == extension)
}

/// The first invariant: each narinfo has its NAR, whole, and the narinfos of all its references; and a client finds a
/// `nix-cache-info` beside them.
#[track_caller]
pub fn assert_closed(objects: &Objects) {
    for key in narinfo_keys(objects) {
        let narinfo = Fields::parse(&objects[key]);
        let prefix = key.rsplit_once('/').map_or(String::new(), |(prefix, _)| format!("{prefix}/"));
        assert!(objects.contains_key(&format!("{prefix}nix-cache-info")), "{key} without a nix-cache-info");
        let url = narinfo.one("URL");
        let nar = objects.get(&format!("{prefix}{url}")).unwrap_or_else(|| panic!("{key}: {url} is missing"));
        assert_eq!(narinfo.one("FileSize"), nar.len().to_string(), "{key}: size of {url}");
        assert_eq!(narinfo.one("FileHash"), format!("sha256:{}", sha256(nar)), "{key}: hash of {url}");
        assert!(url.contains(&sha256(nar)), "{key}: {url} is not named by its hash");
        for reference in narinfo.one("References").split_whitespace() {
            let needed = format!("{prefix}{}.narinfo", &reference[..32]);
            assert!(objects.contains_key(&needed), "{key}: the narinfo of {reference} is missing");
        }
    }
}

/// The lines of a narinfo.
pub struct Fields(pub Vec<(String, String)>);

impl Fields {
    /// Splits each line at its colon.
    pub fn parse(narinfo: &[u8]) -> Self {
        let text = str::from_utf8(narinfo).expect("a narinfo is text");
        let line = |line: &str| {
            let (key, value) = line.split_once(':').unwrap_or_else(|| panic!("no field: {line:?} in\n{text}"));
            (key.to_owned(), value.trim().to_owned())
        };
        Self(text.lines().map(line).collect())
    }

    /// The values of a field.
    pub fn all(&self, key: &str) -> Vec<&str> {
        self.0.iter().filter(|(name, _)| name == key).map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a field that stands once.
    #[track_caller]
    pub fn one(&self, key: &str) -> &str {
        let values = self.all(key);
        assert_eq!(values.len(), 1, "{key} of {:?}", self.0);
        values[0]
    }
}

/// SHA-256 as Nix writes it in base 32, by another program than ours.
pub fn sha256(bytes: &[u8]) -> String {
    let mut child =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum of coreutils");
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let hex = str::from_utf8(&output.stdout[..64]).unwrap();
    let hash: Vec<u8> = (0..32).map(|i| u8::from_str_radix(&hex[2 * i..][..2], 16).unwrap()).collect();
    base32(&hash)
}

/// Nix's base 32: the last digit is made of the first five bits.
fn base32(hash: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let digit = |n: usize| {
        let (byte, bit) = (n * 5 / 8, n * 5 % 8);
        let pair = u16::from(hash[byte]) | u16::from(hash.get(byte + 1).copied().unwrap_or(0)) << 8;
        char::from(DIGITS[usize::from(pair >> bit) & 31])
    };
    (0..(hash.len() * 8).div_ceil(5)).rev().map(digit).collect()
}

/// The head of the answer to an anonymous HEAD request, in lower case.
pub fn head(scratch: &Scratch, endpoint: &str, path: &str) -> String {
    let (host, port) = endpoint.split_once(':').unwrap();
    let request = format!("HEAD {path} HTTP/1.1\\r\\nHost: {endpoint}\\r\\nConnection: close\\r\\n\\r\\n");
    let answer = scratch.sh(&format!("exec 3<>/dev/tcp/{host}/{port}; printf '{request}' >&3; cat <&3")).ok();
    let answer = answer.to_lowercase();
    assert!(answer.starts_with("http/1.1 200"), "{path}: {answer}");
    answer
}
