//! Reading from a bucket: objects, their sizes, and listings.

use std::sync::atomic::Ordering;

use aws_sdk_s3::error::ProvideErrorMetadata;
use futures_util::{FutureExt, StreamExt, stream};
use nar_pack::error::{Error, Result};

use super::errors::status;
use super::{Bucket, RequestKind};
use crate::remote::reader::{SmallObject, TextObject, read_small};
use crate::remote::transfer::{ByteRange, ObjectStream, Response, parse_content_range};

/// An object of a listing.
#[derive(Debug, Clone)]
pub struct ListedObject {
    /// The key, relative to the prefix.
    pub key: String,
    /// The entity tag without quotes; empty if the service does not send it.
    pub etag: String,
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
    /// The continuation token for the next page, if there is one.
    pub next: Option<String>,
}

impl Bucket {
    /// Requests an object or a range of it, optionally on condition that its entity tag is still `etag`.
    pub(in crate::remote) async fn get(
        &self,
        key: &str,
        range: Option<ByteRange>,
        etag: Option<&str>,
    ) -> Result<Response> {
        let request = self
            .client
            .get_object()
            .bucket(&self.location.bucket)
            .key(self.location.key(key))
            .set_range(range.map(ByteRange::header))
            .set_if_match(etag.map(str::to_owned));
        let (result, permit) = self.send_keeping_permit(RequestKind::Get, request.send()).await;
        let output = match result {
            Ok(output) => output,
            Err(error) if etag.is_some() && status(&error) == Some(412) => return Ok(Response::Changed),
            Err(error) if range.is_some() && status(&error) == Some(416) => return Ok(Response::Changed),
            Err(error) => return self.missing(&error, "reading", key).map(|()| Response::Missing),
        };
        self.is_readable.store(true, Ordering::Relaxed);
        let url = self.display_url(key);
        let invalid = || Error::failed(format!("reading {url}: the server sent a range without a valid Content-Range"));
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
        let request = self.client.head_object().bucket(&self.location.bucket).key(self.location.key(key));
        match self.send(RequestKind::Head, request.send()).await {
            Ok(output) => Ok(Some(output.content_length.and_then(|size| u64::try_from(size).ok()).unwrap_or(0))),
            Err(error) => self.missing(&error, "looking for", key).map(|()| None),
        }
    }

    /// Lists one page of the keys that begin with `prefix` and contain no slash after it. Returns none if listing is
    /// forbidden.
    ///
    /// # Errors
    /// Fails if the service or the network does.
    pub async fn list(&self, prefix: &str, from: ListFrom) -> Result<Option<Page>> {
        self.list_page(prefix, from, Some("/")).await
    }

    /// Lists one page of all keys that begin with `prefix`. Returns none if listing is forbidden.
    ///
    /// # Errors
    /// See [`Bucket::list`].
    pub async fn list_flat(&self, prefix: &str, from: ListFrom) -> Result<Option<Page>> {
        self.list_page(prefix, from, None).await
    }

    async fn list_page(&self, prefix: &str, from: ListFrom, delimiter: Option<&str>) -> Result<Option<Page>> {
        let (after, token) = match from {
            ListFrom::Beginning => (None, None),
            ListFrom::After(key) => (Some(self.location.key(&key)), None),
            ListFrom::Page(token) => (None, Some(token)),
        };
        let request = self
            .client
            .list_objects_v2()
            .bucket(&self.location.bucket)
            .prefix(self.location.key(prefix))
            .set_delimiter(delimiter.map(str::to_owned))
            .set_start_after(after)
            .set_continuation_token(token);
        let output = match self.send(RequestKind::List, request.send()).await {
            Ok(output) => output,
            Err(error) if status(&error) == Some(403) && error.code() == Some("AccessDenied") => return Ok(None),
            Err(error) => return Err(self.error(&error, "listing", prefix)),
        };
        let is_truncated = output.is_truncated == Some(true);
        let next = output.next_continuation_token.filter(|_| is_truncated);
        if is_truncated && next.is_none() {
            let url = self.display_url(prefix);
            return Err(Error::failed(format!("listing {url}: the server sent a truncated page without a token")));
        }
        let entries = output.contents.unwrap_or_default().into_iter().filter_map(|entry| {
            let key = entry.key?.strip_prefix(&self.location.prefix)?.to_owned();
            Some(ListedObject { key, etag: entry.e_tag.unwrap_or_default().trim_matches('"').to_owned() })
        });
        Ok(Some(Page { entries: entries.collect(), next }))
    }
}
