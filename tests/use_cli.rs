//! `qftrain eval`, `caption`, `score`, and validation while training.

use std::fs;
use std::path::Path;

use serde_json::{json, Value};
use tempfile::TempDir;

use crate::train_cli::{
    checkpoint, command, data, exact_metrics, fails, glob, metrics, path, qftrain, small_run,
    succeeds, weights,
};

/// A run of a few steps.
fn trained(folder: &TempDir) -> String {
    let run_dir = path(folder, "run");
    succeeds(&small_run(&run_dir, &glob("tar"), &["--steps", "4"]));
    run_dir
}

fn lines(stdout: &str) -> Vec<Value> {
    let lines = stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn scene(number: usize) -> String {
    let path = data().join(format!("scenes/{number:06}.jpg"));
    path.display().to_string()
}

#[test]
fn validation_watches_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, held) = (glob("tar"), glob("arrow"));
    let plain = path(&folder, "plain");
    let steps = ["--steps", "12", "--set", "checkpoint_every_steps=5"];
    succeeds(&small_run(&plain, &shards, &steps));
    let run_dir = path(&folder, "watched");
    let validation = [
        "--val-shards",
        &held,
        "--val-every",
        "3",
        "--set",
        "validation.rerank=4",
        "--set",
        "validation.keep_best=loss",
        "--set",
        "keep_checkpoints=1",
    ];
    let more = [&steps[..], &validation].concat();
    succeeds(&small_run(&run_dir, &shards, &more));
    let (plain, run) = (Path::new(&plain), Path::new(&run_dir));
    assert_eq!(exact_metrics(plain), exact_metrics(run));
    assert!(weights(plain, 12) == weights(run, 12));

    let all = metrics(run);
    let records: Vec<_> = all
        .iter()
        .filter(|record| record["kind"] == "validation")
        .collect();
    let steps: Vec<_> = records
        .iter()
        .map(|r| r["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [3, 6, 9, 12]);
    for record in &records {
        assert_eq!(
            (&record["images"], &record["captions"]),
            (&24.into(), &72.into())
        );
        let loss = |name: &str| record[name].as_f64().unwrap();
        let sum = loss("loss_itc") + loss("loss_itm") + loss("loss_lm");
        assert!((loss("loss") - sum).abs() < 1e-4, "{record}");
        for recall in [&record["itc"], &record["itm"]] {
            assert!(recall["text"]["r10"].as_f64().unwrap() <= 100.0);
        }
    }
    // A line follows the step it belongs to.
    let at = |kind: &str| {
        all.iter()
            .position(|record| record["kind"] == kind && record["step"] == 6)
            .unwrap()
    };
    assert_eq!(at("validation"), at("train") + 1);

    // The best by loss is kept beside the newest.
    let best = records.iter().min_by(|a, b| {
        a["loss"]
            .as_f64()
            .unwrap()
            .total_cmp(&b["loss"].as_f64().unwrap())
    });
    let best_step = best.unwrap()["step"].as_u64().unwrap();
    let pointer = fs::read_to_string(run.join("checkpoints/best.json")).unwrap();
    let pointer: Value = serde_json::from_str(&pointer).unwrap();
    assert_eq!(pointer["step"], best_step);
    assert_eq!(pointer["metric"], "loss");
    assert!(checkpoint(run, best_step).is_dir() && checkpoint(run, 12).is_dir());

    // Evaluation of that checkpoint measures the same retrieval.
    let eval = [
        "eval",
        "--run-dir",
        &run_dir,
        "--shards",
        &held,
        "--step",
        "best",
        "--rerank",
        "4",
        "--batch-size",
        "4",
        "--text-len",
        "32",
        "--json",
    ];
    let report: Value = serde_json::from_str(&succeeds(&eval)).unwrap();
    assert_eq!(report["step"], best_step);
    assert_eq!(report["itc"], best.unwrap()["itc"]);
    assert_eq!(report["itm"], best.unwrap()["itm"]);
}

#[test]
fn validation_on_shards_that_are_trained_on_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, other) = (glob("tar"), glob("arrow"));
    let first = data().join("scenes-000000.tar").display().to_string();
    for (held_out, words) in [
        (&shards, Some("2 of 2 validation shards")),
        (&first, Some("1 of 1 validation shards")),
        (&other, None),
    ] {
        let run_dir = path(&folder, &format!("run-{}", words.is_some()));
        let _ = fs::remove_dir_all(&run_dir);
        let more = ["--steps", "1", "--val-shards", held_out];
        let output = command(&small_run(&run_dir, &shards, &more))
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        match words {
            Some(words) => assert!(
                stderr.contains(words) && stderr.contains("scenes-000000.tar"),
                "{stderr}"
            ),
            None => assert!(!stderr.contains("trained on too"), "{stderr}"),
        }
    }
}

