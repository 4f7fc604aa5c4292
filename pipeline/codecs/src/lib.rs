//! Safe access to two C libraries: [`jpeg`] is libjpeg-turbo's decoder, [`webp`] libwebp's, [`encode`]
//! has their encoders.
//!
//! Both decode a region of a picture into the caller's memory. [`resample`] resizes it, [`planes`]
//! splits its channels, [`normalise`] makes floats of its samples. All `unsafe` of image decoding is
//! in this crate.

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
pub mod webp;
