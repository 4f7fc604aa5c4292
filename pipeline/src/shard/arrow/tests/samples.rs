//! Samples as they come out: round trips, names, nulls, wrong columns.

use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::types::Int8Type;
use arrow_array::{
    Array, ArrayRef, BinaryArray, DictionaryArray, Int32Array, LargeBinaryArray, RecordBatch,
    StringArray, StructArray,
};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, Field, Fields};
use proptest::prelude::*;

use super::oracle::{write_oracle, Container};
use super::*;
use crate::sample::MemberData;
use crate::shard::arrow::{ArrowShardWriter, ArrowWriteError, CaptionType, OtherColumns};
use crate::SkipReason;

fn text(texts: &[&str]) -> MemberData {
    MemberData::Text(texts.iter().map(|text| text.to_string()).collect())
}

fn bytes_of(batch: &RecordBatch) -> Vec<u8> {
    write_oracle(
        std::slice::from_ref(batch),
        Container::Stream,
        Default::default(),
    )
}

fn image_fields() -> Fields {
    vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ]
    .into()
}

/// Bytes and path of an image; `None` is a null struct.
type ImageRow<'a> = Option<(Option<&'a [u8]>, Option<&'a str>)>;

fn images(rows: &[ImageRow<'_>]) -> ArrayRef {
    let bytes: BinaryArray = rows.iter().map(|row| row.and_then(|row| row.0)).collect();
    let paths: StringArray = rows.iter().map(|row| row.and_then(|row| row.1)).collect();
    let nulls = NullBuffer::from_iter(rows.iter().map(Option::is_some));
    Arc::new(StructArray::new(
        image_fields(),
        vec![Arc::new(bytes), Arc::new(paths)],
        Some(nulls),
    ))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_the_writer_wrote_comes_back(
        rows in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..300),
             prop::collection::vec("\\PC{0,20}", 1..4)),
            0..250,
        ),
        list in any::<bool>(),
    ) {
        let captions_of = |captions: &[String]| {
            captions[..if list { captions.len() } else { 1 }].to_vec()
        };
        let kind = if list { CaptionType::List } else { CaptionType::One };
        let mut writer = ArrowShardWriter::new(Vec::new(), kind).unwrap();
        for (index, (image, captions)) in rows.iter().enumerate() {
            writer.write(&format!("dir/{index:05}.png"), image, &captions_of(captions)).unwrap();
        }
        let shard = writer.finish().unwrap();
        let (read, failure) = read_all(&shard);
        prop_assert!(failure.is_none(), "{failure:?}");
        prop_assert_eq!(read.len(), rows.len());
        for (index, (sample, (image, captions))) in read.into_iter().zip(&rows).enumerate() {
            let sample = sample.unwrap();
            prop_assert_eq!(&sample.id.key, &format!("dir/{index:05}"));
            prop_assert_eq!(sample.id.sample_index as usize, index);
            prop_assert_eq!(sample.id.shard_index, 3);
            prop_assert_eq!(&sample.member("png").unwrap().data, &MemberData::Bytes(image.clone()));
            prop_assert_eq!(
                &sample.member("caption").unwrap().data,
                &MemberData::Text(captions_of(captions))
            );
            prop_assert_eq!(sample.members.len(), 2);
        }
    }
}

#[test]
fn offsets_name_the_batch_and_batches_are_bounded() {
    let mut writer = ArrowShardWriter::new(Vec::new(), CaptionType::One).unwrap();
    for index in 0..250 {
        writer
            .write(&format!("{index}.jpg"), b"x", &["c".to_string()])
            .unwrap();
    }
    let shard = writer.finish().unwrap();
    let mut offsets: Vec<_> = read_all(&shard)
        .0
        .into_iter()
        .map(|sample| sample.unwrap().id.offset_bytes)
        .collect();
    for &offset in &offsets {
        assert_eq!(&shard[offset as usize..][..4], &[0xff; 4]);
    }
    offsets.dedup();
    assert_eq!(offsets.len(), 3);

    // Two images of 20 MiB do not share a batch of 32 MiB.
    let mut writer = ArrowShardWriter::new(Vec::new(), CaptionType::One).unwrap();
    let large = vec![7; 20 << 20];
    for path in ["a.jpg", "b.jpg"] {
        writer.write(path, &large, &["c".to_string()]).unwrap();
    }
    let shard = writer.finish().unwrap();
    let mut reader = open(&shard).unwrap();
    let first = reader.next_sample().unwrap().unwrap().unwrap();
    let second = reader.next_sample().unwrap().unwrap().unwrap();
    assert_ne!(first.id.offset_bytes, second.id.offset_bytes);
    assert_eq!(second.payload_bytes(), large.len() + 1);
}

