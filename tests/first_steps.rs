//! A user's first minutes: installing, calling the programs without knowing them, settings and presets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::{bin, train_cli};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn run(program: PathBuf, arguments: &[&str]) -> Output {
    let command = &mut Command::new(program);
    command
        .args(arguments)
        .output()
        .expect("the program starts")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command that succeeds prints.
fn says(program: PathBuf, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    out(&output)
}

#[test]
fn without_arguments_both_programs_name_the_next_two_steps() {
    for program in [bin::qfdata(), bin::qftrain()] {
        let output = run(program, &[]);
        assert_eq!(output.status.code(), Some(2));
        let text = err(&output);
        for step in ["qfdata shard photos/ --out", "qftrain --shards", "--help"] {
            assert!(text.contains(step), "{text}");
        }
        assert!(text.lines().count() < 12, "{text}");
    }
}

#[test]
fn the_version_says_what_there_is() {
    let text = says(bin::qfdata(), &["--version"]);
    for part in [
        "qfdata ",
        "commit ",
        "libjpeg-turbo ",
        "libwebp ",
        "processor ",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let text = says(bin::qftrain(), &["--version"]);
    for part in [
        "qftrain ",
        "commit ",
        "libtorch ",
        "libtorch_cpu.so",
        "CUDA ",
        "processor ",
    ] {
        assert!(text.contains(part), "{text}");
    }
    for program in [bin::qfdata(), bin::qftrain()] {
        assert_eq!(says(program, &["-V"]).lines().count(), 1);
    }
    // As /proc/cpuinfo names them.
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap();
    let has = flags.split_whitespace().any(|flag| flag == "avx2");
    assert_eq!(text.contains("AVX2"), has, "{text}");
}

#[test]
fn what_needs_no_libtorch_does_not_open_it() {
    let files_of = |arguments: &[&str]| {
        let command = &mut Command::new(bin::qftrain());
        command.args(arguments).env("LD_DEBUG", "files");
        let text = err(&command.output().expect("the program starts"));
        let files = text.lines().filter(|line| line.contains("file="));
        let files: Vec<String> = files.map(str::to_owned).collect();
        assert!(!files.is_empty(), "the linker says nothing: {text}");
        files
    };
    let opens_libtorch = |arguments: &[&str]| {
        let files = files_of(arguments);
        files.iter().any(|file| file.contains("libtorch_cpu.so"))
    };
    for arguments in [
        &["--help"][..],
        &["caption", "--help"],
        &["help", "embed"],
        &["--version"],
        &["-V"],
        &["--stepz", "5"],
        &["--steps", "none"],
        &["evla"],
        &["config"],
        &["config", "show", "tiny"],
        &["config", "explain", "optimizer.beta2"],
        &["config", "diff", "tiny", "small"],
        &["config", "check", "no-such-file"],
        &["completions", "bash"],
        &["man"],
        &[],
    ] {
        assert!(!opens_libtorch(arguments), "{arguments:?}");
    }
    // What computes does, so that the check above can fail.
    assert!(opens_libtorch(&[
        "caption",
        "--run-dir",
        "no-such-run",
        "x.jpg"
    ]));
}

#[test]
fn an_installation_works_from_anywhere_and_goes_again() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("local");
    let programs = bin::qftrain().parent().unwrap().to_owned();
    let install = |arguments: &[&str]| {
        let command = &mut Command::new(root().join("scripts/install.sh"));
        command.args(arguments).arg(&prefix).env("BIN", &programs);
        let output = command.output().expect("the script starts");
        assert!(output.status.success(), "{output:?}");
        out(&output)
    };
    bin::qfdata();
    let text = install(&[]);
    for part in ["qfdata shard photos/", "qftrain --shards", "export PATH="] {
        assert!(text.contains(part), "{text}");
    }
    // As a shell finds it, by way of a link, with nothing exported.
    let link = folder.path().join("qftrain");
    std::os::unix::fs::symlink(prefix.join("bin/qftrain"), &link).unwrap();
    for program in [link, prefix.join("bin/qftrain"), prefix.join("bin/qfdata")] {
        let output = Command::new(&program)
            .arg("--version")
            .env_clear()
            .current_dir("/")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}: {output:?}", program.display());
    }
    let share = prefix.join("share");
    let page = fs::read_to_string(share.join("man/man1/qfdata-shard.1")).unwrap();
    assert!(
        page.contains(".TH") && page.contains("max\\-count"),
        "{page}"
    );
    let script = "source \"$1\" && complete -p qftrain && COMP_WORDS=(qftrain sc) COMP_CWORD=1 \
                  && _qftrain qftrain sc qftrain && echo \"${COMPREPLY[@]}\"";
    let completions = share.join("bash-completion/completions/qftrain");
    let output = Command::new("bash")
        .args(["-c", script, "bash"])
        .arg(completions)
        .output()
        .unwrap();
    assert!(out(&output).ends_with("score\n"), "{output:?}");
    for file in [
        "zsh/site-functions/_qfdata",
        "fish/vendor_completions.d/qftrain.fish",
    ] {
        assert!(
            fs::metadata(share.join(file)).unwrap().len() > 1000,
            "{file}"
        );
    }

    install(&["--uninstall"]);
    let left = Command::new("find")
        .arg(&prefix)
        .args(["-type", "f"])
        .output();
    assert_eq!(out(&left.unwrap()), "");
}

