//! Lists in one JSON file: COCO captions, Karpathy's splits, LAVIS's lists, LLaVA's conversations, any
//! list of objects.

use std::collections::HashMap;

use anyhow::{bail, Context};
use qf_pipeline::json;
use serde_json::{Map, Value};

use super::super::row::SkipCause;
use super::columns::Wanted;
use super::list::{captions_of_value, Grouped};
use super::tables::add_object;

/// Reads a file of any of these kinds.
///
/// # Errors
/// That it is none of them.
pub(super) fn read(bytes: &[u8], wanted: &Wanted, rows: &mut Grouped<'_>) -> anyhow::Result<()> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let value: Value = json::parse(bytes).context("not JSON")?;
    match value {
        Value::Array(list) => read_list(list, wanted, rows),
        Value::Object(mut object) => {
            let images = object.remove("images");
            let annotations = object.remove("annotations");
            match (images, annotations) {
                (Some(Value::Array(images)), Some(Value::Array(annotations))) => {
                    read_coco(images, annotations, wanted, rows)
                }
                (Some(Value::Array(images)), None) if images.iter().any(has_sentences) => {
                    read_karpathy(images, wanted, rows)
                }
                (images, annotations) => {
                    // Any other object with one list of objects.
                    let others = object.into_iter().map(|(_, value)| value);
                    let fields = images.into_iter().chain(annotations).chain(others);
                    let mut lists = fields.filter_map(|value| match value {
                        Value::Array(list) if list.iter().any(Value::is_object) => Some(list),
                        _ => None,
                    });
                    match (lists.next(), lists.next()) {
                        (Some(list), None) => read_list(list, wanted, rows),
                        _ => bail!(
                            "neither a list of objects nor COCO captions (`images` and \
                             `annotations`) nor Karpathy's splits (`images` with `sentences`)"
                        ),
                    }
                }
            }
        }
        _ => bail!("neither a list nor an object"),
    }
}

fn has_sentences(image: &Value) -> bool {
    image.get("sentences").is_some()
}

/// LAVIS's lists, LLaVA's conversations, or objects like the lines of a JSONL file.
fn read_list(list: Vec<Value>, wanted: &Wanted, rows: &mut Grouped<'_>) -> anyhow::Result<()> {
    if list.is_empty() {
        bail!("an empty list");
    }
    for (number, value) in (1..).zip(list) {
        match value {
            Value::Object(row) if row.contains_key("conversations") => {
                add_conversation(number, row, wanted, rows);
            }
            Value::Object(row) => add_object(number, row, wanted, rows),
            _ => rows.bad_row(number, SkipCause::BadRow, "not a JSON object"),
        }
    }
    Ok(())
}

/// LLaVA: the caption is the first answer; the conversation stays in the `.json`.
fn add_conversation(
    number: u64,
    mut row: Map<String, Value>,
    wanted: &Wanted,
    rows: &mut Grouped<'_>,
) {
    if rows.notes.is_empty() {
        rows.notes.push(
            "LLaVA's conversations: images from `image`, captions from the first answer".to_owned(),
        );
    }
    let image_name = wanted.image.clone().unwrap_or_else(|| "image".to_owned());
    let Some(Value::String(image)) = row.remove(&image_name) else {
        // Conversations without an image are a usual part of such lists.
        return rows.bad_row(number, SkipCause::BadRow, format!("no `{image_name}`"));
    };
    let turns = row.get("conversations").and_then(Value::as_array);
    let answer = turns.and_then(|turns| {
        let is_answer = |turn: &&Value| {
            let from = turn
                .get("from")
                .or(turn.get("role"))
                .and_then(Value::as_str);
            matches!(from, Some("gpt" | "assistant"))
        };
        let answer = turns.iter().find(is_answer)?;
        answer.get("value").or(answer.get("content"))
    });
    let captions = match answer {
        Some(answer) => captions_of_value(answer),
        None => Err((SkipCause::NoCaption, "no answer of `gpt`".to_owned())),
    };
    row.retain(|name, _| wanted.keep.has(name));
    rows.add(number, &image, captions, row);
}

