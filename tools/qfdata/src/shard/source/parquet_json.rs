//! Fields of Parquet as JSON: what Arrow's columns of the same types become.

use parquet::basic::{LogicalType, TimeUnit};
use parquet::record::Field;
use parquet::schema::types::Type;
use qf_pipeline::json;
use qf_pipeline::shard::arrow::{iso_date, iso_time, iso_timestamp, Unit};
use serde_json::{Map, Number, Value};

/// A column that hub sets of tar shards have: the JSON beside image and text.
const JSON: &str = "json";

/// The `.json` member of further columns. A column `json` gives its own fields, unless another column has
/// their name.
pub(super) fn json_of(mut columns: Map<String, Value>) -> Option<Vec<u8>> {
    let fields = match columns.get(JSON) {
        Some(Value::Object(fields)) => Some(fields.clone()),
        Some(Value::String(text)) => json::parse(text.as_bytes()).ok(),
        _ => None,
    };
    if let Some(fields) = fields {
        columns.remove(JSON);
        for (name, value) in fields {
            columns.entry(name).or_insert(value);
        }
    }
    (!columns.is_empty()).then(|| Value::Object(columns).to_string().into_bytes())
}

/// A field as JSON, given its type in the schema. Bytes within structs are left out, elsewhere they are null,
/// and so are `NaN` and infinite numbers.
pub(super) fn value_of(field: &Field, schema: Option<&Type>) -> Value {
    let float = |value: f64| Number::from_f64(value).map_or(Value::Null, Value::Number);
    let logical = || schema.and_then(|schema| schema.get_basic_info().logical_type_ref());
    match field {
        Field::Null | Field::Bytes(_) => Value::Null,
        Field::Bool(value) => Value::Bool(*value),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => match logical() {
            Some(LogicalType::Timestamp(kind)) if is_nanoseconds(&kind.unit) => {
                or_count(timestamp(*value, Unit::Nanosecond, schema), *value)
            }
            Some(LogicalType::Time(kind)) if is_nanoseconds(&kind.unit) => {
                or_count(iso_time(*value, Unit::Nanosecond), *value)
            }
            _ => (*value).into(),
        },
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float16(value) => shortest(value.to_f32()),
        Field::Float(value) => shortest(*value),
        Field::Double(value) => float(*value),
        Field::Date(days) => or_count(iso_date(i64::from(*days)), i64::from(*days)),
        Field::TimeMillis(count) => {
            let count = i64::from(*count);
            or_count(iso_time(count, Unit::Millisecond), count)
        }
        Field::TimeMicros(count) => or_count(iso_time(*count, Unit::Microsecond), *count),
        Field::TimestampMillis(count) => {
            or_count(timestamp(*count, Unit::Millisecond, schema), *count)
        }
        Field::TimestampMicros(count) => {
            or_count(timestamp(*count, Unit::Microsecond, schema), *count)
        }
        Field::Decimal(_) => Value::String(field.to_string()),
        Field::Str(text) => Value::String(text.clone()),
        Field::Group(group) => {
            let of_name = |name: &str| {
                let mut children = schema
                    .filter(|schema| schema.is_group())?
                    .get_fields()
                    .iter();
                let child = children.find(|child| child.name() == name)?;
                Some(child.as_ref())
            };
            group
                .get_column_iter()
                .filter(|(_, field)| !matches!(field, Field::Bytes(_)))
                .map(|(name, field)| (name.clone(), value_of(field, of_name(name))))
                .collect()
        }
        Field::ListInternal(list) => {
            let element = schema.and_then(element_of);
            let elements = list.elements().iter();
            elements.map(|field| value_of(field, element)).collect()
        }
        Field::MapInternal(map) => {
            let entry = |(key, value): &(Field, Field)| {
                let key = match key {
                    Field::Str(key) => key.clone(),
                    key => value_of(key, None).to_string(),
                };
                (key, value_of(value, None))
            };
            Value::Object(map.entries().iter().map(entry).collect())
        }
    }
}

/// As it is written: 0.3, not 0.30000001192092896.
fn shortest(value: f32) -> Value {
    let text = value.to_string();
    let number = text.parse().ok().and_then(Number::from_f64);
    number.map_or(Value::Null, Value::Number)
}

fn is_nanoseconds(unit: &TimeUnit) -> bool {
    matches!(unit, TimeUnit::NANOS)
}

fn timestamp(count: i64, unit: Unit, schema: Option<&Type>) -> Option<String> {
    let logical = schema.and_then(|schema| schema.get_basic_info().logical_type_ref());
    let has_zone =
        matches!(logical, Some(LogicalType::Timestamp(kind)) if kind.is_adjusted_to_u_t_c);
    iso_timestamp(count, unit, has_zone)
}

/// The number that is stored, where no calendar has the date or time.
fn or_count(iso: Option<String>, count: i64) -> Value {
    iso.map_or_else(|| count.into(), Value::String)
}

/// The type of a list's elements: below the repeated group, where there is one.
fn element_of(list: &Type) -> Option<&Type> {
    let repeated = list.is_group().then(|| list.get_fields().first())??;
    match repeated.is_group() && repeated.get_fields().len() == 1 {
        true => repeated
            .get_fields()
            .first()
            .map(|element| element.as_ref()),
        false => Some(repeated.as_ref()),
    }
}

/// The extension of the member that a column of bytes becomes: its name, with `_` for what an extension cannot
/// have.
pub(super) fn member_name(column: &str) -> String {
    let plain = |c: char| match c {
        '/' | '\\' | ' ' => '_',
        c if c.is_control() => '_',
        c => c,
    };
    column.to_lowercase().chars().map(plain).collect()
}
