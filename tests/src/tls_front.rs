//! TLS in front of a plain HTTP server, with a self-signed certificate.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::loopback_listener::LoopbackListener;

/// The TLS server, on a free loopback port. It stops when dropped.
#[derive(Debug)]
pub struct TlsFront {
    listener: LoopbackListener,
    certificate: String,
}

impl TlsFront {
    /// Starts a server that forwards requests, one per connection, to `server` (`HOST:PORT`).
    pub fn start(server: &str) -> Self {
        let host = Ipv4Addr::LOCALHOST.to_string();
        let made = rcgen::generate_simple_self_signed(vec![host]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("the key of the certificate");
        // This fails only if a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = ServerConfig::builder().with_no_client_auth();
        let config = Arc::new(config.with_single_cert(vec![made.cert.der().clone()], key).expect("a configuration"));
        let server = server.to_owned();
        let listener = LoopbackListener::start(move |client| pass(client, Arc::clone(&config), &server));
        Self { listener, certificate: made.cert.pem() }
    }

    /// `127.0.0.1:PORT`.
    pub fn endpoint(&self) -> &str {
        self.listener.endpoint()
    }

    /// Returns the certificate in PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }
}

/// Forwards one request and its response, then closes the connection.
fn pass(client: TcpStream, config: Arc<ServerConfig>, server: &str) -> io::Result<()> {
    let session = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut client = BufReader::new(StreamOwned::new(session, client));
    let mut server = TcpStream::connect(server)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        client.read_line(&mut line)?;
        let is_last = line.trim().is_empty();
        if is_last {
            // The end of the connection is the end of the response.
            server.write_all(b"Connection: close\r\n")?;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
        if !line.to_ascii_lowercase().starts_with("connection:") {
            server.write_all(line.as_bytes())?;
        }
        if is_last {
            break;
        }
    }
    io::copy(&mut client.by_ref().take(length), &mut server)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    let head = answer.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let client = client.get_mut();
    client.write_all(&[&answer[..head], b"Connection: close\r\n", &answer[head..]].concat())?;
    client.conn.send_close_notify();
    client.flush()
}
