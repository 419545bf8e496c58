//! Single requests to an S3 server, signed or anonymous: what the tests ask a server themselves, and what our tools never
//! send.
//!
//! The caller encodes the path, and the whole response is kept.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials as Identity;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningParams, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::Credentials;

/// How long a server may take for one read or write.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// What a path encodes: all but the unreserved characters of RFC 3986, section 2.3, and the slash.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Returns the path of an object, encoded.
pub fn path_of(bucket: &str, key: &str) -> String {
    format!("/{bucket}/{}", utf8_percent_encode(key, PATH))
}

/// A client of one server.
#[derive(Debug)]
pub struct S3 {
    /// `127.0.0.1:PORT`.
    pub endpoint: String,
    /// The credentials; none for an anonymous client.
    pub credentials: Option<Credentials>,
    /// The region that requests are signed for.
    pub region: String,
}

/// The response to a request.
#[derive(Debug)]
pub struct Response {
    /// The status.
    pub status: u16,
    head: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// Returns the value of a header; the name must be in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines
            .map(|(found, value)| (found, value.trim()))
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|line| line.1)
    }

    /// Returns the body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the texts of all elements with that name in an XML body.
    pub fn elements(&self, name: &str) -> Vec<String> {
        let (text, open, close) = (self.text(), format!("<{name}>"), format!("</{name}>"));
        let rests = text.split(&open).skip(1);
        rests.filter_map(|rest| rest.split_once(&close)).map(|(value, _)| value.to_owned()).collect()
    }

    /// Requires a status of success.
    ///
    /// # Errors
    /// [`Response::error`] for another status.
    pub fn success(self) -> Result<Self, String> {
        if (200..300).contains(&self.status) { Ok(self) } else { Err(self.error()) }
    }

    /// Returns the status with the error code in the body.
    pub fn error(&self) -> String {
        let code = self.elements("Code").into_iter().next();
        format!("HTTP {}{}", self.status, code.map(|code| format!(" {code}")).unwrap_or_default())
    }
}

impl S3 {
    /// Sends a request to `target`, an encoded path with an optional query.
    ///
    /// # Errors
    /// The message of what failed, unless there is a response.
    pub fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Response, String> {
        let failed = |error: std::io::Error| format!("{method} {target}: {error}");
        let signature = self.signature(method, target, headers, body)?;
        let mut head =
            format!("{method} {target} HTTP/1.0\r\nHost: {}\r\nContent-Length: {}\r\n", self.endpoint, body.len());
        for (name, value) in headers.iter().copied().chain(signature.iter().map(|(name, value)| (&**name, &**value))) {
            write!(head, "{name}: {value}\r\n").unwrap_or_default();
        }
        let mut stream = TcpStream::connect(&self.endpoint).map_err(failed)?;
        stream.set_read_timeout(Some(IDLE_TIMEOUT)).map_err(failed)?;
        stream.set_write_timeout(Some(IDLE_TIMEOUT)).map_err(failed)?;
        stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()).map_err(failed)?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response).map_err(failed)?;
        parse(&response).ok_or_else(|| format!("{method} {target}: not an HTTP response"))
    }

    /// Returns the keys and sizes of all objects of a bucket, sorted by key.
    ///
    /// # Errors
    /// The message of what failed.
    pub fn list(&self, bucket: &str) -> Result<Vec<(String, u64)>, String> {
        let (mut objects, mut start_after) = (Vec::new(), String::new());
        loop {
            let start = utf8_percent_encode(&start_after, NON_ALPHANUMERIC);
            let target = format!("/{bucket}?encoding-type=url&list-type=2&start-after={start}");
            let page = self.send("GET", &target, &[], b"").and_then(Response::success)?;
            let (keys, sizes) = (page.elements("Key"), page.elements("Size"));
            if keys.len() != sizes.len() {
                return Err(format!("malformed listing of {bucket}: {} keys, {} sizes", keys.len(), sizes.len()));
            }
            for (key, size) in keys.iter().zip(sizes) {
                let size = size.parse().map_err(|error| format!("malformed listing of {bucket}: {size}: {error}"))?;
                objects.push((decode(key), size));
            }
            match objects.last() {
                Some((last, _)) if page.elements("IsTruncated") == ["true"] => start_after.clone_from(last),
                _ => break,
            }
        }
        objects.sort_unstable();
        Ok(objects)
    }

    fn signature(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Vec<(String, String)>, String> {
        let Some(credentials) = &self.credentials else { return Ok(Vec::new()) };
        let identity = Identity::new(&credentials.access_key, &credentials.secret_key, None, None, "tests").into();
        // The rules of S3: the path is signed as it is sent, and the hash of the body is a header.
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let params = v4::SigningParams::builder().identity(&identity).region(&self.region).name("s3");
        let params = params.time(SystemTime::now()).settings(settings).build().map_err(|error| error.to_string())?;
        let url = format!("http://{}{target}", self.endpoint);
        let request = SignableRequest::new(method, url, headers.iter().copied(), SignableBody::Bytes(body));
        let request = request.map_err(|error| error.to_string())?;
        let signed = sign(request, &SigningParams::from(params)).map_err(|error| error.to_string())?;
        let (instructions, _) = signed.into_parts();
        Ok(instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

/// Decodes a key of a listing, in which a plus sign may stand for a space.
fn decode(key: &str) -> String {
    percent_decode_str(&key.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// Splits a response into its parts.
fn parse(response: &[u8]) -> Option<Response> {
    let end = response.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&response[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Response { status, head, body: response[end + 4..].to_vec() })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_response_is_split_into_status_headers_and_body() {
        let response =
            parse(b"HTTP/1.1 412 Precondition Failed\r\nETag: \"x\"\r\n\r\n<E><Code>A</Code><Code>B</Code></E>");
        let response = response.unwrap();
        assert_eq!((response.status, response.header("etag")), (412, Some("\"x\"")));
        assert_eq!(response.elements("Code"), ["A", "B"]);
        assert_eq!(response.error(), "HTTP 412 A");
        assert!(parse(b"nonsense").is_none());
    }
}
