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