#[test]
fn writer_refuses_a_wrong_number_of_captions_and_stays_usable() {
    let mut writer = ArrowShardWriter::new(Vec::new(), CaptionType::One).unwrap();
    let error = writer.write("a.jpg", b"", &[]).unwrap_err();
    assert_eq!(writer.pending_bytes(), 0);
    assert!(matches!(&error, ArrowWriteError::Captions { count: 0, path } if path == "a.jpg"));
    writer.write("b.jpg", b"", &["c".to_string()]).unwrap();
    assert_eq!(writer.pending_bytes(), 6);
    let (rows, failure) = read_all(&writer.finish().unwrap());
    assert!(failure.is_none() && rows.len() == 1);
}

#[test]
fn nulls_and_names() {
    let images = images(&[
        Some((Some(b"\x89PNG...."), Some("a/1.JPG"))),
        Some((Some(b"\x89PNG...."), None)),
        None,
        Some((None, Some("elsewhere.jpg"))),
        Some((Some(b"GIF89a"), Some("4"))),
        Some((Some(b""), Some("5.webp"))),
    ]);
    let mut captions = ListBuilder::new(StringBuilder::new());
    for row in [
        Some(vec![Some("one"), None, Some("two")]),
        Some(vec![Some("")]),
        Some(vec![Some("x")]),
        Some(vec![Some("x")]),
        None,
        Some(vec![None]),
    ] {
        captions.append_option(row);
    }
    let scores = Int32Array::from(vec![1, 2, 3, 4, 5, 6]);
    let urls = StringArray::from(vec![Some("u"), None, None, None, None, None]);
    let raw: BinaryArray = (0..6)
        .map(|row| (row == 1).then_some(b"\xff\x00"))
        .collect();
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("score", Arc::new(scores) as ArrayRef, true),
        ("url", Arc::new(urls) as ArrayRef, true),
        ("image", images, true),
        ("raw", Arc::new(raw) as ArrayRef, true),
        ("caption", Arc::new(captions.finish()) as ArrayRef, true),
    ])
    .unwrap();
    let (rows, failure) = read_all(&bytes_of(&batch));
    assert!(failure.is_none(), "{failure:?}");

    let first = rows[0].as_ref().unwrap();
    assert_eq!(first.id.key, "a/1");
    let names: Vec<_> = first.members.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["url", "jpg", "caption"]);
    assert_eq!(first.member("caption").unwrap().data, text(&["one", "two"]));
    let second = rows[1].as_ref().unwrap();
    assert_eq!(second.id.key, "000000001");
    let names: Vec<_> = second.members.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["png", "raw", "caption"]);
    assert_eq!(second.member("caption").unwrap().data, text(&[""]));

    let expected = [
        (2, "000000002", SkipReason::NoImage),
        (3, "elsewhere", SkipReason::NoImage),
        (4, "4", SkipReason::NoCaption),
        (5, "5", SkipReason::NoCaption),
    ];
    for (row, key, reason) in expected {
        let error = rows[row].as_ref().unwrap_err();
        assert_eq!((error.id.key.as_str(), error.reason), (key, reason));
        assert_eq!(error.id.sample_index as usize, row);
    }
    assert!(rows[3]
        .as_ref()
        .unwrap_err()
        .message
        .contains("elsewhere.jpg"));
}

