//! Any bytes as an image, of every format and in every quality: a panic inside a decoder may only be a library's;
//! a crop decoded alone is the crop of the whole picture.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use qf_fuzz::{not_ours, Draw};
use qf_pipeline::augment::{ImageProcessor, ImageTransform, SampleRng};
use qf_pipeline::decode::{
    DecodeLimits, DecodeMemory, DecodeQuality, Decoder, ImageFormat, OnTruncated,
};

const SIZE: u32 = 32;

thread_local! {
    static PROCESSOR: RefCell<ImageProcessor> = RefCell::new({
        ImageProcessor::new(ImageTransform::train(SIZE)).expect("valid")
    });
}

fuzz_target!(|data: &[u8]| {
    let limits = DecodeLimits {
        max_pixels: 1 << 20,
        max_side: 8192,
        memory: DecodeMemory::new(32 << 20),
    };
    for on_truncated in [OnTruncated::Error, OnTruncated::Grey] {
        let mut decoder = Decoder::new(limits.clone(), on_truncated);
        let whole = decoder.decode_whole(data);
        let opened = decoder.open(data);
        if let Err(error) = &whole {
            not_ours(&error.to_string());
        }
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                assert_eq!(
                    whole.as_ref().err(),
                    Some(&error),
                    "a whole picture without a header"
                );
                return;
            }
        };
        let number = Draw::of(data).below(1 << 16);
        PROCESSOR.with_borrow_mut(|processor| {
            let mut rng = SampleRng::new(1, 0, 0, number);
            let view = processor
                .transform()
                .draw(opened.width(), opened.height(), &mut rng);
            for quality in [
                DecodeQuality::Exact,
                DecodeQuality::Balanced,
                DecodeQuality::Fast,
            ] {
                let mut out = processor.blank();
                let done =
                    processor.render_opened(&mut decoder, &opened, &view, quality, out.as_mut());
                match (&whole, done) {
                    (_, Err(error)) => {
                        not_ours(&error.to_string());
                        // Below the crop nothing is decoded, so a damaged picture may have a good crop.
                        assert!(whole.is_err(), "a whole picture whose crop fails: {error}");
                    }
                    (Ok(whole), Ok(_)) if quality == DecodeQuality::Exact => {
                        let mut expected = processor.blank();
                        processor.render(whole, &view, expected.as_mut());
                        let pairs = out.as_bytes().iter().zip(expected.as_bytes());
                        let away: Vec<u8> = pairs.map(|(a, b)| a.abs_diff(*b)).collect();
                        let worst = away.iter().max();
                        let sum: usize = away.iter().map(|&away| usize::from(away)).sum();
                        // A JPEG is resampled before its colours are converted, so colours that no RGB has
                        // are cut off later than those of the whole picture.
                        let is_near = match opened.format() {
                            ImageFormat::Jpeg => sum <= away.len(),
                            _ => worst <= Some(&2),
                        };
                        assert!(
                            is_near,
                            "{view:?} of {whole:?} is {worst:?} away, {sum} of {len} in all",
                            len = away.len(),
                            whole = (whole.width(), whole.height())
                        );
                    }
                    _ => {}
                }
            }
        });
    }
});