#[test]
fn a_program_copied_alone_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("qftrain");
    fs::copy(bin::qftrain(), &alone).unwrap();
    // What needs no libtorch works all the same.
    assert!(run(alone.clone(), &["--help"]).status.success());
    let output = run(alone, &["caption", "--run-dir", "a-run", "a.jpg"]);
    assert_eq!(output.status.code(), Some(1));
    let text = err(&output);
    assert!(
        text.contains("qftrain-torch") && text.contains("make install"),
        "{text}"
    );
}

#[test]
fn presets_are_listed_and_printed() {
    let list = says(bin::qftrain(), &["config"]);
    let mut presets = 0;
    for entry in fs::read_dir(root().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(list.contains(&format!("{name}: ")), "{name}: {list}");
        let printed = says(bin::qftrain(), &["config", "show", &name]);
        assert_eq!(printed, fs::read_to_string(&path).unwrap(), "{name}");
        presets += 1;
    }
    assert_eq!(presets, 6);
    let output = run(bin::qftrain(), &["config", "show", "blip2-vit-q"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).contains("did you mean `blip2-vit-"),
        "{output:?}"
    );
}

#[test]
fn settings_are_explained_by_name() {
    let text = says(bin::qftrain(), &["config", "explain", "optimizer.beta2"]);
    for part in [
        "meaning",
        "default",
        "0.98",
        "change when",
        "LAVIS",
        "0.999",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let all = says(bin::qftrain(), &["config", "explain"]);
    assert!(all.lines().count() > 120, "{all}");
    let output = run(bin::qftrain(), &["config", "explain", "optimizer.beta3"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).contains("did you mean `optimizer.beta"),
        "{output:?}"
    );
}

#[test]
fn a_configuration_file_is_checked_without_data() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("my.toml");
    let name = file.to_str().unwrap();
    fs::write(&file, says(bin::qftrain(), &["config", "show", "small"])).unwrap();
    let text = says(bin::qftrain(), &["config", "check", name]);
    assert!(
        text.contains("good") && text.contains("no shards"),
        "{text}"
    );
    for (change, words) in [
        ("data.image_size=225", "data.image_size"),
        ("optimizer.beta9=1", "beta9"),
    ] {
        let output = run(bin::qftrain(), &["config", "check", name, "--set", change]);
        assert_eq!(output.status.code(), Some(1));
        assert!(err(&output).contains(words), "{output:?}");
    }
    let text = fs::read_to_string(&file)
        .unwrap()
        .replace("batch_size", "batchsize");
    fs::write(&file, text).unwrap();
    let output = run(bin::qftrain(), &["config", "check", name]);
    let text = err(&output);
    assert!(
        text.contains("line ") && text.contains("did you mean `batch_size`"),
        "{text}"
    );
}

#[test]
fn runs_files_and_presets_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("my.toml");
    let changed = says(bin::qftrain(), &["config", "show", "tiny"]).replace("0.98", "0.95");
    fs::write(&file, changed).unwrap();
    let name = file.to_str().unwrap();
    let text = says(bin::qftrain(), &["config", "diff", "tiny", name]);
    assert_eq!(text, "optimizer.beta2  0.98  0.95\n");
    assert_eq!(
        says(bin::qftrain(), &["config", "diff", name, name]),
        "no setting differs\n"
    );
    let json = says(bin::qftrain(), &["config", "diff", "--json", "tiny", name]);
    assert_eq!(
        json,
        "{\"optimizer.beta2\":{\"a\":\"0.98\",\"b\":\"0.95\"}}\n"
    );

    let runs = ["a", "b"].map(|name| train_cli::path(&folder, name));
    let shards = train_cli::glob("tar");
    for (run, seed) in runs.iter().zip(["3", "4"]) {
        let options = ["--steps", "1", "--seed", seed];
        train_cli::succeeds(&train_cli::small_run(run, &shards, &options));
    }
    let text = says(bin::qftrain(), &["config", "diff", &runs[0], &runs[1]]);
    let names: Vec<&str> = text
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(names, ["data.seed", "seed"]);
    let output = run(bin::qftrain(), &["config", "diff", "tiny", "no/such/run"]);
    assert!(
        err(&output).contains("no run folder, no file and no preset"),
        "{output:?}"
    );
}

