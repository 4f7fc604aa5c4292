//! Damaged and hostile shards: whole rows before the damage, then one clear error; never a panic,
//! a hang, or memory that follows a number in the file.

use std::io::Read;

use arrow_array::types::Int16Type;
use arrow_array::{
    ArrayRef, BinaryArray, BinaryViewArray, DictionaryArray, RecordBatch, RunArray, StringArray,
    StringViewArray,
};
use arrow_format::ipc;
use arrow_format::ipc::planus::Builder;
use arrow_ipc::CompressionType;

use super::oracle::{shared_ipc_files, write_oracle, Container, Variant};
use super::*;
use crate::shard::arrow::message::MessageReader;
use crate::shard::arrow::{ArrowShardWriter, CaptionType, OtherColumns};

/// Image, caption and further columns in two batches, with a dictionary.
fn two_batches(random: &mut Random, rows: usize, image_bytes: usize) -> Vec<RecordBatch> {
    let images: Vec<_> = (0..rows).map(|_| random.bytes(image_bytes)).collect();
    let captions: DictionaryArray<Int16Type> = (0..rows)
        .map(|row| (row % 5 != 3).then(|| ["a dog", "a cat", "", "größer"][row % 4]))
        .collect();
    let urls = StringArray::from_iter((0..rows).map(|row| (row % 2 == 0).then_some("url")));
    let batch = RecordBatch::try_from_iter([
        ("url", Arc::new(urls) as ArrayRef),
        (
            "image",
            Arc::new(BinaryArray::from_iter_values(images)) as ArrayRef,
        ),
        ("caption", Arc::new(captions) as ArrayRef),
    ])
    .unwrap();
    vec![
        batch.slice(0, rows / 2),
        batch.slice(rows / 2, rows - rows / 2),
    ]
}

/// Images as views, captions run-end encoded, and a list of views.
fn views_and_runs(rows: usize) -> RecordBatch {
    let images: BinaryViewArray = (0..rows)
        .map(|row| Some(vec![row as u8; 3 + 9 * row]))
        .collect();
    let captions: RunArray<Int16Type> = (0..rows)
        .map(|row| Some(["a dog", "a cat"][row / 4 % 2]))
        .collect();
    let urls: StringViewArray = (0..rows)
        .map(|row| (row % 3 != 0).then(|| format!("https://example.org/{row}")))
        .collect();
    RecordBatch::try_from_iter_with_nullable([
        ("url", Arc::new(urls) as ArrayRef, true),
        ("image", Arc::new(images) as ArrayRef, true),
        ("caption", Arc::new(captions) as ArrayRef, true),
    ])
    .unwrap()
}

#[test]
fn views_and_run_ends_are_checked() {
    let sound = write_oracle(&[views_and_runs(12)], Container::Stream, Variant::default());
    // The view of the last image: 102 bytes of 0x0b, in buffer 0.
    let view = [102u8, 0, 0, 0, 11, 11, 11, 11, 0, 0, 0, 0];
    let at = sound.windows(12).rposition(|bytes| bytes == view).unwrap();
    for (place, value) in [
        (at + 8, 1),
        (at + 15, 1),
        (at + 15, 0x80),
        (at + 3, 0x7f),
        (at + 3, 0x80),
    ] {
        let mut damaged = sound.clone();
        damaged[place] = value;
        let error = error_of(&damaged);
        assert!(
            error.contains("view of row 11") && error.contains("`image`"),
            "{error}"
        );
    }
    let ends = [4u8, 0, 8, 0, 12, 0];
    let at = sound.windows(6).rposition(|bytes| bytes == ends).unwrap();
    for (place, value, expected) in [
        (at + 2, 4, "run 1 does not end after 4"),
        (at, 0, "run 0 does not end after 0"),
        (at + 5, 0x80, "run 2 does not end after 8"),
        (at + 4, 11, "runs end at 11, there are 12 rows"),
    ] {
        let mut damaged = sound.clone();
        damaged[place] = value;
        let error = error_of(&damaged);
        assert!(
            error.contains(expected) && error.contains("`caption`"),
            "{error}"
        );
    }
}