#[test]
fn settings_that_cannot_work_are_refused_before_data_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    // There are no such shards: whoever looks for them is too late.
    let shards = path(&folder, "none-*.tar");
    for (setting, words) in [
        ("data.batch_size=1", "data.batch_size"),
        ("data.batch_size=0", "batch_size"),
        ("data.text_len=513", "text_len"),
        ("data.text_len=65", "data.text_len"),
        ("data.text_len=2", "text_len"),
        ("data.drop_last=false", "data.drop_last"),
        ("data.captions=all", "data.captions"),
        ("data.captions=ignore", "data.captions"),
        ("model.qformer.num_queries=0", "qformer.num_queries"),
        ("model.qformer.heads=3", "qformer.heads"),
        ("model.qformer.layers=0", "qformer.layers"),
        ("model.qformer.encoder_width=64", "qformer.encoder_width"),
        ("model.qformer.dropout=1.0", "qformer.dropout"),
        ("model.vision.heads=3", "vision.heads"),
        ("model.vision.patch_size=24", "vision.image_size"),
        ("model.vision.image_size=128", "data.image_size"),
        ("data.image_size=128", "data.image_size"),
        ("on_non_finite=ignore", "on_non_finite"),
        ("max_skips_in_a_row=0", "max_skips_in_a_row"),
        ("keep_checkpoints=0", "keep_checkpoints"),
        ("validation.every_steps=5", "validation.shards"),
        ("validation.evry_steps=5", "evry_steps"),
    ] {
        let message = fails(1, &small_run(&run_dir, &shards, &["--set", setting]));
        assert!(message.contains(words), "{setting}: {message}");
        assert!(!message.contains("none-"), "{setting}: {message}");
    }
    let held = glob("arrow");
    for (setting, words) in [
        ("validation.every_steps=0", "validation.every_steps"),
        ("validation.batch_size=1", "validation.batch_size"),
        ("validation.max_samples=3", "validation.max_samples"),
        ("validation.keep_best=accuracy", "keep_best"),
    ] {
        let more = ["--val-shards", &held, "--set", setting];
        let message = fails(1, &small_run(&run_dir, &shards, &more));
        assert!(message.contains(words), "{setting}: {message}");
    }
    let more = [
        "--val-shards",
        &held,
        "--set",
        "validation.rerank=0",
        "--set",
        "validation.keep_best=itm_mean_recall",
    ];
    let message = fails(1, &small_run(&run_dir, &shards, &more));
    assert!(message.contains("validation.keep_best"), "{message}");
    let missing = path(&folder, "held-*.tar");
    let more = ["--val-shards", &missing];
    let message = fails(1, &small_run(&run_dir, &glob("tar"), &more));
    for word in ["validation.shards", "held-*.tar"] {
        assert!(message.contains(word), "{message}");
    }
    assert!(!Path::new(&run_dir).exists());
}

