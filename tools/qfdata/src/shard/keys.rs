//! The keys of a run's samples, of which no two may be equal.

use std::collections::HashMap;

use crate::hash128::hash128;

/// How often each key came, by 128 bits of its hash: about 40 bytes a key, however long it is.
#[derive(Debug, Default)]
pub(super) struct Keys(HashMap<[u64; 2], u32>);

impl Keys {
    /// A key that was given before.
    pub(super) fn add(&mut self, key: &str) -> u32 {
        let count = self.0.entry(hash128(key)).or_default();
        *count = count.saturating_add(1);
        *count
    }

    /// The first of equal keys stays; later ones get `_2`, `_3`, … Returns whether the key was changed.
    pub(super) fn make_unique(&mut self, key: &mut String) -> bool {
        let mut number = self.add(key);
        if number == 1 {
            return false;
        }
        loop {
            let candidate = format!("{key}_{number}");
            if !self.0.contains_key(&hash128(&candidate)) {
                self.add(&candidate);
                *key = candidate;
                return true;
            }
            number = number.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unique_also_after_going_on() {
        let given = ["x", "y", "x", "x_2", "x", "x_2", "x", "y_2", "y", "x_2_2"];
        let expected = [
            "x", "y", "x_2", "x_2_2", "x_3", "x_2_3", "x_4", "y_2", "y_3", "x_2_2_2",
        ];
        for goes_on_at in 0..given.len() {
            let mut keys = Keys::default();
            expected[..goes_on_at].iter().for_each(|key| {
                keys.add(key);
            });
            for (given, expected) in given[goes_on_at..].iter().zip(&expected[goes_on_at..]) {
                let mut key = (*given).to_owned();
                assert_eq!(keys.make_unique(&mut key), key != *given);
                assert_eq!(key, *expected, "going on at {goes_on_at}");
            }
        }
    }
}
