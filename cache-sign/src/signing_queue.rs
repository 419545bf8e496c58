//! Signs narinfos and writes them in the order of the input. Keys and the agent sign at once; the signatures of a
//! signer command arrive later, and until then the narinfos wait in a queue that is limited in number and size.

use std::collections::VecDeque;
use std::io::Write;

use nar_pack::error::{Context, Error, Result};
use nar_pack::process;
use narinfo_gen::archive;
use narinfo_gen::narinfo::{NarInfo, TextWriter};

use crate::keys::{PublicKey, SecretKey, key_name};
use crate::run::TOOL;
use crate::signer_command::{MAX_IN_FLIGHT, SignerCommand};
use crate::ssh_agent::AgentSigner;

/// Maximum size of the narinfos and fingerprints in the queue in bytes.
const MAX_QUEUED_BYTES: usize = 16 << 20;

/// Where signed narinfos are written.
pub trait NarInfoOutput {
    /// Writes a narinfo. `more` is true if another one follows.
    ///
    /// # Errors
    /// The errors of the output.
    fn narinfo(&mut self, narinfo: &NarInfo, more: bool) -> Result;
}

impl<W: Write> NarInfoOutput for TextWriter<W> {
    fn narinfo(&mut self, narinfo: &NarInfo, more: bool) -> Result {
        self.write(narinfo, more)
    }
}

impl<W: Write> NarInfoOutput for archive::Writer<W> {
    fn narinfo(&mut self, narinfo: &NarInfo, _: bool) -> Result {
        Self::narinfo(self, narinfo)
    }
}

/// Everything that signs.
#[derive(Debug)]
pub struct Signers {
    /// Secret keys, each with its public key.
    pub keys: Vec<(PublicKey, SecretKey)>,
    /// A key of an SSH agent.
    pub agent: Option<AgentSigner>,
    /// A command, and the maximum size of a fingerprint in bytes that it can sign.
    pub command: Option<(SignerCommand, Option<usize>)>,
}

impl Signers {
    /// Adds the signatures that are made at once.
    fn sign(&mut self, narinfo: &mut NarInfo, fingerprint: &str) -> Result {
        for (public, secret) in &self.keys {
            if !is_signed_by(narinfo, fingerprint, public) {
                narinfo.add_signature(secret.sign(fingerprint));
            }
        }
        if let Some(agent) = self.agent.as_mut().filter(|agent| !is_signed_by(narinfo, fingerprint, agent.public())) {
            narinfo.add_signature(agent.sign(fingerprint).context(|| narinfo.full_path())?);
        }
        Ok(())
    }
}

/// Whether `key` has signed the narinfo. Compares by verification, because another tool may have made a different valid
/// signature with the key.
fn is_signed_by(narinfo: &NarInfo, fingerprint: &str, key: &PublicKey) -> bool {
    narinfo.signatures.iter().any(|signature| key.verifies(fingerprint, signature))
}

/// A narinfo that waits to be written.
struct QueuedNarInfo {
    narinfo: NarInfo,
    more: bool,
    /// The fingerprint, if the signature of the command is missing.
    unsigned: Option<String>,
    /// Size of the narinfo and the fingerprint in bytes.
    size: usize,
}

/// Signs narinfos and writes them to `O`.
pub struct SigningQueue<'a, O> {
    /// The output.
    pub out: O,
    signers: Signers,
    /// Key names whose signatures are removed, each with the number of signatures removed so far.
    replaced: Vec<(&'a str, u64)>,
    queue: VecDeque<QueuedNarInfo>,
    queued_bytes: usize,
    /// The number of narinfos that the command cannot sign.
    oversized: u64,
}

impl<'a, O: NarInfoOutput> SigningQueue<'a, O> {
    /// Creates a queue that removes the signatures by keys called `replace`.
    pub fn new(out: O, signers: Signers, replace: &'a [String]) -> Self {
        let replaced = replace.iter().map(|name| (name.as_str(), 0)).collect();
        Self { out, signers, replaced, queue: VecDeque::new(), queued_bytes: 0, oversized: 0 }
    }