#[test]
fn image_structs_may_have_other_children_in_any_order() {
    let number = || Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef;
    let path: DictionaryArray<Int8Type> = ["p/0.png", "p/1.png"].into_iter().collect();
    let bytes = LargeBinaryArray::from_iter_values([b"zero", b"one!"]);
    let children: Vec<(&str, ArrayRef)> = vec![
        ("width", number()),
        ("path", Arc::new(path)),
        ("height", number()),
        ("bytes", Arc::new(bytes)),
        ("channels", number()),
    ];
    let children = children
        .into_iter()
        .map(|(name, child)| {
            (
                Arc::new(Field::new(name, child.data_type().clone(), true)),
                child,
            )
        })
        .collect::<Vec<_>>();
    let captions = StringArray::from(vec!["a", "b"]);
    let batch = RecordBatch::try_from_iter([
        ("image", Arc::new(StructArray::from(children)) as ArrayRef),
        ("caption", Arc::new(captions) as ArrayRef),
    ])
    .unwrap();
    let (rows, failure) = read_all(&bytes_of(&batch));
    assert!(failure.is_none(), "{failure:?}");
    for (row, (key, image, caption)) in [("p/0", b"zero", "a"), ("p/1", b"one!", "b")]
        .into_iter()
        .enumerate()
    {
        let sample = rows[row].as_ref().unwrap();
        assert_eq!(sample.id.key, key);
        let expected = MemberData::Bytes(image.to_vec());
        assert_eq!(sample.member("png").unwrap().data, expected);
        assert_eq!(sample.member("caption").unwrap().data, text(&[caption]));
    }
}

#[test]
fn one_caption_that_is_not_utf8_costs_one_sample() {
    let images = images(&[Some((Some(b"a"), None)), Some((Some(b"b"), None))]);
    let captions = StringArray::from(vec!["good", "evil"]);
    let batch = RecordBatch::try_from_iter([
        ("image", images),
        ("caption", Arc::new(captions) as ArrayRef),
    ])
    .unwrap();
    let mut shard = bytes_of(&batch);
    let at = shard.windows(4).position(|w| w == b"evil").unwrap();
    shard[at + 1] = 0xff;
    let (rows, failure) = read_all(&shard);
    assert!(failure.is_none() && rows[0].is_ok());
    let error = rows[1].as_ref().unwrap_err();
    assert_eq!(error.reason, SkipReason::BadCaption);
    assert_eq!(error.message, "caption is not UTF-8 at byte 1");
}

#[test]
fn members_have_a_size_limit() {
    let images = images(&[Some((Some(&[1; 100]), None)), Some((Some(&[1; 101]), None))]);
    let captions = StringArray::from(vec!["a", "b"]);
    let batch = RecordBatch::try_from_iter([
        ("image", images),
        ("caption", Arc::new(captions) as ArrayRef),
    ])
    .unwrap();
    let options = ArrowReadOptions {
        max_member_bytes: 100,
        ..Default::default()
    };
    let shard = bytes_of(&batch);
    let rows: Vec<_> = open_with(&shard, &options)
        .unwrap()
        .map(|item| item.unwrap())
        .collect();
    assert!(rows[0].is_ok());
    assert_eq!(
        rows[1].as_ref().unwrap_err().reason,
        SkipReason::SampleTooLarge
    );
}

#[test]
fn columns_can_be_named() {
    let pictures = LargeBinaryArray::from_iter_values([b"\xff\xd8\xff"]);
    let texts = StringArray::from(vec!["t"]);
    let batch = RecordBatch::try_from_iter([
        ("jpg", Arc::new(pictures) as ArrayRef),
        ("txt", Arc::new(texts) as ArrayRef),
    ])
    .unwrap();
    let options = ArrowReadOptions {
        image_column: Some("jpg".to_string()),
        caption_column: Some("txt".to_string()),
        ..Default::default()
    };
    let shard = bytes_of(&batch);
    let sample = open_with(&shard, &options)
        .unwrap()
        .next_sample()
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(
        sample.id.to_string(),
        format!("t.arrow#000000000@{}", sample.id.offset_bytes)
    );
    assert_eq!(sample.member("caption").unwrap().data, text(&["t"]));
    assert!(sample.member("jpg").is_some());
}

