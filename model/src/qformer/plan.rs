//! How the rows of one pass through the layers are laid out, and which of them are read at its end.

use tch::{Device, Kind, Tensor};

use super::rows::RowMap;
use crate::error::ModelError;
use crate::layers::Rows;

/// Texts as single rows, in order, with or without their padding.
#[derive(Debug)]
pub(crate) struct TextRows {
    batch: i64,
    length: i64,
    /// Unless every position has a row.
    index: Option<TextIndex>,
}

#[derive(Debug)]
struct TextIndex {
    /// sequence · T + position of each row.
    places: Vec<i64>,
    /// The same on the device, `[N]` i64.
    index: Tensor,
    /// Position of each row in its text, `[N]` i64.
    positions: Tensor,
}

/// Where rows stand in their texts.
pub(crate) enum Positions<'a> {
    /// 0, 1, …, `length` - 1 in each of `batch` texts.
    Counted { batch: i64, length: i64 },
    /// `[N]` i64.
    Listed(&'a Tensor),
}

impl TextRows {
    /// The first `lengths[text]` positions of each of the texts `[B, T]`.
    pub(crate) fn new(
        lengths: &[i64],
        length: i64,
        device: Device,
    ) -> Result<TextRows, ModelError> {
        if lengths.iter().all(|&rows| rows >= length) {
            return Ok(TextRows::all(lengths.len() as i64, length));
        }
        let texts = (0..).zip(lengths);
        let places: Vec<i64> = texts
            .flat_map(|(text, &rows)| (0..rows.clamp(0, length)).map(move |at| text * length + at))
            .collect();
        let index = Tensor::f_from_slice(&places)?.f_to_device(device)?;
        Ok(TextRows {
            batch: lengths.len() as i64,
            length,
            index: Some(TextIndex {
                positions: index.f_remainder(length.max(1))?,
                places,
                index,
            }),
        })
    }

    /// Every position of `batch` texts.
    pub(crate) fn all(batch: i64, length: i64) -> TextRows {
        TextRows {
            batch,
            length,
            index: None,
        }
    }

    /// N.
    pub(crate) fn rows(&self) -> i64 {
        match &self.index {
            Some(index) => index.places.len() as i64,
            None => self.batch * self.length,
        }
    }

    pub(crate) fn positions(&self) -> Positions<'_> {
        match &self.index {
            Some(index) => Positions::Listed(&index.positions),
            None => Positions::Counted {
                batch: self.batch,
                length: self.length,
            },
        }
    }

    /// Entries of `[B, T]` where there is a row: `[N]`.
    pub(crate) fn select(&self, values: &Tensor) -> Result<Tensor, ModelError> {
        let flat = values.f_reshape([-1])?;
        Ok(match &self.index {
            Some(index) => flat.f_index_select(0, &index.index)?,
            None => flat,
        })
    }

    /// Of rows `[N, D]` the first of each text, `[B, D]`.
    pub(crate) fn first_of_each(&self, rows: &Tensor) -> Result<Tensor, ModelError> {
        match &self.index {
            Some(_) => {
                let index = Tensor::f_from_slice(&self.first_rows())?;
                Ok(rows.f_index_select(0, &index.f_to_device(rows.device())?)?)
            }
            None => Ok(rows.f_view([self.batch, self.length, -1])?.f_select(1, 0)?),
        }
    }

    /// Index of each text's first row.
    fn first_rows(&self) -> Vec<i64> {
        let places = self.index.as_ref().map_or(&[][..], |index| &index.places);
        let rows = (0..).zip(places);
        rows.filter(|(_, &place)| place % self.length == 0)
            .map(|(row, _)| row)
            .collect()
    }

    fn map(&self) -> Result<RowMap, ModelError> {
        match &self.index {
            Some(index) => {
                RowMap::sparse(&index.places, self.batch, self.length, index.index.device())
            }
            None => Ok(RowMap::dense(self.batch, self.length)),
        }
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
    which: Which,
    /// They as queries, one map per segment.
    pub(crate) queries: Vec<RowMap>,
}

#[derive(Debug)]
enum Which {
    /// The query rows.
    Queries(Layout),
    /// `[M']` i64.
    Listed(Tensor),
    /// All but the later ones of the texts, which stand behind the query rows.
    FirstOfTexts {
        query_rows: i64,
        batch: i64,
        length: i64,
    },
}

