//! A gallery, and its file.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::session::write_file;

/// Version of the file.
pub(super) const SCHEMA: u32 = 1;

/// A file of this size no run writes.
const MAX_BYTES: u64 = 64 << 20;

/// Some held-out images and all their captions, each compared with each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Gallery {
    pub(super) schema: u32,
    /// Steps that the model has made.
    pub(crate) step: u64,
    pub(crate) images: Vec<Shown>,
    pub(crate) captions: Vec<ShownCaption>,
    /// Of the first images: where the queries look.
    pub(crate) attention: Vec<Attention>,
}

/// An image.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Shown {
    pub(crate) key: String,
    /// A JPEG; in the file as base64.
    #[serde(with = "as_base64")]
    pub(crate) jpeg: Vec<u8>,
    /// The side that it has.
    pub(crate) side: usize,
    /// Places of its own captions.
    pub(crate) captions: Vec<usize>,
    /// The captions that are most like it: places and cosines, the best first.
    pub(crate) top: Vec<(usize, f32)>,
    /// What the generation head writes; only of the first images.
    pub(crate) generated: Option<String>,
}

/// A caption.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ShownCaption {
    pub(crate) text: String,
    /// Place of its image.
    pub(crate) image: usize,
    /// The images that are most like it: places and cosines, the best first.
    pub(crate) top: Vec<(usize, f32)>,
    /// Images that are more like it than its own.
    pub(crate) rank: usize,
}

/// Where the queries look on an image, in the last layer with cross attention.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Attention {
    /// Place of the image.
    pub(crate) image: usize,
    /// Patches along a side.
    pub(crate) side: usize,
    /// The mean of all queries, then each: attention of `side²` patches, the greatest being 255.
    pub(crate) maps: Vec<Vec<u8>>,
    /// Share of each that goes to rows which are no patch (the class token).
    pub(crate) elsewhere: Vec<f32>,
}

impl Gallery {
    /// The gallery in a file; `None` where there is none, or one of another version.
    ///
    /// # Errors
    /// That the file cannot be read, by name.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Option<Gallery>> {
        let read = || format!("cannot read {}", path.display());
        let size = match fs::metadata(path) {
            Ok(file) => file.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(read),
        };
        anyhow::ensure!(
            size <= MAX_BYTES,
            "{}: {size} bytes are more than any gallery has; remove it",
            path.display()
        );
        let text = fs::read_to_string(path).with_context(read)?;
        let gallery: Gallery = match serde_json::from_str(&text) {
            Ok(gallery) => gallery,
            Err(error) => {
                log::warn!(
                    "{}: not a gallery of this program ({error})",
                    path.display()
                );
                return Ok(None);
            }
        };
        Ok((gallery.schema == SCHEMA && gallery.is_consistent()).then_some(gallery))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// That the file cannot be written, by name.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        write_file(path, serde_json::to_string(self)?.as_bytes())
    }

    /// Whether all places are those of something.
    fn is_consistent(&self) -> bool {
        let is_image = |&(place, _): &(usize, f32)| place < self.images.len();
        let is_caption = |place: &usize| *place < self.captions.len();
        let fits_image = |image: &Shown| {
            image.captions.iter().all(is_caption) && image.top.iter().all(|(at, _)| is_caption(at))
        };
        let fits_caption = |caption: &ShownCaption| {
            caption.image < self.images.len() && caption.top.iter().all(is_image)
        };
        let fits_attention = |attention: &Attention| {
            let patches = attention.side.checked_mul(attention.side);
            attention.image < self.images.len()
                && (attention.maps.iter()).all(|map| Some(map.len()) == patches)
                && attention.maps.len() == attention.elsewhere.len()
        };
        self.images.iter().all(fits_image)
            && self.captions.iter().all(fits_caption)
            && self.attention.iter().all(fits_attention)
    }
}

mod as_base64 {
    use base64::engine::general_purpose::STANDARD;
    use base64::Engine;
    use serde::{de::Error, Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gallery() -> Gallery {
        Gallery {
            schema: SCHEMA,
            step: 3,
            images: vec![Shown {
                key: "a".into(),
                jpeg: vec![0xff, 0xd8, 0xff],
                side: 8,
                captions: vec![0],
                top: vec![(0, 0.5)],
                generated: None,
            }],
            captions: vec![ShownCaption {
                text: "a cat".into(),
                image: 0,
                top: vec![(0, 0.5)],
                rank: 0,
            }],
            attention: vec![Attention {
                image: 0,
                side: 2,
                maps: vec![vec![0, 1, 2, 255]],
                elsewhere: vec![0.1],
            }],
        }
    }

    #[test]
    fn a_file_that_does_not_fit_shows_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gallery.json");
        assert!(Gallery::read(&path).unwrap().is_none());
        gallery().write(&path).unwrap();
        let read = Gallery::read(&path).unwrap().unwrap();
        assert_eq!(
            (read.images[0].jpeg.len(), read.captions[0].text.as_str()),
            (3, "a cat")
        );
        let broken: [fn(&mut Gallery); 5] = [
            |gallery| gallery.schema = SCHEMA + 1,
            |gallery| gallery.images[0].top[0].0 = 1,
            |gallery| gallery.captions[0].image = 7,
            |gallery| gallery.attention[0].maps[0].push(1),
            |gallery| gallery.attention[0].side = usize::MAX,
        ];
        for break_it in broken {
            let mut gallery = gallery();
            break_it(&mut gallery);
            gallery.write(&path).unwrap();
            assert!(Gallery::read(&path).unwrap().is_none());
        }
        fs::write(&path, "{\"torn").unwrap();
        assert!(Gallery::read(&path).unwrap().is_none());
    }
}
