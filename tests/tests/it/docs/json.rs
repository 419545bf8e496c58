//! The JSON output of the tools has the form of the schemas in docs/schemas.

use std::fs;

use crate::fixtures::closure_fixture::{ARCHIVE, Fixture};
use cache_tests::repository;
use serde_json::{Value, json};

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
        for value in assert_lines_match(name, &output) {
            statuses.extend(value["status"].as_str().map(|status| format!("{name} {status}")));
        }
    }
    for status in [
        "s3-push would-send",
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
fn output_of_every_mode_matches_its_schema() {
    let (fixture, _, _) = Fixture::embedded();
    let sh = |script: &str| fixture.scratch.sh(script).stdout;
    let check = |name: &str, script: &str| assert_lines_match(name, &sh(script));
    let missing = check("s3-push-missing", "s3-push --missing --json \"$C\" < paths");
    assert_eq!((missing.len(), &missing[3]["summary"]["missing"]), (4, &json!(3)));
    sh(&format!("{ARCHIVE} | s3-push --no-nix \"$C\""));
    assert_eq!(check("s3-push-missing", "s3-push --missing --json \"$C\" < paths").len(), 1, "only the summary");
    for (flag, status) in [("--dry-run", "would-send"), ("", "sent")] {
        let lines = check("s3-push-object", &format!("echo x | s3-push --json {flag} --key log/x \"$C\""));
        assert_eq!(lines[0]["status"], status);
    }
    let planned = check("s3-push-object", "s3-push --json --dry-run --set-cache-info --priority 30 \"$C\"");
    assert_eq!(planned[0]["status"], "would-change");
    for status in ["changed", "unchanged"] {
        let lines = check("s3-push-object", "s3-push --json --set-cache-info --priority 30 \"$C\"");
        assert_eq!(lines[0]["status"], status);
    }
    assert_eq!(check("s3-pull-list", "s3-pull list --json --all \"$C\"").len(), 4);
    assert_eq!(check("s3-pull-list", "s3-pull list --json -r \"$C\" \"$TOP\"").len(), 4);
    assert_eq!(check("s3-pull-narinfo", "s3-pull narinfo --json --all \"$C\"").len(), 4);
    let narinfos = check("s3-pull-narinfo", "s3-pull narinfo --json -r \"$C\" \"$TOP\"");
    assert_eq!(narinfos[1]["references"], json!([fixture.closure.lib]), "references first, as full paths");
    check("s3-push-pins", "echo \"$TOP\" | s3-push pin --json \"$C\" main/1");
    assert_eq!(check("s3-pull-pins", "s3-pull pins --json \"$C\"")[0]["name"], "main/1");
    assert_eq!(check("s3-pull-pins", "s3-pull pins --json \"$C\" main/1")[0]["path"], *fixture.closure.top);
    check("s3-pull-stats", "s3-pull stats --json \"$C\"");
    assert_eq!(check("s3-push-pins", "s3-push unpin --dry-run --json \"$C\" '*'")[0]["status"], "would-remove");
    assert_eq!(check("s3-push-pins", "s3-push unpin --json \"$C\" '*'")[0]["status"], "removed");
    assert_eq!(check("s3-pull-check", "s3-pull check --json \"$C\"").len(), 1, "only the summary");
    sh("s3-push --key unknown/x \"$C\" < paths");
    let findings = check("s3-pull-check", "s3-pull check --json --no-verify-signatures \"$C\"");
    assert_eq!(findings[0]["reason"], "foreign-object");
}

#[test]
fn errors_are_json_with_json() {
    let (fixture, _, _) = Fixture::embedded();
    let error = |script: &str, status: i32| {
        let output = fixture.scratch.sh(script);
        assert_eq!((output.status, output.text().as_str()), (status, ""), "{script}: {output:?}");
        let last = output.stderr.lines().last().unwrap_or_default().to_owned();
        assert_lines_match("error", last.as_bytes()).remove(0)["error"].clone()
    };
    let refused = error("s3-pull list --json \"$C\" \"$TOP\"", 1);
    assert_eq!((&refused["tool"], &refused["kind"]), (&json!("s3-pull"), &json!("refused")));
    let failed = error("s3-pull stats --json --attempts 1 \"${C%%\\?*}?endpoint=http://127.0.0.1:1\"", 2);
    assert_eq!(failed["kind"], "failed");
    let usage = error("s3-push --json --no-such-option", 2);
    assert_eq!((&usage["kind"], &usage["hint"]), (&json!("usage"), &json!("run 's3-push --help' for usage")));
    let stream = error("s3-pull --export --json \"$C\" \"$TOP\"", 2);
    assert_eq!(stream["hint"], "use --json only with --root, --narinfo, --list");
    error("s3-push unpin --json \"$C\" none", 1);
    error("echo \"$TOP\" | s3-push pin --json \"$C\" main/1", 1);
}

#[test]
fn every_schema_is_documented() {
    let page = fs::read_to_string(repository().join("docs/json.md")).unwrap();
    for entry in fs::read_dir(repository().join("docs/schemas")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(page.contains(&format!("(schemas/{name})")), "docs/json.md does not link {name}");
    }
}

#[test]
fn other_lines_do_not_match() {
    let form = &schema("s3-pull")["oneOf"][1];
    let matches = |text: &str| mismatch(&serde_json::from_str(text).unwrap(), form).is_none();
    assert!(matches(r#"{"version":1,"path":null,"status":"refused","why":"x"}"#));
    assert!(!matches(r#"{"version":1,"path":null,"status":"fetched","why":"x"}"#), "another status");
    assert!(!matches(r#"{"version":1,"path":null,"status":"refused"}"#), "a field is missing");
    assert!(!matches(r#"{"version":1,"path":null,"status":"refused","why":"x","more":1}"#), "an unknown field");
    assert!(!matches(r#"{"version":1,"path":7,"status":"refused","why":"x"}"#), "another type");
}

/// Asserts that each line has exactly one form of the schema, and that there is a line; returns the lines.
#[track_caller]
pub fn assert_lines_match(name: &str, output: &[u8]) -> Vec<Value> {
    let (schema, text) = (schema(name), std::str::from_utf8(output).unwrap());
    assert!(!text.is_empty(), "{name}: no output");
    let lines = text.lines().map(|line| {
        let value: Value = serde_json::from_str(line).unwrap();
        let forms = schema["oneOf"].as_array().unwrap();
        let errors: Vec<_> = forms.iter().filter_map(|form| mismatch(&value, form)).collect();
        assert_eq!(errors.len() + 1, forms.len(), "{name}: {line} has not one form of the schema: {errors:?}");
        value
    });
    lines.collect()
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
