//! `arrow-ipc` writes, we read; we write, `arrow-ipc` reads; and both read the golden files of the
//! Arrow project alike.

use std::io::Cursor;
use std::path::PathBuf;

use arrow_array::builder::{
    BinaryViewBuilder, LargeListBuilder, ListBuilder, StringBuilder, StringViewBuilder,
};
use arrow_array::cast::AsArray;
use arrow_array::types::{Int16Type, Int32Type, Int64Type, Int8Type, UInt16Type};
use arrow_array::{
    new_empty_array, Array, ArrayRef, BinaryArray, BooleanArray, DictionaryArray,
    FixedSizeBinaryArray, FixedSizeListArray, Int32Array, LargeBinaryArray, LargeStringArray,
    ListArray, ListViewArray, MapArray, NullArray, PrimitiveArray, RecordBatch, RunArray,
    StringArray, StringViewArray, StructArray, UInt8Array, UnionArray,
};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_ipc::writer::{DictionaryHandling, FileWriter, IpcWriteOptions, StreamWriter};
use arrow_ipc::{CompressionType, MetadataVersion};
use arrow_schema::{DataType, Field, UnionFields};

use super::*;
use crate::shard::arrow::batch::{BatchReader, Selected};
use crate::shard::arrow::shape::{Content, Shape};
use crate::shard::arrow::{ArrowShardWriter, CaptionType};
use crate::test_data;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Container {
    Stream,
    File,
}

/// One way to write the same batches.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Variant {
    pub(super) compression: Option<CompressionType>,
    /// Metadata version 4 and no continuation markers, as before Arrow 0.15.
    pub(super) legacy: bool,
    pub(super) delta_dictionaries: bool,
}

pub(super) fn write_oracle(
    batches: &[RecordBatch],
    container: Container,
    variant: Variant,
) -> Vec<u8> {
    let version = if variant.legacy {
        MetadataVersion::V4
    } else {
        MetadataVersion::V5
    };
    let handling = if variant.delta_dictionaries {
        DictionaryHandling::Delta
    } else {
        DictionaryHandling::Resend
    };
    let options = IpcWriteOptions::try_new(8, variant.legacy, version)
        .and_then(|options| options.try_with_compression(variant.compression))
        .unwrap()
        .with_dictionary_handling(handling);
    let schema = batches[0].schema();
    match container {
        Container::Stream => {
            let mut writer =
                StreamWriter::try_new_with_options(Vec::new(), &schema, options).unwrap();
            batches
                .iter()
                .for_each(|batch| writer.write(batch).unwrap());
            writer.into_inner().unwrap()
        }
        Container::File => {
            let mut writer =
                FileWriter::try_new_with_options(Vec::new(), &schema, options).unwrap();
            batches
                .iter()
                .for_each(|batch| writer.write(batch).unwrap());
            writer.into_inner().unwrap()
        }
    }
}

/// Every way to write, with its name.
fn variants() -> Vec<(Container, Variant)> {
    let mut all = Vec::new();
    for container in [Container::Stream, Container::File] {
        for compression in [
            None,
            Some(CompressionType::LZ4_FRAME),
            Some(CompressionType::ZSTD),
        ] {
            all.push((
                container,
                Variant {
                    compression,
                    ..Default::default()
                },
            ));
        }
        all.push((
            container,
            Variant {
                legacy: true,
                ..Default::default()
            },
        ));
    }
    all
}

/// The values of a row without the nulls of a list; `None` if the row is null.
type Row = Option<Vec<Vec<u8>>>;

