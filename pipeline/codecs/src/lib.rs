//! Safe access to two C libraries: [`jpeg`] is libjpeg-turbo's decoder, [`webp`] libwebp's, [`encode`]
//! has their encoders.
//!
//! Both decode a region of a picture into the caller's memory. [`resample`] resizes it, [`planes`]
//! splits its channels, [`normalise`] makes floats of its samples, [`ycc`] resizes a JPEG's components. All `unsafe` of image decoding is
//! in this crate. `qf_pipeline::decode` chooses between the ways to decode a picture and has the other formats.
//!
//! From interleaved pixels to the planes of floats that a network sees:
//!
//! ```
//! use qf_codecs::{normalise::Normaliser, planes::split_rgb};
//!
//! let pixels = [255, 0, 51, 255, 102, 51]; // two pixels, RGB
//! let (mut red, mut green, mut blue) = ([0; 2], [0; 2], [0; 2]);
//! split_rgb(&pixels, &mut red, &mut green, &mut blue);
//! assert_eq!((red, green, blue), ([255, 255], [0, 102], [51, 51]));
//!
//! let mut floats = [0.0; 2];
//! Normaliser::new(0.5, 0.25).apply(&green, &mut floats); // (x / 255 - mean) / std
//! assert_eq!(floats[0], -2.0);
//! ```

mod cpu;
pub mod encode;
mod huffman;
mod inverse;
pub mod jpeg;
pub mod normalise;
pub mod planes;
pub mod resample;
mod strip;
#[cfg(test)]
#[path = "../../../tests/test_data.rs"]
mod test_data;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod versions;
pub mod webp;
pub mod ycc;

pub use versions::{libjpeg_turbo_version, libwebp_version};
