//! A server that lies: the test decides how each request is answered, with valid HTTP or not.
//!
//! It implements just enough HTTP/1.1 to be a binary cache, and to be the bucket [`BUCKET`] in path style; signatures of
//! requests are not checked. Correct responses are complete: HEAD, ranges, `If-Match` and persistent connections work,
//! so that a lie is the only thing wrong. As a proxy it answers for every host.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::cache_url;
use crate::loopback_listener::LoopbackListener;
use crate::request_head::RequestHead;

/// The bucket, which is the first component of every path.
pub const BUCKET: &str = "cache";

/// Objects by key.
pub type Objects = BTreeMap<String, Vec<u8>>;

/// A request of a client.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `HEAD` etc.
    pub method: String,
    /// The object's key; empty for the bucket itself.
    pub key: String,
    /// The query string, empty if there is none.
    pub query: String,
    /// The headers, with names in lower case.
    headers: Vec<(String, String)>,
}

impl Request {
    /// Returns the value of a header; the name must be in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns the first and the last byte of the requested range; the last one may be open.
    pub fn range(&self) -> Option<(usize, Option<usize>)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()))
    }
}

/// A response of the server.
#[derive(Debug, Clone)]
pub struct Response {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Body,
}

/// The body of a response.
#[derive(Debug, Clone)]
enum Body {
    /// These bytes with their true length, or the requested range of them.
    Whole(Arc<Vec<u8>>),
    /// These bytes with this Content-Length; then the connection closes.
    WithLength(Arc<Vec<u8>>, u64),
    /// These bytes without a Content-Length; then the connection closes.
    WithoutLength(Arc<Vec<u8>>),
    /// These bytes with this Content-Length; then nothing until the client disconnects.
    Stalled(Arc<Vec<u8>>, u64),
    /// The first bytes, then the second repeatedly until the client disconnects; a Content-Length if there is one.
    Endless(Arc<Vec<u8>>, Arc<Vec<u8>>, Option<u64>),
    /// These bytes without a head; then the connection closes.
    Raw(Vec<u8>),
    /// Nothing until the client disconnects.
    Silent,
}

impl Response {
    /// Returns an object, correctly.
    pub fn object(bytes: impl Into<Vec<u8>>) -> Self {
        Self::with(200, Body::Whole(Arc::new(bytes.into())))
    }

    /// Returns a status with an HTML page.
    pub fn status(status: u16) -> Self {
        let page = format!("<html><body><h1>{status}</h1></body></html>\n");
        Self::with(status, Body::Whole(Arc::new(page.into_bytes()))).header("Content-Type", "text/html")
    }

    /// Returns the error for a missing object if the client may list the bucket, as MinIO does.
    pub fn no_such_key() -> Self {
        Self::error(404, "NoSuchKey", "The specified key does not exist.")
    }

    /// Returns the error for a missing object if the client may not list the bucket, as AWS does.
    pub fn access_denied() -> Self {
        Self::error(403, "AccessDenied", "Access Denied")
    }

