//! The documents of cache-policy.

mod permissions;
