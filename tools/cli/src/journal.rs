//! A file that keeps what a program said, with the time of each line.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use qf_pipeline::atomic_file::open_in_place;
use qf_pipeline::printable::PrintableLines;

static FILE: Mutex<Option<File>> = Mutex::new(None);

/// Appends every line that this process says from now on to the file at `path`, too. Only one file is kept
/// at a time.
///
/// # Errors
/// That the file cannot be opened, by name.
pub fn keep(path: &Path) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    let file = open_in_place(path, options.create(true).append(true));
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    set(Some(file));
    Ok(())
}

/// Keeps no more lines.
pub fn end() {
    set(None);
}

/// Removes the file again, where nothing was kept in it.
pub fn remove_empty(path: &Path) {
    if fs::metadata(path).is_ok_and(|file| file.len() == 0) {
        let _ = fs::remove_file(path);
    }
}

fn set(file: Option<File>) {
    match FILE.lock() {
        Ok(mut kept) => *kept = file,
        Err(poisoned) => *poisoned.into_inner() = file,
    }
}

/// Adds a line, or several. That the file cannot be written is no reason to stop what is being done, and
/// there is no place to say it.
pub(crate) fn note(lines: &str) {
    let Ok(mut kept) = FILE.lock() else {
        return;
    };
    if let Some(file) = kept.as_mut() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = Time(now.map_or(0, |since| since.as_secs()));
        let mut text = String::new();
        for line in PrintableLines(lines).to_string().lines() {
            text += &format!("{now} {line}\n");
        }
        let _ = file.write_all(text.as_bytes());
    }
}

/// Unix time as `2026-11-23T18:31:05Z`.
#[derive(Clone, Copy, Debug)]
pub struct Time(pub u64);

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (days, second) = (self.0 / 86_400, self.0 % 86_400);
        // Days since 1970 to a calendar date (Howard Hinnant, "chrono-compatible low-level date
        // algorithms", civil_from_days), in years that begin in March.
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = match shifted_month < 10 {
            true => shifted_month + 3,
            false => shifted_month - 9,
        };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `date -u -d @N +%FT%TZ`.
    #[test]
    fn times_as_date_has_them() {
        for (secs, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_795_771_865, "2026-11-27T09:31:05Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Time(secs).to_string(), expected);
        }
    }
}