    /// Returns an error in the format of S3.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>\
             <RequestId>1</RequestId></Error>"
        );
        Self::with(status, Body::Whole(Arc::new(text.into_bytes()))).header("Content-Type", "application/xml")
    }

    /// Returns the error for a request that is signed for another region than the server's, as MinIO and Garage do, but
    /// without a header that names the region.
    pub fn wrong_region(region: &str) -> Self {
        let message = format!("wrong region</Message><Region>{region}</Region><Message>");
        Self::error(400, "AuthorizationHeaderMalformed", &message)
    }

    /// Redirects the client.
    pub fn redirect(to: impl Into<String>) -> Self {
        Self::status(302).header("Location", to)
    }

    /// Returns these bytes with `length` as Content-Length; then the connection closes.
    pub fn with_length(bytes: impl Into<Vec<u8>>, length: u64) -> Self {
        Self::with(200, Body::WithLength(Arc::new(bytes.into()), length))
    }

    /// Returns these bytes without a Content-Length; then the connection closes.
    pub fn without_length(bytes: impl Into<Vec<u8>>) -> Self {
        Self::with(200, Body::WithoutLength(Arc::new(bytes.into())))
    }

    /// Returns these bytes with `length` as Content-Length; then nothing until the client disconnects.
    pub fn stalled(bytes: impl Into<Vec<u8>>, length: u64) -> Self {
        Self::with(200, Body::Stalled(Arc::new(bytes.into()), length))
    }

    /// Returns `first`, then `repeated` until the client disconnects.
    pub fn endless(first: impl Into<Vec<u8>>, repeated: impl Into<Vec<u8>>) -> Self {
        Self::with(200, Body::Endless(Arc::new(first.into()), Arc::new(repeated.into()), None))
    }

    /// As [`Response::endless`], with a length in the head.
    pub fn endless_with_length(first: impl Into<Vec<u8>>, repeated: impl Into<Vec<u8>>, length: u64) -> Self {
        Self::with(200, Body::Endless(Arc::new(first.into()), Arc::new(repeated.into()), Some(length)))
    }

    /// Returns these bytes instead of HTTP.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::with(0, Body::Raw(bytes.into()))
    }

    /// Returns nothing until the client disconnects.
    pub fn silent() -> Self {
        Self::with(0, Body::Silent)
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn with(status: u16, body: Body) -> Self {
        Self { status, headers: Vec::new(), body }
    }

    /// Returns the response of a correct cache: the object, or that there is none.
    pub fn correct(objects: &Objects, request: &Request) -> Self {
        objects.get(&request.key).map_or_else(Self::no_such_key, |bytes| Self::object(bytes.clone()))
    }
}

/// Returns the response to each request.
pub type Responder = Box<dyn Fn(&Request) -> Response + Send + Sync>;

/// A server on a free loopback port. It stops when dropped.
pub struct LyingServer {
    listener: LoopbackListener,
    shared: Arc<Shared>,
}

struct Shared {
    respond: Responder,
    requests: Mutex<Vec<Request>>,
    sent: AtomicU64,
}

impl fmt::Debug for LyingServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LyingServer({})", self.endpoint())
    }
}

impl LyingServer {
    /// Starts a server that answers with the responses of `respond`.
    pub fn start(respond: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        let shared =
            Arc::new(Shared { respond: Box::new(respond), requests: Mutex::default(), sent: AtomicU64::new(0) });
        let serving = Arc::clone(&shared);
        Self { listener: LoopbackListener::start(move |client| serving.serve(&client)), shared }
    }

    /// `127.0.0.1:PORT`.
    pub fn endpoint(&self) -> &str {
        self.listener.endpoint()
    }

    /// Returns the URL of the server as an HTTP cache.
    pub fn http_url(&self) -> String {
        format!("http://{}/{BUCKET}", self.endpoint())
    }

    /// Returns the URL of the server as a bucket.
    pub fn s3_url(&self) -> String {
        cache_url(self.endpoint(), BUCKET)
    }

    /// Returns all requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns how many bytes of bodies were sent, including those in socket buffers.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

/// What follows a response on the connection.
enum Next {
    Request,
    Close,
}

impl Shared {
    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut reader = BufReader::new(client);
        while let Some(request) = read_request(&mut reader)? {
            self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
            let response = (self.respond)(&request);
            let closes = request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
            if matches!(self.respond_to(client, &request, response)?, Next::Close) || closes {
                return Ok(());
            }
        }
        Ok(())
    }

