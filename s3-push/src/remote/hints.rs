//! Hints for requests to the wrong port or with the wrong scheme, recognized by what the server sends instead of a
//! response, and which of these errors are permanent.

use std::error::Error;

use crate::remote::error_chain::chain;

/// The hint for a proxy that requires a login.
pub(super) const PROXY_HINT: &str =
    "add the user name and password of the proxy to the URL in HTTP_PROXY or HTTPS_PROXY";

/// The hint for an endpoint that cannot be reached.
pub(super) const UNREACHABLE_HINT: &str = "check that the server is running, the host and the port of the endpoint in the URL, and HTTP_PROXY and HTTPS_PROXY";

/// Returns whether there is no such host, or nothing listens on the port.
pub(super) fn is_unreachable(error: &(dyn Error + 'static)) -> bool {
    let text = chain(error);
    text.contains("Connection refused") || text.contains("failed to lookup address")
}

/// Returns whether a proxy requires a login before it connects to a server that uses TLS.
pub(super) fn requires_proxy_login(error: &(dyn Error + 'static)) -> bool {
    chain(error).contains("proxy authorization required")
}

/// Returns whether a TLS handshake failed because the server does not use TLS.
pub(super) fn lacks_tls(error: &(dyn Error + 'static)) -> bool {
    // rustls: the type of the first record is not one of TLS.
    chain(error).contains("InvalidContentType")
}

/// Returns whether a request in plain HTTP failed because the server uses TLS, judging by the error without a response.
/// Some servers send a TLS alert, which is not HTTP.
pub(super) fn expects_tls(error: &(dyn Error + 'static)) -> bool {
    chain(error).contains("invalid HTTP version")
}

/// Returns whether a connection fails in the same way each time, so that a request must not be repeated: the URL has the wrong
/// scheme, the certificate of the server is not trusted, or a proxy requires a login.
pub(super) fn is_permanent(error: &(dyn Error + 'static)) -> bool {
    // The text of rustls for all that is wrong with a certificate.
    let is_untrusted = chain(error).contains("invalid peer certificate");
    is_untrusted || lacks_tls(error) || expects_tls(error) || requires_proxy_login(error)
}

/// Returns whether a text is a web page, which consoles and other web sites send for any path.
pub(super) fn is_web_page(text: &str) -> bool {
    let start: String = text.trim_start().chars().take(14).collect();
    let start = start.to_ascii_lowercase();
    start.starts_with("<!doctype html") || start.starts_with("<html")
}
