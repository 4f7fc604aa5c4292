//! What the image path asks of the allocator once it is warm.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use qf_codecs::resample::Resampler;
use qf_codecs::testing::{encode, photograph, Encoding};
use qf_pipeline::augment::SampleRng;
use qf_pipeline::image_stage::ImageSettings;
use qf_pipeline::LoaderConfig;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Whether this thread's are counted: the test harness has threads of its own.
    static COUNTS: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

#[allow(unsafe_code)]
mod counting {
    use super::*;

    // SAFETY: every call goes to the system's allocator as it came.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            if COUNTS.get() {
                COUNT.fetch_add(1, Ordering::Relaxed);
                BYTES.fetch_add(layout.size(), Ordering::Relaxed);
                LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
            }
            // SAFETY: the caller's promise.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: the caller's promise.
            unsafe { System.dealloc(pointer, layout) }
        }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Nothing at all is allocated, where the resampler runs. `fast_image_resize`, which stands in for it on
/// processors without AVX2, makes a table of weights for each row and column of the result; nothing has
/// the size of the file or of the picture. (libjpeg-turbo's own state, some 50 KB, comes from malloc and
/// goes back there after each picture.)
#[test]
fn nothing_grows_with_the_picture() {
    const SIZE: usize = 224;
    const SAMPLES: usize = 30;
    let files: Vec<Vec<u8>> = [(640, 480), (1300, 1100)]
        .into_iter()
        .map(|(width, height)| {
            let pixels = photograph(width, height, 3, 3);
            encode(&pixels, width, height, Encoding::default()).expect("encodes")
        })
        .collect();
    let config = LoaderConfig {
        image_size: SIZE,
        ..LoaderConfig::default()
    };
    let mut stage = ImageSettings::new(&config).expect("valid").stage();
    let mut out = stage.blank();
    let mut run = |numbers: std::ops::Range<usize>| {
        for number in numbers {
            for file in &files {
                let image = stage.open(file).expect("opens");
                let mut rng = SampleRng::new(1, 0, 0, number as u32);
                let rendered = stage.render(&image, &mut rng, out.as_mut());
                rendered.expect("decodes");
            }
        }
    };
    run(0..SAMPLES);
    COUNTS.set(true);
    drop(std::hint::black_box(vec![0u8; 100]));
    assert_eq!(BYTES.swap(0, Ordering::Relaxed), 100, "they are counted");
    assert_eq!(COUNT.swap(0, Ordering::Relaxed), 1);
    LARGEST.store(0, Ordering::Relaxed);
    // The same samples again: every buffer has been as large as it needs to be.
    run(0..SAMPLES);
    COUNTS.set(false);
    let visits = SAMPLES * files.len();
    let count = COUNT.load(Ordering::Relaxed) / visits;
    let bytes = BYTES.load(Ordering::Relaxed) / visits;
    let largest = LARGEST.load(Ordering::Relaxed);
    println!("{count} allocations of {bytes} bytes together a sample, the largest {largest}");
    if Resampler::is_available() {
        assert_eq!(COUNT.load(Ordering::Relaxed), 0, "allocations in all");
    }
    assert!(count <= ALLOWED_COUNT, "{count} allocations a sample");
    assert!(largest <= ALLOWED_BYTES, "an allocation of {largest} bytes");
    assert!(bytes <= 8 * ALLOWED_BYTES, "{bytes} bytes a sample");
    const { assert!(SIZE * SIZE * 3 > ALLOWED_BYTES) };
}

/// Two passes, a table per output position each, and what holds them.
const ALLOWED_COUNT: usize = 2 * 224 + 32;

/// The weights of one pass, f64, of a filter of 30 taps.
const ALLOWED_BYTES: usize = 224 * 30 * 8;
