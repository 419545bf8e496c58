//! The permissions of `cache-policy --collect` suffice to collect and to unpin, and for nothing else; an uploader cannot
//! delete. On MinIO, whose users have the policies.

use cache_tests::fault_proxy::{Fault, FaultProxy, always};
use cache_tests::quirks::Quirk;
use cache_tests::{Minio, mc_target};

use crate::fixtures::bucket::{nar_keys, narinfo_keys, policy, snapshot};
use crate::fixtures::closure_fixture::{Fixture, PUBLISH};
use crate::fixtures::s3_calls::{Access, S3Client};

const COLLECT: &str = "s3-push collect --older-than 1h --max-delete 100% \"$C\"";

#[test]
fn a_collector_collects_and_writes_only_its_own_objects() {
    let Some(minio) = Minio::shared() else { return };
    let mut fixture = Fixture::new();
    let bucket = minio.make_bucket();
    let user = |flag: &str| minio.add_user(&policy(&fixture.scratch, flag, &bucket));
    let (uploader, collector) = (user("--upload"), user("--collect"));
    // Everything is a year old, except the objects below gc/.
    let proxy = FaultProxy::start(&minio.endpoint(), always(Fault::Quirk(Quirk::OldObjects)));
    fixture.scratch.env("C", minio.cache_url(&bucket).replace(&minio.endpoint(), proxy.endpoint()));
    let scratch = &mut fixture.scratch;
    // An uploader publishes and pins. It can neither unpin nor delete.
    uploader.apply(scratch);
    scratch.sh(PUBLISH).ok();
    scratch.sh("echo \"$LIB\" | s3-push pin \"$C\" main/1; echo \"$TOP\" | s3-push pin \"$C\" pr-1").ok();
    assert!(scratch.sh("s3-push unpin \"$C\" pr-1").fails(2).contains("s3:DeleteObject"));
    scratch.sh("s3-push unpin -n \"$C\" pr-1; s3-pull narinfo \"$C\" \"$TOP\" > top").ok();
    let stderr = scratch.sh("s3-push delete --now --max-delete 100% \"$C\" < top").fails(2);
    assert!(stderr.contains("s3:DeleteObject"), "{stderr}");
    assert_eq!(narinfo_keys(&snapshot(minio, &bucket)).len(), 3);
    // It learns that before it dooms anything.
    assert_eq!(minio.objects(&bucket).iter().filter(|key| key.starts_with("gc/")).collect::<Vec<_>>(), ["gc/clock"]);
    minio.mc(&["rm", "--recursive", "--force", &mc_target(&format!("{bucket}/gc"))]);
    // A collector unpins and collects, and can do nothing else.
    collector.apply(scratch);
    scratch.sh("s3-push unpin \"$C\" 'pr-*'").ok();
    assert_eq!(scratch.sh(COLLECT).ok(), "", "doomed");
    assert_eq!(scratch.sh(COLLECT).ok().lines().count(), 2, "the closure of the pin stays");
    assert_eq!(scratch.sh(COLLECT).ok(), "", "their NARs wait for the end of the grace period");
    let mut objects = snapshot(minio, &bucket);
    objects.retain(|key, _| !key.starts_with("gc/"));
    assert_eq!((narinfo_keys(&objects).len(), nar_keys(&objects).len()), (1, 3), "{:?}", objects.keys());
    scratch.sh("s3-pull --root out \"$C\" \"$LIB\"").ok();
    assert!(scratch.sh(PUBLISH).fails(2).contains("s3:PutObject"));
    assert!(scratch.sh("echo \"$LIB\" | s3-push pin \"$C\" main/2").fails(2).contains("s3:PutObject"));
    let calls = |user| S3Client::new(&minio.endpoint(), Some(user));
    for (key, put) in [
        ("nar/x.nar.zst", Err(Access::Denied)),
        ("0123456789abcdfghijklmnpqrsvwxyz.narinfo", Err(Access::Denied)),
        ("pins/main/2", Err(Access::Denied)),
        ("nix-cache-info", Err(Access::Denied)),
        ("gc/x", Ok(())),
    ] {
        assert_eq!(calls(&collector).put(&bucket, key), put, "{key}");
        assert_eq!(calls(&uploader).put(&bucket, key), Ok(()), "{key}");
    }
}
