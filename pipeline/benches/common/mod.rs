//! What the benchmarks run on: generated photographs, of the mean size of a web data set and of a
//! camera, and the loader's image path.
#![allow(dead_code)] // Each benchmark uses a part.

use std::sync::Arc;

use qf_codecs::jpeg::{Decompressor, Options, Part, Region, Scale};
use qf_codecs::testing::{encode, photograph, Encoding};
use qf_pipeline::augment::{ImageProcessor, ImageTransform, SampleRng, View};
use qf_pipeline::decode::{DecodeLimits, DecodeQuality, Decoder, OnTruncated, RgbImage};
use qf_pipeline::pixels::PlanarRgb;
use qf_pipeline::text::CaptionTokenizer;

pub(crate) const SIZE: u32 = 224;

/// A JPEG file and what it was made of.
pub(crate) struct Photo {
    pub(crate) name: &'static str,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) pixels: Vec<u8>,
    pub(crate) jpeg: Vec<u8>,
}

impl Photo {
    /// 631×521, 4:2:0, about 140 KB.
    pub(crate) fn web() -> Photo {
        Photo::of("631x521", 631, 521, 90, photograph(631, 521, 3, 1))
    }

    /// 2000×1500, 4:2:0, about 1 MB: a picture and its mirror images.
    pub(crate) fn camera() -> Photo {
        let (width, height) = (1000usize, 750usize);
        let quarter = photograph(width as u32, height as u32, 3, 1);
        let mut pixels = Vec::with_capacity(width * height * 12);
        for y in 0..2 * height {
            let row = &quarter[y.min(2 * height - 1 - y) * width * 3..][..width * 3];
            pixels.extend_from_slice(row);
            pixels.extend(row.chunks_exact(3).rev().flatten());
        }
        Photo::of("2000x1500", 2000, 1500, 85, pixels)
    }

    fn of(name: &'static str, width: u32, height: u32, quality: u8, pixels: Vec<u8>) -> Photo {
        let encoding = Encoding {
            quality,
            ..Encoding::default()
        };
        let jpeg = encode(&pixels, width, height, encoding).expect("encodes");
        Photo {
            name,
            width,
            height,
            pixels,
            jpeg,
        }
    }

    pub(crate) fn image(&self) -> RgbImage {
        RgbImage::new(self.width, self.height, self.pixels.clone()).expect("a picture")
    }
}

/// Header, crop, decode, resize, flip, layout.
pub(crate) struct ImagePath {
    decoder: Decoder,
    processor: ImageProcessor,
    quality: DecodeQuality,
    number: u32,
    pub(crate) out: PlanarRgb,
}

impl ImagePath {
    pub(crate) fn new(quality: DecodeQuality) -> ImagePath {
        let processor = ImageProcessor::new(ImageTransform::train(SIZE)).expect("valid");
        ImagePath {
            decoder: Decoder::new(DecodeLimits::default(), OnTruncated::Error),
            quality,
            number: 0,
            out: processor.blank(),
            processor,
        }
    }

    fn draw(&mut self, width: u32, height: u32) -> View {
        // The same 64 crops in every run.
        self.number = (self.number + 1) % 64;
        let mut rng = SampleRng::new(1, 0, 0, self.number);
        self.processor.transform().draw(width, height, &mut rng)
    }

    pub(crate) fn open(&self, file: &[u8]) -> u32 {
        self.decoder.open(file).expect("opens").width()
    }

    pub(crate) fn decode(&mut self, photo: &Photo) {
        let view = self.draw(photo.width, photo.height);
        let opened = self.decoder.open(&photo.jpeg).expect("opens");
        let decoded = self.decoder.decode(&opened, view.crop, SIZE, self.quality);
        std::hint::black_box(decoded.expect("decodes"));
    }

    pub(crate) fn whole(&mut self, photo: &Photo) -> RgbImage {
        self.decoder.decode_whole(&photo.jpeg).expect("decodes")
    }

    pub(crate) fn resize(&mut self, image: &RgbImage) {
        let view = self.draw(image.width(), image.height());
        self.processor.render(image, &view, self.out.as_mut());
    }

    pub(crate) fn run(&mut self, file: &[u8]) {
        let opened = self.decoder.open(file).expect("opens");
        self.number = (self.number + 1) % 64;
        let mut rng = SampleRng::new(1, 0, 0, self.number);
        let transform = *self.processor.transform();
        let view = transform.draw(opened.width(), opened.height(), &mut rng);
        self.processor
            .render_opened(
                &mut self.decoder,
                &opened,
                &view,
                self.quality,
                self.out.as_mut(),
            )
            .expect("decodes");
    }
}

/// What no loader of these pixels can go below: entropy decoding down to the crop's last row.
pub(crate) struct Entropy {
    decompressor: Decompressor,
    path: ImagePath,
    row: Vec<u8>,
}

impl Entropy {
    pub(crate) fn new() -> Entropy {
        Entropy {
            decompressor: Decompressor::new().expect("memory"),
            path: ImagePath::new(DecodeQuality::Exact),
            row: Vec::new(),
        }
    }

    pub(crate) fn run(&mut self, photo: &Photo) {
        let crop = self.path.draw(photo.width, photo.height).crop;
        // Rows that are passed over are entropy-decoded and no more; one block is left.
        let region = Region {
            x: crop.x,
            y: crop.y + crop.height - 1,
            width: 1,
            height: 1,
        };
        let options = Options {
            lenient: false,
            max_scans: 100,
            entropy: Default::default(),
        };
        let part = Part {
            bytes: &photo.jpeg,
            size: (photo.width, photo.height),
            scale: Scale::Full,
            region,
            options,
        };
        let decoded = self.decompressor.decode(&part, &mut self.row);
        std::hint::black_box(decoded.expect("decodes"));
    }
}

pub(crate) const CAPTION: &str =
    "A man riding a wave on top of a surfboard, seen from the beach at noon.";

/// A tokenizer that knows the words of [`CAPTION`] by their letters and some by name.
pub(crate) fn tokenizer() -> Arc<CaptionTokenizer> {
    let special = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", ".", "man", "wave", "beach",
    ];
    let mut vocabulary: Vec<String> = special.map(String::from).to_vec();
    for letter in 'a'..='z' {
        vocabulary.extend([letter.to_string(), format!("##{letter}")]);
    }
    Arc::new(CaptionTokenizer::from_vocab(vocabulary).expect("a vocabulary"))
}
