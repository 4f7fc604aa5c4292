//! README and the guide: their commands run, their options exist, their links lead somewhere.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bin;
use crate::train_cli;

/// The root of the checkout.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every Markdown page that users read, with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let names = [
        "README",
        "ARCHITECTURE",
        "CONTRIBUTING",
        "SECURITY",
        "CHANGELOG",
    ];
    let mut pages: Vec<PathBuf> = (names.iter())
        .map(|name| root().join(format!("{name}.md")))
        .collect();
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                None => folders.push(path),
                Some(_) => pages.push(path),
            }
        }
    }
    pages.sort();
    let read = |path: PathBuf| (path.clone(), fs::read_to_string(path).unwrap());
    pages.into_iter().map(read).collect()
}

/// The shell blocks of a page: whether each is to be run, and its lines.
fn blocks(text: &str) -> Vec<(bool, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in text.lines() {
        match (&mut open, line) {
            (None, "```sh") => open = Some((true, String::new())),
            (None, "```sh no_run") => open = Some((false, String::new())),
            (Some(_), "```") => blocks.extend(open.take()),
            (Some((_, block)), line) => *block += &format!("{line}\n"),
            (None, _) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// Stand-ins on the `PATH`: the programs with fewer images and steps and a small network.
fn programs(folder: &Path) {
    let sets: String = (train_cli::SMALL.iter())
        .map(|setting| format!(" --set {setting}"))
        .collect();
    let qfdata = format!(
        "[ \"$1\" = synth ] && set -- synth --out \"$3\" --count 20 --held-out 4 --size 64\n\
         exec {} \"$@\"",
        bin::qfdata().display()
    );
    let qftrain = format!(
        "case $1 in eval|caption|score|export|bench|selfcheck|report|embed|search|classify) exec {0} \"$@\";; esac\n\
         steps=2; args=()\n\
         while [ $# -gt 0 ]; do case $1 in\n\
         --steps) [ \"$2\" = 1500 ] && steps=3; shift 2;;\n\
         *) args+=(\"$1\"); shift;; esac; done\n\
         exec {0} \"${{args[@]}}\" --steps $steps{sets}",
        bin::qftrain().display()
    );
    for (name, script) in [("qfdata", qfdata), ("qftrain", qftrain)] {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/bash\n{script}\n")).unwrap();
        let executable = Command::new("chmod").arg("+x").arg(path).status();
        assert!(executable.expect("chmod starts").success());
    }
}

/// What pages take for granted: photographs, a manifest, shards from elsewhere and held-out ones.
const FILES: &str = "
    QFDATA synth --out photos --count 80 --size 64 --seed 1
    QFDATA shard photos --out shards/held --max-count 40
    cp shards/held-000000.tar shards/theirs-000000.tar
    { echo path,caption; for i in 0 1 2; do echo photos/00000$i.jpg,a scene; done; } > list.csv
";

/// Runs the blocks of a page that are to be run, after `before`, in a folder of their own.
fn run(page: &str, before: &str) {
    let folder = tempfile::tempdir().unwrap();
    programs(folder.path());
    let text = fs::read_to_string(root().join(page)).unwrap();
    let runnable = blocks(&text).into_iter().filter(|(runs, _)| *runs);
    let commands: String = runnable.map(|(_, block)| block).collect();
    assert!(!commands.is_empty(), "{page} has no command");
    let files = FILES.replace("QFDATA", bin::qfdata().to_str().unwrap());
    let path = folder.path().display();
    let script = format!("set -ex; PATH={path}:$PATH\n{files}\n{before}\n{commands}");
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(folder.path())
        .env("OMP_NUM_THREADS", "1")
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .expect("bash starts");
    assert!(
        output.status.success(),
        "{page}: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

const SHARDS: &str = "qfdata shard photos --out shards/photos";
const RUN: &str = "qfdata shard photos --out shards/photos
    qftrain --shards 'shards/photos-*.tar' --run-dir runs/a";

#[test]
fn commands_of_the_readme_run() {
    run("README.md", "");
}

#[test]
fn commands_of_the_data_guide_run() {
    run("docs/guide/data.md", "");
    run("docs/guide/many-machines.md", "");
}

#[test]
fn commands_of_the_training_guides_run() {
    run("docs/guide/training.md", SHARDS);
    run("docs/guide/resume.md", RUN);
    run("docs/guide/profiling.md", SHARDS);
    run("docs/guide/watching.md", RUN);
}

#[test]
fn commands_of_the_guides_to_trained_models_run() {
    run("docs/guide/evaluation.md", RUN);
    run("docs/guide/weights.md", RUN);
}

/// What a program says of a command's options.
fn help(program: &str, command: Option<&str>) -> String {
    let path = match program {
        "qfdata" => bin::qfdata(),
        _ => bin::qftrain(),
    };
    let output = Command::new(path).args(command).arg("--help").output();
    String::from_utf8(output.expect("the program starts").stdout).unwrap()
}

#[test]
fn every_option_of_the_documents_exists() {
    let mut helps: HashMap<(String, Option<String>), String> = HashMap::new();
    let mut seen = 0;
    for (path, text) in pages() {
        for (_, block) in blocks(&text) {
            for line in block.replace("\\\n", " ").lines() {
                let line = line.split(" #").next().unwrap();
                let mut words = line
                    .split_whitespace()
                    .skip_while(|word| *word != "qfdata" && *word != "qftrain");
                let Some(program) = words.next() else {
                    continue;
                };
                let words: Vec<&str> = words.collect();
                let command = words.first().filter(|word| !word.starts_with('-'));
                let key = (program.to_string(), command.map(|word| word.to_string()));
                let help = helps
                    .entry(key)
                    .or_insert_with(|| help(program, command.copied()));
                for option in words.iter().filter(|word| word.starts_with("--")) {
                    let listed = help.split_whitespace().any(|word| word == *option);
                    assert!(listed, "{}: {line}: no {option}", path.display());
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 50, "{seen}");
}

#[test]
fn the_command_line_page_is_what_the_programs_write() {
    let page = fs::read_to_string(root().join("docs/reference/command-line.md")).unwrap();
    let mut rest = page.as_str();
    for program in [bin::qfdata(), bin::qftrain()] {
        let output = Command::new(&program)
            .arg("command-line-reference")
            .output();
        let written = String::from_utf8(output.expect("the program starts").stdout).unwrap();
        assert!(written.lines().count() > 100, "{written}");
        let at = rest.find(&written).unwrap_or_else(|| {
            let known: Vec<&str> = page.lines().collect();
            let missing = written.lines().find(|line| !known.contains(line));
            panic!(
                "docs/reference/command-line.md is not what {} has: run `make reference` (first line that \
                 differs: {missing:?})",
                program.display()
            )
        });
        rest = &rest[at + written.len()..];
    }
    assert_eq!(rest, "", "nothing stands behind the programs' own part");
}

/// The anchors that headings of a page get, by GitHub's rules.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut links = 0;
    for (path, text) in pages() {
        for part in text.split("](").skip(1) {
            let link = part.split(')').next().unwrap();
            if link.starts_with("https://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link}", path.display());
            if !anchor.is_empty() {
                let known = anchors(&fs::read_to_string(&target).unwrap());
                let found = known.iter().any(|known| known == anchor);
                assert!(found, "{}: {link}: {known:?}", path.display());
            }
            links += 1;
        }
    }
    assert!(links > 30, "{links}");
}
