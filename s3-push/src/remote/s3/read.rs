//! Reading from a bucket: objects, their sizes, and listings.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::Client;
use aws_sdk_s3::types::ServerSideEncryption;
use futures_util::{FutureExt, StreamExt, stream};
use nar_pack::error::{Error, Result};

use super::errors::{is_forbidden, status};
use super::{Bucket, RequestKind};
use crate::remote::reader::{SmallObject, TextObject, read_small};
use crate::remote::transfer::{ByteRange, ObjectStream, Response, parse_content_range};

/// The last second of the year 9999, the latest time that can be formatted. A listing may contain any.
const MAX_TIME: Duration = Duration::from_secs(253_402_300_799);

/// What the service reports about an object without sending it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHead {
    /// Its size in bytes.
    pub size: u64,
    /// Its entity tag without quotes, unless the object is encrypted with a key of KMS or of the client: such a tag is no
    /// MD5 hash, although it may look like one.
    pub md5_etag: Option<String>,
    /// Its entity tag as the service sent it, for conditions.
    pub etag: Option<String>,
}

/// An object of a listing.
#[derive(Debug, Clone)]
pub struct ListedObject {
    /// The key, relative to the prefix.
    pub key: String,
    /// The entity tag without quotes; empty if the service does not send it.
    pub etag: String,
    /// The size in bytes; none if the service does not send it.
    pub size: Option<u64>,
    /// When it was written, by the clock of the service, in whole seconds; none if the service does not send it.
    pub last_modified: Option<SystemTime>,
}

/// Which keys a listing contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListDepth {
    /// Those that contain no slash after the prefix.
    One,
    /// All that begin with the prefix.
    All,
}

/// Where a page of a listing starts.
#[derive(Debug, Clone)]
pub enum ListFrom {
    /// With the first key.
    Beginning,
    /// With the first key after this one.
    After(String),
    /// Where the page that returned this continuation token ended.
    Page(String),
}

/// One page of a listing.
pub struct Page {
    /// The objects, at most 1,000.
    pub entries: Vec<ListedObject>,
    /// The prefixes, up to and including the next slash, of keys that are too deep for the listing.
    pub prefixes: Vec<String>,
    /// The continuation token for the next page, if there is one.
    pub next: Option<String>,
}

impl ListedObject {
    /// Returns when the object was written.
    ///
    /// # Errors
    /// Fails if the service does not report it.
    pub fn time_written(&self, bucket: &Bucket) -> Result<SystemTime> {
        let unknown = || Error::failed(format!("{}: its time is unknown", bucket.display_url(&self.key)));
        self.last_modified.ok_or_else(unknown)
    }
}

impl Bucket {
    /// Requests an object or a range of it, optionally on condition that its entity tag is still `etag`.
    pub(in crate::remote) async fn get(
        &self,
        key: &str,
        range: Option<ByteRange>,
        etag: Option<&str>,
    ) -> Result<Response> {
        let request = |client: &Client| {
            let request = client.get_object().bucket(&self.location.bucket).key(self.location.key(key));
            request.set_range(range.map(ByteRange::header)).set_if_match(etag.map(str::to_owned)).send()
        };
        let (result, permit) = self.send_read(RequestKind::Get, request).await;
        let output = match result {
            Ok(output) => output,
            Err(error) if etag.is_some() && status(&error) == Some(412) => return Ok(Response::Changed),
            Err(error) if range.is_some() && status(&error) == Some(416) => return Ok(Response::Changed),
            Err(error) => return self.missing(&error, "read", key).map(|()| Response::Missing),
        };
        self.is_readable.store(true, Ordering::Relaxed);
        let url = self.display_url(key);
        let invalid =
            || Error::failed(format!("cannot read {url}: the server sent a range without a valid Content-Range"));
        let part = match output.content_range.as_deref() {
            Some(value) => Some(parse_content_range(value).ok_or_else(invalid)?),
            None => None,
        };
        let size = output.content_length.and_then(|size| u64::try_from(size).ok());
        let bytes = stream::unfold(output.body, |mut body| async { body.next().await.map(|bytes| (bytes, body)) });
        let limits = self.limits;
        let failed = move |error| Self::body_error(&url, limits, &error);
        Ok(Response::Object(ObjectStream {
            start: part.map_or(0, |(start, _)| start),
            partial: part.is_some(),
            size: part.map_or(size, |(_, size)| Some(size)),
            etag: output.e_tag,
            content_encoding: output.content_encoding,
            bytes: bytes.map(move |bytes| bytes.map_err(&failed)).boxed(),
            permit,
        }))
    }

