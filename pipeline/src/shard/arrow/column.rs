//! One column of a record batch: its nodes and buffers checked, held as arrow2 arrays.
//!
//! Everything that a value access relies on is checked here, once a batch: buffer sizes against
//! the number of rows, offsets (not negative, not falling, within their data), bitmap sizes,
//! dictionary indices, views and run ends. Text is kept as bytes, so that one string that is not
//! UTF-8 costs its own sample and not the batch.

use std::collections::HashMap;
use std::sync::Arc;

use arrow2::array::BinaryArray;
use arrow2::bitmap::Bitmap;
use arrow2::buffer::Buffer;
use arrow2::datatypes::DataType;
use arrow2::offset::OffsetsBuffer;
use arrow_format::ipc::planus::Vector;
use arrow_format::ipc::{BufferRef, FieldNodeRef, MetadataVersion, RecordBatchRef};

use super::body::Body;
use super::dictionary::Dictionary;
use super::error::{malformed, ArrowError};
use super::leaf::{Indices, Leaf, Rows, RunEnds, Views};
use super::scalar::Scalar;
use super::schema::{Counts, Field, IndexType, Kind};
use super::shape::{Child, Shape};

/// Most rows of a run-end encoded column in one batch: a few bytes could stand for any number.
const MAX_RUN_END_ROWS: usize = 1 << 24;

/// Dictionaries that were read so far, by id.
pub(super) type Dictionaries = HashMap<i64, Arc<Dictionary>>;

/// A decoded column.
#[derive(Debug)]
pub(super) enum Column {
    Leaf(Leaf),
    List {
        rows: Rows,
        offsets: Offsets,
        values: Box<Column>,
    },
    Struct {
        rows: Rows,
        child: Box<Column>,
    },
    Image {
        rows: Rows,
        bytes: Box<Column>,
        path: Option<Box<Column>>,
    },
    Runs {
        ends: RunEnds,
        values: Box<Column>,
    },
    Scalars {
        rows: Rows,
        data: Buffer<u8>,
        scalar: Scalar,
    },
    /// Children with their names.
    Record {
        rows: Rows,
        fields: Vec<(String, Column)>,
    },
    Map {
        rows: Rows,
        offsets: Offsets,
        keys: Box<Column>,
        values: Box<Column>,
    },
    Nothing {
        len: usize,
    },
}

/// Where the values of a list's row lie.
#[derive(Debug)]
pub(super) enum Offsets {
    Stored(OffsetsBuffer<i64>),
    /// So many a row.
    Fixed(usize),
}

impl Offsets {
    pub(super) fn of_row(&self, row: usize) -> (usize, usize) {
        match self {
            Offsets::Stored(offsets) => offsets.start_end(row),
            Offsets::Fixed(size) => (row.saturating_mul(*size), (row + 1).saturating_mul(*size)),
        }
    }

    /// # Errors
    /// That those of so many rows reach beyond the values there are.
    fn check(&self, rows: usize, values: usize) -> Result<(), ArrowError> {
        let end = match self {
            Offsets::Fixed(size) => rows.checked_mul(*size),
            Offsets::Stored(offsets) => {
                usize::try_from(offsets.as_slice().last().copied().unwrap_or(0)).ok()
            }
        };
        match end {
            Some(end) if end <= values => Ok(()),
            _ => Err(malformed(format!(
                "list offsets reach beyond the {values} values that the list holds"
            ))),
        }
    }
}

impl Column {
    fn len(&self) -> usize {
        match self {
            Column::Leaf(leaf) => leaf.len(),
            Column::List { rows, .. }
            | Column::Struct { rows, .. }
            | Column::Image { rows, .. }
            | Column::Scalars { rows, .. }
            | Column::Record { rows, .. }
            | Column::Map { rows, .. } => rows.len,
            Column::Runs { ends, .. } => ends.rows,
            Column::Nothing { len } => *len,
        }
    }

    /// The value of a leaf, the `bytes` of an image; `None` if null.
    pub(super) fn bytes(&self, row: usize) -> Option<&[u8]> {
        match self {
            Column::Leaf(leaf) => leaf.get(row),
            Column::Image { rows, bytes, .. } if rows.is_valid(row) => bytes.bytes(row),
            Column::Struct { rows, child } if rows.is_valid(row) => child.bytes(row),
            Column::Runs { ends, values } => values.bytes(ends.run_of(row)?),
            _ => None,
        }
    }

