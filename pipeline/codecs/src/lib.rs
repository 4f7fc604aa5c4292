//! Safe access to two C decoders: [`jpeg`] is libjpeg-turbo, [`webp`] libwebp.
//!
//! Both decode a region of a picture into the caller's memory; [`planes`] splits its channels. All
//! `unsafe` of image decoding is in this crate.

mod huffman;
pub mod jpeg;
pub mod planes;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod webp;