    fn respond_to(&self, mut client: &TcpStream, request: &Request, response: Response) -> io::Result<Next> {
        let Response { status, headers, body } = response;
        if let Body::Raw(bytes) = &body {
            client.write_all(bytes)?;
            return Ok(Next::Close);
        }
        if let Body::Silent = &body {
            return wait_for_end(client);
        }
        let (status, extra, bytes) = match &body {
            Body::Whole(bytes) => ranged(request, status, bytes),
            Body::WithLength(bytes, _) | Body::WithoutLength(bytes) | Body::Stalled(bytes, _) => {
                (status, String::new(), bytes.as_slice())
            }
            Body::Endless(first, ..) => (status, String::new(), first.as_slice()),
            Body::Raw(_) | Body::Silent => (status, String::new(), [].as_slice()),
        };
        let length = match &body {
            Body::WithLength(_, length) | Body::Stalled(_, length) => Some(*length),
            Body::Endless(_, _, length) => *length,
            Body::WithoutLength(_) => None,
            _ => Some(bytes.len() as u64),
        };
        let mut head = format!("HTTP/1.1 {status} Status\r\n{extra}");
        for (name, value) in &headers {
            // Writing to a string cannot fail.
            let _ = write!(head, "{name}: {value}\r\n");
        }
        if let Some(length) = length {
            let _ = write!(head, "Content-Length: {length}\r\n");
        }
        let persistent = matches!(body, Body::Whole(_));
        head += if persistent { "\r\n" } else { "Connection: close\r\n\r\n" };
        client.write_all(head.as_bytes())?;
        if request.method == "HEAD" {
            return Ok(if persistent { Next::Request } else { Next::Close });
        }
        self.send(client, bytes)?;
        match &body {
            Body::Whole(_) => return Ok(Next::Request),
            Body::Stalled(..) => return wait_for_end(client),
            Body::Endless(_, repeated, _) => loop {
                self.send(client, repeated)?;
            },
            _ => {}
        }
        Ok(Next::Close)
    }

    fn send(&self, mut client: &TcpStream, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(64 << 10) {
            client.write_all(piece)?;
            self.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Reads until the client disconnects.
fn wait_for_end(mut client: &TcpStream) -> io::Result<Next> {
    io::copy(&mut client, &mut io::sink()).map(|_| Next::Close)
}

/// Returns the status, headers and bytes of a correct response, considering the range and `If-Match` of the request.
fn ranged<'a>(request: &Request, status: u16, bytes: &'a [u8]) -> (u16, String, &'a [u8]) {
    if status != 200 {
        return (status, String::new(), bytes);
    }
    let etag = etag(bytes);
    let head = format!("ETag: {etag}\r\nAccept-Ranges: bytes\r\n");
    if request.header("if-match").is_some_and(|wanted| wanted != etag) {
        return (412, head, &[]);
    }
    let Some((first, last)) = request.range() else { return (200, head, bytes) };
    if first >= bytes.len() {
        return (416, format!("{head}Content-Range: bytes */{}\r\n", bytes.len()), &[]);
    }
    let last = last.unwrap_or(usize::MAX).min(bytes.len() - 1);
    let head = format!("{head}Content-Range: bytes {first}-{last}/{}\r\n", bytes.len());
    (206, head, bytes.get(first..=last).unwrap_or_default())
}

/// Returns an entity tag; different bytes have different ones.
pub fn etag(bytes: &[u8]) -> String {
    // FNV-1a: nothing here searches for collisions.
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("\"{hash:016x}{:016x}\"", bytes.len())
}

/// Reads a request and discards its body. Returns None if the client has disconnected.
fn read_request(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Request>> {
    let Some(RequestHead { method, target, headers }) = RequestHead::read(reader)? else { return Ok(None) };
    // A client that uses the server as a proxy sends the whole URL.
    let target = target.split_once("://").map_or(&*target, |(_, rest)| rest.find('/').map_or("/", |at| &rest[at..]));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let key = path.trim_start_matches('/').strip_prefix(BUCKET).unwrap_or(path).trim_start_matches('/').to_owned();
    let request = Request { method, key, query: query.to_owned(), headers };
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    io::copy(&mut reader.by_ref().take(length), &mut io::sink())?;
    Ok(Some(request))
}
