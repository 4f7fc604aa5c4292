//! What a command holds does not depend on how much there is to read.

use serde_json::Value;

use crate::{photographs, python};

const PEAKS: &str = r#"
import json, os, subprocess, sys
program = sys.argv[1]
shards = 160
for n in range(shards):
    os.symlink("s-000000.tar", f"link-{n:03}.tar")
def peak(*arguments):
    child = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 3), arguments
    return usage.ru_maxrss
few, many = "link-{000..007}.tar", "link-*.tar"
out = {}
for name, options in {
    "verify": ["--near", "6", "--quiet"],
    "stats": ["--json"],
    "ls": ["--json"],
    "split": ["--max-count", "10", "--by-shard", "--overwrite", "--quiet", "--out", "cut/s"],
}.items():
    out[name] = [peak(name, shards, *options) for shards in (few, many)]
print(json.dumps(out))
"#;

#[test]
fn twenty_times_the_data_take_no_more_memory() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs("twenty_times_the_data", folder, 10, "tar").is_none() {
        return;
    }
    let program = env!("CARGO_BIN_EXE_qfdata");
    let Some(peaks) = python("twenty_times_the_data", folder, PEAKS, &[program]) else {
        return;
    };
    let peaks: Value = serde_json::from_str(&peaks).unwrap();
    for (command, pair) in peaks.as_object().unwrap() {
        let kib = |at: usize| pair[at].as_u64().unwrap();
        // Allocators keep what workers freed; the samples themselves are 250 MB more.
        assert!(
            kib(1) < kib(0) + (48 << 10),
            "{command}: {} and {} KiB",
            kib(0),
            kib(1)
        );
    }
}
