//! Which columns of a shard hold images and captions, and what else becomes a member.

use std::collections::HashSet;

use super::batch::Selected;
use super::error::ArrowError;
use super::image_name::IMAGE_EXTENSIONS;
use super::row_json::{OtherColumns, JSON};
use super::schema::Field;
use super::shape::{Content, Shape};
use super::ArrowReadOptions;
use crate::captions::names::{self, CAPTION_MEMBER, CAPTION_NAMES, IMAGE_NAMES};

/// What a selected column is to a sample.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Role {
    Image,
    /// Captions; of several columns in the order of the numbers in their names.
    Caption(usize),
    /// Another member, of this name.
    Bytes(String),
    /// Another member, of this name.
    Text(String),
    /// A field of this name in the member `json`.
    Json(String),
}

/// What was chosen of the columns of a shard.
pub(super) struct Selection {
    pub(super) columns: Vec<(Selected, Role)>,
    /// Wanted in `json`, but of a type that JSON has no place for.
    pub(super) left_out: Vec<String>,
}

/// Columns in an error, at most.
const MAX_LISTED: usize = 20;

/// Finds the image and the caption columns, and whatever else can become a member.
pub(super) fn select_columns(
    fields: &[Field],
    options: &ArrowReadOptions,
) -> Result<Selection, ArrowError> {
    let image = image_column(fields, options)?;
    let captions = caption_columns(fields, options)?;
    if captions.contains(&image) {
        return Err(ArrowError::Columns(format!(
            "image_column and caption_column are both `{}`; name two columns",
            fields.get(image).map_or("", |field| &field.name)
        )));
    }
    if let OtherColumns::Named(names) = &options.other_columns {
        for name in names {
            named(fields, name, "--keep-columns")?;
        }
    }
    let mut selection = Vec::new();
    let mut names = HashSet::new();
    let mut json = JsonColumns::new(&options.other_columns);
    for (field_index, field) in fields.iter().enumerate() {
        let is_caption = captions.contains(&field_index);
        if field_index != image && (!is_caption || field.name == JSON) {
            selection.extend(json.column(field_index, field));
        }
        let Some((shape, content)) = content_of(field) else {
            continue;
        };
        let caption = captions.iter().position(|&column| column == field_index);
        let is_reserved =
            || field.name == CAPTION_MEMBER || IMAGE_EXTENSIONS.contains(&field.name.as_str());
        let role = match (content, caption) {
            _ if field_index == image => Role::Image,
            (_, Some(position)) => Role::Caption(position),
            (Content::Image, None) => continue,
            (Content::Bytes, None) if is_reserved() => {
                if options.other_columns.has(&field.name) {
                    json.left_out.push(described(field));
                }
                continue;
            }
            _ if is_reserved() || !names.insert(field.name.as_str()) => continue,
            (Content::Bytes, None) => Role::Bytes(field.name.clone()),
            (Content::Text, None) if options.other_columns == OtherColumns::None => {
                Role::Text(field.name.clone())
            }
            (Content::Text, None) => continue,
        };
        selection.push((Selected { field_index, shape }, role));
    }
    // A type that nobody here knows is no obstacle behind the last needed column.
    let last_needed = captions.into_iter().fold(image, usize::max);
    let blocked = fields.iter().skip(last_needed + 1).position(|field| {
        field
            .counts(arrow_format::ipc::MetadataVersion::V5)
            .is_none()
    });
    if let Some(blocked) = blocked {
        let first_blocked = last_needed + 1 + blocked;
        selection.retain(|(selected, _)| selected.field_index < first_blocked);
        let others = fields.iter().skip(first_blocked);
        json.left_out.extend(others.map(described));
    }
    Ok(Selection {
        columns: selection,
        left_out: json.left_out,
    })
}

/// Columns that become fields of the member `json`.
struct JsonColumns<'a> {
    wanted: &'a OtherColumns,
    names: HashSet<String>,
    left_out: Vec<String>,
}

impl JsonColumns<'_> {
    fn new(wanted: &OtherColumns) -> JsonColumns<'_> {
        JsonColumns {
            wanted,
            names: HashSet::new(),
            left_out: Vec::new(),
        }
    }

    /// The field that a column becomes, if it becomes one.
    fn column(&mut self, field_index: usize, field: &Field) -> Option<(Selected, Role)> {
        let is_bytes = matches!(content_of(field), Some((_, Content::Bytes)));
        if is_bytes || !self.wanted.has(&field.name) {
            return None;
        }
        match Shape::whole(field) {
            Some(shape) if self.names.insert(field.name.clone()) => {
                let selected = Selected { field_index, shape };
                Some((selected, Role::Json(field.name.clone())))
            }
            _ => {
                self.left_out.push(described(field));
                None
            }
        }
    }
}

/// A column with its type.
fn described(field: &Field) -> String {
    format!("`{}` ({})", field.name, field.type_name())
}

fn content_of(field: &Field) -> Option<(Shape, Content)> {
    let shape = Shape::of(field)?;
    let content = shape.content(field)?;
    Some((shape, content))
}

fn holds_image(field: &Field) -> bool {
    let content = content_of(field).map(|(_, content)| content);
    matches!(content, Some(Content::Bytes | Content::Image))
}

