//! Files of `torch.save`, without running what is in them.
//!
//! A pickle is a program for a stack machine that may name any Python function and call it. The
//! machine here ([`machine`]) knows the few that put tensors together and calls nothing: whatever
//! else a checkpoint holds (optimiser, arguments, configuration) becomes an opaque value, which is
//! an error only where a tensor should stand.
//!
//! Two layouts: since PyTorch 1.6 a ZIP archive, `data.pkl` and one record per storage, as it is in
//! memory; before, pickles one after another and the storages behind them
//! (`torch/serialization.py`, `_save` and `_legacy_save`).

mod machine;
mod opcodes;
mod state;

use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt;

use zip::{CompressionMethod, ZipArchive};

use super::contents::Contents;
use machine::Machine;
use state::{Storage, StorageKey};

/// Bytes of a pickle that are looked at: names and shapes, without the numbers. Those of published
/// models have less than one million.
const MAX_PICKLE_BYTES: u64 = 16 << 20;

/// Records of an archive; one per storage.
const MAX_RECORDS: usize = 1 << 20;

/// What a file of the old layout begins with: the pickle of a magic number.
const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// The version of the old layout.
const LEGACY_PROTOCOL: i64 = 1001;

pub(super) fn is_zip(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04")
}

/// Whether it is a pickle, of a protocol that PyTorch has written. The length at the start of a
/// safetensors file can look like one; a brace follows that.
pub(super) fn is_legacy(start: &[u8]) -> bool {
    matches!(start, [0x80, 2..=5, ..]) && start.get(8) != Some(&b'{')
}

/// The tensors of an archive; what is wrong as text.
pub(super) fn read_zip(file: &File) -> Result<Contents, String> {
    let unreadable =
        |error: &dyn std::fmt::Display| format!("no archive of torch.save, or cut short: {error}");
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| unreadable(&error))?;
    if archive.len() > MAX_RECORDS {
        return Err(format!(
            "{} records; at most {MAX_RECORDS} are read",
            archive.len()
        ));
    }
    let mut records = std::collections::HashMap::new();
    for number in 0..archive.len() {
        let record = archive
            .by_index_raw(number)
            .map_err(|error| unreadable(&error))?;
        let name = record
            .name()
            .map_err(|error| unreadable(&error))?
            .into_owned();
        let Some(start) = record.data_start() else {
            return Err(unreadable(&format!("`{name}` has no place")));
        };
        let is_plain = record.compression() == CompressionMethod::Stored && !record.encrypted();
        let extent = (is_plain && record.size() == record.compressed_size())
            .then_some((start, record.size()));
        records.insert(name, extent);
    }
    // All records lie in one folder, named like the file when it was written.
    let Some(folder) = records
        .keys()
        .find_map(|name| name.strip_suffix("data.pkl"))
    else {
        return Err("an archive without data.pkl is not of torch.save".to_owned());
    };
    let folder = folder.to_owned();
    let read = |name: &str| -> Result<Option<Vec<u8>>, String> {
        match records.get(&format!("{folder}{name}")) {
            None => Ok(None),
            Some(Some((start, size))) if *size <= MAX_PICKLE_BYTES => {
                let mut bytes = vec![0u8; checked_size(file, *start, *size)?];
                file.read_exact_at(&mut bytes, *start)
                    .map_err(|error| unreadable(&error))?;
                Ok(Some(bytes))
            }
            Some(Some((_, size))) => Err(format!(
                "{name} has {size} bytes; at most {MAX_PICKLE_BYTES} are read"
            )),
            Some(None) => Err(format!("{name} is compressed, which torch.save never does")),
        }
    };
    if records.contains_key(&format!("{folder}constants.pkl")) {
        return Err(
            "a TorchScript archive (torch.jit.save), not weights; load it in Python and \
             torch.save its state_dict()"
                .to_owned(),
        );
    }
    if let Some(order) = read("byteorder")? {
        if order != b"little" {
            return Err("written on a big-endian machine, not supported".to_owned());
        }
    }
    let pickle = read("data.pkl")?.unwrap_or_default();
    let mut machine = Machine::new(&pickle);
    let root = machine.run()?;
    state::contents(&machine, root, |storage: &Storage| {
        let key = machine.text(storage.key.text());
        match records.get(&format!("{folder}data/{key}")) {
            Some(Some((start, size))) => {
                checked_size(file, *start, *size)?;
                Ok((*start, *size))
            }
            Some(None) => Err(format!("storage {key} is compressed")),
            None => Err(format!("storage {key} is not in the file")),
        }
    })
}

