//! Annotation files of the Karpathy splits, as LAVIS distributes them, and the images they name.

use std::collections::hash_map::{Entry, HashMap};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::Arc;
use std::thread::JoinHandle;

use qf_pipeline::config::OnBad;
use qf_pipeline::image_file::{ImageFileError, ImageReader};
use qf_pipeline::pixels::{PlanarImages, PlanarRgb};
use qf_pipeline::text::{CaptionProcessor, CaptionTokenizer, TokenRows};
use qf_pipeline::LoaderConfig;
use rayon::ThreadPool;
use serde::Deserialize;
use tch::Device;

use super::{EvalBatch, EvalSource};
use crate::error::ModelError;
use crate::host::DeviceBatch;

/// Batches that are decoded ahead of the model.
const PREFETCH_BATCHES: usize = 2;

/// One image with its captions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// Path of the image, below the folder of images.
    pub image: PathBuf,
    /// Its captions as written, at least one.
    pub captions: Vec<String>,
}

/// Reads an annotation file: a JSON list of `{"image": path, "caption": text or list of texts}`, as
/// in LAVIS's `coco_karpathy_test.json`. Other fields are passed over.
///
/// An image that is listed more than once, as in lists with one caption an entry, is one image with all
/// of those captions, where it was listed first; that is logged as a warning. (LAVIS's
/// `RetrievalEvalDataset` takes each entry for an image of its own, so that only one of several equal
/// images counts as right.)
///
/// # Errors
/// [`ModelError::Io`] for a file that cannot be read, [`ModelError::TensorFile`] naming the entry
/// that is none.
pub fn read_annotations(path: &Path) -> Result<Vec<Annotation>, ModelError> {
    #[derive(Deserialize)]
    struct Listed {
        image: PathBuf,
        caption: Captions,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Captions {
        One(String),
        Many(Vec<String>),
    }
    let unusable = |message: String| ModelError::TensorFile {
        path: path.to_owned(),
        message,
    };
    let text = std::fs::read(path).map_err(|source| ModelError::Io {
        path: path.to_owned(),
        source,
    })?;
    let entries: Vec<serde_json::Value> = qf_pipeline::json::parse(&text)
        .map_err(|error| unusable(format!("no JSON list of annotations: {error}")))?;
    let annotation = |(index, value): (usize, serde_json::Value)| {
        let entry: Listed = serde_json::from_value(value).map_err(|error| {
            unusable(format!(
                "entry {index} is not {{\"image\": path, \"caption\": text or list}}: {error}"
            ))
        })?;
        let captions = match entry.caption {
            Captions::One(caption) => vec![caption],
            Captions::Many(captions) => captions,
        };
        if captions.is_empty() {
            let image = entry.image.display();
            return Err(unusable(format!("entry {index}, {image}: no caption")));
        }
        Ok(Annotation {
            image: entry.image,
            captions,
        })
    };
    let annotations: Vec<_> = entries
        .into_iter()
        .enumerate()
        .map(annotation)
        .collect::<Result<_, _>>()?;
    if annotations.is_empty() {
        return Err(unusable("the list is empty".into()));
    }
    let entries = annotations.len();
    let merged = merged(annotations);
    if merged.len() < entries {
        log::warn!(
            "{}: {entries} entries name {} images; the captions of an image that is listed more than \
             once are taken together",
            path.display(),
            merged.len()
        );
    }
    Ok(merged)
}

/// One annotation an image, in the order of first mention; `a.jpg`, `./a.jpg` and `.//a.jpg` are one.
fn merged(annotations: Vec<Annotation>) -> Vec<Annotation> {
    let mut merged: Vec<Annotation> = Vec::with_capacity(annotations.len());
    let mut first = HashMap::new();
    for annotation in annotations {
        let parts = annotation.image.components();
        let image: PathBuf = parts.filter(|part| *part != Component::CurDir).collect();
        match first.entry(image) {
            Entry::Vacant(vacant) => {
                vacant.insert(merged.len());
                merged.push(annotation);
            }
            Entry::Occupied(at) => merged[*at.get()].captions.extend(annotation.captions),
        }
    }
    merged
}

/// Delivers annotated images from files, decoded ahead by a thread pool.
pub struct AnnotationSource {
    batches: Option<Receiver<Message>>,
    thread: Option<JoinHandle<()>>,
    skipped: Arc<AtomicU64>,
}

enum Message {
    Batch(HostBatch),
    Failed(ModelError),
    End,
}

struct HostBatch {
    pixels: PlanarImages,
    /// Of N captions.
    tokens: TokenRows,
    /// `[N]`: the image of each.
    caption_image: Vec<u32>,
}

struct Reader {
    annotations: Vec<Annotation>,
    root: PathBuf,
    images: ImageReader,
    captions: CaptionProcessor,
    tokenizer: Arc<CaptionTokenizer>,
    config: LoaderConfig,
    skipped: Arc<AtomicU64>,
}

impl AnnotationSource {
    /// Starts reading the images of `annotations`, whose paths are below `root`. Of `config` it uses
    /// batch and image size, text length, the caption processor's settings, threads, limits, and
    /// `on_bad_sample` for an image that cannot be read or captions of which nothing is left.
    ///
    /// # Errors
    /// [`ModelError::Pipeline`] for settings that cannot work or threads that cannot be started.
    pub fn start(
        annotations: Vec<Annotation>,
        root: PathBuf,
        config: LoaderConfig,
        tokenizer: Arc<CaptionTokenizer>,
    ) -> Result<AnnotationSource, ModelError> {
        config.validate()?;
        let no_threads = |error: String| {
            qf_pipeline::PipelineError::Thread(format!("cannot start workers: {error}"))
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.threads)
            .thread_name(|number| format!("qf-image-{number}"))
            .build()
            .map_err(|error| no_threads(error.to_string()))?;
        let skipped = Arc::new(AtomicU64::new(0));
        let reader = Reader {
            skipped: skipped.clone(),
            annotations,
            root,
            images: ImageReader::new(&config)?,
            captions: CaptionProcessor::new(config.max_words, config.prompt.as_str())?,
            tokenizer,
            config,
        };
        let (sender, batches) = std::sync::mpsc::sync_channel(PREFETCH_BATCHES);
        let thread = std::thread::Builder::new()
            .name("qf-annotations".into())
            .spawn(move || reader.run(&pool, &sender))
            .map_err(|error| no_threads(error.to_string()))?;
        Ok(AnnotationSource {
            batches: Some(batches),
            thread: Some(thread),
            skipped,
        })
    }
}

impl EvalSource for AnnotationSource {
    fn next_batch(&mut self, device: Device) -> Result<Option<EvalBatch>, ModelError> {
        let Some(batches) = &self.batches else {
            return Ok(None);
        };
        let batch = match batches.recv() {
            Ok(Message::Batch(batch)) => batch,
            Ok(Message::Failed(error)) => return Err(error),
            Ok(Message::End) => {
                self.batches = None;
                return Ok(None);
            }
            Err(_) => {
                let message = "the thread that reads images died; this is a bug".to_string();
                return Err(qf_pipeline::PipelineError::Thread(message).into());
            }
        };
        Ok(Some(EvalBatch {
            input: DeviceBatch::of(batch.pixels.as_batch(), &batch.tokens, device)?,
            caption_image: batch.caption_image,
        }))
    }

    fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }
}

