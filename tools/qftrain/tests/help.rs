//! The program starts with nothing exported (libtorch is found by its rpath), and its help names
//! every command. (That a package has an integration test also makes `cargo test --workspace` build
//! its program, which the `tests` crate runs.)

use std::process::Command;

#[test]
fn help_names_every_command() {
    let output = Command::new(env!("CARGO_BIN_EXE_qftrain"))
        .arg("--help")
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for word in [
        "eval",
        "caption",
        "score",
        "--shards",
        "--val-shards",
        "--resume",
        "--run-dir",
    ] {
        assert!(help.contains(word), "{word}: {help}");
    }
}
