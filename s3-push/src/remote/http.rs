//! Caches on web servers (`http://`, `https://`), for reading. Proxies are taken from the environment and trusted roots
//! from the system. Redirects are followed, and a password is not sent to another host than its own.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use nar_pack::error::{Error, Result};
use nar_pack::process;
use narinfo_gen::archive::Object;
use reqwest::{Client, Method, Url};
use tokio::time::{error::Elapsed, timeout};

use crate::remote::concurrency::{AdaptiveLimit, Permit};
use crate::remote::error_chain::{chain, root_cause};
use crate::remote::first_response::FirstResponse;
use crate::remote::hints::{PROXY_HINT, expects_tls, is_permanent, lacks_tls, requires_proxy_login};
use crate::remote::netrc::{self, Login};
use crate::remote::reader::{SmallObject, read_small};
use crate::remote::retry::{Backoff, RequestLimits, is_throttling, parse_retry_after};
use crate::remote::transfer::{ByteRange, ObjectStream, Response, parse_content_range};

/// A cache on a web server.
pub struct HttpCache {
    client: Client,
    base: String,
    /// `base` without user name and password.
    display_base: String,
    login: Option<Login>,
    limit: Arc<AdaptiveLimit>,
    limits: RequestLimits,
    first_response: FirstResponse,
    tool: &'static str,
    /// Set once a forbidden read was reported.
    was_forbidden: AtomicBool,
}

/// A response without an error status, or what such a status means.
enum Answer {
    Success(reqwest::Response),
    Missing,
    Changed,
}

/// Why an attempt failed.
struct AttemptError {
    error: Error,
    is_transient: bool,
    retry_after: Option<Duration>,
}

impl HttpCache {
    /// Opens the cache at `url`; nothing is requested yet. User name and password come from the URL, else from the file
    /// `netrc`, else from the netrc files at the default paths. `tool` is the prefix of messages.
    ///
    /// # Errors
    /// A usage error for an invalid URL. Fails for an invalid netrc file.
    pub fn new(url: &str, limits: RequestLimits, netrc: Option<&Path>, tool: &'static str) -> Result<Self> {
        // This fails only if a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut base = Url::parse(url).map_err(|error| Error::usage(format!("invalid cache URL: {error}")))?;
        // Parameters of a store URL concern Nix only.
        base.set_query(None);
        base.set_fragment(None);
        let mut display_base = base.clone();
        // This fails only for a URL without a host.
        let _ = display_base.set_username("").and_then(|()| display_base.set_password(None));
        let login = match base.host_str() {
            Some(host) if base.password().is_none() => netrc::find_login(host, netrc, tool)?,
            _ => None,
        };
        // As curl does: with a user name but no password in the URL, only the password of that user is taken.
        let login = login.filter(|login| [login.name.as_str(), ""].contains(&base.username()));
        let client = Client::builder()
            .user_agent(format!("{tool}/{}", env!("CARGO_PKG_VERSION")))
            .connect_timeout(limits.connect_timeout)
            .build()
            .map_err(|error| Error::failed(format!("cannot set up the HTTP client: {}", chain(&error))))?;
        let without_slash = |url: &Url| url.as_str().trim_end_matches('/').to_owned();
        let display_base = without_slash(&display_base);
        Ok(Self {
            client,
            base: without_slash(&base),
            first_response: FirstResponse::new(tool, display_base.clone(), limits.max_attempts, limits.is_quiet),
            display_base,
            login,
            limit: AdaptiveLimit::new(limits.max_in_flight),
            limits,
            tool,
            was_forbidden: AtomicBool::new(false),
        })
    }

    /// Returns the URL of an object without user name and password, for messages; that of the cache for an empty key.
    #[must_use]
    pub fn display_url(&self, key: &str) -> String {
        format!("{}/{key}", self.display_base)
    }

