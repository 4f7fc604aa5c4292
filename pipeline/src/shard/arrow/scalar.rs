//! Values of a fixed width, and how each is written as JSON.

use arrow2::temporal_conversions as temporal;
use arrow2::types::f16;
use arrow_format::ipc::{DateUnit, TimeUnit, TypeRef};
use serde::Serialize;

use super::error::ArrowError;

/// An integer type: of values, of dictionary indices, of run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexType {
    /// 1, 2, 4 or 8.
    pub(super) width_bytes: usize,
    pub(super) signed: bool,
}

/// A type of fixed width that JSON has a place for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    /// A bit a value.
    Bool,
    Int(IndexType),
    Float {
        width_bytes: usize,
    },
    /// 128 bits; digits behind the point.
    Decimal {
        scale: u32,
    },
    /// Days in 32 bits, or milliseconds in 64.
    Date {
        is_days: bool,
    },
    Time {
        unit: Unit,
        width_bytes: usize,
    },
    Timestamp {
        unit: Unit,
        has_zone: bool,
    },
    /// A count of its unit.
    Duration,
}

/// What a time is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Second,
    /// Milliseconds.
    Millisecond,
    /// Microseconds.
    Microsecond,
    /// Nanoseconds.
    Nanosecond,
}

impl Unit {
    fn of(unit: TimeUnit) -> Unit {
        match unit {
            TimeUnit::Second => Unit::Second,
            TimeUnit::Millisecond => Unit::Millisecond,
            TimeUnit::Microsecond => Unit::Microsecond,
            TimeUnit::Nanosecond => Unit::Nanosecond,
        }
    }

    /// Nanoseconds of one.
    fn nanoseconds(self) -> i64 {
        match self {
            Unit::Second => 1_000_000_000,
            Unit::Millisecond => 1_000_000,
            Unit::Microsecond => 1_000,
            Unit::Nanosecond => 1,
        }
    }
}

impl Scalar {
    /// The scalar of a type; `None` for one that JSON has no place for, or that is no scalar. Whole
    /// numbers are told elsewhere.
    pub(super) fn of(type_: TypeRef<'_>) -> Result<Option<Scalar>, ArrowError> {
        use arrow_format::ipc::Precision;
        Ok(Some(match type_ {
            TypeRef::Bool(_) => Scalar::Bool,
            TypeRef::FloatingPoint(float) => Scalar::Float {
                width_bytes: match float.precision()? {
                    Precision::Half => 2,
                    Precision::Single => 4,
                    Precision::Double => 8,
                },
            },
            TypeRef::Decimal(decimal) => match (decimal.bit_width()?, decimal.scale()?) {
                (128, scale @ 0..=38) => Scalar::Decimal {
                    scale: scale.unsigned_abs(),
                },
                _ => return Ok(None),
            },
            TypeRef::Date(date) => Scalar::Date {
                is_days: date.unit()? == DateUnit::Day,
            },
            TypeRef::Time(time) => Scalar::Time {
                unit: Unit::of(time.unit()?),
                width_bytes: match time.bit_width()? {
                    32 => 4,
                    _ => 8,
                },
            },
            TypeRef::Timestamp(timestamp) => Scalar::Timestamp {
                unit: Unit::of(timestamp.unit()?),
                has_zone: timestamp.timezone()?.is_some_and(|zone| !zone.is_empty()),
            },
            TypeRef::Duration(_) => Scalar::Duration,
            _ => return Ok(None),
        }))
    }

    /// Bytes of so many values.
    pub(super) fn bytes_of(self, rows: usize) -> Option<usize> {
        let width = match self {
            Scalar::Bool => return Some(rows.div_ceil(8)),
            Scalar::Int(int) => int.width_bytes,
            Scalar::Float { width_bytes } | Scalar::Time { width_bytes, .. } => width_bytes,
            Scalar::Decimal { .. } => 16,
            Scalar::Date { is_days: true } => 4,
            Scalar::Date { is_days: false } | Scalar::Timestamp { .. } | Scalar::Duration => 8,
        };
        rows.checked_mul(width)
    }

    /// The value of a row as JSON; null where it has none (`NaN`).
    pub(super) fn json(self, data: &[u8], row: usize) -> String {
        self.text(data, row).unwrap_or_else(|| "null".to_owned())
    }

    fn text(self, data: &[u8], row: usize) -> Option<String> {
        let wide = |width: usize| -> Option<u64> {
            let start = row.checked_mul(width)?;
            let stored = data.get(start..start.checked_add(width)?)?;
            let mut wide = [0; 8];
            wide.get_mut(..width)?.copy_from_slice(stored);
            Some(u64::from_le_bytes(wide))
        };
        // Wider than stored, with the sign that it has there.
        let signed = |width: usize| {
            let unused_bits = 64 - 8 * width.min(8);
            wide(width).map(|wide| (wide << unused_bits).cast_signed() >> unused_bits)
        };
        match self {
            Scalar::Bool => {
                let byte = data.get(row / 8)?;
                Some((byte >> (row % 8) & 1 == 1).to_string())
            }
            Scalar::Int(int) if int.signed => signed(int.width_bytes).map(|int| int.to_string()),
            Scalar::Int(int) => wide(int.width_bytes).map(|int| int.to_string()),
            Scalar::Float { width_bytes } => {
                let bits = wide(width_bytes)?;
                match width_bytes {
                    2 => number(f16::from_bits(u16::try_from(bits).ok()?).to_f32()),
                    // As it is written: 0.3, not 0.30000001192092896.
                    4 => number(f32::from_bits(u32::try_from(bits).ok()?)),
                    _ => number(f64::from_bits(bits)),
                }
            }
            Scalar::Decimal { scale } => {
                let start = row.checked_mul(16)?;
                let stored = data.get(start..)?.first_chunk::<16>()?;
                Some(quoted(&decimal(i128::from_le_bytes(*stored), scale)))
            }
            Scalar::Date { is_days: true } => {
                let days = signed(4)?;
                Some(or_count(iso_date(days), days))
            }
            Scalar::Date { is_days: false } => {
                let milliseconds = signed(8)?;
                let date = iso_date(milliseconds.div_euclid(86_400_000));
                Some(or_count(date, milliseconds))
            }
            Scalar::Time { unit, width_bytes } => {
                let count = signed(width_bytes)?;
                Some(or_count(iso_time(count, unit), count))
            }
            Scalar::Timestamp { unit, has_zone } => {
                let count = signed(8)?;
                Some(or_count(iso_timestamp(count, unit, has_zone), count))
            }
            Scalar::Duration => signed(8).map(|count| count.to_string()),
        }
    }
}