    /// Reads an object of UTF-8 text of at most `max_size` bytes, decoding its `Content-Encoding`. Returns none if it
    /// does not exist.
    ///
    /// # Errors
    /// Fails if the service or the network does, or if the bucket does not exist; refuses a larger object and one that is
    /// not text.
    pub async fn get_text(&self, key: &str, max_size: usize) -> Result<Option<TextObject>> {
        let object = self.get_small(key, max_size).await?;
        object.map(|object| object.into_text(&self.display_url(key))).transpose()
    }

    /// Reads an object of at most `max_size` bytes, decoding its `Content-Encoding`. Returns none if it does not exist.
    pub(in crate::remote) async fn get_small(&self, key: &str, max_size: usize) -> Result<Option<SmallObject>> {
        read_small(|| self.get(key, None, None).boxed(), &self.display_url(key), self.max_attempts(), max_size).await
    }

    /// Returns the size of an object in bytes, or none if it does not exist.
    ///
    /// # Errors
    /// Fails if the service or the network does, or if the bucket does not exist.
    pub async fn size(&self, key: &str) -> Result<Option<u64>> {
        Ok(self.head(key).await?.map(|object| object.size))
    }

    /// Returns what the service reports about an object, or none if it does not exist.
    ///
    /// # Errors
    /// See [`Bucket::size`].
    pub async fn head(&self, key: &str) -> Result<Option<ObjectHead>> {
        let request =
            |client: &Client| client.head_object().bucket(&self.location.bucket).key(self.location.key(key)).send();
        match self.send_read(RequestKind::Head, request).await.0 {
            Ok(output) => {
                let size = output.content_length.and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
                let is_md5 = output.sse_customer_algorithm.is_none()
                    && matches!(output.server_side_encryption, None | Some(ServerSideEncryption::Aes256));
                let etag = output.e_tag;
                let md5_etag = etag.as_ref().filter(|_| is_md5).map(|etag| etag.trim_matches('"').to_owned());
                Ok(Some(ObjectHead { size, md5_etag, etag }))
            }
            Err(error) => self.missing(&error, "look up", key).map(|()| None),
        }
    }

    /// Lists one page of the keys that begin with `prefix` and contain no slash after it. Returns none if listing is
    /// forbidden.
    ///
    /// # Errors
    /// Fails if the service or the network does.
    pub async fn list(&self, prefix: &str, from: ListFrom) -> Result<Option<Page>> {
        self.list_to_depth(prefix, ListDepth::One, from).await
    }

    /// Lists one page of the keys that begin with `prefix`. Returns none if listing is forbidden.
    ///
    /// # Errors
    /// Fails if the service or the network does.
    pub async fn list_to_depth(&self, prefix: &str, depth: ListDepth, from: ListFrom) -> Result<Option<Page>> {
        let (after, token) = match from {
            ListFrom::Beginning => (None, None),
            ListFrom::After(key) => (Some(self.location.key(&key)), None),
            ListFrom::Page(token) => (None, Some(token)),
        };
        let delimiter = (depth == ListDepth::One).then(|| "/".to_owned());
        let request = |client: &Client| {
            let request = client.list_objects_v2().bucket(&self.location.bucket).prefix(self.location.key(prefix));
            let request = request.set_delimiter(delimiter.clone()).set_start_after(after.clone());
            request.set_continuation_token(token.clone()).send()
        };
        let output = match self.send_read(RequestKind::List, request).await.0 {
            Ok(output) => output,
            Err(error) if is_forbidden(&error) => return Ok(None),
            Err(error) => return Err(self.error(&error, "list", prefix)),
        };
        let is_truncated = output.is_truncated == Some(true);
        let next = output.next_continuation_token.filter(|_| is_truncated);
        if is_truncated && next.is_none() {
            let url = self.display_url(prefix);
            return Err(Error::failed(format!("cannot list {url}: the server sent a truncated page without a token")));
        }
        let entries = output.contents.unwrap_or_default().into_iter().filter_map(|entry| {
            let key = entry.key?.strip_prefix(&self.location.prefix)?.to_owned();
            let etag = entry.e_tag.unwrap_or_default().trim_matches('"').to_owned();
            let seconds = entry.last_modified.and_then(|time| u64::try_from(time.secs()).ok());
            let since = seconds.map(|seconds| Duration::from_secs(seconds).min(MAX_TIME));
            let last_modified = since.map(|since| SystemTime::UNIX_EPOCH + since);
            let size = entry.size.and_then(|size| u64::try_from(size).ok());
            Some(ListedObject { key, etag, size, last_modified })
        });
        let prefixes = output.common_prefixes.unwrap_or_default().into_iter();
        let prefixes =
            prefixes.filter_map(|common| Some(common.prefix?.strip_prefix(&self.location.prefix)?.to_owned()));
        Ok(Some(Page { entries: entries.collect(), prefixes: prefixes.collect(), next }))
    }
}
