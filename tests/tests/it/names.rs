//! Rules about names and sizes: identifiers are the standard terms, files and functions have a limit.

use std::collections::BTreeSet;
use std::path::Path;

use super::tidy::{read, sources};

/// Maximum number of lines of a source file.
const MAX_LINES: usize = 600;

/// Words that must not be part of an identifier, with the term to use instead.
const BANNED_WORDS: [(&str, &str); 50] = [
    ("Patience", "RequestLimits"),
    ("patience", "limits"),
    ("Plea", "Throttle"),
    ("Pace", "AdaptiveLimit"),
    ("pace", "limit"),
    ("Slot", "Permit"),
    ("Takes", "RequiredPermission"),
    ("Shop", "Context"),
    ("Spare", "Unclaimed"),
    ("Promise", "SharedResult"),
    ("Manner", "Options"),
    ("Manners", "Options"),
    ("Trouble", "Error"),
    ("Offer", "Candidate"),
    ("Discovery", "ClosureWalk"),
    ("Wanted", "Requested"),
    ("Stoppable", "Cancelable"),
    ("Knowledge", "PathInfoArgs"),
    ("Registry", "PathInfoSource"),
    ("Describer", "NarInfoBuilder"),
    ("Failure", "Error"),
    ("Doing", "Context"),
    ("Talk", "Verbosity"),
    ("told", "summarize"),
    ("Tries", "Backoff"),
    ("Judgement", "Evaluation"),
    ("Goods", "Fixture"),
    ("Room", "ByteBudget"),
    ("room", "budget"),
    ("Kept", "SpooledNar"),
    ("Inspection", "ArchiveVerifier"),
    ("Tally", "Summary"),
    ("Examine", "Verify"),
    ("examine", "verify"),
    ("Facts", "NarDigests"),
    ("Packer", "NarCompressor"),
    ("Packing", "CompressNar"),
    ("Piece", "Frame"),
    ("Begun", "Started"),
    ("begun", "started"),
    ("Got", "FetchedPath"),
    ("got", "fetched"),
    ("judged", "verified"),
    ("settle", "complete"),
    ("wants", "requests"),
    ("forgery", "malicious_cache"),
    ("Scene", "Fixture"),
    ("Door", "Server"),
    ("Says", "Message"),
    ("unfinished", "resumable"),
];

/// Identifiers of other crates that have a banned word.
const FOREIGN_IDENTIFIERS: [&str; 1] = ["DispatchFailure"];

/// Beginnings of constants that must be MAX_ or MIN_, and names without a meaning.
const BANNED_CONSTANTS: [&str; 7] = ["MOST_", "LEAST_", "TRIES", "TICK", "HEADWAY", "ASKED_", "LONGEST"];

#[test]
fn no_source_file_is_longer_than_the_limit() {
    let long: Vec<_> = sources()
        .into_iter()
        .map(|path| (read(&path).lines().count(), path))
        .filter(|(lines, _)| *lines > MAX_LINES)
        .collect();
    assert!(long.is_empty(), "files of more than {MAX_LINES} lines: {long:?}");
}

#[test]
fn identifiers_use_the_standard_terms() {
    let mut found = BTreeSet::new();
    for path in sources() {
        for identifier in identifiers(&read(&path)) {
            if FOREIGN_IDENTIFIERS.contains(&identifier.as_str()) {
                continue;
            }
            let constant = BANNED_CONSTANTS.iter().find(|&&prefix| identifier.starts_with(prefix));
            let words = words(&identifier);
            let word = BANNED_WORDS.iter().find(|(banned, _)| words.iter().any(|word| word == banned));
            if let Some((_, term)) = word {
                found.insert(format!("{}: {identifier} (use {term})", shorten(&path)));
            } else if constant.is_some() {
                found.insert(format!("{}: {identifier} (use MAX_, MIN_ or DEFAULT_)", shorten(&path)));
            }
        }
    }
    assert!(
        found.is_empty(),
        "nonstandard terms in identifiers:\n{}",
        found.into_iter().collect::<Vec<_>>().join("\n")
    );
}

