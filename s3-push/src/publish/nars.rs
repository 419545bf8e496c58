//! The NARs of a push by key, and which paths need them.

use std::collections::{HashMap, HashSet};
use std::mem;

use crate::publish::intake::ReceivedNar;
use crate::publish::nar_state::{PendingNar, SharedResult, VerifiedNar};

/// The NARs of a push.
#[derive(Default)]
pub struct Nars {
    by_key: HashMap<String, PendingNar>,
    /// NARs that arrived again while they were being uploaded.
    replaced: Vec<SharedResult<VerifiedNar>>,
    /// Number of publishing tasks that need each NAR.
    needed_by: HashMap<String, u32>,
    /// Keys of the NARs of refused paths. They are not uploaded, unless another path needs them.
    refused: HashSet<String>,
    /// Keys of the NARs that arrived before a narinfo which waits for its references until the end of the input.
    awaiting_references: HashSet<String>,
    /// Key of the NAR that arrived last. In an archive of `narinfo-gen` its narinfo comes next.
    last: Option<String>,
    /// Set when memory ran out; no NAR that no path needs is kept afterwards.
    is_memory_short: bool,
}

impl Nars {
    /// Returns whether a NAR with that key has arrived.
    pub fn contains(&self, key: &str) -> bool {
        self.by_key.contains_key(key)
    }

    /// Returns whether a NAR that arrives again is not needed, because the first one is still there.
    pub fn is_usable(&self, nar: &ReceivedNar) -> bool {
        match self.by_key.get(&nar.key) {
            None => false,
            Some(PendingNar::Held(_)) => true,
            Some(PendingNar::Started(result)) => match result.peek() {
                Some(Err(_)) => false,
                Some(Ok(first)) => first.is_sent() || first.is_in_parts() || !self.is_memory_short,
                // A second upload under the same key would disturb the first.
                None => nar.body.length.is_multipart() || !self.is_memory_short,
            },
        }
    }

    /// Adds a NAR, or replaces it.
    pub fn insert(&mut self, key: String, nar: PendingNar) {
        if nar.is_held() {
            self.last = Some(key.clone());
        }
        if let Some(PendingNar::Started(replaced)) = self.by_key.insert(key, nar) {
            self.replaced.push(replaced);
        }
    }

    /// Drops the NARs that arrived again, unless an upload in parts has to be ended.
    pub fn drop_replaced(&mut self) {
        self.replaced.retain(|result| result.peek().is_none_or(|nar| nar.as_ref().is_ok_and(VerifiedNar::is_in_parts)));
    }

    /// Removes the NAR with that key if it waits in memory for its narinfo.
    pub fn take_held(&mut self, key: &str) -> Option<ReceivedNar> {
        self.by_key.get(key).filter(|nar| nar.is_held())?;
        self.by_key.remove(key).and_then(PendingNar::into_held)
    }

    /// Removes all NARs that wait in memory for their narinfo.
    pub fn take_all_held(&mut self) -> Vec<ReceivedNar> {
        self.by_key.extract_if(|_, nar| nar.is_held()).filter_map(|(_, nar)| nar.into_held()).collect()
    }

    /// Returns the result of the task of a NAR.
    pub fn task_of(&self, key: &str) -> Option<SharedResult<VerifiedNar>> {
        match self.by_key.get(key)? {
            PendingNar::Started(result) => Some(result.clone()),
            PendingNar::Held(_) => None,
        }
    }

    /// Records that a task needs a NAR.
    pub fn add_need(&mut self, key: &str) {
        *self.needed_by.entry(key.to_owned()).or_default() += 1;
    }

    /// Records that a task which needed a NAR has ended. Returns the NAR if no task needs it any longer.
    pub fn remove_need(&mut self, key: &str) -> Option<VerifiedNar> {
        if let Some(count) = self.needed_by.get_mut(key) {
            *count -= 1;
            if *count > 0 {
                return None;
            }
            self.needed_by.remove(key);
        }
        self.by_key.get(key).and_then(PendingNar::verified).cloned()
    }

    /// Records that a path which names this NAR was refused.
    pub fn refuse(&mut self, key: &str) {
        self.refused.insert(key.to_owned());
    }

    /// Returns whether a path that names this NAR was refused.
    pub fn is_refused(&self, key: &str) -> bool {
        self.refused.contains(key)
    }

    /// Records that the narinfo of this NAR, which has arrived, waits for its references.
    pub fn await_references(&mut self, key: &str) {
        self.awaiting_references.insert(key.to_owned());
    }

    /// Returns whether the narinfo of this NAR came after it and waits for its references, or is expected next.
    pub fn is_followed_by_narinfo(&self, key: &str) -> bool {
        self.awaiting_references.contains(key) || self.last.as_deref() == Some(key)
    }

    /// Returns whether memory ran out.
    pub fn is_memory_short(&self) -> bool {
        self.is_memory_short
    }

    /// Records that memory ran out. Returns the NARs in memory that no task needs, the first time it is called.
    pub fn set_memory_short(&mut self) -> Vec<VerifiedNar> {
        if mem::replace(&mut self.is_memory_short, true) {
            return Vec::new();
        }
        let unneeded = self.by_key.iter().filter(|(key, _)| !self.needed_by.contains_key(*key));
        unneeded.filter_map(|(_, nar)| nar.verified()).filter(|nar| nar.is_in_memory()).cloned().collect()
    }

    /// Returns the NARs whose uploads are not completed.
    pub fn in_parts(&self) -> Vec<VerifiedNar> {
        let replaced = self.replaced.iter().filter_map(verified);
        let all = self.by_key.values().filter_map(PendingNar::verified).chain(replaced);
        all.filter(|nar| nar.is_in_parts()).cloned().collect()
    }
}

impl PendingNar {
    fn is_held(&self) -> bool {
        matches!(self, Self::Held(_))
    }

    fn into_held(self) -> Option<ReceivedNar> {
        match self {
            Self::Held(nar) => Some(nar),
            Self::Started(_) => None,
        }
    }

    fn verified(&self) -> Option<&VerifiedNar> {
        match self {
            Self::Started(result) => verified(result),
            Self::Held(_) => None,
        }
    }
}

fn verified(result: &SharedResult<VerifiedNar>) -> Option<&VerifiedNar> {
    result.peek().and_then(|result| result.as_ref().ok())
}
