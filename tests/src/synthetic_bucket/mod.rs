//! A bucket of any size that takes no space: the listing, the narinfos and the sizes of the NARs are computed from the
//! index of a path. Used to measure what a collection or a check of a million paths costs.
//!
//! It implements as much of S3 as the tools need for that: ListObjectsV2 with a delimiter, GET and HEAD; PUT, DELETE and
//! DeleteObjects change an overlay in memory. NARs can be asked for with HEAD only. Signatures of requests are not checked.
//!
//! Paths are grouped by 1000; a path refers only to earlier paths of its group, 31 on average where there are enough.
//! Nine of ten groups are pinned by their last path.

mod contents;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use md5::{Digest as _, Md5};

use crate::loopback_listener::LoopbackListener;
use crate::request_head::RequestHead;
use crate::{cache_url, processors};
use contents::Contents;

/// The bucket, which is the first component of every path.
const BUCKET: &str = "cache";
/// The contents of `nix-cache-info`.
const CACHE_INFO: &str = "StoreDir: /nix/store\n";
/// The only pin.
const PIN_KEY: &str = "pins/all";
/// When every object was last modified.
const LAST_MODIFIED: &str = "2026-01-02T03:04:05.000Z";
/// The same in a header.
const LAST_MODIFIED_HEADER: &str = "Fri, 02 Jan 2026 03:04:05 GMT";

/// Options of a [`SyntheticBucket`].
pub struct Options {
    /// Number of store paths.
    pub paths: u64,
    /// Keys on a page of a listing.
    pub page_size: usize,
    /// Delay of each response.
    pub latency: Duration,
    /// Returns the value of the `Sig` field for a fingerprint.
    pub sign: Box<dyn Fn(&str) -> String + Send + Sync>,
}

/// Writes a bucket of the same kind to a directory, which must exist, for a server that stores what it serves. Each NAR
/// is `nar_size` zeros. `sign` is as in [`Options`].
///
/// # Errors
/// If a file cannot be written.
pub fn write(dir: &Path, paths: u64, nar_size: usize, sign: &dyn Fn(&str) -> String) -> io::Result<()> {
    let contents = Contents::new(paths).with_nars_of(nar_size as u64);
    fs::create_dir(dir.join("nar"))?;
    fs::create_dir(dir.join("pins"))?;
    fs::write(dir.join("nix-cache-info"), CACHE_INFO)?;
    fs::write(dir.join(PIN_KEY), contents.pin())?;
    let nar = vec![0; nar_size];
    for index in 0..paths {
        fs::write(dir.join(contents.narinfo_key(index)), contents.narinfo(index, sign))?;
        fs::write(dir.join(contents.nar_key(index)), &nar)?;
    }
    Ok(())
}

/// Number of requests by kind.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestCounts {
    /// Pages of listings.
    pub pages: u64,
    /// GET requests for narinfos.
    pub narinfos: u64,
    /// Everything else.
    pub others: u64,
}

/// A server on a free loopback port. It stops when dropped.
pub struct SyntheticBucket {
    listener: LoopbackListener,
    shared: Arc<Shared>,
}

impl fmt::Debug for SyntheticBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SyntheticBucket({})", self.listener.endpoint())
    }
}

impl SyntheticBucket {
    /// Starts a server. Computes the narinfos of all paths once, on every processor, for their entity tags.
    pub fn start(options: Options) -> Self {
        let shared = Arc::new(Shared::new(options));
        let serving = Arc::clone(&shared);
        Self { listener: LoopbackListener::start(move |client| serving.serve(&client)), shared }
    }

    /// Returns the `s3://` URL of the bucket.
    pub fn cache_url(&self) -> String {
        cache_url(self.listener.endpoint(), BUCKET)
    }

    /// Returns the number of requests since the last call.
    pub fn take_counts(&self) -> RequestCounts {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        RequestCounts {
            pages: take(&self.shared.pages),
            narinfos: take(&self.shared.narinfos),
            others: take(&self.shared.others),
        }
    }
}

struct Shared {
    contents: Contents,
    options: Options,
    /// MD5 of the narinfos, by index.
    etags: Vec<[u8; 16]>,
    /// Objects that were written (`Some`) or deleted (`None`).
    overlay: Mutex<BTreeMap<String, Option<Vec<u8>>>>,
    pages: AtomicU64,
    narinfos: AtomicU64,
    others: AtomicU64,
}