impl Read {
    /// `[M, D]` → `[…, D]`, M' rows, perhaps a view.
    pub(crate) fn select(&self, rows: &Tensor) -> Result<Tensor, ModelError> {
        Ok(match &self.which {
            Which::Queries(layout) => {
                let [queries, _] = layout.split(rows)?;
                queries.unwrap_or_else(|| rows.shallow_clone())
            }
            Which::Listed(index) => rows.f_index_select(0, index)?,
            Which::FirstOfTexts {
                query_rows,
                batch,
                length,
            } => {
                let texts = batch * length;
                let rest = rows.size()[0] - query_rows - texts;
                let parts = rows.f_split_with_sizes([*query_rows, texts, rest], 0)?;
                let first = parts[1].f_view([*batch, *length, -1])?.f_select(1, 0)?;
                Tensor::f_cat(&[&parts[0], &first, &parts[2]], 0)?
            }
        })
    }
}

/// One pass through the layers: rows `[M, D]`, cut into segments.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) segments: Vec<Segment>,
    /// Up to the last layer; behind its self-attention, rows that are read apart are stacked.
    pub(crate) layout: Layout,
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
            layout: Layout::Stacked {
                query_rows: batch * queries,
            },
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
            layout: Layout::Stacked { query_rows: 0 },
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
            plan.last = Some(Read {
                which: Which::without_later_text(batch * queries, text.0, decoder.0)?,
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
        let (layout, keys) = pair_layout(queries, text)?;
        Ok(Plan {
            segments: vec![Segment {
                keys,
                mask: Some(mask),
                past: Past::Nothing,
            }],
            layout,
            images,
            last: cut.then(|| Read {
                which: Which::Queries(layout),
                queries: vec![RowMap::dense(text.batch, queries)],
            }),
        })
    }
}

impl Which {
    /// Query rows, of each text the first row, and the decoder's rows.
    fn without_later_text(
        query_rows: i64,
        text: &TextRows,
        decoder: &TextRows,
    ) -> Result<Which, ModelError> {
        let Some(sparse) = &text.index else {
            return Ok(Which::FirstOfTexts {
                query_rows,
                batch: text.batch,
                length: text.length,
            });
        };
        let end = query_rows + text.rows();
        let mut index: Vec<i64> = (0..query_rows).collect();
        index.extend(text.first_rows().iter().map(|row| query_rows + row));
        index.extend(end..end + decoder.rows());
        let index = Tensor::f_from_slice(&index)?.f_to_device(sparse.index.device())?;
        Ok(Which::Listed(index))
    }
}

/// Where the rows of queries and texts `[M, D]` stand.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Layout {
    /// All query rows, then all text rows.
    Stacked { query_rows: i64 },
    /// Sequence after sequence, of each the queries, then its text: what self-attention of both
    /// together takes as it is.
    Sequences { batch: i64, queries: i64, text: i64 },
}

impl Layout {
    /// Number of query rows.
    pub(crate) fn query_rows(self) -> i64 {
        match self {
            Layout::Stacked { query_rows } => query_rows,
            Layout::Sequences { batch, queries, .. } => batch * queries,
        }
    }

    /// Query rows and text rows, either `[…, D]` or none; views.
    pub(crate) fn split(self, rows: &Tensor) -> Result<[Option<Tensor>; 2], ModelError> {
        let (rows, sizes, dim) = match self {
            Layout::Stacked { query_rows } => {
                let all = rows.size()[0];
                (rows.shallow_clone(), [query_rows, all - query_rows], 0)
            }
            Layout::Sequences {
                batch,
                queries,
                text,
            } => {
                let rows = rows.f_view([batch, queries + text, -1])?;
                (rows, [queries, text], 1)
            }
        };
        if sizes[1] == 0 {
            return Ok([Some(rows), None]);
        }
        if sizes[0] == 0 {
            return Ok([None, Some(rows)]);
        }
        let mut parts = rows.f_split_with_sizes(sizes, dim)?.into_iter();
        Ok([parts.next(), parts.next()])
    }

