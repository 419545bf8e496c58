//! The JSON output of the tools has the form of the schemas in docs/schemas.

use std::fs;

use crate::fixtures::closure_fixture::{ARCHIVE, Fixture};
use cache_tests::repository;
use serde_json::Value;

#[test]
fn json_output_matches_its_schema() {
    let (mut fixture, s3, _) = Fixture::embedded();
    fixture.scratch.env("SECOND", s3.cache_url(&s3.make_bucket()));
    let sh = |script: &str| fixture.scratch.sh(script).stdout;
    let mut outputs = vec![("s3-push", sh(&format!("{ARCHIVE} | s3-push --json --no-nix --dry-run \"$C\"")))];
    outputs.push(("s3-push", sh(&format!("{ARCHIVE} | s3-push --json --no-nix \"$C\""))));
    outputs.push(("s3-push", sh(&format!("{ARCHIVE} | s3-push --json --no-nix \"$C\""))));
    // A reference is missing.
    outputs.push((
        "s3-push",
        sh("nar-pack root\"$TOP\" | s3-push --json --no-nix --candidates paths \"$SECOND\" \"$TOP\""),
    ));
    outputs
        .push(("s3-pull", sh("s3-pull -r --root out --dry-run --json --trusted-public-key \"$KEY\" \"$C\" \"$TOP\"")));
    outputs.push(("s3-pull", sh("s3-pull -r --root out --json --trusted-public-key \"$KEY\" \"$C\" \"$TOP\"")));
    outputs.push(("s3-pull", sh("s3-pull -r --root out --json --trusted-public-key \"$KEY\" \"$C\" \"$TOP\"")));
    outputs.push((
        "s3-pull",
        sh("cache-sign keygen other-1 other.sec other.pub; s3-pull -r --root refused --json \
         --trusted-public-key-file other.pub \"$C\" \"$TOP\""),
    ));
    for key in ["key.pub", "other.pub"] {
        let verify = "s3-pull -r --narinfo --no-verify-signatures \"$C\" \"$TOP\" | cache-sign verify --json";
        outputs.push(("cache-sign-verify", sh(&format!("{verify} --trusted-public-key-file {key}"))));
    }
    let mut statuses = Vec::new();
    for (name, output) in outputs {
        let schema = schema(name);
        let text = String::from_utf8(output).unwrap();
        assert!(!text.is_empty(), "{name}: no output");
        for line in text.lines() {
            let value: Value = serde_json::from_str(line).unwrap();
            let forms = schema["oneOf"].as_array().unwrap();
            let errors: Vec<_> = forms.iter().filter_map(|form| mismatch(&value, form)).collect();
            assert_eq!(errors.len() + 1, forms.len(), "{name}: {line} has not one form of the schema: {errors:?}");
            statuses.extend(value["status"].as_str().map(|status| format!("{name} {status}")));
        }
    }
    for status in [
        "s3-push sent",
        "s3-push present",
        "s3-pull fetched",
        "s3-pull present",
        "s3-pull would-fetch",
        "s3-pull refused",
    ] {
        assert!(statuses.iter().any(|found| found == status), "no line has {status}: {statuses:?}");
    }
}

#[test]
fn other_lines_do_not_match() {
    let form = &schema("s3-pull")["oneOf"][1];
    let matches = |text: &str| mismatch(&serde_json::from_str(text).unwrap(), form).is_none();
    assert!(matches(r#"{"path":null,"status":"refused","why":"x"}"#));
    assert!(!matches(r#"{"path":null,"status":"fetched","why":"x"}"#), "another status");
    assert!(!matches(r#"{"path":null,"status":"refused"}"#), "a field is missing");
    assert!(!matches(r#"{"path":null,"status":"refused","why":"x","more":1}"#), "an unknown field");
    assert!(!matches(r#"{"path":7,"status":"refused","why":"x"}"#), "another type");
}

fn schema(name: &str) -> Value {
    let file = repository().join("docs/schemas").join(name).with_extension("json");
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// Returns how a value differs from a schema: the keywords that the schemas of this project use.
fn mismatch(value: &Value, schema: &Value) -> Option<String> {
    let allowed = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        one => vec![one.as_str().unwrap()],
    };
    if !allowed.contains(&type_of(value)) {
        return Some(format!("{value} is not {allowed:?}"));
    }
    if schema["enum"].as_array().is_some_and(|values| !values.contains(value)) {
        return Some(format!("{value} is not one of {}", schema["enum"]));
    }
    let items = value.as_array().into_iter().flatten().find_map(|item| mismatch(item, &schema["items"]));
    items.or_else(|| fields_mismatch(value, schema))
}

fn fields_mismatch(value: &Value, schema: &Value) -> Option<String> {
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if let Some(field) = required.into_iter().find(|field| value.get(field).is_none()) {
        return Some(format!("{field} is missing"));
    }
    value.as_object()?.iter().find_map(|(field, value)| {
        match (&schema["properties"][field], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => Some(format!("{field} is unknown")),
            (Value::Null, others) => mismatch(value, others),
            (known, _) => mismatch(value, known),
        }
    })
}

/// Returns the type as schemas name it.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
