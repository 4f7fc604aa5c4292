//! Where decoders put rows.

use super::{DecodeError, ImageFormat};

/// Receives the rows of a region from the top, RGB.
pub(super) type RowSink<'a> = &'a mut dyn FnMut(&[u8]);

/// Zeroed memory for a decoder.
///
/// # Errors
/// [`DecodeError::NoMemory`].
pub(super) fn memory_for(format: ImageFormat, bytes: usize) -> Result<Vec<u8>, DecodeError> {
    let mut memory = Vec::new();
    grow(&mut memory, format, bytes)?;
    Ok(memory)
}

/// Makes memory at least this long.
pub(super) fn grow(
    memory: &mut Vec<u8>,
    format: ImageFormat,
    bytes: usize,
) -> Result<(), DecodeError> {
    if memory.len() < bytes {
        memory
            .try_reserve_exact(bytes - memory.len())
            .map_err(|_| DecodeError::NoMemory { format, bytes })?;
        memory.resize(bytes, 0);
    }
    Ok(())
}