struct Request {
    method: String,
    key: String,
    query: Vec<(String, String)>,
    /// The headers, with names in lower case.
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

struct Response {
    status: u16,
    etag: Option<String>,
    /// The length of an object of which only the head is known.
    length: Option<u64>,
    body: Vec<u8>,
}

impl Response {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, etag: None, length: None, body: body.into() }
    }

    fn error(status: u16, code: &str) -> Self {
        Self::new(status, format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>"))
    }
}

/// One entry of a listing.
struct Entry {
    key: String,
    size: u64,
    etag: String,
}

impl Shared {
    fn new(options: Options) -> Self {
        let contents = Contents::new(options.paths);
        let mut etags = vec![[0; 16]; usize::try_from(options.paths).expect("an etag of each path fits memory")];
        let chunk = etags.len().div_ceil(processors());
        thread::scope(|scope| {
            for (part, etags) in etags.chunks_mut(chunk).enumerate() {
                let (contents, sign) = (&contents, &options.sign);
                scope.spawn(move || {
                    for (index, etag) in (part as u64 * chunk as u64..).zip(etags) {
                        *etag = Md5::digest(contents.narinfo(index, sign)).into();
                    }
                });
            }
        });
        let pin = contents.pin();
        let overlay = BTreeMap::from([
            ("nix-cache-info".to_owned(), Some(CACHE_INFO.as_bytes().to_vec())),
            (PIN_KEY.to_owned(), Some(pin.into_bytes())),
        ]);
        let overlay = Mutex::new(overlay);
        let (pages, narinfos, others) = Default::default();
        Self { contents, options, etags, overlay, pages, narinfos, others }
    }

    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut reader = BufReader::new(client);
        let mut writer = client;
        while let Some(request) = read_request(&mut reader)? {
            let response = self.respond(&request);
            thread::sleep(self.options.latency);
            let length = response.length.unwrap_or(response.body.len() as u64);
            let mut head = format!("HTTP/1.1 {} Status\r\nContent-Length: {length}\r\n", response.status);
            if let Some(etag) = &response.etag {
                // Writing to a string cannot fail.
                let _ = write!(head, "ETag: {etag}\r\nLast-Modified: {LAST_MODIFIED_HEADER}\r\n");
            }
            let mut bytes = (head + "\r\n").into_bytes();
            if request.method != "HEAD" {
                bytes.extend_from_slice(&response.body);
            }
            writer.write_all(&bytes)?;
        }
        Ok(())
    }

    fn respond(&self, request: &Request) -> Response {
        let counter = match request.method.as_str() {
            "GET" if request.key.is_empty() => &self.pages,
            "GET" if request.key.ends_with(".narinfo") => &self.narinfos,
            _ => &self.others,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        match request.method.as_str() {
            "GET" if request.key.is_empty() && request.query("list-type").is_some() => self.list(request),
            "GET" if request.key.is_empty() && request.query("uploads").is_some() => Response::new(
                200,
                "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>",
            ),
            "GET" | "HEAD" if request.key.is_empty() => Response::error(501, "NotImplemented"),
            "GET" | "HEAD" => self.object(request),
            "PUT" => self.put(request),
            "DELETE" => {
                self.overlay().insert(request.key.clone(), None);
                Response::new(204, "")
            }
            "POST" if request.query("delete").is_some() => self.delete_many(&request.body),
            _ => Response::error(501, "NotImplemented"),
        }
    }

    fn overlay(&self) -> MutexGuard<'_, BTreeMap<String, Option<Vec<u8>>>> {
        self.overlay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn object(&self, request: &Request) -> Response {
        let key = request.key.as_str();
        if let Some(written) = self.overlay().get(key) {
            return match written {
                Some(bytes) => Response { etag: Some(etag_of(bytes)), ..Response::new(200, bytes.clone()) },
                None => Response::error(404, "NoSuchKey"),
            };
        }
        if let Some(index) = self.contents.find_narinfo(key) {
            let text = self.contents.narinfo(index, &self.options.sign);
            return Response { etag: Some(self.narinfo_etag(index)), ..Response::new(200, text) };
        }
        match self.contents.find_nar(key) {
            Some(index) if request.method == "HEAD" => {
                let (etag, length) = (Some(nar_etag(index)), Some(self.contents.file_size(index)));
                Response { etag, length, ..Response::new(200, "") }
            }
            Some(_) => Response::error(501, "NotImplemented"),
            None => Response::error(404, "NoSuchKey"),
        }
    }

    fn put(&self, request: &Request) -> Response {
        let mut overlay = self.overlay();
        let current = overlay.get(&request.key).and_then(Option::as_ref).map(|bytes| etag_of(bytes));
        let none_match = request.header("if-none-match").is_some();
        if none_match && current.is_some()
            || request.header("if-match").is_some_and(|etag| current.as_deref() != Some(etag))
        {
            return Response::error(412, "PreconditionFailed");
        }
        let etag = Some(etag_of(&request.body));
        overlay.insert(request.key.clone(), Some(request.body.clone()));
        Response { etag, ..Response::new(200, "") }
    }

    fn delete_many(&self, body: &[u8]) -> Response {
        let text = String::from_utf8_lossy(body);
        let mut overlay = self.overlay();
        let mut result = String::from("<DeleteResult>");
        for part in text.split("<Key>").skip(1) {
            let key = part.split("</Key>").next().unwrap_or_default().replace("&amp;", "&");
            // Writing to a string cannot fail.
            let _ = write!(result, "<Deleted><Key>{}</Key></Deleted>", escape(&key));
            overlay.insert(key, None);
        }
        Response::new(200, result + "</DeleteResult>")
    }

    fn narinfo_etag(&self, index: u64) -> String {
        let etag = self.etags[usize::try_from(index).expect("an index of the table")];
        quoted_hex(&etag)
    }

    fn list(&self, request: &Request) -> Response {
        let prefix = request.query("prefix").unwrap_or_default();
        let after = request.query("continuation-token").or_else(|| request.query("start-after")).unwrap_or_default();
        let limit = request.query("max-keys").and_then(|limit| limit.parse().ok()).unwrap_or(self.options.page_size);
        let limit = limit.min(self.options.page_size);
        let has_delimiter = request.query("delimiter") == Some("/");
        let (mut xml, mut last, mut count) = (String::new(), after.to_owned(), 0);
        // A prefix is greater than every key before those that have it.
        let mut cursor = Cursor::new(self, if after < prefix { just_before(prefix) } else { last.clone() });
        let mut truncated = false;
        while let Some(entry) = cursor.next() {
            if !entry.key.starts_with(prefix) {
                if entry.key.as_str() > prefix {
                    break;
                }
                continue;
            }
            if count == limit {
                truncated = true;
                break;
            }
            count += 1;
            let rest = &entry.key[prefix.len()..];
            // Writing to a string cannot fail.
            if let Some(at) = rest.find('/').filter(|_| has_delimiter) {
                let common = &entry.key[..=(prefix.len() + at)];
                let _ = write!(xml, "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escape(common));
                // "0" is the character after "/".
                last = format!("{}0", &common[..common.len() - 1]);
                cursor = Cursor::new(self, last.clone());
            } else {
                let _ = write!(
                    xml,
                    "<Contents><Key>{}</Key><LastModified>{LAST_MODIFIED}</LastModified><ETag>{}</ETag><Size>{}</Size></Contents>",
                    escape(&entry.key),
                    entry.etag.replace('"', "&quot;"),
                    entry.size
                );
                last = entry.key;
            }
        }
        let next = if truncated {
            format!("<NextContinuationToken>{}</NextContinuationToken>", escape(&last))
        } else {
            String::new()
        };
        Response::new(
            200,
            format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult><Name>{BUCKET}</Name><Prefix>{}</Prefix>\
                 <KeyCount>{count}</KeyCount><MaxKeys>{limit}</MaxKeys><IsTruncated>{truncated}</IsTruncated>{next}{xml}</ListBucketResult>",
                escape(prefix)
            ),
        )
    }
}

