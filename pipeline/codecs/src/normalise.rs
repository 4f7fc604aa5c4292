//! 8-bit samples to normalised floats.

/// What is done with the samples of one channel: `(x / 255 − mean) / std`, each operation rounded
/// to 32 bits.
#[derive(Clone, Debug)]
pub struct Normaliser {
    mean: f32,
    std: f32,
    table: [f32; 256],
    /// Whether [`quotients`] gives the numbers of the table.
    has_quotients: bool,
}

impl Normaliser {
    /// Normalises with these numbers; `std` is not 0.
    #[must_use]
    pub fn new(mean: f32, std: f32) -> Normaliser {
        let samples: [u8; 256] = std::array::from_fn(|value| value as u8);
        let table = samples.map(|value| (f32::from(value) / 255.0 - mean) / std);
        let mut quick = [0.0; 256];
        quotients(&samples, mean, std, &mut quick);
        Normaliser {
            mean,
            std,
            table,
            has_quotients: table.map(f32::to_bits) == quick.map(f32::to_bits),
        }
    }

    /// Normalises as many samples as the shorter one holds. The numbers are the same on every
    /// processor.
    pub fn apply(&self, samples: &[u8], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if self.has_quotients && x86::is_available() {
            x86::quotients(samples, self.mean, self.std, out);
            return;
        }
        for (&sample, out) in samples.iter().zip(out) {
            *out = self.table[usize::from(sample)];
        }
    }
}

/// Divides by multiplying with the inverse and mending the result by its remainder, which nearly
/// always is what dividing gives; [`Normaliser::new`] looks whether it is.
#[inline(always)]
fn quotients(samples: &[u8], mean: f32, std: f32, out: &mut [f32]) {
    let quotient = |number: f32, divisor: f32, inverse: f32| {
        let quotient = number * inverse;
        (-quotient)
            .mul_add(divisor, number)
            .mul_add(inverse, quotient)
    };
    let (part, inverse) = (1.0 / 255.0, 1.0 / std);
    for (&sample, out) in samples.iter().zip(out) {
        let share = quotient(f32::from(sample), 255.0, part);
        *out = quotient(share - mean, std, inverse);
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    pub(super) fn is_available() -> bool {
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
    }

    /// The same loop, eight samples at a time.
    #[target_feature(enable = "avx2,fma")]
    fn with_fma(samples: &[u8], mean: f32, std: f32, out: &mut [f32]) {
        super::quotients(samples, mean, std, out);
    }

    pub(super) fn quotients(samples: &[u8], mean: f32, std: f32, out: &mut [f32]) {
        // SAFETY: the caller has asked `is_available`.
        unsafe { with_fma(samples, mean, std, out) }
    }
}

#[cfg(test)]
mod tests {
    use super::Normaliser;

    #[test]
    fn every_sample_is_what_dividing_gives() {
        let samples: Vec<u8> = (0..=255).chain(0..=6).collect();
        for (mean, std) in [
            (0.48145466, 0.26862954),
            (0.4578275, 0.261_302_6),
            (0.40821073, 0.275_777_1),
            (0.0, 1.0),
            (0.5, 0.5),
            (0.485, 0.229),
            // Far from any use: it must not matter whether the quotients are exact.
            (1e30, 1e-38),
            (0.1, 3e38),
            (f32::NAN, 1.0),
        ] {
            let mut out = vec![0.0; samples.len()];
            Normaliser::new(mean, std).apply(&samples, &mut out);
            for (&sample, &got) in samples.iter().zip(&out) {
                let expected = (f32::from(sample) / 255.0 - mean) / std;
                let same =
                    got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan());
                assert!(same, "{sample} with {mean}, {std}: {got}, not {expected}");
            }
        }
    }

    #[test]
    fn the_constants_of_clip_take_the_quick_way() {
        for (mean, std) in [
            (0.48145466, 0.26862954),
            (0.4578275, 0.261_302_6),
            (0.40821073, 0.275_777_1),
        ] {
            assert!(Normaliser::new(mean, std).has_quotients);
        }
    }
}
