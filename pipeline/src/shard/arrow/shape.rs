//! Which columns this reader decodes: a column's layout, told by its field.

use arrow_format::ipc::MetadataVersion;

use super::scalar::Scalar;
use super::schema::{Field, Kind};
use crate::captions::names;

/// The layouts that are decoded. What is in a box is the layout of the values inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Binary or text, dictionary-encoded or not, of any offset width, views included.
    Leaf,
    /// A list of any kind but `list_view`.
    List(Box<Shape>),
    /// A struct of which one child counts, e.g. the `raw` of a sentence.
    Struct(Child),
    /// A struct with binary `bytes` and perhaps a text `path`.
    Image { bytes: Child, path: Option<Child> },
    /// Run-end encoded values.
    Runs(Box<Shape>),
    /// Numbers, booleans, dates, times.
    Scalar(Scalar),
    /// A struct of which all children are wanted that JSON has a place for.
    Record(Vec<Child>),
    /// A map, with its keys and its values.
    Map { key: Child, value: Child },
    /// Nothing but nulls.
    Nothing,
}

/// A child of a struct that is decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Child {
    /// Among the children of the struct.
    pub(super) index: usize,
    pub(super) shape: Box<Shape>,
}

/// What a member made of a column would hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Bytes,
    Text,
    Image,
}

impl Shape {
    /// The shape of a field, if it is one of them.
    pub(super) fn of(field: &Field) -> Option<Shape> {
        Shape::image(field).or_else(|| Shape::values(field, true))
    }

    /// What it holds; `None` where leaves are binary below a list, which becomes no member.
    pub(super) fn content(&self, field: &Field) -> Option<Content> {
        match self {
            Shape::Image { .. } => Some(Content::Image),
            Shape::Leaf if field.kind.is_binary() => Some(Content::Bytes),
            Shape::Leaf => Some(Content::Text),
            Shape::Runs(inner) => inner.content(field.children.get(1)?),
            Shape::Scalar(_) | Shape::Record(_) | Shape::Map { .. } | Shape::Nothing => None,
            Shape::List(_) | Shape::Struct(_) => {
                let leaf = *self.leaves(field).first()?;
                leaf.kind.is_text().then_some(Content::Text)
            }
        }
    }

    /// The leaf fields below (and including) `field`.
    pub(super) fn leaves<'a>(&self, field: &'a Field) -> Vec<&'a Field> {
        let below = |child: &Child| {
            let field = field.children.get(child.index);
            field.map(|field| child.shape.leaves(field))
        };
        match self {
            Shape::Leaf => vec![field],
            Shape::List(inner) => {
                let child = field.children.first();
                child.map(|child| inner.leaves(child)).unwrap_or_default()
            }
            Shape::Runs(inner) => {
                let values = field.children.get(1);
                values
                    .map(|values| inner.leaves(values))
                    .unwrap_or_default()
            }
            Shape::Struct(child) => below(child).unwrap_or_default(),
            Shape::Image { bytes, path } => {
                let children = std::iter::once(bytes).chain(path);
                children.filter_map(below).flatten().collect()
            }
            Shape::Record(children) => children.iter().filter_map(below).flatten().collect(),
            Shape::Map { key, value } => {
                let Some(entries) = field.children.first() else {
                    return Vec::new();
                };
                let of = |child: &Child| {
                    let field = entries.children.get(child.index);
                    field.map(|field| child.shape.leaves(field))
                };
                [key, value].into_iter().filter_map(of).flatten().collect()
            }
            Shape::Scalar(_) | Shape::Nothing => Vec::new(),
        }
    }

    /// The shape of all of a field that JSON has a place for: not bytes, and no type that is not decoded.
    pub(super) fn whole(field: &Field) -> Option<Shape> {
        if field.dictionary.is_some() {
            return field.kind.is_text().then_some(Shape::Leaf);
        }
        let child = |field: &Field, index: usize| {
            Some(Child {
                index,
                shape: Box::new(Shape::whole(field.children.get(index)?)?),
            })
        };
        match field.kind {
            Kind::Text { .. } | Kind::TextView => Some(Shape::Leaf),
            Kind::Null => Some(Shape::Nothing),
            Kind::List { .. } | Kind::FixedSizeList { .. } => {
                Some(Shape::List(child(field, 0)?.shape))
            }
            Kind::RunEndEncoded => Some(Shape::Runs(child(field, 1)?.shape)),
            Kind::Map => {
                let entries = field.children.first()?;
                Some(Shape::Map {
                    key: child(entries, 0)?,
                    value: child(entries, 1)?,
                })
            }
            Kind::Struct => {
                // Behind a child of unknown size nothing is found.
                field.counts(MetadataVersion::V5)?;
                let all = 0..field.children.len();
                let children: Vec<_> = all.filter_map(|at| child(field, at)).collect();
                let is_empty = children.is_empty() && !field.children.is_empty();
                (!is_empty).then_some(Shape::Record(children))
            }
            kind => kind.scalar().map(Shape::Scalar),
        }
    }

    fn image(field: &Field) -> Option<Shape> {
        if field.dictionary.is_some() {
            return None;
        }
        match field.kind {
            Kind::RunEndEncoded => {
                Some(Shape::Runs(Box::new(Shape::image(field.children.get(1)?)?)))
            }
            Kind::Struct => {
                let child = |name: &str, is_kind: fn(Kind) -> bool| {
                    let index = field.children.iter().position(|child| child.name == name)?;
                    let shape = Shape::values(field.children.get(index)?, false)?;
                    let child = Child {
                        index,
                        shape: Box::new(shape),
                    };
                    let leaf = *child.shape.leaves(field.children.get(index)?).first()?;
                    is_kind(leaf.kind).then_some(child)
                };
                Some(Shape::Image {
                    bytes: child("bytes", Kind::is_binary)?,
                    path: child("path", Kind::is_text),
                })
            }
            _ => None,
        }
    }

    /// Leaves, lists of them where a list may be, and structs with a text that names a caption.
    fn values(field: &Field, may_be_list: bool) -> Option<Shape> {
        if field.kind.is_leaf() && field.children.is_empty() {
            return Some(Shape::Leaf);
        }
        if field.dictionary.is_some() {
            return None;
        }
        match field.kind {
            Kind::List { .. } | Kind::FixedSizeList { .. } if may_be_list => {
                let inner = Shape::values(field.children.first()?, false)?;
                Some(Shape::List(Box::new(inner)))
            }
            // Not within a list: a few bytes would make it as long as its writer liked.
            Kind::RunEndEncoded if may_be_list => {
                let inner = Shape::values(field.children.get(1)?, may_be_list)?;
                Some(Shape::Runs(Box::new(inner)))
            }
            Kind::Struct => {
                let texts = field
                    .children
                    .iter()
                    .enumerate()
                    .filter_map(|(index, child)| {
                        let shape = Shape::values(child, may_be_list)?;
                        let is_text = shape.content(child) == Some(Content::Text);
                        let rank = names::field_rank(&child.name)?;
                        is_text.then_some((rank, index, shape))
                    });
                let (_, index, shape) = texts.min_by_key(|(rank, index, _)| (*rank, *index))?;
                Some(Shape::Struct(Child {
                    index,
                    shape: Box::new(shape),
                }))
            }
            _ => None,
        }
    }
}
