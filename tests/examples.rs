//! The examples of `pipeline/examples` and `model/examples`, run, and compared with what the `tar` crate
//! finds in the same shards.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use crate::train_cli::{glob, tar_shard};
use crate::{bin, test_data};

/// What an example prints.
fn run(example: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(bin::example(example));
    command.args(arguments).env("OMP_NUM_THREADS", "1");
    let output = command.output().expect("the example starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{example}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn vocabulary() -> String {
    let path = test_data::committed().join("bert/vocab.txt");
    path.to_str().expect("a path in Unicode").to_owned()
}

/// The files of an archive, by name.
fn members(shard: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(fs::File::open(shard).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut data = Vec::new();
        entry.read_to_end(&mut data).unwrap();
        (name, data)
    });
    entries.collect()
}

/// The files of all shards of the scenes.
fn scenes() -> BTreeMap<String, Vec<u8>> {
    let pattern = glob("tar");
    let folder = Path::new(&pattern).parent().unwrap();
    let shards = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let shards = shards.filter(|path| path.extension().is_some_and(|e| e == "tar"));
    shards.flat_map(|shard| members(&shard)).collect()
}

/// Lines `shard#key@offset<tab>text` as keys and texts.
fn samples(stdout: &str) -> Vec<(String, String)> {
    let lines = stdout.lines().filter_map(|line| line.split_once('\t'));
    let samples = lines.map(|(id, text)| {
        let key = id.rsplit_once('#').unwrap().1.rsplit_once('@').unwrap().0;
        (key.to_owned(), text.to_owned())
    });
    samples.collect()
}

/// Every key of the shards once, each with a caption that it has there.
fn check_epoch(found: &[(String, String)]) {
    let scenes = scenes();
    let mut keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    let texts = scenes.keys().filter_map(|name| name.strip_suffix(".txt"));
    assert_eq!(keys, texts.collect::<Vec<_>>());
    for (key, caption) in found {
        let stored = std::str::from_utf8(&scenes[&format!("{key}.txt")]).unwrap();
        // The reference's caption processor, on captions of letters, commas and full stops.
        let processed = |line: &str| line.to_lowercase().replace('.', "").trim().to_owned();
        let mut stored = stored.lines().map(processed);
        assert!(stored.any(|stored| stored == *caption), "{key}: {caption}");
    }
}

#[test]
fn batches_and_resume_visit_an_epoch() {
    let (shards, vocabulary) = (glob("tar"), vocabulary());
    let at_once = run("batches", &[&shards, &vocabulary]);
    assert!(at_once.contains("[4, 3, 224, 224] (4, 32)"), "{at_once}");
    let at_once = samples(&at_once);
    check_epoch(&at_once);

    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state.json");
    let arguments = [&*shards, &*vocabulary, state.to_str().unwrap()];
    let mut in_parts = Vec::new();
    let mut calls = 0;
    loop {
        let stdout = run("resume", &arguments);
        in_parts.extend(samples(&stdout));
        calls += 1;
        if stdout.contains("the epoch is over") {
            break;
        }
        assert!(calls < 10, "{stdout}");
    }
    assert!(calls > 2, "{calls}");
    assert_eq!(in_parts, at_once);
}

#[test]
fn any_member_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("depth.tar");
    let mut files = scenes();
    let keys: Vec<String> = files
        .keys()
        .filter_map(|name| Some(name.strip_suffix(".txt")?.to_owned()))
        .collect();
    // All but the last sample have one.
    for (number, key) in keys.iter().enumerate().take(keys.len() - 1) {
        files.insert(format!("{key}.depth.npy"), vec![7; 100 + number]);
    }
    let members: Vec<(&str, &[u8])> = files.iter().map(|(n, d)| (&**n, &**d)).collect();
    tar_shard(&shard, &members);
    let found = samples(&run("members", &[shard.to_str().unwrap(), "depth.npy"]));
    let expected = keys.iter().map(|key| {
        let size = files.get(&format!("{key}.depth.npy")).map(Vec::len);
        let text = size.map_or("no depth.npy".into(), |size| format!("{size} bytes"));
        (key.clone(), text)
    });
    assert_eq!(found, expected.collect::<Vec<_>>());
}

#[test]
fn the_losses_are_those_of_their_formulas() {
    let stdout = run("three_losses", &[]);
    let mut sum = 0.0;
    for name in ["itc", "itm", "lm"] {
        let mut lines = stdout.lines().map(|line| line.split('\t'));
        let mut numbers =
            lines.find_map(|mut fields| (fields.next() == Some(name)).then_some(fields));
        let mut next = || numbers.as_mut()?.next()?.parse::<f64>().ok();
        let (loss, by_formula) = (next().unwrap(), next().unwrap());
        assert!(loss > 0.0, "{stdout}");
        assert!((loss / by_formula - 1.0).abs() < 1e-5, "{stdout}");
        sum += loss;
    }
    let total = stdout.lines().find_map(|line| line.strip_prefix("total\t"));
    let total: f64 = total.unwrap().parse().unwrap();
    assert!((total / sum - 1.0).abs() < 1e-5, "{stdout}");
}

#[test]
fn the_training_loop_learns() {
    let stdout = run("training_loop", &[&glob("tar"), &vocabulary(), "20"]);
    let losses: Vec<f64> = stdout
        .lines()
        .map(|line| line.split_once('\t').unwrap().1.parse().unwrap())
        .collect();
    assert_eq!(losses.len(), 20);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (mean(&losses[..3]), mean(&losses[17..]));
    assert!(last < 0.9 * first, "{losses:?}");
}

/// They are to be read at a glance.
#[test]
fn examples_are_short() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut count = 0;
    for folder in ["pipeline/examples", "model/examples"] {
        for entry in fs::read_dir(workspace.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            assert!(lines <= 60, "{}: {lines} lines", path.display());
            count += 1;
        }
    }
    assert!(count >= 5, "{count}");
}
