//! Several captions of an image as samples of their own (`data.image_ids`), against LAVIS's arithmetic.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{json, Value};

use crate::train_cli::{data, fails, metrics, path, small_run, succeeds};
use crate::{shard_cli, test_data};

/// LAVIS's contrastive loss of a batch.
const LAVIS: &str = include_str!("python/image_ids.py");

/// Which of the 16 samples show which image: three captions each of four, and four with one.
const IMAGES: [usize; 16] = [0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2, 3, 5, 6, 7];

/// What the files of samples with an id are.
#[derive(Clone, Copy, PartialEq)]
enum Shows {
    /// One image. Without crops it makes no difference to the loss whether its captions share their target.
    TheSame,
    /// Several, so that it does.
    Another,
}

/// Shards of 16 samples whose json names an image by [`IMAGES`], but for that of number `without_id`.
fn shards(folder: &Path, shows: Shows, without_id: Option<usize>) -> String {
    let scenes = data().join("scenes");
    let source = folder.join("source");
    fs::create_dir_all(&source).unwrap();
    let mut names: Vec<_> = fs::read_dir(&scenes)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "jpg"))
        .collect();
    names.sort();
    for (at, image) in IMAGES.iter().enumerate() {
        let file = match shows {
            Shows::TheSame => *image,
            Shows::Another => at,
        };
        let captions = fs::read_to_string(names[file].with_extension("txt")).unwrap();
        let captions: Vec<&str> = captions.lines().collect();
        // The caption of this visit of the image.
        let visit = IMAGES[..at].iter().filter(|other| *other == image).count();
        let name = |ending: &str| source.join(format!("{at:02}.{ending}"));
        fs::copy(&names[file], name("jpg")).unwrap();
        fs::write(name("txt"), captions[visit]).unwrap();
        let json = match without_id == Some(at) {
            true => json!({}),
            false => json!({ "image_id": 391_895 + 7 * image }),
        };
        fs::write(name("json"), json.to_string()).unwrap();
    }
    shard_cli::shard(&source, &folder.join("ids"), &["--max-count", "8"]);
    format!("{}/ids-*.tar", folder.display())
}

/// Steps on all samples, without chance: no dropout, no crops, no learning.
const STILL: [&str; 9] = [
    // Features that differ from image to image, without training.
    "model.qformer.init_std=0.3",
    "model.qformer.dropout=0.0",
    "data.processing=eval",
    "schedule.init_lr=0.0",
    "schedule.min_lr=0.0",
    "schedule.warmup_lr=0.0",
    "schedule.warmup_steps=0",
    "precision=f32",
    "trained_vocab_size=300",
];

/// The contrastive loss of a run's first step.
fn first_loss(run_dir: &str, shards: &str, batch_size: u32, more: &[&str]) -> f64 {
    let batch_size = format!("data.batch_size={batch_size}");
    let mut options = vec!["--set", &batch_size, "--steps", "1"];
    options.extend(STILL.iter().flat_map(|setting| ["--set", *setting]));
    options.extend(more);
    succeeds(&small_run(run_dir, shards, &options));
    metrics(Path::new(run_dir))[0]["loss_itc"].as_f64().unwrap()
}

#[test]
fn captions_of_an_image_share_their_target_as_in_lavis() {
    let Some(python) = test_data::python("captions_of_an_image_share_their_target_as_in_lavis")
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let shards = shards(folder.path(), Shows::Another, None);
    let run = |name: &str| path(&folder, name);
    let by_field = ["--set", "data.image_ids=field"];
    let without = first_loss(&run("none"), &shards, 16, &[]);
    let field = first_loss(&run("field"), &shards, 16, &by_field);
    let digest = first_loss(
        &run("digest"),
        &shards,
        16,
        &["--set", "data.image_ids=digest"],
    );
    // The batch of both ranks together is the same.
    let of_two = [&by_field[..], &["--nproc", "2"]].concat();
    let two = first_loss(&run("two"), &shards, 8, &of_two);

    let embedded = run("embedded");
    succeeds(&[
        "embed",
        "--run-dir",
        &run("field"),
        "--shards",
        &shards,
        "--out",
        &embedded,
    ]);
    let temperature = metrics(Path::new(&run("field")))[0]["temperature"].to_string();
    let ids = serde_json::to_string(&IMAGES).unwrap();
    let output = Command::new(python)
        .args(["-c", LAVIS, &embedded, &temperature, &ids])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let expected: Value = serde_json::from_slice(&output.stdout).unwrap();
    let close = |ours: f64, theirs: &str, what: &str| {
        let theirs = expected[theirs].as_f64().unwrap();
        assert!(
            (ours - theirs).abs() < 1e-5 * theirs,
            "{what}: {ours}, LAVIS {theirs}"
        );
    };
    close(without, "own", "no ids");
    close(field, "shared", "ids of a field");
    close(digest, "own", "ids of the images' bytes, which differ");
    close(two, "shared", "two ranks");
    // They are told apart by far more than the tolerance.
    assert!((field - without).abs() > 1e-3, "{field} {without}");
}

