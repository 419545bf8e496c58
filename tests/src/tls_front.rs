//! TLS before a server that has none, with a certificate of its own.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::Arc;

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::loopback_listener::LoopbackListener;

/// The front, on a loopback port of its own. It ends when this is dropped.
#[derive(Debug)]
pub struct TlsFront {
    listener: LoopbackListener,
    certificate: String,
}

impl TlsFront {
    /// Passes requests, one for each connection, on to the server at `HOST:PORT`.
    pub fn start(server: &str) -> Self {
        let host = Ipv4Addr::LOCALHOST.to_string();
        let made = rcgen::generate_simple_self_signed(vec![host]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("its key");
        // Installing it twice is the only way in which this fails.
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

    /// The certificate in PEM, for who is to trust it.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }
}

/// One request without a body, and its answer; the connection then ends.
fn pass(client: TcpStream, config: Arc<ServerConfig>, server: &str) -> io::Result<()> {
    let session = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut client = BufReader::new(StreamOwned::new(session, client));
    let mut server = TcpStream::connect(server)?;
    loop {
        let mut line = String::new();
        client.read_line(&mut line)?;
        server.write_all(line.as_bytes())?;
        if line.trim().is_empty() {
            break;
        }
    }
    server.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    let head = answer.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let client = client.get_mut();
    client.write_all(&[&answer[..head], b"Connection: close\r\n", &answer[head..]].concat())?;
    client.conn.send_close_notify();
    client.flush()
}
