//! Adds the lines of a cache to the text of a nix.conf and removes them. The lines between the two comments are called
//! the block of the cache; everything outside it is kept byte for byte.

use std::path::Path;

use nar_pack::error::{Context, Error, Result};

use super::client::{ClientConfig, is_shadowed, parse_conf};

/// The start of the comment before a block; the identity of the cache follows it.
const BEGIN: &str = "# cache-policy begin ";
/// The start of the comment after a block.
const END: &str = "# cache-policy end ";

/// The byte positions of a block: its first comment, its lines, and the end of its last comment.
#[derive(Debug, Clone, Copy)]
struct Block {
    start: usize,
    lines_start: usize,
    lines_end: usize,
    end: usize,
}

impl Block {
    fn lines(self, text: &[u8]) -> &[u8] {
        &text[self.lines_start..self.lines_end]
    }
}

impl ClientConfig {
    /// Returns the text with the lines merged into it. `path` is where Nix reads the text, for the files that it
    /// includes.
    ///
    /// # Errors
    /// Refuses text whose comments do not form one block; fails if an included file does not exist.
    pub fn merge(&self, text: &[u8], path: &Path) -> Result<Vec<u8>> {
        let settings = |text: &[u8]| parse_conf(text, path).map(|parsed| parsed.settings);
        let mut merged = self.without_lines(text).context(|| path.display())?;
        // The blocks of other caches may be removed.
        let lines = self.missing_lines(&[settings(&merged)?, settings(&without_blocks(&merged))?]);
        let existing_lines = self.find_block(text)?.map(|block| block.lines(text)).unwrap_or_default();
        if existing_lines == lines.as_bytes() && self.is_in_effect(&settings(text)?) {
            return Ok(text.to_vec());
        }
        if lines.is_empty() {
            return Ok(merged);
        }
        // A text without a final newline gets a block without one, so that removing the block restores the text.
        let lacks_newline = !merged.is_empty() && !merged.ends_with(b"\n");
        if lacks_newline {
            merged.push(b'\n');
        }
        merged.extend_from_slice(format!("{}\n{lines}{}", self.begin_comment(), self.end_comment()).as_bytes());
        if !lacks_newline {
            merged.push(b'\n');
        }
        let merged_settings = settings(&merged)?;
        if !self.is_in_effect(&merged_settings) {
            let error = Error::refused("the added lines would have no effect").context(path.display());
            let shadowed = self.keys().iter().find(|key| is_shadowed(&merged_settings, key));
            return Err(match shadowed.and_then(|key| key.split(':').next()) {
                Some(name) => error.with_hint(format!(
                    "another key with the name {name} is trusted, and Nix uses the first: remove that one, or use another name"
                )),
                None => error,
            });
        }
        Ok(merged)
    }

    /// Returns the text without the block.
    ///
    /// # Errors
    /// Refuses text whose comments do not form one block.
    pub fn without_lines(&self, text: &[u8]) -> Result<Vec<u8>> {
        let Some(block) = self.find_block(text)? else { return Ok(text.to_vec()) };
        let mut start = block.start;
        if block.end == text.len() && !text.ends_with(b"\n") && start > 0 {
            start -= 1;
        }
        Ok([&text[..start], &text[block.end..]].concat())
    }

    fn begin_comment(&self) -> String {
        format!("{BEGIN}{}", self.identity)
    }

    fn end_comment(&self) -> String {
        format!("{END}{}", self.identity)
    }

    fn find_block(&self, text: &[u8]) -> Result<Option<Block>> {
        let (begin, end) = (self.begin_comment(), self.end_comment());
        let invalid = |reason: String| {
            Error::refused(reason).with_hint("remove the lines of the cache by hand, with both comments")
        };
        let (mut position, mut block, mut open_block) = (0, None, None);
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            let trimmed = line.trim_ascii_end();
            let next = position + line.len();
            if trimmed == begin.as_bytes() {
                if open_block.is_some() || block.is_some() {
                    return Err(invalid(format!("duplicate line {begin:?}")));
                }
                open_block = Some((position, next));
            } else if trimmed == end.as_bytes() {
                let Some((start, lines_start)) = open_block.take() else {
                    return Err(invalid(format!("line {end:?} without a line {begin:?} before it")));
                };
                block = Some(Block { start, lines_start, lines_end: position, end: next });
            }
            position = next;
        }
        match open_block {
            None => Ok(block),
            Some(_) => Err(invalid(format!("line {begin:?} without a line {end:?} after it"))),
        }
    }
}