#[test]
fn the_bytes_of_images_tell_them_apart_as_their_ids_do() {
    let folder = tempfile::tempdir().unwrap();
    let shards = shards(folder.path(), Shows::TheSame, None);
    let losses = |by: &str| -> Vec<String> {
        let run_dir = path(&folder, by);
        let ids = format!("data.image_ids={by}");
        let options = [
            "--set",
            &ids,
            "--set",
            "data.batch_size=8",
            "--set",
            "model.qformer.init_std=0.3",
        ];
        succeeds(&small_run(
            &run_dir,
            &shards,
            &[&options[..], &["--steps", "4"]].concat(),
        ));
        let records = metrics(Path::new(&run_dir));
        let losses = records.iter().map(|record| record["loss_itc"].to_string());
        losses.collect()
    };
    let field = losses("field");
    assert_eq!(field, losses("digest"));
    // Every crop is another, so it matters which captions share their target.
    let none = losses("none");
    assert!(
        field.iter().zip(&none).all(|(a, b)| a != b),
        "{field:?} {none:?}"
    );
}

#[test]
fn a_run_with_image_ids_goes_on_as_it_would_have() {
    let folder = tempfile::tempdir().unwrap();
    let shards = shards(folder.path(), Shows::TheSame, None);
    let (whole, parts) = (path(&folder, "whole"), path(&folder, "parts"));
    let options = [
        "--set",
        "data.image_ids=field",
        "--set",
        "data.batch_size=8",
        "--set",
        "trained_vocab_size=300",
    ];
    let train = |run_dir: &str, more: &[&str]| {
        succeeds(&small_run(run_dir, &shards, &[&options[..], more].concat()));
    };
    train(
        &whole,
        &["--steps", "6", "--set", "checkpoint_every_steps=3"],
    );
    fs::create_dir(&parts).unwrap();
    for entry in fs::read_dir(&whole).unwrap() {
        let from = entry.unwrap().path();
        if from.is_file() {
            fs::copy(&from, Path::new(&parts).join(from.file_name().unwrap())).unwrap();
        }
    }
    let checkpoints = Path::new(&parts).join("checkpoints");
    fs::create_dir(&checkpoints).unwrap();
    let third = "step-00000003";
    let copied = Command::new("cp")
        .arg("-r")
        .arg(Path::new(&whole).join("checkpoints").join(third))
        .arg(&checkpoints)
        .status();
    assert!(copied.unwrap().success());
    succeeds(&["--run-dir", &parts, "--resume"]);
    let losses = |run_dir: &str| -> Vec<String> {
        let records = metrics(Path::new(run_dir));
        records
            .iter()
            .map(|record| record["loss"].to_string())
            .collect()
    };
    assert_eq!(losses(&whole), losses(&parts));
    // Without the ids it would be another run.
    let message = fails(
        1,
        &[
            "--run-dir",
            &parts,
            "--resume",
            "--steps",
            "8",
            "--set",
            "data.image_ids=none",
        ],
    );
    assert!(message.contains("data.image_ids"), "{message}");
}

#[test]
fn a_sample_without_an_image_id_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let shards = shards(folder.path(), Shows::TheSame, Some(5));
    let run_dir = path(&folder, "run");
    let options = [
        "--steps",
        "4",
        "--set",
        "data.image_ids=field",
        "--set",
        "trained_vocab_size=300",
    ];
    succeeds(&small_run(&run_dir, &shards, &options));
    let skipped = fs::read_to_string(Path::new(&run_dir).join("skipped.jsonl")).unwrap();
    let lines: Vec<Value> = skipped
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 1, "{skipped}");
    assert_eq!(
        (&lines[0]["reason"], &lines[0]["key"]),
        (&"bad_metadata".into(), &"05".into())
    );
    assert!(skipped.contains("no `image_id`"), "{skipped}");
}
