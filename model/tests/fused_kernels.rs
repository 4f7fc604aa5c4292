//! The kernels of `shim/fused.cu.inc`, run on the CPU by `fused_kernels.cpp`. That they do the same on
//! a GPU, `qftrain selfcheck` finds out.

use std::path::Path;
use std::process::Command;

/// The source as code rather than as a string.
fn kernels(crate_folder: &Path) -> String {
    let source = std::fs::read_to_string(crate_folder.join("shim/fused.cu.inc")).unwrap();
    let code = source.trim().strip_prefix("R\"cuda(").unwrap();
    let code = code.strip_suffix(")cuda\"").unwrap();
    // `static` comes with `__device__`.
    code.replace("__device__ inline", "__device__")
}

#[test]
fn kernels_equal_plain_loops() {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("kernels.h"), kernels(crate_folder)).unwrap();
    // A vector a lane, and the width of the Q-Former.
    for width in [128, 768] {
        let program = folder.path().join(format!("kernels-{width}"));
        let compiled = Command::new("c++")
            .args(["-std=c++20", "-O1", "-pthread", "-Wno-unknown-pragmas"])
            .arg(format!("-DWIDTH={width}"))
            .arg("-I")
            .arg(folder.path())
            .arg(crate_folder.join("tests/fused_kernels.cpp"))
            .arg("-o")
            .arg(&program)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&compiled.stderr);
        assert!(compiled.status.success(), "{said}");
        let run = Command::new(&program).output().unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "width {width}: {said}");
    }
}
