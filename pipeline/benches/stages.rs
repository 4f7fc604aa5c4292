//! Rates of every stage, in bytes and images per second of one thread: `make bench`.

mod common;

use std::io::Cursor;
use std::path::Path;

use common::{tokenizer, Entropy, ImagePath, Photo, CAPTION, SIZE};
use criterion::measurement::WallTime;
use criterion::{criterion_group, criterion_main, BenchmarkGroup, Criterion, Throughput};
use image::ImageFormat;
use qf_codecs::testing::encode_webp;
use qf_pipeline::augment::normalise_batch;
use qf_pipeline::decode::DecodeQuality;
use qf_pipeline::pixels::PlanarRgb;
use qf_pipeline::shard::read::{read_shard, NoObserver, ReadOptions};
use qf_pipeline::source::resolve_shards;
use qf_pipeline::stop::Stop;
use qf_pipeline::text::CaptionProcessor;
use qf_pipeline::write::{ShardFormat, ShardOptions, ShardSample, ShardWriter};
use qf_pipeline::{Loader, LoaderConfig};

const MODES: [(&str, DecodeQuality); 3] = [
    ("exact", DecodeQuality::Exact),
    ("balanced", DecodeQuality::Balanced),
    ("fast", DecodeQuality::Fast),
];

fn one(group: &mut BenchmarkGroup<'_, WallTime>, bytes: usize) {
    group.throughput(Throughput::ElementsAndBytes {
        elements: 1,
        bytes: bytes as u64,
    });
}

fn jpeg(criterion: &mut Criterion) {
    for photo in [Photo::web(), Photo::camera()] {
        let mut group = criterion.benchmark_group(format!("jpeg {}", photo.name));
        one(&mut group, photo.jpeg.len());
        let mut exact = ImagePath::new(DecodeQuality::Exact);
        group.bench_function("header", |b| b.iter(|| exact.open(&photo.jpeg)));
        let mut entropy = Entropy::new();
        group.bench_function("entropy to the crop's last row", |b| {
            b.iter(|| entropy.run(&photo))
        });
        group.bench_function("decode, whole", |b| b.iter(|| exact.whole(&photo)));
        for (name, quality) in MODES {
            let mut path = ImagePath::new(quality);
            group.bench_function(format!("decode, {name}"), |b| {
                b.iter(|| path.decode(&photo))
            });
        }
        let image = photo.image();
        group.bench_function("resize and layout", |b| b.iter(|| exact.resize(&image)));
        group.bench_function("floor: entropy, resize, layout", |b| {
            b.iter(|| {
                entropy.run(&photo);
                exact.resize(&image);
            })
        });
        for (name, quality) in MODES {
            let mut path = ImagePath::new(quality);
            group.bench_function(format!("all, {name}"), |b| b.iter(|| path.run(&photo.jpeg)));
        }
        group.finish();
    }
}

fn formats(criterion: &mut Criterion) {
    let photo = Photo::web();
    let image = image::RgbImage::from_raw(photo.width, photo.height, photo.pixels.clone());
    let image = image.expect("a picture");
    let mut files = vec![("jpeg", photo.jpeg.clone())];
    let webp = encode_webp(&photo.pixels, photo.width, photo.height, 85).expect("encodes");
    files.push(("webp, lossy", webp));
    for (name, format) in [
        ("webp, lossless", ImageFormat::WebP),
        ("png", ImageFormat::Png),
        ("gif", ImageFormat::Gif),
        ("bmp", ImageFormat::Bmp),
        ("tiff", ImageFormat::Tiff),
    ] {
        let mut bytes = Cursor::new(Vec::new());
        let image = image::DynamicImage::from(image.clone());
        image.write_to(&mut bytes, format).expect("encodes");
        files.push((name, bytes.into_inner()));
    }
    let mut group = criterion.benchmark_group("formats 631x521");
    for (name, file) in &files {
        one(&mut group, file.len());
        let mut path = ImagePath::new(DecodeQuality::Balanced);
        group.bench_function(*name, |b| b.iter(|| path.run(file)));
    }
    group.finish();
}

fn text_and_pixels(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rest");
    one(&mut group, CAPTION.len());
    let processor = CaptionProcessor::new(50, "").expect("valid");
    group.bench_function("caption processor", |b| {
        b.iter(|| processor.process(CAPTION))
    });
    let tokenizer = tokenizer();
    let (mut ids, mut mask) = (vec![0; 32], vec![0; 32]);
    group.bench_function("tokenise", |b| {
        b.iter(|| tokenizer.encode(CAPTION, &mut ids, &mut mask).expect("ids"))
    });
    let image = PlanarRgb::black(SIZE as usize);
    let mut out = vec![0.0; image.as_bytes().len()];
    one(&mut group, out.len());
    group.bench_function("normalise to f32", |b| {
        b.iter(|| normalise_batch(image.as_batch(), &mut out))
    });
    group.finish();
}

/// Writes 64 times the same photograph.
fn write_shard(folder: &Path, photo: &Photo, format: ShardFormat) -> String {
    let path = folder.join(format!("bench.{format}"));
    let mut writer = ShardWriter::create(path.clone(), &ShardOptions::new(format)).expect("opens");
    for number in 0..64 {
        let sample = ShardSample {
            key: format!("{number:05}"),
            extension: "jpg".into(),
            image: photo.jpeg.clone(),
            captions: vec![CAPTION.into()],
            text_member: true,
            json: None,
            members: Vec::new(),
        };
        writer.write(&sample).expect("writes");
    }
    writer.finish().expect("finishes");
    path.display().to_string()
}

fn shards(criterion: &mut Criterion) {
    let photo = Photo::web();
    let folder = tempfile::tempdir().expect("a folder");
    let mut group = criterion.benchmark_group("shard of 64");
    group.throughput(Throughput::ElementsAndBytes {
        elements: 64,
        bytes: 64 * photo.jpeg.len() as u64,
    });
    for format in [
        ShardFormat::Tar,
        ShardFormat::TarGz,
        ShardFormat::TarZst,
        ShardFormat::Arrow,
    ] {
        let path = write_shard(folder.path(), &photo, format);
        let shards = resolve_shards(&[&path]).expect("there");
        let options = ReadOptions::default();
        group.bench_function(format!("read {format}"), |b| {
            b.iter(|| {
                let mut count = 0;
                read_shard(
                    &shards[0],
                    0,
                    &options,
                    &NoObserver,
                    &Stop::default(),
                    &mut |sample| {
                        count += u32::from(sample.is_ok());
                        true
                    },
                )
                .expect("reads");
                assert_eq!(count, 64);
            })
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("loader, batch of 16");
    group.throughput(Throughput::ElementsAndBytes {
        elements: 16,
        bytes: 16 * photo.jpeg.len() as u64,
    });
    let path = write_shard(folder.path(), &photo, ShardFormat::Tar);
    for threads in [1, 2] {
        let config = LoaderConfig {
            threads,
            ..LoaderConfig::default()
        };
        let shards = resolve_shards(&[&path]).expect("there");
        let mut loader = Loader::builder(config)
            .shards(shards)
            .batches(tokenizer())
            .expect("starts");
        group.bench_function(format!("{threads} threads"), |b| {
            b.iter(|| loader.next_batch().expect("a batch").expect("no end"))
        });
    }
    group.finish();
}

criterion_group!(benches, jpeg, formats, text_and_pixels, shards);
criterion_main!(benches);
