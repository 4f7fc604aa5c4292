//! Which C decoders this program carries.

/// The version of libjpeg-turbo, e.g. `3.1.3`.
pub fn libjpeg_turbo_version() -> String {
    // Three digits each for the second and third number.
    let number = ffi::libjpeg_turbo();
    let (major, minor, patch) = (number / 1_000_000, number / 1000 % 1000, number % 1000);
    format!("{major}.{minor}.{patch}")
}

/// The version of libwebp, e.g. `1.6.0`.
pub fn libwebp_version() -> String {
    // A byte each.
    let number = ffi::libwebp();
    format!(
        "{}.{}.{}",
        number >> 16 & 0xff,
        number >> 8 & 0xff,
        number & 0xff
    )
}

#[allow(unsafe_code)]
mod ffi {
    use std::ffi::c_int;

    extern "C" {
        fn qf_jpeg_version() -> c_int;
    }

    pub(super) fn libjpeg_turbo() -> c_int {
        // SAFETY: the function of jpeg.c takes nothing and returns a constant.
        unsafe { qf_jpeg_version() }
    }

    pub(super) fn libwebp() -> c_int {
        // SAFETY: the function takes nothing and returns a constant.
        unsafe { libwebp_sys::WebPGetDecoderVersion() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_three_numbers() {
        for (version, majors) in [(libjpeg_turbo_version(), 2..=9), (libwebp_version(), 1..=9)] {
            let numbers: Vec<u32> = version.split('.').map(|n| n.parse().unwrap()).collect();
            assert_eq!(numbers.len(), 3, "{version}");
            assert!(majors.contains(&numbers[0]), "{version}");
        }
    }
}