#[test]
fn an_annotation_file_evaluates_like_the_shards_of_the_same_images() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = trained(&folder);
    let entries: Vec<Value> = (0..24)
        .map(|number| {
            let text = data().join(format!("scenes/{number:06}.txt"));
            let text = fs::read_to_string(text).unwrap();
            let captions: Vec<_> = text.lines().collect();
            json!({"image": format!("{number:06}.jpg"), "caption": captions, "image_id": number})
        })
        .collect();
    let file = path(&folder, "test.json");
    let images = data().join("scenes").display().to_string();
    let eval = |more: &[&'static str]| -> Vec<&str> {
        let annotated = [
            "eval",
            "--run-dir",
            &run_dir,
            "--annotations",
            &file,
            "--images",
            &images,
        ];
        [&annotated[..], more].concat()
    };
    fs::write(&file, json!(entries).to_string()).unwrap();
    let report = succeeds(&eval(&["--json", "--rerank", "4", "--batch-size", "7"]));
    let shards = glob("tar");
    let expected = succeeds(&[
        "eval",
        "--run-dir",
        &run_dir,
        "--shards",
        &shards,
        "--json",
        "--rerank",
        "4",
        "--batch-size",
        "7",
    ]);
    assert_eq!(report, expected);

    // A missing image is skipped and counted, as in shards, or fatal if asked for.
    let mut holed = entries.clone();
    holed[5]["image"] = "none.jpg".into();
    holed[23]["caption"] = json!([" . "]);
    fs::write(&file, json!(holed).to_string()).unwrap();
    let output = qftrain(&eval(&["--json"]));
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["images"], &report["skipped"]),
        (&22.into(), &2.into())
    );

    let check = |content: &str, words: &[&str]| {
        fs::write(&file, content).unwrap();
        let message = fails(1, &eval(&[]));
        for word in words {
            assert!(message.contains(word), "{message}");
        }
    };
    check("{", &["test.json", "no JSON list"]);
    check("[]", &["test.json", "empty"]);
    check(r#"[{"image": "a.jpg"}]"#, &["entry 0", "caption"]);
    check(
        r#"[{"image": "a.jpg", "caption": "x"}, {"image": "b.jpg", "caption": []}]"#,
        &["entry 1", "b.jpg", "no caption"],
    );
    check(
        r#"[{"image": "none.jpg", "caption": "a disc"}]"#,
        &["no usable sample"],
    );
    // One entry a caption, as in lists for training: the same images, the same figures.
    let one_by_one: Vec<Value> = (0..3)
        .flat_map(|caption| entries.iter().map(move |entry| (entry, caption)))
        .map(|(entry, caption)| json!({"image": entry["image"], "caption": entry["caption"][caption]}))
        .collect();
    fs::write(&file, json!(one_by_one).to_string()).unwrap();
    let merged = succeeds(&eval(&["--json", "--rerank", "4", "--batch-size", "7"]));
    assert_eq!(merged, expected);

    let without_root = ["eval", "--run-dir", &run_dir, "--annotations", &file];
    fails(2, &without_root);
}

/// A run's filters choose what it learns from and validates on; evaluation has all that it is given, shards
/// and files alike, unless it is asked to filter.
#[test]
fn filters_of_a_run_leave_its_evaluation_alone() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let texts = |number: usize| -> Vec<String> {
        let text = data().join(format!("scenes/{number:06}.txt"));
        let text = fs::read_to_string(text).unwrap();
        text.lines().map(str::to_owned).collect()
    };
    let words = |text: &String| text.split_whitespace().count();
    // A limit that leaves some of the captions out.
    let mut counts: Vec<usize> = (0..24).flat_map(texts).map(|t| words(&t)).collect();
    counts.sort_unstable();
    let least = counts[counts.len() / 3] + 1;
    let taken = counts.iter().filter(|&&count| count >= least).count();
    assert!(0 < taken && taken < 72, "{counts:?}");
    let setting = format!("data.filters.min_caption_words={least}");
    let (shards, held) = (glob("tar"), glob("arrow"));
    let validation = ["--val-shards", &held, "--val-every", "4"];
    let more = [
        "--steps",
        "4",
        "--set",
        &setting,
        "--set",
        "validation.rerank=4",
    ];
    succeeds(&small_run(
        &run_dir,
        &shards,
        &[&more[..], &validation].concat(),
    ));

    let entries: Vec<Value> = (0..24)
        .map(|number| json!({"image": format!("{number:06}.jpg"), "caption": texts(number)}))
        .collect();
    let file = path(&folder, "test.json");
    fs::write(&file, json!(entries).to_string()).unwrap();
    let images = data().join("scenes").display().to_string();
    let eval = |more: &[&str]| -> Value {
        let common = ["eval", "--run-dir", &run_dir, "--json", "--rerank", "4"];
        serde_json::from_str(&succeeds(&[&common[..], more].concat())).unwrap()
    };
    let of_files = ["--annotations", &file, "--images", &images];
    let whole = eval(&["--shards", &shards]);
    assert_eq!(whole, eval(&of_files));
    assert_eq!(
        (&whole["images"], &whole["captions"]),
        (&24.into(), &72.into())
    );
    // Filtered, they are what the run's validation counted.
    let filtered = eval(&["--shards", &shards, "--filters"]);
    let all = metrics(Path::new(&run_dir));
    let record = all.iter().find(|record| record["kind"] == "validation");
    for name in ["images", "captions", "skipped"] {
        assert_eq!(filtered[name], record.unwrap()[name], "{name}");
    }
    assert_eq!(filtered["captions"], taken);
    let both = [&["eval", "--run-dir", &run_dir, "--filters"], &of_files[..]].concat();
    fails(2, &both);
}

