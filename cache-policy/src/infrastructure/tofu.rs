//! Resources of the provider `hashicorp/aws` for OpenTofu and Terraform, laid out as `tofu fmt` does.

use std::fmt::Write as _;

use nar_pack::error::Result;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Resource, access_name, value};

/// The columns of one level of indentation.
const INDENT: usize = 2;

/// Returns a resource, as text that ends with a line feed.
///
/// # Errors
/// Fails if the document cannot be serialized.
pub fn to_tofu(resource: &Resource) -> Result<String> {
    match resource {
        Resource::BucketPolicy { bucket, access, policy } => {
            let policy = jsonencode(policy)?;
            let attributes = format!("  bucket = {}\n  policy = {policy}\n", string(bucket));
            Ok(block("aws_s3_bucket_policy", &access_name(*access).to_ascii_lowercase(), &attributes))
        }
        Resource::IdentityPolicy { access, policy } => {
            let (policy, name) = (jsonencode(policy)?, access_name(*access).to_ascii_lowercase());
            let attributes = format!("  name_prefix = \"nix-cache-{name}-\"\n  policy = {policy}\n");
            Ok(block("aws_iam_policy", &name, &attributes))
        }
        Resource::Lifecycle { bucket, lifecycle } => {
            let mut body = format!("  bucket = {}\n", string(bucket));
            for rule in value(lifecycle)?["Rules"].as_array().into_iter().flatten().filter_map(Value::as_object) {
                write_block(&mut body, "rule", rule, INDENT);
            }
            Ok(block("aws_s3_bucket_lifecycle_configuration", "lifecycle", &body))
        }
    }
}

fn block(kind: &str, name: &str, body: &str) -> String {
    format!("resource \"{kind}\" \"nix_cache_{name}\" {{\n{body}}}\n")
}

/// Returns an expression whose value is the document as JSON text.
fn jsonencode(document: &impl Serialize) -> Result<String> {
    let mut text = "jsonencode(".to_owned();
    write_value(&mut text, &value(document)?, INDENT);
    Ok(text + ")")
}

/// Appends a block, after a blank line. Objects in it are blocks too, and names are in the form of the provider.
fn write_block(out: &mut String, name: &str, object: &Map<String, Value>, indent: usize) {
    let (blocks, attributes): (Vec<_>, Vec<_>) =
        object.iter().map(|(name, value)| (snake_case(name), value)).partition(|(_, value)| value.is_object());
    let _ = writeln!(out, "\n{:indent$}{name} {{", "");
    write_attributes(out, &attributes, indent + INDENT);
    for (name, value) in blocks {
        if let Some(object) = value.as_object() {
            write_block(out, &name, object, indent + INDENT);
        }
    }
    let _ = writeln!(out, "{:indent$}}}", "");
}

/// Appends attributes, one per line. Those of consecutive lines are aligned.
fn write_attributes(out: &mut String, attributes: &[(String, &Value)], indent: usize) {
    for lines in attributes.chunk_by(|(_, one), (_, next)| is_one_line(one) && is_one_line(next)) {
        let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, value) in lines {
            let _ = write!(out, "{:indent$}{name:width$} = ", "");
            write_value(out, value, indent);
            out.push('\n');
        }
    }
}

fn is_one_line(value: &Value) -> bool {
    !value.is_array() && !value.is_object()
}

/// Appends a value that begins on a line with `indent`.
fn write_value(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::String(text) => out.push_str(&string(text)),
        Value::Array(values) => {
            out.push_str("[\n");
            for value in values {
                let _ = write!(out, "{:1$}", "", indent + INDENT);
                write_value(out, value, indent + INDENT);
                out.push_str(",\n");
            }
            let _ = write!(out, "{:indent$}]", "");
        }
        Value::Object(object) => {
            let attributes: Vec<_> = object.iter().map(|(name, value)| (object_key(name), value)).collect();
            out.push_str("{\n");
            write_attributes(out, &attributes, indent + INDENT);
            let _ = write!(out, "{:indent$}}}", "");
        }
        other => out.push_str(&other.to_string()),
    }
}

/// Returns a key of an object: an identifier as it is, anything else as a string.
fn object_key(name: &str) -> String {
    if name.bytes().all(|b| b.is_ascii_alphabetic()) { name.to_owned() } else { string(name) }
}

/// Returns a quoted template without interpolation: its value is `text` (HCL native syntax specification, "Template
/// Expressions").
fn string(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    let mut previous = ' ';
    for character in text.chars() {
        let begins_template = character == '{' && matches!(previous, '$' | '%');
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            _ if begins_template || character.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(character));
            }
            _ => quoted.push(character),
        }
        previous = character;
    }
    quoted + "\""
}

/// Returns the name that the provider has for a field: `DaysAfterInitiation` is `days_after_initiation`, and `ID` is `id`.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    let mut previous = 'A';
    for character in name.chars() {
        if character.is_ascii_uppercase() && previous.is_ascii_lowercase() {
            snake.push('_');
        }
        snake.push(character.to_ascii_lowercase());
        previous = character;
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_contain_no_template() {
        assert_eq!(string("a\"\\b$c%d{"), r#""a\"\\b$c%d{""#);
        assert_eq!(string("${a}$${b}%{c}"), r#""$\u007Ba}$$\u007Bb}%\u007Bc}""#);
        assert_eq!(string("a\nb"), r#""a\u000Ab""#);
    }

    #[test]
    fn names_are_those_of_the_provider() {
        assert_eq!(snake_case("AbortIncompleteMultipartUpload"), "abort_incomplete_multipart_upload");
        assert_eq!((snake_case("ID"), object_key("s3:prefix")), ("id".to_owned(), "\"s3:prefix\"".to_owned()));
    }
}
