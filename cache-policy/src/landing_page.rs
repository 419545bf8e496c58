//! The page that a visitor of the bucket sees in a browser: what the cache is, and how to use it. It works without
//! scripts; the copy buttons are added by one.

use maud::{Markup, html};
use nar_pack::html_page::{Page, Script};

use crate::nix_conf::ClientConfig;

const STYLE: &str = "
body { max-width: 46rem; }
.snippet { position: relative; }
pre { background: var(--block); border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0 .75rem;
  overflow-wrap: anywhere; padding: .8rem 1rem; white-space: pre-wrap; }
a { color: var(--accent); }
button { position: absolute; top: .45rem; right: .45rem; background: var(--page); color: var(--text); cursor: pointer;
  border: 1px solid var(--line); border-radius: 6px; font: .8rem/1 system-ui, sans-serif; padding: .4rem .6rem; }
button:hover, button:focus-visible { border-color: var(--accent); }
.with-button pre { padding-right: 5.5rem; }
@media (max-width: 40rem) { .with-button pre { padding-right: 1rem; padding-top: 2.6rem; } }
footer { border-top: 1px solid var(--line); color: var(--muted); font-size: .875rem; margin-top: 2.5rem; }
";

/// Adds a button to each snippet, in browsers that let a page write to the clipboard: those of pages over HTTPS.
const SCRIPT: Script = Script {
    source: "
if (navigator.clipboard) for (const snippet of document.querySelectorAll('.snippet')) {
  const button = document.createElement('button');
  button.type = 'button';
  button.textContent = 'Copy';
  button.setAttribute('aria-label', 'Copy ' + snippet.dataset.name);
  const show = text => { button.textContent = text; setTimeout(() => { button.textContent = 'Copy'; }, 2000); };
  button.addEventListener('click', () => navigator.clipboard.writeText(snippet.querySelector('pre').textContent)
    .then(() => show('Copied'), () => show('Not copied')));
  snippet.classList.add('with-button');
  snippet.append(button);
}
",
    sha256: "1eFXBC5gySF8/bNmitTAcKluGheSbnEcOAgBwtMbmkQ=",
};

/// Returns the page of a cache.
#[must_use]
pub fn landing_page(config: &ClientConfig) -> String {
    let url = config.substituter();
    let name = url.split_once("://").map_or(url, |(_, rest)| rest).split('?').next().unwrap_or_default();
    let body = html! {
        main {
            h1 { (name) }
            p {
                "This is a binary cache for " a href="https://nixos.org" { "Nix" } ": it has packages that were built "
                "already. With the settings below, Nix downloads them instead of building them again, and verifies "
                "them with "
                @if config.keys().len() == 1 { "this key:" } @else { "these keys:" }
            }
            @for key in config.keys() { p { code { (key) } } }
            @if url.starts_with("s3://") {
                p { "Reading the cache requires credentials for the bucket, and a Nix with support for S3." }
            }
            h2 { "nix.conf" }
            p {
                "Add these lines to " code { "/etc/nix/nix.conf" } ", and restart the Nix daemon:"
            }
            (snippet("the lines for nix.conf", &config.lines()))
            h2 { "NixOS" }
            p { "Add this to the configuration of the system:" }
            (snippet("the NixOS configuration", &nixos(config)))
            h2 { "Flake" }
            p { "Add this to a " code { "flake.nix" } " to propose the cache to everyone who builds it:" }
            (snippet("the lines for flake.nix", &flake(config)))
            p {
                "Nix asks before it uses these settings. With a daemon, they apply only to users in "
                code { "trusted-users" } "."
            }
            footer { p { "This page loads nothing from other hosts and does not track its visitors." } }
        }
    };
    Page { title: &format!("{name}: binary cache for Nix"), styles: &[STYLE], script: Some(SCRIPT), body }.into_text()
}

/// Returns text that can be copied; `name` says what it is to those who cannot see the page.
fn snippet(name: &str, text: &str) -> Markup {
    html! { div.snippet data-name=(name) { pre { (text) } } }
}

fn nixos(config: &ClientConfig) -> String {
    format!("nix.settings = {{\n{}}};\n", settings(config))
}

fn flake(config: &ClientConfig) -> String {
    format!("nixConfig = {{\n{}}};\n", settings(config))
}

/// Returns the attributes of both, which have the names of nix.conf.
fn settings(config: &ClientConfig) -> String {
    let keys: Vec<String> = config.keys().iter().map(|key| nix_string(key)).collect();
    format!(
        "  extra-substituters = [ {} ];\n  extra-trusted-public-keys = [ {} ];\n",
        nix_string(config.substituter()),
        keys.join(" ")
    )
}

/// Returns a string literal of the Nix language.
fn nix_string(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${");
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_nix_are_quoted() {
        assert_eq!(nix_string("https://h/$a"), "\"https://h/$a\"");
        assert_eq!(nix_string("\"; ${x} \\"), "\"\\\"; \\${x} \\\\\"");
    }
}
