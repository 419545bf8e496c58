//! A proxy in front of an S3 server that forwards requests unchanged, counts them, and injects faults of networks and
//! services: error responses, resets, stalls, truncation, lost responses.
//!
//! A plan, which is a function of the request, decides the fault; see [`always`], [`once`], [`once_per_kind`], [`every`]
//! and [`only`]. A plan may block: only that request waits for it.

use std::fmt::{self, Write as _};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::loopback_listener::LoopbackListener;
use crate::quirks::Quirk;

/// Maximum size of the head of a request in bytes.
const MAX_HEAD_SIZE: usize = 64 << 10;

/// The kind of an object, by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKind {
    /// `nix-cache-info`.
    CacheInfo,
    /// `<hash>.narinfo`.
    Narinfo,
    /// `nar/…`.
    Nar,
    /// Anything else.
    Other,
}

/// The operation of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are S3's
pub enum RequestKind {
    GetObject(ObjectKind),
    HeadObject(ObjectKind),
    PutObject(ObjectKind),
    ListObjects,
    CreateMultipartUpload,
    UploadPart,
    CompleteMultipartUpload,
    AbortMultipartUpload,
    ListMultipartUploads,
    ListParts,
    DeleteObjects,
    Other,
}

/// The head of a request.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path, as it was sent: `/BUCKET/KEY`, or `/BUCKET/`.
    pub path: String,
    /// What follows the question mark, as it was sent.
    pub query: String,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Requests in flight at the proxy when this one arrived, this one included.
    pub in_flight: usize,
    head: Vec<u8>,
}

impl Request {
    pub(crate) fn parse(head: Vec<u8>) -> io::Result<Self> {
        let text = str::from_utf8(&head).map_err(|_| malformed("a head that is not text"))?;
        let mut lines = text.lines();
        let mut first = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (method, path, query) = (method.to_owned(), path.to_owned(), query.to_owned());
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        Ok(Self { method, path, query, headers, in_flight: 0, head })
    }

    /// Returns the value of a header; the name must be in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Returns the key of the object, including the prefix; empty for the bucket itself.
    pub fn key(&self) -> &str {
        self.path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key)
    }

    /// Returns whether the query has that parameter.
    pub fn has_parameter(&self, parameter: &str) -> bool {
        self.query.split('&').any(|pair| pair.split('=').next() == Some(parameter))
    }

    /// Returns the kind of the object.
    pub fn object_kind(&self) -> ObjectKind {
        let key = self.key();
        let name = key.rsplit('/').next().unwrap_or_default();
        if name == "nix-cache-info" {
            ObjectKind::CacheInfo
        } else if Path::new(name).extension().is_some_and(|extension| extension == "narinfo") {
            ObjectKind::Narinfo
        } else if key.starts_with("nar/") || key.contains("/nar/") {
            ObjectKind::Nar
        } else {
            ObjectKind::Other
        }
    }

    /// Returns the operation.
    pub fn kind(&self) -> RequestKind {
        match (self.method.as_str(), self.has_parameter("uploadId")) {
            ("GET", _) if self.has_parameter("uploads") => RequestKind::ListMultipartUploads,
            ("GET", true) => RequestKind::ListParts,
            ("GET", false) if self.key().is_empty() => RequestKind::ListObjects,
            ("GET", false) => RequestKind::GetObject(self.object_kind()),
            ("HEAD", _) => RequestKind::HeadObject(self.object_kind()),
            ("PUT", true) => RequestKind::UploadPart,
            ("PUT", false) => RequestKind::PutObject(self.object_kind()),
            ("POST", true) => RequestKind::CompleteMultipartUpload,
            ("POST", false) if self.has_parameter("uploads") => RequestKind::CreateMultipartUpload,
            ("POST", false) if self.has_parameter("delete") => RequestKind::DeleteObjects,
            ("DELETE", true) => RequestKind::AbortMultipartUpload,
            _ => RequestKind::Other,
        }
    }

    fn content_length(&self) -> io::Result<usize> {
        if self.header("transfer-encoding").is_some() {
            return Err(malformed("request body without a Content-Length"));
        }
        let length = self.header("content-length").unwrap_or("0");
        length.parse().map_err(|_| malformed("invalid Content-Length"))
    }
}

