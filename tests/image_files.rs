//! Image files, the same images in shards, and what others make of them: Pillow, transformers, and the
//! reference's arithmetic on an exported state dict. On real photographs, coloured and not square: a
//! mistake in the layout of pixels shows on no other pictures.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use qf_model::host::{upload, upload_pixels};
use qf_pipeline::augment::CLIP_STD;
use qf_pipeline::image_file::ImageReader;
use qf_pipeline::source::resolve_shards;
use qf_pipeline::text::CaptionTokenizer;
use qf_pipeline::{Loader, LoaderConfig};
use serde_json::{json, Value};
use tch::{Device, Tensor};
use tempfile::TempDir;

use crate::train_cli::{small_run, succeeds};
use crate::{shard_cli, test_data, weights};

/// Writes the photographs `argv[2:]` into the folder `argv[1]`, in all the formats that are read.
const CONVERT: &str = r#"
import shutil, sys
from PIL import Image
folder, paths = sys.argv[1], sys.argv[2:]
formats = [("jpg", {}), ("png", {}), ("webp", dict(lossless=True)), ("webp", dict(quality=80)), ("bmp", {}),
           ("tiff", {}), ("gif", {}), ("jpg", dict(quality=60, progressive=True, subsampling="4:4:4"))]
for number, path in enumerate(paths):
    extension, options = formats[number % len(formats)]
    target = f"{folder}/{number:04}.{extension}"
    if extension == "jpg" and not options:
        shutil.copy(path, target)
    else:
        Image.open(path).convert("RGB").save(target, **options)
    open(f"{folder}/{number:04}.txt", "w").write(f"photo {number}\n")
"#;

/// Images as the reference's evaluation processor gives them: `[3, S, S]` f32 each, to standard output.
const PROCESS: &str = r#"
import sys
import numpy as np
from PIL import Image, ImageOps

def pixels(path, side):
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    values = np.asarray(image, dtype=np.float32) / np.float32(255)
    mean = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
    return np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1))
"#;

const PROCESS_MAIN: &str = r#"
for path in sys.argv[2:]:
    sys.stdout.buffer.write(pixels(path, int(sys.argv[1])).tobytes())
"#;

/// The arithmetic of LAVIS's classes (`blip2_qformer.py`, `Qformer.py`, `eva_vit.py`), and transformers,
/// from files on disk alone.
const LAVIS: &str = include_str!("python/lavis.py");

/// Scores by both.
const SCORES: &str = include_str!("python/scores.py");

/// Embeddings by both.
const FEATURES: &str = include_str!("python/features.py");

const SIDE: usize = 224;

