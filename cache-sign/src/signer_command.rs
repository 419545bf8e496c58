//! Signs with a command that holds the key: `--signer COMMAND`. The command reads one base64 fingerprint per line and
//! writes one base64 signature per line, in order. A thread writes and another one reads, so the command may read ahead
//! and buffer its output. Each signature is verified before it is used.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nar_pack::error::{Error, Result};
use nar_pack::process::start_thread;

use crate::keys::PublicKey;

/// Maximum number of fingerprints whose signatures have not arrived. A command that buffers 64 KiB of output, more than
/// any common library does, still makes progress: that is 736 lines.
pub const MAX_IN_FLIGHT: usize = 1024;
/// Maximum length of a line of the command in bytes. A signature has 88 digits.
const MAX_LINE_LENGTH: u64 = 4096;

/// What signs, and how.
#[derive(Debug, Clone)]
pub struct SignerOptions {
    /// The command, run by `/bin/sh -c`.
    pub command: String,
    /// The public key of its signatures.
    pub public: PublicKey,
    /// Maximum size of a fingerprint in bytes that the command can sign.
    pub max_size: Option<usize>,
    /// Environment variables with secret keys, which the command does not inherit.
    pub secret_variables: Vec<String>,
}

/// A running command.
#[derive(Debug)]
pub struct SignerCommand {
    public: PublicKey,
    child: Child,
    /// Lines for the command; none after the last one.
    requests: Option<SyncSender<String>>,
    /// Lines of the command. The error of a line that is too long is the last one.
    answers: Receiver<Result<Vec<u8>>>,
}

impl SignerCommand {
    /// Starts the command.
    ///
    /// # Errors
    /// Fails if it cannot be started.
    pub fn start(options: &SignerOptions) -> Result<Self> {
        let failed = |error| Error::failed(format!("cannot start the signer command: {error}"));
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &options.command]).stdin(Stdio::piped()).stdout(Stdio::piped());
        for name in &options.secret_variables {
            command.env_remove(name);
        }
        let mut child = command.spawn().map_err(failed)?;
        let (requests, requests_to_write) = sync_channel(MAX_IN_FLIGHT);
        let (answer_sender, answers) = sync_channel(MAX_IN_FLIGHT);
        if let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) {
            start_thread(move || write_requests(stdin, &requests_to_write))?;
            start_thread(move || read_answers(stdout, &answer_sender))?;
        }
        Ok(Self { public: options.public.clone(), child, requests: Some(requests), answers })
    }

    /// Returns the public key of the signatures.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Asks for the signature of a fingerprint. At most [`MAX_IN_FLIGHT`] may be outstanding.
    pub fn request(&self, fingerprint: &str) {
        if let Some(requests) = &self.requests {
            // Fails if the command has exited, which is reported when its signature is missing.
            let _ = requests.send(BASE64_STANDARD.encode(fingerprint) + "\n");
        }
    }

    /// Ends the input of the command. A command may answer only then.
    pub fn end_requests(&mut self) {
        self.requests = None;
    }

    /// Waits for the next signature, which must be one of `fingerprint`. Returns it as `NAME:BASE64`.
    ///
    /// # Errors
    /// Refuses a line that is not a valid signature; fails if the command has exited.
    pub fn receive(&mut self, fingerprint: &str) -> Result<String> {
        match self.answers.recv() {
            Ok(line) => self.verify(fingerprint, &line?),
            Err(_) => Err(self.exited()),
        }
    }

    /// As [`SignerCommand::receive`], but returns none if the signature has not arrived.
    ///
    /// # Errors
    /// As [`SignerCommand::receive`].
    pub fn try_receive(&mut self, fingerprint: &str) -> Result<Option<String>> {
        match self.answers.try_recv() {
            Ok(line) => self.verify(fingerprint, &line?).map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(self.exited()),
        }
    }

    fn verify(&self, fingerprint: &str, line: &[u8]) -> Result<String> {
        let line = line.trim_ascii();
        let Some(bytes) = BASE64_STANDARD.decode(line).ok().and_then(|bytes| <[u8; 64]>::try_from(bytes).ok()) else {
            // The line is not quoted: the command has access to a key.
            let found = line.len();
            return Err(Error::refused(format!(
                "the signer command wrote a line of {found} bytes that is not a signature of 64 bytes in base64"
            )));
        };
        let signature = self.public.signature_text(&bytes);
        if self.public.verifies(fingerprint, &signature) {
            return Ok(signature);
        }
        let error =
            Error::refused(format!("the signature of the signer command is not valid for {}", self.public.name()));
        Err(error.with_hint(
            "the command must decode each line and sign the bytes with pure Ed25519, without hashing them first",
        ))
    }

    /// Ends the input of the command and waits until it has exited.
    ///
    /// # Errors
    /// Fails if it writes another line or exits with an error.
    pub fn finish(mut self) -> Result {
        self.end_requests();
        match self.answers.recv() {
            Ok(Ok(_)) => return Err(Error::failed("the signer command wrote more lines than it read")),
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
        let status = self.wait()?;
        if status.success() { Ok(()) } else { Err(Error::failed(format!("the signer command failed: {status}"))) }
    }

    /// Returns the error of a command that closed its output too early.
    fn exited(&mut self) -> Error {
        self.end_requests();
        match self.wait() {
            Ok(status) => Error::failed(format!("the signer command ended without a signature: {status}")),
            Err(error) => error,
        }
    }

    fn wait(&mut self) -> Result<std::process::ExitStatus> {
        self.child.wait().map_err(|error| Error::failed(format!("cannot wait for the signer command: {error}")))
    }
}

/// Ends the command after an error. Its threads end when its pipes are closed.
impl Drop for SignerCommand {
    fn drop(&mut self) {
        // Fails if the command has exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_requests(mut stdin: ChildStdin, requests: &Receiver<String>) {
    for line in requests {
        // Fails if the command has exited.
        if stdin.write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}

/// Sends each line until the end of the output, an error, or the end of the receiver.
fn read_answers(stdout: ChildStdout, answers: &SyncSender<Result<Vec<u8>>>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let answer = match stdout.by_ref().take(MAX_LINE_LENGTH + 1).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(size) if size as u64 > MAX_LINE_LENGTH => {
                Err(Error::refused(format!("the signer command wrote a line of more than {MAX_LINE_LENGTH} bytes")))
            }
            Ok(_) => Ok(line),
            Err(error) => Err(Error::failed(format!("cannot read from the signer command: {error}"))),
        };
        let is_last = answer.is_err();
        if answers.send(answer).is_err() || is_last {
            return;
        }
    }
}