/// Returns the text without the blocks of all caches. A block without an end stays.
fn without_blocks(text: &[u8]) -> Vec<u8> {
    let (mut kept, mut open): (Vec<u8>, Option<(Vec<u8>, usize)>) = (Vec::new(), None);
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let trimmed = line.trim_ascii_end();
        if let Some(identity) = trimmed.strip_prefix(BEGIN.as_bytes()) {
            open = Some((identity.to_vec(), kept.len()));
        }
        kept.extend_from_slice(line);
        if let Some((_, start)) =
            open.take_if(|(identity, _)| trimmed.strip_prefix(END.as_bytes()) == Some(identity.as_slice()))
        {
            kept.truncate(start);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use cache_sign::keys::PublicKey;
    use cache_sign::nix_conf::Settings;

    use super::*;
    use crate::nix_conf::UrlForm;

    const KEY: &str = "a-1:gKkVNqzMzpoNLo6VNl1o+5QLrbnCTwKuuNTTjwwPUk4=";

    fn config(url: &str) -> ClientConfig {
        ClientConfig::new(url, &UrlForm::Portable, &[PublicKey::parse(KEY).unwrap()], false).unwrap()
    }

    fn merged(config: &ClientConfig, text: &str) -> String {
        String::from_utf8(config.merge(text.as_bytes(), Path::new("/etc/nix/nix.conf")).unwrap()).unwrap()
    }

    fn settings(text: &str) -> Settings {
        parse_conf(text.as_bytes(), Path::new("/x")).unwrap().settings
    }

    #[test]
    fn only_missing_lines_are_added() {
        let config = config("https://cache.example.org/");
        let has_key = format!("trusted-public-keys = {KEY}\n");
        let with_substituter = merged(&config, &has_key);
        assert!(with_substituter.starts_with(&has_key) && !with_substituter.contains("extra-trusted"));
        let has_both = format!("{has_key}extra-substituters = https://cache.example.org\n");
        assert_eq!(merged(&config, &has_both), has_both);
        // A later line overrides the block, so the block is moved to the end.
        let overridden = format!("{}substituters = https://cache.nixos.org\n", merged(&config, ""));
        let moved = merged(&config, &overridden);
        assert!(moved.starts_with("substituters =") && moved.ends_with(&merged(&config, "")), "{moved}");
    }

    #[test]
    fn a_host_that_pushes_does_not_keep_answers() {
        let line = "narinfo-cache-positive-ttl = 0\n";
        let pusher = config("https://cache.example.org").with_pusher(true);
        assert!(pusher.lines().ends_with(line) && !config("https://cache.example.org").lines().contains("ttl"));
        assert!(merged(&pusher, "narinfo-cache-positive-ttl = 60\n").contains(line));
        let has_line = merged(&pusher, line);
        assert_eq!(has_line.matches(line).count(), 1, "{has_line}");
        // Without the option the line goes again.
        assert!(!merged(&config("https://cache.example.org"), &merged(&pusher, "")).contains(line));
    }

    #[test]
    fn an_exclusive_cache_replaces_all_others() {
        let url = "https://cache.example.org";
        let exclusive = ClientConfig::new(url, &UrlForm::Portable, &[PublicKey::parse(KEY).unwrap()], true).unwrap();
        let settings = settings(&merged(&exclusive, "extra-substituters = https://other.example.org\n"));
        assert_eq!((settings.substituters, settings.trusted_public_keys), (vec![url.into()], vec![KEY.into()]));
    }

    #[test]
    fn a_block_replaces_the_block_of_the_same_cache() {
        let first = merged(&config("https://h/c?priority=10"), "a = b\n");
        let second = merged(&config("https://h/c/?priority=20"), &first);
        assert_eq!(second, first.replace("=10", "=20").replace("/c?", "/c/?"));
        // Lines outside a block are kept and not repeated.
        let by_hand = format!("substituters = https://h/c?priority=10\ntrusted-public-keys = {KEY}\n");
        assert_eq!(merged(&config("https://h/c"), &by_hand), by_hand);
    }

    #[test]
    fn an_incomplete_block_is_refused() {
        let config = config("s3://my-cache");
        let path = Path::new("/etc/nix/nix.conf");
        let whole = merged(&config, "");
        let (begin, end) = (config.begin_comment(), config.end_comment());
        for text in [whole.replace(&end, ""), whole.replace(&begin, ""), whole.repeat(2)] {
            assert!(config.merge(text.as_bytes(), path).unwrap_err().is_refusal(), "{text}");
        }
    }

    #[test]
    fn invalid_lines_and_backslashes_are_kept() {
        let config = config("https://cache.example.org");
        for text in ["no setting\n", "a=b", "substituters = a \\", "substituters = \\\n", "\\"] {
            let merged = merged(&config, text);
            assert!(merged.starts_with(text), "{text:?}");
            assert!(config.is_in_effect(&settings(&merged)), "{merged}");
            assert_eq!(config.without_lines(merged.as_bytes()).unwrap(), text.as_bytes());
        }
    }
}
