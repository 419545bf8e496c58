//! `s3-pull stats`: the figures are those of the narinfos and pins.

use std::time::Duration;

use serde_json::Value;

use super::dead::set_age;
use crate::fixtures::bucket::{Fields, snapshot};
use crate::fixtures::closure_fixture::{Fixture, PUBLISH};
use crate::fixtures::web_page::WebPage;

fn stats(fixture: &Fixture) -> Value {
    serde_json::from_str(&fixture.scratch.sh("s3-pull stats --json \"$C\"").ok()).unwrap()
}

/// The sum of a field of the narinfos of these paths.
fn sum(narinfos: &[Fields], field: &str) -> u64 {
    narinfos.iter().map(|narinfo| narinfo.one(field).parse::<u64>().unwrap()).sum()
}

#[test]
fn the_figures_are_those_of_the_narinfos() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let empty = stats(&fixture);
    assert_eq!((&empty["version"], &empty["paths"], &empty["byMonth"]), (&1.into(), &0.into(), &Value::Array(vec![])));
    fixture.scratch.sh(PUBLISH).ok();
    fixture.scratch.sh("nar-pack --root root \"$LIB\" > lib.nar; s3-push -q --no-nix --name lib \"$C\" < lib.nar").ok();
    let closure = &fixture.closure;
    // January 1970, which no other path has.
    let lib = Fixture::narinfo_key(&closure.lib);
    let age = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let age = age.saturating_sub(Duration::from_mins(1));
    set_age(s3, &bucket, &lib, age);
    let objects = snapshot(s3, &bucket);
    let of = |path: &String| Fields::parse(&objects[&Fixture::narinfo_key(path)]);
    let all: Vec<Fields> =
        objects.iter().filter(|(key, _)| key.ends_with(".narinfo")).map(|(_, text)| Fields::parse(text)).collect();
    let found = stats(&fixture);
    assert_eq!(found["paths"], 4);
    assert_eq!(found["narSize"], sum(&all, "NarSize"));
    let nars: u64 = objects.iter().filter(|(key, _)| key.starts_with("nar/")).map(|(_, nar)| nar.len() as u64).sum();
    assert_eq!(found["fileSize"], nars, "a shared NAR counts once");
    assert_eq!(found["byMonth"][0]["month"], "1970-01");
    assert_eq!(found["byMonth"][0]["narSize"], sum(&[of(&closure.lib)], "NarSize"));
    assert_eq!(found["byMonth"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&found["byCompression"][0]["compression"], &found["byCompression"][0]["paths"]),
        (&"zstd".into(), &4.into())
    );
    let signers = found["bySigner"].as_array().unwrap();
    assert_eq!((&signers[0]["key"], &signers[0]["paths"]), (&Value::Null, &1.into()));
    assert_eq!(signers[1]["key"], fixture.key.split(':').next().unwrap());
    assert_eq!(signers[1]["paths"], 3);
    let top = &found["largestClosures"][0];
    let three = [of(&closure.lib), of(&closure.app), of(&closure.top)];
    assert_eq!((&top["path"], &top["paths"]), (&closure.top.as_str().into(), &3.into()));
    assert_eq!(top["closureSize"], sum(&three, "NarSize"));
    assert_eq!(top["closureDownloadSize"], sum(&three, "FileSize"));
    assert_eq!((&found["closuresExamined"], &found["closuresTotal"]), (&2.into(), &2.into()));
    let mut by_size = all.iter().collect::<Vec<_>>();
    by_size.sort_by_key(|narinfo| std::cmp::Reverse(narinfo.one("NarSize").parse::<u64>().unwrap()));
    let largest = &found["largestPaths"];
    assert_eq!((largest.as_array().unwrap().len(), &largest[0]["path"]), (4, &by_size[0].one("StorePath").into()));
    assert_eq!(largest[0]["narSize"].to_string(), by_size[0].one("NarSize"));
    assert_eq!(largest[0]["fileSize"].to_string(), by_size[0].one("FileSize"));
    let tables = fixture.scratch.sh("s3-pull stats \"$C\"").ok();
    for part in ["1970-01", "zstd", "(unsigned)", &closure.top, "(no pin)"] {
        assert!(tables.contains(part), "{part}: {tables}");
    }
}

