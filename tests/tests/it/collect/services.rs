//! Collecting on services that differ from S3: their clock, their times, their pages, and what they do not support.

use std::time::{Duration, SystemTime};

use cache_sign::keys::SecretKey;
use cache_tests::fault_proxy::{Fault, FaultProxy, NOT_IMPLEMENTED, Request, always, only};
use cache_tests::lying_server::{LyingServer, Response};
use cache_tests::quirks::Quirk;
use cache_tests::synthetic_bucket::{Options, SyntheticBucket};
use cache_tests::{Credentials, EmbeddedS3, Scratch};

use super::dead::set_age;
use super::delete::{DELETE, age_records, doomed_cache, narinfo_count, records};
use crate::fixtures::closure_fixture::Fixture;

const HOUR: Duration = Duration::from_hours(1);

/// Sends the requests of the fixture through a proxy.
fn go_through(fixture: &mut Fixture, s3: &EmbeddedS3, bucket: &str, proxy: &FaultProxy) {
    fixture.scratch.env("C", s3.cache_url(bucket).replace(&s3.endpoint(), proxy.endpoint()));
}

/// With the clock of the host, the first case would be deleted half an hour too early, and the second one not at all.
#[test]
fn ages_come_from_the_clock_of_the_service() {
    for (quirk, age, count) in [(Quirk::HourBehind, HOUR * 47 / 2, 3), (Quirk::HourAhead, HOUR * 24, 0)] {
        let (mut fixture, s3, bucket) = doomed_cache();
        let proxy = FaultProxy::start(&s3.endpoint(), always(Fault::Quirk(quirk)));
        go_through(&mut fixture, s3, &bucket, &proxy);
        age_records(s3, &bucket, age);
        fixture.scratch.sh(DELETE).ok();
        assert_eq!(narinfo_count(s3, &bucket), count, "{quirk:?}");
    }
}

/// A flag that was set ten minutes ago is not taken for an abandoned one, whatever the clock of the host says.
#[test]
fn the_age_of_a_flag_comes_from_the_clock_of_the_service() {
    for quirk in [Quirk::HourBehind, Quirk::HourAhead] {
        let (mut fixture, s3, bucket) = doomed_cache();
        let proxy = FaultProxy::start(&s3.endpoint(), always(Fault::Quirk(quirk)));
        go_through(&mut fixture, s3, &bucket, &proxy);
        s3.put(&bucket, "gc/sweeping", b"Owner: another\n");
        set_age(s3, &bucket, "gc/sweeping", HOUR / 6);
        assert!(fixture.scratch.sh(DELETE).fails(2).contains("another collector is deleting"), "{quirk:?}");
        assert_eq!(narinfo_count(s3, &bucket), 3, "{quirk:?}");
    }
}

/// A path that was written in the second of the record may have been written after it: times may have no fractions.
#[test]
fn a_path_written_in_the_second_of_the_record_is_not_deleted() {
    let whole_seconds = Fault::Quirk(Quirk::WholeSeconds);
    for (quirk, record, count) in [(whole_seconds, 500, 3), (Fault::Pass, 500, 3), (whole_seconds, 1500, 0)] {
        let (mut fixture, s3, bucket) = doomed_cache();
        let proxy = FaultProxy::start(&s3.endpoint(), always(quirk));
        go_through(&mut fixture, s3, &bucket, &proxy);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let second = SystemTime::UNIX_EPOCH + Duration::from_secs(now) - HOUR * 25;
        let set_time = |key: &str, milliseconds| {
            let file = std::fs::File::options().write(true).open(s3.path(&bucket, key)).unwrap();
            file.set_modified(second + Duration::from_millis(milliseconds)).unwrap();
        };
        for key in records(s3, &bucket) {
            set_time(&key, record);
        }
        for (path, milliseconds) in fixture.closure.paths().into_iter().zip([700, 700, 300]) {
            set_time(&Fixture::narinfo_key(path), milliseconds);
        }
        fixture.scratch.sh(DELETE).ok();
        assert_eq!(narinfo_count(s3, &bucket), count, "{quirk:?}, {record} ms");
    }
}

#[test]
fn single_deletions_replace_delete_objects_where_it_is_lacking() {
    let (mut fixture, s3, bucket) = doomed_cache();
    let deletes_many = |request: &Request| request.method == "POST" && request.has_parameter("delete");
    let proxy = FaultProxy::start(&s3.endpoint(), only(deletes_many, always(NOT_IMPLEMENTED)));
    go_through(&mut fixture, s3, &bucket, &proxy);
    // Two paths of which neither references the other, so that a batch has two keys.
    let key = Fixture::narinfo_key(&fixture.closure.lib);
    let text = String::from_utf8(s3.get(&bucket, &key)).unwrap();
    for digit in ["0", "1"] {
        let hash = digit.repeat(32);
        s3.put(&bucket, &format!("{hash}.narinfo"), text.replace(&key[..32], &hash).as_bytes());
        set_age(s3, &bucket, &format!("{hash}.narinfo"), HOUR * 24 * 40);
    }
    let dead = "s3-pull dead -q --older-than 30d --no-roots \"$C\" > dead";
    assert_eq!(fixture.scratch.sh(&format!("{dead}; {DELETE}")).ok().lines().count(), 3, "of the closure");
    age_records(s3, &bucket, HOUR * 24);
    assert_eq!(fixture.scratch.sh(&format!("{dead}; {DELETE}")).ok().lines().count(), 2);
    assert_eq!(narinfo_count(s3, &bucket), 0);
    assert_eq!(proxy.faults(), 1, "asked once");
}

