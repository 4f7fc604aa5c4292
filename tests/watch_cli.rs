//! Watching a run: what it prints and logs, what TensorBoard reads of it, and its report.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::test_data;
use crate::train_cli::{command, fails, glob, metrics, path, qftrain, small_run, succeeds};

/// Reads event files with TensorBoard's own code.
const EVENTS: &str = include_str!("python/events.py");

/// A small run with validation and more.
fn watched(run_dir: &str, more: &[&str]) -> (String, String) {
    let (shards, held) = (glob("tar"), glob("arrow"));
    let options = ["--val-shards", &held, "--val-every", "4"];
    let arguments = small_run(run_dir, &shards, &[&options, more].concat());
    let output = qftrain(&arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    (String::from_utf8(output.stdout).unwrap(), stderr)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_run_keeps_what_it_said_and_shows_it_as_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let run = Path::new(&run_dir);
    let (stdout, stderr) = watched(&run_dir, &["--steps", "8"]);
    // The tables of the profile are for those who ask, and for slow loaders.
    assert!(stdout.contains("\nbottleneck: "), "{stdout}");
    let waited = stdout.split("then ").nth(1).unwrap();
    let waited: f64 = waited[..waited.find(' ').unwrap()].parse().unwrap();
    assert_eq!(stdout.contains("items/s/thread"), waited > 5.0, "{stdout}");
    assert!(stderr.contains("step 8/8  loss "), "{stderr}");

    let log = read(&run.join("train.log"));
    for line in stdout.lines().chain(stderr.lines()) {
        let line = line.trim_end();
        // Said before there is a folder.
        let is_early = line.starts_with("preset: ") || line.starts_with('[');
        assert!(log.contains(line) || is_early, "{line} is not in\n{log}");
    }
    let is_stamped =
        |line: &str| line.as_bytes()[..4].iter().all(u8::is_ascii_digit) && &line[19..21] == "Z ";
    assert!(log.lines().all(is_stamped), "{log}");

    for record in metrics(run) {
        assert_eq!(record["schema"], 2);
        assert!(record["time"].as_f64().unwrap() > 1.7e9);
        if record["kind"] == "train" {
            let temperature = record["temperature"].as_f64().unwrap();
            assert!((0.06..0.08).contains(&temperature), "{record}");
            assert!(record["memory_bytes"].as_u64().unwrap() > 1 << 20);
            assert_eq!(record["samples_bad"], 0);
        }
    }

    let page = read(&run.join("report.html"));
    for part in [
        "ITC loss",
        "Temperature",
        "Retrieval of held-out images",
        "Held-out images",
        "Where the queries look",
        "Where the time went",
        "Images per second",
    ] {
        assert!(page.contains(part), "{part}");
    }
    // It needs nothing else.
    for outside in ["http:", "https:", "<script", "<link", "src=\"/", "url(/"] {
        assert!(!page.contains(outside), "{outside}");
    }
    let gallery: Value = serde_json::from_str(&read(&run.join("gallery.json"))).unwrap();
    let (images, captions) = (
        gallery["images"].as_array().unwrap(),
        gallery["captions"].as_array().unwrap(),
    );
    assert_eq!(
        (images.len(), captions.len(), &gallery["step"]),
        (24, 72, &8.into())
    );
    assert_eq!(
        images
            .iter()
            .filter(|image| image["generated"].is_string())
            .count(),
        12
    );
    // What the page says was found is what retrieval measures.
    let right = |at: usize, image: &Value| {
        let first = image["top"][0][0].as_u64().unwrap() as usize;
        captions[first]["image"].as_u64().unwrap() as usize == at
    };
    let r1 = images
        .iter()
        .enumerate()
        .filter(|(at, image)| right(*at, image))
        .count();
    let records = metrics(run);
    let last = records
        .iter()
        .rfind(|record| record["kind"] == "validation")
        .unwrap();
    let expected = last["itc"]["text"]["r1"].as_f64().unwrap();
    assert!(
        (100.0 * r1 as f64 / 24.0 - expected).abs() < 0.01,
        "{r1} of 24, {expected} %"
    );
    let first = captions
        .iter()
        .filter(|caption| caption["rank"] == 0)
        .count();
    let expected = last["itc"]["image"]["r1"].as_f64().unwrap();
    assert!(
        (100.0 * first as f64 / 72.0 - expected).abs() < 0.01,
        "{first} of 72, {expected} %"
    );
}

#[test]
fn quiet_and_json_keep_stdout_for_machines() {
    let folder = tempfile::tempdir().unwrap();
    let quiet = path(&folder, "quiet");
    let (stdout, stderr) = watched(&quiet, &["--steps", "4", "--quiet"]);
    let said: Vec<&str> = stderr
        .lines()
        .filter(|line| !line.starts_with("[WARN"))
        .collect();
    assert_eq!((stdout.as_str(), said), ("", Vec::<&str>::new()));
    let log = read(&Path::new(&quiet).join("train.log"));
    assert!(
        log.contains("done: step 4 of 4") && log.contains("step 4/4  loss "),
        "{log}"
    );

    let json = path(&folder, "json");
    let (stdout, stderr) = watched(&json, &["--steps", "4", "--json"]);
    let lines: Vec<Value> = (stdout.lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<&str> = lines
        .iter()
        .map(|line| line["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        ["train", "train", "train", "train", "validation", "end"]
    );
    assert_eq!(lines[5]["outcome"], "finished");
    assert_eq!(
        (&lines[5]["step"], &lines[5]["samples"]["delivered"]),
        (&4.into(), &16.into())
    );
    assert!(stderr.contains("done: step 4 of 4"), "{stderr}");
    // Errors are said however quiet a run is.
    let again = qftrain(&["--run-dir", &quiet, "--quiet", "--shards", &glob("tar")]);
    let stderr = String::from_utf8(again.stderr).unwrap();
    assert!(
        stderr.contains("error: ") && stderr.contains("already holds a run"),
        "{stderr}"
    );
}

#[test]
fn tensorboard_reads_scalars_images_texts_and_histograms() {
    const TEST: &str = "tensorboard_reads_scalars_images_texts_and_histograms";
    let Some(python) = test_data::python(TEST) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let run = Path::new(&run_dir);
    watched(
        &run_dir,
        &[
            "--steps",
            "6",
            "--tensorboard",
            "histograms",
            "--set",
            "checkpoint_every_steps=4",
        ],
    );
    // Steps 5 and 6 are lost, and come again.
    fs::remove_dir_all(run.join("checkpoints/step-00000006")).unwrap();
    succeeds(&[
        "--run-dir",
        &run_dir,
        "--resume",
        "--tensorboard",
        "histograms",
    ]);
    let output = Command::new(&python)
        .args(["-W", "ignore", "-c", EVENTS])
        .arg(run.join("tensorboard"))
        .output()
        .expect("Python starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();

    let records = metrics(run);
    for (tag, kind, name) in [
        ("train/loss", "train", "/loss"),
        ("train/loss_itc", "train", "/loss_itc"),
        ("train/temperature", "train", "/temperature"),
        ("train/lr", "train", "/lr"),
        ("held_out/loss", "validation", "/loss"),
        ("retrieval/itc_tr_r1", "validation", "/itc/text/r1"),
    ] {
        let ours: Vec<&Value> = records
            .iter()
            .filter(|record| record["kind"] == kind)
            .collect();
        let theirs = found["scalars"][tag].as_array().unwrap();
        assert_eq!(theirs.len(), ours.len(), "{tag}: {theirs:?}");
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert_eq!(ours["step"], theirs[0], "{tag}");
            let (value, read) = (
                ours.pointer(name).unwrap().as_f64().unwrap(),
                theirs[1].as_f64().unwrap(),
            );
            assert_eq!(value as f32, read as f32, "{tag}");
            let late = theirs[2].as_f64().unwrap() - ours["time"].as_f64().unwrap();
            assert!((-1.0..10.0).contains(&late), "{tag}: {late}");
        }
    }
    let images = found["images"].as_object().unwrap();
    assert_eq!(images.len(), 12, "{:?}", images.keys());
    for (tag, looks) in images {
        let last = looks.as_array().unwrap().last().unwrap();
        assert_eq!(last["said"], serde_json::json!([64, 64]), "{tag}");
        assert_eq!(last["sizes"], serde_json::json!([[64, 64]]), "{tag}");
        assert!(found["descriptions"][tag]
            .as_str()
            .unwrap()
            .contains("The model: **"));
    }
    let texts = found["texts"]["held_out/captions"].as_array().unwrap();
    let table = texts.last().unwrap()[1][0].as_str().unwrap();
    assert_eq!(table.lines().count(), 2 + 12, "{table}");

    // Of a weight, all its numbers: as many as its shape in the checkpoint says.
    let histogram = &found["histograms"]["weights/query_tokens"]
        .as_array()
        .unwrap()[0];
    assert_eq!(histogram["num"], 4.0 * 32.0, "{histogram}");
    assert!(histogram["min"].as_f64().unwrap() < 0.0 && histogram["max"].as_f64().unwrap() > 0.0);
    let counts: f64 = (histogram["counts"].as_array().unwrap().iter())
        .map(|count| count.as_f64().unwrap())
        .sum();
    assert_eq!(counts, 4.0 * 32.0);
}

#[test]
fn a_report_compares_runs_and_says_what_is_no_run() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (path(&folder, "one"), path(&folder, "other"));
    let shards = glob("tar");
    succeeds(&small_run(
        &one,
        &shards,
        &["--steps", "4", "--tensorboard", "off"],
    ));
    succeeds(&small_run(
        &other,
        &shards,
        &["--steps", "4", "--lr", "0.01"],
    ));
    assert!(!Path::new(&one).join("tensorboard").exists());
    assert!(Path::new(&other).join("tensorboard").is_dir());
    let out = path(&folder, "both.html");
    let stdout = succeeds(&["report", &one, &other, "--out", &out]);
    assert_eq!(stdout, format!("report: {out}\n"));
    let page = read(Path::new(&out));
    assert!(page.contains("Settings that differ"), "{page}");
    assert!(page.contains("<td>schedule.init_lr</td>"), "{page}");
    assert!(!page.contains("<td>seed</td>"), "the seeds are the same");
    for name in ["one", "other"] {
        assert!(page.contains(&format!("<bdi>{name}</bdi>")), "{name}");
    }
    let empty = path(&folder, "empty");
    fs::create_dir(&empty).unwrap();
    let output = qftrain(&["report", &empty]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("holds no run"), "{stderr}");
    assert_eq!(output.status.code(), Some(1));
}

/// Reads a run's figures with Prometheus' own client.
const PROMETHEUS: &str = include_str!("python/prometheus.py");

/// Starts a run, and returns it with the address that it says it serves figures at.
fn served(run_dir: &str, more: &[&str]) -> (std::process::Child, String) {
    let shards = glob("tar");
    let options = [&["--metrics-addr", "0", "--steps", "100000"][..], more].concat();
    let mut run = command(&small_run(run_dir, &shards, &options))
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(run.stderr.take().unwrap());
    let mut line = String::new();
    let address = loop {
        line.clear();
        assert!(
            stderr.read_line(&mut line).unwrap() > 0,
            "no address is said"
        );
        let said = line.strip_prefix("[rank 0] ").unwrap_or(&line);
        if let Some(rest) = said.strip_prefix("metrics: http://") {
            break rest.trim_end().trim_end_matches("/metrics").to_owned();
        }
    };
    // Nobody may stop reading, or the run would wait.
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
    (run, address)
}

fn stop(mut run: std::process::Child) {
    let status = Command::new("kill")
        .args(["-INT", &run.id().to_string()])
        .status();
    assert!(status.unwrap().success());
    assert!(run.wait().unwrap().success());
}

#[test]
fn prometheus_reads_the_figures_of_a_run() {
    let Some(python) = test_data::python("prometheus_reads_the_figures_of_a_run") else {
        return;
    };
    for ranks in ["1", "2"] {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = path(&folder, "run");
        let held = glob("arrow");
        let mut more = vec!["--val-shards", &held, "--val-every", "4"];
        // Half of the samples have only longer captions.
        more.extend(["--set", "data.filters.max_caption_words=14"]);
        if ranks == "2" {
            more.extend(["--nproc", "2"]);
        }
        let (run, address) = served(&run_dir, &more);
        assert!(address.starts_with("127.0.0.1:"), "{address}");
        // An address that is taken is told before anything else is done.
        let taken = path(&folder, "taken");
        let (shards, at) = (glob("tar"), address.clone());
        let message = fails(1, &small_run(&taken, &shards, &["--metrics-addr", &at]));
        for part in ["--metrics-addr", at.as_str(), "name another port"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(!Path::new(&taken).exists());
        let output = Command::new(&python)
            .args(["-c", PROMETHEUS, &address, "9"])
            .output()
            .unwrap();
        stop(run);
        assert!(output.status.success(), "{output:?}");
        let page: Value = serde_json::from_slice(&output.stdout).unwrap();
        check_page(&page, &metrics(Path::new(&run_dir)));
    }
}

/// Compares a page of Prometheus with the lines of metrics.jsonl.
fn check_page(page: &Value, records: &[Value]) {
    assert_eq!(page["kind"], "text/plain; version=0.0.4; charset=utf-8");
    let families = &page["families"];
    let number = |name: &str| {
        let value = families[name]["samples"][0][2].as_f64();
        value.unwrap_or_else(|| panic!("{name}: {page}"))
    };
    let step = number("qformer_steps");
    let train = line(records, "train", |of| of == step);
    for (name, key) in [
        ("qformer_loss", "loss"),
        ("qformer_itc_loss", "loss_itc"),
        ("qformer_itm_loss", "loss_itm"),
        ("qformer_lm_loss", "loss_lm"),
        ("qformer_learning_rate", "lr"),
        ("qformer_temperature", "temperature"),
        ("qformer_gradient_norm", "grad_norm"),
        ("qformer_images_per_second", "images_per_s"),
        ("qformer_data_wait_ratio", "data_wait_share"),
        ("qformer_memory_bytes", "memory_bytes"),
        ("qformer_samples_read", "samples_read"),
        ("qformer_epoch", "epoch"),
    ] {
        assert_eq!(Some(number(name)), train[key].as_f64(), "{name}");
        assert!(!families[name]["help"].as_str().unwrap().is_empty());
    }
    let skipped = families["qformer_samples_skipped"]["samples"]
        .as_array()
        .unwrap();
    let total: f64 = skipped
        .iter()
        .map(|sample| sample[2].as_f64().unwrap())
        .sum();
    assert!(total > 0.0, "no sample is left out: {page}");
    assert_eq!(Some(total), train["samples_skipped"].as_f64());
    for sample in skipped {
        let reason = sample[1]["reason"].as_str().unwrap();
        assert_eq!(
            sample[2],
            train["skipped_by_reason"][reason].as_f64().unwrap()
        );
    }
    check_validation(families, step, records);
    assert_eq!(number("qformer_planned_steps"), 100_000.0);
    assert!(number("process_resident_memory_bytes") > 1e7);
    assert!(number("process_cpu_seconds") > 0.0);
    let types = |name: &str| {
        families[name]["type"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    for (name, kind) in [
        ("qformer_steps", "counter"),
        ("qformer_samples_skipped", "counter"),
        ("qformer_loss", "gauge"),
        ("qformer_loader_queue_items", "summary"),
        ("process_cpu_seconds", "counter"),
    ] {
        assert_eq!(types(name), kind, "{name}");
    }
    let stages = families["qformer_loader_items"]["samples"]
        .as_array()
        .unwrap();
    let decoded = stages
        .iter()
        .find(|sample| sample[1]["stage"] == "decode")
        .unwrap();
    assert!(decoded[2].as_f64().unwrap() >= 4.0 * step);
}

/// The last line of a kind whose step fits.
fn line<'a>(records: &'a [Value], kind: &str, fits: impl Fn(f64) -> bool) -> &'a Value {
    let of_kind = records.iter().filter(|record| record["kind"] == kind);
    let mut found = of_kind.filter(|record| fits(record["step"].as_f64().unwrap()));
    found
        .next_back()
        .unwrap_or_else(|| panic!("no {kind} fits"))
}

/// The figures are those of the validation before `step`, or at it: its line comes after the step's.
fn check_validation(families: &Value, step: f64, records: &[Value]) {
    let loss = families["qformer_validation_loss"]["samples"][0][2].as_f64();
    let before = line(records, "validation", |of| of < step);
    let validation = match loss == before["loss"].as_f64() {
        true => before,
        false => line(records, "validation", |of| of <= step),
    };
    assert_eq!(loss, validation["loss"].as_f64());
    let recalls = families["qformer_validation_recall_ratio"]["samples"].as_array();
    let recalls = recalls.unwrap();
    for sample in recalls {
        let labels = &sample[1];
        let text = |name: &str| labels[name].as_str().unwrap().to_owned();
        let percent = &validation[text("by")][text("found")][format!("r{}", text("k"))];
        let expected = percent.as_f64().unwrap() / 100.0;
        assert!(
            (sample[2].as_f64().unwrap() - expected).abs() < 1e-12,
            "{sample}"
        );
    }
    assert!(recalls.len() >= 6);
}
