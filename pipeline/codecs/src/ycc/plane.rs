//! Samples of one component.

/// Rows begin at multiples of this, in samples, so that whole vectors can be read and written.
pub(super) const PITCH_UNIT: usize = 32;

/// Samples of one component.
#[derive(Debug, Default)]
pub(crate) struct Plane {
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// Samples from one row to the next.
    pub(crate) pitch: usize,
    /// `[height, pitch]`, perhaps with more behind.
    pub(crate) samples: Vec<u8>,
}

impl Plane {
    /// Makes room; None if there is no memory.
    pub(super) fn set(&mut self, width: usize, height: usize) -> Option<()> {
        let pitch = width.checked_next_multiple_of(PITCH_UNIT)?;
        let len = pitch.checked_mul(height)?;
        if self.samples.len() < len {
            let more = len - self.samples.len();
            self.samples.try_reserve_exact(more).ok()?;
            self.samples.resize(len, 0);
        }
        (self.width, self.height, self.pitch) = (width, height, pitch);
        Some(())
    }

    pub(super) fn row(&self, row: usize) -> &[u8] {
        &self.samples[row * self.pitch..][..self.pitch]
    }

    pub(super) fn row_mut(&mut self, row: usize) -> &mut [u8] {
        &mut self.samples[row * self.pitch..][..self.pitch]
    }

    /// Rows become columns.
    pub(super) fn transpose_into(&self, other: &mut Plane) -> Option<()> {
        other.set(self.height, self.width)?;
        for y in 0..self.height {
            for (x, &sample) in self.row(y)[..self.width].iter().enumerate() {
                other.samples[x * other.pitch + y] = sample;
            }
        }
        Some(())
    }
}