/// Reads everything and drops it; rows and bytes are bounded by what the shard can hold.
fn survive(bytes: &[u8]) {
    for other_columns in [OtherColumns::None, OtherColumns::All] {
        let options = ArrowReadOptions {
            max_message_bytes: 1 << 20,
            max_member_bytes: 1 << 16,
            other_columns,
            ..Default::default()
        };
        let Ok(reader) = open_with(bytes, &options) else {
            continue;
        };
        for item in reader {
            let Ok(Ok(sample)) = item else {
                continue;
            };
            assert!(sample.members.len() <= 4);
            if let Some(json) = sample.member("json").and_then(|json| json.bytes()) {
                serde_json::from_slice::<serde_json::Value>(json).unwrap();
            }
        }
    }
}

#[test]
fn flipped_and_cut_bytes_never_panic() {
    let mut random = Random(11);
    for container in [
        Container::Stream,
        Container::Stream,
        Container::File,
        Container::File,
    ] {
        for compression in [
            None,
            Some(CompressionType::LZ4_FRAME),
            Some(CompressionType::ZSTD),
        ] {
            let variant = Variant {
                compression,
                ..Default::default()
            };
            let batches = match random.below(3) {
                0 => two_batches(&mut random, 12, 50),
                1 => vec![views_and_runs(12)],
                _ => vec![super::samples::other_columns()],
            };
            let sound = write_oracle(&batches, container, variant);
            let (rows, failure) = read_all(&sound);
            assert!(failure.is_none());
            let expected: usize = batches.iter().map(RecordBatch::num_rows).sum();
            assert_eq!(rows.len(), expected);
            let mut damaged = Vec::new();
            for _ in 0..1500 {
                damaged.clear();
                damaged.extend_from_slice(&sound);
                for _ in 0..=random.below(3) {
                    let at = random.below(damaged.len());
                    damaged[at] = match random.below(4) {
                        0 => 0,
                        1 => 0xff,
                        2 => damaged[at] ^ (1 << random.below(8)),
                        _ => random.next() as u8,
                    };
                }
                if random.below(4) == 0 {
                    damaged.truncate(random.below(damaged.len()));
                }
                survive(&damaged);
            }
        }
    }
}

#[test]
fn damaged_linked_lz4_blocks_never_panic() {
    let mut random = Random(12);
    let captions = StringArray::from_iter_values(
        (0..3000).map(|row| format!("{} caption number {row} ", random.below(9)).repeat(4)),
    );
    let images = BinaryArray::from_iter_values((0..3000).map(|_| b"x"));
    let batch = RecordBatch::try_from_iter([
        ("image", Arc::new(images) as ArrayRef),
        ("caption", Arc::new(captions) as ArrayRef),
    ])
    .unwrap();
    let variant = Variant {
        compression: Some(CompressionType::LZ4_FRAME),
        ..Default::default()
    };
    let sound = write_oracle(&[batch], Container::Stream, variant);
    for _ in 0..300 {
        let mut damaged = sound.clone();
        let at = random.below(damaged.len());
        damaged[at] = random.next() as u8;
        survive(&damaged);
    }
}