fn run_python(python: &Path, script: &str, arguments: &[&str]) -> Vec<u8> {
    let output = std::process::Command::new(python)
        .args(["-W", "ignore", "-c", script])
        .args(arguments)
        .env("HF_HUB_OFFLINE", "1")
        .env("TRANSFORMERS_VERBOSITY", "error")
        .env("OMP_NUM_THREADS", "1")
        .output()
        .expect("Python starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    output.stdout
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in Unicode")
}

/// The first photographs with captions, `NNNNNN.jpg` of COCO: most of 640×480 and 480×640.
fn photographs(test: &str, count: usize) -> Option<Vec<PathBuf>> {
    let folder = test_data::find(test, "data/pairs")?;
    let paths = (0..count).map(|number| folder.join(format!("{number:06}.jpg")));
    Some(paths.collect())
}

/// Turned, CMYK and grey ones.
fn odd_photographs(test: &str) -> Option<Vec<PathBuf>> {
    let folder = test_data::find(test, "data/photos")?;
    let mut paths: Vec<PathBuf> = fs::read_dir(folder.join("recurser_exif-orientation-examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    for other in [
        "special_cmyk/lovell_sharp__test__fixtures__Channel_digital_image_CMYK_color.jpg",
        "special_gray/lovell_sharp__test__fixtures__concert.jpg",
    ] {
        paths.push(folder.join(other));
    }
    Some(paths)
}

/// What the model gets of the images of shards, by key.
fn from_shards(glob: &str, config: &LoaderConfig) -> BTreeMap<String, Tensor> {
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "photo"];
    let tokenizer = CaptionTokenizer::from_vocab(words.map(String::from).to_vec()).unwrap();
    let loader = Loader::builder(config.clone().for_evaluation())
        .shards(resolve_shards(&[glob]).unwrap())
        .batches(Arc::new(tokenizer))
        .unwrap();
    let mut images = BTreeMap::new();
    for batch in loader {
        let batch = batch.unwrap();
        let uploaded = upload(&batch, Device::Cpu).unwrap().images;
        for (id, image) in batch.ids.iter().zip(uploaded.unbind(0)) {
            images.insert(id.key.clone(), image);
        }
    }
    images
}

#[test]
fn files_and_shards_reach_the_model_as_pillow_has_them() {
    const TEST: &str = "files_and_shards_reach_the_model_as_pillow_has_them";
    let (Some(mut originals), Some(odd)) = (photographs(TEST, 48), odd_photographs(TEST)) else {
        return;
    };
    let Some(python) = test_data::python(TEST) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    fs::create_dir(&photos).unwrap();
    originals.sort();
    let paths: Vec<&str> = originals.iter().map(|path| text(path)).collect();
    run_python(&python, CONVERT, &[&[text(&photos)], &paths[..]].concat());
    for (number, path) in odd.iter().enumerate() {
        let copy = photos.join(format!("odd{number:02}.jpg"));
        fs::copy(path, &copy).unwrap();
        fs::write(copy.with_extension("txt"), "photo\n").unwrap();
    }
    let mut files: Vec<PathBuf> = fs::read_dir(&photos)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension != "txt"))
        .collect();
    files.sort();
    assert_eq!(files.len(), 48 + 20);

    let config = LoaderConfig {
        image_size: SIDE,
        batch_size: 7,
        ..LoaderConfig::default()
    };
    let reader = ImageReader::new(&config).unwrap();
    let from_files: Vec<Tensor> = reader
        .read_all(&files)
        .into_iter()
        .map(|image| upload_pixels(image.unwrap().as_batch(), Device::Cpu).unwrap())
        .map(|image| image.squeeze_dim(0))
        .collect();
    for format in ["tar", "arrow"] {
        let prefix = folder.path().join("shard");
        shard_cli::shard(&photos, &prefix, &["--format", format]);
        let in_shards = from_shards(&format!("{}-*.{format}", prefix.display()), &config);
        assert_eq!(in_shards.len(), files.len());
        for (file, image) in files.iter().zip(&from_files) {
            let key = file.file_stem().unwrap().to_str().unwrap();
            assert_eq!(image, &in_shards[key], "{} in {format}", file.display());
        }
    }

    let side = SIDE.to_string();
    let arguments: Vec<&str> = files.iter().map(|path| text(path)).collect();
    let theirs = run_python(
        &python,
        &[PROCESS, PROCESS_MAIN].concat(),
        &[&[side.as_str()], &arguments[..]].concat(),
    );
    let len = 3 * SIDE * SIDE * 4;
    assert_eq!(theirs.len(), files.len() * len);
    let mut equal = 0;
    for ((file, ours), theirs) in files.iter().zip(&from_files).zip(theirs.chunks(len)) {
        let ours = Vec::<f32>::try_from(ours.reshape([-1])).unwrap();
        let theirs: Vec<f32> = theirs
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        equal += usize::from(ours == theirs);
        let beyond = ours.iter().zip(&theirs).enumerate();
        let beyond = beyond.filter(|(at, (ours, theirs))| {
            let step = 1.0 / 255.0 / CLIP_STD[at / (SIDE * SIDE)];
            (*ours - *theirs).abs() > 1.001 * step
        });
        let share = beyond.count() as f64 / ours.len() as f64;
        assert!(share <= 0.001, "{}: {share} beyond 1", file.display());
    }
    println!("{equal} of {} files are Pillow's to the bit", files.len());
    assert!(equal >= 60, "{equal} of {}", files.len());
}

