//! The program starts, and its help names every command. (That a package has an integration test
//! also makes `cargo test --workspace` build its program, which the `tests` crate runs.)

use std::process::Command;

#[test]
fn help_names_every_command() {
    let output = Command::new(env!("CARGO_BIN_EXE_qfdata"))
        .arg("--help")
        .output()
        .unwrap();
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for command in ["shard", "index", "vocab", "profile", "synth"] {
        assert!(
            help.contains(&format!("\n  {command} ")),
            "{command}: {help}"
        );
    }
}
