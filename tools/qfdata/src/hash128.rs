//! Names by their hash: many take little memory, however long they are.

use std::hash::{DefaultHasher, Hash, Hasher};

/// 128 bits that two different names do not share.
pub(crate) fn hash128<T: Hash + ?Sized>(name: &T) -> [u64; 2] {
    [0u8, 1].map(|salt| {
        let mut hasher = DefaultHasher::new();
        (salt, name).hash(&mut hasher);
        hasher.finish()
    })
}
