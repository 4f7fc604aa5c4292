//! How the rows of one pass through the layers are laid out, and which of them are read at its end.

use tch::{Device, Kind, Tensor};

use super::rows::RowMap;
use crate::error::ModelError;

/// Texts as single rows, in order, with or without their padding.
#[derive(Debug)]
pub(crate) struct TextRows {
    batch: i64,
    length: i64,
    /// sequence · T + position of each row.
    places: Vec<i64>,
    /// The same on the device, `[N]` i64.
    index: Tensor,
    /// Position of each row in its text, `[N]` i64.
    positions: Tensor,
}

impl TextRows {
    /// The first `lengths[text]` positions of each of the texts `[B, T]`.
    pub(crate) fn new(
        lengths: &[i64],
        length: i64,
        device: Device,
    ) -> Result<TextRows, ModelError> {
        let texts = (0..).zip(lengths);
        let places: Vec<i64> = texts
            .flat_map(|(text, &rows)| (0..rows.clamp(0, length)).map(move |at| text * length + at))
            .collect();
        let index = Tensor::f_from_slice(&places)?.f_to_device(device)?;
        Ok(TextRows {
            batch: lengths.len() as i64,
            length,
            positions: index.f_remainder(length.max(1))?,
            places,
            index,
        })
    }

    /// Every position of `batch` texts but the last `without`.
    pub(crate) fn all(
        batch: i64,
        length: i64,
        without: i64,
        device: Device,
    ) -> Result<TextRows, ModelError> {
        let lengths = vec![length - without; usize::try_from(batch).unwrap_or(0)];
        TextRows::new(&lengths, length, device)
    }

    /// N.
    pub(crate) fn rows(&self) -> i64 {
        self.places.len() as i64
    }

    /// Position of each row in its text, `[N]` i64.
    pub(crate) fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// Entries of `[B, T]` where there is a row: `[N]`.
    pub(crate) fn select(&self, values: &Tensor) -> Result<Tensor, ModelError> {
        Ok(values.f_reshape([-1])?.f_index_select(0, &self.index)?)
    }

    /// Index of each text's first row.
    pub(crate) fn first_rows(&self) -> Vec<i64> {
        let rows = (0..).zip(&self.places);
        rows.filter(|(_, &place)| place % self.length == 0)
            .map(|(row, _)| row)
            .collect()
    }

    /// Where the rows live.
    fn device(&self) -> Device {
        self.index.device()
    }

    fn map(&self) -> Result<RowMap, ModelError> {
        RowMap::sparse(&self.places, self.batch, self.length, self.device())
    }
}

/// Whose keys and values come before a segment's own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Past {
    /// Nobody's.
    Nothing,
    /// Those of an earlier segment of the same pass.
    Segment(usize),
    /// Those given with the pass.
    Given,
}

/// Consecutive rows that attend to one another.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) keys: RowMap,
    /// Additive, `[R, 1, L or 1, S]`.
    pub(crate) mask: Option<Tensor>,
    pub(crate) past: Past,
}

/// The rows that go on after the last layer's self-attention.
#[derive(Debug)]
pub(crate) struct Read {
    /// `[M']` i64; none: the first rows.
    index: Option<Tensor>,
    rows: i64,
    /// They as queries, one map per segment.
    pub(crate) queries: Vec<RowMap>,
}

impl Read {
    pub(crate) fn select(&self, rows: &Tensor) -> Result<Tensor, ModelError> {
        Ok(match &self.index {
            Some(index) => rows.f_index_select(0, index)?,
            None => rows.f_narrow(0, 0, self.rows)?,
        })
    }
}

/// One pass through the layers: rows `[M, D]`, query rows first, cut into segments.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) segments: Vec<Segment>,
    /// Query rows at the start, before and after the last layer alike.
    pub(crate) query_rows: i64,
    /// Which query rows look at which of the images given, in order.
    pub(crate) images: Vec<RowMap>,
    /// Unless all rows are read.
    pub(crate) last: Option<Read>,
}