/// An error response of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorResponse {
    /// The status.
    pub status: u16,
    /// The error code of S3.
    pub code: &'static str,
    /// Seconds in Retry-After.
    pub retry_after: Option<u32>,
}

/// 503, with which S3 throttles clients.
pub const SLOW_DOWN: Fault = Fault::Respond(ErrorResponse { status: 503, code: "SlowDown", retry_after: None });
/// 500.
pub const INTERNAL_ERROR: Fault =
    Fault::Respond(ErrorResponse { status: 500, code: "InternalError", retry_after: None });
/// 429 with a Retry-After of one second.
pub const TOO_MANY_REQUESTS: Fault =
    Fault::Respond(ErrorResponse { status: 429, code: "TooManyRequests", retry_after: Some(1) });
/// 403.
pub const ACCESS_DENIED: Fault = Fault::Respond(ErrorResponse { status: 403, code: "AccessDenied", retry_after: None });
/// 501.
pub const NOT_IMPLEMENTED: Fault =
    Fault::Respond(ErrorResponse { status: 501, code: "NotImplemented", retry_after: None });
/// 200 with an error in the body, which CompleteMultipartUpload may return.
pub const ERROR_IN_200: Fault = Fault::Respond(ErrorResponse { status: 200, code: "InternalError", retry_after: None });

/// A fault, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request is forwarded.
    Pass,
    /// The server does not receive the request; this is the response.
    Respond(ErrorResponse),
    /// The server does not receive the request; the connection is reset.
    Reset,
    /// The server does not receive the request; there is no response until the client disconnects.
    Stall,
    /// The server receives half of the request, and the connection closes.
    TruncateRequest,
    /// The server processes the request, and the connection closes without a response.
    LoseResponse,
    /// The body of the response stops after this number of bytes, and the connection closes.
    TruncateResponse(usize),
    /// The body of the response stops after this number of bytes, and stalls until the client disconnects.
    StallResponse(usize),
    /// The request is forwarded, and the response changed as a service that differs from S3 would send it.
    Quirk(Quirk),
}

/// Injects the fault into every request.
pub fn always(fault: Fault) -> impl Fn(&Request) -> Fault + Send + Sync {
    move |_| fault
}

/// Injects the fault into the first request.
pub fn once(fault: Fault) -> impl Fn(&Request) -> Fault + Send + Sync {
    let done = AtomicBool::new(false);
    move |_| if done.swap(true, Ordering::Relaxed) { Fault::Pass } else { fault }
}

/// Injects the fault into the first request of each kind.
pub fn once_per_kind(fault: Fault) -> impl Fn(&Request) -> Fault + Send + Sync {
    let seen = Mutex::new(Vec::new());
    move |request| {
        let (mut seen, kind) = (seen.lock().unwrap_or_else(PoisonError::into_inner), request.kind());
        if seen.contains(&kind) {
            return Fault::Pass;
        }
        seen.push(kind);
        fault
    }
}

/// Injects the fault into every `n`th request.
pub fn every(n: u64, fault: Fault) -> impl Fn(&Request) -> Fault + Send + Sync {
    let count = AtomicU64::new(0);
    move |_| if (count.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(n) { fault } else { Fault::Pass }
}

/// Applies `plan` to the matching requests only.
pub fn only(
    matches: impl Fn(&Request) -> bool + Send + Sync,
    plan: impl Fn(&Request) -> Fault + Send + Sync,
) -> impl Fn(&Request) -> Fault + Send + Sync {
    move |request| if matches(request) { plan(request) } else { Fault::Pass }
}

/// A proxy on a free loopback port. It stops when dropped.
pub struct FaultProxy {
    listener: LoopbackListener,
    shared: Arc<Shared>,
}

struct Shared {
    target: String,
    plan: Box<dyn Fn(&Request) -> Fault + Send + Sync>,
    in_flight: AtomicUsize,
    seen: Mutex<Vec<(RequestKind, Fault)>>,
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultProxy({} for {})", self.endpoint(), self.shared.target)
    }
}