/// The size of a record, if the file has so many bytes there.
fn checked_size(file: &File, start: u64, size: u64) -> Result<usize, String> {
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    match start.checked_add(size) {
        Some(end) if end <= length => Ok(size as usize),
        _ => Err("cut short: a record ends beyond the file".to_owned()),
    }
}

/// The tensors of a file of `length` bytes in the layout before PyTorch 1.6.
pub(super) fn read_legacy(file: &File, length: u64) -> Result<Contents, String> {
    let mut bytes = vec![0u8; length.min(MAX_PICKLE_BYTES) as usize];
    file.read_exact_at(&mut bytes, 0)
        .map_err(|error| error.to_string())?;
    if !bytes.starts_with(LEGACY_MAGIC) {
        return Err(
            "a pickle, but not of torch.save; save it with torch.save, or as safetensors"
                .to_owned(),
        );
    }
    let mut machine = Machine::new(&bytes);
    let _magic = machine.run()?;
    let protocol = machine.run()?;
    if machine.int(protocol) != Some(LEGACY_PROTOCOL) {
        return Err(format!("torch.save's layout is not {LEGACY_PROTOCOL}"));
    }
    let system = machine.run()?;
    if machine.flag_in(system, "little_endian") == Some(false) {
        return Err("written on a big-endian machine, not supported".to_owned());
    }
    let root = machine.run()?;
    let keys = machine.run()?;
    let places = legacy_storages(file, length, &machine, keys)?;
    state::contents(&machine, root, |storage: &Storage| {
        let key = storage.key;
        let (start, elements) = places
            .get(machine.text(key.text()))
            .copied()
            .ok_or_else(|| format!("storage {} is not in the file", machine.text(key.text())))?;
        let size = storage.kind.elt_size_in_bytes() as u64;
        let bytes = elements
            .checked_mul(size)
            .filter(|&bytes| bytes <= length - start)
            .ok_or_else(|| {
                format!(
                    "cut short: storage {} ends beyond the file",
                    machine.text(key.text())
                )
            })?;
        match key {
            StorageKey::Whole(_) => Ok((start, bytes)),
            // A part of another storage, in its elements.
            StorageKey::View { first, count, .. } => {
                let (first, count) = (first.checked_mul(size), count.checked_mul(size));
                match (first, count) {
                    (Some(first), Some(count))
                        if first.checked_add(count).is_some_and(|end| end <= bytes) =>
                    {
                        Ok((start + first, count))
                    }
                    _ => Err("a view lies outside its storage".to_owned()),
                }
            }
        }
    })
}

