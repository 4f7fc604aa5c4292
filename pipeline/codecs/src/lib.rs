//! Safe access to two C decoders: [`jpeg`] is libjpeg-turbo, [`webp`] libwebp.
//!
//! Both decode a region of a picture into the caller's memory. [`resample`] resizes it, [`planes`]
//! splits its channels, [`normalise`] makes floats of its samples. All `unsafe` of image decoding is
//! in this crate.

mod huffman;
mod inverse;
pub mod jpeg;
pub mod normalise;
pub mod planes;
pub mod resample;
#[cfg(test)]
#[path = "../../../tests/test_data.rs"]
mod test_data;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod webp;

/// Whether this processor can run what is compiled for AVX2.
pub(crate) fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
}