    /// [`Layout::split`] of rows in both kinds.
    pub(crate) fn split_rows(self, rows: &Rows) -> Result<[Option<Rows>; 2], ModelError> {
        let [queries, text] = self.split(&rows.full)?;
        let low = rows.low.as_ref().map(|low| self.split(low)).transpose()?;
        let [low_queries, low_text] = low.unwrap_or_default();
        let both = |full: Option<Tensor>, low| full.map(|full| Rows { full, low });
        Ok([both(queries, low_queries), both(text, low_text)])
    }

    /// [`Layout::join`] of rows in both kinds.
    pub(crate) fn join_rows(self, [queries, text]: [Option<Rows>; 2]) -> Result<Rows, ModelError> {
        let both = |rows: Option<Rows>| match rows {
            Some(rows) => (Some(rows.full), rows.low),
            None => (None, None),
        };
        let ((queries, low_queries), (text, low_text)) = (both(queries), both(text));
        let low = match low_queries.is_some() || low_text.is_some() {
            true => Some(self.join([low_queries, low_text])?),
            false => None,
        };
        Ok(Rows {
            full: self.join([queries, text])?,
            low,
        })
    }

    /// What [`Layout::split`] took apart: `[M, D]`.
    pub(crate) fn join(self, parts: [Option<Tensor>; 2]) -> Result<Tensor, ModelError> {
        let flat = |rows: Tensor| match rows.dim() {
            2 => Ok(rows),
            _ => rows.f_flatten(0, 1),
        };
        Ok(match parts {
            [Some(queries), Some(text)] => {
                let dim = match self {
                    Layout::Stacked { .. } => 0,
                    Layout::Sequences { .. } => 1,
                };
                flat(Tensor::f_cat(&[queries, text], dim)?)?
            }
            [Some(rows), None] | [None, Some(rows)] => flat(rows)?,
            [None, None] => Tensor::new(),
        })
    }
}

/// Where queries and texts that attend to one another stand: as sequences where every position has a
/// row; stacked, with a map to sequences of Q + T, where padding has none.
fn pair_layout(queries: i64, text: &TextRows) -> Result<(Layout, RowMap), ModelError> {
    let (batch, length) = (text.batch, queries + text.length);
    let query_rows = batch * queries;
    let Some(sparse) = &text.index else {
        let layout = Layout::Sequences {
            batch,
            queries,
            text: text.length,
        };
        return Ok((layout, RowMap::dense(batch, length)));
    };
    let places: Vec<i64> = (0..query_rows)
        .map(|row| row / queries * length + row % queries)
        .chain(
            sparse
                .places
                .iter()
                .map(|place| place / text.length * length + queries + place % text.length),
        )
        .collect();
    let map = RowMap::sparse(&places, batch, length, sparse.index.device())?;
    Ok((Layout::Stacked { query_rows }, map))
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
        assert_eq!(text.index.as_ref().unwrap().places, [0, 1, 3, 4, 5, 6]);
        assert_eq!(text.first_rows(), [0, 2, 5]);
        let values = Tensor::arange(9, (Kind::Int64, Device::Cpu)).view([3, 3]) * 10;
        let list = |t: &Tensor| Vec::<i64>::try_from(t).unwrap();
        assert_eq!(
            list(&text.select(&values).unwrap()),
            [0, 10, 30, 40, 50, 60]
        );
        assert!(
            matches!(text.positions(), Positions::Listed(at) if list(at) == [0, 1, 0, 1, 2, 0])
        );
        assert!(TextRows::new(&[3, 3], 3, Device::Cpu)
            .unwrap()
            .index
            .is_none());
        let all = TextRows::all(3, 3);
        assert_eq!(list(&all.select(&values).unwrap()), list(&values.view(-1)));
        let rows = Tensor::arange(9, (Kind::Float, Device::Cpu)).view([9, 1]);
        assert_eq!(
            list(
                &all.first_of_each(&rows)
                    .unwrap()
                    .view(-1)
                    .to_kind(Kind::Int64)
            ),
            [0, 3, 6]
        );
        assert_eq!(
            list(
                &text
                    .first_of_each(&rows.narrow(0, 0, 6))
                    .unwrap()
                    .view(-1)
                    .to_kind(Kind::Int64)
            ),
            [0, 2, 5]
        );
    }
}