/// Photographs with captions as a folder and as a shard, and a model that was trained on them a little.
struct Trained {
    _folder: TempDir,
    photos: PathBuf,
    /// Of `photos`, in the order of their names.
    files: Vec<PathBuf>,
    shards: String,
    run_dir: String,
}

/// Its tower: LAVIS's, small.
const TOWER: [&str; 9] = [
    "data.image_size=112",
    "model.vision.type=eva",
    "model.vision.image_size=112",
    "model.vision.patch_size=14",
    "model.vision.depth=2",
    // What transformers assumes.
    "model.qformer.ln_vision_eps=1e-6",
    // Far from constant.
    "model.qformer.init_std=0.3",
    "schedule.init_lr=1e-3",
    "schedule.warmup_steps=0",
];

fn trained(test: &str) -> Option<&'static Trained> {
    static TRAINED: OnceLock<Trained> = OnceLock::new();
    let originals = photographs(test, 48)?;
    let trained = TRAINED.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let photos = folder.path().join("photos");
        fs::create_dir(&photos).unwrap();
        let mut files = Vec::new();
        for original in &originals {
            let copy = photos.join(original.file_name().unwrap());
            fs::copy(original, &copy).unwrap();
            let captions = original.with_extension("txt");
            fs::copy(captions, copy.with_extension("txt")).unwrap();
            files.push(copy);
        }
        let prefix = folder.path().join("shard");
        shard_cli::shard(&photos, &prefix, &["--format", "tar"]);
        let shards = format!("{}-*.tar", prefix.display());
        let run_dir = folder.path().join("run").display().to_string();
        let settings = TOWER.iter().flat_map(|setting| ["--set", *setting]);
        let more: Vec<&str> = ["--steps", "24"].into_iter().chain(settings).collect();
        succeeds(&small_run(&run_dir, &shards, &more));
        Trained {
            _folder: folder,
            photos,
            files,
            shards,
            run_dir,
        }
    });
    Some(trained)
}

const TEXTS: [&str; 4] = [
    "A man riding a wave on top of a surfboard.",
    "two dogs,   a cat; and \"a red bus\"",
    "Kitchen (with a table)!",
    "a plate of food next to a glass of water on a wooden table in front of a large window",
];

/// `qftrain score` on photographs is what transformers and the reference make of the same files.
#[test]
fn scores_are_those_of_transformers_and_of_the_reference() {
    const TEST: &str = "scores_are_those_of_transformers_and_of_the_reference";
    let (Some(python), Some(trained)) = (weights::python(TEST), trained(TEST)) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let hf = folder.path().join("hf");
    let lavis = folder.path().join("lavis.safetensors");
    for (format, out) in [("hf", &hf), ("lavis", &lavis)] {
        let run = ["export", "--run-dir", &trained.run_dir];
        let more = ["--format", format, "--out", text(out)];
        succeeds(&[&run[..], &more].concat());
    }
    // Landscape, portrait and square ones.
    let files = &trained.files[..10];
    let request = json!({
        "hf": hf, "lavis": lavis, "images": files, "texts": TEXTS, "side": 112,
        "tower_heads": 2, "heads": 2, "text_len": 32,
    });
    let script = [PROCESS, LAVIS, SCORES].concat();
    let answer = run_python(&python, &script, &[&request.to_string()]);
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    let mut worst = BTreeMap::<String, f64>::new();
    let mut spread = (f64::INFINITY, f64::NEG_INFINITY);
    for (number, file) in files.iter().enumerate() {
        let score = ["score", "--run-dir", &trained.run_dir, "--json", text(file)];
        let report: Value =
            serde_json::from_str(&succeeds(&[&score[..], &TEXTS].concat())).unwrap();
        for (text, scores) in report["scores"].as_array().unwrap().iter().enumerate() {
            for name in ["itc_cosine", "itm_probability"] {
                let ours = scores[name].as_f64().unwrap();
                for program in ["transformers", "lavis"] {
                    let theirs = answer[program][name][number][text].as_f64().unwrap();
                    let worst = worst.entry(format!("{program} {name}")).or_default();
                    *worst = worst.max((ours - theirs).abs());
                }
                if name == "itc_cosine" {
                    spread = (spread.0.min(ours), spread.1.max(ours));
                }
            }
        }
    }
    println!("largest differences: {worst:?}; cosines {spread:?}");
    assert_eq!(worst.len(), 4);
    assert!(worst.values().all(|&worst| worst <= 1e-5), "{worst:?}");
    // Equal scores would compare well.
    assert!(spread.1 - spread.0 > 0.1, "{spread:?}");
}

