//! Weights and tokenizers that belong together, and what is refused: an id is a row of the word
//! embeddings, so with another vocabulary of the same size everything fits and every word means another.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use qf_model::weights::WeightsFile;

use crate::test_data;
use crate::train_cli::{command, data, fails, glob, path, small_run, succeeds};
use crate::weights::{python, run};

/// What safetensors' own reader and hashlib say of the file `argv[1]` and the vocabulary `argv[2]`.
const DIGESTS: &str = r#"
import hashlib, json, sys
from safetensors import safe_open
from transformers import BertTokenizer
with safe_open(sys.argv[1], "pt") as file:
    metadata = file.metadata()
tokenizer = BertTokenizer(sys.argv[2], bos_token="[DEC]")
print(json.dumps([metadata.get("vocabulary_sha256"), hashlib.sha256(open(sys.argv[2], "rb").read()).hexdigest(),
                  metadata.get("format"), len(tokenizer), tokenizer.convert_tokens_to_ids("[DEC]")]))
"#;

/// A run of two steps.
fn trained(folder: &TempDir) -> String {
    let run_dir = path(folder, "run");
    succeeds(&small_run(&run_dir, &glob("tar"), &["--steps", "2"]));
    run_dir
}

fn model_file(run_dir: &str) -> String {
    format!("{run_dir}/checkpoints/step-00000002/model.safetensors")
}

fn scene() -> String {
    data().join("scenes/000003.jpg").display().to_string()
}

/// The same entries, two of them in each other's position.
fn swapped(vocabulary: &str) -> String {
    let mut lines: Vec<&str> = vocabulary.lines().collect();
    let last = lines.len() - 1;
    lines.swap(last - 1, last);
    lines.join("\n") + "\n"
}

#[test]
fn the_digest_is_that_of_the_vocabulary_beside_an_export() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = trained(&folder);
    let (lavis, hf) = (path(&folder, "lavis/l.safetensors"), path(&folder, "hf"));
    for (format, out) in [("lavis", &lavis), ("hf", &hf)] {
        let export = ["export", "--run-dir", &run_dir, "--format", format];
        succeeds(&[&export[..], &["--out", out]].concat());
    }
    let entries = fs::read_to_string(format!("{run_dir}/vocab.txt")).unwrap();
    let exported = format!("{hf}/model.safetensors");
    for (file, vocabulary) in [
        (&lavis, path(&folder, "lavis/vocab.txt")),
        (&exported, format!("{hf}/vocab.txt")),
    ] {
        let text = fs::read_to_string(&vocabulary).unwrap();
        assert_eq!(text, format!("{entries}[DEC]\n"));
        let Some(python) = python("the_digest_is_that_of_the_vocabulary_beside_an_export") else {
            continue;
        };
        let found = run(
            &python,
            &[DIGESTS],
            &[Path::new(file), Path::new(&vocabulary)],
        );
        type Found = (String, String, String, usize, usize);
        let (named, hashed, format, size, dec): Found = serde_json::from_str(&found).unwrap();
        assert_eq!(named, hashed);
        assert_eq!(format, "pt");
        let entries = entries.lines().count();
        assert_eq!((size, dec), (entries + 1, entries));
        let checkpoint = WeightsFile::open(Path::new(&model_file(&run_dir))).unwrap();
        let of_checkpoint = checkpoint.vocabulary().unwrap().unwrap();
        assert_eq!(of_checkpoint.to_string(), named);
    }
    // Exports of one vocabulary may share a folder, of two not.
    let again = path(&folder, "lavis/again.safetensors");
    let export = [
        "export",
        "--run-dir",
        &run_dir,
        "--format",
        "lavis",
        "--out",
    ];
    succeeds(&[&export[..], &[&again]].concat());
    assert_eq!(fs::read(&again).unwrap(), fs::read(&lavis).unwrap());
    let other = path(&folder, "other/l.safetensors");
    fs::create_dir(folder.path().join("other")).unwrap();
    fs::write(folder.path().join("other/vocab.txt"), swapped(&entries)).unwrap();
    let message = fails(1, &[&export[..], &[&other]].concat());
    assert!(message.contains("another vocabulary"), "{message}");
    assert!(!Path::new(&other).exists());
}

#[test]
fn a_vocabulary_that_was_changed_in_a_run_is_refused_by_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = trained(&folder);
    let (image, shards) = (scene(), glob("tar"));
    let out = path(&folder, "out.safetensors");
    let export = ["export", "--format", "lavis", "--out", &out];
    let commands: [&[&str]; 5] = [
        &["--resume", "--steps", "3", "--allow-changes"],
        &["eval", "--shards", &shards],
        &["caption", &image],
        &["score", &image, "a red disc"],
        &export,
    ];
    let vocabulary = format!("{run_dir}/vocab.txt");
    let entries = fs::read_to_string(&vocabulary).unwrap();
    fs::write(&vocabulary, swapped(&entries)).unwrap();
    for arguments in commands {
        let all = [arguments, &["--run-dir", &run_dir]].concat();
        let message = fails(1, &all);
        for words in ["another vocabulary", "SHA-256", "model.safetensors"] {
            assert!(message.contains(words), "{arguments:?}: {message}");
        }
    }
    assert!(!Path::new(&out).exists());
    fs::remove_file(&vocabulary).unwrap();
    let resume = [commands[0], &["--run-dir", &run_dir]].concat();
    let message = fails(1, &resume);
    assert!(
        message.contains("vocab.txt") && message.contains("put it back"),
        "{message}"
    );
    assert!(!Path::new(&vocabulary).exists());
    // With `[DEC]` spelled out it is the same vocabulary.
    fs::write(&vocabulary, entries + "[DEC]\n").unwrap();
    succeeds(&["score", "--run-dir", &run_dir, &image, "a red disc"]);
}