#[test]
fn wrong_columns_are_named() {
    let binary = || Arc::new(BinaryArray::from_iter_values([b"x"])) as ArrayRef;
    let string = || Arc::new(StringArray::from(vec!["x"])) as ArrayRef;
    let number = || Arc::new(Int32Array::from(vec![1])) as ArrayRef;
    type Case<'a> = (Vec<(&'a str, ArrayRef)>, &'a [&'a str]);
    let cases: Vec<Case<'_>> = vec![
        (
            vec![("blob", binary()), ("url", string())],
            &[
                "no column `image`, or of another usual name (images, img, ",
                "`blob` (binary), `url` (string)",
                "--image-column",
            ],
        ),
        (
            vec![("image", binary()), ("en", string())],
            &[
                "no column `caption`, or of another usual name (txt, captions, ",
                "`en` (string)",
                "--caption-column",
            ],
        ),
        (
            vec![("image", number()), ("caption", string())],
            &["column `image` is a whole number, not binary or a struct<bytes, path>"],
        ),
        (
            vec![("image", binary()), ("caption", number())],
            &["column `caption` is a whole number, not a string"],
        ),
        (
            vec![
                ("image", binary()),
                ("image", binary()),
                ("caption", string()),
            ],
            &["two columns are named `image`"],
        ),
    ];
    for (columns, expected) in cases {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let got = error_of(&bytes_of(&batch));
        for part in expected {
            assert!(got.contains(part), "{got:?} lacks {part:?}");
        }
    }
    let batch = RecordBatch::try_from_iter([("image", binary()), ("text", string())]).unwrap();
    let options = ArrowReadOptions {
        caption_column: Some("caption".into()),
        ..Default::default()
    };
    let error = open_with(&bytes_of(&batch), &options)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("no column `caption`; the shard has `image` (binary), `text`"),
        "{error}"
    );
}

/// Captions of the rows, and which columns were taken.
fn found(columns: Vec<(&str, ArrayRef)>) -> (String, Vec<String>, Vec<MemberData>) {
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns
            .into_iter()
            .map(|(name, column)| (name, column, true)),
    )
    .unwrap();
    let bytes = bytes_of(&batch);
    let mut reader = open(&bytes).unwrap();
    let chosen = reader.columns().clone();
    let captions = reader.by_ref().map(|row| {
        row.unwrap()
            .unwrap()
            .member("caption")
            .unwrap()
            .data
            .clone()
    });
    let captions = captions.collect();
    (chosen.image, chosen.captions, captions)
}

#[test]
fn usual_names_are_found() {
    let picture = || images(&[Some((Some(b"\xff\xd8\xff"), Some("a.jpg")))]);
    let string = |value: &str| Arc::new(StringArray::from(vec![value])) as ArrayRef;
    let check = |columns: Vec<(&str, ArrayRef)>, image: &str, names: &[&str], texts: &[&str]| {
        let (found_image, found_names, captions) = found(columns);
        assert_eq!(found_image, image);
        assert_eq!(found_names, names);
        assert_eq!(captions, [text(texts)]);
    };
    check(
        vec![("image", picture()), ("text", string("t"))],
        "image",
        &["text"],
        &["t"],
    );
    check(
        vec![
            ("URL", string("u")),
            ("TEXT", string("t")),
            ("jpg", picture()),
        ],
        "jpg",
        &["TEXT"],
        &["t"],
    );
    // Hugging Face's image type is an image, whatever it is called.
    check(
        vec![("scan", picture()), ("alt", string("a"))],
        "scan",
        &["alt"],
        &["a"],
    );
    // jxie/flickr8k
    check(
        vec![
            ("caption_1", string("b")),
            ("image", picture()),
            ("caption_0", string("a")),
        ],
        "image",
        &["caption_0", "caption_1"],
        &["a", "b"],
    );
    // HuggingFaceM4/COCO: a sentence a row.
    let sentence = |value: &str| {
        let children: Vec<(Arc<Field>, ArrayRef)> = vec![
            (
                Arc::new(Field::new("imgid", DataType::Int32, true)),
                Arc::new(Int32Array::from(vec![7])),
            ),
            (
                Arc::new(Field::new("raw", DataType::Utf8, true)),
                string(value),
            ),
        ];
        StructArray::from(children)
    };
    check(
        vec![
            ("image", picture()),
            ("sentences", Arc::new(sentence("A cat."))),
        ],
        "image",
        &["sentences"],
        &["A cat."],
    );
    // Karpathy's own layout: a list of sentences.
    let one = sentence("A cat.");
    let field = Arc::new(Field::new("item", one.data_type().clone(), true));
    let offsets = arrow_buffer::OffsetBuffer::from_lengths([1]);
    let list = arrow_array::ListArray::new(field, offsets, Arc::new(one), None);
    check(
        vec![("image", picture()), ("sentences", Arc::new(list))],
        "image",
        &["sentences"],
        &["A cat."],
    );
    // A text wins over a column of that name that is none.
    check(
        vec![
            ("caption", Arc::new(Int32Array::from(vec![1]))),
            ("image", picture()),
            ("text", string("t")),
        ],
        "image",
        &["text"],
        &["t"],
    );
}

