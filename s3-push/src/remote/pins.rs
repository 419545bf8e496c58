//! Pins: objects `pins/NAME`, each a path list. The paths, and everything that they reference, are kept by the collector.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, TryStreamExt, stream};
use nar_pack::error::{Context, Error, Result};
use nar_pack::store_path::{StoreDir, StorePath, read_path_list};

use crate::remote::listing::list_below;
use crate::remote::s3::{Bucket, ListedObject};

/// The prefix of the keys.
pub const PREFIX: &str = "pins/";
/// Maximum size of a pin in bytes: about 100,000 paths.
pub const MAX_SIZE: usize = 16 << 20;
/// Maximum length of a name in bytes: with its prefix a key of S3 must not be longer than 1,024.
const MAX_PIN_NAME: usize = 512;

/// The name of a pin, such as `main/2026-11-24`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PinName(String);

impl PinName {
    /// Parses a name: parts of letters, digits and `.`, `_`, `-`, `+`, `@`, `=`, separated by slashes. A part must not
    /// be `.` or `..`, which many services and file systems treat specially.
    ///
    /// # Errors
    /// Returns a usage error that names the rule.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |rule: &str| Err(Error::usage(format!("invalid pin name {text:?}: {rule}")));
        if text.len() > MAX_PIN_NAME {
            return invalid(&format!("longer than {MAX_PIN_NAME} bytes"));
        }
        if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return invalid("a part between slashes must not be empty, \".\" or \"..\"");
        }
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+@=/".contains(&byte)) {
            return invalid("only letters, digits and . _ - + @ = / are allowed");
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns the name of the pin that is this object.
    ///
    /// # Errors
    /// Returns a usage error that names the object and the rule.
    pub fn of_object(bucket: &Bucket, object: &ListedObject) -> Result<Self> {
        let name = object.key.strip_prefix(PREFIX).unwrap_or_default();
        Self::parse(name).context(|| bucket.display_url(&object.key))
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the key of the object.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{PREFIX}{}", self.0)
    }

    /// Returns whether one name is the directory of the other, such as `main` and `main/1`. MinIO and other services that
    /// store objects as files accept both and then hide `main/1`.
    #[must_use]
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let is_below = |name: &Self, dir: &Self| name.0.strip_prefix(&dir.0).is_some_and(|rest| rest.starts_with('/'));
        is_below(self, other) || is_below(other, self)
    }

    /// Returns the part up to and including the last slash: pins of a group differ in what follows it.
    #[must_use]
    fn group(&self) -> &str {
        self.0.rfind('/').map_or("", |end| &self.0[..=end])
    }
}

/// A pin in a listing.
#[derive(Debug, Clone)]
pub struct ListedPin {
    /// The name.
    pub name: PinName,
    /// When it was written.
    pub last_modified: SystemTime,
}

/// Lists the pins, sorted by name.
///
/// # Errors
/// Fails if the bucket cannot be listed, or if a name is invalid or its time is unknown.
pub async fn list_pins(bucket: &Bucket) -> Result<Vec<ListedPin>> {
    let mut pins = Vec::new();
    for entry in list_pin_objects(bucket).await? {
        let name = PinName::of_object(bucket, &entry).map_err(|error| Error::failed(error.message()))?;
        pins.push(ListedPin { name, last_modified: entry.time_written(bucket)? });
    }
    pins.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    pins.dedup_by(|a, b| a.name == b.name);
    Ok(pins)
}

/// Lists the objects below `pins/`, also those whose names are invalid.
///
/// # Errors
/// Fails if the bucket cannot be listed.
pub async fn list_pin_objects(bucket: &Bucket) -> Result<Vec<ListedObject>> {
    let mut objects = list_below(bucket, PREFIX).await?;
    // Consoles and services on a file system show directories as objects whose keys end with a slash.
    objects.retain(|object| !object.key.ends_with('/'));
    Ok(objects)
}

/// Reads the paths of a pin. Returns none if there is no such pin.
///
/// # Errors
/// Fails if it cannot be read; refuses one that is not a path list.
pub async fn read_pin(bucket: &Bucket, name: &PinName, store_dir: &StoreDir) -> Result<Option<Vec<StorePath>>> {
    let Some(object) = bucket.get_text(&name.key(), MAX_SIZE).await? else { return Ok(None) };
    parse_pin(&object.text, store_dir).context(|| bucket.display_url(&name.key())).map(Some)
}

/// Parses the contents of a pin.
///
/// # Errors
/// Refuses what is not a path list.
pub fn parse_pin(text: &str, store_dir: &StoreDir) -> Result<Vec<StorePath>> {
    read_path_list(text.as_bytes(), store_dir)
}