fn shorten(path: &Path) -> String {
    path.strip_prefix(cache_tests::repository()).unwrap_or(path).display().to_string()
}

/// The identifiers of Rust source text: comments and string literals are skipped line by line, which is close enough for
/// text that rustfmt has laid out.
fn identifiers(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    // What ends the string that a line begins in: a quotation mark, and for raw strings number signs after it.
    let mut string_end: Option<String> = None;
    for line in source.lines() {
        let mut chars = line.chars().peekable();
        let mut identifier = String::new();
        while let Some(c) = chars.next() {
            if let Some(end) = &string_end {
                let quote = end.trim_start_matches('r');
                let rest: String = std::iter::once(c).chain(chars.clone()).take(quote.len()).collect();
                if c == '\\' && end == quote {
                    chars.next();
                } else if rest == quote {
                    quote.chars().skip(1).for_each(|_| _ = chars.next());
                    string_end = None;
                }
                continue;
            }
            if c.is_ascii_alphanumeric() || c == '_' {
                identifier.push(c);
                continue;
            }
            let is_raw = matches!(identifier.as_str(), "r" | "br");
            found.insert(std::mem::take(&mut identifier));
            match c {
                '"' | '#' if is_raw => {
                    let mut signs = String::new();
                    let mut next = Some(c);
                    while next == Some('#') {
                        signs.push('#');
                        next = chars.next();
                    }
                    match next {
                        // The letter stands for: no escapes.
                        Some('"') => string_end = Some(format!("r\"{signs}")),
                        // A raw identifier.
                        first => identifier.extend(first),
                    }
                }
                '/' if chars.peek() == Some(&'/') => break,
                '\'' if chars.clone().nth(1) == Some('\'') => drop(chars.nth(1)),
                '\'' if chars.peek() == Some(&'\\') => drop(chars.nth(2)),
                '"' => string_end = Some("\"".to_owned()),
                _ => {}
            }
        }
        found.insert(identifier);
    }
    // Code after it would not be checked.
    assert!(string_end.is_none(), "the end of the source is taken for a string: {:?}", source.lines().next());
    found
}

/// The words of an identifier: `SharedResult` and `shared_result` have two each.
fn words(identifier: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for part in identifier.split('_') {
        let mut word = String::new();
        for c in part.chars() {
            if c.is_ascii_uppercase() && word.chars().last().is_some_and(|last| last.is_ascii_lowercase()) {
                words.push(std::mem::take(&mut word));
            }
            word.push(c);
        }
        words.push(word);
    }
    words
}

#[test]
fn identifiers_are_found_outside_comments_and_strings() {
    let source = "let told = \"not this\"; // nor that\nstruct PleaForPatience('\\n', '\"', ok);\n";
    let found = identifiers(source);
    assert!(["told", "PleaForPatience", "ok"].iter().all(|name| found.contains(*name)), "{found:?}");
    assert!(["this", "that", "not"].iter().all(|name| !found.contains(*name)), "{found:?}");
    assert_eq!(words("PleaForPatience"), ["Plea", "For", "Patience"]);
    assert_eq!(words("put_new"), ["put", "new"]);
}

#[test]
fn identifiers_in_strings_and_comments_are_skipped() {
    let source = r##"let one = r#"two " three"#; let four = "five \" six"; // seven
        let eight = r"\"; let r#nine = b"\\"; let ten = '"';"##;
    let found = identifiers(source);
    for (identifier, is_found) in [
        ("one", true),
        ("three", false),
        ("four", true),
        ("six", false),
        ("seven", false),
        ("eight", true),
        ("nine", true),
        ("ten", true),
    ] {
        assert_eq!(found.contains(identifier), is_found, "{identifier}: {found:?}");
    }
}