#[test]
fn shards_without_captions_are_read_where_none_are_needed() {
    let picture = images(&[Some((Some(b"\xff\xd8\xff"), Some("a.jpg")))]);
    let batch = RecordBatch::try_from_iter([("image", picture)]).unwrap();
    let options = ArrowReadOptions {
        needs_captions: false,
        ..Default::default()
    };
    let bytes = bytes_of(&batch);
    let rows: Vec<_> = open_with(&bytes, &options).unwrap().collect();
    assert_eq!(rows[0].as_ref().unwrap().as_ref().unwrap().members.len(), 1);
    // A column with a null.
    let picture = images(&[Some((Some(b"\xff\xd8\xff"), Some("a.jpg")))]);
    let null: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>]));
    let batch = RecordBatch::try_from_iter([("image", picture), ("caption", null)]).unwrap();
    let bytes = bytes_of(&batch);
    let rows: Vec<_> = open_with(&bytes, &options).unwrap().collect();
    assert_eq!(rows[0].as_ref().unwrap().as_ref().unwrap().members.len(), 1);
    let rows: Vec<_> = open_with(&bytes, &ArrowReadOptions::default())
        .unwrap()
        .collect();
    let error = rows[0].as_ref().unwrap().as_ref().unwrap_err();
    assert_eq!(error.reason, SkipReason::NoCaption);
}

