//! `qftrain selfcheck`: whether this machine computes what it should.

use std::time::Instant;

use anyhow::bail;
use qf_model::device::{default_precision, open_device};
use qf_model::selfcheck::{self, CheckReport, Fault, Outcome, SelfCheck};
use qftrain::args::SelfCheckArgs;
use serde::Serialize;
use serde_json::{Map, Value};

use qf_cli::output::{remark, say};

/// The last line of `--json`.
#[derive(Serialize)]
struct Summary<'a> {
    passed: bool,
    checks: usize,
    failed: Vec<&'a str>,
    skipped: Vec<&'a str>,
    seconds: f64,
}

pub(crate) fn run(args: &SelfCheckArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut broken_output = None;
    let mut show = |report: &CheckReport| {
        let shown = match args.json {
            true => serde_json::to_string(report)
                .map_err(Into::into)
                .and_then(|json| say(format_args!("{json}"))),
            false => say(format_args!("{}", line(report))),
        };
        if let Err(error) = shown {
            broken_output.get_or_insert(error);
        }
    };
    let reports = match open_device(args.device) {
        Ok(device) => {
            let settings = SelfCheck {
                device,
                precision: default_precision(device),
                golden: args.golden.clone(),
            };
            selfcheck::run(&settings, &mut show)
        }
        Err(error) => {
            let report = CheckReport {
                name: "libraries",
                outcome: Outcome::Failed(Fault {
                    what: format!("--device {}", args.device),
                    got: error.to_string(),
                    expected: "a device that opens".into(),
                    advice: "--device cpu checks the rest".into(),
                }),
                figures: Map::new(),
                seconds: started.elapsed().as_secs_f64(),
            };
            show(&report);
            vec![report]
        }
    };
    if let Some(error) = broken_output {
        return Err(error);
    }
    let named = |is: fn(&Outcome) -> bool| -> Vec<&str> {
        let found = reports.iter().filter(|report| is(&report.outcome));
        found.map(|report| report.name).collect()
    };
    let summary = Summary {
        passed: named(|outcome| matches!(outcome, Outcome::Failed(_))).is_empty(),
        checks: reports.len(),
        failed: named(|outcome| matches!(outcome, Outcome::Failed(_))),
        skipped: named(|outcome| matches!(outcome, Outcome::Skipped { .. })),
        seconds: started.elapsed().as_secs_f64(),
    };
    match args.json {
        true => say(format_args!("{}", serde_json::to_string(&summary)?))?,
        false if summary.passed => say(format_args!(
            "all is well: {} checks in {:.1} s, {} skipped",
            summary.checks,
            summary.seconds,
            summary.skipped.len()
        ))?,
        false => {}
    }
    end(&reports, summary.failed.len())
}

/// Fails with the first check that did.
fn end(reports: &[CheckReport], failed: usize) -> anyhow::Result<()> {
    let mut faults = reports.iter().filter_map(|report| match &report.outcome {
        Outcome::Failed(fault) => Some((report.name, fault)),
        _ => None,
    });
    let Some((name, fault)) = faults.next() else {
        return Ok(());
    };
    let others = match failed - 1 {
        0 => String::new(),
        1 => " (and one more check failed)".into(),
        others => format!(" (and {others} more checks failed)"),
    };
    let message = format!("selfcheck, {name}{others}: {fault}");
    if reports.len() == 1 {
        bail!("{message}");
    }
    remark(format_args!("error: {message}"));
    // At once: the thread of a check that did not end may still be inside the driver.
    signal_hook::low_level::exit(1)
}

/// `NAME  ok  1.2 s  FIGURES`
fn line(report: &CheckReport) -> String {
    let CheckReport {
        name,
        outcome,
        figures,
        seconds,
    } = report;
    let (word, rest) = match outcome {
        Outcome::Ok => ("ok", list(figures)),
        Outcome::Skipped { reason } => ("skipped", reason.clone()),
        Outcome::Failed(fault) => ("FAIL", format!("{}: {}", fault.what, fault.got)),
    };
    format!("{name:<18} {word:<8} {seconds:>5.1} s  {rest}")
}

fn list(figures: &Map<String, Value>) -> String {
    let words = figures.iter().map(|(name, value)| match value {
        Value::Bool(value) => {
            let word = if *value { "yes" } else { "no" };
            format!("{} {word}", name.replace('_', " "))
        }
        _ if name.ends_with("_per_s") => {
            let name = name.trim_end_matches("_per_s").replace('_', " ");
            format!("{} G {name}/s", short(value, 1e9))
        }
        _ if name.ends_with("_bytes") => {
            let name = name.trim_end_matches("_bytes").replace('_', " ");
            format!("{name} {} MB", short(value, 1e6))
        }
        _ => format!("{} {}", name.replace('_', " "), short(value, 1.0)),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// A number with two digits behind the point, or by its power of ten, in `unit`s.
fn short(value: &Value, unit: f64) -> String {
    match value {
        Value::Number(number) if unit == 1.0 && !number.is_f64() => number.to_string(),
        Value::Number(number) => {
            let value = number.as_f64().unwrap_or(f64::NAN) / unit;
            match value.abs() {
                0.0 => "0".into(),
                small if small < 0.01 => format!("{value:.1e}"),
                _ => format!("{value:.2}"),
            }
        }
        Value::Array(values) => {
            let values = values.iter().map(|value| short(value, unit));
            values.collect::<Vec<_>>().join(" ")
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_short_and_name_what_failed() {
        let mut figures = Map::new();
        figures.insert("worst_error".into(), 1.26e-7.into());
        figures.insert("flop_per_s".into(), 2.5e11.into());
        figures.insert("memory_bytes".into(), 85_000_000_000u64.into());
        figures.insert("quantities".into(), 542.into());
        figures.insert("carries_nccl".into(), true.into());
        let mut report = CheckReport {
            name: "step in f32",
            outcome: Outcome::Ok,
            figures,
            seconds: 0.42,
        };
        let text = line(&report);
        assert!(
            text.starts_with("step in f32        ok         0.4 s  "),
            "{text}"
        );
        for words in [
            "worst error 1.3e-7",
            "250.00 G flop/s",
            "memory 85000.00 MB",
            "quantities 542",
            "carries nccl yes",
        ] {
            assert!(text.contains(words), "{text}");
        }
        report.outcome = Outcome::Failed(Fault {
            what: "EVA: loss".into(),
            got: "NaN".into(),
            expected: "1".into(),
            advice: "look".into(),
        });
        let text = line(&report);
        assert!(
            text.contains("FAIL") && text.contains("EVA: loss: NaN"),
            "{text}"
        );
        assert!(end(&[report], 1)
            .unwrap_err()
            .to_string()
            .contains("expected 1; look"));
    }
}