    /// Returns the number of attempts at one request, including the first.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        self.limits.max_attempts
    }

    /// Requests an object or a range of it, optionally on condition that its entity tag is still `etag`.
    pub(super) async fn get(&self, key: &str, range: Option<ByteRange>, etag: Option<&str>) -> Result<Response> {
        let (answer, permit) = self.send(Method::GET, key, range, etag).await?;
        match answer {
            Answer::Success(response) => self.object(key, response, permit).map(Response::Object),
            Answer::Missing => Ok(Response::Missing),
            Answer::Changed => Ok(Response::Changed),
        }
    }

    /// Reads an object of at most `max_size` bytes, decoding its `Content-Encoding`. Returns none if it does not exist.
    pub(in crate::remote) async fn get_small(&self, key: &str, max_size: usize) -> Result<Option<SmallObject>> {
        read_small(|| self.get(key, None, None).boxed(), &self.display_url(key), self.limits.max_attempts, max_size)
            .await
    }

    /// Returns whether requests to this URL have a user name and a password: another server, after a redirect, gets none.
    fn sends_login_to(&self, url: &Url) -> bool {
        Url::parse(&self.base)
            .is_ok_and(|base| base.origin() == url.origin() && (self.login.is_some() || base.password().is_some()))
    }

    fn object(&self, key: &str, response: reqwest::Response, permit: Permit) -> Result<ObjectStream> {
        let header = |name: &str| {
            let value: Option<&reqwest::header::HeaderValue> = response.headers().get(name);
            value.and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let partial = response.status().as_u16() == 206;
        let part = if partial {
            let part = header("content-range").as_deref().and_then(parse_content_range);
            Some(part.ok_or_else(|| self.error(key, "the server sent a range without a valid Content-Range"))?)
        } else {
            None
        };
        let size = part.map_or(response.content_length(), |(_, size)| Some(size));
        let (etag, content_encoding) = (header("etag"), header("content-encoding"));
        let (url, limits) = (self.display_url(key), self.limits);
        let failed = move |cause| Error::failed(format!("cannot read {url}: {cause}"));
        // The time between two reads of the caller does not count towards the timeout.
        let bytes = stream::unfold(response.bytes_stream(), move |mut bytes| async move {
            match timeout(limits.idle_timeout, bytes.next()).await {
                Ok(read) => read.map(|read| (read.map_err(|error| describe(error, limits)), bytes)),
                Err(_) => Some((Err(limits.timeout_message()), bytes)),
            }
        });
        Ok(ObjectStream {
            start: part.map_or(0, |(start, _)| start),
            partial,
            size,
            etag,
            content_encoding,
            bytes: bytes.map(move |bytes| bytes.map_err(&failed)).boxed(),
            permit,
        })
    }

    /// Sends a request, and again after transient errors. Returns the answer with the permit of the request, which was
    /// held through all attempts and the delays between them: so a server that throttles gets fewer requests.
    async fn send(
        &self,
        method: Method,
        key: &str,
        range: Option<ByteRange>,
        etag: Option<&str>,
    ) -> Result<(Answer, Permit)> {
        self.first_response.watch(self.send_attempts(method, key, range, etag)).await
    }

    async fn send_attempts(
        &self,
        method: Method,
        key: &str,
        range: Option<ByteRange>,
        etag: Option<&str>,
    ) -> Result<(Answer, Permit)> {
        let permit = self.limit.acquire().await;
        let mut backoff = Backoff::new(self.limits.max_attempts);
        loop {
            self.first_response.record_attempt(backoff.attempt());
            let attempt = self.limit.start_attempt();
            let result = timeout(self.limits.idle_timeout, self.request(method.clone(), key, range, etag).send()).await;
            if let Ok(Ok(response)) = &result {
                self.first_response.record_response();
                if is_throttling(response.status().as_u16()) { attempt.throttled() } else { attempt.succeeded() }
            } else {
                drop(attempt);
            }
            match self.classify(&method, key, range.is_some(), etag.is_some(), result) {
                Ok(answer) => return Ok((answer, permit)),
                Err(AttemptError { error, is_transient, retry_after }) => {
                    if !is_transient || !backoff.next_attempt_after(retry_after).await {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn classify(
        &self,
        method: &Method,
        key: &str,
        has_range: bool,
        has_etag: bool,
        result: Result<reqwest::Result<reqwest::Response>, Elapsed>,
    ) -> Result<Answer, AttemptError> {
        let failed = |error, is_transient| Err(AttemptError { error, is_transient, retry_after: None });
        let response = match result {
            Ok(Ok(response)) => response,
            Err(Elapsed { .. }) => return failed(self.error(key, &self.limits.timeout_message()), true),
            Ok(Err(error)) => {
                let hint = self.connection_hint(&error);
                let is_transient =
                    !is_permanent(&error) && (error.is_connect() || error.is_timeout() || error.is_request());
                let error = self.error(key, &describe(error, self.limits));
                return failed(if let Some(hint) = hint { error.with_hint(hint) } else { error }, is_transient);
            }
        };
        match response.status().as_u16() {
            200 => Ok(Answer::Success(response)),
            206 if has_range => Ok(Answer::Success(response)),
            404 | 410 => Ok(Answer::Missing),
            412 if has_etag => Ok(Answer::Changed),
            416 if has_range => Ok(Answer::Changed),
            // How a bucket answers for a missing key to a client that may not list it.
            403 => {
                if *method == Method::GET {
                    self.warn_forbidden(key);
                }
                Ok(Answer::Missing)
            }
            401 if self.sends_login_to(response.url()) => {
                failed(self.error(key, "HTTP 401: the server refused the user name or the password"), false)
            }
            401 => {
                let error = self.error(key, "HTTP 401: a user name and a password are required");
                failed(error.with_hint("add them to a netrc file, such as ~/.netrc"), false)
            }
            407 => {
                let error = self.error(key, "HTTP 407: the proxy requires a user name and a password");
                failed(error.with_hint(PROXY_HINT), false)
            }
            status @ (408 | 429 | 500 | 502..=504) => {
                let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
                let retry_after = retry_after.and_then(parse_retry_after);
                Err(AttemptError { error: self.error(key, &format!("HTTP {status}")), is_transient: true, retry_after })
            }
            400 if self.base.starts_with("http:") => {
                let error = self.error(key, "HTTP 400");
                failed(error.with_hint("if the server uses TLS, use an https:// URL"), false)
            }
            status => failed(self.error(key, &format!("HTTP {status}")), false),
        }
    }

    /// Returns the hint for a URL with the wrong scheme, and for a proxy that requires a login.
    fn connection_hint(&self, error: &reqwest::Error) -> Option<&'static str> {
        match self.base.split_once(':')?.0 {
            _ if requires_proxy_login(error) => Some(PROXY_HINT),
            "https" if lacks_tls(error) => Some("the server does not use TLS: use an http:// URL"),
            "http" if expects_tls(error) => Some("if the server uses TLS, use an https:// URL"),
            _ => None,
        }
    }

    fn request(
        &self,
        method: Method,
        key: &str,
        range: Option<ByteRange>,
        etag: Option<&str>,
    ) -> reqwest::RequestBuilder {
        let mut request = self.client.request(method, format!("{}/{}", self.base, url_path(key)));
        if let Some(login) = &self.login {
            request = request.basic_auth(&login.name, Some(&login.password));
        }
        if let Some(range) = range {
            request = request.header("range", range.header());
        }
        if let Some(etag) = etag {
            request = request.header("if-match", etag);
        }
        request
    }

    fn error(&self, key: &str, cause: &str) -> Error {
        Error::failed(format!("cannot read {}: {cause}", self.display_url(key)))
    }

    fn warn_forbidden(&self, key: &str) {
        if !self.was_forbidden.swap(true, Ordering::Relaxed) {
            let url = self.display_url(key);
            process::print_message(
                self.tool,
                format!(
                    "warning: {url}: forbidden (HTTP 403), treated as missing; check the URL, and that anonymous users \
                     are allowed s3:GetObject"
                ),
            );
        }
    }
}

/// Returns a key as the path of a URL. The key of a NAR is that of its narinfo, and may have a query; those of logs and
/// realisations contain names of store paths, in which a question mark is an ordinary character.
fn url_path(key: &str) -> Cow<'_, str> {
    match Object::of_key(key) {
        Some(Object::Log | Object::Realisation) => key.replace('?', "%3F").into(),
        _ => key.into(),
    }
}

/// Returns the message of an error without its URL, which may contain a password and is printed before the message.
fn describe(error: reqwest::Error, limits: RequestLimits) -> String {
    let error = error.without_url();
    match () {
        () if error.is_connect() && error.is_timeout() => {
            format!("cannot connect: {}", limits.connect_timeout_message())
        }
        () if error.is_connect() => format!("cannot connect: {}", root_cause(&error)),
        () if error.is_redirect() => format!("cannot follow the redirect: {}", root_cause(&error)),
        () if error.is_request() => format!("cannot send the request: {}", root_cause(&error)),
        () if error.is_body() || error.is_decode() => format!("cannot read the response: {}", root_cause(&error)),
        () => chain(&error),
    }
}
