//! Progress bars on stderr; hidden where that is no terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of `total` items after a word for what is done to them.
pub(crate) fn bar(doing: &'static str, total: usize) -> ProgressBar {
    const TEMPLATE: &str = "{prefix} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}";
    let bar = ProgressBar::new(total as u64).with_prefix(doing);
    // The template is a constant; with the default one the bar only looks different.
    match ProgressStyle::with_template(TEMPLATE) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A count of items after a word for what is done to them, where nobody knows how many there are.
pub(crate) fn counter(doing: &'static str) -> ProgressBar {
    const TEMPLATE: &str = "{prefix} {spinner} {human_pos} {per_sec} {elapsed}";
    let bar = ProgressBar::no_length().with_prefix(doing);
    match ProgressStyle::with_template(TEMPLATE) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
