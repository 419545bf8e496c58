//! Sanitizes text before it is printed: control characters and text that looks like a secret key are replaced.
//! Redaction happens where text is printed rather than where keys are read, because a key that is passed instead of
//! another argument is quoted by code that does not handle keys.

/// Base64 digits of 32 bytes, the seed of an Ed25519 key, without padding.
const SEED_DIGITS: usize = 43;
/// Base64 digits of 64 bytes, an Ed25519 key pair, without padding.
const KEY_PAIR_DIGITS: usize = 86;
/// Base64 digits per line as `base64` and `openssl` wrap their output.
const WRAPPED_LINE_DIGITS: [usize; 2] = [76, 64];

/// Prefixes of an SRI hash: the base64 digits that follow are not secret.
const SRI_PREFIXES: [&str; 2] = ["sha256-", "sha512-"];

/// Replaces a secret key in a message.
const REDACTED: &str = "[redacted key]";

/// Returns the text on one line, safe to print on a terminal. Control characters of hostile input (a newline in a file
/// name, an escape sequence) and secret keys are replaced.
pub(crate) fn one_line(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    redact_keys(&text, |digits| {
        digits.len() == KEY_PAIR_DIGITS || (WRAPPED_LINE_DIGITS.contains(&digits.len()) && has_both_cases(digits))
    })
}

/// Sanitizes an error message of the command-line parser, which removes the padding of a key that it takes for
/// `FLAG=VALUE`: any long run of base64 digits in both cases is redacted.
pub(crate) fn usage_message(text: &str) -> String {
    redact_keys(text, has_both_cases)
}

/// Returns whether the text has letters of both cases, as every base64-encoded key does.
#[must_use]
pub fn has_both_cases(digits: &str) -> bool {
    digits.contains(|c: char| c.is_ascii_uppercase()) && digits.contains(|c: char| c.is_ascii_lowercase())
}

/// Replaces text that looks like the base64 encoding of 32 or 64 bytes: any run of at least [`SEED_DIGITS`] digits that
/// is padded. Base16 and base32 hashes and paths are shorter or have no padding. For a run without padding,
/// `is_unpadded_key` decides.
fn redact_keys(text: &str, is_unpadded_key: impl Fn(&str) -> bool) -> String {
    let is_digit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/');
    let mut redacted = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let (digits, after) = rest.split_at(rest.find(|c| !is_digit(c)).unwrap_or(rest.len()));
        let next = after.trim_start_matches('=');
        let is_padded = next.len() < after.len();
        let is_sri_hash = SRI_PREFIXES.iter().any(|prefix| redacted.ends_with(prefix));
        if digits.len() >= SEED_DIGITS && !is_sri_hash && (is_padded || is_unpadded_key(digits)) {
            redacted.push_str(REDACTED);
        } else {
            redacted.push_str(digits);
            redacted.push_str(&after[..after.len() - next.len()]);
        }
        let (between, more) = next.split_at(next.find(is_digit).unwrap_or(next.len()));
        redacted.push_str(between);
        rest = more;
    }
    redacted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_redacted_and_hashes_and_paths_are_not() {
        let (seed, pair) = ("Ab3/".repeat(10) + "xY+=", "Ab3/".repeat(21) + "xY==");
        let unpadded = pair.trim_end_matches('=');
        for (text, redacted) in [
            (format!("unexpected argument 'k-1:{pair}' found"), "unexpected argument 'k-1:[redacted key]' found"),
            (pair.clone(), "[redacted key]"),
            (format!("--seed={seed}: --seed{seed}"), "--seed=[redacted key]: --[redacted key]"),
            (format!("a:{unpadded} b:{pair}{pair}!"), "a:[redacted key] b:[redacted key][redacted key]!"),
            (format!("ü{seed}ü"), "ü[redacted key]ü"),
            (format!("k-1:{}\n{}", &pair[..76], &pair[76..]), "k-1:[redacted key]\u{fffd}Ab3/Ab3/xY=="),
        ] {
            assert_eq!(one_line(&text), redacted);
        }
        for text in [
            "/nix/store/1b9p07z77phvv2hf6gm9f28syp39f1ag-name: sha256:1b9p07z77phvv2hf6gm9f28syp39f1ag1b9p07z77phvv2hf6gm9",
            "NarHash sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU= is not the expected hash",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 = x==",
            "/a/very/long/path/without/any/dot/or/dash/in/it/that/goes/on/and/on/and/on/for/a/while/longer/x",
            "",
        ] {
            assert_eq!(one_line(text), text);
        }
    }

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(one_line("a\nb\x1b[2J"), "a\u{fffd}b\u{fffd}[2J");
    }
}
