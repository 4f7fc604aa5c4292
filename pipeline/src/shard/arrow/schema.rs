//! The schema message as a tree of fields, read within limits, and how many nodes and buffers of a
//! record batch each field takes.
//!
//! A flatbuffer may nest tables as deep as its length allows and refer to one table from many
//! places, so depth, number of fields and bytes of names are all bounded here.

use arrow_format::ipc::planus::errors::ErrorKind;
use arrow_format::ipc::{
    Endianness, FieldRef, IntRef, MessageHeaderRef, MessageRef, MetadataVersion, TypeRef, UnionMode,
};

use super::error::{malformed, ArrowError};
pub(super) use super::scalar::IndexType;
use super::scalar::Scalar;

/// Deepest nesting of a field.
const MAX_DEPTH: usize = 64;
/// Most fields of a schema, children included.
const MAX_FIELDS: usize = 1 << 16;
/// Most bytes that the names of all fields may take.
const MAX_NAMES_BYTES: usize = 16 << 20;

/// A column, or a child of one.
#[derive(Clone, Debug)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Set if batches hold indices into a dictionary whose values are of `kind`.
    pub(super) dictionary: Option<DictionaryEncoding>,
    pub(super) children: Vec<Field>,
}

/// Physical type, as far as this reader tells types apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    /// Floating-point numbers, dates, booleans, fixed-size binaries: a validity and a data buffer. With
    /// what it is, where JSON has a place for it.
    Fixed(Option<Scalar>),
    /// Whole numbers: the same buffers.
    Int(IndexType),
    /// `binary`, `large_binary`.
    Binary {
        large: bool,
    },
    /// `string`, `large_string`.
    Text {
        large: bool,
    },
    /// `binary_view`: a validity and a views buffer, then as many data buffers as the batch says.
    BinaryView,
    /// `string_view`, the same.
    TextView,
    /// `list`, `large_list`.
    List {
        large: bool,
    },
    /// So many values a row.
    FixedSizeList {
        size: usize,
    },
    Map,
    Struct,
    Union {
        dense: bool,
    },
    RunEndEncoded,
    ListView,
    /// A type that came after this reader: nobody knows how many buffers it has.
    Unknown,
}

impl Kind {
    /// Whether values are bytes or text of any length.
    pub(super) fn is_leaf(self) -> bool {
        self.is_binary() || self.is_text()
    }

    pub(super) fn is_binary(self) -> bool {
        matches!(self, Kind::Binary { .. } | Kind::BinaryView)
    }

    pub(super) fn is_text(self) -> bool {
        matches!(self, Kind::Text { .. } | Kind::TextView)
    }

    /// The scalar that values are, if JSON has a place for it.
    pub(super) fn scalar(self) -> Option<Scalar> {
        match self {
            Kind::Int(int) => Some(Scalar::Int(int)),
            Kind::Fixed(scalar) => scalar,
            _ => None,
        }
    }
}

/// Indices into a dictionary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DictionaryEncoding {
    pub(super) id: i64,
    pub(super) index: IndexType,
}

/// Entries of a record batch's `nodes` and `buffers` that belong to one field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) nodes: usize,
    /// Without the data buffers of view types.
    pub(super) buffers: usize,
    /// Fields of a view type, each with an entry in the batch's `variadicBufferCounts`.
    pub(super) views: usize,
}

impl Counts {
    /// The sum; a schema's limits keep it far from overflow.
    pub(super) fn plus(self, other: Counts) -> Counts {
        Counts {
            nodes: self.nodes.saturating_add(other.nodes),
            buffers: self.buffers.saturating_add(other.buffers),
            views: self.views.saturating_add(other.views),
        }
    }
}

