//! Values of a dictionary-encoded column.

use arrow2::array::{MutableArray, MutableBinaryArray};

/// Values of one dictionary; delta batches append to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Dictionary {
    values: MutableBinaryArray<i64>,
}

impl Dictionary {
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// The value at `index`; `None` if it is null or there is none.
    pub(super) fn get(&self, index: usize) -> Option<&[u8]> {
        let is_valid = index < self.len()
            && self
                .values
                .validity()
                .is_none_or(|validity| validity.get(index));
        if !is_valid {
            return None;
        }
        let (start, end) = self.values.offsets().start_end(index);
        self.values.values().get(start..end)
    }

    /// Appends values, `None` for a null.
    pub(super) fn append<'a>(&mut self, values: impl Iterator<Item = Option<&'a [u8]>>) {
        for value in values {
            self.values.push(value);
        }
    }

    /// Memory of the values and their offsets, in bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        let per_value = size_of::<i64>() as u64;
        (self.values.values().len() as u64)
            .saturating_add((self.len() as u64).saturating_mul(per_value))
    }
}
