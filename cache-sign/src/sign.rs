//! Signs the narinfos of a stream and passes everything else through unchanged. Signatures that are already there stay
//! byte for byte, and a narinfo that a key has signed is not signed by it again.

use std::io::BufRead;

use nar_pack::error::Result;
use nar_pack::stdio;
use nar_pack::store_path::StoreDir;
use narinfo_gen::archive::{self, Object};
use narinfo_gen::narinfo::NarInfo;
use narinfo_gen::narinfo::{self, TextWriter};
use narinfo_gen::stream::Sniffed;

use crate::input::{Input, copy_member};
use crate::key_source::SecretKeySources;
use crate::signer_command::{SignerCommand, SignerOptions};
use crate::signing_queue::{Signers, SigningQueue};
use crate::ssh_agent::{AgentKey, AgentSigner};

/// Options of [`sign`].
#[derive(Debug)]
pub struct SignOptions {
    /// The keys to sign with.
    pub keys: SecretKeySources,
    /// A key of an SSH agent to sign with.
    pub agent: Option<AgentKey>,
    /// A command to sign with.
    pub command: Option<SignerOptions>,
    /// Names of the keys whose signatures are removed first.
    pub replace: Vec<String>,
    /// The store directory of the narinfos.
    pub store_dir: StoreDir,
}

/// Reads narinfo text or a cache archive from standard input and writes it to standard output with a signature of each
/// key on each narinfo.
///
/// # Errors
/// The errors of [`SecretKeySources::read`] and of the signers. Refuses a malformed or truncated stream.
pub fn sign(options: &SignOptions) -> Result {
    let keys = options.keys.read()?;
    let agent = options.agent.as_ref().map(AgentSigner::connect).transpose()?;
    let input = Input::open()?;
    let start = |command: &SignerOptions| SignerCommand::start(command).map(|started| (started, command.max_size));
    let signers = Signers {
        keys: keys.into_iter().map(|key| (key.public(), key)).collect(),
        agent,
        command: options.command.as_ref().map(start).transpose()?,
    };
    match input {
        Input::Text(input) => sign_text(input, signers, options),
        Input::Archive(input) => sign_archive(input, signers, options),
    }
}

fn sign_text(input: impl BufRead, signers: Signers, options: &SignOptions) -> Result {
    let mut queue = SigningQueue::new(TextWriter::new(stdio::stdout(None)?), signers, &options.replace);
    let result = narinfo::read_text(input, &options.store_dir, |narinfo, more| queue.push(narinfo, more));
    result.and_then(|()| queue.finish()).inspect_err(|_| queue.out.mark_truncated())?;
    queue.out.into_inner().finish()
}

/// Signs a cache archive. NARs pass the narinfos that wait for a signature, which keeps the order of an archive: a NAR
/// still comes before its narinfo, and narinfos stay in their order.
fn sign_archive(input: Sniffed, signers: Signers, options: &SignOptions) -> Result {
    let out = archive::Writer::new(stdio::stdout(Some("the cache archive"))?);
    let mut queue = SigningQueue::new(out, signers, &options.replace);
    archive::read(input, |mut member| match member.object {
        Object::Narinfo(hash) => {
            let text = member.text(member.text_limit())?;
            queue.push(NarInfo::parse_of(hash, &text, &options.store_dir)?, true)
        }
        _ => copy_member(&mut member, &mut queue.out),
    })?;
    queue.finish()?;
    queue.out.finish()?.finish()
}
