//! The nix.conf lines for one cache.

use std::path::Path;

use cache_sign::keys::PublicKey;
use cache_sign::nix_conf::{ParsedConf, Settings};
use nar_pack::error::{Context, Error, Result};
use percent_encoding::{CONTROLS, utf8_percent_encode};
use s3_push::remote::location::Location;

use super::file::{edit_file, read_file};
use super::url::{
    cache_identity, display_url, https_url, is_same_cache, portable_url, public_url, require_no_secrets, url_at_host,
    without_parameters,
};

/// How clients name a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UrlForm {
    /// Its `s3://` URL, in the form that all clients read.
    Portable,
    /// Its `s3://` URL without parameters that concern only one user.
    Public,
    /// Its own HTTPS URL.
    Https,
    /// The HTTPS URL of a host that serves it.
    HttpsAt(String),
}

/// A cache and its keys, as configured on a client.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Identifies the cache in the comments, independently of the form of the URL; see [`cache_identity`].
    pub(super) identity: String,
    substituter: String,
    keys: Vec<String>,
    /// Whether other caches and keys are removed.
    exclusive: bool,
    /// Whether the host pushes with Nix.
    is_pusher: bool,
}

/// Nix asks the cache whether it has a path, instead of its database of earlier answers. After a path was deleted from
/// the cache, an earlier answer would be wrong for 30 days, and Nix would not push the path again.
const PUSHER_LINE: &str = "narinfo-cache-positive-ttl = 0\n";

/// The settings that a client reads in a nix.conf and in the files that it includes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InspectedConf {
    /// Whether the cache is among the substituters.
    pub is_cache_configured: bool,
    /// The positions of the lines for which Nix rejects the file.
    pub invalid_lines: Vec<String>,
}