/// Matrix products of another size round otherwise: the words are the same, the scores nearly.
fn same_captions(one: &serde_json::Value, other: &serde_json::Value) {
    let captions = |image: &serde_json::Value| image["captions"].as_array().unwrap().clone();
    let pairs = captions(one).into_iter().zip(captions(other));
    for (one, other) in pairs {
        assert_eq!(one["tokens"], other["tokens"]);
        let score = |caption: &serde_json::Value| caption["score"].as_f64().unwrap();
        assert!((score(&one) - score(&other)).abs() < 1e-4);
    }
    assert_eq!(captions(one).len(), captions(other).len());
}

#[test]
fn captions_of_files_and_shards() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = trained(&folder);
    let (one, two) = (scene(0), scene(1));
    let caption = |more: &[&str]| -> Vec<String> {
        let base = ["caption", "--run-dir", &run_dir];
        let all = [&base[..], more].concat();
        all.into_iter().map(String::from).collect()
    };
    let run = |more: &[&str]| -> String {
        let arguments = caption(more);
        succeeds(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let text = run(&[&one, &two]);
    let rows: Vec<_> = text.lines().collect();
    assert_eq!(rows.len(), 2);
    assert!(rows[0].starts_with(&format!("{one}: ")), "{text}");
    assert_eq!(run(&["--limit", "1", &one, &two]).lines().count(), 1);

    let options = [
        "--beams",
        "4",
        "--num-captions",
        "3",
        "--max-length",
        "9",
        "--json",
    ];
    let json = run(&[&options[..], &[&one, &two]].concat());
    let images = lines(&json);
    let singly = run(&[&options[..], &["--batch-size", "1", &one, &two]].concat());
    for (one, other) in images.iter().zip(&lines(&singly)) {
        same_captions(one, other);
    }
    assert_eq!(images.len(), 2);
    assert_eq!(images[1]["image"], two.as_str());
    for image in &images {
        let captions = image["captions"].as_array().unwrap();
        assert_eq!(captions.len(), 3);
        let scores: Vec<_> = captions
            .iter()
            .map(|c| c["score"].as_f64().unwrap())
            .collect();
        assert!(scores.windows(2).all(|pair| pair[0] >= pair[1]), "{image}");
        for caption in captions {
            // [DEC] is one of the nine.
            assert!(caption["tokens"].as_array().unwrap().len() <= 8);
            assert!(caption["text"].is_string());
        }
    }
    // The image of a shard is that of the file.
    let shards = glob("tar");
    let of_shards = [&options[..], &["--limit", "2", "--shards", &shards]].concat();
    let of_shards = lines(&run(&of_shards));
    assert_eq!(of_shards.len(), 2);
    for (shard, file) in of_shards.iter().zip(&images) {
        same_captions(shard, file);
    }

    let draw = |seed: &str| {
        run(&[
            "--top-p",
            "0.95",
            "--temperature",
            "1.5",
            "--seed",
            seed,
            "--num-captions",
            "4",
            "--json",
            &one,
        ])
    };
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));
}