impl Plan {
    /// Queries alone, all seeing each other.
    pub(crate) fn queries(batch: i64, queries: i64) -> Plan {
        Plan {
            segments: vec![Segment {
                keys: RowMap::dense(batch, queries),
                mask: None,
                past: Past::Nothing,
            }],
            query_rows: batch * queries,
            images: vec![RowMap::dense(batch, queries)],
            last: None,
        }
    }

    /// Text alone; `mask` as of [`key_mask`] or, with what came before, of [`causal_mask`].
    pub(crate) fn text(
        text: &TextRows,
        mask: Option<Tensor>,
        past: Past,
    ) -> Result<Plan, ModelError> {
        Ok(Plan {
            segments: vec![Segment {
                keys: text.map()?,
                mask,
                past,
            }],
            query_rows: 0,
            images: Vec::new(),
            last: None,
        })
    }

    /// Queries alone, text alone, and text that continues the queries, at once: what the
    /// contrastive and the generation loss read. With `cut`, of the text alone the first row of
    /// each.
    pub(crate) fn unimodal(
        queries: i64,
        text: (&TextRows, Tensor),
        decoder: (&TextRows, Tensor),
        cut: bool,
    ) -> Result<Plan, ModelError> {
        let batch = text.0.batch;
        let mut plan = Plan::queries(batch, queries);
        let decoder_map = decoder.0.map()?;
        plan.segments.push(Segment {
            keys: text.0.map()?,
            mask: Some(text.1),
            past: Past::Nothing,
        });
        plan.segments.push(Segment {
            keys: decoder_map.shallow_clone(),
            mask: Some(decoder.1),
            past: Past::Segment(0),
        });
        if cut {
            let (first, end) = (plan.query_rows, plan.query_rows + text.0.rows());
            let mut index: Vec<i64> = (0..first).collect();
            index.extend(text.0.first_rows().iter().map(|row| first + row));
            index.extend(end..end + decoder.0.rows());
            plan.last = Some(Read {
                rows: index.len() as i64,
                index: Some(Tensor::f_from_slice(&index)?.f_to_device(text.0.device())?),
                queries: vec![
                    RowMap::dense(batch, queries),
                    RowMap::dense(batch, 1),
                    decoder_map,
                ],
            });
        }
        Ok(plan)
    }

    /// Queries and text together, all seeing all but padding. `images` says which queries look at
    /// which image; with `cut`, only the query rows are read.
    pub(crate) fn pairs(
        queries: i64,
        text: &TextRows,
        mask: Tensor,
        images: Vec<RowMap>,
        cut: bool,
    ) -> Result<Plan, ModelError> {
        let (batch, length) = (text.batch, queries + text.length);
        let places: Vec<i64> = (0..batch * queries)
            .map(|row| row / queries * length + row % queries)
            .chain(
                text.places
                    .iter()
                    .map(|place| place / text.length * length + queries + place % text.length),
            )
            .collect();
        let query_rows = batch * queries;
        Ok(Plan {
            segments: vec![Segment {
                keys: RowMap::sparse(&places, batch, length, text.device())?,
                mask: Some(mask),
                past: Past::Nothing,
            }],
            query_rows,
            images,
            last: cut.then(|| Read {
                index: None,
                rows: query_rows,
                queries: vec![RowMap::dense(batch, queries)],
            }),
        })
    }
}

/// The maps of the three pairs of a matching step: image b is looked at by the queries of pairs b
/// and B + b, and negative image b by those of pair 2 B + b.
pub(crate) fn matching_images(
    batch: i64,
    queries: i64,
    device: Device,
) -> Result<Vec<RowMap>, ModelError> {
    let places: Vec<i64> = (0..2 * batch * queries)
        .map(|row| {
            let (pair, query) = (row / queries, row % queries);
            (pair % batch) * 2 * queries + pair / batch * queries + query
        })
        .collect();
    Ok(vec![
        RowMap::sparse(&places, batch, 2 * queries, device)?,
        RowMap::dense(batch, queries),
    ])
}

/// Added to attention scores of masked keys. Not -∞: the reference's number.
pub(crate) const MASKED: f64 = -10_000.0;