#[test]
fn weights_and_tokenizers_of_a_new_run() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = trained(&folder);
    let entries = fs::read_to_string(format!("{run_dir}/vocab.txt")).unwrap();
    let alone = path(&folder, "alone/m.safetensors");
    fs::create_dir(folder.path().join("alone")).unwrap();
    fs::copy(model_file(&run_dir), &alone).unwrap();
    // As other programs write it: no digest.
    let plain = path(&folder, "plain/m.safetensors");
    fs::create_dir(folder.path().join("plain")).unwrap();
    let tensors = qf_model::weights::read_safetensors(Path::new(&alone)).unwrap();
    let tensors: Vec<_> = tensors.iter().collect();
    tch::Tensor::write_safetensors(&tensors, &plain).unwrap();
    let right = path(&folder, "right.txt");
    let wrong = path(&folder, "wrong.txt");
    fs::write(&right, &entries).unwrap();
    fs::write(&wrong, swapped(&entries)).unwrap();

    let shards = glob("tar");
    let new = path(&folder, "new");
    let refused = |more: &[&str], words: &[&str]| {
        let more = [more, &["--steps", "1"]].concat();
        let message = fails(1, &small_run(&new, &shards, &more));
        for word in words {
            assert!(message.contains(word), "{more:?}: {message}");
        }
        for file in ["vocab.txt", "config.toml", "checkpoints"] {
            assert!(!Path::new(&new).join(file).exists(), "{more:?}: {file}");
        }
    };
    let digest = "SHA-256";
    refused(
        &["--weights", &alone],
        &["--tokenizer", digest, "vocab.txt or tokenizer.json"],
    );
    refused(&["--weights", &plain], &["--tokenizer", "belong"]);
    refused(
        &["--weights", &alone, "--tokenizer", &wrong],
        &["another vocabulary", "wrong.txt"],
    );
    // Of a run and of one of its checkpoints the tokenizer is known.
    let checkpoint = path(&folder, "run/checkpoints/step-00000002");
    for place in [&run_dir, &checkpoint, &model_file(&run_dir)] {
        refused(
            &["--weights", place, "--tokenizer", &wrong],
            &["another vocabulary", "wrong.txt"],
        );
    }
    // Without a digest the vocabulary beside the weights tells, and which id differs is said.
    let beside = path(&folder, "plain/vocab.txt");
    fs::copy(&right, &beside).unwrap();
    let id = format!("id {}", entries.lines().count() - 2);
    refused(
        &["--weights", &plain, "--tokenizer", &wrong],
        &[&id, "plain/vocab.txt", "wrong.txt"],
    );

    let taken = |name: &str, more: &[&str]| {
        let run_dir = path(&folder, name);
        let more = [more, &["--steps", "1"]].concat();
        succeeds(&small_run(&run_dir, &shards, &more));
        assert_eq!(
            fs::read_to_string(format!("{run_dir}/vocab.txt")).unwrap(),
            entries
        );
    };
    taken("a", &["--weights", &alone, "--tokenizer", &right]);
    taken("b", &["--weights", &plain, "--tokenizer", &right]);
    taken("c", &["--weights", &plain]);
    taken("d", &["--weights", &run_dir]);
    taken("e", &["--weights", &checkpoint]);
    taken("f", &["--weights", &model_file(&run_dir)]);

    // In use: the same rules for models that come as weights.
    let image = scene();
    let score = |more: &[&'static str], weights: &str| -> Vec<String> {
        let base = ["score", &image, "a red disc", "--weights", weights];
        let all = base.into_iter().chain(more.iter().copied());
        all.map(String::from).collect()
    };
    let runs = |arguments: Vec<String>| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        command(&arguments).output().unwrap()
    };
    assert!(runs(score(&[], &run_dir)).status.success());
    let mut arguments = score(&[], &run_dir);
    arguments.extend(["--tokenizer".to_owned(), wrong.clone()]);
    let output = runs(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("another vocabulary"), "{stderr}");
}

#[test]
fn a_bert_comes_with_its_own_vocabulary_and_sizes() {
    let Some(golden) = test_data::find("a_bert_comes_with_its_own", "golden/hf_bert_tiny") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let bert = path(&folder, "bert");
    fs::create_dir(&bert).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden.join(file), Path::new(&bert).join(file)).unwrap();
    }
    let (run_dir, shards) = (path(&folder, "run"), glob("tar"));
    let base = [
        "--preset",
        "tiny",
        "--shards",
        &shards,
        "--steps",
        "1",
        "--batch-size",
        "4",
    ];
    let base = [&base[..], &["--run-dir", &run_dir, "--bert", &bert]].concat();
    let message = fails(1, &base);
    for words in ["weights.bert", "--tokenizer", "vocab.txt"] {
        assert!(message.contains(words), "{message}");
    }
    // 199 words, of which the last is no [DEC]: that is appended.
    let mut words: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        .map(str::to_owned)
        .into();
    words.extend(('a'..='z').map(String::from));
    words.extend((words.len()..199).map(|number| format!("word{number}")));
    let vocabulary = words.join("\n");
    fs::write(Path::new(&bert).join("vocab.txt"), &vocabulary).unwrap();
    let other = path(&folder, "other.txt");
    fs::write(&other, swapped(&vocabulary)).unwrap();
    let message = fails(1, &[&base[..], &["--tokenizer", &other]].concat());
    assert!(message.contains("id 197"), "{message}");
    succeeds(&base);
    let config = fs::read_to_string(format!("{run_dir}/config.toml")).unwrap();
    for line in [
        "hidden = 64",
        "layers = 4",
        "intermediate = 128",
        "vocab_size = 200",
    ] {
        assert!(config.contains(line), "{line}: {config}");
    }
}
