//! `qfdata synth`: a captioned data set of simple scenes, for demos and tests.
//!
//! A scene is drawn from (seed, number of the image) alone; no two scenes of a run are described by
//! the same words, so image and captions identify each other. Nothing in a caption changes when the
//! image is flipped, and objects keep clear of the borders, so that crops keep them too.

mod caption;
mod raster;
mod scene;

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{bail, Context};
use clap::{Args, ValueHint};
use image::codecs::jpeg::JpegEncoder;
use qf_pipeline::atomic_file::AtomicFile;
use qf_pipeline::words::counted;
use rayon::prelude::*;

use crate::interrupt::Interrupt;
use crate::progress;
use qf_cli::output::say;
use scene::{Draw, Scene};

/// JPEG quality: artefacts are below the noise of 8-bit colour at the size models see.
const JPEG_QUALITY: u8 = 90;

/// Digits of a file's name; more images than that get longer names.
const NUMBER_DIGITS: usize = 6;

/// Draws of a scene before giving up on finding one that is not taken.
const MAX_DRAWS: usize = 10_000;

/// Streams of the random generator from here on place objects and word captions; those below it
/// decide what is in the scene.
const RENDER_STREAMS: u64 = 1 << 63;

/// Render a captioned data set of simple scenes.
///
/// Writes OUT/000000.jpg and OUT/000000.txt (one caption a line) and so on: one to three objects of
/// different shape, colour, size and texture, above, below, next to and inside each other, on
/// different backgrounds. With --held-out they go to OUT/train, and N further scenes, none of which
/// occurs in OUT/train, to OUT/held. The same seed gives the same files.
#[derive(Args, Debug)]
pub(crate) struct SynthArgs {
    /// Folder to write to; it must be missing or empty
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    out: PathBuf,

    /// Images (for training, with --held-out)
    #[arg(long, value_name = "N", default_value_t = 2000,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,

    /// Further images that no training image resembles word for word
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    held_out: Option<u32>,

    /// Seed of everything that is drawn
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Width and height in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(64..=2048))]
    size: u32,

    /// Captions of an image, all different
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u8).range(1..=8))]
    captions: u8,

    /// Images rendered at a time [default: number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Replace the data set that an earlier run wrote to the folder
    #[arg(long)]
    overwrite: bool,
}

/// Runs the subcommand.
pub(crate) fn run(args: &SynthArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let interrupt = Interrupt::install()?;
    make_room(&args.out, args.overwrite)?;
    let held_out = args.held_out.unwrap_or(0);
    let scenes = draw_scenes(args.seed, u64::from(args.count) + u64::from(held_out))?;
    let train_folder = match args.held_out {
        Some(_) => args.out.join("train"),
        None => args.out.clone(),
    };
    let held_folder = args.out.join("held");
    let path_of = |number: usize| {
        let (folder, number) = match number.checked_sub(args.count as usize) {
            Some(number) => (&held_folder, number),
            None => (&train_folder, number),
        };
        folder.join(format!("{number:0NUMBER_DIGITS$}.jpg"))
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads.map_or(0, usize::from))
        .build()
        .context("cannot start threads")?;
    let bar = progress::bar("rendering", scenes.len());
    let written: anyhow::Result<()> = pool.install(|| {
        scenes
            .par_iter()
            .enumerate()
            .try_for_each(|(number, scene)| {
                interrupt.check()?;
                let mut draw = Draw::new(args.seed, RENDER_STREAMS | number as u64);
                let jpeg = render(scene, args.size, &mut draw)?;
                let captions = caption::captions(scene, usize::from(args.captions), &mut draw);
                let text: String = captions.iter().map(|line| format!("{line}\n")).collect();
                let image = path_of(number);
                write_file(&image.with_extension("txt"), text.as_bytes())?;
                write_file(&image, &jpeg)?;
                bar.inc(1);
                Ok(())
            })
    });
    bar.finish_and_clear();
    written?;
    say(format_args!(
        "{}: {}{} of {}×{} pixels, {} each, in {:.1} s",
        args.out.display(),
        counted(u64::from(args.count), "image", "images"),
        match args.held_out {
            Some(held_out) => format!(" in train/ and {held_out} in held/"),
            None => String::new(),
        },
        args.size,
        args.size,
        counted(u64::from(args.captions), "caption", "captions"),
        started.elapsed().as_secs_f64()
    ))?;
    Ok(())
}

