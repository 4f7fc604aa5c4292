//! Sizes as people write them: `500MB`, `1GiB`, `65536`.

/// Decimal and binary units, in bytes.
const UNITS: [(&str, u64); 13] = [
    ("", 1),
    ("b", 1),
    ("k", 1_000),
    ("kb", 1_000),
    ("kib", 1 << 10),
    ("m", 1_000_000),
    ("mb", 1_000_000),
    ("mib", 1 << 20),
    ("g", 1_000_000_000),
    ("gb", 1_000_000_000),
    ("gib", 1 << 30),
    ("tb", 1_000_000_000_000),
    ("tib", 1 << 40),
];

/// Bytes of a size such as `500MB` (decimal), `1.5GiB` (binary) or `65536`; at least one byte.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    const HELP: &str = "write bytes, or a number and a unit: 65536, 500MB, 1GiB";
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().to_ascii_lowercase();
    let Some(&(_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!("unknown unit `{unit}`; {HELP}"));
    };
    let bytes = match number.parse::<u64>() {
        Ok(number) => number.checked_mul(factor).ok_or("too large".to_owned())?,
        Err(_) => {
            let number: f64 = number.parse().map_err(|_| HELP.to_owned())?;
            let bytes = (number * factor as f64).floor();
            if bytes >= u64::MAX as f64 {
                return Err("too large".to_owned());
            }
            bytes as u64
        }
    };
    if bytes == 0 {
        return Err("must be at least one byte".to_owned());
    }
    Ok(bytes)
}

/// `1.2 GB`, `31.0 MB`, `812 B`: three figures, decimal units.
pub(crate) fn display(bytes: u64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.iter().find(|(factor, _)| bytes as f64 >= *factor) {
        Some((factor, unit)) => format!("{:.1} {unit}", bytes as f64 / factor),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("65536", 65_536),
            ("500MB", 500_000_000),
            ("500 mb", 500_000_000),
            ("1GiB", 1 << 30),
            ("1.5KiB", 1536),
            ("2k", 2000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "MB",
            "0",
            "0.2B",
            "-1",
            "1.2.3",
            "5 parsecs",
            "1e9",
            "99999999999TB",
            "9e",
            "1.9TiBx",
            "99999999999.5TiB",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(display(812), "812 B");
        assert_eq!(display(31_040_000), "31.0 MB");
    }
}
