//! Which rows of a flat `[M, D]` matrix stand where in attention's `[R, heads, L, d]` layout.
//!
//! Projections and feed-forward networks work on single rows and leave padding out; attention works
//! on sequences of one length, with zeros in the places that have no row.

use tch::{Device, Tensor};

use crate::error::ModelError;
use crate::layers::{merge_heads, split_heads};
use crate::ops;

/// The places of M rows among R sequences of L.
#[derive(Debug)]
pub(crate) struct RowMap {
    batch: i64,
    length: i64,
    rows: i64,
    /// Unless the rows fill the places in order.
    index: Option<Index>,
}

#[derive(Debug)]
struct Index {
    slots: Tensor,  // [R · L] i64: the row of each place, or -1
    places: Tensor, // [M] i64: the place of each row
}

impl RowMap {
    /// Rows that fill `batch` sequences of `length` in order.
    pub(crate) fn dense(batch: i64, length: i64) -> RowMap {
        RowMap {
            batch,
            length,
            rows: batch * length,
            index: None,
        }
    }

    /// `places[row]` = sequence · `length` + position, every place once at most.
    pub(crate) fn sparse(
        places: &[i64],
        batch: i64,
        length: i64,
        device: Device,
    ) -> Result<RowMap, ModelError> {
        if places.len() as i64 == batch * length && places.iter().copied().eq(0..batch * length) {
            return Ok(RowMap::dense(batch, length));
        }
        let mut slots = vec![-1i64; usize::try_from(batch * length).unwrap_or(0)];
        for (row, &place) in (0..).zip(places) {
            match usize::try_from(place)
                .ok()
                .and_then(|place| slots.get_mut(place))
            {
                Some(slot) if *slot < 0 => *slot = row,
                _ => {
                    return Err(ModelError::Input {
                        what: "places of rows",
                        message: format!("{place} is taken or beyond {batch} x {length}"),
                    })
                }
            }
        }
        Ok(RowMap {
            batch,
            length,
            rows: places.len() as i64,
            index: Some(Index {
                slots: Tensor::f_from_slice(&slots)?.f_to_device(device)?,
                places: Tensor::f_from_slice(places)?.f_to_device(device)?,
            }),
        })
    }

    /// Another handle of the same map.
    pub(crate) fn shallow_clone(&self) -> RowMap {
        let index = self.index.as_ref().map(|index| Index {
            slots: index.slots.shallow_clone(),
            places: index.places.shallow_clone(),
        });
        RowMap { index, ..*self }
    }

    /// M.
    pub(crate) fn rows(&self) -> i64 {
        self.rows
    }

    /// `[M, D]` → `[R, heads, L, d]`.
    pub(crate) fn split(&self, rows: &Tensor, heads: i64) -> Result<Tensor, ModelError> {
        match &self.index {
            None => split_heads(&rows.f_view([self.batch, self.length, -1])?, heads),
            Some(Index { slots, places }) => {
                ops::split_rows(rows, slots, places, (self.batch, self.length), heads)
            }
        }
    }

    /// Rows of several layers side by side, `[M, count · D]` → of each `[R, heads, L, d]`, views
    /// where the rows fill their places in order.
    pub(crate) fn split_joint(
        &self,
        rows: &Tensor,
        count: i64,
        heads: i64,
    ) -> Result<Vec<Tensor>, ModelError> {
        if self.index.is_some() {
            let parts = rows.f_chunk(count, 1)?;
            return parts.iter().map(|part| self.split(part, heads)).collect();
        }
        let sequences = rows.f_view([self.batch, self.length, count, heads, -1])?;
        let parts = sequences.f_unbind(2)?; // each [R, L, heads, d]
        let parts = parts.iter().map(|part| Ok(part.f_transpose(1, 2)?));
        parts.collect()
    }

    /// `[R, heads, L, d]` → `[M, D]`.
    pub(crate) fn merge(&self, heads: &Tensor) -> Result<Tensor, ModelError> {
        match &self.index {
            None => Ok(merge_heads(heads)?.f_flatten(0, 1)?),
            Some(Index { slots, places }) => ops::merge_rows(heads, slots, places),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn rows_go_to_their_places_and_back() {
        let rows = Tensor::arange(12, (Kind::Float, Device::Cpu)).view([3, 4]);
        // Two sequences of 3 places: rows 1 and 0 in the first, row 2 at the end of the second.
        let map = RowMap::sparse(&[1, 0, 5], 2, 3, Device::Cpu).unwrap();
        let split = map.split(&rows, 2).unwrap();
        assert_eq!(split.size(), [2, 2, 3, 2]);
        let flat = Vec::<f32>::try_from(split.flatten(0, -1)).unwrap();
        #[rustfmt::skip]
        assert_eq!(flat, [
            4.0, 5.0, 0.0, 1.0, 0.0, 0.0, /* head 1 */ 6.0, 7.0, 2.0, 3.0, 0.0, 0.0,
            0.0, 0.0, 0.0, 0.0, 8.0, 9.0, /* head 1 */ 0.0, 0.0, 0.0, 0.0, 10.0, 11.0,
        ]);
        assert_eq!(map.merge(&split).unwrap(), rows);
        for wrong in [&[0, 0, 1][..], &[6, 0, 1], &[-1, 0, 1]] {
            assert!(RowMap::sparse(wrong, 2, 3, Device::Cpu).is_err());
        }
    }

    #[test]
    fn a_full_map_is_a_view_and_equals_the_indexed_one() {
        let rows = Tensor::randn([6, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let dense = RowMap::sparse(&[0, 1, 2, 3, 4, 5], 2, 3, Device::Cpu).unwrap();
        assert!(dense.index.is_none());
        // The same places with the sequences swapped.
        let swapped = RowMap::sparse(&[3, 4, 5, 0, 1, 2], 2, 3, Device::Cpu).unwrap();
        let a = dense.split(&rows, 4).unwrap();
        let b = swapped.split(&rows, 4).unwrap();
        assert_eq!(a, b.flip([0]));
        // The gradients of both are the weights put back in order.
        let weights = Tensor::randn([2, 4, 3, 2], (Kind::Float, Device::Cpu));
        let gradient = |map: &RowMap, weights: &Tensor| {
            let mut leaf = rows.detach().set_requires_grad(true);
            leaf.zero_grad();
            let back = map
                .merge(&(map.split(&leaf, 4).unwrap() * weights))
                .unwrap();
            back.square().sum(Kind::Float).backward();
            leaf.grad()
        };
        assert!(gradient(&dense, &weights).allclose(
            &gradient(&swapped, &weights.flip([0])),
            1e-6,
            1e-6,
            false
        ));
    }
}
