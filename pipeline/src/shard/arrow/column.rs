//! One column of a record batch: its nodes and buffers checked, held as arrow2 arrays.
//!
//! Everything that a value access relies on is checked here, once a batch: buffer sizes against
//! the number of rows, offsets (not negative, not falling, within their data), bitmap sizes and
//! dictionary indices. Text is kept as bytes, so that one string that is not UTF-8 costs its own
//! sample and not the batch.

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
use super::schema::{Counts, Field, IndexType, Kind};

/// Dictionaries that were read so far, by id.
pub(super) type Dictionaries = HashMap<i64, Arc<Dictionary>>;

/// The layouts that this reader decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Binary or text, dictionary-encoded or not.
    Leaf,
    /// A list of leaves.
    List,
    /// A struct with a binary and perhaps a text child: the indices of `bytes` and `path`.
    Image { bytes: usize, path: Option<usize> },
}

impl Shape {
    /// The shape of a field, if it is one of them.
    pub(super) fn of(field: &Field) -> Option<Shape> {
        match field.kind {
            Kind::Binary { .. } | Kind::Text { .. } if field.children.is_empty() => {
                Some(Shape::Leaf)
            }
            Kind::List { .. } if field.dictionary.is_none() => {
                let child = field.children.first()?;
                (Shape::of(child)? == Shape::Leaf).then_some(Shape::List)
            }
            Kind::Struct if field.dictionary.is_none() => {
                let child = |name| field.children.iter().position(|child| child.name == name);
                let (bytes, path) = (child("bytes")?, child("path"));
                let kind = |index: usize| field.children.get(index).map(|child| child.kind);
                let is_image = matches!(kind(bytes), Some(Kind::Binary { .. }))
                    && path.is_none_or(|path| matches!(kind(path), Some(Kind::Text { .. })));
                is_image.then_some(Shape::Image { bytes, path })
            }
            _ => None,
        }
    }

    /// The leaf fields below (and including) `field`.
    pub(super) fn leaves(self, field: &Field) -> Vec<&Field> {
        match self {
            Shape::Leaf => vec![field],
            Shape::List => field.children.iter().collect(),
            Shape::Image { bytes, path } => [Some(bytes), path]
                .into_iter()
                .flatten()
                .filter_map(|index| field.children.get(index))
                .collect(),
        }
    }
}

/// A decoded column.
#[derive(Debug)]
pub(super) enum Column {
    Leaf(Leaf),
    List {
        rows: Rows,
        offsets: OffsetsBuffer<i64>,
        values: Leaf,
    },
    Image {
        rows: Rows,
        bytes: Leaf,
        path: Option<Leaf>,
    },
}

/// Number of rows and which of them are null.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    len: usize,
    validity: Option<Bitmap>,
}

impl Rows {
    fn is_valid(&self, row: usize) -> bool {
        row < self.len
            && self
                .validity
                .as_ref()
                .is_none_or(|validity| validity.get_bit(row))
    }
}

impl Column {
    /// The value of a leaf, the `bytes` of an image; `None` if null.
    pub(super) fn bytes(&self, row: usize) -> Option<&[u8]> {
        match self {
            Column::Leaf(leaf) => leaf.get(row),
            Column::Image { rows, bytes, .. } if rows.is_valid(row) => bytes.get(row),
            Column::Image { .. } | Column::List { .. } => None,
        }
    }

    /// The `path` of an image, if it has one.
    pub(super) fn path(&self, row: usize) -> Option<&[u8]> {
        match self {
            Column::Image {
                rows,
                path: Some(path),
                ..
            } if rows.is_valid(row) => path.get(row),
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
                let (start, end) = offsets.start_end(row);
                Some((start..end).filter_map(|index| values.get(index)).collect())
            }
            Column::Leaf(leaf) => leaf.get(row).map(|value| vec![value]),
            Column::Image { .. } => None,
        }
    }
}

/// Binary or text values.
#[derive(Debug)]
pub(super) enum Leaf {
    Plain(BinaryArray<i64>),
    Indexed {
        rows: Rows,
        indices: Indices,
        values: Arc<Dictionary>,
    },
}

impl Leaf {
    fn len(&self) -> usize {
        match self {
            Leaf::Plain(array) => array.len(),
            Leaf::Indexed { rows, .. } => rows.len,
        }
    }

    /// The value of a row; `None` if null.
    pub(super) fn get(&self, row: usize) -> Option<&[u8]> {
        match self {
            Leaf::Plain(array) => (row < array.len()).then(|| array.get(row)).flatten(),
            Leaf::Indexed {
                rows,
                indices,
                values,
            } => {
                if !rows.is_valid(row) {
                    return None;
                }
                values.get(indices.get(row)?)
            }
        }
    }
}

/// Dictionary indices as they are stored: widening them would multiply their memory by eight.
#[derive(Debug)]
pub(super) struct Indices {
    bytes: Buffer<u8>,
    index_type: IndexType,
}

