//! Access control lists of files (`acl(5)`). With one, the group bits of the mode are the mask of the list and not the rights
//! of the group.

use std::os::fd::AsFd;

use rustix::buffer::spare_capacity;

/// The extended attribute that is the list.
pub const NAME: &str = "system.posix_acl_access";
/// Maximum size of an extended attribute on Linux, in bytes.
const MAX_SIZE: usize = 64 << 10;

/// Returns the list of an open file: a version and entries of a tag, rights and an ID (`linux/posix_acl_xattr.h`). None if it
/// has no list, or the file system does not support them.
#[must_use]
pub fn read(file: &impl AsFd) -> Option<Vec<u8>> {
    let mut list = Vec::with_capacity(MAX_SIZE);
    rustix::fs::fgetxattr(file, NAME, spare_capacity(&mut list)).ok()?;
    Some(list)
}
