//! Calls of S3 by somebody, and whether they are allowed.

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Config, Credentials as Keys, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    AbortIncompleteMultipartUpload, BucketLifecycleConfiguration, CompletedMultipartUpload, CompletedPart,
    CorsConfiguration, CorsRule, ExpirationStatus, LifecycleExpiration, LifecycleRule, LifecycleRuleFilter,
};
use cache_tests::{Credentials, unique};
use serde_json::Value;
use tokio::runtime::Runtime;

/// The calls, in the order of the table in `cache-policy --help`.
pub const CALLS: [&str; 10] =
    ["GET", "HEAD", "LIST", "PUT", "MULTI", "PARTS", "ABORT", "DELETE", "LIFECYCLE", "POLICY"];

/// What a server said to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It did it.
    Yes,
    /// 403.
    No,
    /// It cannot do that at all.
    Never,
}

impl Answer {
    /// The word in a table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Never => "-",
        }
    }
}

/// Somebody at a server.
pub struct Caller {
    client: Client,
    runtime: Runtime,
}

fn answer<T, E: ProvideErrorMetadata + std::fmt::Debug>(
    result: Result<T, SdkError<E, aws_sdk_s3::config::http::HttpResponse>>,
) -> Result<T, Answer> {
    result.map_err(|error| {
        let status = error.raw_response().map(|response| response.status().as_u16());
        match (status, error.code()) {
            (Some(403), _) => Answer::No,
            (Some(501 | 405), _) | (_, Some("NotImplemented")) => Answer::Never,
            _ => panic!("neither allowed nor denied: {error:?}"),
        }
    })
}

