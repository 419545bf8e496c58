//! Web pages that the tools write: one file that requests nothing else, for light and dark screens of any width. Text is
//! escaped by [`maud`]; a page also has a content security policy, so that a browser would refuse what is not part of it.

use maud::{DOCTYPE, Markup, PreEscaped, html};

/// The style that all pages share.
const STYLE: &str = "
:root { color-scheme: light dark; --page: #ffffff; --text: #1f2328; --muted: #59636e; --line: #d1d9e0;
  --block: #f6f8fa; --accent: #0b62c4; --second: #b35900; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0d1117; --text: #e6edf3; --muted: #9198a1; --line: #3d444d; --block: #161b22; --accent: #58a6ff;
    --second: #e3994a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 3rem; background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
p { margin: .5rem 0 .75rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .875rem; }
code { overflow-wrap: anywhere; }
";

/// A script that is part of a page.
#[derive(Debug, Clone, Copy)]
pub struct Script {
    /// Its text.
    pub source: &'static str,
    /// The SHA-256 hash of the text in base 64. A browser runs no other script.
    pub sha256: &'static str,
}

/// A web page.
pub struct Page<'a> {
    /// The title, as text.
    pub title: &'a str,
    /// What the page adds to the shared style.
    pub styles: &'a [&'static str],
    /// Its script, if it has one.
    pub script: Option<Script>,
    /// The contents of its body.
    pub body: Markup,
}

impl Page<'_> {
    /// Returns the text of the file, which ends with a line feed.
    #[must_use]
    pub fn into_text(self) -> String {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(content_security_policy(self.script));
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="referrer" content="no-referrer";
                    title { (self.title) }
                    style { (PreEscaped(STYLE)) @for style in self.styles { (PreEscaped(style)) } }
                }
                body {
                    (self.body)
                    @if let Some(script) = self.script { script { (PreEscaped(script.source)) } }
                }
            }
        };
        page.into_string() + "\n"
    }
}

fn content_security_policy(script: Option<Script>) -> String {
    let script = script.map_or_else(String::new, |script| format!("; script-src 'sha256-{}'", script.sha256));
    format!("default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'{script}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_a_script_needs_its_hash() {
        let text = "</title><script>\"&'";
        let page =
            Page { title: text, styles: &[], script: None, body: html! { p title=(text) { (text) } } }.into_text();
        assert_eq!(page.matches("&lt;/title&gt;&lt;script&gt;&quot;&amp;'").count(), 3, "{page}");
        assert!(!page.contains("<script>") && !page.contains("script-src"), "{page}");
        let script = Some(Script { source: "x()", sha256: "AAAA" });
        let page = Page { title: "x", styles: &[], script, body: html! {} }.into_text();
        assert!(page.contains("script-src 'sha256-AAAA'") && page.contains("<script>x()</script>"), "{page}");
    }
}
