//! Files made to break readers, through every command: a finding or a pass, no crash, no runaway memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::{qfdata, test_data};

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(files_below(&path)),
            false => files.push(path),
        }
    }
    files.sort();
    files
}

#[test]
fn every_file_gives_a_finding_or_passes() {
    let mut counts = [0usize; 4];
    for collection in ["data/hostile", "data/cases", "data/wds", "data/arrow"] {
        let Some(folder) = test_data::find("every_file_gives_a_finding_or_passes", collection)
        else {
            return;
        };
        let files = files_below(&folder);
        // One run looks at all of them: a crash of one would end it.
        let scratch = tempfile::tempdir().unwrap();
        for chunk in files.chunks(200) {
            let names: Vec<&str> = chunk.iter().map(|file| file.to_str().unwrap()).collect();
            // Names with braces or stars are what they are: such a file exists.
            let started = Instant::now();
            let output = qfdata(
                scratch.path(),
                &[&["verify", "--json", "--no-checksum"], &names[..]].concat(),
            );
            let code = output.status.code().expect("no signal");
            assert!([0, 1, 3].contains(&code), "{collection}: {output:?}");
            counts[code as usize] += 1;
            assert!(
                started.elapsed().as_secs() < 240,
                "{collection} takes too long"
            );
            let text = String::from_utf8(output.stdout).unwrap();
            let summary: serde_json::Value =
                serde_json::from_str(text.lines().last().unwrap()).unwrap();
            assert_eq!(summary["shards"], chunk.len());
        }
    }
}

#[test]
fn every_archive_is_listed_and_extracted_or_refused() {
    for collection in ["data/hostile/tar", "data/hostile/zst", "data/wds"] {
        let Some(folder) = test_data::find("every_archive_is_listed", collection) else {
            return;
        };
        for file in files_below(&folder) {
            let scratch = tempfile::tempdir().unwrap();
            let inner = scratch.path().join("inner");
            fs::create_dir(&inner).unwrap();
            let name = file.to_str().unwrap();
            for arguments in [
                vec!["ls", name],
                vec!["head", name],
                vec!["extract", name, "--out", "out"],
                vec!["convert", name, "--out", "copy", "--format", "tar"],
            ] {
                let output = qfdata(&inner, &arguments);
                let code = output.status.code().expect("no signal");
                assert!([0, 1, 3].contains(&code), "{arguments:?}: {output:?}");
            }
            // Nothing beside the folders that were named.
            let beside: Vec<_> = fs::read_dir(scratch.path()).unwrap().collect();
            assert_eq!(beside.len(), 1, "{name}");
            for entry in fs::read_dir(&inner).unwrap() {
                let name = entry.unwrap().file_name();
                assert!(name == "out" || name == "copy", "{name:?}");
            }
        }
    }
}