/// COCO: `images` with `id` and `file_name`, `annotations` with `image_id` and `caption`.
fn read_coco(
    images: Vec<Value>,
    annotations: Vec<Value>,
    wanted: &Wanted,
    rows: &mut Grouped<'_>,
) -> anyhow::Result<()> {
    if !wanted.splits.is_empty() || !wanted.captions.is_empty() {
        bail!("--split and --caption-column are for other lists: COCO's has one split, and its captions in `annotations`");
    }
    let name = wanted.image.clone();
    let image_name = name.unwrap_or_else(|| "file_name".to_owned());
    rows.notes.push(format!(
        "COCO captions: images from `{image_name}`, captions from `annotations`"
    ));
    let mut captions: HashMap<String, Vec<(u64, Value)>> = HashMap::new();
    for (number, mut annotation) in (1..).zip(annotations) {
        let caption = annotation.get_mut("caption").map(Value::take);
        match (annotation.get("image_id"), caption) {
            (Some(id), Some(caption)) => captions
                .entry(id.to_string())
                .or_default()
                .push((number, caption)),
            _ => rows.bad_row(
                number,
                SkipCause::BadRow,
                "an annotation without `image_id` or `caption`",
            ),
        }
    }
    if captions.is_empty() {
        bail!("its `annotations` have no captions; take the captions_*.json of COCO");
    }
    for (number, image) in (1..).zip(images) {
        let Value::Object(mut image) = image else {
            rows.bad_row(number, SkipCause::BadRow, "an image that is no object");
            continue;
        };
        let Some(Value::String(file)) = image.remove(&image_name) else {
            let message = format!("an image without `{image_name}`");
            rows.bad_row(number, SkipCause::BadRow, message);
            continue;
        };
        let id = image.get("id").map(Value::to_string).unwrap_or_default();
        image.retain(|name, _| wanted.keep.has(name));
        let Some(found) = captions.remove(&id) else {
            let missing = (SkipCause::NoCaption, format!("no annotation of image {id}"));
            rows.add(number, &file, Err(missing), image);
            continue;
        };
        for (_, caption) in found {
            rows.add(number, &file, captions_of_value(&caption), image.clone());
        }
    }
    for (id, orphans) in captions {
        for (number, _) in orphans {
            rows.bad_row(
                number,
                SkipCause::BadRow,
                format!("a caption of image {id}, which is not listed"),
            );
        }
    }
    Ok(())
}

/// Karpathy: `images` with `filename`, perhaps `filepath`, `sentences` and `split`.
fn read_karpathy(
    images: Vec<Value>,
    wanted: &Wanted,
    rows: &mut Grouped<'_>,
) -> anyhow::Result<()> {
    rows.notes.push(
        "Karpathy's splits: images from `filepath` and `filename`, captions from `sentences`"
            .to_owned(),
    );
    for (number, image) in (1..).zip(images) {
        let Value::Object(mut image) = image else {
            rows.bad_row(number, SkipCause::BadRow, "an image that is no object");
            continue;
        };
        if !wanted.takes_split(image.get("split").and_then(Value::as_str)) {
            continue;
        }
        let Some(Value::String(file)) = image.remove("filename") else {
            rows.bad_row(number, SkipCause::BadRow, "an image without `filename`");
            continue;
        };
        let path = match image.get("filepath").and_then(Value::as_str) {
            Some(folder) => format!("{}/{file}", folder.trim_end_matches('/')),
            None => file,
        };
        let captions = match image.remove("sentences") {
            Some(sentences) => captions_of_value(&sentences),
            None => Err((SkipCause::NoCaption, "no `sentences`".to_owned())),
        };
        image.retain(|name, _| wanted.keep.has(name));
        rows.add(number, &path, captions, image);
    }
    Ok(())
}
