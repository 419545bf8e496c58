//! The little that we read of JSON: single fields of lines that programs whom we know write.

/// A text; what we ask for needs no escapes.
pub fn text_field(line: &str, name: &str) -> Option<String> {
    value(line, name)?.strip_prefix('"')?.split_once('"').map(|(text, _)| text.to_owned())
}

/// A number; of an object the sum of its numbers.
pub fn number_field(line: &str, name: &str) -> Option<u64> {
    match value(line, name)?.strip_prefix('{') {
        None => digits(value(line, name)?),
        Some(members) => {
            let members = members.split('}').next()?.split(',');
            Some(members.filter_map(|member| digits(member.split_once(':')?.1.trim())).sum())
        }
    }
}

/// A number in the summary of `s3-push --json`.
pub fn summary_field(said: &str, name: &str) -> Option<u64> {
    number_field(said.lines().rev().find(|line| line.contains("\"summary\""))?, name)
}

fn value<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_once(&format!("\"{name}\":")).map(|(_, rest)| rest.trim_start())
}

fn digits(text: &str) -> Option<u64> {
    text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{number_field, summary_field, text_field};

    #[test]
    fn fields_are_found() {
        let line = r#"{"key":"nar/x", "size": 12,"status":"success"}"#;
        assert_eq!(text_field(line, "key").as_deref(), Some("nar/x"));
        assert_eq!(number_field(line, "size"), Some(12));
        assert_eq!(number_field(line, "other"), None);
    }

    #[test]
    fn requests_are_one_number_or_several() {
        let one = "{\"path\":\"x\"}\n{\"summary\":{\"sent\":1,\"requests\":12}}\n";
        assert_eq!(summary_field(one, "requests"), Some(12));
        let several = "{\"summary\":{\"requests\":{\"PUT\":2,\"LIST\": 3},\"retries\":9}}";
        assert_eq!(summary_field(several, "requests"), Some(5));
        assert_eq!(summary_field("", "requests"), None);
    }
}
