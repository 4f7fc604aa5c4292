//! What captions and images are called: one list for the members of tar shards, the fields of JSON
//! and of manifests, and the columns of Arrow shards.
//!
//! The names are those of img2dataset and open_clip (`txt`, JSON's `caption`), LAION and DataComp
//! (`TEXT`, `text`, `alt`), Hugging Face's caption sets (`text`, `caption`, `captions`, `caption_0` to
//! `caption_4`), Flickr30k and COCO in Karpathy's split (`sentences`, whose texts are under `raw`),
//! open_clip's tables (`title`), and Flickr30k's (`comment`). Upper and lower case are not told apart.

/// Names of captions, the preferred ones first.
pub const CAPTION_NAMES: [&str; 14] = [
    "txt",
    "caption",
    "captions",
    "text",
    "texts",
    "alt",
    "alt_text",
    "sentences",
    "sentence",
    "sentences_raw",
    "raw_caption",
    "description",
    "title",
    "comment",
];

/// Names of Arrow columns with images, the preferred ones first. (In a tar shard an image is told by
/// its extension.)
pub const IMAGE_NAMES: [&str; 13] = [
    "image",
    "images",
    "img",
    "picture",
    "photo",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "image_bytes",
    "img_bytes",
    "image_data",
    "bytes",
];

/// Names of manifest columns with the paths of images, the preferred ones first: ours, open_clip's,
/// Hugging Face's image folders, Karpathy's.
pub const PATH_NAMES: [&str; 11] = [
    "path",
    "filepath",
    "file_name",
    "filename",
    "image_path",
    "image",
    "file",
    "image_name",
    "image_file",
    "img_path",
    "img",
];

/// Names of manifest columns with URLs of images, the preferred ones first: img2dataset's and LAION's,
/// Conceptual Captions', COCO's.
pub const URL_NAMES: [&str; 7] = [
    "url",
    "image_url",
    "img_url",
    "image_link",
    "coco_url",
    "flickr_url",
    "link",
];

/// Names of manifest columns with images in base64, the preferred ones first.
pub const BASE64_NAMES: [&str; 6] = [
    "image_base64",
    "base64",
    "b64",
    "image_b64",
    "image_bytes",
    "image_data",
];

/// How much a name is preferred: the smallest is taken. Names of one [`Rank::position`] that are
/// numbered (`caption_0`, `caption_1`) are taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// In the list of names.
    pub position: usize,
    /// The number behind the name, where it has one.
    pub number: Option<u32>,
}

/// The rank of a member, field or column by its name; `None` if no caption is called that.
pub fn caption_rank(name: &str) -> Option<Rank> {
    let position = |name: &str| {
        let mut names = CAPTION_NAMES.iter();
        names.position(|known| known.eq_ignore_ascii_case(name))
    };
    if let Some(position) = position(name) {
        let number = None;
        return Some(Rank { position, number });
    }
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name.get(stem.len()..)?.parse().ok()?;
    Some(Rank {
        position: position(stem.strip_suffix(['_', '-']).unwrap_or(stem))?,
        number: Some(number),
    })
}

/// The rank of a field of a sentence, in a list of them or alone: `raw`, or a name of a caption.
pub fn field_rank(name: &str) -> Option<Rank> {
    match name.eq_ignore_ascii_case("raw") {
        true => Some(Rank {
            position: 0,
            number: None,
        }),
        false => caption_rank(name).map(|rank| Rank {
            position: rank.position + 1,
            ..rank
        }),
    }
}

/// Which of the named things hold the captions: the one that is preferred, or all that are numbered
/// alike, in the order of their numbers. Empty if no name is one of a caption.
pub fn choose<'a, T: Copy>(named: impl IntoIterator<Item = (&'a str, T)>) -> Vec<T> {
    let ranked = named
        .into_iter()
        .enumerate()
        .filter_map(|(at, (name, thing))| {
            let is_lower = name.bytes().all(|byte| !byte.is_ascii_uppercase());
            Some(((caption_rank(name)?, !is_lower, at), thing))
        });
    let mut ranked: Vec<_> = ranked.collect();
    ranked.sort_by_key(|(key, _)| *key);
    let Some(&((best, ..), first)) = ranked.first() else {
        return Vec::new();
    };
    if best.number.is_none() {
        return vec![first];
    }
    let alike = ranked
        .into_iter()
        .filter(|((rank, ..), _)| rank.position == best.position);
    alike.map(|(_, thing)| thing).collect()
}

/// The first of `names` that one of the named things has, and that thing.
pub fn find<'a, T: Copy>(names: &[&str], named: &[(&'a str, T)]) -> Option<(&'a str, T)> {
    names.iter().find_map(|name| {
        let exact = named.iter().find(|(found, _)| found == name);
        let alike = || {
            named
                .iter()
                .find(|(found, _)| found.eq_ignore_ascii_case(name))
        };
        exact.or_else(alike).copied()
    })
}

/// Name of the member that holds the captions, whatever the column was called.
pub const CAPTION_MEMBER: &str = "caption";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_name_is_chosen_and_numbered_ones_together() {
        let check = |names: &[&str], expected: &[&str]| {
            let named = names.iter().map(|name| (*name, *name));
            assert_eq!(choose(named), expected, "{names:?}");
        };
        check(&["url", "TEXT", "similarity"], &["TEXT"]);
        check(&["text", "caption"], &["caption"]);
        check(&["Text", "text"], &["text"]);
        check(&["alt", "json"], &["alt"]);
        check(
            &["caption_1", "caption_10", "caption_2", "caption_0"],
            &["caption_0", "caption_1", "caption_2", "caption_10"],
        );
        check(&["caption1", "caption0"], &["caption0", "caption1"]);
        check(&["caption_0", "caption"], &["caption"]);
        check(&["text_0", "caption_0", "text"], &["caption_0"]);
        check(&["sentids", "sentences", "cocoid"], &["sentences"]);
        check(
            &["captionary", "0", "_1", "", "width", "seg.txt", "caption_x"],
            &[],
        );
        check(&["caption_99999999999"], &[]);
        assert!(field_rank("raw") < field_rank("caption"));
        assert_eq!(
            find(&PATH_NAMES, &[("File_Name", 1), ("url", 2)]),
            Some(("File_Name", 1))
        );
    }
}