fn oracle_row(array: &dyn Array, row: usize) -> Row {
    if array.is_null(row) {
        return None;
    }
    let one = |value: &[u8]| Some(vec![value.to_vec()]);
    match array.data_type() {
        DataType::Binary => one(array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => one(array.as_binary::<i64>().value(row)),
        DataType::Utf8 => one(array.as_string::<i32>().value(row).as_bytes()),
        DataType::LargeUtf8 => one(array.as_string::<i64>().value(row).as_bytes()),
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary();
            oracle_row(dictionary.values(), dictionary.normalized_keys()[row])
        }
        DataType::List(_) => Some(non_null(&array.as_list::<i32>().value(row))),
        DataType::LargeList(_) => Some(non_null(&array.as_list::<i64>().value(row))),
        DataType::FixedSizeList(_, _) => Some(non_null(&array.as_fixed_size_list().value(row))),
        DataType::BinaryView => one(array.as_binary_view().value(row)),
        DataType::Utf8View => one(array.as_string_view().value(row).as_bytes()),
        DataType::RunEndEncoded(_, _) => {
            let runs = array.as_any();
            if let Some(runs) = runs.downcast_ref::<RunArray<Int16Type>>() {
                oracle_row(runs.values(), runs.get_physical_index(row))
            } else if let Some(runs) = runs.downcast_ref::<RunArray<Int32Type>>() {
                oracle_row(runs.values(), runs.get_physical_index(row))
            } else {
                let runs = runs.downcast_ref::<RunArray<Int64Type>>().unwrap();
                oracle_row(runs.values(), runs.get_physical_index(row))
            }
        }
        other => panic!("no leaf: {other}"),
    }
}

fn non_null(values: &ArrayRef) -> Vec<Vec<u8>> {
    (0..values.len())
        .filter_map(|row| oracle_row(values, row))
        .flatten()
        .collect()
}

/// Columns whose values both can tell: leaves and lists of leaves.
fn is_comparable(data_type: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, Dictionary, FixedSizeList, LargeBinary, LargeList, LargeUtf8, List,
        RunEndEncoded, Utf8, Utf8View,
    };
    let is_leaf = |value: &DataType| {
        matches!(
            value,
            Binary | LargeBinary | Utf8 | LargeUtf8 | BinaryView | Utf8View
        )
    };
    match data_type {
        leaf if is_leaf(leaf) => true,
        Dictionary(_, value) => is_leaf(value),
        RunEndEncoded(_, values) => is_comparable(values.data_type()),
        List(child) | LargeList(child) | FixedSizeList(child, _) => {
            let is_list = matches!(
                child.data_type(),
                List(_) | LargeList(_) | FixedSizeList(_, _)
            );
            !is_list && is_comparable(child.data_type())
        }
        _ => false,
    }
}

/// Rows of every comparable column, by the oracle.
fn read_by_oracle(bytes: &[u8]) -> Result<Vec<Vec<Row>>, String> {
    let text = |error: arrow_schema::ArrowError| error.to_string();
    let batches: Vec<RecordBatch> = if bytes.starts_with(b"ARROW1") {
        FileReader::try_new(Cursor::new(bytes), None)
            .and_then(Iterator::collect)
            .map_err(text)?
    } else {
        StreamReader::try_new(Cursor::new(bytes), None)
            .and_then(Iterator::collect)
            .map_err(text)?
    };
    let Some(first) = batches.first() else {
        return Ok(Vec::new());
    };
    let comparable: Vec<usize> = (0..first.num_columns())
        .filter(|&index| is_comparable(first.column(index).data_type()))
        .collect();
    Ok(comparable
        .into_iter()
        .map(|index| {
            batches
                .iter()
                .flat_map(|batch| {
                    (0..batch.num_rows()).map(move |row| oracle_row(batch.column(index), row))
                })
                .collect()
        })
        .collect())
}

/// Rows of every comparable column, by us.
pub(super) fn read_by_us(bytes: &[u8]) -> Result<Vec<Vec<Row>>, String> {
    let mut selected_columns = 0;
    let mut batches = BatchReader::open(bytes, 64 << 20, |fields| {
        let selected: Vec<_> = fields
            .iter()
            .enumerate()
            .filter_map(|(field_index, field)| {
                let is_image = |shape: &Shape| shape.content(field) == Some(Content::Image);
                let shape = Shape::of(field).filter(|shape| !is_image(shape))?;
                Some(Selected { field_index, shape })
            })
            .collect();
        selected_columns = selected.len();
        Ok(selected)
    })
    .map_err(|error| error.to_string())?;
    let mut columns = vec![Vec::new(); selected_columns];
    let mut any = false;
    while let Some(batch) = batches.next_batch().map_err(|error| error.to_string())? {
        any = true;
        for (rows, column) in columns.iter_mut().zip(&batch.columns) {
            for row in 0..batch.rows {
                rows.push(
                    column
                        .values(row)
                        .map(|values| values.into_iter().map(<[u8]>::to_vec).collect()),
                );
            }
        }
    }
    Ok(if any { columns } else { Vec::new() })
}