    /// The `path` of an image, if it has one.
    pub(super) fn path(&self, row: usize) -> Option<&[u8]> {
        match self {
            Column::Image {
                rows,
                path: Some(path),
                ..
            } if rows.is_valid(row) => path.bytes(row),
            Column::Runs { ends, values } => values.path(ends.run_of(row)?),
            _ => None,
        }
    }

    /// The values of a list without its nulls, or of a leaf; `None` if null.
    pub(super) fn values(&self, row: usize) -> Option<Vec<&[u8]>> {
        match self {
            Column::List {
                rows,
                offsets,
                values,
            } => {
                if !rows.is_valid(row) {
                    return None;
                }
                let (start, end) = offsets.of_row(row);
                Some(
                    (start..end)
                        .filter_map(|index| values.bytes(index))
                        .collect(),
                )
            }
            Column::Struct { rows, child } => {
                rows.is_valid(row).then(|| child.values(row)).flatten()
            }
            Column::Runs { ends, values } => values.values(ends.run_of(row)?),
            Column::Leaf(leaf) => leaf.get(row).map(|value| vec![value]),
            _ => None,
        }
    }
}

/// The error for a field of a type that is not known here.
pub(super) fn cannot_be_passed_over(field: &Field) -> ArrowError {
    ArrowError::Unsupported(format!(
        "column `{}` ({}) lies before columns that are needed and cannot be passed over",
        field.name,
        field.type_name()
    ))
}

