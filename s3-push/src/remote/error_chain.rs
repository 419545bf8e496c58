//! Text of errors of other libraries, whose causes are spread over a chain of sources.

use std::error::Error;
use std::iter::from_fn;

/// Returns an error and its sources.
pub(super) fn sources<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// Returns an error and its sources on one line, without those that an earlier one quotes.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for source in sources(error).skip(1) {
        let next = source.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the last source of an error, or the error itself if it has none.
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    sources(error).last().unwrap_or(error).to_string()
}
