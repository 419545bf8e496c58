//! `embedded-s3 [--ignore-conditions] [--remove DIR] ROOT-DIR`: an S3 server in one process, for the demo and for quick tests.
//!
//! Buckets are the directories in ROOT-DIR. Listens on a free loopback port and prints `ENDPOINT 127.0.0.1:PORT`.
//! Accepts the credentials in `$EMBEDDED_S3_ACCESS_KEY` and `$EMBEDDED_S3_SECRET_KEY`; anonymous clients may read. Exits
//! when standard input closes, and with --remove then removes DIR, even if the process that started it was killed. With
//! --ignore-conditions it ignores If-Match and If-None-Match of a write, as Garage does.
//!
//! It is more lenient than a service: it checks neither the conditions of reads nor the checksums and entity tags of parts,
//! lists no incomplete uploads, and states no entity tags in listings. Tests of these run on MinIO.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::future::ready;
use std::io::{self, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::dto::{CompleteMultipartUploadInput, PutObjectInput};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Request, S3Result};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, oneshot};

const USAGE: &str = "usage: embedded-s3 [--ignore-conditions] [--remove DIR] ROOT-DIR";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("embedded-s3: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let options = Options::parse(env::args_os().skip(1))?;
    let service = service(&options)?;
    let served = tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(service));
    if let Some(dir) = options.remove {
        cache_tests::remove_tree(&dir)?;
    }
    served
}

struct Options {
    root: PathBuf,
    remove: Option<PathBuf>,
    ignores_conditions: bool,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Self, &'static str> {
        let mut first = args.next().ok_or(USAGE)?;
        let (mut remove, mut ignores_conditions) = (None, false);
        if first == "--ignore-conditions" {
            ignores_conditions = true;
            first = args.next().ok_or(USAGE)?;
        }
        if first == "--remove" {
            remove = Some(args.next().ok_or(USAGE)?.into());
            first = args.next().ok_or(USAGE)?;
        }
        if args.next().is_some() || first.as_encoded_bytes().starts_with(b"-") {
            return Err(USAGE);
        }
        Ok(Self { root: first.into(), remove, ignores_conditions })
    }
}

fn service(options: &Options) -> Result<S3Service, Box<dyn Error>> {
    let root = &options.root;
    let files = FileSystem::new(root).map_err(|error| format!("{}: {error:?}", root.display()))?;
    let access_key = env::var("EMBEDDED_S3_ACCESS_KEY").map_err(|_| "EMBEDDED_S3_ACCESS_KEY is not set")?;
    let secret_key = env::var("EMBEDDED_S3_SECRET_KEY").map_err(|_| "EMBEDDED_S3_SECRET_KEY is not set")?;
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single(access_key, secret_key));
    builder
        .set_access(PublicRead { ignores_conditions: options.ignores_conditions, conditional_writes: Arc::default() });
    Ok(builder.build())
}

/// Allows anonymous reads of objects, as the bucket policy of the Nix manual does; other requests need credentials.
struct PublicRead {
    ignores_conditions: bool,
    /// Held by the conditional write in progress: the file system checks the condition before it receives the body, and
    /// replaces the object after it.
    conditional_writes: Arc<Mutex<()>>,
}

impl PublicRead {
    /// Waits until no other conditional write is in progress. This one ends when its request is dropped.
    async fn begin_conditional_write<T>(&self, request: &mut S3Request<T>) {
        request.extensions.insert(Arc::new(Arc::clone(&self.conditional_writes).lock_owned().await));
    }
}

impl S3Access for PublicRead {
    // These are written as the macro of async-trait expands an `async fn`, which avoids a dependency for one function.
    fn check<'a, 'b, 'c, 'f>(
        &'a self,
        context: &'b mut S3AccessContext<'c>,
    ) -> Pin<Box<dyn Future<Output = S3Result<()>> + Send + 'f>>
    where
        Self: 'f,
        'a: 'f,
        'b: 'f,
        'c: 'f,
    {
        let reads = matches!(context.s3_op().name(), "GetObject" | "HeadObject" | "GetBucketLocation");
        let allowed = reads || context.credentials().is_some();
        Box::pin(ready(if allowed { Ok(()) } else { Err(s3s::s3_error!(AccessDenied)) }))
    }

    fn put_object<'a, 'b, 'f>(
        &'a self,
        request: &'b mut S3Request<PutObjectInput>,
    ) -> Pin<Box<dyn Future<Output = S3Result<()>> + Send + 'f>>
    where
        Self: 'f,
        'a: 'f,
        'b: 'f,
    {
        Box::pin(async {
            if self.ignores_conditions {
                (request.input.if_match, request.input.if_none_match) = (None, None);
            }
            if request.input.if_match.is_some() || request.input.if_none_match.is_some() {
                self.begin_conditional_write(request).await;
            }
            Ok(())
        })
    }

    fn complete_multipart_upload<'a, 'b, 'f>(
        &'a self,
        request: &'b mut S3Request<CompleteMultipartUploadInput>,
    ) -> Pin<Box<dyn Future<Output = S3Result<()>> + Send + 'f>>
    where
        Self: 'f,
        'a: 'f,
        'b: 'f,
    {
        Box::pin(async {
            if self.ignores_conditions {
                request.input.if_none_match = None;
            }
            if request.input.if_none_match.is_some() {
                self.begin_conditional_write(request).await;
            }
            Ok(())
        })
    }
}

async fn serve(service: S3Service) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "ENDPOINT {}", listener.local_addr()?)?;
    drop(stdout);
    let mut closed = watch_stdin();
    let server = Builder::new(TokioExecutor::new());
    loop {
        let (socket, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            _ = &mut closed => return Ok(()),
        };
        let connection = server.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
        tokio::spawn(async move {
            // Errors of a connection, such as a client that disconnects, are ignored.
            drop(connection.await);
        });
    }
}

/// Resolves when standard input closes. Uses a thread, because a blocking task would keep the runtime from shutting
/// down.
fn watch_stdin() -> oneshot::Receiver<()> {
    let (sender, receiver) = oneshot::channel();
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while matches!(io::stdin().read(&mut buffer), Ok(1..)) {}
        // The receiver is dropped only if the server has ended.
        sender.send(()).unwrap_or_default();
    });
    receiver
}