/// Where the service ignores the condition of a write, two collectors may both write the flag: the one whose flag is not
/// there after the pause deletes nothing.
#[test]
fn of_two_collectors_on_a_service_without_conditions_one_gives_up() {
    let server: &'static EmbeddedS3 = Box::leak(Box::new(EmbeddedS3::start_ignoring_conditions()));
    for is_overwritten in [false, true] {
        let (mut fixture, original, original_bucket) = doomed_cache();
        let bucket = server.make_bucket();
        for key in original.objects(&original_bucket) {
            server.put(&bucket, &key, &original.get(&original_bucket, &key));
            set_age(server, &bucket, &key, HOUR * 24 * 40);
        }
        age_records(server, &bucket, HOUR * 25);
        server.credentials().apply(&mut fixture.scratch);
        let overwritten = bucket.clone();
        let proxy = FaultProxy::start(&server.endpoint(), move |request| {
            // The collector reads its flag back. Another one has written its own since.
            if is_overwritten && request.method == "GET" && request.key() == "gc/sweeping" {
                server.put(&overwritten, "gc/sweeping", b"Owner: another\n");
            }
            Fault::Pass
        });
        go_through(&mut fixture, server, &bucket, &proxy);
        let output = fixture.scratch.sh(DELETE);
        if is_overwritten {
            assert!(output.fails(2).contains("another collector has taken over; nothing more is deleted"));
            assert_eq!(narinfo_count(server, &bucket), 3);
            assert_eq!(server.get(&bucket, "gc/sweeping"), b"Owner: another\n", "the flag of the other one stays");
        } else {
            output.ok();
            assert_eq!(narinfo_count(server, &bucket), 0);
        }
    }
}

/// Nothing depends on the size of a page.
#[test]
fn listings_of_ten_keys_a_page_are_complete() {
    let mut scratch = Scratch::new();
    scratch.sh("cache-sign keygen synthetic-1 key.sec key.pub").ok();
    let key = SecretKey::parse(&scratch.sh("cat key.sec").ok()).unwrap();
    let bucket = SyntheticBucket::start(Options {
        paths: 230,
        page_size: 10,
        latency: Duration::ZERO,
        sign: Box::new(move |fingerprint| key.sign(fingerprint)),
    });
    Credentials::random().apply(&mut scratch);
    scratch.env("C", bucket.cache_url());
    let dead = "s3-pull dead -q --older-than 0s";
    // The pin keeps the closure of the last path.
    let kept = 230 - scratch.sh(&format!("{dead} \"$C\" | grep -c ^StorePath:")).ok().parse::<usize>().unwrap();
    assert_eq!(
        scratch
            .sh("s3-pull narinfo -q -r \"$C\" $(s3-pull pins \"$C\" all) --no-verify-signatures \
        | grep -c ^StorePath:")
            .ok(),
        kept.to_string()
    );
    scratch.sh("s3-push unpin \"$C\" all").ok();
    let delete = format!("{dead} --no-roots \"$C\" > dead; s3-push delete -q --now --max-delete 100% \"$C\" < dead");
    assert_eq!(scratch.sh(&delete).ok().lines().count(), 230);
    assert_eq!(scratch.sh(&format!("{dead} --no-roots \"$C\"")).ok(), "");
    assert!(bucket.take_counts().pages > 100);
}

/// A listing may contain any time. One that cannot be formatted is the last second of the year 9999.
#[test]
fn a_time_after_the_year_9999_is_no_panic() {
    const TIME: &str = "9999-12-31T23:59:59-01:00";
    let server = LyingServer::start(|request| match (request.method.as_str(), request.key.as_str()) {
        ("GET", "") => {
            let object =
                |key: &str| format!("<Contents><Key>{key}</Key><LastModified>{TIME}</LastModified></Contents>");
            let objects = [("prefix=gc", "gc/clock"), ("prefix=nar", "nar/x.nar")];
            let listed =
                objects.iter().filter(|(prefix, _)| request.query.contains(prefix)).map(|(_, key)| object(key));
            Response::object(format!(
                "<ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>",
                listed.collect::<String>()
            ))
        }
        ("GET", _) => Response::no_such_key(),
        _ => Response::object(""),
    });
    let mut scratch = Scratch::new();
    Credentials::random().apply(&mut scratch);
    let doomed = "NARs and other objects that no path needs: 0 deleted, 1 doomed";
    for command in ["delete --nars", "collect --no-roots --older-than 1h"] {
        let output = scratch.sh(&format!("s3-push {command} --max-delete 100% '{}' < /dev/null", server.s3_url()));
        assert!(output.stderr.contains(doomed), "{command}: {}", output.stderr);
        output.ok();
    }
}