/// Walks through all keys after a given one, in the order of a listing.
struct Cursor<'a> {
    shared: &'a Shared,
    next_narinfo: u64,
    next_nar: u64,
    after: String,
}

impl<'a> Cursor<'a> {
    fn new(shared: &'a Shared, after: String) -> Self {
        let contents = &shared.contents;
        let next_narinfo = contents.first_after(&after, Contents::narinfo_key);
        let next_nar = contents.first_after(&after, Contents::nar_key);
        Self { shared, next_narinfo, next_nar, after }
    }

    fn next(&mut self) -> Option<Entry> {
        loop {
            let entry = self.next_of_all()?;
            self.after.clone_from(&entry.key);
            let overlay = self.shared.overlay();
            match overlay.get(&entry.key) {
                None => return Some(entry),
                Some(Some(bytes)) => return Some(Entry { size: bytes.len() as u64, etag: etag_of(bytes), ..entry }),
                Some(None) => {}
            }
        }
    }

    /// Returns the next entry, whether it was deleted or not.
    fn next_of_all(&mut self) -> Option<Entry> {
        let contents = &self.shared.contents;
        let narinfo = (self.next_narinfo < contents.paths).then(|| contents.narinfo_key(self.next_narinfo));
        let nar = (self.next_nar < contents.paths).then(|| contents.nar_key(self.next_nar));
        let written = {
            let overlay = self.shared.overlay();
            let bounds = (Bound::Excluded(self.after.as_str()), Bound::Unbounded);
            overlay.range::<str, _>(bounds).next().map(|(key, _)| key.clone())
        };
        let key = [&narinfo, &nar, &written].into_iter().flatten().min()?.clone();
        let mut entry = Entry { key, size: 0, etag: String::new() };
        if narinfo.as_ref() == Some(&entry.key) {
            entry.size = contents.narinfo(self.next_narinfo, &|_| SIGNATURE_PLACEHOLDER.to_owned()).len() as u64;
            entry.etag = self.shared.narinfo_etag(self.next_narinfo);
            self.next_narinfo += 1;
        } else if nar.as_ref() == Some(&entry.key) {
            (entry.size, entry.etag) = (contents.file_size(self.next_nar), nar_etag(self.next_nar));
            self.next_nar += 1;
        }
        Some(entry)
    }
}

