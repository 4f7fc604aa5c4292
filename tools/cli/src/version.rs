//! What `--version` says beside the number: commit, libraries, processor.

use std::fmt::Write;

/// The commit that the program was built from; in everyday builds without optimisation, that it is one.
pub const COMMIT: &str = env!("QF_COMMIT");

/// Lines for `--version`: the commit, then `facts` (a name and what there is of it), then what the processor
/// can do of what the programs have code for.
pub fn details(facts: &[(&str, String)]) -> String {
    let commit = ("commit", COMMIT.to_owned());
    let processor = ("processor", processor());
    let facts = [&[commit], facts, &[processor]].concat();
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in facts {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:width$}  {value}");
    }
    text
}

/// The architecture and the instruction sets that decoders and resizing, or libtorch's kernels, look for.
fn processor() -> String {
    let architecture = std::env::consts::ARCH;
    match features() {
        found if found.is_empty() => {
            format!("{architecture}, no vector instructions that are used")
        }
        found => format!("{architecture} with {}", found.join(", ")),
    }
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    let all = [
        ("SSE4.2", std::arch::is_x86_feature_detected!("sse4.2")),
        ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
        ("FMA", std::arch::is_x86_feature_detected!("fma")),
        ("AVX-512", std::arch::is_x86_feature_detected!("avx512f")),
        (
            "AVX-512 BF16",
            std::arch::is_x86_feature_detected!("avx512bf16"),
        ),
    ];
    let found = all.into_iter().filter(|(_, has)| *has);
    found.map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> Vec<&'static str> {
    match cfg!(target_arch = "aarch64") {
        true => vec!["NEON"],
        false => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_aligned() {
        let text = details(&[("codecs", "libjpeg-turbo".into())]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("commit     "), "{text}");
        assert_eq!(lines[1], "codecs     libjpeg-turbo");
        assert!(lines[2].starts_with("processor  "), "{text}");
        assert!(!COMMIT.is_empty());
    }
}
