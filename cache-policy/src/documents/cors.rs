//! The CORS configuration: scripts of web pages may read the cache.

use nar_pack::error::{Error, Result};
use serde::Serialize;

/// How long a browser may cache the answer to a preflight request.
const MAX_AGE_SECONDS: u32 = 86_400;

/// A CORS configuration with one rule.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Cors {
    #[serde(rename = "CORSRules")]
    rules: [CorsRule; 1],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct CorsRule {
    #[serde(rename = "ID")]
    id: &'static str,
    allowed_origins: Vec<String>,
    allowed_methods: [&'static str; 2],
    allowed_headers: [&'static str; 2],
    expose_headers: [&'static str; 3],
    max_age_seconds: u32,
}

impl Cors {
    /// Allows pages of these origins to read, or of all origins if there are none.
    ///
    /// # Errors
    /// A usage error for an invalid origin.
    pub fn allow_read(origins: &[String]) -> Result<Self> {
        if let Some(origin) = origins.iter().find(|origin| !is_origin(origin)) {
            return Err(Error::usage(format!("invalid origin {origin:?}: expected https://HOST[:PORT]")));
        }
        let rule = CorsRule {
            id: "read-cache",
            allowed_origins: if origins.is_empty() { vec!["*".to_owned()] } else { origins.to_vec() },
            allowed_methods: ["GET", "HEAD"],
            allowed_headers: ["If-None-Match", "Range"],
            expose_headers: ["Content-Length", "Content-Range", "ETag"],
            max_age_seconds: MAX_AGE_SECONDS,
        };
        Ok(Self { rules: [rule] })
    }
}

/// Whether `text` is a scheme, a host and optionally a port, with at most one wildcard, as S3 allows.
fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or_default();
    !host.is_empty()
        && host.chars().all(|c| c.is_ascii_alphanumeric() || "-.:[]*".contains(c))
        && text.matches('*').count() <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_a_scheme_and_a_host() {
        let cors =
            |origins: &[&str]| Cors::allow_read(&origins.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        let all = serde_json::to_value(cors(&[]).unwrap()).unwrap();
        assert_eq!(all["CORSRules"][0]["AllowedOrigins"][0], "*");
        assert!(cors(&["https://example.org", "http://[::1]:8080", "https://*.example.org"]).is_ok());
        for bad in ["*", "example.org", "https://", "https://a/b", "https://*.*", "https://a\n"] {
            assert_eq!(cors(&[bad]).unwrap_err().exit_status(), 2, "{bad}");
        }
    }
}
