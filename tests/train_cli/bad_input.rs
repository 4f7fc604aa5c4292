//! What a run does not start with.

use super::*;

/// Starts that are refused, all in one run folder.
struct Refused {
    folder: tempfile::TempDir,
    run_dir: String,
    /// Shards that nothing is wrong with.
    good: String,
}

impl Refused {
    fn new() -> Refused {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = path(&folder, "run");
        let good = glob("tar");
        Refused {
            folder,
            run_dir,
            good,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn path(&self, name: &str) -> String {
        path(&self.folder, name)
    }

    fn check(&self, code: i32, arguments: &[&str], words: &[&str]) {
        let message = fails(code, arguments);
        for word in words {
            assert!(message.contains(word), "{arguments:?}: {message}");
        }
        // Nothing that looks like a run, or half of one.
        assert!(!self.at("run/checkpoints").exists(), "{arguments:?}");
        let names = fs::read_dir(self.at("run")).map_or(Vec::new(), |entries| {
            entries
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect()
        });
        let is_temporary = |name: &String| name.ends_with(".tmp");
        assert!(!names.iter().any(is_temporary), "{names:?}");
    }

    fn fresh(&self, shards: &str, more: &[&str], words: &[&str]) {
        self.check(1, &small_run(&self.run_dir, shards, more), words);
    }
}

#[test]
fn bad_input_gets_one_clear_error() {
    let refused = Refused::new();
    bad_options(&refused);
    bad_configurations(&refused);
    bad_shards(&refused);
    bad_samples(&refused);
    bad_tokenizers_devices_and_folders(&refused);
    // None of these starts stands in the way of one that works, nor leaves it a tokenizer.
    succeeds(&small_run(
        &refused.run_dir,
        &refused.good,
        &["--steps", "1"],
    ));
    let entries = fs::read_to_string(refused.at("run/vocab.txt")).unwrap();
    assert!(entries.lines().count() > 100);
}

fn bad_options(refused: &Refused) {
    refused.check(2, &["--shard", &refused.good], &["--shard"]);
    refused.check(
        2,
        &["--shards", &refused.good, "--steps", "many"],
        &["--steps", "many"],
    );
    refused.check(
        2,
        &["--shards", &refused.good, "--steps", "0"],
        &["--steps", "0"],
    );
    refused.check(
        2,
        &["--shards", &refused.good, "--steps", "18446744073709551615"],
        &["--steps"],
    );
    refused.check(
        2,
        &["--shards", &refused.good, "--device", "tpu"],
        &["tpu", "cuda:N"],
    );
    refused.check(
        1,
        &["--run-dir", &refused.run_dir],
        &["no shards", "--shards"],
    );
    refused.check(
        1,
        &["--shards", &refused.good, "--preset", "huge"],
        &["huge", "blip2-vit-g"],
    );
}

fn bad_configurations(refused: &Refused) {
    fs::write(refused.at("c.toml"), "steps = 3\nstepz = 4\n").unwrap();
    let config = refused.path("c.toml");
    let run = ["--run-dir", &refused.run_dir, "--config", &config];
    refused.check(1, &run, &["c.toml", "line 2", "stepz"]);
    let none = refused.path("none.toml");
    refused.check(
        1,
        &["--run-dir", &refused.run_dir, "--config", &none],
        &["none.toml"],
    );
    refused.fresh(
        &refused.good,
        &["--set", "data.shufle=none"],
        &["shufle", "shuffle"],
    );
    refused.fresh(
        &refused.good,
        &["--set", "data.shuffle=all"],
        &["all", "buffer"],
    );
    refused.fresh(
        &refused.good,
        &["--set", "data.threads=-1"],
        &["-1", "data.threads"],
    );
    refused.fresh(
        &refused.good,
        &["--set", "data.image_size=32"],
        &["data.image_size", "32", "64"],
    );
    refused.fresh(&refused.good, &["--lr=-1"], &["init_lr"]);
}

fn bad_shards(refused: &Refused) {
    // Held-out shards without a sample: at the start, not at the first validation.
    let empty = refused.at("empty.tar");
    fs::write(&empty, [0; 1024]).unwrap();
    let empty = empty.to_str().unwrap();
    let good = refused.good.clone();
    let words = ["validation.shards", "no sample", "empty.tar"];
    refused.fresh(&good, &["--val-shards", empty], &words);

    refused.fresh(
        &refused.path("no-*.tar"),
        &[],
        &["no shard matches", "no-*.tar"],
    );
    refused.fresh(&refused.path("no.tar"), &[], &["no.tar", "does not exist"]);
    let in_range = format!("{}/scenes-{{000000..000002}}.tar", data().display());
    refused.fresh(&in_range, &[], &["scenes-000002.tar", "does not exist"]);
    let empty = refused.at("empty");
    fs::create_dir(&empty).unwrap();
    let empty = empty.to_str().unwrap();
    refused.fresh(empty, &[], &["holds neither shards", "nor images"]);
    let text = refused.at("text.tar");
    fs::write(&text, "no archive\n".repeat(100)).unwrap();
    refused.fresh(
        text.to_str().unwrap(),
        &[],
        &["text.tar", "neither a tar archive"],
    );
    fs::write(refused.at("empty.tar"), "").unwrap();
    refused.fresh(&refused.path("empty.tar"), &[], &["empty.tar", "0 bytes"]);

    // A shard that breaks off: the vocabulary is trained from what is there, the run stops.
    let whole = fs::read(data().join("scenes-000000.tar")).unwrap();
    fs::write(refused.at("cut.tar"), &whole[..whole.len() / 2]).unwrap();
    let words = ["cut.tar", "at byte", "truncated", "on_bad_shard"];
    refused.fresh(&refused.path("cut.tar"), &["--steps", "8"], &words);
    let zst = fs::read(data().join("scenes-000000.tar.zst")).unwrap();
    fs::write(refused.at("cut.tar.zst"), &zst[..zst.len() / 2]).unwrap();
    refused.fresh(
        &refused.path("cut.tar.zst"),
        &["--steps", "8"],
        &["cut.tar.zst", "truncated"],
    );
}

fn bad_samples(refused: &Refused) {
    let scene = fs::read(data().join("scenes/000000.jpg")).unwrap();
    let uncaptioned = refused.at("uncaptioned.tar");
    let names = ["0.jpg", "1.jpg", "2.jpg", "3.jpg"];
    tar_shard(&uncaptioned, &names.map(|name| (name, &scene[..])));
    let uncaptioned = uncaptioned.to_str().unwrap();
    refused.fresh(uncaptioned, &[], &["hold no caption"]);
    let vocabulary = refused.path("vocab.txt");
    let entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a"].join("\n");
    fs::write(&vocabulary, entries + "\n").unwrap();
    let words = ["0 usable samples", "4 skipped as no_caption"];
    refused.fresh(uncaptioned, &["--tokenizer", &vocabulary], &words);
    let words = ["hold 24 samples", "one batch of 25", "batch_size"];
    refused.fresh(&refused.good, &["--set", "data.batch_size=25"], &words);
    refused.fresh(
        &refused.good,
        &["--set", "data.batch_size=1"],
        &["batch_size", "at least 2"],
    );
}

fn bad_tokenizers_devices_and_folders(refused: &Refused) {
    let missing = refused.path("missing.txt");
    refused.fresh(
        &refused.good,
        &["--tokenizer", &missing],
        &["missing.txt", "No such file"],
    );
    fs::write(refused.at("bare.txt"), "a\nb\n").unwrap();
    let bare = refused.path("bare.txt");
    refused.fresh(
        &refused.good,
        &["--tokenizer", &bare],
        &["bare.txt", "[PAD]"],
    );
    fs::write(refused.at("bad.json"), "{").unwrap();
    refused.fresh(
        &refused.good,
        &["--tokenizer", &refused.path("bad.json")],
        &["bad.json"],
    );

    if !tch::Cuda::is_available() {
        refused.fresh(
            &refused.good,
            &["--device", "cuda"],
            &["device", "CUDA", "make setup"],
        );
    }
    let file = refused.path("text.tar");
    refused.check(
        1,
        &small_run(&file, &refused.good, &[]),
        &["run folder", "text.tar"],
    );
    let below = refused.path("text.tar/run");
    refused.check(
        1,
        &small_run(&below, &refused.good, &[]),
        &["run folder", "text.tar/run"],
    );
}