/// `[B, T]` of ones and zeros → additive mask `[B, 1, 1, visible + T]` f32, the first `visible` keys
/// never masked.
pub(crate) fn key_mask(attention_mask: &Tensor, visible: i64) -> Result<Tensor, ModelError> {
    after_visible(&over_keys(attention_mask)?, visible)
}

/// `[B, T]` of ones and zeros → additive mask `[B, 1, T, visible + T]` f32: text row i sees the first
/// `visible` keys and those text keys j ≤ i that are no padding.
pub(crate) fn causal_mask(attention_mask: &Tensor, visible: i64) -> Result<Tensor, ModelError> {
    let text = over_keys(attention_mask)?;
    let length = attention_mask.size()[1];
    let lower = Tensor::f_ones([length, length], (Kind::Float, text.device()))?.f_tril(0)?; // [T, T]
    after_visible(&text.f_mul(&lower)?, visible)
}

/// `[B, T]` → `[B, 1, 1, T]` f32.
fn over_keys(attention_mask: &Tensor) -> Result<Tensor, ModelError> {
    let mask = attention_mask.f_to_kind(Kind::Float)?;
    Ok(mask.f_unsqueeze(1)?.f_unsqueeze(1)?)
}

/// `[B, 1, L, T]` of ones and zeros → additive mask `[B, 1, L, visible + T]`.
fn after_visible(text: &Tensor, visible: i64) -> Result<Tensor, ModelError> {
    let size = text.size();
    let ones = Tensor::f_ones([size[0], 1, size[2], visible], (Kind::Float, text.device()))?;
    additive(&Tensor::f_cat(&[&ones, text], 3)?)
}

/// 1 → 0, 0 → [`MASKED`].
fn additive(mask: &Tensor) -> Result<Tensor, ModelError> {
    Ok(mask.f_sub_scalar(1.0)?.f_mul_scalar(-MASKED)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(mask: &Tensor) -> Vec<Vec<f32>> {
        let size = mask.size();
        let flat = mask.reshape([-1, size[3]]);
        Vec::<Vec<f32>>::try_from(&flat).unwrap()
    }

    #[test]
    fn masks_by_hand() {
        const X: f32 = -10_000.0;
        let attention = Tensor::from_slice2(&[[1i64, 1, 1], [1, 1, 0]]);
        let keys = key_mask(&attention, 2).unwrap();
        assert_eq!(keys.size(), [2, 1, 1, 5]);
        assert_eq!(
            rows(&keys),
            [[0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, X]]
        );
        let alone = key_mask(&attention, 0).unwrap();
        assert_eq!(alone.size(), [2, 1, 1, 3]);
        let causal = causal_mask(&attention, 1).unwrap();
        assert_eq!(causal.size(), [2, 1, 3, 4]);
        assert_eq!(
            rows(&causal),
            [
                [0.0, 0.0, X, X],
                [0.0, 0.0, 0.0, X],
                [0.0, 0.0, 0.0, 0.0],
                [0.0, 0.0, X, X],
                [0.0, 0.0, 0.0, X],
                [0.0, 0.0, 0.0, X],
            ]
        );
    }

    #[test]
    fn rows_of_texts() {
        let text = TextRows::new(&[2, 3, 1], 3, Device::Cpu).unwrap();
        assert_eq!(text.places, [0, 1, 3, 4, 5, 6]);
        assert_eq!(text.first_rows(), [0, 2, 5]);
        let values = Tensor::arange(9, (Kind::Int64, Device::Cpu)).view([3, 3]) * 10;
        let list = |t: &Tensor| Vec::<i64>::try_from(t).unwrap();
        assert_eq!(
            list(&text.select(&values).unwrap()),
            [0, 10, 30, 40, 50, 60]
        );
        assert_eq!(list(text.positions()), [0, 1, 0, 1, 2, 0]);
        let all = TextRows::all(2, 3, 1, Device::Cpu).unwrap();
        assert_eq!(all.places, [0, 1, 3, 4]);
    }
}
