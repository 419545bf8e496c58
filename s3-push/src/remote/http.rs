//! Caches behind `http://` and `https://` URLs, for reading.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nar_pack::error::{Context, Error, Result};
use nar_pack::process;
use nar_pack::stdio;
use reqwest::{Client, Method, Response, Url};

use crate::remote::netrc::{self, Login};
use crate::remote::retry::{Backoff, RequestLimits, asked_for};
use crate::remote::s3::{chain, root_cause};

/// Time in which a connection must be made.
const CONNECT: Duration = Duration::from_secs(10);

/// A cache behind a URL. Proxies come from the environment, TLS roots from the system; redirects are followed, and a
/// password is not sent on to another host.
pub struct HttpCache {
    client: Client,
    base: String,
    /// The base without user name and password, for messages.
    shown: String,
    login: Option<Login>,
    attempts: u32,
    tool: &'static str,
    hinted: AtomicBool,
}

/// What a server says when it is asked for an object or a part of it.
pub enum Reply {
    /// The object, or the part where the status is 206.
    Response(Response),
    /// The object is not there.
    Missing,
    /// The object is another one than that of the entity tag, or too short for the range.
    Changed,
}

/// What is asked of an object.
#[derive(Debug, Clone, Copy, Default)]
pub struct Part<'a> {
    /// The range as HTTP writes it, such as `bytes=0-99`; the whole object without.
    pub range: Option<&'a str>,
    /// The entity tag that it must have.
    pub etag: Option<&'a str>,
}

impl HttpCache {
    /// The cache at `url`. User name and password come from the URL, else from a netrc, which may be given. `tool`
    /// begins the hints that it prints.
    ///
    /// # Errors
    /// A usage failure for a malformed URL or netrc.
    pub fn new(url: &str, limits: RequestLimits, netrc: Option<&Path>, tool: &'static str) -> Result<Self> {
        // Installing it twice is the only way in which this fails.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut base = Url::parse(url).map_err(|error| Error::failed(format!("the cache's URL: {error}")))?;
        // Parameters of the store, as Nix takes them, concern a Nix client only.
        base.set_query(None);
        base.set_fragment(None);
        let mut shown = base.clone();
        // Only a URL without a host has no place for these.
        let _ = shown.set_username("").and_then(|()| shown.set_password(None));
        let login = match base.host_str() {
            Some(host) if base.password().is_none() => netrc::login(host, netrc, tool)?,
            _ => None,
        };
        // A name in the URL without a password: the password of that name, as curl has it.
        let login = login.filter(|login| [login.name.as_str(), ""].contains(&base.username()));
        let trimmed = |url: &Url| url.as_str().trim_end_matches('/').to_owned();
        let client = Client::builder()
            .user_agent(format!("{tool}/{}", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(limits.idle)
            .build()
            .map_err(|error| Error::failed(format!("setting up HTTP: {}", chain(&error))))?;
        Ok(Self {
            client,
            base: trimmed(&base),
            shown: trimmed(&shown),
            login,
            attempts: limits.attempts,
            tool,
            hinted: AtomicBool::new(false),
        })
    }

    /// An object's place without user name and password, for messages; that of the cache itself for an empty key.
    #[must_use]
    pub fn shown(&self, key: &str) -> String {
        format!("{}/{key}", self.shown)
    }

    /// Attempts at one request, the first included.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Begins to read an object or a part of it.
    ///
    /// # Errors
    /// Fails where the network or the server does.
    pub async fn get(&self, key: &str, part: Part<'_>) -> Result<Reply> {
        self.ask(Method::GET, key, part).await
    }

    /// Whether an object is there.
    ///
    /// # Errors
    /// As [`HttpCache::get`].
    pub async fn has(&self, key: &str) -> Result<bool> {
        Ok(matches!(self.ask(Method::HEAD, key, Part::default()).await?, Reply::Response(_)))
    }

    /// Reads an object of at most `limit` bytes of text; none when it is not there.
    ///
    /// # Errors
    /// As [`HttpCache::get`]; refuses what is larger or no text.
    pub async fn text(&self, key: &str, limit: usize) -> Result<Option<String>> {
        let Reply::Response(mut response) = self.get(key, Part::default()).await? else { return Ok(None) };
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failure(key, &plain(error)))? {
            if bytes.len() + chunk.len() > limit {
                return Err(Error::refused(format!("{}: larger than {limit} bytes", self.shown(key))));
            }
            bytes.extend_from_slice(&chunk);
        }
        stdio::utf8(bytes).map(Some).context(|| self.shown(key))
    }

    async fn ask(&self, method: Method, key: &str, part: Part<'_>) -> Result<Reply> {
        let mut tries = Backoff::new(self.attempts);
        loop {
            let (why, again) = match self.request(method.clone(), key, part).send().await {
                Ok(response) => match response.status().as_u16() {
                    200 => return Ok(Reply::Response(response)),
                    206 if part.range.is_some() => return Ok(Reply::Response(response)),
                    404 | 410 => return Ok(Reply::Missing),
                    412 if part.etag.is_some() => return Ok(Reply::Changed),
                    416 if part.range.is_some() => return Ok(Reply::Changed),
                    // What a bucket says of a key that is not there when listing is not allowed.
                    403 => {
                        if method == Method::GET {
                            self.hint(key);
                        }
                        return Ok(Reply::Missing);
                    }
                    code @ (401 | 407) => {
                        let why = format!("HTTP {code}, a user name and password are wanted; see netrc in --help");
                        return Err(self.failure(key, &why));
                    }
                    code @ (408 | 429 | 500 | 502..=504) => {
                        (format!("HTTP {code}"), tries.after(retry_after(&response)).await)
                    }
                    code => return Err(self.failure(key, &format!("HTTP {code}"))),
                },
                Err(error) => {
                    let passing = error.is_connect() || error.is_timeout() || error.is_request();
                    (plain(error), passing && tries.again().await)
                }
            };
            if !again {
                return Err(self.failure(key, &why));
            }
        }
    }

    fn request(&self, method: Method, key: &str, part: Part<'_>) -> reqwest::RequestBuilder {
        let mut request = self.client.request(method, format!("{}/{key}", self.base));
        if let Some(login) = &self.login {
            request = request.basic_auth(&login.name, Some(&login.password));
        }
        for (name, value) in [("range", part.range), ("if-match", part.etag)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        request
    }

    fn failure(&self, key: &str, why: &str) -> Error {
        Error::failed(format!("reading {}: {why}", self.shown(key)))
    }

    fn hint(&self, key: &str) {
        if !self.hinted.swap(true, Ordering::Relaxed) {
            let shown = self.shown(key);
            process::print_message(
                self.tool,
                format!(
                    "{shown}: forbidden (403), taken for missing; check the URL, and that everybody may read it \
                     (s3:GetObject)"
                ),
            );
        }
    }
}

fn retry_after(response: &Response) -> Option<Duration> {
    response.headers().get("retry-after")?.to_str().ok().and_then(asked_for)
}

/// The message without the URL, in which there may be a password, and which is said before it.
#[must_use]
pub fn plain(error: reqwest::Error) -> String {
    let error = error.without_url();
    match () {
        () if error.is_connect() => format!("cannot connect: {}", root_cause(&error)),
        () if error.is_redirect() => format!("cannot follow the redirect: {}", root_cause(&error)),
        () => chain(&error),
    }
}