/// Walks the nodes and buffers of a record batch, field after field.
pub(super) struct Cursor<'a> {
    nodes: Option<Vector<'a, FieldNodeRef<'a>>>,
    buffers: Option<Vector<'a, BufferRef<'a>>>,
    /// How many data buffers each view field has.
    variadic: Vec<usize>,
    next: Counts,
    version: MetadataVersion,
    body: Body,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(
        batch: RecordBatchRef<'a>,
        version: MetadataVersion,
        variadic: Vec<usize>,
        body: Vec<u8>,
        max_message_bytes: u64,
    ) -> Result<Self, ArrowError> {
        Ok(Cursor {
            nodes: batch.nodes()?,
            buffers: batch.buffers()?,
            variadic,
            next: Counts::default(),
            version,
            body: Body::new(body, batch.compression()?, max_message_bytes)?,
        })
    }

    /// Goes to the first node and buffer of a field.
    pub(super) fn seek(&mut self, start: Counts) -> Result<(), ArrowError> {
        self.next = Counts::default();
        self.advance(start)
    }

    /// Passes over so much, and over the data buffers of the view fields among it.
    fn advance(&mut self, counts: Counts) -> Result<(), ArrowError> {
        let from = self.next.views;
        let data_buffers = from
            .checked_add(counts.views)
            .and_then(|to| self.variadic.get(from..to))
            .ok_or_else(|| {
                malformed("the batch counts the buffers of fewer views than the schema has")
            })?
            .iter()
            .fold(0, |sum: usize, count| sum.saturating_add(*count));
        self.next = self.next.plus(counts);
        self.next.buffers = self.next.buffers.saturating_add(data_buffers);
        Ok(())
    }

    /// Passes over a field.
    fn skip(&mut self, field: &Field) -> Result<(), ArrowError> {
        let counts = field
            .counts(self.version)
            .ok_or_else(|| cannot_be_passed_over(field))?;
        self.advance(counts)
    }

    /// Decodes a field of the given shape and exactly `rows` rows.
    pub(super) fn column(
        &mut self,
        field: &Field,
        shape: &Shape,
        rows: usize,
        dictionaries: &Dictionaries,
    ) -> Result<Column, ArrowError> {
        let column = self.any_rows(field, shape, dictionaries)?;
        let len = column.len();
        if len != rows {
            return Err(malformed(format!("{len} rows in a batch of {rows}")));
        }
        Ok(column)
    }

    /// Decodes a field of the given shape and as many rows as its node says.
    fn any_rows(
        &mut self,
        field: &Field,
        shape: &Shape,
        dictionaries: &Dictionaries,
    ) -> Result<Column, ArrowError> {
        match shape {
            Shape::Leaf => self.leaf(field, dictionaries).map(Column::Leaf),
            Shape::List(inner) => self.list(field, inner, dictionaries),
            Shape::Struct(child) => {
                let rows = self.rows()?;
                let mut decoded = self.children(field, rows.len, &[child], dictionaries)?;
                let child = decoded.pop();
                let child = child.ok_or_else(|| malformed("a struct without its child"))?;
                Ok(Column::Struct {
                    rows,
                    child: Box::new(child),
                })
            }
            Shape::Image { bytes, path } => {
                let rows = self.rows()?;
                let wanted: Vec<_> = std::iter::once(bytes).chain(path).collect();
                let decoded = self.children(field, rows.len, &wanted, dictionaries)?;
                let mut decoded = decoded.into_iter().map(Box::new);
                let bytes = decoded.next();
                let bytes = bytes.ok_or_else(|| malformed("an image struct without `bytes`"))?;
                let path = decoded.next();
                Ok(Column::Image { rows, bytes, path })
            }
            Shape::Runs(inner) => self.runs(field, inner, dictionaries),
            Shape::Scalar(scalar) => self.scalars(*scalar),
            Shape::Record(children) => {
                let rows = self.rows()?;
                let wanted: Vec<_> = children.iter().collect();
                let decoded = self.children(field, rows.len, &wanted, dictionaries)?;
                let names = children.iter().filter_map(|child| {
                    let field = field.children.get(child.index)?;
                    Some(field.name.clone())
                });
                Ok(Column::Record {
                    rows,
                    fields: names.zip(decoded).collect(),
                })
            }
            Shape::Map { key, value } => self.map(field, [key, value], dictionaries),
            Shape::Nothing => {
                let (len, _) = self.node()?;
                Ok(Column::Nothing { len })
            }
        }
    }

    fn list(
        &mut self,
        field: &Field,
        inner: &Shape,
        dictionaries: &Dictionaries,
    ) -> Result<Column, ArrowError> {
        let rows = self.rows()?;
        let offsets = match field.kind {
            Kind::FixedSizeList { size } => Offsets::Fixed(size),
            kind => {
                let large = kind == Kind::List { large: true };
                Offsets::Stored(self.offsets(rows.len, large)?)
            }
        };
        let Some(child) = field.children.first() else {
            return Err(malformed("a list without a child"));
        };
        let values = Box::new(self.any_rows(child, inner, dictionaries)?);
        offsets.check(rows.len, values.len())?;
        Ok(Column::List {
            rows,
            offsets,
            values,
        })
    }

    /// A map: a list of structs of a key and a value.
    fn map(
        &mut self,
        field: &Field,
        wanted: [&Child; 2],
        dictionaries: &Dictionaries,
    ) -> Result<Column, ArrowError> {
        let rows = self.rows()?;
        let offsets = Offsets::Stored(self.offsets(rows.len, false)?);
        let Some(entries) = field.children.first() else {
            return Err(malformed("a map without entries"));
        };
        let entry_rows = self.rows()?;
        let mut decoded = self.children(entries, entry_rows.len, &wanted, dictionaries)?;
        let (Some(values), Some(keys)) = (decoded.pop(), decoded.pop()) else {
            return Err(malformed("a map without keys and values"));
        };
        offsets.check(rows.len, entry_rows.len)?;
        Ok(Column::Map {
            rows,
            offsets,
            keys: Box::new(keys),
            values: Box::new(values),
        })
    }

    fn scalars(&mut self, scalar: Scalar) -> Result<Column, ArrowError> {
        let rows = self.rows()?;
        let data = self.next_buffer()?;
        let needed = scalar.bytes_of(rows.len);
        if needed.is_none_or(|needed| needed > data.len()) {
            return Err(malformed(format!(
                "{} bytes of values for {} rows",
                data.len(),
                rows.len
            )));
        }
        Ok(Column::Scalars { rows, data, scalar })
    }

    /// The wanted children of a struct of so many rows, in the order in which they are asked for; they may
    /// stand in any.
    fn children(
        &mut self,
        field: &Field,
        rows: usize,
        wanted: &[&Child],
        dictionaries: &Dictionaries,
    ) -> Result<Vec<Column>, ArrowError> {
        let mut decoded: Vec<_> = wanted.iter().map(|_| None).collect();
        let last = wanted.iter().map(|child| child.index).max();
        for (index, child) in field.children.iter().enumerate() {
            let slot = wanted.iter().position(|wanted| wanted.index == index);
            let Some((slot, wanted)) = slot.and_then(|slot| Some((slot, wanted.get(slot)?))) else {
                // Behind the last that is needed, a child of unknown size is no obstacle: where one is,
                // nothing of the column follows.
                if last.is_none_or(|last| index > last) && child.counts(self.version).is_none() {
                    break;
                }
                self.skip(child)?;
                continue;
            };
            let column = self.any_rows(child, &wanted.shape, dictionaries)?;
            if column.len() < rows {
                return Err(malformed(format!(
                    "`{}` has {} rows, its struct {rows}",
                    child.name,
                    column.len(),
                )));
            }
            if let Some(place) = decoded.get_mut(slot) {
                *place = Some(column);
            }
        }
        let decoded: Option<Vec<_>> = decoded.into_iter().collect();
        decoded.ok_or_else(|| malformed(format!("`{}` lacks a child", field.name)))
    }

    fn runs(
        &mut self,
        field: &Field,
        inner: &Shape,
        dictionaries: &Dictionaries,
    ) -> Result<Column, ArrowError> {
        // It has no validity of its own.
        let (rows, _) = self.node()?;
        if rows > MAX_RUN_END_ROWS {
            return Err(ArrowError::TooLarge {
                what: "a run-end encoded column in rows",
                bytes: rows as u64,
                limit: MAX_RUN_END_ROWS as u64,
                setting: "no setting: write smaller record batches",
            });
        }
        let [run_ends, values] = field.children.as_slice() else {
            return Err(malformed("run-end encoding without run ends and values"));
        };
        let Kind::Int(index_type) = run_ends.kind else {
            return Err(malformed("run ends that are no whole numbers"));
        };
        let runs = self.rows()?;
        let ends = Indices {
            bytes: self.next_buffer()?,
            index_type,
        };
        let ends = RunEnds::new(ends, runs.len, rows)?;
        let values = Box::new(self.any_rows(values, inner, dictionaries)?);
        if values.len() < runs.len {
            return Err(malformed(format!(
                "{} values for {} runs",
                values.len(),
                runs.len
            )));
        }
        Ok(Column::Runs { ends, values })
    }

    /// Decodes a leaf of any length: a column, or the child of one.
    pub(super) fn leaf(
        &mut self,
        field: &Field,
        dictionaries: &Dictionaries,
    ) -> Result<Leaf, ArrowError> {
        let rows = self.rows()?;
        match field.dictionary {
            Some(encoding) => {
                let values = dictionaries.get(&encoding.id).cloned().unwrap_or_default();
                self.indexed(rows, encoding.index, values)
                    .map_err(|error| match error {
                        ArrowError::Malformed(problem) => malformed(format!(
                            "{problem} (dictionary {}; it must precede the batches that use it)",
                            encoding.id
                        )),
                        other => other,
                    })
            }
            None if matches!(field.kind, Kind::BinaryView | Kind::TextView) => self.views(rows),
            None => self.plain(rows, field.kind).map(Leaf::Plain),
        }
    }

    fn views(&mut self, rows: Rows) -> Result<Leaf, ArrowError> {
        let data_buffers = *self
            .variadic
            .get(self.next.views)
            .ok_or_else(|| malformed("the batch does not count the buffers of a view column"))?;
        self.next.views += 1;
        let views = self.next_buffer()?;
        let mut data = Vec::new();
        for _ in 0..data_buffers {
            data.push(self.next_buffer()?);
        }
        Views::new(rows, views, data).map(Leaf::Views)
    }

    fn plain(&mut self, rows: Rows, kind: Kind) -> Result<BinaryArray<i64>, ArrowError> {
        let large = match kind {
            Kind::Binary { large } | Kind::Text { large } => large,
            other => return Err(malformed(format!("{other:?} where values belong"))),
        };
        let offsets = self.offsets(rows.len, large)?;
        let values = self.next_buffer()?;
        // arrow2 checks here that the offsets end within the values.
        BinaryArray::try_new(DataType::LargeBinary, offsets, values, rows.validity)
            .map_err(|error| malformed(error.to_string()))
    }

    fn indexed(
        &mut self,
        rows: Rows,
        index_type: IndexType,
        values: Arc<Dictionary>,
    ) -> Result<Leaf, ArrowError> {
        let indices = Indices {
            bytes: self.next_buffer()?,
            index_type,
        };
        let needed = rows.len.checked_mul(index_type.width_bytes);
        if needed.is_none_or(|needed| needed > indices.bytes.len()) {
            return Err(malformed(format!(
                "{} bytes of dictionary indices for {} rows",
                indices.bytes.len(),
                rows.len
            )));
        }
        for row in (0..rows.len).filter(|&row| rows.is_valid(row)) {
            if indices.get(row).is_none_or(|index| index >= values.len()) {
                return Err(malformed(format!(
                    "the dictionary index of row {row} is none of {} values",
                    values.len()
                )));
            }
        }
        Ok(Leaf::Indexed {
            rows,
            indices,
            values,
        })
    }

    /// The next node: rows, and how many of them are null, -1 where that is not counted.
    fn node(&mut self) -> Result<(usize, i64), ArrowError> {
        let node = self
            .nodes
            .and_then(|nodes| nodes.get(self.next.nodes))
            .ok_or_else(|| malformed("the batch has fewer nodes than the schema"))?;
        self.next.nodes += 1;
        let (length, null_count) = (node.length(), node.null_count());
        let len = usize::try_from(length).map_err(|_| malformed(format!("{length} rows")))?;
        if null_count < -1 || null_count > length {
            return Err(malformed(format!("{null_count} nulls in {length} rows")));
        }
        Ok((len, null_count))
    }

    /// The next node and its validity buffer.
    fn rows(&mut self) -> Result<Rows, ArrowError> {
        let (len, null_count) = self.node()?;
        if null_count == 0 {
            self.next.buffers += 1;
            return Ok(Rows {
                len,
                validity: None,
            });
        }
        let bits = self.next_buffer()?;
        if null_count == -1 && bits.is_empty() {
            return Ok(Rows {
                len,
                validity: None,
            });
        }
        let Some(bits) = bits.as_slice().get(..len.div_ceil(8)) else {
            return Err(malformed(format!(
                "a validity bitmap of {} bytes for {len} rows",
                bits.len()
            )));
        };
        let validity =
            Bitmap::try_new(bits.to_vec(), len).map_err(|error| malformed(error.to_string()))?;
        Ok(Rows {
            len,
            validity: Some(validity),
        })
    }

    /// The next buffer as the offsets of `rows` values.
    fn offsets(&mut self, rows: usize, large: bool) -> Result<OffsetsBuffer<i64>, ArrowError> {
        let stored = self.next_buffer()?;
        if rows == 0 {
            // Some writers leave the buffer empty instead of storing one zero.
            return Ok(OffsetsBuffer::new());
        }
        let width = if large { 8 } else { 4 };
        let used = rows
            .checked_add(1)
            .and_then(|count| count.checked_mul(width))
            .and_then(|bytes| stored.as_slice().get(..bytes))
            .ok_or_else(|| {
                malformed(format!("{} bytes of offsets for {rows} rows", stored.len()))
            })?;
        let offsets: Vec<i64> = if large {
            let (chunks, _) = used.as_chunks::<8>();
            chunks
                .iter()
                .map(|&bytes| i64::from_le_bytes(bytes))
                .collect()
        } else {
            let (chunks, _) = used.as_chunks::<4>();
            chunks
                .iter()
                .map(|&bytes| i64::from(i32::from_le_bytes(bytes)))
                .collect()
        };
        // arrow2 checks here that they begin at or above zero and never fall.
        OffsetsBuffer::try_from(offsets).map_err(|error| malformed(error.to_string()))
    }

    fn next_buffer(&mut self) -> Result<Buffer<u8>, ArrowError> {
        let location = self
            .buffers
            .and_then(|buffers| buffers.get(self.next.buffers))
            .ok_or_else(|| malformed("the batch has fewer buffers than the schema"))?;
        self.next.buffers += 1;
        self.body.buffer(location)
    }
}