/// Where the storages of a file of the old layout lie: each behind its number of elements.
fn legacy_storages(
    file: &File,
    length: u64,
    machine: &Machine<'_>,
    keys: machine::Value,
) -> Result<std::collections::HashMap<String, (u64, u64)>, String> {
    let cut = || "cut short: storages are missing at its end".to_owned();
    let sizes = state::storage_kinds(machine);
    let keys = machine
        .items(keys)
        .ok_or("the storages are not listed as torch.save does")?;
    let mut offset = machine.position() as u64;
    let mut places = std::collections::HashMap::new();
    for &key in keys {
        let machine::Value::Text(key) = key else {
            return Err("a storage has no name".to_owned());
        };
        let key = machine.text(key);
        let mut count = [0u8; 8];
        file.read_exact_at(&mut count, offset).map_err(|_| cut())?;
        let elements = u64::from_le_bytes(count);
        let kind = sizes
            .get(key)
            .ok_or_else(|| format!("no tensor says of what type storage {key} is"))?;
        let start = offset + 8;
        let end = elements
            .checked_mul(kind.elt_size_in_bytes() as u64)
            .and_then(|bytes| start.checked_add(bytes))
            .filter(|&end| end <= length)
            .ok_or_else(cut)?;
        places.insert(key.to_owned(), (start, elements));
        offset = end;
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use crate::error::ModelError;
    use crate::tensor_file::WeightsFile;
    use tch::Tensor;
    use zip::write::SimpleFileOptions;

    /// A pickle by hand; protocol 2.
    fn pickle(body: &[&[u8]]) -> Vec<u8> {
        [b"\x80\x02", body.concat().as_slice(), b"."].concat()
    }

    fn text(text: &str) -> Vec<u8> {
        let mut bytes = vec![b'X'];
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes
    }

    /// `{"w": tensor}` of the given storage and extent, the storage's key "0".
    fn one_tensor(storage: &str, offset: u8, size: &[u8], stride: &[u8]) -> Vec<u8> {
        let numbers = |numbers: &[u8]| {
            let items: Vec<u8> = numbers.iter().flat_map(|&n| [b'K', n]).collect();
            [b"(", items.as_slice(), b"t"].concat()
        };
        pickle(&[
            b"}",
            &text("w"),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            &text("storage"),
            format!("ctorch\n{storage}\n").as_bytes(),
            &text("0"),
            &text("cpu"),
            b"K\x04tQ",
            &[b'K', offset],
            &numbers(size),
            &numbers(stride),
            b"\x89ccollections\nOrderedDict\n)RtRs",
        ])
    }

    fn archive(path: &Path, records: &[(&str, &[u8])]) {
        let mut zip = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
        let stored =
            SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        for (name, bytes) in records {
            zip.start_file(*name, stored).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
    }

    fn floats() -> Vec<u8> {
        [1.0f32, 2.0, 3.0, 4.0]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect()
    }

    fn open(pickle: &[u8]) -> Result<WeightsFile, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pth");
        archive(&path, &[("a/data.pkl", pickle), ("a/data/0", &floats())]);
        WeightsFile::open(&path)
    }

    fn fails(pickle: &[u8], word: &str) {
        let error = open(pickle).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }

    #[test]
    fn strided_and_offset_tensors() {
        let check = |offset, size: &[u8], stride: &[u8], expected: Tensor| {
            let file = open(&one_tensor("FloatStorage", offset, size, stride)).unwrap();
            assert_eq!(file.tensor("w").unwrap(), expected);
        };
        check(
            0,
            &[2, 2],
            &[2, 1],
            Tensor::from_slice2(&[[1.0f32, 2.0], [3.0, 4.0]]),
        );
        check(
            0,
            &[2, 2],
            &[1, 2],
            Tensor::from_slice2(&[[1.0f32, 3.0], [2.0, 4.0]]),
        );
        check(3, &[], &[], Tensor::from(4.0f32));
        check(1, &[2], &[2], Tensor::from_slice(&[2.0f32, 4.0]));
        check(
            4,
            &[0, 3],
            &[3, 1],
            Tensor::from_slice::<f32>(&[]).reshape([0, 3]),
        );
    }

    #[test]
    fn extents_beyond_the_storage() {
        for (offset, size, stride) in [
            (0, &[5][..], &[1][..]),
            (1, &[4], &[1]),
            (5, &[1], &[1]),
            (0, &[2, 2], &[3, 1]),
            (0, &[255, 255], &[0, 0]),
            (0, &[1], &[1, 1]),
        ] {
            fails(
                &one_tensor("FloatStorage", offset, size, stride),
                "tensor `w`",
            );
        }
        fails(
            &one_tensor("DoubleStorage", 0, &[4], &[1]),
            "does not lie in",
        );
        fails(
            &one_tensor("QInt8Storage", 0, &[4], &[1]),
            "QInt8Storage, not supported",
        );
    }

    #[test]
    fn nothing_is_called() {
        let call = b"cos\nsystem\n(X\x0a\0\0\0touch /tmptR";
        fails(&pickle(&[call]), "`os.system`, which is not called");
        let file = open(&pickle(&[b"}", &text("w"), call, b"s"])).unwrap();
        let others: Vec<_> = file.others().collect();
        assert_eq!(others.len(), 1);
        assert!(others[0].1.contains("os.system"), "{others:?}");
        assert!(!file.contains("w"));
        // Beside the model, objects of any class do no harm.
        let model = &one_tensor("FloatStorage", 0, &[4], &[1])[2..];
        let model = &model[..model.len() - 1];
        let config = b"cargparse\nNamespace\n)\x81}X\x01\0\0\0aK\x01sb";
        let file = open(&pickle(&[
            b"}(",
            &text("model"),
            model,
            &text("config"),
            config,
            &text("epoch"),
            b"K\x03u",
        ]))
        .unwrap();
        assert!(file.names().eq(["w"]) && file.others().next().is_none());
    }

    #[test]
    fn broken_pickles() {
        for (body, word) in [
            (&b""[..], "nothing on the stack"),
            (b"]0", "nothing on the stack"),
            (b"(t0R", "nothing on the stack"),
            (b"t", "no mark"),
            (b"h\x05", "nothing is remembered"),
            (b"X\xff\xff\xff\xffabc", "it ends"),
            (b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff", "it ends"),
            (b"cos", "a line without an end"),
            (b"\xff", "instruction 0xff"),
            (b"}(K\x01u", "a key without a value"),
            (b"NK\x01a", "what is no list"),
            (b"}K\x01K\x02s", "names a tensor"),
            (b"]", "no state dict"),
        ] {
            fails(&pickle(&[body]), word);
        }
        fails(b"\x80\x09N.", "protocol 9");
        let whole = one_tensor("FloatStorage", 0, &[4], &[1]);
        for length in 0..whole.len() {
            assert!(open(&whole[..length]).is_err(), "{length}");
        }
        // Any byte changed: an error or a tensor, never a panic.
        for at in 0..whole.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                if let Ok(file) = open(&bytes) {
                    file.names().for_each(|name| drop(file.tensor(name)));
                }
            }
        }
    }

    #[test]
    fn bombs() {
        // A million levels: neither reading nor dropping recurses.
        let deep = pickle(&[&b"]".repeat(1 << 20), &b"a".repeat((1 << 20) - 1)]);
        fails(&deep, "no state dict");
        fails(&pickle(&[b"N", &b"\x85".repeat(1 << 20)]), "no state dict");
        // One pair list, remembered, and as many dicts of it as there is room for.
        let pair = b"K\x01K\x02\x86";
        let list = [&b"]("[..], &pair.repeat(1000), b"eq\x01"].concat();
        let dict = b"ccollections\nOrderedDict\nh\x01\x85R0";
        fails(
            &pickle(&[&list, &dict.repeat(1000), b"N"]),
            "copies more than it holds",
        );
        // A list that doubles by holding itself twice costs two entries each time.
        let double = b"]q\x01(h\x00h\x00eq\x00";
        fails(
            &pickle(&[b"]q\x00", &double.repeat(10_000)]),
            "no state dict",
        );
        // A memo number far off makes no table of that size.
        fails(&pickle(&[b"Nr\xff\xff\xff\xff"]), "no state dict");
    }

    #[test]
    fn archives_that_are_not_of_torch_save() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pth");
        let good = one_tensor("FloatStorage", 0, &[4], &[1]);
        let check = |records: &[(&str, &[u8])], word: &str| {
            archive(&path, records);
            let error = WeightsFile::open(&path).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        };
        check(&[("a/x", b"")], "without data.pkl");
        check(&[("a/data.pkl", &good)], "storage 0 is not in the file");
        check(
            &[("a/data.pkl", &good), ("a/constants.pkl", b"")],
            "TorchScript",
        );
        check(
            &[("a/data.pkl", &good), ("a/byteorder", b"big")],
            "big-endian",
        );
        check(
            &[("a/data.pkl", &good), ("a/data/0", b"1234")],
            "does not lie in 4 bytes",
        );
        archive(&path, &[("a/data.pkl", &good), ("a/data/0", &floats())]);
        let bytes = std::fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(WeightsFile::open(&path).is_err(), "{length}");
        }
    }

    /// The layout before 1.6 of the same tensor.
    fn legacy(view: &[u8]) -> Vec<u8> {
        let dict = one_tensor("FloatStorage", 0, &[2], &[1]);
        // The reference to the storage has one item more, a view or None.
        let at = dict.windows(4).position(|w| w == b"K\x04tQ").unwrap() + 2;
        let dict = [&dict[..at], view, &dict[at..]].concat();
        [
            super::LEGACY_MAGIC,
            &pickle(&[b"M\xe9\x03"]),
            &pickle(&[b"}", &text("little_endian"), b"\x88s"]),
            &dict,
            &pickle(&[b"](", &text("0"), b"e"]),
            &4u64.to_le_bytes(),
            &floats(),
        ]
        .concat()
    }

    #[test]
    fn the_layout_before_archives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        let write = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            WeightsFile::open(&path)
        };
        let first = write(&legacy(b"N")).unwrap().tensor("w").unwrap();
        assert_eq!(first, Tensor::from_slice(&[1.0f32, 2.0]));
        let view = [&b"("[..], &text("v"), b"K\x01K\x03t"].concat();
        let second = write(&legacy(&view)).unwrap().tensor("w").unwrap();
        assert_eq!(second, Tensor::from_slice(&[2.0f32, 3.0]));
        for beyond in [
            &b"K\x02K\x03t"[..],
            b"K\x03K\x01t",
            b"K\x01J\xff\xff\xff\xfft",
        ] {
            let view = [&b"("[..], &text("v"), beyond].concat();
            assert!(write(&legacy(&view)).is_err());
        }
        let whole = legacy(b"N");
        for length in 0..whole.len() {
            assert!(write(&whole[..length]).is_err(), "{length}");
        }
        let error = write(b"\x80\x02}q\x00.").unwrap_err().to_string();
        assert!(error.contains("not of torch.save"), "{error}");
    }
}
