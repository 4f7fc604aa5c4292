//! From the values of a pickle to the tensors of a state dict.

use std::collections::{BTreeMap, HashMap};

use tch::Kind;

use super::machine::{Container, Machine, Text, Value};
use crate::tensor_file::contents::{Contents, Entry};

/// Where checkpoints keep their state dict, beside optimiser, epoch and configuration.
const STATE_DICT_KEYS: [&str; 4] = ["model", "state_dict", "module", "model_state_dict"];

/// Dimensions of a tensor; torch's own limit.
const MAX_DIMENSIONS: usize = 64;

/// Bytes of a tensor's name.
const MAX_NAME_BYTES: usize = 1024;

/// A parameter around a tensor, and no more.
const MAX_WRAPPERS: usize = 4;

/// A run of numbers in the file, which tensors share.
pub(super) struct Storage {
    pub(super) key: StorageKey,
    pub(super) kind: Kind,
}

/// A storage's name, or a part of it (old layout only), in elements.
#[derive(Clone, Copy)]
pub(super) enum StorageKey {
    Whole(Text),
    View { of: Text, first: u64, count: u64 },
}

impl StorageKey {
    pub(super) fn text(self) -> Text {
        match self {
            StorageKey::Whole(text) | StorageKey::View { of: text, .. } => text,
        }
    }
}

/// The state dict in `root`: the dict itself, or the one that a checkpoint keeps as `model`.
///
/// `locate` gives a storage's first byte and its length.
pub(super) fn contents(
    machine: &Machine<'_>,
    root: Value,
    locate: impl Fn(&Storage) -> Result<(u64, u64), String>,
) -> Result<Contents, String> {
    let Some(Container::Dict(outer)) = machine.container(root) else {
        return Err(format!(
            "holds {}, no state dict; in Python, torch.save the model's state_dict()",
            describe(machine, root)
        ));
    };
    let inner = STATE_DICT_KEYS.iter().find_map(|key| {
        let is_key =
            |value: Value| matches!(value, Value::Text(text) if machine.text(text) == *key);
        let (_, value) = outer.iter().rev().find(|(name, _)| is_key(*name))?;
        match machine.container(*value) {
            Some(Container::Dict(entries)) => Some(entries),
            _ => None,
        }
    });
    let mut entries = BTreeMap::new();
    let mut others = BTreeMap::new();
    for &(name, value) in inner.unwrap_or(outer) {
        let Value::Text(name) = name else {
            return Err(format!("{} names a tensor", describe(machine, name)));
        };
        let name = machine.text(name);
        if name.len() > MAX_NAME_BYTES {
            return Err(format!("a name of {} bytes", name.len()));
        }
        match tensor(machine, value) {
            Ok(Some((storage, offset, shape, strides))) => {
                let (start, bytes) =
                    locate(&storage).map_err(|message| format!("tensor `{name}`: {message}"))?;
                let skipped = offset
                    .checked_mul(storage.kind.elt_size_in_bytes() as u64)
                    .filter(|&skipped| skipped <= bytes)
                    .ok_or_else(|| format!("tensor `{name}` begins beyond its storage"))?;
                let entry = Entry::checked(
                    storage.kind,
                    shape,
                    strides,
                    start + skipped,
                    bytes - skipped,
                )
                .map_err(|message| format!("tensor `{name}`: {message}"))?;
                others.remove(name);
                entries.insert(name.to_owned(), entry);
            }
            Ok(None) => {
                entries.remove(name);
                others.insert(name.to_owned(), describe(machine, value));
            }
            Err(message) => return Err(format!("tensor `{name}`: {message}")),
        }
    }
    Ok(Contents {
        entries,
        others,
        metadata: BTreeMap::new(),
    })
}

/// The element type of every storage that the pickles refer to, by the storage's name.
pub(super) fn storage_kinds<'a>(machine: &Machine<'a>) -> HashMap<&'a str, Kind> {
    let referred = machine.containers().iter().filter_map(|container| {
        let Container::Persistent(id) = container else {
            return None;
        };
        let storage = storage(machine, *id).ok()?;
        Some((machine.text(storage.key.text()), storage.kind))
    });
    referred.collect()
}

type Parts = (Storage, u64, Vec<i64>, Vec<i64>);

