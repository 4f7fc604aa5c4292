//! What libraries read from the environment when they are loaded, before `main`: the program that is called
//! sets it and starts the one that links them. What the user has set stands.
//!
//! * OpenMP's wait policy. libtorch's kernels run on OpenMP threads that spin at the end of each parallel
//!   loop by default. The loader's threads need those cores: on two cores shared with anything else,
//!   spinning made training an order of magnitude slower.
//! * The logs of libtorch, of its profiler (Kineto, over CUPTI) and of NCCL, which follow `RUST_LOG` under
//!   the names `torch`, `kineto` and `nccl`. Without it they are silent: what goes wrong between ranks
//!   libtorch logs with its stack, beside the error that this program prints, and its profiler calls a
//!   machine without a GPU an error.
//! * That CUDA's profiler (CUPTI) is not taken down between recordings and set up again: with CUDA graphs
//!   that ends in a crash (torch/profiler sets the same where it knows of graphs).
//! * The workspace of cuBLAS, which reads it when its first product comes: with eight buffers of 4 MiB,
//!   libtorch's own size on Hopper, its products give the same bits each time (`deterministic = true`).

use log::{Level, Log, Metadata};

/// What is not set yet, by name and value.
#[allow(clippy::disallowed_methods)] // The environment belongs to the tools.
pub fn missing() -> Vec<(&'static str, &'static str)> {
    let is_set = |name: &str| std::env::var_os(name).is_some();
    let rust_log = std::env::var("RUST_LOG").ok();
    let waits = is_set("GOMP_SPINCOUNT");
    wanted(rust_log.as_deref(), can_reopen_stderr())
        .into_iter()
        .filter(|(name, _)| !(is_set(name) || waits && *name == "OMP_WAIT_POLICY"))
        .collect()
}

/// Names and values, from the user's `RUST_LOG`.
fn wanted(rust_log: Option<&str>, stderr_reopens: bool) -> Vec<(&'static str, &'static str)> {
    let level = |target: &str| {
        let logger = env_logger::Builder::new()
            .parse_filters(rust_log.unwrap_or("off"))
            .build();
        let levels = [Level::Debug, Level::Info, Level::Warn, Level::Error];
        levels.into_iter().find(|level| {
            let metadata = Metadata::builder().level(*level).target(target).build();
            logger.enabled(&metadata)
        })
    };
    let torch = match level("torch") {
        Some(Level::Debug | Level::Info) => "INFO",
        Some(Level::Warn) => "WARNING",
        Some(_) => "ERROR",
        None => "FATAL",
    };
    // Kineto counts: verbose, information, warnings, stages, errors.
    let kineto = match level("kineto") {
        Some(Level::Debug) => "0",
        Some(Level::Info) => "1",
        Some(Level::Warn) => "2",
        Some(_) => "4",
        None => "99",
    };
    let mut wanted = vec![
        ("OMP_WAIT_POLICY", "passive"),
        ("TORCH_CPP_LOG_LEVEL", torch),
        ("KINETO_LOG_LEVEL", kineto),
        ("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),
        ("DISABLE_CUPTI_LAZY_REINIT", "1"),
        ("TEARDOWN_CUPTI", "0"),
    ];
    let nccl = match level("nccl") {
        Some(Level::Debug | Level::Info) => Some("INFO"),
        Some(_) => Some("WARN"),
        None => None,
    };
    if let Some(nccl) = nccl {
        wanted.push(("NCCL_DEBUG", nccl));
        // Its own choice is stdout, where results belong.
        if stderr_reopens {
            wanted.push(("NCCL_DEBUG_FILE", "/dev/stderr"));
        }
    }
    wanted
}

/// Whether opening stderr by its name destroys nothing: a file would be cut to nothing, and a socket
/// cannot be opened.
fn can_reopen_stderr() -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata("/dev/stderr").is_ok_and(|stderr| {
        let kind = stderr.file_type();
        kind.is_fifo() || kind.is_char_device()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(rust_log: Option<&str>, name: &str) -> Option<&'static str> {
        let found = wanted(rust_log, true).into_iter();
        let mut found = found.filter(|(known, _)| *known == name);
        found.next().map(|(_, value)| value)
    }

    #[test]
    fn logs_of_libraries_follow_rust_log() {
        let levels = |rust_log| {
            let names = ["TORCH_CPP_LOG_LEVEL", "KINETO_LOG_LEVEL", "NCCL_DEBUG"];
            names.map(|name| value(rust_log, name))
        };
        assert_eq!(levels(None), [Some("FATAL"), Some("99"), None]);
        for (rust_log, expected) in [
            ("off", [Some("FATAL"), Some("99"), None]),
            ("error", [Some("ERROR"), Some("4"), Some("WARN")]),
            ("warn", [Some("WARNING"), Some("2"), Some("WARN")]),
            ("info", [Some("INFO"), Some("1"), Some("INFO")]),
            ("trace", [Some("INFO"), Some("0"), Some("INFO")]),
            ("nccl=debug", [Some("FATAL"), Some("99"), Some("INFO")]),
            (
                "warn,torch=off,nccl=info",
                [Some("FATAL"), Some("2"), Some("INFO")],
            ),
            ("qf_model=debug", [Some("FATAL"), Some("99"), None]),
        ] {
            assert_eq!(levels(Some(rust_log)), expected, "{rust_log}");
        }
    }

    #[test]
    fn nccl_writes_to_stderr_where_that_destroys_nothing() {
        let file = |reopens| {
            let found = wanted(Some("nccl=info"), reopens);
            found.into_iter().any(|(name, _)| name == "NCCL_DEBUG_FILE")
        };
        assert!(file(true) && !file(false));
        assert_eq!(value(Some("warn,nccl=off"), "NCCL_DEBUG_FILE"), None);
    }
}