/// `qftrain embed`, `search` and `classify` on photographs find what transformers and the reference find.
#[test]
fn embeddings_are_those_of_transformers_and_of_the_reference() {
    const TEST: &str = "embeddings_are_those_of_transformers_and_of_the_reference";
    let (Some(python), Some(trained)) = (weights::python(TEST), trained(TEST)) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (format, out) in [("hf", at("hf")), ("lavis", at("lavis.safetensors"))] {
        let run = ["export", "--run-dir", &trained.run_dir];
        let more = ["--format", format, "--out", text(&out)];
        succeeds(&[&run[..], &more].concat());
    }
    let files: Vec<&str> = trained.files[..10].iter().map(|file| text(file)).collect();
    let lines = TEXTS.join("\n");
    fs::write(at("texts.txt"), lines).unwrap();
    for out in [at("photos.parquet"), at("photos")] {
        let embed = ["embed", "--run-dir", &trained.run_dir, "--query-outputs"];
        let texts = at("texts.txt");
        let options = [
            "--batch-size",
            "4",
            "--texts",
            text(&texts),
            "--out",
            text(&out),
        ];
        succeeds(&[&embed[..], &options, &files].concat());
    }
    let request = json!({
        "hf": at("hf"), "lavis": at("lavis.safetensors"), "images": files, "texts": TEXTS, "side": 112,
        "tower_heads": 2, "heads": 2, "text_len": 32, "queries": 4, "width": 16, "hidden": 32,
        "parquet": at("photos.parquet"), "parquet_texts": at("photos.texts.parquet"), "npy": at("photos"),
    });
    let script = [PROCESS, LAVIS, FEATURES].concat();
    let answer = run_python(&python, &script, &[&request.to_string()]);
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    println!(
        "largest differences: {} {}",
        answer["lavis"], answer["transformers"]
    );
    for program in ["lavis", "transformers"] {
        for name in ["images", "outputs", "texts"] {
            let worst = answer[program][name].as_f64().unwrap();
            assert!(worst <= 2e-5, "{program} {name}: {worst}");
        }
    }
    assert!(answer["spread"].as_f64().unwrap() > 0.1, "{answer}");

    // The best images of each text, by the reference's cosines.
    let cosines: Vec<Vec<f64>> = serde_json::from_value(answer["cosines"].clone()).unwrap();
    for out in [at("photos.parquet"), at("photos")] {
        let search = [
            "search",
            "--run-dir",
            &trained.run_dir,
            "--embeddings",
            text(&out),
        ];
        let stdout = succeeds(&[&search[..], &["--top", "3", "--json"], &TEXTS].concat());
        let found: Vec<Value> = (stdout.lines())
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(found.len(), TEXTS.len());
        for (number, found) in found.iter().enumerate() {
            let mut best: Vec<(f64, &str)> = (cosines.iter().zip(&files))
                .map(|(row, file)| (row[number], *file))
                .collect();
            best.sort_by(|a, b| b.0.total_cmp(&a.0));
            let images = found["images"].as_array().unwrap();
            assert_eq!(images.len(), 3);
            for (image, (cosine, file)) in images.iter().zip(best) {
                let ours = image["itc_cosine"].as_f64().unwrap();
                assert!((ours - cosine).abs() < 2e-5, "{image} {cosine}");
                assert_eq!(image["key"], file);
            }
        }
    }
    classes_are_those_of_the_reference(trained, &files, &cosines, folder.path());
}