impl Field {
    /// What the field takes in a record batch; `None` for a type that nobody here knows.
    pub(super) fn counts(&self, version: MetadataVersion) -> Option<Counts> {
        if self.dictionary.is_some() {
            return Some(Counts {
                nodes: 1,
                buffers: 2,
                views: 0,
            });
        }
        let own_buffers = match self.kind {
            Kind::Null | Kind::RunEndEncoded => 0,
            Kind::Struct | Kind::FixedSizeList { .. } => 1,
            Kind::Fixed(_) | Kind::Int(_) | Kind::List { .. } | Kind::Map => 2,
            Kind::BinaryView | Kind::TextView => 2,
            Kind::Binary { .. } | Kind::Text { .. } | Kind::ListView => 3,
            // Version 4 gave unions a validity buffer, version 5 took it away.
            Kind::Union { dense } => {
                1 + usize::from(dense) + usize::from(version == MetadataVersion::V4)
            }
            Kind::Unknown => return None,
        };
        let mut counts = Counts {
            nodes: 1,
            buffers: own_buffers,
            views: usize::from(matches!(self.kind, Kind::BinaryView | Kind::TextView)),
        };
        for child in &self.children {
            counts = counts.plus(child.counts(version)?);
        }
        Some(counts)
    }

    /// The type in the words of Arrow, for messages.
    pub(super) fn type_name(&self) -> String {
        let name = match self.kind {
            Kind::Null => "null",
            Kind::Fixed(_) => "a fixed-width type",
            Kind::Int(_) => "a whole number",
            Kind::BinaryView => "binary_view",
            Kind::TextView => "string_view",
            Kind::Binary { large: false } => "binary",
            Kind::Binary { large: true } => "large_binary",
            Kind::Text { large: false } => "string",
            Kind::Text { large: true } => "large_string",
            Kind::List { large: false } => "list",
            Kind::List { large: true } => "large_list",
            Kind::FixedSizeList { .. } => "fixed_size_list",
            Kind::Map => "map",
            Kind::Struct => "struct",
            Kind::Union { .. } => "union",
            Kind::RunEndEncoded => "run_end_encoded",
            Kind::ListView => "list_view",
            Kind::Unknown => "an unknown type",
        };
        let children: Vec<_> = self.children.iter().map(Field::type_name).collect();
        let mut text = name.to_string();
        if !children.is_empty() && children.iter().map(String::len).sum::<usize>() < 200 {
            text = format!("{text}<{}>", children.join(", "));
        }
        if self.dictionary.is_some() {
            text = format!("dictionary<{text}>");
        }
        text
    }
}

/// Reads the columns of a schema message.
pub(super) fn read_schema(message: MessageRef<'_>) -> Result<Vec<Field>, ArrowError> {
    let Some(MessageHeaderRef::Schema(schema)) = message.header()? else {
        return Err(malformed("the first message is not a schema"));
    };
    if schema.endianness()? == Endianness::Big {
        return Err(ArrowError::Unsupported("the shard is big-endian".into()));
    }
    let mut budget = Budget {
        fields: MAX_FIELDS,
        names_bytes: MAX_NAMES_BYTES,
    };
    let Some(fields) = schema.fields()? else {
        return Ok(Vec::new());
    };
    fields
        .iter()
        .map(|field| read_field(field?, &mut budget, 1))
        .collect()
}

struct Budget {
    fields: usize,
    names_bytes: usize,
}

fn read_field(field: FieldRef<'_>, budget: &mut Budget, depth: usize) -> Result<Field, ArrowError> {
    let name = field.name()?.unwrap_or_default();
    let fields_left = budget.fields.checked_sub(1);
    let names_left = budget.names_bytes.checked_sub(name.len());
    let (Some(fields), Some(names_bytes), true) = (fields_left, names_left, depth <= MAX_DEPTH)
    else {
        return Err(malformed(format!(
            "the schema exceeds {MAX_FIELDS} fields, {MAX_DEPTH} levels or {MAX_NAMES_BYTES} bytes of names"
        )));
    };
    *budget = Budget {
        fields,
        names_bytes,
    };
    let mut children = Vec::new();
    for child in field.children()?.iter().flat_map(|list| list.iter()) {
        children.push(read_field(child?, budget, depth + 1)?);
    }
    let kind = read_kind(field)?;
    let expected = match kind {
        Kind::List { .. } | Kind::FixedSizeList { .. } | Kind::Map => Some((1, "one belongs")),
        Kind::RunEndEncoded => Some((2, "run ends and values belong")),
        _ => None,
    };
    if let Some((_, what)) = expected.filter(|(count, _)| *count != children.len()) {
        return Err(malformed(format!(
            "column `{name}`: {} children where {what}",
            children.len()
        )));
    }
    let dictionary = match field.dictionary()? {
        None => None,
        Some(dictionary) => Some(DictionaryEncoding {
            id: dictionary.id()?,
            index: read_index_type(dictionary.index_type()?)?,
        }),
    };
    Ok(Field {
        name: name.to_string(),
        kind,
        dictionary,
        children,
    })
}