#[test]
fn a_shard_cut_anywhere_gives_its_whole_batches() {
    let mut writer = ArrowShardWriter::new(Vec::new(), CaptionType::One).unwrap();
    for index in 0..103 {
        let path = format!("{index}.jpg");
        writer.write(&path, b"image", &["c".to_string()]).unwrap();
    }
    let shard = writer.finish().unwrap();
    let (rows, failure) = read_all(&shard);
    assert!(failure.is_none());
    let offset_of = |row: usize| rows[row].as_ref().unwrap().id.offset_bytes as usize;
    let (first, second, end) = (offset_of(0), offset_of(100), shard.len() - 8);
    for cut in 0..shard.len() {
        let (rows, failure) = read_all(&shard[..cut]);
        let expected_rows = match cut {
            cut if cut < second => 0,
            cut if cut < end => 100,
            _ => 103,
        };
        assert_eq!(rows.len(), expected_rows, "cut at {cut}");
        // The stream format may end at a message boundary.
        let may_end = [first, second, end].contains(&cut);
        assert_eq!(failure.is_none(), may_end, "cut at {cut}: {failure:?}");
        if let Some(failure) = failure.filter(|_| cut > first) {
            assert_eq!(failure.offset_bytes as usize, cut, "{failure}");
            assert!(failure.message.contains("truncated"), "{failure}");
        }
    }
}

#[test]
fn a_file_cut_before_its_footer_is_an_error() {
    let batches = two_batches(&mut Random(5), 8, 10);
    let file = write_oracle(&batches, Container::File, Variant::default());
    assert!(read_all(&file).1.is_none());
    let eos = file
        .windows(8)
        .rposition(|window| window == [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0])
        .unwrap();
    assert_eq!(
        error_of(&file[..eos]),
        format!("shard t.arrow at byte {eos}: the file ends before its footer; the shard is truncated, re-fetch it")
    );
    // The end-of-stream marker is enough: the footer only repeats what was read.
    let (rows, failure) = read_all(&file[..eos + 8]);
    assert!(rows.len() == 8 && failure.is_none());
}

#[test]
fn other_files_are_told_apart() {
    let mut tar = b"photos/000000.jpg".to_vec();
    tar.resize(1024, 0);
    for (bytes, expected) in [
        (&b""[..], "the file is empty"),
        (b"\xff\xff\xff", "not an Arrow IPC stream or file"),
        (&tar, "not an Arrow IPC stream or file (it begins with [70, 68, 6f, 74]); check the file's name"),
        (b"PAR1....", "it is Parquet"),
        (b"FEA1....", "Feather version 1"),
        (b"\x28\xb5\x2f\xfd....", "compressed as a whole"),
        (b"ARROW2....", "not an Arrow IPC stream or file"),
        (b"ARROW1", "ends before its footer"),
        (&[0; 64], "not an Arrow IPC stream or file"),
        (b"\x08\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08", "not an Arrow IPC"),
        (b"\xff\xff\xff\xff\0\0\0\0", "the shard ends before its schema"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f", "metadata claims 2147483647 bytes"),
        (b"\xff\xff\xff\xff\x80\0\0\0\0", "message metadata ends after 1 of 128 bytes"),
    ] {
        let got = error_of(bytes);
        assert!(got.contains(expected), "{got:?} lacks {expected:?}");
    }
}

#[test]
fn a_second_stream_in_the_file_is_not_lost_silently() {
    let batches = two_batches(&mut Random(6), 4, 10);
    let stream = write_oracle(&batches, Container::Stream, Variant::default());
    let (rows, failure) = read_all(&[stream.clone(), stream.clone()].concat());
    assert_eq!(rows.len(), 4);
    assert!(failure.unwrap().message.contains("a second stream follows"));
    // Padding to a block size is no stream.
    let (rows, failure) = read_all(&[stream, vec![0; 512]].concat());
    assert!(rows.len() == 4 && failure.is_none());
}

#[test]
fn an_io_error_names_its_place() {
    struct Failing<'a>(&'a [u8]);
    impl Read for Failing<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(std::io::Error::other("the disk is gone")),
                count => Ok(count),
            }
        }
    }
    let batches = two_batches(&mut Random(7), 4, 10);
    let stream = write_oracle(&batches, Container::Stream, Variant::default());
    let cut = stream.len() - 20;
    let reader = ArrowShardReader::new(
        Arc::from("s"),
        0,
        Failing(&stream[..cut]),
        &ArrowReadOptions::default(),
    );
    let error = reader.unwrap().find_map(Result::err).unwrap();
    assert_eq!(
        error.to_string(),
        format!("shard s at byte {cut}: cannot be read: the disk is gone")
    );
}