/// Photographs in folders named like the texts of `cosines`: each goes to the class whose text is nearest.
fn classes_are_those_of_the_reference(
    trained: &Trained,
    files: &[&str],
    cosines: &[Vec<f64>],
    folder: &Path,
) {
    // In words that the caption processor leaves alone, so that a folder can have the name.
    let classes = [0, 3].map(|text| (text, TEXTS[text].trim_end_matches('.').to_lowercase()));
    let root = folder.join("classes");
    let mut right = 0;
    for (number, (file, row)) in files.iter().zip(cosines).enumerate() {
        let own = number % 2;
        let class = root.join(classes[own].1.replace(' ', "_"));
        fs::create_dir_all(&class).unwrap();
        fs::copy(file, class.join(format!("{number}.jpg"))).unwrap();
        let other = 1 - own;
        right += usize::from(row[classes[own].0] > row[classes[other].0]);
    }
    let classify = ["classify", "--run-dir", &trained.run_dir, text(&root)];
    let options = ["--prompt", "{}", "--batch-size", "3", "--json"];
    let stdout = succeeds(&[&classify[..], &options].concat());
    let last: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert_eq!(last["images"], files.len());
    let expected = 100.0 * right as f64 / files.len() as f64;
    assert_eq!(last["top1"].as_f64().unwrap(), expected, "{stdout}");
    assert_eq!(last["top5"], 100.0);
    assert_eq!(stdout.lines().count(), files.len() + 1);
}

/// Retrieval on an annotation file is that on shards of the same pairs, figure for figure.
#[test]
fn evaluation_of_files_is_that_of_shards() {
    let Some(trained) = trained("evaluation_of_files_is_that_of_shards") else {
        return;
    };
    let annotations: Vec<Value> = trained
        .files
        .iter()
        .map(|file| {
            let captions = fs::read_to_string(file.with_extension("txt")).unwrap();
            let captions: Vec<&str> = captions.lines().collect();
            json!({"image": file.file_name().unwrap().to_str(), "caption": captions, "image_id": 7})
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("annotations.json");
    fs::write(&list, Value::from(annotations).to_string()).unwrap();
    let eval = |more: &[&str]| -> Value {
        let common = ["eval", "--run-dir", &trained.run_dir, "--rerank", "8"];
        let options = ["--batch-size", "9", "--json"];
        serde_json::from_str(&succeeds(&[&common[..], &options, more].concat())).unwrap()
    };
    let files = eval(&[
        "--annotations",
        text(&list),
        "--images",
        text(&trained.photos),
    ]);
    let shards = eval(&["--shards", &trained.shards]);
    assert_eq!(files, shards);
    assert_eq!(
        (&files["images"], &files["captions"]),
        (&json!(48), &json!(240))
    );
    // A wrong image anywhere would show: its captions are ranked by their scores.
    assert_ne!(files["itc"], files["chance"]);
}

/// The same words, tokens and scores for files as for shards.
#[test]
fn captions_of_files_are_those_of_shards() {
    let Some(trained) = trained("captions_of_files_are_those_of_shards") else {
        return;
    };
    let captions = |more: &[&str]| -> Vec<Value> {
        let common = ["caption", "--run-dir", &trained.run_dir, "--json"];
        let options = ["--batch-size", "16", "--beams", "3"];
        let stdout = succeeds(&[&common[..], &options, more].concat());
        let lines = stdout
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|mut line| line["captions"].take()).collect()
    };
    let files: Vec<&str> = trained.files.iter().map(|file| text(file)).collect();
    let of_files = captions(&files);
    assert_eq!(of_files, captions(&["--shards", &trained.shards]));
    assert_eq!(of_files.len(), 48);
    // Not one caption for all: it sees the images.
    let scores = of_files
        .iter()
        .map(|captions| captions[0]["score"].to_string());
    let distinct: std::collections::BTreeSet<String> = scores.collect();
    assert!(distinct.len() > 40, "{distinct:?}");
}
