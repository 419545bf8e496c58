//! Every hint that a tool prints has an entry in docs/troubleshooting.md.

use std::fs;

use cache_tests::repository;
use walkdir::WalkDir;

/// The crates with hints.
const TOOLS: [&str; 6] = ["nar-pack", "narinfo-gen", "cache-sign", "s3-push", "s3-pull", "cache-policy"];

#[test]
fn every_hint_is_explained() {
    let page = unwrapped(&fs::read_to_string(repository().join("docs/troubleshooting.md")).unwrap());
    let hints = hints();
    assert!(hints.len() > 60, "the source has hints in another form: only {} were found", hints.len());
    let missing: Vec<_> = hints.iter().filter(|hint| !fragments(hint).all(|part| page.contains(part))).collect();
    assert!(missing.is_empty(), "docs/troubleshooting.md does not explain {missing:#?}");
}

/// Returns the literals that are passed to `with_hint`, and those of constants whose names end with `HINT`.
fn hints() -> Vec<String> {
    let mut hints = Vec::new();
    for tool in TOOLS {
        for entry in WalkDir::new(repository().join(tool).join("src")) {
            let path = entry.unwrap().into_path();
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let source = fs::read_to_string(path).unwrap();
            let code = source.split("#[cfg(test)]").next().unwrap();
            for start in ["with_hint(", "HINT: &str =", "let hint ="] {
                hints.extend(code.split(start).skip(1).filter_map(literal));
            }
            // Of several hints, one is chosen by a match.
            for choice in code.split("with_hint(match ").skip(1) {
                let arms = choice.split("})").next().unwrap_or_default();
                hints.extend(arms.split("=>").skip(1).filter_map(literal));
            }
        }
    }
    hints.sort_unstable();
    hints.dedup();
    hints
}

/// Returns the string literal that an argument begins with, also within a closure or `format!`.
fn literal(argument: &str) -> Option<String> {
    let start = argument.trim_start().trim_start_matches("||").trim_start();
    let start = start.strip_prefix("format!(").unwrap_or(start).trim_start();
    let (mut literal, mut chars) = (String::new(), start.strip_prefix('"')?.chars());
    loop {
        match chars.next()? {
            '"' => return Some(literal),
            '\\' => match chars.next()? {
                '\n' => chars = chars.as_str().trim_start().chars(),
                escaped => literal.push(escaped),
            },
            character => literal.push(character),
        }
    }
}

/// Returns the parts of a format string between its values.
fn fragments(hint: &str) -> impl Iterator<Item = &str> {
    hint.split('{')
        .enumerate()
        .map(|(at, part)| if at == 0 { part } else { part.split_once('}').map_or("", |part| part.1) })
}

/// Returns the text with its lines joined, and without the escapes of `|` in tables.
fn unwrapped(page: &str) -> String {
    page.split_whitespace().collect::<Vec<_>>().join(" ").replace("\\|", "|")
}

#[test]
fn literals_are_found() {
    assert_eq!(literal("\n    \"one \\\n     \\\"two\\\"\")"), Some("one \"two\"".to_owned()));
    assert_eq!(literal("|| format!(\"use {x} now\"))"), Some("use {x} now".to_owned()));
    assert_eq!(literal("hint)"), None);
    assert_eq!(fragments("use {x} or {y:?} now").collect::<Vec<_>>(), ["use ", " or ", " now"]);
}