#[test]
fn an_expanding_buffer_is_refused_unread() {
    let variant = Variant {
        compression: Some(CompressionType::ZSTD),
        ..Default::default()
    };
    let zeros = vec![0; 80 << 20];
    let batch = RecordBatch::try_from_iter([
        (
            "image",
            Arc::new(BinaryArray::from_iter_values([zeros])) as ArrayRef,
        ),
        (
            "caption",
            Arc::new(StringArray::from(vec!["c"])) as ArrayRef,
        ),
    ])
    .unwrap();
    let stream = write_oracle(&[batch], Container::Stream, variant);
    assert!(stream.len() < 20_000);
    let got = error_of(&stream);
    assert!(
        got.contains("a compressed buffer claims 83886080 bytes, its message would expand more than 1024 times"),
        "{got}"
    );
}

/// The messages of a stream, one slice each.
fn messages_of(stream: &[u8]) -> Vec<&[u8]> {
    let (mut messages, header) = MessageReader::open(stream, 1 << 20).unwrap();
    let mut starts = vec![header.offset as usize];
    messages.skip_body(&header).unwrap();
    while let Some(header) = messages.next_header().unwrap() {
        starts.push(header.offset as usize);
        messages.skip_body(&header).unwrap();
    }
    starts.push(stream.len() - 8);
    starts
        .windows(2)
        .map(|pair| &stream[pair[0]..pair[1]])
        .collect()
}

#[test]
fn dictionaries_must_be_there_and_large_enough_and_bounded() {
    let batch = |words: &[&str]| {
        let captions: DictionaryArray<Int16Type> = words.iter().copied().collect();
        let images = BinaryArray::from_iter_values(words.iter().map(|_| b"x"));
        RecordBatch::try_from_iter([
            ("image", Arc::new(images) as ArrayRef),
            ("caption", Arc::new(captions) as ArrayRef),
        ])
        .unwrap()
    };
    let delta = Variant {
        delta_dictionaries: true,
        ..Default::default()
    };
    let batches = [batch(&["a", "b"]), batch(&["a", "b", "c"])];
    let stream = write_oracle(&batches, Container::Stream, delta);
    let [schema, dictionary, first, extension, second] = messages_of(&stream)[..] else {
        panic!("not the five messages expected");
    };
    let of = |messages: &[&[u8]]| error_of(&messages.concat());
    assert_eq!(
        of(&[schema, dictionary, first, extension, second]),
        "no error"
    );
    for (messages, expected) in [
        (
            vec![schema, first],
            "column `caption`: the dictionary index of row 0 is none of 0 values (dictionary 0; it must precede",
        ),
        (
            vec![schema, dictionary, second],
            "the dictionary index of row 2 is none of 2 values",
        ),
        (vec![schema, dictionary, schema], "a second schema message"),
    ] {
        let got = of(&messages);
        assert!(got.contains(expected), "{got:?} lacks {expected:?}");
    }
    let mut growing = [schema, dictionary].concat();
    for _ in 0..1000 {
        growing.extend_from_slice(extension);
    }
    growing.extend_from_slice(second);
    assert_eq!(error_of(&growing), "no error");
    let options = ArrowReadOptions {
        max_message_bytes: 4096,
        ..Default::default()
    };
    let error = open_with(&growing, &options)
        .unwrap()
        .find_map(Result::err)
        .unwrap();
    assert!(error.message.contains("the dictionaries of 41"), "{error}");
}

/// A stream of our own making: `image: binary`, `caption: string` and one batch.
struct Crafted {
    rows: i64,
    nodes: Vec<(i64, i64)>,
    buffers: Vec<(i64, i64)>,
    body: Vec<u8>,
    compression: Option<ipc::CompressionType>,
    claimed_body_bytes: Option<i64>,
}