impl Indices {
    fn get(&self, row: usize) -> Option<usize> {
        let width = self.index_type.width_bytes;
        let start = row.checked_mul(width)?;
        let stored = self
            .bytes
            .as_slice()
            .get(start..start.checked_add(width)?)?;
        let is_negative = self.index_type.signed && stored.last().is_some_and(|&top| top >= 0x80);
        if is_negative {
            return None;
        }
        let mut wide = [0; 8];
        wide.get_mut(..width)?.copy_from_slice(stored);
        usize::try_from(u64::from_le_bytes(wide)).ok()
    }
}

/// The error for a field whose number of buffers the schema does not tell.
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
    next: Counts,
    version: MetadataVersion,
    body: Body,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(
        batch: RecordBatchRef<'a>,
        version: MetadataVersion,
        body: Vec<u8>,
        max_message_bytes: u64,
    ) -> Result<Self, ArrowError> {
        Ok(Cursor {
            nodes: batch.nodes()?,
            buffers: batch.buffers()?,
            next: Counts::default(),
            version,
            body: Body::new(body, batch.compression()?, max_message_bytes)?,
        })
    }

    /// Goes to the first node and buffer of a field.
    pub(super) fn seek(&mut self, start: Counts) {
        self.next = start;
    }

    /// Passes over a field.
    fn skip(&mut self, field: &Field) -> Result<(), ArrowError> {
        let counts = field
            .counts(self.version)
            .ok_or_else(|| cannot_be_passed_over(field))?;
        self.next = self.next.plus(counts);
        Ok(())
    }

    /// Decodes a field of the given shape and exactly `rows` rows.
    pub(super) fn column(
        &mut self,
        field: &Field,
        shape: Shape,
        rows: usize,
        dictionaries: &Dictionaries,
    ) -> Result<Column, ArrowError> {
        let (column, len) = match shape {
            Shape::Leaf => {
                let leaf = self.leaf(field, dictionaries)?;
                let len = leaf.len();
                (Column::Leaf(leaf), len)
            }
            Shape::List => self.list(field, dictionaries)?,
            Shape::Image { bytes, path } => self.image(field, bytes, path, dictionaries)?,
        };
        if len != rows {
            return Err(malformed(format!("{len} rows in a batch of {rows}")));
        }
        Ok(column)
    }

    fn list(
        &mut self,
        field: &Field,
        dictionaries: &Dictionaries,
    ) -> Result<(Column, usize), ArrowError> {
        let rows = self.rows()?;
        let large = field.kind == Kind::List { large: true };
        let offsets = self.offsets(rows.len, large)?;
        let Some(child) = field.children.first() else {
            return Err(malformed("a list without a child"));
        };
        let values = self.leaf(child, dictionaries)?;
        let end = offsets.as_slice().last().copied().unwrap_or(0);
        if usize::try_from(end).map_or(true, |end| end > values.len()) {
            return Err(malformed(format!(
                "list offsets reach {end}, the list holds {} values",
                values.len()
            )));
        }
        let len = rows.len;
        let column = Column::List {
            rows,
            offsets,
            values,
        };
        Ok((column, len))
    }

    fn image(
        &mut self,
        field: &Field,
        bytes_index: usize,
        path_index: Option<usize>,
        dictionaries: &Dictionaries,
    ) -> Result<(Column, usize), ArrowError> {
        let rows = self.rows()?;
        let (mut bytes, mut path) = (None, None);
        // Children behind the last needed one are not walked: the next column seeks its own start.
        let last_needed = bytes_index.max(path_index.unwrap_or(0));
        for (index, child) in field.children.iter().enumerate().take(last_needed + 1) {
            let slot = if index == bytes_index {
                &mut bytes
            } else if Some(index) == path_index {
                &mut path
            } else {
                self.skip(child)?;
                continue;
            };
            let leaf = self.leaf(child, dictionaries)?;
            if leaf.len() < rows.len {
                return Err(malformed(format!(
                    "`{}` has {} rows, its struct {}",
                    child.name,
                    leaf.len(),
                    rows.len
                )));
            }
            *slot = Some(leaf);
        }
        let Some(bytes) = bytes else {
            return Err(malformed("an image struct without `bytes`"));
        };
        let len = rows.len;
        Ok((Column::Image { rows, bytes, path }, len))
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
            None => self.plain(rows, field.kind).map(Leaf::Plain),
        }
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

    /// The next node and its validity buffer.
    fn rows(&mut self) -> Result<Rows, ArrowError> {
        let node = self
            .nodes
            .and_then(|nodes| nodes.get(self.next.nodes))
            .ok_or_else(|| malformed("the batch has fewer nodes than the schema"))?;
        self.next.nodes += 1;
        let (length, null_count) = (node.length(), node.null_count());
        let len = usize::try_from(length).map_err(|_| malformed(format!("{length} rows")))?;
        // -1: not counted.
        if null_count < -1 || null_count > length {
            return Err(malformed(format!("{null_count} nulls in {length} rows")));
        }
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