/// Reads the paths of all these pins. A pin that was removed since it was listed has no paths.
///
/// # Errors
/// See [`read_pin`].
pub async fn read_pins(bucket: &Bucket, pins: &[ListedPin], store_dir: &StoreDir) -> Result<Vec<StorePath>> {
    let reads = stream::iter(pins.iter().map(|pin| read_pin(bucket, &pin.name, store_dir)));
    let lists: Vec<_> = reads.buffered(bucket.max_in_flight().into()).try_collect().await?;
    Ok(lists.into_iter().flatten().flatten().collect())
}

/// Which pins count.
#[derive(Debug, Clone, Copy, Default)]
pub struct Retention {
    /// The newest ones of each group.
    pub keep_last: Option<usize>,
    /// Those that are not older.
    pub keep_within: Option<Duration>,
}

impl Retention {
    /// Returns the pins that count and those that do not. A pin counts if either rule keeps it, and always if there is no
    /// rule. The rules apply to each group of pins whose names differ only after the last slash; a name without a slash
    /// always counts, since it has no successors.
    #[must_use]
    pub fn split(&self, pins: Vec<ListedPin>, now: SystemTime) -> (Vec<ListedPin>, Vec<ListedPin>) {
        if self.keep_last.is_none() && self.keep_within.is_none() {
            return (pins, Vec::new());
        }
        let mut groups: HashMap<&str, Vec<(SystemTime, &PinName)>> = HashMap::new();
        for pin in &pins {
            groups.entry(pin.name.group()).or_default().push((pin.last_modified, &pin.name));
        }
        for group in groups.values_mut() {
            group.sort_unstable();
        }
        let newer_in_group = |pin: &ListedPin| {
            let group = &groups[pin.name.group()];
            group.len() - group.partition_point(|other| *other <= (pin.last_modified, &pin.name))
        };
        let counts = |pin: &ListedPin| {
            let age = now.duration_since(pin.last_modified).unwrap_or_default();
            pin.name.group().is_empty()
                || self.keep_last.is_some_and(|count| newer_in_group(pin) < count)
                || self.keep_within.is_some_and(|duration| age <= duration)
        };
        pins.iter().cloned().partition(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_other_characters_or_dot_parts_are_refused() {
        for name in ["main/2026-11-24", "a", "pr-17", "x.y_z+@=1", "a/b/c", "..a"] {
            assert_eq!(PinName::parse(name).unwrap().key(), format!("pins/{name}"));
        }
        for name in ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a b", "a*", "é", "a\n", "a?b", &"a".repeat(513)] {
            assert!(PinName::parse(name).unwrap_err().is_usage(), "{name:?}");
        }
    }

    #[test]
    fn names_of_which_one_is_the_directory_of_the_other_conflict() {
        let conflict = |a: &str, b: &str| {
            let [a, b] = [a, b].map(|name| PinName::parse(name).unwrap());
            assert_eq!(a.conflicts_with(&b), b.conflicts_with(&a));
            a.conflicts_with(&b)
        };
        assert!(conflict("main", "main/1") && conflict("main", "main/a/b") && conflict("main/a", "main/a/b"));
        assert!(!conflict("main", "main") && !conflict("main", "main-1") && !conflict("main/1", "main/2"));
    }

    fn pin(name: &str, age: u64) -> ListedPin {
        let last_modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000 - age);
        ListedPin { name: PinName::parse(name).unwrap(), last_modified }
    }

    #[test]
    fn retention_applies_to_each_group_and_keeps_what_either_rule_keeps() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let all = || vec![pin("main/1", 300), pin("main/2", 200), pin("main/3", 100), pin("pr/1", 900), pin("x", 999)];
        let names = |retention: Retention| {
            let (kept, expired) = retention.split(all(), now);
            assert_eq!(kept.len() + expired.len(), all().len());
            kept.iter().map(|pin| pin.name.as_str().to_owned()).collect::<Vec<_>>()
        };
        let seconds = Duration::from_secs;
        assert_eq!(names(Retention::default()).len(), 5);
        assert_eq!(names(Retention { keep_last: Some(1), keep_within: None }), ["main/3", "pr/1", "x"]);
        assert_eq!(names(Retention { keep_last: None, keep_within: Some(seconds(200)) }), ["main/2", "main/3", "x"]);
        let both = Retention { keep_last: Some(1), keep_within: Some(seconds(250)) };
        assert_eq!(names(both), ["main/2", "main/3", "pr/1", "x"]);
    }
}
