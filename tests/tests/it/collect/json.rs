//! The JSON output of the collection.

use std::time::Duration;

use serde_json::json;

use super::dead::old_cache;
use super::delete::{DEAD, DELETE, age_records, doomed_cache};
use super::unneeded::DELETE_NARS;
use crate::docs::json::assert_lines_match;

const COLLECT: &str = "s3-push collect --json --older-than 30d --max-delete 100% --no-roots \"$C\"";

#[test]
fn output_of_the_collection_matches_its_schema() {
    let (fixture, s3, bucket) = old_cache();
    let check = |name: &str, script: &str| assert_lines_match(name, &fixture.scratch.sh(script).stdout);
    let dead = check("s3-pull-narinfo", "s3-pull dead --json --older-than 30d --no-roots \"$C\"");
    assert_eq!((dead.len(), &dead[3]["summary"]), (4, &json!({ "paths": 3, "dead": 3 })));
    let delete = format!("{DEAD}; {}", DELETE.replacen("delete", "delete --json", 1));
    let doomed = check("s3-push-delete", &delete);
    assert_eq!((doomed.len(), &doomed[0]["summary"]["paths"]["doomed"]), (1, &json!(3)));
    age_records(s3, &bucket, Duration::from_hours(24));
    let deleted = check("s3-push-delete", &delete);
    assert_eq!((deleted.len(), &deleted[3]["summary"]["paths"]["deleted"]), (4, &json!(3)));
    let nars = check("s3-push-delete", &DELETE_NARS.replace("--nars", "--nars --json"));
    assert_eq!(nars[0]["summary"]["objects"]["doomed"], 3);
}

#[test]
fn output_of_collect_matches_its_schema() {
    let (fixture, _, _) = doomed_cache();
    let lines = assert_lines_match("s3-push-delete", &fixture.scratch.sh(COLLECT).stdout);
    let summary = &lines.last().unwrap()["summary"];
    assert_eq!((&summary["paths"]["deleted"], &summary["objects"]["doomed"]), (&json!(3), &json!(3)));
}