    /// Signs a narinfo, and writes those that have all their signatures.
    ///
    /// # Errors
    /// The errors of the signers and of the output.
    pub fn push(&mut self, mut narinfo: NarInfo, more: bool) -> Result {
        narinfo.signatures.retain(|signature| {
            let replaced = self.replaced.iter_mut().find(|(name, _)| *name == key_name(signature));
            replaced.map(|(_, count)| *count += 1).is_none()
        });
        let fingerprint = narinfo.fingerprint();
        let mut unsigned = None;
        if let Some((command, max_size)) = &self.signers.command
            && !is_signed_by(&narinfo, &fingerprint, command.public())
        {
            if let Some(max_size) = max_size.filter(|max_size| fingerprint.len() > *max_size) {
                self.report_oversized(&narinfo, fingerprint.len(), max_size);
                return Ok(());
            }
            unsigned = Some(fingerprint.clone());
        }
        if self.oversized > 0 {
            // The output is incomplete already. The rest is only checked.
            return Ok(());
        }
        self.signers.sign(&mut narinfo, &fingerprint)?;
        self.enqueue(QueuedNarInfo { size: 4 * fingerprint.len() + narinfo.to_string().len(), narinfo, more, unsigned })
    }

    fn report_oversized(&mut self, narinfo: &NarInfo, size: usize, max_size: usize) {
        let path = narinfo.full_path();
        let message = format!("{path}: its fingerprint has {size} bytes, the signer command accepts {max_size}");
        process::print_message(TOOL, message);
        self.oversized += 1;
    }

    fn enqueue(&mut self, queued: QueuedNarInfo) -> Result {
        if let (Some((command, _)), Some(fingerprint)) = (&self.signers.command, &queued.unsigned) {
            command.request(fingerprint);
        }
        self.queued_bytes += queued.size;
        self.queue.push_back(queued);
        while self.write_next(self.queue.len() >= MAX_IN_FLIGHT || self.queued_bytes > MAX_QUEUED_BYTES)? {}
        Ok(())
    }

    /// Writes the next narinfo. Returns false if there is none, or if its signature has not arrived and `wait` is false.
    fn write_next(&mut self, wait: bool) -> Result<bool> {
        let Some(next) = self.queue.front_mut() else { return Ok(false) };
        if let (Some((command, _)), Some(fingerprint)) = (&mut self.signers.command, &next.unsigned) {
            let path = || next.narinfo.full_path();
            let signature = if wait {
                Some(command.receive(fingerprint).context(path)?)
            } else {
                command.try_receive(fingerprint).context(path)?
            };
            let Some(signature) = signature else { return Ok(false) };
            next.narinfo.add_signature(signature);
        }
        self.out.narinfo(&next.narinfo, next.more)?;
        self.queued_bytes -= next.size;
        self.queue.pop_front();
        Ok(true)
    }

    /// Writes all narinfos that wait, and ends the signer command. The output is not complete before that.
    ///
    /// # Errors
    /// The errors of the signers and of the output. Refuses the stream if the command cannot sign one of its narinfos.
    pub fn finish(&mut self) -> Result {
        if let (1.., Some((_, Some(max_size)))) = (self.oversized, &self.signers.command) {
            let count = match self.oversized {
                1 => "1 fingerprint has".to_owned(),
                count => format!("{count} fingerprints have"),
            };
            return Err(Error::refused(format!("{count} more than {max_size} bytes (--signer-max-bytes)"))
                .with_hint("sign these paths with a key file or an SSH agent, which have no such limit"));
        }
        if let Some((command, _)) = &mut self.signers.command {
            command.end_requests();
        }
        while self.write_next(true)? {}
        self.signers.command.take().map_or(Ok(()), |(command, _)| command.finish())?;
        for (name, _) in self.replaced.iter().filter(|(_, count)| *count == 0) {
            process::print_message(TOOL, format!("warning: --replace {name:?}: no signature by a key of this name"));
        }
        Ok(())
    }
}