impl Drop for AnnotationSource {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Reader {
    fn run(&self, pool: &ThreadPool, batches: &SyncSender<Message>) {
        for annotations in self.annotations.chunks(self.config.batch_size) {
            let paths: Vec<_> = annotations
                .iter()
                .map(|annotation| self.root.join(&annotation.image))
                .collect();
            let images = pool.install(|| self.images.read_all(&paths));
            let message = match self.batch(annotations, images) {
                Ok(batch) if batch.caption_image.is_empty() => continue,
                Ok(batch) => Message::Batch(batch),
                Err(error) => Message::Failed(error),
            };
            let is_last = matches!(message, Message::Failed(_));
            // Nobody listening is the ordinary end of a source that was dropped.
            if batches.send(message).is_err() || is_last {
                return;
            }
        }
        let _ = batches.send(Message::End);
    }

    fn batch(
        &self,
        annotations: &[Annotation],
        images: Vec<Result<PlanarRgb, ImageFileError>>,
    ) -> Result<HostBatch, ModelError> {
        let mut batch = HostBatch {
            pixels: PlanarImages::new(self.images.image_size()),
            tokens: TokenRows::new(self.config.text_len),
            caption_image: Vec::new(),
        };
        let mut num_images = 0;
        for (annotation, image) in annotations.iter().zip(images) {
            let usable = image
                .map_err(ModelError::from)
                .and_then(|image| Ok((image, self.captions(annotation)?)));
            match usable {
                Ok((image, captions)) => {
                    batch.pixels.push(&image);
                    for caption in captions {
                        batch.tokens.push(&self.tokenizer, &caption)?;
                        batch.caption_image.push(num_images);
                    }
                    num_images += 1;
                }
                Err(error) => {
                    self.skipped.fetch_add(1, Ordering::Relaxed);
                    match self.config.on_bad_sample {
                        OnBad::Error => return Err(error),
                        OnBad::Warn => log::warn!("skipped {error}"),
                        OnBad::Skip => {}
                    }
                }
            }
        }
        Ok(batch)
    }

    /// The captions after the caption processor; those of which nothing is left never count.
    fn captions(&self, annotation: &Annotation) -> Result<Vec<String>, ModelError> {
        let raw = annotation.captions.iter();
        let usable = raw.filter(|caption| !self.captions.is_empty(caption));
        let captions: Vec<_> = usable
            .map(|caption| self.captions.process(caption))
            .collect();
        if captions.is_empty() {
            return Err(ImageFileError {
                path: self.root.join(&annotation.image),
                message: "no caption is left after the caption processor".into(),
            }
            .into());
        }
        Ok(captions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_listed_several_times_is_one_with_all_captions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.json");
        let list = r#"[{"image": "a/1.jpg", "caption": "one"}, {"image": "2.jpg", "caption": ["x", "y"]},
            {"image": "./a/./1.jpg", "caption": ["two"]}, {"image": "1.jpg", "caption": "other"},
            {"image": "a//1.jpg", "caption": "one"}]"#;
        std::fs::write(&path, list).unwrap();
        let read = read_annotations(&path).unwrap();
        let expected = [
            ("a/1.jpg", &["one", "two", "one"][..]),
            ("2.jpg", &["x", "y"]),
            ("1.jpg", &["other"]),
        ];
        assert_eq!(read.len(), expected.len());
        for (annotation, (image, captions)) in read.iter().zip(expected) {
            assert_eq!(annotation.image, Path::new(image));
            assert_eq!(annotation.captions, captions);
        }
    }
}