#[test]
fn a_folder_of_images_is_packed_once_and_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let scenes = train_cli::data().join("scenes");
    let scenes = scenes.to_str().unwrap();
    let train = |name: &str, shards: &str| {
        let run_dir = train_cli::path(&folder, name);
        let mut arguments = train_cli::small_run(&run_dir, shards, &["--steps", "2"]);
        if name == "b" {
            assert_eq!(arguments.remove(0), "--shards");
        }
        let output = train_cli::command(&arguments)
            .env("QF_CACHE", &cache)
            .output();
        let output = output.expect("qftrain starts");
        assert!(output.status.success(), "{output:?}");
        (
            err(&output),
            fs::read_to_string(format!("{run_dir}/config.toml")).unwrap(),
        )
    };
    let (said, config) = train("a", scenes);
    assert!(
        said.contains("is a folder of images") && said.contains("qfdata shard"),
        "{said}"
    );
    assert!(config.contains(cache.to_str().unwrap()), "{config}");
    let (said, again) = train("b", scenes);
    assert!(
        said.contains("packed before") && !said.contains("is a folder of images"),
        "{said}"
    );
    let shards = |config: &str| {
        config
            .lines()
            .find(|line| line.starts_with("shards"))
            .unwrap()
            .to_owned()
    };
    assert_eq!(shards(&config), shards(&again));
    // The same batches as from shards that were packed by hand.
    let (_, _) = train("c", &train_cli::glob("tar"));
    let metrics = |name: &str| train_cli::exact_metrics(&folder.path().join(name)).len();
    assert_eq!((metrics("a"), metrics("c")), (2, 2));
    // A folder of shards is its shards.
    let held = train_cli::data().to_str().unwrap();
    let (said, config) = train("d", held);
    assert!(
        !said.contains("packed") && config.contains("*.tar"),
        "{said}"
    );
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let error = train_cli::fails(1, &["--shards", empty.to_str().unwrap()]);
    assert!(
        error.contains("neither shards") && error.contains("NAME.jpg"),
        "{error}"
    );
}

#[test]
fn a_word_that_is_nearly_a_command_is_no_folder() {
    for (word, words) in [
        ("evla", "did you mean the command 'eval'?"),
        ("photos", "'photos' is no command, no folder and no shard"),
    ] {
        let output = run(bin::qftrain(), &[word]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(err(&output).contains(words), "{output:?}");
    }
}

#[test]
fn a_dry_run_says_what_a_run_would_take_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = train_cli::path(&folder, "runs/a");
    let shards = train_cli::glob("tar");
    let options = ["--steps", "1000", "--dry-run"];
    let text = train_cli::succeeds(&train_cli::small_run(&run_dir, &shards, &options));
    let line = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("no {name}: {text}"))
            .to_owned()
    };
    assert!(
        line("data").contains("2 shards") && line("data").contains("24 samples"),
        "{text}"
    );
    assert!(line("loader").contains("images/s"), "{text}");
    assert!(
        line("step").contains("4 images") && line("step").contains("GFLOP"),
        "{text}"
    );
    assert!(line("memory").contains("would fit"), "{text}");
    assert!(
        line("disk").contains("3 checkpoints of") && line("disk").contains("free"),
        "{text}"
    );
    assert!(line("time").contains("1000 steps take"), "{text}");
    assert!(!folder.path().join("runs").exists());

    // A run that is there stays as it is, and the dry run counts what is left of it.
    let base = train_cli::small_run(&run_dir, &shards, &["--steps", "2"]);
    train_cli::succeeds(&base);
    let before = train_cli::weights(Path::new(&run_dir), 2);
    let text = train_cli::succeeds(&[
        "--run-dir",
        &run_dir,
        "--resume",
        "--steps",
        "5",
        "--allow-changes",
        "--dry-run",
    ]);
    assert!(text.contains("3 steps take"), "{text}");
    assert!(before == train_cli::weights(Path::new(&run_dir), 2));
    let config = fs::read_to_string(Path::new(&run_dir).join("config.toml")).unwrap();
    assert!(config.contains("steps = 2"), "{config}");
}
