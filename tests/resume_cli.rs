//! Checkpoints under stress: runs killed at any moment, files cut short or altered, the layout of
//! earlier versions, and non-finite losses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::train_cli::{
    checkpoint, command, exact_metrics, fails, glob, metrics, path, qftrain, same_run, small_run,
    succeeds,
};

/// SplitMix64: the moments of the kills, the same in every test.
struct Moments(u64);

impl Moments {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Whether a checkpoint is being written.
fn is_saving(run: &Path) -> bool {
    let Ok(entries) = fs::read_dir(run.join("checkpoints")) else {
        return false;
    };
    entries
        .filter_map(Result::ok)
        .any(|entry| entry.file_name().to_string_lossy().ends_with(".partial"))
}

fn logged_lines(run: &Path) -> usize {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    text.lines().count()
}

/// Validation lines without their times.
fn validations(run: &Path) -> Vec<Value> {
    let mut records = metrics(run);
    records.retain(|record| record["kind"] == "validation");
    for record in &mut records {
        for when in ["secs", "time"] {
            record.as_object_mut().unwrap().remove(when);
        }
    }
    records
}

#[test]
#[allow(clippy::disallowed_methods)] // How many is for whoever runs the tests to say.
fn a_run_killed_at_many_moments_ends_as_if_it_had_not_been() {
    // QF_KILLS=50 takes more of them.
    let kills_wanted: usize = match std::env::var("QF_KILLS") {
        Ok(count) => count.parse().expect("QF_KILLS is a number"),
        Err(_) => 20,
    };
    // A life makes a few steps only, so that all kills hit a run that lives.
    const LINES_PER_LIFE: u64 = 9;
    let steps = 16 * (kills_wanted.div_ceil(3) as u64);
    let all_steps = steps.to_string();
    let folder = tempfile::tempdir().unwrap();
    let (shards, held) = (glob("tar"), glob("arrow"));
    let more = [
        "--steps",
        &all_steps,
        "--val-shards",
        &held,
        "--val-every",
        "16",
        "--set",
        "validation.max_samples=12",
        "--set",
        "validation.rerank=2",
        "--set",
        "checkpoint_every_steps=3",
    ];
    let unbroken = path(&folder, "unbroken");
    succeeds(&small_run(&unbroken, &shards, &more));
    let unbroken = Path::new(&unbroken);

    let run_dir = path(&folder, "killed");
    let run = Path::new(&run_dir);
    let fresh = small_run(&run_dir, &shards, &more);
    let resume = ["--run-dir", run_dir.as_str(), "--resume"];
    let mut moments = Moments(20);
    let (mut kills, mut while_saving, mut resumed_from) = (0, 0, Vec::new());
    while kills < kills_wanted {
        let has_config = run.join("config.toml").exists();
        let before = logged_lines(run);
        let mut child = command(if has_config { &resume } else { &fresh })
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("qftrain starts");
        let started = Instant::now();
        // Every third in the middle of a save, the others at some line or time, start-up included.
        let wants_saving = kills % 3 == 0;
        let lines = before as u64 + moments.below(LINES_PER_LIFE) + 1;
        let delay = Duration::from_millis(moments.below(400));
        let pause = Duration::from_micros(moments.below(4000));
        loop {
            let at_line = logged_lines(run) as u64 >= lines;
            let is_due = match kills % 3 {
                0 => is_saving(run),
                1 => at_line,
                _ => at_line || started.elapsed() >= delay,
            };
            if is_due {
                break;
            }
            assert!(
                child.try_wait().unwrap().is_none(),
                "the run ended by itself"
            );
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "no step is made"
            );
        }
        if !wants_saving {
            std::thread::sleep(pause);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        while_saving += usize::from(is_saving(run));
        kills += 1;
        resumed_from.push(logged_lines(run));
    }
    assert!(while_saving >= 3, "{while_saving} kills within a save");
    println!("lines at each kill: {resumed_from:?}; {while_saving} kills within a save");
    succeeds(&resume);
    same_run(unbroken, run, steps);
    assert_eq!(validations(unbroken), validations(run));
    assert_eq!(validations(run).len() as u64, steps / 16);
    let best = |run: &Path| fs::read_to_string(run.join("checkpoints/best.json")).unwrap();
    assert_eq!(best(unbroken), best(run));
    // Nothing of the broken saves is left beside what is kept.
    let names = |run: &Path| {
        let mut names: Vec<_> = fs::read_dir(run.join("checkpoints"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(unbroken), names(run));
}

#[test]
fn a_run_stopped_while_it_validates_makes_up_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, held) = (glob("tar"), glob("arrow"));
    let more = [
        "--steps",
        "12",
        "--val-shards",
        &held,
        "--val-every",
        "4",
        "--set",
        "validation.rerank=24",
    ];
    let unbroken = path(&folder, "unbroken");
    succeeds(&small_run(&unbroken, &shards, &more));
    let run_dir = path(&folder, "stopped");
    let run = Path::new(&run_dir);
    let fresh = small_run(&run_dir, &shards, &more);
    let resume = ["--run-dir", run_dir.as_str(), "--resume"];
    let mut within = 0;
    for step in [4, 8] {
        let arguments = if step == 4 { &fresh[..] } else { &resume };
        let child = command(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("qftrain starts");
        // The line of the step is there, that of its validation not yet.
        let is_validating = || {
            let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
            text.contains(&format!("\"kind\":\"train\",\"step\":{step},"))
        };
        let started = Instant::now();
        while !is_validating() {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "no step is made"
            );
        }
        crate::bin::signal("-TERM", &child);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        within += usize::from(validations(run).len() < step / 4);
    }
    println!("{within} of 2 signals within a validation");
    succeeds(&resume);
    same_run(Path::new(&unbroken), run, 12);
    assert_eq!(validations(Path::new(&unbroken)), validations(run));
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A run of 4 steps with checkpoints of 2 and 4, and one of 6 steps to compare with.
fn four_and_six(folder: &tempfile::TempDir) -> (PathBuf, PathBuf) {
    let (four, six) = (path(folder, "four"), path(folder, "six"));
    let shards = glob("tar");
    // A constant rate does not depend on the length of the run.
    let constant = [
        "--set",
        "schedule.init_lr=1e-3",
        "--set",
        "schedule.min_lr=1e-3",
        "--set",
        "schedule.warmup_steps=0",
        "--set",
        "checkpoint_every_steps=2",
    ];
    for (run_dir, steps) in [(&four, "4"), (&six, "6")] {
        let more = [&["--steps", steps], &constant[..]].concat();
        succeeds(&small_run(run_dir, &shards, &more));
    }
    (four.into(), six.into())
}

type Damage<'a> = (&'a str, &'a dyn Fn(&Path));

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_used() {
    let folder = tempfile::tempdir().unwrap();
    let (four, six) = four_and_six(&folder);
    let flip = |path: &Path, at: usize| {
        let mut bytes = fs::read(path).unwrap();
        let at = at.min(bytes.len() - 1);
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let cut = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    };
    let damages: [Damage<'_>; 9] = [
        ("model.safetensors", &|path| cut(path)),
        ("model.safetensors", &|path| flip(path, 70_000)),
        ("model.safetensors", &|path| fs::remove_file(path).unwrap()),
        ("optimizer.safetensors", &|path| flip(path, 1 << 30)),
        ("state.json", &|path| cut(path)),
        ("config.toml", &|path| fs::write(path, "").unwrap()),
        ("manifest.json", &|path| fs::remove_file(path).unwrap()),
        ("manifest.json", &|path| cut(path)),
        ("manifest.json", &|path| {
            let text = fs::read_to_string(path).unwrap();
            fs::write(path, text.replace("\"version\": 2", "\"version\": 9")).unwrap();
        }),
    ];
    for (number, (file, damage)) in damages.iter().enumerate() {
        let run = folder.path().join(format!("damaged-{number}"));
        copy_folder(&four, &run);
        damage(&checkpoint(&run, 4).join(file));
        let run_dir = run.display().to_string();
        let resume = ["--run-dir", &run_dir, "--resume", "--steps", "6"];
        let output = qftrain(&resume);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{file}: {stderr}");
        let warning = stderr.lines().find(|line| line.contains("step-00000004"));
        let warning = warning.unwrap_or_else(|| panic!("{file}: {stderr}"));
        assert!(warning.contains(file), "{warning}");
        assert!(warning.contains("the checkpoint before it"), "{warning}");
        same_run(&six, &run, 6);
    }

    // None is whole: that is said, and nothing is touched.
    for step in [2, 4] {
        cut(&checkpoint(&four, step).join("optimizer.safetensors"));
    }
    let before = fs::read(four.join("metrics.jsonl")).unwrap();
    let four_dir = four.display().to_string();
    let message = fails(1, &["--run-dir", &four_dir, "--resume", "--steps", "6"]);
    for word in [
        "no checkpoint is whole",
        "step-00000004",
        "step-00000002",
        "optimizer.safetensors",
        "cut short",
    ] {
        assert!(message.contains(word), "{message}");
    }
    assert_eq!(fs::read(four.join("metrics.jsonl")).unwrap(), before);
}

#[test]
fn checkpoints_of_the_first_layout_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let (four, six) = four_and_six(&folder);
    for step in [2, 4] {
        let checkpoint = checkpoint(&four, step);
        for file in ["manifest.json", "config.toml"] {
            fs::remove_file(checkpoint.join(file)).unwrap();
        }
        let text = fs::read_to_string(checkpoint.join("state.json")).unwrap();
        let mut state: Value = serde_json::from_str(&text).unwrap();
        let fields = state.as_object_mut().unwrap();
        fields.retain(|name, _| ["version", "program", "step", "loader"].contains(&name.as_str()));
        fields.insert("version".into(), 1.into());
        fs::write(checkpoint.join("state.json"), state.to_string()).unwrap();
    }
    let run_dir = four.display().to_string();
    let resume = ["--run-dir", &run_dir, "--resume", "--steps", "6"];
    succeeds(&resume);
    same_run(&six, &four, 6);
}

/// A learning rate that throws the weights out of range with the first update.
const EXPLODING: [&str; 10] = [
    "--steps",
    "40",
    "--set",
    "schedule.init_lr=1e30",
    "--set",
    "schedule.min_lr=1e30",
    "--set",
    "schedule.warmup_steps=0",
    "--set",
    "checkpoint_every_steps=1",
];

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_names_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let shards = glob("tar");
    let message = fails(1, &small_run(&run_dir, &shards, &EXPLODING));
    let run = Path::new(&run_dir);
    assert!(message.contains("step 2: `"), "{message}");
    for word in ["is not finite", "scenes-0000", ".tar#", "on_non_finite"] {
        assert!(message.contains(word), "{message}");
    }
    let saved = run.join("non-finite/step-00000002");
    assert!(message.contains(&saved.display().to_string()), "{message}");
    let json = fs::read_to_string(saved.join("batch.json")).unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    let samples = json["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 4);
    for sample in samples {
        assert!(message.contains(sample.as_str().unwrap()), "{message}");
    }
    assert_eq!(json["captions"].as_array().unwrap().len(), 4);
    assert_eq!(json["loader"]["counters"]["read"], 8);
    let bytes = fs::read(saved.join("batch.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| tensors.tensor(name).unwrap().shape().to_vec();
    assert_eq!(shape("pixels"), [4, 3, 64, 64]);
    assert_eq!(shape("token_ids")[0], 4);
    assert_eq!(shape("token_ids"), shape("attention_mask"));

    // The checkpoint from before it stands, and is finite.
    let model = fs::read(checkpoint(run, 1).join("model.safetensors")).unwrap();
    let model = safetensors::SafeTensors::deserialize(&model).unwrap();
    for (name, tensor) in model.iter() {
        let mut values = tensor
            .data()
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        assert!(values.all(f32::is_finite), "{name}");
    }
    assert!(!checkpoint(run, 2).exists());
    assert_eq!(exact_metrics(run).len(), 1);

    // Steps that are not logged are looked at all the same.
    let rarely = path(&folder, "rarely");
    let more = [&EXPLODING[..], &["--set", "log_every_steps=1000"]].concat();
    let message = fails(1, &small_run(&rarely, &shards, &more));
    assert!(message.contains("step 2: `"), "{message}");
    assert!(!checkpoint(Path::new(&rarely), 2).exists());
}

#[test]
fn skipped_updates_are_logged_and_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let shards = glob("tar");
    let skip = [
        "--set",
        "on_non_finite=skip",
        "--set",
        "max_skips_in_a_row=3",
    ];
    let more = [&EXPLODING[..], &skip].concat();
    let message = fails(1, &small_run(&run_dir, &shards, &more));
    for word in ["step 5: `", "the 3 updates before it were skipped"] {
        assert!(message.contains(word), "{message}");
    }
    let run = Path::new(&run_dir);
    let skipped: Vec<_> = metrics(run)
        .into_iter()
        .filter(|record| record["kind"] == "skipped")
        .collect();
    let steps: Vec<_> = skipped.iter().map(|record| &record["step"]).collect();
    assert_eq!(steps, [2, 3, 4]);
    assert_eq!(skipped[0]["samples"].as_array().unwrap().len(), 4);
    assert!(skipped[0]["first_tensor"].as_str().unwrap().len() > 3);
    // Skipping changes no weight: the checkpoints from before and after are the same.
    let model = |step| fs::read(checkpoint(run, step).join("model.safetensors")).unwrap();
    assert!(model(3) == model(4));
    assert!(!checkpoint(run, 5).exists());
}

/// On the CPU every run is deterministic: the setting changes no number, and may change on the way.
/// Rounding to TF32 would change numbers.
#[test]
fn deterministic_runs_on_the_cpu_are_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, strict) = (path(&folder, "plain"), path(&folder, "strict"));
    let held = glob("arrow");
    let more = ["--steps", "4", "--val-shards", &held, "--val-every", "2"];
    succeeds(&small_run(&plain, &glob("tar"), &more));
    let deterministic = [
        "--set",
        "deterministic=true",
        "--set",
        "checkpoint_every_steps=2",
    ];
    let strictly = [&more[..], &deterministic].concat();
    succeeds(&small_run(&strict, &glob("tar"), &strictly));
    let (plain, strict_run) = (Path::new(&plain), Path::new(&strict));
    same_run(plain, strict_run, 4);
    assert_eq!(validations(plain), validations(strict_run));

    let resume = [
        "--run-dir",
        &strict,
        "--resume",
        "--steps",
        "6",
        "--allow-changes",
    ];
    succeeds(&[&resume[..], &["--set", "deterministic=false"]].concat());
    let on = [
        "--run-dir",
        strict.as_str(),
        "--resume",
        "--set",
        "allow_tf32=true",
    ];
    let message = fails(1, &on);
    assert!(message.contains("allow_tf32"), "{message}");
}
