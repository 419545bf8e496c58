//! Refuses XML responses that end early. The parser of the SDK accepts a document without the end of its root element, and
//! where the server or a proxy ends the response by closing the connection, there is no length to compare with: the end of
//! a listing would be missing without an error.

use aws_sdk_s3::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;

/// Requires that the root element of each XML response has its end tag.
#[derive(Debug)]
pub(super) struct CompleteXmlResponses;

impl Intercept for CompleteXmlResponses {
    fn name(&self) -> &'static str {
        "CompleteXmlResponses"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response();
        // A body that is streamed, such as that of an object, is not in memory.
        let body = response.body().bytes().unwrap_or_default();
        if response.status().is_success() && !is_complete(body) {
            return Err("the response is truncated".into());
        }
        Ok(())
    }
}

/// Returns whether a body is no XML document, or one whose root element ends.
fn is_complete(body: &[u8]) -> bool {
    let body = body.trim_ascii();
    let is_name_start = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
    let starts = body.iter().enumerate().filter(|(_, byte)| **byte == b'<').map(|(at, _)| at + 1);
    // The declaration and comments begin with other characters.
    let Some(root) = starts.map(|start| &body[start..]).find(|rest| rest.first().is_some_and(is_name_start)) else {
        return !body.starts_with(b"<");
    };
    let name = root.split(|byte| byte.is_ascii_whitespace() || b"/>".contains(byte)).next().unwrap_or_default();
    let is_empty_element = root.ends_with(b"/>") && !root.contains(&b'<');
    let end = root.strip_suffix(b">").and_then(|rest| rest.trim_ascii_end().strip_suffix(name));
    is_empty_element || end.is_some_and(|rest| rest.ends_with(b"</"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_of_a_document_is_noticed() {
        let document: &[u8] =
            b"\n<?xml version=\"1.0\"?>\n<!-- a --><List xmlns=\"http://x/y\"><Key>a</Key><List/></List >\n";
        assert!(is_complete(document));
        let (first, end) = (document.iter().position(|byte| *byte == b'<').unwrap(), document.trim_ascii_end().len());
        for cut in first + 1..end {
            assert!(!is_complete(&document[..cut]), "{:?}", document[..cut].escape_ascii().to_string());
        }
    }

    #[test]
    fn other_bodies_are_complete() {
        for body in [&b""[..], b" \n", b"{}", b"plain", b"<A/>", b"<?xml version='1.0'?><A x='1' />", b"<A></A>"] {
            assert!(is_complete(body), "{}", body.escape_ascii());
        }
    }
}
