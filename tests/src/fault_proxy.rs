//! A proxy in front of an S3 server that lets requests through unchanged, counts them, and does to some of them what
//! networks and services do: refuse, reset, stall, cut off, lose the answer.
//!
//! What happens to a request is said by a plan, a function of the request; see [`always`], [`once`], [`once_per_kind`],
//! [`every`] and [`only`]. A plan may block: nothing but that request waits for it.

use std::fmt::{self, Write as _};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::loopback_listener::LoopbackListener;

/// Longest head of a request.
const MAX_HEAD: usize = 64 << 10;

/// What an object is, by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// `nix-cache-info`.
    CacheInfo,
    /// `<hash>.narinfo`.
    Narinfo,
    /// `nar/…`.
    Nar,
    /// Anything else.
    Other,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are S3's
pub enum Kind {
    GetObject(What),
    HeadObject(What),
    PutObject(What),
    ListObjects,
    CreateMultipartUpload,
    UploadPart,
    CompleteMultipartUpload,
    AbortMultipartUpload,
    ListMultipartUploads,
    ListParts,
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
    fn parse(head: Vec<u8>) -> io::Result<Self> {
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

    /// The value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The key of the object, prefix included; empty for the bucket itself.
    pub fn key(&self) -> &str {
        self.path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key)
    }

    /// Whether the query has that parameter.
    fn asks(&self, parameter: &str) -> bool {
        self.query.split('&').any(|pair| pair.split('=').next() == Some(parameter))
    }

    /// What the object is.
    pub fn what(&self) -> What {
        let key = self.key();
        let name = key.rsplit('/').next().unwrap_or_default();
        if name == "nix-cache-info" {
            What::CacheInfo
        } else if Path::new(name).extension().is_some_and(|extension| extension == "narinfo") {
            What::Narinfo
        } else if key.starts_with("nar/") || key.contains("/nar/") {
            What::Nar
        } else {
            What::Other
        }
    }

    /// What is asked for.
    pub fn kind(&self) -> Kind {
        match (self.method.as_str(), self.asks("uploadId")) {
            ("GET", _) if self.asks("uploads") => Kind::ListMultipartUploads,
            ("GET", true) => Kind::ListParts,
            ("GET", false) if self.key().is_empty() => Kind::ListObjects,
            ("GET", false) => Kind::GetObject(self.what()),
            ("HEAD", _) => Kind::HeadObject(self.what()),
            ("PUT", true) => Kind::UploadPart,
            ("PUT", false) => Kind::PutObject(self.what()),
            ("POST", true) => Kind::CompleteMultipartUpload,
            ("POST", false) if self.asks("uploads") => Kind::CreateMultipartUpload,
            ("DELETE", true) => Kind::AbortMultipartUpload,
            _ => Kind::Other,
        }
    }

    fn content_length(&self) -> io::Result<usize> {
        if self.header("transfer-encoding").is_some() {
            return Err(malformed("a request body without a length"));
        }
        let length = self.header("content-length").unwrap_or("0");
        length.parse().map_err(|_| malformed("a length that is none"))
    }
}

/// An answer of the service with an error inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: u16,
    /// S3's word for it.
    pub code: &'static str,
    /// Seconds in Retry-After.
    pub retry_after: Option<u32>,
}

/// 503, as S3 says that it is asked too much.
pub const SLOW_DOWN: Fault = Fault::Refuse(Refusal { status: 503, code: "SlowDown", retry_after: None });
/// 500.
pub const INTERNAL_ERROR: Fault = Fault::Refuse(Refusal { status: 500, code: "InternalError", retry_after: None });
/// 429, with a second to wait.
pub const TOO_MANY_REQUESTS: Fault =
    Fault::Refuse(Refusal { status: 429, code: "TooManyRequests", retry_after: Some(1) });
/// 403.
pub const ACCESS_DENIED: Fault = Fault::Refuse(Refusal { status: 403, code: "AccessDenied", retry_after: None });
/// 501.
pub const NOT_IMPLEMENTED: Fault = Fault::Refuse(Refusal { status: 501, code: "NotImplemented", retry_after: None });
/// 200 with an error in the body, as CompleteMultipartUpload may answer.
pub const ERROR_IN_200: Fault = Fault::Refuse(Refusal { status: 200, code: "InternalError", retry_after: None });

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It goes through.
    Pass,
    /// The server does not hear of it; this is the answer.
    Refuse(Refusal),
    /// The server does not hear of it; the connection is reset.
    Reset,
    /// The server does not hear of it; nobody answers until the client gives up.
    Stall,
    /// The server hears half of it, and the connection closes.
    TruncateRequest,
    /// The server does what it is asked for, and the connection closes without an answer.
    LoseResponse,
    /// The answer's body stops after so many bytes, and the connection closes.
    TruncateResponse(usize),
    /// The answer's body stops after so many bytes, and nothing more happens until the client gives up.
    StallResponse(usize),
}

/// Does the same to every request.
pub fn always(fault: Fault) -> impl Fn(&Request) -> Fault + Send + Sync {
    move |_| fault
}

/// Does it to the first request.
pub fn once(fault: Fault) -> impl Fn(&Request) -> Fault + Send + Sync {
    let done = AtomicBool::new(false);
    move |_| if done.swap(true, Ordering::Relaxed) { Fault::Pass } else { fault }
}

/// Does it to the first request of each kind.
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

