//! Interleaved pixels to planes.

/// Writes the samples of RGB pixels to a plane for each channel; as many as the shortest holds.
pub fn split_rgb(pixels: &[u8], red: &mut [u8], green: &mut [u8], blue: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::has_avx2() {
        x86::split_rgb(pixels, red, green, blue);
        return;
    }
    split(pixels, red, green, blue);
}

#[inline(always)]
fn split(pixels: &[u8], red: &mut [u8], green: &mut [u8], blue: &mut [u8]) {
    let samples = red.iter_mut().zip(green).zip(blue);
    for (pixel, ((red, green), blue)) in pixels.chunks_exact(3).zip(samples) {
        (*red, *green, *blue) = (pixel[0], pixel[1], pixel[2]);
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    /// The same loop, which the compiler turns into shuffles of 32 bytes.
    #[target_feature(enable = "avx2")]
    fn with_avx2(pixels: &[u8], red: &mut [u8], green: &mut [u8], blue: &mut [u8]) {
        super::split(pixels, red, green, blue);
    }

    pub(super) fn split_rgb(pixels: &[u8], red: &mut [u8], green: &mut [u8], blue: &mut [u8]) {
        // SAFETY: the caller has looked whether the processor has AVX2.
        unsafe { with_avx2(pixels, red, green, blue) }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_length() {
        for len in [0usize, 1, 2, 31, 32, 33, 64, 224, 1000] {
            let pixels: Vec<u8> = (0..3 * len).map(|at| (at * 37 % 251) as u8).collect();
            let mut planes = [vec![0; len], vec![0; len], vec![0; len]];
            let [red, green, blue] = &mut planes;
            super::split_rgb(&pixels, red, green, blue);
            for (channel, plane) in planes.iter().enumerate() {
                let expected = pixels.iter().skip(channel).step_by(3);
                assert!(
                    plane.iter().eq(expected),
                    "channel {channel} of {len} pixels"
                );
            }
        }
    }
}
