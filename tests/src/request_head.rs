//! The head of an HTTP/1.1 request, for servers that implement only what a test needs.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::net::TcpStream;

/// Maximum size of a line of the head in bytes.
const MAX_LINE_SIZE: u64 = 64 << 10;

/// The request line and the headers.
pub(crate) struct RequestHead {
    /// `GET`, `HEAD` etc.
    pub(crate) method: String,
    /// The path and the query, or the whole URL if the client uses the server as a proxy.
    pub(crate) target: String,
    /// The headers, with names in lower case.
    pub(crate) headers: Vec<(String, String)>,
}

impl RequestHead {
    /// Reads the head of the next request. Returns None if the client has disconnected.
    pub(crate) fn read(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Self>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.by_ref().take(MAX_LINE_SIZE).read_line(&mut line)?;
            match line.trim_end() {
                "" if line.is_empty() && lines.is_empty() => return Ok(None),
                "" => break,
                text => lines.push(text.to_owned()),
            }
        }
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "not a request");
        let mut words = lines.first().ok_or_else(malformed)?.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().ok_or_else(malformed)?);
        let header = |line: &String| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        Ok(Some(Self { method, target, headers: lines[1..].iter().filter_map(header).collect() }))
    }
}