impl ClientConfig {
    /// Configures the cache at `url`, which is `s3://…` or `http(s)://…`. An `s3://` URL is written as `form`
    /// says. With `exclusive`, the client uses no other cache and trusts no other key.
    ///
    /// # Errors
    /// A usage error for a URL that is not of a cache, cannot be written in nix.conf, or contains a secret.
    pub fn new(url: &str, form: &UrlForm, keys: &[PublicKey], exclusive: bool) -> Result<Self> {
        let invalid = |reason: &str| Error::usage(format!("invalid cache URL {:?}: {reason}", display_url(url)));
        if url.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
            let error = invalid("nix.conf cannot contain whitespace or # in a value");
            return Err(error.with_hint("write %20 for a space and %23 for #"));
        }
        if let Some(key) = keys.iter().map(PublicKey::name).find(|name| name.contains('#')) {
            return Err(Error::usage(format!("invalid key name {key:?}: in nix.conf, # begins a comment")));
        }
        // Nix accepts only ASCII in a URL.
        let encoded = utf8_percent_encode(url, CONTROLS).to_string();
        let substituter = match encoded.split_once("://") {
            Some(("s3", _)) => {
                let location = Location::parse(&encoded)?;
                match form {
                    UrlForm::Portable => portable_url(&encoded, &location),
                    UrlForm::Public => public_url(&encoded, &location),
                    UrlForm::Https => https_url(&location),
                    UrlForm::HttpsAt(host) => url_at_host(host, &location)?,
                }
            }
            Some(("http" | "https", rest)) if !rest.starts_with(['/', '?']) && !rest.is_empty() => {
                require_no_secrets(&encoded)?;
                // Parameters such as trusted and secret-key concern only the user who sets them.
                let url = if *form == UrlForm::Public { without_parameters(&encoded) } else { &encoded };
                url.trim_end_matches('/').to_owned()
            }
            _ => return Err(invalid("expected s3://BUCKET or https://HOST")),
        };
        let shadowed = keys.iter().enumerate().find(|(index, key)| {
            keys[..*index].iter().any(|first| first.name() == key.name() && !first.is_same_key(key))
        });
        if let Some((_, key)) = shadowed {
            let error = Error::usage(format!("two keys have the name {:?}, and Nix uses only the first", key.name()));
            return Err(error.with_hint("give each key a name of its own"));
        }
        let mut distinct: Vec<String> = Vec::new();
        for key in keys.iter().map(ToString::to_string) {
            if !distinct.contains(&key) {
                distinct.push(key);
            }
        }
        Ok(Self { identity: cache_identity(&encoded), substituter, keys: distinct, exclusive, is_pusher: false })
    }

    /// Adds the setting of a host that pushes with Nix, if `is_pusher`.
    #[must_use]
    pub fn with_pusher(self, is_pusher: bool) -> Self {
        Self { is_pusher, ..self }
    }

    /// Returns the URL of the cache, as clients read it.
    #[must_use]
    pub fn substituter(&self) -> &str {
        &self.substituter
    }

    /// Returns the public keys, as `NAME:BASE64`.
    #[must_use]
    pub fn keys(&self) -> &[String] {
        &self.keys
    }

    /// Returns all lines.
    #[must_use]
    pub fn lines(&self) -> String {
        let extra = if self.exclusive { "" } else { "extra-" };
        let keys = self.keys.join(" ");
        let pusher = if self.is_pusher { PUSHER_LINE } else { "" };
        format!("{extra}substituters = {}\n{extra}trusted-public-keys = {keys}\n{pusher}", self.substituter)
    }

    /// Returns the lines for what any of `settings` do not contain.
    pub(super) fn missing_lines(&self, settings: &[Settings]) -> String {
        let all = |has: &dyn Fn(&Settings) -> bool| settings.iter().all(has);
        if self.exclusive {
            return if all(&|settings| self.is_in_effect(settings)) { String::new() } else { self.lines() };
        }
        let mut lines = String::new();
        if !all(&|settings| self.is_configured(settings)) {
            lines.push_str("extra-substituters = ");
            lines.push_str(&self.substituter);
            lines.push('\n');
        }
        let is_missing = |key: &&String| !all(&|settings| is_trusted(settings, key));
        let missing: Vec<&str> = self.keys.iter().filter(is_missing).map(String::as_str).collect();
        if !missing.is_empty() {
            lines.push_str("extra-trusted-public-keys = ");
            lines.push_str(&missing.join(" "));
            lines.push('\n');
        }
        if !all(&|settings| self.is_ttl_in_effect(settings)) {
            lines.push_str(PUSHER_LINE);
        }
        lines
    }

    /// Whether a client with these settings uses the cache and trusts its keys, and no others if that is required.
    pub(super) fn is_in_effect(&self, settings: &Settings) -> bool {
        let is_complete = self.is_configured(settings) && self.keys.iter().all(|key| is_trusted(settings, key));
        let is_exclusive = settings.substituters.iter().all(|url| is_same_cache(url, &self.substituter))
            && settings.trusted_public_keys.iter().all(|key| self.keys.contains(key));
        is_complete && (is_exclusive || !self.exclusive) && self.is_ttl_in_effect(settings)
    }

    fn is_ttl_in_effect(&self, settings: &Settings) -> bool {
        !self.is_pusher || settings.positive_ttl.as_deref() == Some("0")
    }

    fn is_configured(&self, settings: &Settings) -> bool {
        settings.substituters.iter().any(|url| is_same_cache(url, &self.substituter))
    }

    /// Merges the lines into a file and returns whether the file changed.
    ///
    /// # Errors
    /// The errors of [`ClientConfig::merge`]; fails if the file cannot be read or replaced.
    pub fn write(&self, path: &Path) -> Result<bool> {
        edit_file(path, |text| self.merge(text, path))
    }

    /// Removes the lines from a file and returns whether the file changed. A file without other contents is left empty.
    ///
    /// # Errors
    /// The errors of [`ClientConfig::without_lines`]; fails if the file cannot be read or replaced.
    pub fn remove(&self, path: &Path) -> Result<bool> {
        if read_file(path)?.is_none() {
            return Ok(false);
        }
        edit_file(path, |text| self.without_lines(text).context(|| path.display()))
    }

    /// Reads a file and the files that it includes as a client does.
    ///
    /// # Errors
    /// Fails if the file cannot be read or an included file does not exist.
    pub fn inspect(&self, path: &Path) -> Result<InspectedConf> {
        let text = read_file(path)?.unwrap_or_default();
        let ParsedConf { settings, invalid_lines } = parse_conf(&text, path)?;
        Ok(InspectedConf { is_cache_configured: self.is_configured(&settings), invalid_lines })
    }
}