/// As long as a signature by a key whose name has eleven characters: the size of a narinfo needs no signature.
const SIGNATURE_PLACEHOLDER: &str =
    "synthetic-1:0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000";

/// Returns a text that sorts before every key with the prefix and after most others.
fn just_before(prefix: &str) -> String {
    prefix.get(..prefix.len().saturating_sub(1)).unwrap_or_default().to_owned()
}

fn nar_etag(index: u64) -> String {
    quoted_hex(&Md5::digest(index.to_le_bytes()).into())
}

fn etag_of(bytes: &[u8]) -> String {
    quoted_hex(&Md5::digest(bytes).into())
}

fn quoted_hex(bytes: &[u8; 16]) -> String {
    format!("\"{:032x}\"", u128::from_be_bytes(*bytes))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// Reads a request with its body. Returns None if the client has disconnected.
fn read_request(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Request>> {
    let Some(RequestHead { method, target, headers }) = RequestHead::read(reader)? else { return Ok(None) };
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let key = decoded(path.trim_start_matches('/').strip_prefix(BUCKET).unwrap_or(path).trim_start_matches('/'));
    let query = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let query = query.map(|(name, value)| (name.to_owned(), decoded(value))).collect();
    let mut request = Request { method, key, query, headers, body: Vec::new() };
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    reader.by_ref().take(length).read_to_end(&mut request.body)?;
    Ok(Some(request))
}

/// Decodes `%XX`.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| str::from_utf8(hex).ok()).filter(|_| *first == b'%');
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(paths: u64, page_size: usize) -> Shared {
        let sign = Box::new(|_: &str| SIGNATURE_PLACEHOLDER.to_owned());
        Shared::new(Options { paths, page_size, latency: Duration::ZERO, sign })
    }

    /// Lists everything, page by page.
    fn keys(shared: &Shared, query: &[(&str, &str)]) -> Vec<String> {
        let mut keys = Vec::new();
        let mut token = String::new();
        loop {
            let mut all: Vec<(String, String)> =
                query.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
            all.push(("list-type".to_owned(), "2".to_owned()));
            if !token.is_empty() {
                all.push(("continuation-token".to_owned(), token));
            }
            let request = Request {
                method: "GET".to_owned(),
                key: String::new(),
                query: all,
                headers: Vec::new(),
                body: Vec::new(),
            };
            let page = String::from_utf8(shared.respond(&request).body).unwrap();
            let tagged = |tag: &str| -> Vec<String> {
                let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
                page.split(&open).skip(1).map(|rest| rest.split(&close).next().unwrap().to_owned()).collect()
            };
            keys.extend(tagged("Key"));
            match tagged("NextContinuationToken").pop() {
                Some(next) => token = next,
                None => return keys,
            }
        }
    }

    #[test]
    fn every_key_is_listed_once_in_order_on_pages_of_any_size() {
        let expected = keys(&shared(2500, 100_000), &[]);
        assert_eq!(expected.len(), 2 * 2500 + 2);
        assert!(expected.is_sorted());
        for page_size in [7, 1000] {
            assert_eq!(keys(&shared(2500, page_size), &[]), expected);
        }
        let top = keys(&shared(2500, 100), &[("delimiter", "/")]);
        assert_eq!(top.len(), 2501);
        let nars = keys(&shared(2500, 100), &[("prefix", "nar/")]);
        assert_eq!(nars.len(), 2500);
    }
}