/// Columns of one kind each beside image and caption, as Apache's library writes them.
pub(super) fn other_columns() -> RecordBatch {
    use arrow_array::types::Int32Type;
    use arrow_array::{
        BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float32Array,
        Float64Array, Int64Array, ListArray, NullArray, TimestampMicrosecondArray, UInt64Array,
    };
    let jpeg: &[u8] = &[0xff, 0xd8, 0xff, 1];
    let of = |rows: &[ImageRow<'_>]| images(rows);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("nothing", Arc::new(NullArray::new(2))),
        (
            "id",
            Arc::new(Int64Array::from(vec![Some(-7), Some(i64::MAX)])),
        ),
        (
            "image",
            of(&[Some((Some(jpeg), Some("a.jpg"))), Some((Some(jpeg), None))]),
        ),
        ("big", Arc::new(UInt64Array::from(vec![u64::MAX, 0]))),
        (
            "similarity",
            Arc::new(Float32Array::from(vec![0.3, f32::NAN])),
        ),
        ("ratio", Arc::new(Float64Array::from(vec![Some(1.0), None]))),
        (
            "is_safe",
            Arc::new(BooleanArray::from(vec![Some(true), None])),
        ),
        (
            "url",
            Arc::new(StringArray::from(vec![Some("h\"\n"), None])),
        ),
        ("day", Arc::new(Date32Array::from(vec![19_782, i32::MAX]))),
        (
            "when",
            Arc::new(TimestampMicrosecondArray::from(vec![-1, 0]).with_timezone("UTC")),
        ),
        (
            "price",
            Arc::new(
                Decimal128Array::from(vec![-5, 12_345])
                    .with_precision_and_scale(9, 2)
                    .unwrap(),
            ),
        ),
        (
            "boxes",
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([
                Some(vec![Some(1), None, Some(3)]),
                None,
            ])),
        ),
        ("mask", of(&[Some((Some(jpeg), Some("m.png"))), None])),
        (
            "code",
            Arc::new(FixedSizeBinaryArray::try_from_iter([[1_u8], [2]].iter()).unwrap()),
        ),
        ("caption", Arc::new(StringArray::from(vec!["one", "two"]))),
        (
            "kind",
            Arc::new(
                vec!["x", "y"]
                    .into_iter()
                    .collect::<DictionaryArray<Int8Type>>(),
            ),
        ),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn json_members(shard: &[u8], other_columns: OtherColumns) -> Vec<Option<serde_json::Value>> {
    let options = ArrowReadOptions {
        other_columns,
        ..ArrowReadOptions::default()
    };
    let rows = open_with(shard, &options).unwrap();
    rows.map(|row| {
        let sample = row.unwrap().unwrap();
        let json = sample.member("json")?.bytes()?.to_vec();
        Some(serde_json::from_slice(&json).unwrap())
    })
    .collect()
}

#[test]
fn other_columns_become_a_json_member() {
    use serde_json::json;
    let batch = other_columns();
    let expected = [
        json!({"nothing": null, "id": -7, "big": u64::MAX, "similarity": 0.3, "ratio": 1.0, "is_safe": true,
               "url": "h\"\n", "day": "2024-02-29", "when": "1969-12-31T23:59:59.999999+00:00",
               "price": "-0.05", "boxes": [1, null, 3], "mask": {"path": "m.png"}, "kind": "x"}),
        json!({"nothing": null, "id": i64::MAX, "big": 0, "similarity": null, "ratio": null,
               "is_safe": null, "url": null, "day": i32::MAX, "when": "1970-01-01T00:00:00+00:00",
               "price": "123.45", "boxes": null, "mask": null, "kind": "y"}),
    ];
    for container in [Container::Stream, Container::File] {
        let shard = write_oracle(std::slice::from_ref(&batch), container, Default::default());
        let found = json_members(&shard, OtherColumns::All);
        assert_eq!(found, expected.clone().map(Some), "{container:?}");
        let reader = open_with(
            &shard,
            &ArrowReadOptions {
                other_columns: OtherColumns::All,
                ..ArrowReadOptions::default()
            },
        );
        let left_out = reader.unwrap().columns().left_out.clone();
        assert_eq!(left_out, ["`code` (a fixed-width type)"]);
    }
    let shard = bytes_of(&batch);
    let some = OtherColumns::Named(vec!["boxes".into(), "id".into()]);
    assert_eq!(
        json_members(&shard, some)[0],
        Some(json!({"id": -7, "boxes": [1, null, 3]}))
    );
    assert_eq!(json_members(&shard, OtherColumns::None), [None, None]);
    let absent = ArrowReadOptions {
        other_columns: OtherColumns::Named(vec!["absent".into()]),
        ..ArrowReadOptions::default()
    };
    let error = open_with(&shard, &absent).map(|_| ()).unwrap_err();
    assert!(error.message.contains("no column `absent`"), "{error}");
}

/// The JSON of a hub set of tar shards is spread, and other columns keep their place.
#[test]
fn a_column_of_json_gives_its_fields() {
    use serde_json::json;
    let text = [r#"{"a": [1.5, null], "url": "in json"}"#, "not json"];
    let jpeg: &[u8] = &[0xff, 0xd8, 0xff, 1];
    let batch = RecordBatch::try_from_iter([
        (
            "jpg",
            Arc::new(BinaryArray::from(vec![jpeg, jpeg])) as ArrayRef,
        ),
        ("txt", Arc::new(StringArray::from(vec!["one", "two"]))),
        ("json", Arc::new(StringArray::from(text.to_vec()))),
        ("url", Arc::new(StringArray::from(vec!["own", "own"]))),
    ])
    .unwrap();
    let found = json_members(&bytes_of(&batch), OtherColumns::All);
    let expected = [
        json!({"a": [1.5, null], "url": "own"}),
        json!({"json": "not json", "url": "own"}),
    ];
    assert_eq!(found, expected.map(Some));
}

/// A few bytes that stand for any number of values cost a sample, and no memory.
#[test]
fn json_is_bounded() {
    let long = "x".repeat(1 << 20);
    let values = StringArray::from(vec![long.as_str()]);
    let keys = arrow_array::Int8Array::from(vec![0; 64]);
    let dictionary = DictionaryArray::<Int8Type>::try_new(keys, Arc::new(values)).unwrap();
    let list = arrow_array::ListArray::try_new(
        Arc::new(Field::new("item", dictionary.data_type().clone(), true)),
        arrow_buffer::OffsetBuffer::from_lengths([64]),
        Arc::new(dictionary),
        None,
    )
    .unwrap();
    let jpeg: &[u8] = &[0xff, 0xd8, 0xff, 1];
    let batch = RecordBatch::try_from_iter([
        ("image", Arc::new(BinaryArray::from(vec![jpeg])) as ArrayRef),
        ("caption", Arc::new(StringArray::from(vec!["one"]))),
        ("tags", Arc::new(list)),
    ])
    .unwrap();
    let options = ArrowReadOptions {
        other_columns: OtherColumns::All,
        ..ArrowReadOptions::default()
    };
    let shard = bytes_of(&batch);
    let row = open_with(&shard, &options).unwrap().next_sample().unwrap();
    let error = row.unwrap().unwrap_err();
    assert_eq!(error.reason, SkipReason::SampleTooLarge, "{error}");
}
