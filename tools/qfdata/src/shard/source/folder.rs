//! Lists a folder of images with caption files of the same stem.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use qf_pipeline::write::check_key;

use super::super::row::{CaptionRef, ImageRef, Name, Row, Skip, SkipCause, TextFile};
use super::super::work::is_image_extension;
use super::fingerprint::Fingerprint;
use super::list::List;
use crate::interrupt::Interrupt;

/// Caption files of one stem.
#[derive(Default)]
struct Captions {
    text: Option<PathBuf>,
    json: Option<PathBuf>,
    used: bool,
}

/// All images below `root`, sorted by path. Names that start with a dot are passed over; links to
/// files are followed, links to folders are not.
pub(super) fn list(root: &Path, interrupt: &Interrupt) -> anyhow::Result<List> {
    let mut found = Found::below(root, interrupt)?;
    found.images.sort();
    found.skips.sort_by(|a, b| a.what.cmp(&b.what));
    let keyed = found.keyed(root);
    let mut listing = List {
        other_files: found.other_files,
        captions_without_image: found.captions.values().filter(|c| !c.used).count() as u64,
        ..List::default()
    };
    let mut fingerprint = Fingerprint::new();
    let keys = unique_keys(keyed.iter().map(|(key, ..)| key.as_str()).collect());
    for ((natural, image, captions), key) in keyed.into_iter().zip(keys) {
        listing.renamed_keys += u64::from(key != natural);
        let image = root.join(image);
        fingerprint.path(&key, &image);
        if let CaptionRef::Files { text, json, .. } = &captions {
            for file in [text, json].into_iter().flatten() {
                fingerprint.path(&file.name(), Path::new(&file.name()));
            }
        }
        listing.rows.push(Ok(Row {
            name: Name {
                key,
                origin: image.display().to_string(),
                url: None,
            },
            image: ImageRef::File(image),
            captions,
            json: None,
            members: Vec::new(),
        }));
    }
    listing.rows.extend(found.skips.into_iter().map(Err));
    listing.fingerprint = fingerprint.finish();
    Ok(listing)
}

/// Files below a folder, relative to it.
#[derive(Default)]
struct Found {
    images: Vec<PathBuf>,
    /// By path without extension.
    captions: HashMap<PathBuf, Captions>,
    other_files: u64,
    skips: Vec<Skip>,
}

impl Found {
    fn below(root: &Path, interrupt: &Interrupt) -> anyhow::Result<Found> {
        let mut found = Found::default();
        let mut pending = vec![PathBuf::new()];
        while let Some(folder) = pending.pop() {
            interrupt.check()?;
            let entries =
                fs::read_dir(root.join(&folder)).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let entries = match entries {
                Ok(entries) => entries,
                Err(error) if folder.as_os_str().is_empty() => {
                    return Err(error).with_context(|| format!("cannot list {}", root.display()))
                }
                Err(error) => {
                    let what = root.join(&folder).display().to_string();
                    let skip = Skip::new(what, SkipCause::Unreadable, error.to_string());
                    found.skips.push(skip);
                    continue;
                }
            };
            for entry in entries {
                let name = entry.file_name();
                if name.as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                let path = folder.join(&name);
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    pending.push(path);
                    continue;
                }
                let extension = path.extension().map(|e| e.to_ascii_lowercase());
                match extension.as_deref().and_then(|e| e.to_str()) {
                    Some("txt") => {
                        let of_stem = found.captions.entry(path.with_extension("")).or_default();
                        found.other_files += u64::from(of_stem.text.is_some());
                        of_stem.text = of_stem.text.take().max(Some(path));
                    }
                    Some("json") => {
                        let of_stem = found.captions.entry(path.with_extension("")).or_default();
                        found.other_files += u64::from(of_stem.json.is_some());
                        of_stem.json = of_stem.json.take().max(Some(path));
                    }
                    Some(extension) if is_image_extension(extension) => found.images.push(path),
                    _ => found.other_files += 1,
                }
            }
        }
        Ok(found)
    }

    /// Takes the images out, each with its key and captions; one without a key becomes a skip.
    fn keyed(&mut self, root: &Path) -> Vec<(String, PathBuf, CaptionRef)> {
        let images = std::mem::take(&mut self.images);
        let mut keyed = Vec::with_capacity(images.len());
        for image in images {
            // Looked up even where the key is bad, so that its captions count as used.
            let of_stem = self.captions.get_mut(&image.with_extension(""));
            let (text, json) = of_stem.map_or((None, None), |of_stem| {
                of_stem.used = true;
                (of_stem.text.clone(), of_stem.json.clone())
            });
            let file = |path: Option<PathBuf>| path.map(|path| TextFile::Path(root.join(path)));
            let source = CaptionRef::files(file(text), file(json));
            match natural_key(&image) {
                Ok(key) => keyed.push((key, image, source)),
                Err(message) => self.skips.push(Skip::new(
                    root.join(&image).display().to_string(),
                    SkipCause::BadName,
                    message,
                )),
            }
        }
        keyed
    }
}

/// The relative path without its extension, with whatever a WebDataset reader would trip over
/// replaced: dots in the base name and control characters by `_`, a leading `__` by `_`.
pub(super) fn natural_key(image: &Path) -> Result<String, String> {
    let stem = image.with_extension("");
    let stem = stem.to_str().ok_or("the name is not UTF-8; rename it")?;
    let (folder, base) = match stem.rsplit_once('/') {
        Some((folder, base)) => (Some(folder), base),
        None => (None, stem),
    };
    let base = base.replace('.', "_");
    let key = match folder {
        Some(folder) => format!("{folder}/{base}"),
        None => base,
    };
    let key = key.replace(char::is_control, "_");
    let key = match key.strip_prefix("__") {
        Some(rest) if folder.is_some() => format!("_{rest}"),
        _ => key,
    };
    check_key(&key)?;
    Ok(key)
}

/// The first of equal keys stays; later ones get `_2`, `_3`, … (the first number that is free).
pub(super) fn unique_keys(natural: Vec<&str>) -> Vec<String> {
    let all: HashSet<&str> = natural.iter().copied().collect();
    let mut taken: HashSet<String> = HashSet::with_capacity(natural.len());
    let mut next: HashMap<&str, u64> = HashMap::new();
    let mut keys = Vec::with_capacity(natural.len());
    for key in natural {
        let mut unique = key.to_owned();
        while !taken.insert(unique.clone()) {
            let number = next.entry(key).or_insert(2);
            unique = format!("{key}_{number}");
            *number += 1;
            while all.contains(unique.as_str()) {
                unique.push('_');
            }
        }
        keys.push(unique);
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_readers_read_back() {
        for (image, expected) in [
            ("a.jpg", "a"),
            ("dir/a.jpg", "dir/a"),
            ("dir.v1/a.b.c.png", "dir.v1/a_b_c"),
            ("a\nb.jpg", "a_b"),
            ("__MACOSX__/a.jpg", "_MACOSX__/a"),
            ("__a__.jpg", "__a__"),
            ("日本.jpg", "日本"),
        ] {
            assert_eq!(natural_key(Path::new(image)).as_deref(), Ok(expected));
        }
        assert!(natural_key(Path::new(&"k/".repeat(2000))).is_err());
    }

    #[test]
    fn equal_keys_are_told_apart() {
        let natural = vec!["a", "a", "b", "a", "a_2", "a_3_", "b"];
        let keys = unique_keys(natural);
        assert_eq!(keys, ["a", "a_2_", "b", "a_3", "a_2", "a_3_", "b_2"]);
    }
}