/// A number as JSON; `None` if it is not finite.
fn number(value: impl Serialize + Into<f64> + Copy) -> Option<String> {
    let is_finite = value.into().is_finite();
    is_finite.then(|| serde_json::to_string(&value).ok())?
}

/// A date or time as a string; the number that is stored, where no calendar has it.
fn or_count(iso: Option<String>, count: i64) -> String {
    iso.map_or_else(|| count.to_string(), |iso| quoted(&iso))
}

/// What needs no escapes.
fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

/// A whole number with its point put so many digits before its end.
fn decimal(value: i128, scale: u32) -> String {
    let sign = if value < 0 { "-" } else { "" };
    let scale = scale as usize;
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    match fraction {
        "" => format!("{sign}{whole}"),
        _ => format!("{sign}{whole}.{fraction}"),
    }
}

/// Days since 1970 of the years 1 to 9999.
const CALENDAR: std::ops::RangeInclusive<i64> = -719_162..=2_932_896;

/// A date as in ISO 8601, from days since 1970: `2024-02-29`. `None` beyond the years 1 to 9999, as in
/// Python's `datetime`.
pub fn iso_date(days: i64) -> Option<String> {
    let days = i32::try_from(days)
        .ok()
        .filter(|_| CALENDAR.contains(&days))?;
    temporal::date32_to_date_opt(days).map(|date| format!("{date:?}"))
}

/// A time of day as Python's `isoformat` writes it: `07:05:09`, `07:05:09.000120`. `None` if it is none.
pub fn iso_time(count: i64, unit: Unit) -> Option<String> {
    let nanoseconds = count.checked_mul(unit.nanoseconds())?;
    (0..86_400_000_000_000)
        .contains(&nanoseconds)
        .then(|| time_of_day(nanoseconds))
}

/// A timestamp as Python's `isoformat` writes it: `2024-02-29T07:05:09.000120`, with `+00:00` behind it
/// where it has a time zone, since it is stored in UTC. `None` beyond the years 1 to 9999.
pub fn iso_timestamp(count: i64, unit: Unit, has_zone: bool) -> Option<String> {
    let per_day = 86_400_000_000_000 / unit.nanoseconds();
    let date = iso_date(count.div_euclid(per_day))?;
    let time = time_of_day(count.rem_euclid(per_day) * unit.nanoseconds());
    let zone = if has_zone { "+00:00" } else { "" };
    Some(format!("{date}T{time}{zone}"))
}

/// Nanoseconds below a microsecond are written where there are some.
fn time_of_day(nanoseconds: i64) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    let below = nanoseconds % 1_000_000_000;
    let fraction = match (below, below % 1_000) {
        (0, _) => String::new(),
        (_, 0) => format!(".{:06}", below / 1_000),
        _ => format!(".{below:09}"),
    };
    format!("{hours:02}:{minutes:02}:{seconds:02}{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Python says: `datetime.isoformat`, `Decimal`.
    #[test]
    fn times_and_decimals_are_written_as_python_writes_them() {
        assert_eq!(iso_date(19_782).unwrap(), "2024-02-29");
        assert_eq!(iso_date(-1).unwrap(), "1969-12-31");
        assert_eq!(iso_date(2_932_896).unwrap(), "9999-12-31");
        assert_eq!(iso_date(-719_162).unwrap(), "0001-01-01");
        assert_eq!(iso_date(2_932_897), None);
        assert_eq!(iso_date(i64::MAX), None);
        assert_eq!(iso_time(25_509, Unit::Second).unwrap(), "07:05:09");
        assert_eq!(
            iso_time(25_509_000_120, Unit::Microsecond).unwrap(),
            "07:05:09.000120"
        );
        assert_eq!(iso_time(86_400, Unit::Second), None);
        assert_eq!(iso_time(-1, Unit::Second), None);
        for (count, unit, expected) in [
            (1_709_190_309, Unit::Second, "2024-02-29T07:05:09"),
            (
                1_709_190_309_250,
                Unit::Millisecond,
                "2024-02-29T07:05:09.250000",
            ),
            (-1, Unit::Microsecond, "1969-12-31T23:59:59.999999"),
            (1, Unit::Nanosecond, "1970-01-01T00:00:00.000000001"),
        ] {
            assert_eq!(iso_timestamp(count, unit, false).unwrap(), expected);
            let with_zone = format!("{expected}+00:00");
            assert_eq!(iso_timestamp(count, unit, true).unwrap(), with_zone);
        }
        assert_eq!(iso_timestamp(i64::MAX, Unit::Second, false), None);
        for (value, scale, expected) in [
            (12_345, 2, "123.45"),
            (-5, 3, "-0.005"),
            (7, 0, "7"),
            (0, 2, "0.00"),
            (i128::MIN, 38, "-1.70141183460469231731687303715884105728"),
        ] {
            assert_eq!(decimal(value, scale), expected);
        }
    }
}
