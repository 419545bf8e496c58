//! A server that lies: what it answers to each request is for the test to say, be it HTTP or not.
//!
//! It speaks just enough HTTP/1.1 to be a binary cache, and to be the bucket [`BUCKET`] in path style; signatures of
//! requests are not looked at. What is honest about it is honest throughout: HEAD, ranges, `If-Match` and connections
//! that stay open work, so that a lie is the only thing that is wrong. As a proxy it answers for every host.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::cache_url;
use crate::loopback_listener::LoopbackListener;

/// The bucket, and the first folder of every path.
pub const BUCKET: &str = "cache";

/// Longest head of a request that is read, in bytes.
const MAX_HEAD: u64 = 64 << 10;

/// Objects by their keys.
pub type Objects = BTreeMap<String, Vec<u8>>;

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `GET`, `HEAD` and so on.
    pub method: String,
    /// The object's key; empty for the bucket itself.
    pub key: String,
    /// What follows the question mark; empty where there is none.
    pub query: String,
    /// The headers, names in lower case.
    headers: Vec<(String, String)>,
}

impl Asked {
    /// The value of a header; the name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The first and the last byte of a range that is asked for; the last one may be left open.
    pub fn range(&self) -> Option<(usize, Option<usize>)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()))
    }
}

/// What the server says.
#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Body,
}

/// What comes after the head.
#[derive(Debug, Clone)]
enum Body {
    /// These bytes, with their true length; a range of them where one was asked for.
    Whole(Arc<Vec<u8>>),
    /// These bytes as they are, with this length in the head; then the connection closes.
    Stated(Arc<Vec<u8>>, u64),
    /// These bytes without a length in the head; then the connection closes.
    Unstated(Arc<Vec<u8>>),
    /// These bytes with this length in the head; then nothing until the client gives up.
    Stalled(Arc<Vec<u8>>, u64),
    /// The first bytes, then the second again and again until the client goes away; the length in the head, if any.
    Endless(Arc<Vec<u8>>, Arc<Vec<u8>>, Option<u64>),
    /// No head either: these bytes, and the connection closes.
    Raw(Vec<u8>),
    /// Nothing at all until the client gives up.
    Silent,
}

impl Answer {
    /// An object, honestly.
    pub fn object(bytes: impl Into<Vec<u8>>) -> Self {
        Self::with(200, Body::Whole(Arc::new(bytes.into())))
    }

    /// A status with a page for people.
    pub fn status(status: u16) -> Self {
        let page = format!("<html><body><h1>{status}</h1></body></html>\n");
        Self::with(status, Body::Whole(Arc::new(page.into_bytes()))).header("Content-Type", "text/html")
    }

    /// As MinIO says, and any service that lets the client list the bucket, that there is no such object.
    pub fn no_such_key() -> Self {
        Self::error(404, "NoSuchKey", "The specified key does not exist.")
    }

    /// As AWS says of an object that is not there to a client that may not list the bucket.
    pub fn access_denied() -> Self {
        Self::error(403, "AccessDenied", "Access Denied")
    }

    /// An error in the words of S3.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>\
             <RequestId>1</RequestId></Error>"
        );
        Self::with(status, Body::Whole(Arc::new(text.into_bytes()))).header("Content-Type", "application/xml")
    }

    /// Sends the client elsewhere.
    pub fn redirect(to: impl Into<String>) -> Self {
        Self::status(302).header("Location", to)
    }

    /// These bytes, with `length` in the head; then the connection closes.
    pub fn stated(bytes: impl Into<Vec<u8>>, length: u64) -> Self {
        Self::with(200, Body::Stated(Arc::new(bytes.into()), length))
    }

    /// These bytes without a length in the head; then the connection closes.
    pub fn unstated(bytes: impl Into<Vec<u8>>) -> Self {
        Self::with(200, Body::Unstated(Arc::new(bytes.into())))
    }

    /// These bytes with `length` in the head; then nothing until the client gives up.
    pub fn stalled(bytes: impl Into<Vec<u8>>, length: u64) -> Self {
        Self::with(200, Body::Stalled(Arc::new(bytes.into()), length))
    }

    /// `first`, then `again` and again until the client goes away.
    pub fn endless(first: impl Into<Vec<u8>>, again: impl Into<Vec<u8>>) -> Self {
        Self::with(200, Body::Endless(Arc::new(first.into()), Arc::new(again.into()), None))
    }

    /// As [`Answer::endless`], with a length in the head.
    pub fn endless_stated(first: impl Into<Vec<u8>>, again: impl Into<Vec<u8>>, length: u64) -> Self {
        Self::with(200, Body::Endless(Arc::new(first.into()), Arc::new(again.into()), Some(length)))
    }

    /// These bytes in place of HTTP.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::with(0, Body::Raw(bytes.into()))
    }

    /// Nothing until the client gives up.
    pub fn silent() -> Self {
        Self::with(0, Body::Silent)
    }

    /// The same with one more header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn with(status: u16, body: Body) -> Self {
        Self { status, headers: Vec::new(), body }
    }

    /// The answer of an honest cache: the object, or that there is none.
    pub fn honest(objects: &Objects, asked: &Asked) -> Self {
        objects.get(&asked.key).map_or_else(Self::no_such_key, |bytes| Self::object(bytes.clone()))
    }
}

/// What the server says to each request.
pub type Plan = Box<dyn Fn(&Asked) -> Answer + Send + Sync>;

/// A server on a loopback port of its own. It ends when this is dropped.
pub struct LyingServer {
    listener: LoopbackListener,
    shared: Arc<Shared>,
}

struct Shared {
    plan: Plan,
    asked: Mutex<Vec<Asked>>,
    sent: AtomicU64,
}

