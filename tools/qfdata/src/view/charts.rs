//! Histograms as pictures in a page.

use std::fmt::{self, Write};

use qf_cli::page::{Page, Text};

use crate::stats::Spread;

/// Bars of a histogram, about.
const BARS: usize = 24;
/// Width and height of the picture, in its own units.
const SIZE: (f64, f64) = (320.0, 96.0);

/// A histogram with its name, its median and the values at both ends; nothing without a number. A number is
/// `unit` of what is shown.
pub(super) fn histogram(
    page: &mut Page,
    name: &str,
    spread: &Spread,
    (unit, suffix): (f64, &str),
) -> fmt::Result {
    let Some(summary) = spread.summary(unit) else {
        return Ok(());
    };
    let bars = spread.bars(BARS);
    let highest = bars
        .iter()
        .map(|(_, count)| *count)
        .max()
        .unwrap_or(1)
        .max(1) as f64;
    let (width, height) = SIZE;
    let step = width / bars.len().max(1) as f64;
    let number = |value: f64| match value {
        value if value.fract() == 0.0 || value >= 100.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    };
    let label = |low: u64| number(low as f64 / unit);
    writeln!(
        page,
        "<figure>\n<figcaption><b>{}</b> <span>median {}{suffix}, {} to {}</span></figcaption>",
        Text(name),
        number(summary.median),
        number(summary.min),
        number(summary.max)
    )?;
    writeln!(
        page,
        "<svg viewBox=\"0 0 {width} {height}\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">",
        Text(name)
    )?;
    for (at, (low, count)) in bars.iter().enumerate() {
        let bar = height * *count as f64 / highest;
        // Something is always seen of something.
        let bar = if *count > 0 { bar.max(1.0) } else { 0.0 };
        writeln!(
            page,
            "<rect x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{bar:.2}\"><title>from {}: {count}</title></rect>",
            at as f64 * step + 0.5,
            height - bar,
            (step - 1.0).max(0.5),
            label(*low)
        )?;
    }
    let (first, last) = (bars.first(), bars.last());
    // The first bar begins at a round number below the least.
    let least = (summary.min * unit) as u64;
    let ends = (
        first.map_or(0, |bar| bar.0.max(least)),
        last.map_or(0, |bar| bar.0),
    );
    writeln!(
        page,
        "</svg>\n<div class=\"axis\"><span>{}</span><span>{}+</span></div>\n</figure>",
        label(ends.0),
        label(ends.1)
    )
}
