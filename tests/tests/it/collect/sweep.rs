//! What others write between the first listing of a collector and its deletion: it lists again after it has set its flag.

use std::collections::HashMap;
use std::fs;
use std::time::SystemTime;

use cache_tests::EmbeddedS3;
use cache_tests::fault_proxy::{ACCESS_DENIED, Fault, FaultProxy, Request, always, only};

use super::delete::{DELETE, doomed_cache, narinfo_count, records};
use super::unneeded::{DELETE_NARS, cache_of_doomed_nars, keys_below};
use crate::fixtures::bucket::{assert_closed, snapshot};
use crate::fixtures::closure_fixture::Fixture;

/// Sends requests through a proxy that calls `event` when a collector writes its flag. Keep the proxy.
pub fn on_flag(
    fixture: &mut Fixture,
    s3: &'static EmbeddedS3,
    bucket: &str,
    event: impl Fn() + Send + Sync + 'static,
) -> FaultProxy {
    let proxy = FaultProxy::start(&s3.endpoint(), move |request| {
        if request.method == "PUT" && request.key() == "gc/sweeping" {
            event();
        }
        Fault::Pass
    });
    fixture.scratch.env("C", s3.cache_url(bucket).replace(&s3.endpoint(), proxy.endpoint()));
    proxy
}

/// Returns the narinfos of the list of dead paths by their paths.
fn dead_narinfos(fixture: &Fixture) -> HashMap<String, String> {
    let text = fs::read_to_string(fixture.path("dead")).unwrap();
    let texts = text.split("\n\n").map(|text| text.trim_end().to_owned() + "\n");
    texts.map(|text| (text.lines().next().unwrap()["StorePath: ".len()..].to_owned(), text)).collect()
}

#[test]
fn a_path_that_was_published_after_the_first_listing_keeps_its_references() {
    let (mut fixture, s3, bucket) = doomed_cache();
    let key = Fixture::narinfo_key(&fixture.closure.app);
    // A path that is not in the list, by a pusher that knows nothing of the protocol. It references lib.
    let other = "0".repeat(32);
    let text = String::from_utf8(s3.get(&bucket, &key)).unwrap().replace(&key[..32], &other);
    let target = bucket.clone();
    let event = move || s3.put(&target, &format!("{other}.narinfo"), text.as_bytes());
    let _proxy = on_flag(&mut fixture, s3, &bucket, event);
    assert_eq!(fixture.scratch.sh(DELETE).ok(), [&*fixture.closure.top, &fixture.closure.app].join("\n"));
    assert_eq!(narinfo_count(s3, &bucket), 2);
    let mut objects = snapshot(s3, &bucket);
    objects.retain(|key, _| !key.starts_with("gc/"));
    assert_closed(&objects);
}

#[test]
fn a_nar_that_is_needed_or_written_after_the_first_listing_stays() {
    let (mut fixture, s3, bucket) = cache_of_doomed_nars();
    let narinfos = dead_narinfos(&fixture);
    let nar = |path: &str| narinfos[path].lines().find_map(|line| line.strip_prefix("URL: ")).unwrap().to_owned();
    // Lib is needed again, and the NAR of app is written again.
    let (key, text) = (Fixture::narinfo_key(&fixture.closure.lib), narinfos[&fixture.closure.lib].clone());
    let written = s3.path(&bucket, &nar(&fixture.closure.app));
    let target = bucket.clone();
    let event = move || {
        s3.put(&target, &key, text.as_bytes());
        fs::File::options().write(true).open(&written).unwrap().set_modified(SystemTime::now()).unwrap();
    };
    let _proxy = on_flag(&mut fixture, s3, &bucket, event);
    assert_eq!(fixture.scratch.sh(DELETE_NARS).ok(), nar(&fixture.closure.top));
    assert_eq!(keys_below(s3, &bucket, "nar/").len(), 2);
}

/// Another collector removes old records while this one prepares the deletion: a push that starts then does not know that
/// the paths are doomed, and relies on them.
#[test]
fn nothing_is_deleted_if_a_record_was_removed_after_it_was_read() {
    let (mut fixture, s3, bucket) = doomed_cache();
    let [record] = records(s3, &bucket).try_into().unwrap();
    let target = bucket.clone();
    let event = move || {
        if s3.objects(&target).contains(&record) {
            s3.remove(&target, &record);
        }
    };
    let _proxy = on_flag(&mut fixture, s3, &bucket, event);
    let output = fixture.scratch.sh(DELETE);
    assert!(output.stderr.contains("because another collector removed records meanwhile"), "{}", output.stderr);
    assert_eq!((output.ok().as_str(), narinfo_count(s3, &bucket)), ("", 3));
    assert!(!s3.objects(&bucket).contains(&"gc/sweeping".to_owned()));
}

/// What `collect` has deleted is printed, although its second step fails.
#[test]
fn deleted_paths_are_printed_before_the_nars_are_looked_at() {
    let (mut fixture, s3, bucket) = doomed_cache();
    let lists_nars = |request: &Request| request.query.contains("prefix=nar");
    let proxy = FaultProxy::start(&s3.endpoint(), only(lists_nars, always(ACCESS_DENIED)));
    fixture.scratch.env("C", s3.cache_url(&bucket).replace(&s3.endpoint(), proxy.endpoint()));
    let closure = &fixture.closure;
    let output = fixture.scratch.sh("s3-push collect --older-than 30d --max-delete 100% --no-roots \"$C\"");
    assert_eq!(output.text().trim_end(), [&*closure.top, &closure.app, &closure.lib].join("\n"));
    output.fails(2);
}