/// Parses the text of the nix.conf that Nix reads at `path`.
pub(super) fn parse_conf(text: &[u8], path: &Path) -> Result<ParsedConf> {
    ParsedConf::parse(&String::from_utf8_lossy(text), path)
}

/// Returns whether a client with these settings trusts a key: of several with one name, Nix uses the first.
fn is_trusted(settings: &Settings, key: &str) -> bool {
    let is_contained = settings.trusted_public_keys.iter().any(|other| other == key);
    is_contained && !is_shadowed(settings, key)
}

/// Returns whether another key of the same name comes before this one.
pub(super) fn is_shadowed(settings: &Settings, key: &str) -> bool {
    let Ok(key) = PublicKey::parse(key) else { return false };
    let mut trusted = settings.trusted_public_keys.iter().filter_map(|other| PublicKey::parse(other).ok());
    trusted.find(|other| other.name() == key.name()).is_some_and(|first| !first.is_same_key(&key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "a-1:gKkVNqzMzpoNLo6VNl1o+5QLrbnCTwKuuNTTjwwPUk4=";

    #[test]
    fn a_key_after_another_one_of_its_name_is_not_trusted() {
        let settings = |keys: &[&PublicKey]| Settings {
            substituters: Vec::new(),
            trusted_public_keys: keys.iter().map(ToString::to_string).collect(),
            positive_ttl: None,
        };
        let key = PublicKey::parse(KEY).unwrap();
        let other = cache_sign::keys::SecretKey::generate(key.name()).unwrap().public();
        assert!(is_trusted(&settings(&[&key, &other]), KEY));
        assert!(!is_trusted(&settings(&[&other, &key]), KEY));
        let keys = [other, key];
        assert_eq!(ClientConfig::new("https://a", &UrlForm::Portable, &keys, false).unwrap_err().exit_status(), 2);
    }

    #[test]
    fn a_url_that_nix_conf_cannot_contain_is_refused() {
        let keys = [PublicKey::parse(KEY).unwrap()];
        for url in [
            "https://a b",
            "https://a#b",
            "https://a\nb",
            "https://a\u{3000}b",
            "https://",
            "https:///a",
            "https://?priority=1",
            "ftp://a",
            "my-cache",
            "https://u:hidden@host",
            "https://host?token=hidden",
            "https://a;b",
            "https://a\"b",
            "https://host:0",
            "https://ü",
            "s3://bucket?region=a.evil.example",
            "s3://bucket?endpoint=a;b",
            "https://host/x?priority=1&sig=hidden",
            "s3://bucket?token=hidden",
            "https://host?x#hidden",
        ] {
            let error = ClientConfig::new(url, &UrlForm::Portable, &keys, false).unwrap_err();
            assert!(error.exit_status() == 2 && !error.message().contains("hidden"), "{url:?}: {error}");
        }
    }

    #[test]
    fn prefixes_are_percent_encoded() {
        let keys = [PublicKey::parse(KEY).unwrap()];
        let substituter = |url: &str, https: bool| {
            let form = if https { UrlForm::Https } else { UrlForm::Portable };
            let config = ClientConfig::new(url, &form, &keys, false).unwrap();
            assert!(config.identity.is_ascii() && !config.identity.contains(' '), "{}", config.identity);
            config.substituter
        };
        for (url, https_url) in [
            ("s3://my-cache/ü/%20+?endpoint=h", "https://h/my-cache/%C3%BC/%20%2B"),
            ("s3://my-cache/a%3fb%23c%25d/?endpoint=h", "https://h/my-cache/a%3Fb%23c%25d"),
        ] {
            assert_eq!(substituter(url, true), https_url, "{url}");
        }
        assert_eq!(substituter("s3://my-cache/ü", false), "s3://my-cache/%C3%BC");
        assert_eq!(substituter("https://h/ü", false), "https://h/%C3%BC");
        let endpoint = substituter("s3://my-cache?scheme=http&endpoint=h:9000&region=x", false);
        assert_eq!(endpoint, "s3://my-cache?endpoint=http://h:9000&region=x");
    }
}