#[test]
fn captions_that_cannot_be_made() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = trained(&folder);
    let one = scene(0);
    let caption = |more: &[&str]| -> Vec<String> {
        let base = ["caption", "--run-dir", &run_dir];
        let all = [&base[..], more].concat();
        all.into_iter().map(String::from).collect()
    };
    let check = |code: i32, more: &[&str], words: &[&str]| {
        let arguments = caption(more);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let message = fails(code, &arguments);
        for word in words {
            assert!(message.contains(word), "{message}");
        }
    };
    let file = |name: &str, bytes: &[u8]| {
        let path = path(&folder, name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let missing = path(&folder, "missing.jpg");
    check(1, &[&missing], &["missing.jpg", "No such file"]);
    check(3, &[&one, &missing], &["1 of 2 images"]);
    check(1, &[&file("text.jpg", b"no picture")], &["text.jpg"]);
    check(1, &[&file("empty.jpg", b"")], &["empty.jpg", "is empty"]);
    let whole = fs::read(&one).unwrap();
    check(
        1,
        &[&file("half.jpg", &whole[..whole.len() / 2])],
        &["half.jpg"],
    );
    fs::create_dir(folder.path().join("empty")).unwrap();
    let empty = path(&folder, "empty");
    check(1, &[&empty], &["empty", "no image"]);
    check(
        1,
        &["--max-length", "65", &one],
        &["max_length", "65", "64"],
    );
    check(1, &["--beams", "0", &one], &["num_beams"]);
    check(
        1,
        &["--num-captions", "6", &one],
        &["num_captions", "5 beams"],
    );
    check(1, &["--top-p", "2", &one], &["top_p"]);
    check(2, &["--top-p", "0.9", "--beams", "3", &one], &["--beams"]);
    check(2, &[], &["IMAGES"]);
    check(1, &["--step", "9", &one], &["checkpoint of step 9", "of 4"]);
    check(
        1,
        &["--step", "best", &one],
        &["no best checkpoint", "--step 4"],
    );
    check(2, &["--step", "last", &one], &["best"]);
}

#[test]
fn scores_of_texts() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = trained(&folder);
    let image = scene(3);
    let score = ["score", "--run-dir", &run_dir];
    let texts = ["a small red disc", "Two BLUE squares!", "a small red disc"];
    let json = [&score[..], &["--json", &image], &texts].concat();
    let report: Value = serde_json::from_str(&succeeds(&json)).unwrap();
    assert_eq!(
        (&report["image"], &report["step"]),
        (&json!(image), &4.into())
    );
    let scores = report["scores"].as_array().unwrap();
    assert_eq!(scores.len(), 3);
    let number = |index: usize, name: &str| scores[index][name].as_f64().unwrap();
    for (index, text) in texts.iter().enumerate() {
        assert_eq!(scores[index]["text"], *text);
        assert!((0.0..=1.0).contains(&number(index, "itm_probability")));
        let cosine = number(index, "itc_cosine");
        assert!(cosine.abs() <= 1.0 + 1e-6);
        // The temperature has hardly moved from 0.07 in four steps.
        let ratio = cosine / number(index, "itc_over_temperature");
        assert!((ratio - 0.07).abs() < 0.01, "{ratio}");
    }
    for name in ["itm_probability", "itc_cosine"] {
        assert!((number(0, name) - number(2, name)).abs() < 1e-6);
    }
    assert_ne!(scores[0]["itc_cosine"], scores[1]["itc_cosine"]);
    let table = succeeds(&[&score[..], &[&image], &texts].concat());
    assert_eq!(table.lines().count(), 5, "{table}");
    assert!(table.contains("ITM match") && table.contains("Two BLUE squares!"));

    let check = |code: i32, more: &[&str], words: &[&str]| {
        let message = fails(code, &[&score[..], more].concat());
        for word in words {
            assert!(message.contains(word), "{message}");
        }
    };
    check(1, &[&image, "a disc", " ."], &["text 2", "is empty"]);
    let missing = path(&folder, "missing.jpg");
    check(1, &[&missing, "a disc"], &["missing.jpg", "No such file"]);
    check(2, &[&image], &["TEXT"]);
    let none = path(&folder, "none");
    let message = fails(1, &["score", "--run-dir", &none, &image, "a disc"]);
    assert!(message.contains("no such folder"), "{message}");
}

/// A run in 16 bits is used in 16 bits, unless the command says otherwise.
#[test]
fn precision_is_that_of_the_run_or_of_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let in_16_bits = ["--steps", "2", "--set", "precision=bf16"];
    succeeds(&small_run(&run_dir, &glob("tar"), &in_16_bits));
    let (held, image) = (glob("arrow"), scene(3));
    let commands: [&[&str]; 3] = [
        &["score", "--json", &image, "a small red disc", "two squares"],
        &["eval", "--json", "--shards", &held, "--rerank", "0"],
        &["caption", "--json", &image, "--max-length", "8"],
    ];
    for command in commands {
        let with = |more: &[&str]| {
            let run = ["--run-dir", run_dir.as_str()];
            succeeds(&[&command[..1], &run, &command[1..], more].concat())
        };
        let own = with(&[]);
        assert_eq!(own, with(&["--precision", "bf16"]));
        if command[0] == "eval" {
            // Ranks of few images; they need not differ.
            with(&["--precision", "f32"]);
            continue;
        }
        let exact = with(&["--precision", "f32"]);
        assert_ne!(own, exact, "{command:?}");
        let number = |text: &str| match command[0] {
            "score" => {
                let report: Value = serde_json::from_str(text).unwrap();
                report["scores"][0]["itc_cosine"].as_f64().unwrap()
            }
            _ => lines(text)[0]["captions"][0]["score"].as_f64().unwrap(),
        };
        let (own, exact) = (number(&own), number(&exact));
        assert!(
            (own - exact).abs() < 0.05 * exact.abs().max(1.0),
            "{own} {exact}"
        );
    }
    let run = ["score", "--run-dir", &run_dir, &image, "a disc"];
    let message = fails(2, &[&run[..], &["--precision", "f64"]].concat());
    assert!(message.contains("expected f32, bf16 or f16"), "{message}");
}
