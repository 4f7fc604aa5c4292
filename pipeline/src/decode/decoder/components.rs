//! Decodes a whole JPEG to its components.

use qf_codecs::jpeg::{ComponentStrip, Outcome};
use qf_codecs::ycc::Stored;

use super::{guard, halfway_bytes, CropBox, Decoder, ReducedCrop};
use crate::decode::memory::Reservation;
use crate::decode::opened::Content;
use crate::decode::orientation::Turn;
use crate::decode::{DecodeError, DecodeQuality, OpenedImage};

/// What came with the components of a picture.
pub(crate) struct ComponentsOf {
    /// Columns and rows of luma that are the picture, the last perhaps in part.
    pub(crate) content: (f64, f64),
    /// How to stand them upright.
    pub(crate) turn: Turn,
    /// Memory of a large picture, which is to be given back with the components.
    pub(crate) reservation: Option<Reservation>,
}

impl Decoder {
    /// Decodes a whole JPEG, to be resized to `size` along its shorter side, to luma and chroma in stored
    /// orientation. `None` if it is of a kind that comes another way, is damaged, or is no JPEG:
    /// [`Decoder::decode`] decodes it then, or says what is wrong.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`] for a picture beyond the limits.
    pub(crate) fn decode_components(
        &mut self,
        image: &OpenedImage<'_>,
        (size, quality): (u32, DecodeQuality),
        components: &mut Stored,
    ) -> Result<Option<ComponentsOf>, DecodeError> {
        let Content::Jpeg(header) = &image.content else {
            return Ok(None);
        };
        if !header.may_be_components() {
            return Ok(None);
        }
        let (width, height) = image.stored_size;
        let all = CropBox {
            x: 0,
            y: 0,
            width,
            height,
        };
        let reduced = ReducedCrop::new(all, quality.scale((width, height), size));
        let rows = reduced.region.height;
        let needed = reduced.needed_bytes(image, header, rows) + halfway_bytes(all, size);
        let reservation = self
            .limits
            .reserve(image.format, image.stored_size, needed)?;
        let part = reduced.part(image, header, self.on_truncated);
        components.begin((reduced.region.width, rows));
        let mut took_all = true;
        let mut take = |strip: &ComponentStrip<'_>| took_all &= components.push(strip);
        let outcome = guard(image.format, || {
            Ok(self.decompressor()?.decode_components(&part, &mut take))
        })?;
        let came = outcome == Outcome::Complete && took_all && components.is_complete();
        Ok(came.then_some(ComponentsOf {
            content: (reduced.crop.width, reduced.crop.height),
            turn: image.turn,
            reservation,
        }))
    }
}
