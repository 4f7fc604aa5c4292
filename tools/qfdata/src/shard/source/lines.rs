//! Lists of lines: Flickr's `.token`, and paths or URLs one a line.

use std::path::{Path, PathBuf};

use serde_json::Map;

use super::super::row::{CaptionRef, ImageRef, Name, Row, Skip, SkipCause, TextFile};
use super::list::{caption_of_text, image_ref, key_of, Grouped, List};

/// Whether a line is `NAME#NUMBER`, a tab, a caption.
pub(super) fn is_token(line: &str) -> bool {
    let Some((name, _)) = line.split_once('\t') else {
        return false;
    };
    name.rsplit_once('#')
        .is_some_and(|(_, number)| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Reads `NAME#NUMBER`, a tab, a caption: the captions of Flickr8k and Flickr30k.
pub(super) fn read_token(text: &str, rows: &mut Grouped<'_>) {
    rows.notes
        .push("Flickr's captions: name#number, tab, caption".to_owned());
    for (number, line) in lines(text) {
        match line.split_once('\t') {
            Some((name, caption)) => {
                let name = name.rsplit_once('#').map_or(name, |(name, _)| name).trim();
                rows.add(number, name, caption_of_text(caption), Map::new());
            }
            None => rows.bad_row(number, SkipCause::BadRow, "no tab between name and caption"),
        }
    }
}

/// Reads paths or URLs, one a line, each perhaps followed by a tab and a caption. The captions of a path
/// without one are in the files beside the image.
pub(super) fn read_list(text: &str, name: &str, folder: &Path, fingerprint: String) -> List {
    if lines(text).any(|(_, line)| line.contains('\t')) {
        let mut rows = Grouped::new(name, folder);
        rows.notes
            .push("an image a line, a tab, its caption".to_owned());
        for (number, line) in lines(text) {
            match line.split_once('\t') {
                Some((image, caption)) => {
                    let caption = caption_of_text(caption);
                    rows.add(number, image.trim(), caption, Map::new());
                }
                None => rows.bad_row(
                    number,
                    SkipCause::BadRow,
                    "no tab between image and caption",
                ),
            }
        }
        return rows.finish(fingerprint);
    }
    let mut list = List {
        fingerprint,
        notes: vec!["an image a line, captions in the files beside it".to_owned()],
        ..List::default()
    };
    for (position, (number, line)) in lines(text).enumerate() {
        let row = match image_ref(folder, line) {
            ImageRef::File(image) => Ok(Row {
                name: Name {
                    key: key_of(position as u64),
                    origin: image.display().to_string(),
                    url: None,
                },
                captions: beside(&image),
                image: ImageRef::File(image),
                json: None,
                members: Vec::new(),
            }),
            _ => Err(Skip::new(
                format!("{name}:{number}"),
                SkipCause::NoCaption,
                "a URL without a caption; write the caption behind a tab",
            )),
        };
        list.rows.push(row);
    }
    list
}

fn beside(image: &Path) -> CaptionRef {
    let file = |ending: &str| -> Option<TextFile> {
        let path: PathBuf = image.with_extension(ending);
        path.is_file().then_some(TextFile::Path(path))
    };
    CaptionRef::files(file("txt"), file("json"))
}

/// Lines that are not blank, with their numbers from 1.
fn lines(text: &str) -> impl Iterator<Item = (u64, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let numbered = text.lines().enumerate();
    numbered
        .map(|(at, line)| (at as u64 + 1, line.trim_end_matches('\r')))
        .filter(|(_, line)| !line.trim().is_empty())
}