impl Caller {
    /// Somebody with these credentials, or with none.
    pub fn new(endpoint: &str, credentials: Option<&Credentials>) -> Self {
        let http = aws_smithy_http_client::Builder::new().build_http();
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .endpoint_url(format!("http://{endpoint}"))
            .region(Region::new("us-east-1"))
            .retry_config(RetryConfig::disabled())
            .force_path_style(true);
        let config = match credentials {
            Some(Credentials { access_key, secret_key }) => {
                config.credentials_provider(Keys::new(access_key, secret_key, None, None, "test"))
            }
            None => config.allow_no_auth(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { client: Client::from_conf(config.build()), runtime }
    }

    pub fn make_bucket(&self) -> String {
        let bucket = unique("bucket-");
        self.runtime.block_on(self.client.create_bucket().bucket(&bucket).send()).unwrap();
        bucket
    }

    pub fn put(&self, bucket: &str, key: &str) -> Result<(), Answer> {
        let body = ByteStream::from_static(b"x");
        answer(self.runtime.block_on(self.client.put_object().bucket(bucket).key(key).body(body).send())).map(drop)
    }

    pub fn begin(&self, bucket: &str, key: &str) -> Result<String, Answer> {
        let request = self.client.create_multipart_upload().bucket(bucket).key(key).send();
        answer(self.runtime.block_on(request)).map(|output| output.upload_id.unwrap())
    }

    pub fn set_policy(&self, bucket: &str, policy: &str) -> Result<(), Answer> {
        let request = self.client.put_bucket_policy().bucket(bucket).policy(policy).send();
        answer(self.runtime.block_on(request)).map(drop)
    }

    /// Makes every call below `prefix`, with what it needs laid out by `owner`.
    pub fn row(&self, owner: &Self, bucket: &str, prefix: &str) -> [Answer; 10] {
        CALLS.map(|call| match self.call(call, owner, bucket, prefix) {
            Ok(()) => Answer::Yes,
            Err(answer) => answer,
        })
    }

    /// Makes one call.
    pub fn call(&self, call: &str, owner: &Self, bucket: &str, prefix: &str) -> Result<(), Answer> {
        let key = format!("{prefix}{}", unique("object-"));
        let there = || owner.put(bucket, &key).unwrap();
        let (client, run) = (&self.client, &self.runtime);
        match call {
            "GET" => {
                there();
                answer(run.block_on(client.get_object().bucket(bucket).key(&key).send())).map(drop)
            }
            "HEAD" => {
                there();
                answer(run.block_on(client.head_object().bucket(bucket).key(&key).send())).map(drop)
            }
            "LIST" => answer(run.block_on(client.list_objects_v2().bucket(bucket).prefix(prefix).send())).map(drop),
            "PUT" => self.put(bucket, &key),
            "MULTI" => {
                let id = self.begin(bucket, &key)?;
                let part = client.upload_part().bucket(bucket).key(&key).upload_id(&id).part_number(1);
                let part = answer(run.block_on(part.body(ByteStream::from_static(b"x")).send()))?;
                let part = CompletedPart::builder().part_number(1).set_e_tag(part.e_tag).build();
                let parts = CompletedMultipartUpload::builder().parts(part).build();
                let complete = client.complete_multipart_upload().bucket(bucket).key(&key).upload_id(&id);
                answer(run.block_on(complete.multipart_upload(parts).send())).map(drop)
            }
            "PARTS" => {
                let id = owner.begin(bucket, &key)?;
                let uploads = client.list_multipart_uploads().bucket(bucket).prefix(&key).send();
                let uploads = answer(run.block_on(uploads)).map(drop);
                let parts = client.list_parts().bucket(bucket).key(&key).upload_id(&id).send();
                let parts = answer(run.block_on(parts)).map(drop);
                assert_eq!(uploads, parts, "one of the two listings is allowed and the other is not");
                parts
            }
            "ABORT" => {
                let id = owner.begin(bucket, &key)?;
                let abort = client.abort_multipart_upload().bucket(bucket).key(&key).upload_id(&id).send();
                answer(run.block_on(abort)).map(drop)
            }
            "DELETE" => {
                there();
                answer(run.block_on(client.delete_object().bucket(bucket).key(&key).send())).map(drop)
            }
            "LIFECYCLE" => self.set_lifecycle(bucket),
            "POLICY" => {
                let policy = format!(
                    r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Deny","Principal":"*","Action":["s3:GetObject"],
                        "Resource":["arn:aws:s3:::{bucket}/elsewhere/*"]}}]}}"#
                );
                self.set_policy(bucket, &policy)
            }
            other => panic!("{other} is no call"),
        }
    }

    fn set_lifecycle(&self, bucket: &str) -> Result<(), Answer> {
        let rule = LifecycleRule::builder()
            .id("expire")
            .status(ExpirationStatus::Enabled)
            .filter(LifecycleRuleFilter::builder().prefix("log/").build())
            .expiration(LifecycleExpiration::builder().days(30).build())
            .build()
            .unwrap();
        let rules = BucketLifecycleConfiguration::builder().rules(rule).build().unwrap();
        let put = self.client.put_bucket_lifecycle_configuration().bucket(bucket).lifecycle_configuration(rules);
        answer(self.runtime.block_on(put.send()))?;
        let get = self.client.get_bucket_lifecycle_configuration().bucket(bucket).send();
        answer(self.runtime.block_on(get)).map(drop)
    }

    /// Lists the parts of an upload.
    pub fn list_parts(&self, bucket: &str, key: &str, id: &str) -> Result<(), Answer> {
        let parts = self.client.list_parts().bucket(bucket).key(key).upload_id(id).send();
        answer(self.runtime.block_on(parts)).map(drop)
    }

    /// Sets the rules of a CORS configuration as `aws s3api put-bucket-cors` reads one.
    pub fn set_cors(&self, bucket: &str, configuration: &Value) -> Result<(), Answer> {
        let words = |values: &Value| -> Vec<String> {
            values.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
        };
        let rule = |rule: &Value| {
            CorsRule::builder()
                .id(rule["ID"].as_str().unwrap())
                .set_allowed_origins(Some(words(&rule["AllowedOrigins"])))
                .set_allowed_methods(Some(words(&rule["AllowedMethods"])))
                .set_allowed_headers(Some(words(&rule["AllowedHeaders"])))
                .set_expose_headers(Some(words(&rule["ExposeHeaders"])))
                .max_age_seconds(i32::try_from(rule["MaxAgeSeconds"].as_i64().unwrap()).unwrap())
                .build()
                .unwrap()
        };
        let rules = configuration["CORSRules"].as_array().unwrap().iter().map(rule).collect();
        let configuration = CorsConfiguration::builder().set_cors_rules(Some(rules)).build().unwrap();
        let put = self.client.put_bucket_cors().bucket(bucket).cors_configuration(configuration).send();
        answer(self.runtime.block_on(put)).map(drop)
    }

    /// Sets a rule that gives up unfinished uploads, where the service has such rules.
    pub fn abort_after(&self, bucket: &str, days: i32) -> bool {
        let rule = LifecycleRule::builder()
            .id("abort")
            .status(ExpirationStatus::Enabled)
            .filter(LifecycleRuleFilter::builder().prefix("").build())
            .abort_incomplete_multipart_upload(
                AbortIncompleteMultipartUpload::builder().days_after_initiation(days).build(),
            )
            .build()
            .unwrap();
        let rules = BucketLifecycleConfiguration::builder().rules(rule).build().unwrap();
        let put = self.client.put_bucket_lifecycle_configuration().bucket(bucket).lifecycle_configuration(rules);
        self.runtime.block_on(put.send()).is_ok()
    }
}