#[test]
fn a_pin_keeps_alone_what_no_other_pin_keeps() {
    let (fixture, ..) = Fixture::embedded();
    fixture.scratch.sh(PUBLISH).ok();
    fixture.scratch.sh("echo \"$LIB\" | s3-push pin -q \"$C\" a; echo \"$TOP\" | s3-push pin -q \"$C\" main/2").ok();
    let found = stats(&fixture);
    let pins: Vec<(&str, u64)> = found["pins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pin| (pin["name"].as_str().unwrap(), pin["paths"].as_u64().unwrap()))
        .collect();
    assert_eq!(pins, [("a", 0), ("main/2", 2)]);
    assert_eq!(found["unpinned"]["paths"], 0);
    fixture.scratch.sh("s3-push unpin -q \"$C\" 'main/*'").ok();
    let found = stats(&fixture);
    assert_eq!((&found["pins"][0]["paths"], &found["unpinned"]["paths"]), (&1.into(), &2.into()));
}

/// The page has the figures of the JSON, and what is in the cache is text on it.
#[test]
fn the_report_is_a_page_of_its_own() {
    let (fixture, s3, bucket) = Fixture::embedded();
    let report = || {
        let page = fixture.scratch.sh("s3-pull stats --html \"$C\"").ok() + "\n";
        let page = WebPage::parse(&page);
        page.assert_valid_and_self_contained(&[]);
        page
    };
    assert!(report().texts("p").contains(&"The cache is empty."));
    fixture.scratch.sh(PUBLISH).ok();
    fixture.scratch.sh("echo \"$LIB\" | s3-push pin -q \"$C\" main/1").ok();
    // Anybody who may write can add a signature.
    let name = "</bdi><script>alert(1)</script><img/src=x/onerror='x'>\"&lt;\u{202e}";
    let key = Fixture::narinfo_key(&fixture.closure.top);
    let narinfo = String::from_utf8(s3.get(&bucket, &key)).unwrap();
    s3.put(&bucket, &key, format!("{narinfo}Sig: {name}:AAAA\n").as_bytes());
    let (page, found) = (report(), stats(&fixture));
    let cells = page.texts("bdi");
    assert!(found["bySigner"].as_array().unwrap().iter().any(|signer| signer["key"] == name), "{found}");
    for text in [name, "zstd", "this month", "main/1", fixture.key.split(':').next().unwrap()] {
        assert!(cells.contains(&text), "{text}: {cells:?}");
    }
    for path in [&fixture.closure.top, &fixture.closure.app, &fixture.closure.lib] {
        assert!(cells.contains(&path.as_str()), "{path}: {cells:?}");
    }
    let figures = page.texts("dd");
    assert_eq!(figures[0], found["paths"].to_string());
    assert!(page.texts("p").iter().any(|text| text.starts_with("Pins keep 1 of 3 paths: ")), "{:?}", page.texts("p"));
    assert_eq!(page.elements("svg").len(), 2);
    fixture.scratch.sh("s3-pull stats --html --json \"$C\"").fails(2);
}

#[test]
fn what_cannot_be_read_is_an_error_without_output() {
    for (key, bytes) in [("pins/x", &b"not a path\n"[..]), ("00000000000000000000000000000000.narinfo", b"x")] {
        let (fixture, s3, bucket) = Fixture::embedded();
        fixture.scratch.sh(PUBLISH).ok();
        s3.put(&bucket, key, bytes);
        let output = fixture.scratch.sh("s3-pull stats \"$C\"");
        assert_eq!(output.text(), "");
        assert!(output.fails(2).contains(key));
    }
}
