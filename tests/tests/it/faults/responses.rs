//! Responses of S3 that no server here gives: to requests about objects that are too large for a test, and about single keys
//! of many.

use std::time::Duration;

use cache_tests::lying_server::{LyingServer, Request, Response};
use s3_push::remote::listing::list_below;
use s3_push::remote::location::Location;
use s3_push::remote::retry::RequestLimits;
use s3_push::remote::s3::{Access, Bucket};

const KEY: &str = "nar/x.nar.zst";
const CREATED: &str = "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>";
const COPIED: &str = "<CopyPartResult><ETag>\"etag\"</ETag></CopyPartResult>";
const COMPLETED: &str = "<CompleteMultipartUploadResult><ETag>\"etag-6\"</ETag></CompleteMultipartUploadResult>";

fn run<T>(server: &LyingServer, work: impl AsyncFnOnce(Bucket) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limits = RequestLimits {
        idle_timeout: Duration::from_mins(1),
        connect_timeout: Duration::from_mins(1),
        max_attempts: 1,
        max_in_flight: 4,
        is_quiet: true,
    };
    runtime.block_on(async {
        let location = Location::parse(&server.s3_url()).unwrap();
        work(Bucket::connect(location, Access::Anonymous, limits, "test").await.unwrap()).await
    })
}

fn is_upload(request: &Request, method: &str, parameter: &str) -> bool {
    request.method == method && request.query.contains(parameter)
}

/// One request copies at most 5 GiB. The copy replaces the object, so it is unconditional.
#[test]
fn an_object_of_more_than_5_gib_is_copied_in_parts() {
    let server = LyingServer::start(|request| {
        Response::object(match request.method.as_str() {
            "PUT" => COPIED,
            _ if is_upload(request, "POST", "uploadId") => COMPLETED,
            _ => CREATED,
        })
    });
    run(&server, async |bucket| bucket.copy_onto_itself(KEY, "application/x-nix-nar", 6 << 30).await).unwrap();
    let requests = server.requests();
    let parts = requests.iter().filter(|request| request.method == "PUT");
    let mut ranges: Vec<&str> = parts.filter_map(|request| request.header("x-amz-copy-source-range")).collect();
    ranges.sort_unstable();
    let expected: Vec<String> =
        (0..6_u64).map(|part| format!("bytes={}-{}", part << 30, ((part + 1) << 30) - 1)).collect();
    assert_eq!(ranges, expected);
    let completed = requests.iter().find(|request| is_upload(request, "POST", "uploadId")).unwrap();
    assert_eq!((completed.header("if-none-match"), completed.key.as_str()), (None, KEY));
}

#[test]
fn a_copy_that_fails_is_aborted() {
    for (method, parameter, cause) in
        [("PUT", "partNumber=3", "cannot copy part 3 of"), ("POST", "uploadId", "cannot complete")]
    {
        let server = LyingServer::start(move |request| match request.method.as_str() {
            _ if is_upload(request, method, parameter) => Response::access_denied(),
            "PUT" => Response::object(COPIED),
            _ => Response::object(CREATED),
        });
        let error = run(&server, async |bucket| bucket.copy_onto_itself(KEY, "x", 6 << 30).await).unwrap_err();
        assert!(error.message().contains(cause) && error.message().contains(KEY), "{error}");
        assert!(server.requests().iter().any(|request| is_upload(request, "DELETE", "uploadId")), "{cause}");
    }
    let server = LyingServer::start(|request| {
        Response::object(if request.method == "PUT" { "<CopyPartResult></CopyPartResult>" } else { CREATED })
    });
    let error = run(&server, async |bucket| bucket.copy_onto_itself(KEY, "x", 6 << 30).await).unwrap_err();
    assert!(error.message().ends_with("the response contains no ETag"), "{error}");
}

/// The response to the deletion of many keys is a success, and states the error of each key.
#[test]
fn a_key_that_the_service_does_not_delete_is_an_error() {
    let failed = "<DeleteResult><Error><Key>b.narinfo</Key><Code>AccessDenied</Code><Message>denied</Message></Error>\
                  </DeleteResult>";
    for (response, cause) in [(failed, Some("b.narinfo: denied")), ("<DeleteResult></DeleteResult>", None)] {
        let server = LyingServer::start(move |_| Response::object(response));
        let keys = ["a.narinfo".to_owned(), "b.narinfo".to_owned()];
        let result = run(&server, async |bucket| bucket.delete(&keys).await);
        match cause {
            Some(cause) => assert!(result.unwrap_err().message().ends_with(cause)),
            None => result.unwrap(),
        }
    }
}

/// Where the connection ends the response, only the document shows that it is cut.
#[test]
fn a_listing_that_ends_early_is_an_error() {
    let object = |key: &str| {
        format!(
            "<Contents><Key>{key}</Key><LastModified>2026-11-27T00:00:00.000Z</LastModified><Size>1</Size></Contents>"
        )
    };
    let whole = format!(
        "<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>false</IsTruncated>{}{}</ListBucketResult>",
        object("pins/a"),
        object("pins/b")
    );
    let list = |body: String, is_closed: bool| {
        let respond = if is_closed { Response::without_length } else { Response::object };
        let server = LyingServer::start(move |_| respond(body.clone()));
        run(&server, async |bucket| list_below(&bucket, "pins/").await)
    };
    for is_closed in [false, true] {
        assert_eq!(list(whole.clone(), is_closed).unwrap().len(), 2);
        for end in ["</ListBucketResult>", "</Contents></ListBucketResult>", "<Contents><Key>pins/b"] {
            let cut = whole.rfind(end).unwrap();
            for cut in [cut, cut + 2] {
                let error = list(whole[..cut].to_owned(), is_closed).unwrap_err();
                assert!(error.message().contains("cannot list") && error.message().contains("truncated"), "{error}");
            }
        }
    }
}