fn holds_text(field: &Field) -> bool {
    content_of(field).is_some_and(|(_, content)| content == Content::Text)
}

const IMAGE_TYPES: &str = "binary or a struct<bytes, path>";
const CAPTION_TYPES: &str = "a string, a list of strings, or sentences with a `raw`";

fn image_column(fields: &[Field], options: &ArrowReadOptions) -> Result<usize, ArrowError> {
    if let Some(name) = &options.image_column {
        let index = named(fields, name, "image_column (--image-column)")?;
        return check(fields, index, holds_image, IMAGE_TYPES);
    }
    let all: Vec<_> = fields
        .iter()
        .enumerate()
        .map(|(index, field)| (field.name.as_str(), index))
        .collect();
    let holds = |(_, index): &&(&str, usize)| fields.get(*index).is_some_and(holds_image);
    let of_images: Vec<_> = all.iter().filter(holds).copied().collect();
    if let Some((name, index)) = names::find(&IMAGE_NAMES, &of_images) {
        named(fields, name, "image_column")?; // once
        return Ok(index);
    }
    // Hugging Face's image type says what it is, whatever the column is called.
    let is_image_type = |(_, index): &&(&str, usize)| {
        let content = fields.get(*index).and_then(content_of);
        content.is_some_and(|(_, content)| content == Content::Image)
    };
    let mut typed = of_images.iter().filter(is_image_type);
    if let (Some((_, index)), None) = (typed.next(), typed.next()) {
        return Ok(*index);
    }
    match names::find(&IMAGE_NAMES, &all) {
        Some((_, index)) => check(fields, index, holds_image, IMAGE_TYPES),
        None => Err(none_found(
            fields,
            "image",
            &IMAGE_NAMES,
            "image_column (--image-column)",
        )),
    }
}

fn caption_columns(fields: &[Field], options: &ArrowReadOptions) -> Result<Vec<usize>, ArrowError> {
    const SETTING: &str = "caption_column (--caption-column)";
    if let Some(name) = &options.caption_column {
        let index = named(fields, name, SETTING)?;
        return check(fields, index, holds_text, CAPTION_TYPES).map(|index| vec![index]);
    }
    let texts = fields
        .iter()
        .enumerate()
        .filter(|(_, field)| holds_text(field));
    let chosen = names::choose(texts.map(|(index, field)| (field.name.as_str(), (index, field))));
    for (_, field) in &chosen {
        named(fields, &field.name, SETTING)?; // once
    }
    if !chosen.is_empty() {
        return Ok(chosen.into_iter().map(|(index, _)| index).collect());
    }
    let json = fields.iter().position(|field| {
        field.name == JSON
            && matches!(Shape::of(field), Some(Shape::Struct(_)))
            && holds_text(field)
    });
    if let Some(json) = json {
        return Ok(vec![json]);
    }
    if !options.needs_captions {
        return Ok(Vec::new());
    }
    let all = fields.iter().enumerate();
    match names::choose(all.map(|(index, field)| (field.name.as_str(), index))).first() {
        Some(&index) => check(fields, index, holds_text, CAPTION_TYPES).map(|index| vec![index]),
        None => Err(none_found(fields, "caption", &CAPTION_NAMES, SETTING)),
    }
}

/// The only column of a name.
fn named(fields: &[Field], name: &str, setting: &str) -> Result<usize, ArrowError> {
    let mut found = fields
        .iter()
        .enumerate()
        .filter(|(_, field)| field.name == name);
    match (found.next(), found.next()) {
        (Some((index, _)), None) => Ok(index),
        (Some(_), Some(_)) => Err(ArrowError::Columns(format!(
            "two columns are named `{name}`; rename one"
        ))),
        (None, _) => Err(ArrowError::Columns(format!(
            "no column `{name}`; the shard has {}; name one with {setting}",
            listed(fields)
        ))),
    }
}

fn check(
    fields: &[Field],
    index: usize,
    holds: fn(&Field) -> bool,
    expected: &str,
) -> Result<usize, ArrowError> {
    match fields.get(index) {
        Some(field) if !holds(field) => Err(ArrowError::Unsupported(format!(
            "column `{}` is {}, not {expected}",
            field.name,
            field.type_name()
        ))),
        _ => Ok(index),
    }
}

/// The error that neither `first` nor another usual name of the same is there.
fn none_found(fields: &[Field], first: &str, names: &[&str], setting: &str) -> ArrowError {
    let others = names.iter().filter(|name| **name != first).take(4);
    let others: Vec<_> = others.copied().collect();
    ArrowError::Columns(format!(
        "no column `{first}`, or of another usual name ({}, ...); the shard has {}; name one with {setting}",
        others.join(", "),
        listed(fields)
    ))
}

/// Columns with their types.
fn listed(fields: &[Field]) -> String {
    let shown = fields.iter().take(MAX_LISTED);
    let shown: Vec<_> = shown.map(described).collect();
    let more = match fields.len().saturating_sub(MAX_LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    match shown.is_empty() {
        true => "no columns".to_string(),
        false => format!("{}{more}", shown.join(", ")),
    }
}
