//! A zip of images with captions in entries of the same stem.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;

use super::super::load::ending_of;
use super::super::row::{CaptionRef, ImageRef, Name, Row, Skip, SkipCause, TextFile};
use super::super::work::is_image_extension;
use super::super::zip_file::ZipFile;
use super::fingerprint::Fingerprint;
use super::folder::{natural_key, unique_keys};
use super::list::List;
use crate::interrupt::Interrupt;

/// All images of a zip, sorted by name.
///
/// # Errors
/// What is wrong with the zip.
pub(super) fn list(path: &Path, interrupt: &Interrupt) -> anyhow::Result<List> {
    let (zip, unreadable) = ZipFile::open(path, interrupt)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let zip = Arc::new(zip);
    let mut list = List::default();
    let mut images = Vec::new();
    let mut captions: HashMap<PathBuf, [Option<usize>; 2]> = HashMap::new();
    let names: Vec<&str> = zip.names().collect();
    for (index, &text) in names.iter().enumerate() {
        let name = Path::new(text);
        // `..` is no hidden name, but a bad one.
        let is_hidden = text
            .split('/')
            .any(|part| part.starts_with('.') && part != "..");
        let ending = ending_of(name);
        let of_stem = match ending.as_str() {
            _ if is_hidden || text.starts_with("__MACOSX/") => continue,
            "txt" => 0,
            "json" => 1,
            ending if is_image_extension(ending) => {
                images.push(index);
                continue;
            }
            _ => {
                list.other_files += 1;
                continue;
            }
        };
        captions.entry(name.with_extension("")).or_default()[of_stem] = Some(index);
    }
    images.sort_by_key(|&index| names[index]);
    let mut keyed = Vec::new();
    for index in images {
        let image = Path::new(names[index]);
        let [text, json] = captions
            .remove(&image.with_extension(""))
            .unwrap_or_default();
        let file = |entry: Option<usize>| entry.map(|entry| TextFile::Zip(zip.clone(), entry));
        match natural_key(image) {
            Ok(key) => keyed.push((key, index, CaptionRef::files(file(text), file(json)))),
            Err(message) => {
                let skip = Skip::new(zip.name(index), SkipCause::BadName, message);
                list.rows.push(Err(skip));
            }
        }
    }
    list.captions_without_image = captions.len() as u64;
    let keys = unique_keys(keyed.iter().map(|(key, ..)| key.as_str()).collect());
    for ((natural, index, captions), key) in keyed.into_iter().zip(keys) {
        list.renamed_keys += u64::from(key != natural);
        list.rows.push(Ok(Row {
            name: Name {
                key,
                origin: zip.name(index),
                url: None,
            },
            image: ImageRef::Zip(zip.clone(), index),
            captions,
            json: None,
            members: Vec::new(),
        }));
    }
    let skips = unreadable
        .into_iter()
        .map(|(what, message)| Err(Skip::new(what, SkipCause::Unreadable, message)));
    list.rows.extend(skips);
    let mut fingerprint = Fingerprint::new();
    fingerprint.path(&path.display().to_string(), path);
    list.fingerprint = fingerprint.finish();
    Ok(list)
}