impl fmt::Debug for LyingServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LyingServer({})", self.endpoint())
    }
}

impl LyingServer {
    /// Starts one that answers as `plan` says.
    pub fn start(plan: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared { plan: Box::new(plan), asked: Mutex::default(), sent: AtomicU64::new(0) });
        let serving = Arc::clone(&shared);
        Self { listener: LoopbackListener::start(move |client| serving.serve(&client)), shared }
    }

    /// `127.0.0.1:PORT`.
    pub fn endpoint(&self) -> &str {
        self.listener.endpoint()
    }

    /// The server as a plain HTTP cache.
    pub fn http_url(&self) -> String {
        format!("http://{}/{BUCKET}", self.endpoint())
    }

    /// The server as a bucket.
    pub fn s3_url(&self) -> String {
        cache_url(self.endpoint(), BUCKET)
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes of bodies that clients took, or that were at least under way to them.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }
}

/// How a connection goes on.
enum Next {
    Request,
    Close,
}

impl Shared {
    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut reader = BufReader::new(client);
        while let Some(asked) = read_head(&mut reader)? {
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
            let answer = (self.plan)(&asked);
            if let Next::Close = self.answer(client, &asked, answer)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn answer(&self, mut client: &TcpStream, asked: &Asked, answer: Answer) -> io::Result<Next> {
        let Answer { status, headers, body } = answer;
        if let Body::Raw(bytes) = &body {
            client.write_all(bytes)?;
            return Ok(Next::Close);
        }
        if let Body::Silent = &body {
            return wait_for_end(client);
        }
        let (status, extra, bytes) = match &body {
            Body::Whole(bytes) => ranged(asked, status, bytes),
            Body::Stated(bytes, _) | Body::Unstated(bytes) | Body::Stalled(bytes, _) => {
                (status, String::new(), bytes.as_slice())
            }
            Body::Endless(first, ..) => (status, String::new(), first.as_slice()),
            Body::Raw(_) | Body::Silent => (status, String::new(), [].as_slice()),
        };
        let length = match &body {
            Body::Stated(_, length) | Body::Stalled(_, length) => Some(*length),
            Body::Endless(_, _, length) => *length,
            Body::Unstated(_) => None,
            _ => Some(bytes.len() as u64),
        };
        let mut head = format!("HTTP/1.1 {status} Says The Liar\r\n{extra}");
        for (name, value) in &headers {
            // Writing to a string cannot fail.
            let _ = write!(head, "{name}: {value}\r\n");
        }
        if let Some(length) = length {
            let _ = write!(head, "Content-Length: {length}\r\n");
        }
        let stays = matches!(body, Body::Whole(_));
        head += if stays { "\r\n" } else { "Connection: close\r\n\r\n" };
        client.write_all(head.as_bytes())?;
        if asked.method == "HEAD" {
            return Ok(if stays { Next::Request } else { Next::Close });
        }
        self.send(client, bytes)?;
        match &body {
            Body::Whole(_) => return Ok(Next::Request),
            Body::Stalled(..) => return wait_for_end(client),
            Body::Endless(_, again, _) => loop {
                self.send(client, again)?;
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

/// Reads what the client may still say, until it goes away.
fn wait_for_end(mut client: &TcpStream) -> io::Result<Next> {
    io::copy(&mut client, &mut io::sink()).map(|_| Next::Close)
}

/// An honest answer to a request for a whole object, a range of it, or it as long as it is what it was.
fn ranged<'a>(asked: &Asked, status: u16, bytes: &'a [u8]) -> (u16, String, &'a [u8]) {
    if status != 200 {
        return (status, String::new(), bytes);
    }
    let etag = etag(bytes);
    let head = format!("ETag: {etag}\r\nAccept-Ranges: bytes\r\n");
    if asked.header("if-match").is_some_and(|wanted| wanted != etag) {
        return (412, head, &[]);
    }
    let Some((first, last)) = asked.range() else { return (200, head, bytes) };
    if first >= bytes.len() {
        return (416, format!("{head}Content-Range: bytes */{}\r\n", bytes.len()), &[]);
    }
    let last = last.unwrap_or(usize::MAX).min(bytes.len() - 1);
    let head = format!("{head}Content-Range: bytes {first}-{last}/{}\r\n", bytes.len());
    (206, head, bytes.get(first..=last).unwrap_or_default())
}

/// An entity tag: other bytes have another one.
pub fn etag(bytes: &[u8]) -> String {
    // FNV-1a: nobody here looks for collisions.
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("\"{hash:016x}{:016x}\"", bytes.len())
}

/// Reads the head of a request, and its body, which nobody wants. None when the client has no more requests.
fn read_head(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Asked>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.by_ref().take(MAX_HEAD).read_line(&mut line)?;
        match line.trim_end() {
            "" if line.is_empty() && lines.is_empty() => return Ok(None),
            "" => break,
            text => lines.push(text.to_owned()),
        }
    }
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "not a request");
    let mut words = lines.first().ok_or_else(malformed)?.split(' ');
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().ok_or_else(malformed)?);
    // A client that takes the server for a proxy says the whole URL.
    let target = target.split_once("://").map_or(target, |(_, rest)| rest.find('/').map_or("/", |at| &rest[at..]));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let key = path.trim_start_matches('/').strip_prefix(BUCKET).unwrap_or(path).trim_start_matches('/').to_owned();
    let header = |line: &String| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    let asked = Asked { method, key, query: query.to_owned(), headers: lines[1..].iter().filter_map(header).collect() };
    let length = asked.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    io::copy(&mut reader.by_ref().take(length), &mut io::sink())?;
    Ok(Some(asked))
}