impl FaultProxy {
    /// Starts a proxy in front of the server at `target` (`ADDRESS:PORT`).
    pub fn start(target: &str, plan: impl Fn(&Request) -> Fault + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            plan: Box::new(plan),
            in_flight: AtomicUsize::new(0),
            seen: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        Self { listener: LoopbackListener::start(move |client| serving.serve(&client)), shared }
    }

    /// `127.0.0.1:PORT`.
    pub fn endpoint(&self) -> &str {
        self.listener.endpoint()
    }

    /// Returns the kinds of the requests so far, in order of arrival.
    pub fn requests(&self) -> Vec<RequestKind> {
        self.seen().into_iter().map(|(kind, _)| kind).collect()
    }

    /// Returns the requests so far with the fault of each.
    pub fn seen(&self) -> Vec<(RequestKind, Fault)> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns how many requests had a fault.
    pub fn faults(&self) -> usize {
        self.seen().iter().filter(|(_, fault)| *fault != Fault::Pass).count()
    }
}

/// A request in flight.
struct InFlight<'a> {
    counter: &'a AtomicUsize,
    /// Requests in flight when this one started, including this one.
    count: usize,
}

impl<'a> InFlight<'a> {
    fn enter(counter: &'a AtomicUsize) -> Self {
        Self { counter, count: counter.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What follows a response on the connection.
enum Next {
    Request,
    Close,
}

/// A response of the server: its status, its head, its body with its framing, and whether the end of the connection ends it.
struct Response {
    status: String,
    head: Vec<u8>,
    body: Vec<u8>,
    until_closed: bool,
}

impl Shared {
    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        while let Some((mut request, unread)) = read_head(client)? {
            let in_flight = InFlight::enter(&self.in_flight);
            request.in_flight = in_flight.count;
            let fault = (self.plan)(&request);
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).push((request.kind(), fault));
            if fault == Fault::Reset {
                // Closing a socket with unread bytes resets the connection.
                return Ok(());
            }
            let mut rest = client;
            rest.read_exact(&mut vec![0; unread])?;
            let is_last = request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
            let next = self.response(client, &request, fault, in_flight)?;
            if is_last || matches!(next, Next::Close) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn response(
        &self,
        mut client: &TcpStream,
        request: &Request,
        fault: Fault,
        in_flight: InFlight<'_>,
    ) -> io::Result<Next> {
        if request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
            client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut body = vec![0; request.content_length()?];
        client.read_exact(&mut body)?;
        let kept = match fault {
            Fault::Pass | Fault::Quirk(_) => {
                let mut response = self.forward(request, &body)?;
                if let Fault::Quirk(quirk) = fault {
                    if let Some(error) = quirk.error(request, &response.status, &response.body) {
                        drop(in_flight);
                        client.write_all(&error.response(request))?;
                        return Ok(Next::Request);
                    }
                    quirk.apply(request.kind(), &mut response.body);
                }
                // Before the client can send the next request.
                drop(in_flight);
                client.write_all(&response.head)?;
                client.write_all(&response.body)?;
                return Ok(if response.until_closed { Next::Close } else { Next::Request });
            }
            Fault::Respond(error) => {
                drop(in_flight);
                client.write_all(&error.response(request))?;
                return Ok(Next::Request);
            }
            Fault::TruncateRequest => {
                let whole = [request.head.as_slice(), &body].concat();
                let kept = if body.is_empty() { whole.len() / 2 } else { whole.len() - body.len().div_ceil(2) };
                TcpStream::connect(&self.target)?.write_all(&whole[..kept])?;
                return Ok(Next::Close);
            }
            Fault::LoseResponse => {
                self.forward(request, &body)?;
                return Ok(Next::Close);
            }
            Fault::Reset | Fault::Stall => None,
            Fault::TruncateResponse(kept) | Fault::StallResponse(kept) => Some(kept),
        };
        if let Some(kept) = kept {
            let response = self.forward(request, &body)?;
            client.write_all(&response.head)?;
            client.write_all(&response.body[..kept.min(response.body.len())])?;
        }
        if !matches!(fault, Fault::TruncateResponse(_)) {
            io::copy(&mut client, &mut io::sink())?;
        }
        Ok(Next::Close)
    }

    /// Forwards the request unchanged and reads the whole response.
    fn forward(&self, request: &Request, body: &[u8]) -> io::Result<Response> {
        let mut server = TcpStream::connect(&self.target)?;
        server.set_nodelay(true)?;
        server.write_all(&request.head)?;
        server.write_all(body)?;
        let mut server = BufReader::new(server);
        loop {
            let head = read_lines(&mut server)?;
            let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
            let status = text.split(' ').nth(1).unwrap_or_default();
            if status.starts_with('1') {
                // The proxy has already sent 100 Continue to the client.
                continue;
            }
            let header = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let (mut body, mut until_closed) = (Vec::new(), false);
            if request.method == "HEAD" || status == "204" || status == "304" {
                // There is no body, regardless of the headers.
            } else if header("transfer-encoding:") == Some("chunked") {
                read_chunks(&mut server, &mut body)?;
            } else if let Some(length) = header("content-length:") {
                body = vec![0; length.parse().map_err(|_| malformed("invalid Content-Length"))?];
                server.read_exact(&mut body)?;
            } else {
                server.read_to_end(&mut body)?;
                until_closed = true;
            }
            let status = status.to_owned();
            return Ok(Response { status, head, body, until_closed });
        }
    }
}

impl ErrorResponse {
    fn response(&self, request: &Request) -> Vec<u8> {
        let Self { status, code, retry_after } = self;
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>An injected \
             fault.</Message><RequestId>1</RequestId></Error>"
        );
        let mut response = format!("HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\n");
        if let Some(seconds) = retry_after {
            // Writing to a string cannot fail.
            let _ = write!(response, "Retry-After: {seconds}\r\n");
        }
        let _ = write!(response, "Content-Length: {}\r\n\r\n", body.len());
        if request.method != "HEAD" {
            response += &body;
        }
        response.into_bytes()
    }
}

/// Reads the head of a request except its last bytes, which stay in the socket, and returns their number. Returns None
/// if the client has disconnected.
fn read_head(mut client: &TcpStream) -> io::Result<Option<(Request, usize)>> {
    const END: &[u8] = b"\r\n\r\n";
    let (mut head, mut buffer) = (Vec::new(), vec![0; MAX_HEAD_SIZE]);
    loop {
        let arrived = client.peek(&mut buffer)?;
        if arrived == 0 && head.is_empty() {
            return Ok(None);
        }
        let before = head.len();
        head.extend_from_slice(&buffer[..arrived]);
        // The end may span two reads.
        let from = before.saturating_sub(END.len() - 1);
        if let Some(at) = head[from..].windows(END.len()).position(|bytes| bytes == END) {
            head.truncate(from + at + END.len());
            let unread = head.len() - before;
            return Ok(Some((Request::parse(head)?, unread)));
        }
        if arrived == 0 || head.len() > MAX_HEAD_SIZE {
            return Err(malformed("the head has no end"));
        }
        client.read_exact(&mut buffer[..arrived])?;
    }
}

/// Reads lines up to and including an empty one.
fn read_lines(from: &mut BufReader<TcpStream>) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    loop {
        match from.read_until(b'\n', &mut lines)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            1 | 2 if lines.ends_with(b"\n\r\n") || lines.ends_with(b"\n\n") || lines == b"\r\n" => return Ok(lines),
            _ => {}
        }
    }
}

/// Reads a chunked body with its framing.
fn read_chunks(from: &mut BufReader<TcpStream>, into: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let start = into.len();
        from.read_until(b'\n', into)?;
        let line = str::from_utf8(&into[start..]).map_err(|_| malformed("chunk without a size"))?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| malformed("chunk without a size"))?;
        if size == 0 {
            into.extend(read_lines(from)?);
            return Ok(());
        }
        from.by_ref().take(size + 2).read_to_end(into)?;
    }
}

fn malformed(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