/// One image `ab` and one caption `c`.
fn crafted() -> Crafted {
    let mut body = Vec::new();
    for offset in [0_i32, 2] {
        body.extend_from_slice(&offset.to_le_bytes());
    }
    body.extend_from_slice(b"ab\0\0\0\0\0\0");
    for offset in [0_i32, 1] {
        body.extend_from_slice(&offset.to_le_bytes());
    }
    body.extend_from_slice(b"c\0\0\0\0\0\0\0");
    Crafted {
        rows: 1,
        nodes: vec![(1, 0), (1, 0)],
        buffers: vec![(0, 0), (0, 8), (8, 2), (0, 0), (16, 8), (24, 1)],
        body,
        compression: None,
        claimed_body_bytes: None,
    }
}

fn framed(header: ipc::MessageHeader, body: &[u8], claimed: Option<i64>) -> Vec<u8> {
    let message = ipc::Message {
        version: ipc::MetadataVersion::V5,
        header: Some(header),
        body_length: claimed.unwrap_or(body.len() as i64),
        custom_metadata: None,
    };
    let mut builder = Builder::new();
    let mut metadata = builder.finish(&message, None).to_vec();
    metadata.resize(metadata.len().next_multiple_of(8), 0);
    let mut bytes = vec![0xff; 4];
    bytes.extend_from_slice(&(metadata.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&metadata);
    bytes.extend_from_slice(body);
    bytes
}

fn field(name: &str, type_: ipc::Type, children: Vec<ipc::Field>) -> ipc::Field {
    ipc::Field {
        name: Some(name.to_string()),
        nullable: true,
        type_: Some(type_),
        dictionary: None,
        children: Some(children),
        custom_metadata: None,
    }
}

fn schema_of(fields: Vec<ipc::Field>) -> Vec<u8> {
    let schema = ipc::Schema {
        endianness: ipc::Endianness::Little,
        fields: Some(fields),
        custom_metadata: None,
        features: None,
    };
    framed(ipc::MessageHeader::Schema(Box::new(schema)), &[], None)
}

impl Crafted {
    fn stream(&self) -> Vec<u8> {
        let image = ipc::Type::Binary(Box::new(ipc::Binary {}));
        let caption = ipc::Type::Utf8(Box::new(ipc::Utf8 {}));
        let mut stream = schema_of(vec![
            field("image", image, vec![]),
            field("caption", caption, vec![]),
        ]);
        let nodes = self
            .nodes
            .iter()
            .map(|&(length, null_count)| ipc::FieldNode { length, null_count });
        let buffers = self
            .buffers
            .iter()
            .map(|&(offset, length)| ipc::Buffer { offset, length });
        let batch = ipc::RecordBatch {
            length: self.rows,
            nodes: Some(nodes.collect()),
            buffers: Some(buffers.collect()),
            compression: self.compression.map(|codec| {
                Box::new(ipc::BodyCompression {
                    codec,
                    method: ipc::BodyCompressionMethod::Buffer,
                })
            }),
        };
        stream.extend(framed(
            ipc::MessageHeader::RecordBatch(Box::new(batch)),
            &self.body,
            self.claimed_body_bytes,
        ));
        stream
    }

    /// One buffer (two captions' offsets) compressed, `length` before it.
    fn with_compressed_offsets(codec: ipc::CompressionType, length: i64, frame: &[u8]) -> Vec<u8> {
        let mut crafted = crafted();
        crafted.compression = Some(codec);
        let offset = crafted.body.len() as i64;
        crafted.body.extend_from_slice(&length.to_le_bytes());
        crafted.body.extend_from_slice(frame);
        for (index, content) in [(1, &b"\0\0\0\0\x02\0\0\0"[..]), (2, b"ab"), (5, b"c")] {
            crafted.buffers[index] = (crafted.body.len() as i64, content.len() as i64 + 8);
            crafted.body.extend_from_slice(&(-1_i64).to_le_bytes());
            crafted.body.extend_from_slice(content);
        }
        crafted.buffers[4] = (offset, frame.len() as i64 + 8);
        crafted.stream()
    }
}

#[test]
fn every_number_of_a_batch_is_checked() {
    let (rows, failure) = read_all(&crafted().stream());
    assert!(failure.is_none(), "{failure:?}");
    assert_eq!(rows[0].as_ref().unwrap().payload_bytes(), 3);

    type Damage = fn(&mut Crafted);
    let cases: Vec<(Damage, &str)> = vec![
        (|c| c.rows = -1, "a batch of -1 rows"),
        (|c| c.rows = i64::MAX, "1 rows in a batch of 9223372036854775807"),
        (|c| c.nodes[0].0 = -1, "column `image`: -1 rows"),
        (|c| c.nodes[0].0 = i64::MAX, "bytes of offsets for 9223372036854775807 rows"),
        (|c| c.nodes[0].0 = 2, "8 bytes of offsets for 2 rows"),
        (|c| c.nodes[1] = (1, 2), "column `caption`: 2 nulls in 1 rows"),
        (|c| c.nodes[1] = (1, -2), "-2 nulls in 1 rows"),
        (|c| c.nodes[1] = (1, 1), "a validity bitmap of 0 bytes for 1 rows"),
        (|c| c.nodes.truncate(1), "fewer nodes than the schema"),
        (|c| c.buffers.truncate(5), "fewer buffers than the schema"),
        (|c| c.buffers[2].1 = 1, "offsets must not exceed the values length"),
        (|c| c.buffers[2] = (-8, 2), "a buffer of 2 bytes at -8 exceeds its message body of 32"),
        (|c| c.buffers[2] = (8, -1), "a buffer of -1 bytes at 8"),
        (|c| c.buffers[2] = (8, 25), "a buffer of 25 bytes at 8"),
        (|c| c.buffers[2] = (i64::MAX, i64::MAX), "exceeds its message body"),
        (|c| c.body[0] = 3, "offsets must be monotonically increasing"),
        (|c| c.body[3] = 0x80, "offsets must be larger than 0"),
        (|c| c.body[7] = 0x7f, "offsets must not exceed the values length"),
        (|c| c.claimed_body_bytes = Some(-1), "a message claims a body of -1 bytes"),
        (
            |c| c.claimed_body_bytes = Some(1 << 31),
            "a message body ends after 32 of 2147483648 bytes; the shard is truncated",
        ),
        (
            |c| c.claimed_body_bytes = Some(i64::MAX),
            "a message body of 9223372036854775807 bytes exceeds the limit of 2147483648; raise max_message_bytes",
        ),
        (
            |c| {
                c.compression = Some(ipc::CompressionType::Zstd);
                c.buffers[1].1 = 4;
            },
            "a compressed buffer of 4 bytes has no room for its length",
        ),
    ];
    for (damage, expected) in cases {
        let mut crafted = crafted();
        damage(&mut crafted);
        let got = error_of(&crafted.stream());
        assert!(got.contains(expected), "{got:?} lacks {expected:?}");
    }
    // Not counted nulls are looked up, an absent bitmap has none.
    let mut uncounted = crafted();
    uncounted.nodes[1].1 = -1;
    assert!(read_all(&uncounted.stream()).0[0].is_ok());
    uncounted.buffers[3] = (2, 1);
    uncounted.body[2] = 0;
    assert!(read_all(&uncounted.stream()).0[0].is_err());
}

#[test]
fn compressed_lengths_are_checked() {
    use ipc::CompressionType::{Lz4Frame, Zstd};
    let offsets = [0, 0, 0, 0, 1, 0, 0, 0];
    let zstd = zstd::bulk::compress(&offsets, 3).unwrap();
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    std::io::Write::write_all(&mut encoder, &offsets).unwrap();
    let lz4 = encoder.finish().unwrap();
    for (codec, frame) in [(Zstd, &zstd), (Lz4Frame, &lz4)] {
        for (length, frame, expected) in [
            (8, &frame[..], "no error"),
            (-1, &offsets[..], "no error"),
            (7, frame, "claims 7 bytes and holds more"),
            (9, frame, "claims 9 bytes and holds fewer"),
            (0, frame, "0 bytes of offsets for 1 rows"),
            (-2, frame, "claims -2 bytes"),
            (i64::MAX, frame, "would expand more than"),
            (100 << 20, frame, "would expand more than 1024 times"),
            (8, b"", "column `caption`: a"),
            (8, b"no frame at all", "column `caption`: a"),
            (8, &frame[..frame.len() / 2], "column `caption`: a"),
        ] {
            let stream = Crafted::with_compressed_offsets(codec, length, frame);
            let got = error_of(&stream);
            assert!(
                got.contains(expected),
                "{codec:?}: {got:?} lacks {expected:?}"
            );
        }
    }
}

#[test]
fn a_message_is_bounded_as_stored_and_as_decompressed() {
    let variant = |compression| Variant {
        compression,
        ..Default::default()
    };
    let batch = RecordBatch::try_from_iter([
        (
            "image",
            Arc::new(BinaryArray::from_iter_values([vec![0; 5000]])) as ArrayRef,
        ),
        (
            "caption",
            Arc::new(StringArray::from(vec!["c"])) as ArrayRef,
        ),
    ])
    .unwrap();
    let options = ArrowReadOptions {
        max_message_bytes: 4096,
        ..Default::default()
    };
    for (compression, expected) in [
        (None, "a message body of 5"),
        (Some(CompressionType::ZSTD), "a decompressed message of 50"),
    ] {
        let batches = std::slice::from_ref(&batch);
        let stream = write_oracle(batches, Container::Stream, variant(compression));
        let error = open_with(&stream, &options)
            .unwrap()
            .find_map(Result::err)
            .unwrap();
        assert!(error.message.contains(expected), "{error}");
        assert!(error.message.contains("raise max_message_bytes"), "{error}");
        assert!(read_all(&stream).1.is_none());
    }
}

#[test]
fn schemas_have_limits() {
    let int = || {
        ipc::Type::Int(Box::new(ipc::Int {
            bit_width: 32,
            is_signed: true,
        }))
    };
    let mut deep = field("x", int(), vec![]);
    for _ in 0..100 {
        deep = field("x", ipc::Type::Struct(Box::new(ipc::Struct {})), vec![deep]);
    }
    let wide = (0..70_000).map(|_| field("x", int(), vec![])).collect();
    let long_name = field(&"n".repeat(17 << 20), int(), vec![]);
    for fields in [vec![deep], wide, vec![long_name]] {
        let got = error_of(&schema_of(fields));
        assert!(
            got.contains("the schema exceeds 65536 fields, 64 levels"),
            "{got}"
        );
    }
    let childless = field("x", ipc::Type::List(Box::new(ipc::List {})), vec![]);
    let got = error_of(&schema_of(vec![childless]));
    assert!(
        got.contains("column `x`: 0 children where one belongs"),
        "{got}"
    );
}

#[test]
fn fuzzer_files_of_the_arrow_project() {
    let files = shared_ipc_files("fuzzer_files_of_the_arrow_project");
    let mut with_columns = 0;
    for path in &files {
        let bytes = std::fs::read(path).unwrap();
        survive(&bytes);
        // Those files name their columns otherwise: decode whatever can be decoded.
        with_columns += usize::from(super::oracle::read_by_us(&bytes).is_ok());
    }
    println!("{} files, {with_columns} read to the end", files.len());
}