fn check_alike(batches: &[RecordBatch], container: Container, variant: Variant) {
    let bytes = write_oracle(batches, container, variant);
    let name = format!("{container:?} {variant:?}");
    let expected = read_by_oracle(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    let got = read_by_us(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(got, expected, "{name}");
    assert!(expected.iter().all(|column| !column.is_empty()), "{name}");
}

/// A dense and a sparse union of `numbers` and 0, 1, 0, ...
fn unions(numbers: &Int32Array) -> [UnionArray; 2] {
    let rows = numbers.len();
    let ids = Int32Array::from_iter_values((0..rows as i32).map(|row| row % 2));
    let union_fields: UnionFields = [(0, "a"), (1, "b")]
        .map(|(id, name)| (id, Arc::new(Field::new(name, DataType::Int32, true))))
        .into_iter()
        .collect();
    let union = |offsets: Option<ScalarBuffer<i32>>| {
        let type_ids = ids.iter().map(|id| id.unwrap_or(0) as i8).collect();
        let children: Vec<ArrayRef> = vec![Arc::new(numbers.clone()), Arc::new(ids.clone())];
        UnionArray::try_new(union_fields.clone(), type_ids, offsets, children).unwrap()
    };
    [union(Some((0..rows as i32).collect())), union(None)]
}

/// Maps of one entry, from `numbers` to themselves.
fn maps(numbers: &Int32Array) -> MapArray {
    let entries = StructArray::from(vec![
        (
            Arc::new(Field::new("keys", DataType::Int32, false)),
            Arc::new(numbers.clone()) as ArrayRef,
        ),
        (
            Arc::new(Field::new("values", DataType::Int32, true)),
            Arc::new(numbers.clone()) as ArrayRef,
        ),
    ]);
    MapArray::new(
        Arc::new(Field::new("entries", entries.data_type().clone(), false)),
        OffsetBuffer::from_lengths((0..numbers.len()).map(|_| 1)),
        entries,
        None,
        false,
    )
}

/// Columns of every type that is read, between columns of types that are passed over.
fn every_type(random: &mut Random, rows: usize) -> RecordBatch {
    let mut words = |nullable: bool| -> Vec<Option<String>> {
        (0..rows)
            .map(|row| {
                let len = random.below(30);
                let word: String = (0..len)
                    .map(|_| char::from(b'a' + random.below(3) as u8))
                    .collect();
                (!nullable || row % 3 != 1).then_some(word)
            })
            .collect()
    };
    let plain = StringArray::from(words(false));
    let nullable = StringArray::from(words(true));
    let large = LargeStringArray::from(words(true));
    let by_byte: DictionaryArray<Int8Type> = words(true)
        .iter()
        .map(|word| word.as_ref().map(|word| &word[..word.len().min(2)]))
        .collect();
    let by_short: DictionaryArray<UInt16Type> =
        words(false).iter().map(|word| word.as_deref()).collect();
    let mut list = ListBuilder::new(StringBuilder::new());
    let mut large_list = LargeListBuilder::new(StringBuilder::new());
    for (index, word) in words(true).into_iter().enumerate() {
        let row = (index % 4 != 2).then(|| vec![word.clone(), None, word]);
        list.append_option(row.clone());
        large_list.append_option(row.filter(|_| index % 5 != 0));
    }
    // Incompressible: the writer stores these buffers raw.
    let noise: Vec<Vec<u8>> = (0..rows).map(|_| random.bytes(40)).collect();
    let binary = BinaryArray::from_iter_values(&noise);
    let large_binary: LargeBinaryArray = noise
        .iter()
        .enumerate()
        .map(|(row, bytes)| (row % 2 == 0).then_some(bytes))
        .collect();
    let numbers = Int32Array::from_iter_values(0..rows as i32);
    let pair = StructArray::from(vec![
        (
            Arc::new(Field::new("a", DataType::Int32, true)),
            Arc::new(numbers.clone()) as ArrayRef,
        ),
        (
            Arc::new(Field::new("b", DataType::Utf8, true)),
            Arc::new(nullable.clone()) as ArrayRef,
        ),
    ]);
    let dictionary_list = ListArray::new(
        Arc::new(Field::new("item", by_short.data_type().clone(), true)),
        OffsetBuffer::from_lengths((0..rows).map(|_| 1)),
        Arc::new(by_short.clone()),
        None,
    );
    let empty = StringArray::from_iter_values((0..rows).map(|_| ""));
    let triples = FixedSizeListArray::new(
        Arc::new(Field::new("item", DataType::Int32, true)),
        1,
        Arc::new(numbers.clone()),
        None,
    );
    let hashes = FixedSizeBinaryArray::try_from_iter(noise.iter()).unwrap();
    let [dense, sparse] = unions(&numbers);
    let map = maps(&numbers);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("number", Arc::new(numbers)),
        ("dense", Arc::new(dense)),
        ("plain", Arc::new(plain)),
        ("sparse", Arc::new(sparse)),
        ("pair", Arc::new(pair)),
        ("nullable", Arc::new(nullable)),
        ("null", Arc::new(NullArray::new(rows))),
        ("triples", Arc::new(triples)),
        ("large", Arc::new(large)),
        ("map", Arc::new(map)),
        ("flag", Arc::new(BooleanArray::from(vec![true; rows]))),
        ("by_byte", Arc::new(by_byte)),
        ("hashes", Arc::new(hashes)),
        ("list", Arc::new(list.finish())),
        ("by_short", Arc::new(by_short)),
        ("large_list", Arc::new(large_list.finish())),
        ("binary", Arc::new(binary)),
        ("dictionary_list", Arc::new(dictionary_list)),
        ("small", Arc::new(UInt8Array::from(vec![1; rows]))),
        ("large_binary", Arc::new(large_binary)),
        // A data buffer of no bytes: arrow2's reader panics on it in a compressed batch.
        ("empty", Arc::new(empty)),
    ];
    RecordBatch::try_from_iter_with_nullable(
        columns
            .into_iter()
            .map(|(name, column)| (name, column, true)),
    )
    .unwrap()
}

#[test]
fn every_type_in_every_container_and_compression() {
    let mut random = Random(1);
    let batch = every_type(&mut random, 50);
    let sliced = batch.slice(7, 21);
    let single = batch.slice(49, 1);
    for (container, variant) in variants() {
        check_alike(std::slice::from_ref(&batch), container, variant);
        check_alike(std::slice::from_ref(&sliced), container, variant);
        check_alike(std::slice::from_ref(&single), container, variant);
    }
}

/// Views (long and short, from several data buffers), run ends of every width, fixed-size lists, each
/// between columns that must still be found.
fn new_types(random: &mut Random, rows: usize) -> RecordBatch {
    let mut words = |most: usize| -> Vec<Option<String>> {
        (0..rows)
            .map(|row| {
                let word = "abc".repeat(random.below(most));
                (row % 5 != 3).then_some(word)
            })
            .collect()
    };
    let plain = || {
        Arc::new(StringArray::from_iter_values(
            (0..rows).map(|n| n.to_string()),
        ))
    };
    let mut views = StringViewBuilder::new().with_fixed_block_size(64);
    words(12)
        .iter()
        .for_each(|word| views.append_option(word.as_deref()));
    let mut binary = BinaryViewBuilder::new().with_fixed_block_size(128);
    words(40)
        .iter()
        .for_each(|word| binary.append_option(word.as_deref()));
    let mut list = ListBuilder::new(StringViewBuilder::new());
    for word in words(9) {
        list.append_option(word.map(|word| vec![Some(word.clone()), None, Some(word)]));
    }
    let five = StringViewArray::from_iter(words(20).into_iter().cycle().take(2 * rows));
    let fixed = FixedSizeListArray::new(
        Arc::new(Field::new("item", DataType::Utf8View, true)),
        2,
        Arc::new(five),
        None,
    );
    let keys = Int32Array::from_iter_values((0..rows).map(|row| (row % 3) as i32));
    let values = StringViewArray::from(vec!["short", "a much longer value than twelve", ""]);
    let dictionary = DictionaryArray::new(keys, Arc::new(values));
    let runs: RunArray<Int32Type> = words(2).iter().map(|word| word.as_deref()).collect();
    let few: RunArray<Int16Type> = (0..rows)
        .map(|row| Some(["x", "y"][row * 2 / rows]))
        .collect();
    let ends = PrimitiveArray::<Int64Type>::from(vec![1, rows as i64]);
    let run_values = StringViewArray::from(vec![Some("a value that needs a buffer"), None]);
    let wide = RunArray::try_new(&ends, &run_values).unwrap();
    let list_views = ListViewArray::new(
        Arc::new(Field::new("item", DataType::Utf8View, true)),
        (0..rows as i32).collect(),
        std::iter::repeat_n(1, rows).collect(),
        Arc::new(StringViewArray::from_iter(words(9))),
        None,
    );
    let pair = StructArray::from(vec![
        (
            Arc::new(Field::new("v", DataType::Utf8View, true)),
            Arc::new(StringViewArray::from_iter(words(30))) as ArrayRef,
        ),
        (
            Arc::new(Field::new("b", DataType::Utf8, true)),
            plain() as ArrayRef,
        ),
    ]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("views", Arc::new(views.finish())),
        ("a", plain()),
        ("pair", Arc::new(pair)),
        ("binary", Arc::new(binary.finish())),
        ("list_views", Arc::new(list_views)),
        ("list", Arc::new(list.finish())),
        ("runs", Arc::new(runs)),
        ("fixed", Arc::new(fixed)),
        ("few", Arc::new(few)),
        ("dictionary", Arc::new(dictionary)),
        ("wide", Arc::new(wide)),
        ("b", plain()),
    ];
    let nullable = columns
        .into_iter()
        .map(|(name, column)| (name, column, true));
    RecordBatch::try_from_iter_with_nullable(nullable).unwrap()
}

#[test]
fn views_run_ends_and_fixed_size_lists() {
    let batch = new_types(&mut Random(4), 40);
    let other = new_types(&mut Random(5), 40).slice(3, 7);
    for (container, variant) in variants() {
        if !variant.legacy {
            check_alike(std::slice::from_ref(&batch), container, variant);
            check_alike(
                &[batch.slice(11, 20), batch.slice(0, 1)],
                container,
                variant,
            );
            if container == Container::Stream {
                check_alike(&[other.clone(), batch.clone()], container, variant);
            }
        }
    }
}

#[test]
fn several_batches_and_empty_ones() {
    let batch = every_type(&mut Random(2), 40);
    // Dictionaries must not change within a file, so slices of one batch.
    let batches = [
        batch.slice(0, 0),
        batch.slice(0, 13),
        batch.slice(13, 0),
        batch.slice(13, 27),
    ];
    for (container, variant) in variants() {
        check_alike(&batches, container, variant);
    }
}

#[test]
fn dictionaries_are_replaced_and_extended() {
    let batch = |words: &[&str]| {
        let column: DictionaryArray<Int8Type> = words.iter().copied().collect();
        RecordBatch::try_from_iter([("word", Arc::new(column) as ArrayRef)]).unwrap()
    };
    let replaced = [batch(&["a", "b", "a"]), batch(&["c"]), batch(&["d", "c"])];
    let extended = [
        batch(&["a", "b", "a"]),
        batch(&["a", "b", "c"]),
        batch(&["a", "b", "c", "d", "d"]),
    ];
    let delta = Variant {
        delta_dictionaries: true,
        ..Default::default()
    };
    check_alike(&replaced, Container::Stream, Variant::default());
    check_alike(&extended, Container::Stream, delta);
    check_alike(&extended, Container::File, delta);
    // The delta really is one: with it the stream is shorter.
    let lengths = [delta, Variant::default()]
        .map(|variant| write_oracle(&extended, Container::Stream, variant).len());
    assert!(lengths[0] < lengths[1], "{lengths:?}");
}

#[test]
fn large_lz4_buffers_of_linked_blocks() {
    let mut random = Random(3);
    let texts = StringArray::from_iter_values((0..4000).map(|_| {
        let word = random.below(50);
        format!("caption {word} ").repeat(20)
    }));
    let batch = RecordBatch::try_from_iter([("t", Arc::new(texts) as ArrayRef)]).unwrap();
    for (container, variant) in variants() {
        check_alike(std::slice::from_ref(&batch), container, variant);
    }
}

#[test]
fn no_batches_and_no_rows() {
    let schema = arrow_schema::Schema::new(vec![
        Field::new("image", DataType::Binary, true),
        Field::new("caption", DataType::Utf8, true),
    ]);
    let stream = StreamWriter::try_new(Vec::new(), &schema)
        .and_then(|writer| writer.into_inner())
        .unwrap();
    let file = FileWriter::try_new(Vec::new(), &schema)
        .and_then(|writer| writer.into_inner())
        .unwrap();
    let empty = RecordBatch::try_new(
        Arc::new(schema),
        vec![
            new_empty_array(&DataType::Binary),
            new_empty_array(&DataType::Utf8),
        ],
    )
    .unwrap();
    let zero_rows = write_oracle(&[empty], Container::Stream, Variant::default());
    for shard in [stream, file, zero_rows] {
        let (rows, failure) = read_all(&shard);
        assert!(rows.is_empty() && failure.is_none(), "{failure:?}");
    }
}

#[test]
fn oracle_reads_what_we_write() {
    for captions in [CaptionType::One, CaptionType::List] {
        let mut writer = ArrowShardWriter::new(Vec::new(), captions).unwrap();
        for index in 0..230_u8 {
            let texts = match captions {
                CaptionType::One => vec![format!("caption {index}")],
                CaptionType::List => (0..index % 4).map(|n| format!("{index} {n}")).collect(),
            };
            let image = vec![index; usize::from(index)];
            writer
                .write(&format!("{index}.jpg"), &image, &texts)
                .unwrap();
        }
        let shard = writer.finish().unwrap();
        let reader = StreamReader::try_new(Cursor::new(&shard), None).unwrap();
        let metadata = reader.schema().metadata()["huggingface"].clone();
        let features =
            &serde_json::from_str::<serde_json::Value>(&metadata).unwrap()["info"]["features"];
        assert_eq!(features["image"]["_type"], "Image");
        let kind = &features["caption"]["_type"];
        assert_eq!(
            kind,
            if captions == CaptionType::One {
                "Value"
            } else {
                "List"
            }
        );
        let batches: Vec<_> = reader.collect::<Result<_, _>>().unwrap();
        let rows: Vec<_> = batches.iter().map(RecordBatch::num_rows).collect();
        assert_eq!(rows, [100, 100, 30]);
        let mut index = 0_u8;
        for batch in &batches {
            let images = batch["image"].as_struct();
            let types: Vec<_> = images
                .fields()
                .iter()
                .map(|f| f.data_type().clone())
                .collect();
            assert_eq!(types, [DataType::Binary, DataType::Utf8]);
            for row in 0..batch.num_rows() {
                let bytes = images["bytes"].as_binary::<i32>().value(row);
                assert_eq!(bytes, vec![index; usize::from(index)]);
                let path = images["path"].as_string::<i32>().value(row);
                assert_eq!(path, format!("{index}.jpg"));
                let texts = match captions {
                    CaptionType::One => vec![format!("caption {index}")],
                    CaptionType::List => (0..index % 4).map(|n| format!("{index} {n}")).collect(),
                };
                let expected = texts.into_iter().map(String::into_bytes).collect();
                assert_eq!(oracle_row(&batch["caption"], row), Some(expected));
                index += 1;
            }
        }
    }
}

/// The Arrow project's files; none where the test data lack them.
pub(super) fn shared_ipc_files(test: &str) -> Vec<PathBuf> {
    let Some(folder) = test_data::find(test, "data/arrow/ipc-stream") else {
        return Vec::new();
    };
    let mut files = Vec::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

#[test]
fn golden_files_of_the_arrow_project() {
    let (mut alike, mut refused, mut columns) = (0, 0, 0);
    for path in shared_ipc_files("golden_files_of_the_arrow_project") {
        let name = path.display().to_string();
        if !name.ends_with(".stream") && !name.ends_with(".arrow_file") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let got = read_by_us(&bytes);
        if name.contains("bigendian") {
            assert!(got.unwrap_err().contains("big-endian"), "{name}");
            refused += 1;
            continue;
        }
        let expected = read_by_oracle(&bytes).unwrap();
        assert_eq!(got.as_ref(), Ok(&expected), "{name}");
        alike += 1;
        columns += expected.len();
    }
    println!("{alike} files alike ({columns} columns), {refused} big-endian ones refused");
    assert!(alike == 0 || columns > 50);
}
