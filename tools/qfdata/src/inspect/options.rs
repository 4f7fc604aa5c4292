//! What an inspection looks at.

use qf_pipeline::LoaderConfig;

/// What to look at.
#[derive(Clone, Debug)]
pub(crate) struct InspectOptions {
    /// How samples are read and decoded.
    pub(crate) config: LoaderConfig,
    /// Whether pixels are decoded; else headers are read.
    pub(crate) decode: bool,
    /// Side of the square pixels that are kept of each image; 0 for none.
    pub(crate) keep_side: usize,
    /// Whether perceptual hashes are made.
    pub(crate) perceptual: bool,
    /// Images whose shorter side is below this are small.
    pub(crate) min_side: u32,
    /// Images whose sides differ by more than this factor are extreme.
    pub(crate) max_aspect: f64,
    /// Threads that decode.
    pub(crate) threads: usize,
}

impl InspectOptions {
    /// Everything is decoded, nothing is kept.
    pub(crate) fn new(config: LoaderConfig, threads: Option<u16>) -> InspectOptions {
        InspectOptions {
            config,
            decode: true,
            keep_side: 0,
            perceptual: false,
            min_side: 64,
            max_aspect: 4.0,
            threads: crate::threads::threads(threads),
        }
    }
}