/// Storage, first element, shape and strides of a tensor; `None` for what is none.
fn tensor(machine: &Machine<'_>, mut value: Value) -> Result<Option<Parts>, String> {
    for _ in 0..MAX_WRAPPERS {
        let Some(Container::Call {
            function: Value::Global(module, name),
            arguments,
        }) = machine.container(value)
        else {
            return Ok(None);
        };
        if machine.text(*module) != "torch._utils" {
            return Ok(None);
        }
        let arguments = machine.items(*arguments).unwrap_or_default();
        match (machine.text(*name), arguments) {
            ("_rebuild_parameter" | "_rebuild_parameter_with_state", [data, ..]) => value = *data,
            (
                "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3",
                [id, offset, shape, strides, rest @ ..],
            ) => {
                let Some(Container::Persistent(id)) = machine.container(*id) else {
                    return Err("its storage is not in the file".to_owned());
                };
                let mut storage = storage(machine, *id)?;
                if machine.text(*name) == "_rebuild_tensor_v3" {
                    // Its storage is one of bytes; the element type comes with the tensor.
                    storage.kind = rest
                        .get(2)
                        .and_then(|&dtype| dtype_kind(machine, dtype))
                        .ok_or("its element type is not supported")?;
                }
                let offset = machine
                    .int(*offset)
                    .and_then(|offset| u64::try_from(offset).ok());
                let (Some(offset), Some(shape), Some(strides)) =
                    (offset, sizes(machine, *shape), sizes(machine, *strides))
                else {
                    return Err("its shape is not given by numbers".to_owned());
                };
                return Ok(Some((storage, offset, shape, strides)));
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}

fn sizes(machine: &Machine<'_>, value: Value) -> Option<Vec<i64>> {
    let items = machine.items(value)?;
    if items.len() > MAX_DIMENSIONS {
        return None;
    }
    items.iter().map(|&item| machine.int(item)).collect()
}

/// `("storage", type, key, device, elements[, view])`, as `torch.save` refers to storages.
fn storage(machine: &Machine<'_>, id: Value) -> Result<Storage, String> {
    let unknown = || "refers to its numbers as torch.save does not".to_owned();
    let Some([Value::Text(tag), storage_type, Value::Text(key), _, _, rest @ ..]) =
        machine.items(id)
    else {
        return Err(unknown());
    };
    if machine.text(*tag) != "storage" {
        return Err(unknown());
    }
    let Value::Global(_, name) = storage_type else {
        return Err(unknown());
    };
    let name = machine.text(*name);
    let kind =
        storage_kind(name).ok_or_else(|| format!("its numbers are in a {name}, not supported"))?;
    let key = match rest.first() {
        None | Some(Value::None) => StorageKey::Whole(*key),
        Some(&view) => {
            let Some(&[_, first, count]) = machine.items(view) else {
                return Err(unknown());
            };
            let number = |value| machine.int(value).and_then(|int| u64::try_from(int).ok());
            let (Some(first), Some(count)) = (number(first), number(count)) else {
                return Err(unknown());
            };
            StorageKey::View {
                of: *key,
                first,
                count,
            }
        }
    };
    Ok(Storage { key, kind })
}

fn storage_kind(class: &str) -> Option<Kind> {
    Some(match class {
        "FloatStorage" => Kind::Float,
        "HalfStorage" => Kind::Half,
        "BFloat16Storage" => Kind::BFloat16,
        "DoubleStorage" => Kind::Double,
        "LongStorage" => Kind::Int64,
        "IntStorage" => Kind::Int,
        "ShortStorage" => Kind::Int16,
        "CharStorage" => Kind::Int8,
        "ByteStorage" | "UntypedStorage" => Kind::Uint8,
        "BoolStorage" => Kind::Bool,
        _ => return None,
    })
}

fn dtype_kind(machine: &Machine<'_>, value: Value) -> Option<Kind> {
    let Value::Global(module, name) = value else {
        return None;
    };
    if machine.text(module) != "torch" {
        return None;
    }
    Some(match machine.text(name) {
        "float32" => Kind::Float,
        "float16" => Kind::Half,
        "bfloat16" => Kind::BFloat16,
        "float64" => Kind::Double,
        "int64" => Kind::Int64,
        "int32" => Kind::Int,
        "int16" => Kind::Int16,
        "int8" => Kind::Int8,
        "uint8" => Kind::Uint8,
        "bool" => Kind::Bool,
        _ => return None,
    })
}

/// What a value is, for an error.
fn describe(machine: &Machine<'_>, value: Value) -> String {
    let global = |module, name| format!("{}.{}", machine.text(module), machine.text(name));
    match value {
        Value::None => "None".to_owned(),
        Value::Bool(_) => "a flag".to_owned(),
        Value::Int(_) | Value::Plain => "a number or bytes".to_owned(),
        Value::Text(_) => "text".to_owned(),
        Value::Global(module, name) => {
            format!("`{}`, which is not called", global(module, name))
        }
        Value::Node(_) => match machine.container(value) {
            Some(Container::Dict(_)) => "a dict".to_owned(),
            Some(Container::Items(_)) => "a list".to_owned(),
            Some(Container::Call {
                function: Value::Global(module, name),
                ..
            }) => format!(
                "a result of `{}`, which is not called",
                global(*module, *name)
            ),
            _ => "an object".to_owned(),
        },
    }
}