fn read_kind(field: FieldRef<'_>) -> Result<Kind, ArrowError> {
    let type_ = match field.type_() {
        Ok(Some(type_)) => type_,
        Ok(None) => return Err(malformed("a field has no type")),
        // Types that came after the flatbuffer definitions in use; tags as in Apache's Schema.fbs.
        Err(error) => {
            return match error.error_kind {
                ErrorKind::UnknownUnionTag { tag: 22 } => Ok(Kind::RunEndEncoded),
                ErrorKind::UnknownUnionTag { tag: 23 } => Ok(Kind::BinaryView),
                ErrorKind::UnknownUnionTag { tag: 24 } => Ok(Kind::TextView),
                ErrorKind::UnknownUnionTag { tag: 25 | 26 } => Ok(Kind::ListView),
                ErrorKind::UnknownUnionTag { .. } => Ok(Kind::Unknown),
                _ => Err(error.into()),
            }
        }
    };
    Ok(match type_ {
        TypeRef::Null(_) => Kind::Null,
        TypeRef::Binary(_) => Kind::Binary { large: false },
        TypeRef::LargeBinary(_) => Kind::Binary { large: true },
        TypeRef::Utf8(_) => Kind::Text { large: false },
        TypeRef::LargeUtf8(_) => Kind::Text { large: true },
        TypeRef::List(_) => Kind::List { large: false },
        TypeRef::LargeList(_) => Kind::List { large: true },
        TypeRef::FixedSizeList(list) => {
            let size = list.list_size()?;
            let size = usize::try_from(size)
                .map_err(|_| malformed(format!("a fixed-size list of {size} values")))?;
            Kind::FixedSizeList { size }
        }
        TypeRef::Map(_) => Kind::Map,
        TypeRef::Struct(_) => Kind::Struct,
        TypeRef::Union(union) => Kind::Union {
            dense: union.mode()? == UnionMode::Dense,
        },
        TypeRef::Int(int) => Kind::Int(read_int(int)?),
        TypeRef::FloatingPoint(_)
        | TypeRef::Bool(_)
        | TypeRef::Decimal(_)
        | TypeRef::Date(_)
        | TypeRef::Time(_)
        | TypeRef::Timestamp(_)
        | TypeRef::Interval(_)
        | TypeRef::FixedSizeBinary(_)
        | TypeRef::Duration(_) => Kind::Fixed(Scalar::of(type_)?),
    })
}

fn read_index_type(int: Option<IntRef<'_>>) -> Result<IndexType, ArrowError> {
    // Absent means a signed 32-bit integer (Schema.fbs, `DictionaryEncoding`).
    int.map_or(
        Ok(IndexType {
            width_bytes: 4,
            signed: true,
        }),
        read_int,
    )
}

fn read_int(int: IntRef<'_>) -> Result<IndexType, ArrowError> {
    let width_bytes = match int.bit_width()? {
        8 => 1,
        16 => 2,
        32 => 4,
        64 => 8,
        bits => return Err(malformed(format!("whole numbers of {bits} bits"))),
    };
    Ok(IndexType {
        width_bytes,
        signed: int.is_signed()?,
    })
}