/// Distinct scenes; the first `n` are the same for every `count ≥ n`.
fn draw_scenes(seed: u64, count: u64) -> anyhow::Result<Vec<Scene>> {
    let mut seen = HashSet::new();
    let mut scenes = Vec::new();
    for number in 0..count {
        let mut draw = Draw::new(seed, number);
        let fresh = (0..MAX_DRAWS)
            .map(|_| Scene::draw(&mut draw))
            .find(|scene| seen.insert(scene.clone()));
        scenes.push(fresh.context("no further distinct scenes; lower --count")?);
    }
    Ok(scenes)
}

fn render(scene: &Scene, size: u32, draw: &mut Draw) -> anyhow::Result<Vec<u8>> {
    let pixels = raster::render(scene, size, draw);
    let mut jpeg = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY);
    pixels
        .write_with_encoder(encoder)
        .context("cannot encode JPEG")?;
    Ok(jpeg)
}

/// Not synced: a lost scene is rendered again in a millisecond.
fn write_file(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(content)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.commit_unsynced()?)
}

/// Fails if there is anything in the folder, or with `overwrite` anything but a data set of ours,
/// which is removed.
fn make_room(out: &Path, overwrite: bool) -> anyhow::Result<()> {
    let mut ours = Vec::new();
    for folder in [out.join("train"), out.join("held"), out.to_owned()] {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("--out {}", folder.display())),
        };
        for entry in entries {
            let path = entry
                .with_context(|| format!("--out {}", folder.display()))?
                .path();
            let is_ours = match path.is_dir() {
                true => folder == out && (path.ends_with("train") || path.ends_with("held")),
                false => is_numbered(&path),
            };
            if !overwrite || !is_ours {
                bail!(
                    "{} is in the way; choose an empty --out{}",
                    path.display(),
                    match is_ours {
                        true => ", or replace the earlier data set with --overwrite",
                        false => "",
                    }
                );
            }
            if !path.is_dir() {
                ours.push(path);
            }
        }
    }
    for path in ours {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    for folder in ["train", "held"] {
        // Empty now, if it is there.
        if let Err(error) = fs::remove_dir(out.join(folder)) {
            if error.kind() != std::io::ErrorKind::NotFound {
                return Err(error).with_context(|| format!("cannot remove {folder} of --out"));
            }
        }
    }
    Ok(())
}

/// `000123.jpg` or `000123.txt`.
fn is_numbered(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let stem = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or("");
    matches!(extension, Some("jpg" | "txt"))
        && stem.len() >= NUMBER_DIGITS
        && stem.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenes_are_distinct_and_a_prefix_stays() {
        let scenes = draw_scenes(1, 3000).unwrap();
        let distinct: HashSet<_> = scenes.iter().collect();
        assert_eq!(distinct.len(), 3000);
        assert_eq!(draw_scenes(1, 100).unwrap(), scenes[..100]);
        assert_ne!(draw_scenes(2, 100).unwrap(), scenes[..100]);
    }

    #[test]
    fn images_depend_on_the_seed_alone() {
        let jpeg = |seed| {
            let scenes = draw_scenes(seed, 3).unwrap();
            render(&scenes[2], 64, &mut Draw::new(seed, RENDER_STREAMS | 2)).unwrap()
        };
        assert_eq!(jpeg(1), jpeg(1));
        assert_ne!(jpeg(1), jpeg(2));
        let decoded = image::load_from_memory(&jpeg(1)).unwrap();
        assert_eq!((decoded.width(), decoded.height()), (64, 64));
    }

    #[test]
    fn only_our_files_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("scenes");
        make_room(&out, false).unwrap();
        fs::create_dir_all(out.join("train")).unwrap();
        fs::write(out.join("train/000001.jpg"), b"").unwrap();
        assert!(make_room(&out, false).is_err());
        fs::write(out.join("train/notes.txt"), b"").unwrap();
        assert!(make_room(&out, true).is_err());
        assert!(out.join("train/000001.jpg").exists());
        fs::remove_file(out.join("train/notes.txt")).unwrap();
        make_room(&out, true).unwrap();
        make_room(&out, false).unwrap();
    }
}
