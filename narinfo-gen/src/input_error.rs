//! Distinguishes the errors of an input from the errors that a library (tar, a decompressor) reports about its data.

use std::io;

use nar_pack::error::Error;

/// Returns whether `error` comes from the input that a library reads, not from malformed data.
pub fn is_input_error(error: &io::Error) -> bool {
    let is_ours = error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Error>);
    is_ours || error.raw_os_error().is_some() || error.kind() == io::ErrorKind::Interrupted
}
