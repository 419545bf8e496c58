//! `<hash part>.ls`: the listing of a NAR, which Nix writes with the store setting `write-nar-listing`.

use nar_pack::error::{Error, Result};
use nar_pack::nar::Lister;
use nar_pack::store_path::StorePath;

use super::{ExtraObject, MAX_IN_MEMORY};
use crate::archive::listing_key;
use crate::spool::Spool;

/// Writes the listing of a NAR while the NAR is read.
#[derive(Debug)]
pub struct ListingBuilder {
    /// The error if the NAR cannot have a listing.
    lister: Result<Lister<Spool>>,
}

impl ListingBuilder {
    pub fn new() -> Self {
        Self { lister: Ok(Lister::new(Spool::new(MAX_IN_MEMORY))) }
    }

    /// Passes an event of the NAR to the lister. A name that JSON cannot represent does not make the NAR invalid: it only
    /// has no listing.
    ///
    /// # Errors
    /// Fails if the listing cannot be spooled.
    pub fn visit(&mut self, event: impl FnOnce(&mut Lister<Spool>) -> Result) -> Result {
        if let Ok(lister) = &mut self.lister
            && let Err(error) = event(lister)
        {
            if !error.is_refusal() {
                return Err(error.context("cannot write the listing"));
            }
            self.lister = Err(error);
        }
        Ok(())
    }

    /// Returns the listing, or the reason why there cannot be one.
    ///
    /// # Errors
    /// Fails if the listing cannot be spooled.
    pub fn finish(self, path: &StorePath) -> Result<Result<ExtraObject, Error>> {
        match self.lister {
            Ok(lister) => ExtraObject::from_spool(listing_key(path.hash_part()), lister.finish()?).map(Ok),
            Err(reason) => Ok(Err(reason)),
        }
    }
}