/// Does it to every `n`th request.
pub fn every(n: u64, fault: Fault) -> impl Fn(&Request) -> Fault + Send + Sync {
    let count = AtomicU64::new(0);
    move |_| if (count.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(n) { fault } else { Fault::Pass }
}

/// Lets `plan` know of those requests only, and lets all others pass.
pub fn only(
    those: impl Fn(&Request) -> bool + Send + Sync,
    plan: impl Fn(&Request) -> Fault + Send + Sync,
) -> impl Fn(&Request) -> Fault + Send + Sync {
    move |request| if those(request) { plan(request) } else { Fault::Pass }
}

/// A proxy on a loopback port of its own. It ends when this is dropped.
pub struct FaultProxy {
    listener: LoopbackListener,
    shared: Arc<Shared>,
}

struct Shared {
    target: String,
    plan: Box<dyn Fn(&Request) -> Fault + Send + Sync>,
    in_flight: AtomicUsize,
    seen: Mutex<Vec<(Kind, Fault)>>,
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultProxy({} for {})", self.endpoint(), self.shared.target)
    }
}

impl FaultProxy {
    /// Starts one in front of the server at `target` (`ADDRESS:PORT`).
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

    /// The kinds of the requests so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Kind> {
        self.seen().into_iter().map(|(kind, _)| kind).collect()
    }

    /// The requests so far, and what became of each.
    pub fn seen(&self) -> Vec<(Kind, Fault)> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many requests something was done to.
    pub fn faults(&self) -> usize {
        self.seen().iter().filter(|(_, fault)| *fault != Fault::Pass).count()
    }
}

/// A request in flight.
struct InFlight<'a> {
    counter: &'a AtomicUsize,
    /// Requests in flight when this one began, this one included.
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

/// How a connection goes on after a request.
enum Next {
    Request,
    Close,
}

/// An answer of the server: its head, its body as it is framed, and whether only the connection's end ends it.
struct Answer {
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
                // Closing a socket that holds unread bytes resets the connection.
                return Ok(());
            }
            let mut rest = client;
            rest.read_exact(&mut vec![0; unread])?;
            if let Next::Close = self.answer(client, &request, fault, in_flight)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn answer(
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
            Fault::Pass => {
                let answer = self.forward(request, &body)?;
                // Before the client can send the next request.
                drop(in_flight);
                client.write_all(&answer.head)?;
                client.write_all(&answer.body)?;
                return Ok(if answer.until_closed { Next::Close } else { Next::Request });
            }
            Fault::Refuse(refusal) => {
                drop(in_flight);
                client.write_all(&refusal.answer(request))?;
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
            let answer = self.forward(request, &body)?;
            client.write_all(&answer.head)?;
            client.write_all(&answer.body[..kept.min(answer.body.len())])?;
        }
        if !matches!(fault, Fault::TruncateResponse(_)) {
            io::copy(&mut client, &mut io::sink())?;
        }
        Ok(Next::Close)
    }

    /// Sends the request to the server, as it came, and reads the whole answer.
    fn forward(&self, request: &Request, body: &[u8]) -> io::Result<Answer> {
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
                // To a request that expected it; the client was told long ago.
                continue;
            }
            let header = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let (mut body, mut until_closed) = (Vec::new(), false);
            if request.method == "HEAD" || status == "204" || status == "304" {
                // There is no body, whatever the headers say.
            } else if header("transfer-encoding:") == Some("chunked") {
                read_chunks(&mut server, &mut body)?;
            } else if let Some(length) = header("content-length:") {
                body = vec![0; length.parse().map_err(|_| malformed("a length that is none"))?];
                server.read_exact(&mut body)?;
            } else {
                server.read_to_end(&mut body)?;
                until_closed = true;
            }
            return Ok(Answer { head, body, until_closed });
        }
    }
}

impl Refusal {
    fn answer(&self, request: &Request) -> Vec<u8> {
        let Self { status, code, retry_after } = self;
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>A fault of the proxy's \
             making.</Message><RequestId>1</RequestId></Error>"
        );
        let mut answer = format!("HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\n");
        if let Some(seconds) = retry_after {
            // Writing to a string cannot fail.
            let _ = write!(answer, "Retry-After: {seconds}\r\n");
        }
        let _ = write!(answer, "Content-Length: {}\r\n\r\n", body.len());
        if request.method != "HEAD" {
            answer += &body;
        }
        answer.into_bytes()
    }
}

/// Reads the head of a request, but for its last bytes, of which it returns the number: those stay in the socket. None
/// when the client has no more requests.
fn read_head(mut client: &TcpStream) -> io::Result<Option<(Request, usize)>> {
    const END: &[u8] = b"\r\n\r\n";
    let (mut head, mut buffer) = (Vec::new(), vec![0; MAX_HEAD]);
    loop {
        let arrived = client.peek(&mut buffer)?;
        if arrived == 0 && head.is_empty() {
            return Ok(None);
        }
        let before = head.len();
        head.extend_from_slice(&buffer[..arrived]);
        // The end may lie across what was read before.
        let from = before.saturating_sub(END.len() - 1);
        if let Some(at) = head[from..].windows(END.len()).position(|bytes| bytes == END) {
            head.truncate(from + at + END.len());
            let unread = head.len() - before;
            return Ok(Some((Request::parse(head)?, unread)));
        }
        if arrived == 0 || head.len() > MAX_HEAD {
            return Err(malformed("a head without an end"));
        }
        client.read_exact(&mut buffer[..arrived])?;
    }
}

/// Reads lines up to an empty one, which is included.
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

/// Reads a chunked body with its frames.
fn read_chunks(from: &mut BufReader<TcpStream>, into: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let start = into.len();
        from.read_until(b'\n', into)?;
        let line = str::from_utf8(&into[start..]).map_err(|_| malformed("a chunk without a size"))?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| malformed("a chunk without a size"))?;
        if size == 0 {
            into.extend(read_lines(from)?);
            return Ok(());
        }
        from.by_ref().take(size + 2).read_to_end(into)?;
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
