//! Reading over `https://`, through a TLS server in front of the server, as a CDN or a proxy is.

use cache_tests::nix;
use cache_tests::tls_front::TlsFront;

use super::nix::{NO_NIX, copy_from, require_public};
use crate::outcome::Outcome;
use crate::trial::Trial;

pub(super) fn pull(trial: &Trial<'_>) -> Result<Outcome, String> {
    through_tls(trial, |url| trial.pull(&format!("SSL_CERT_FILE=$PWD/ca.pem s3-pull -r --root $OUT '{url}' \"$TOP\"")))
}

pub(super) fn nix_reads(trial: &Trial<'_>) -> Result<Outcome, String> {
    if !nix::available() {
        return Ok(Outcome::not_run(NO_NIX));
    }
    through_tls(trial, |url| copy_from(trial, url, "NIX_SSL_CERT_FILE=$PWD/ca.pem"))
}

/// Publishes the closure, and reads it from the `https://` URL that is passed to `read`.
fn through_tls(trial: &Trial<'_>, read: impl FnOnce(&str) -> Result<(), String>) -> Result<Outcome, String> {
    trial.push()?;
    if let Some(outcome) = require_public(trial)? {
        return Ok(outcome);
    }
    let front = TlsFront::start(&trial.server.endpoint);
    trial.write("ca.pem", front.certificate().as_bytes())?;
    read(&format!("https://{}/{}", front.endpoint(), trial.bucket))?;
    Ok(Outcome::ok())
}
