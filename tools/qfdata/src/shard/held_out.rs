//! Which images `--held-out` keeps for validation.

use sha2::{Digest, Sha256};

/// A share of images that go to shards of their own, drawn by the bytes of each: an image is on the same
/// side whatever else the input holds, and so are its captions and its exact doubles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct HeldOut {
    /// Above 0, below 1.
    pub(super) share: f64,
    pub(super) seed: u64,
}

impl HeldOut {
    /// Whether the image of this SHA-256 is held out; one whose bytes are not known is not.
    pub(super) fn takes(&self, sha256: Option<[u8; 32]>) -> bool {
        let Some(image) = sha256 else {
            return false;
        };
        let drawn = Sha256::new()
            .chain_update(self.seed.to_le_bytes())
            .chain_update(image)
            .finalize();
        let drawn = drawn.first_chunk().copied().map_or(0, u64::from_be_bytes);
        // 53 bits: as many as a float holds.
        ((drawn >> 11) as f64) < self.share * (1u64 << 53) as f64
    }
}

/// `10%` or `0.1`.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let share = match text.trim().strip_suffix('%') {
        Some(percent) => number(percent).map(|percent| percent / 100.0),
        None => number(text),
    };
    share
        .filter(|share| *share > 0.0 && *share < 1.0)
        .ok_or_else(|| {
            "give a share of the images above 0 and below 1, such as 10% or 0.1".to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_drawn_by_content_and_seed() {
        let image = |number: u32| Some(Sha256::digest(number.to_le_bytes()).into());
        let drawn = |share: f64, seed: u64| -> Vec<u32> {
            let held_out = HeldOut { share, seed };
            (0..10_000).filter(|&n| held_out.takes(image(n))).collect()
        };
        let tenth = drawn(0.1, 0);
        // Four standard deviations.
        assert!((880..1120).contains(&tenth.len()), "{}", tenth.len());
        // A larger share holds a smaller one.
        let third = drawn(0.3, 0);
        assert!(tenth.iter().all(|number| third.contains(number)));
        let other = drawn(0.1, 1);
        let both = tenth.iter().filter(|number| other.contains(number)).count();
        assert!((60..140).contains(&both), "{both}");
        assert!(!HeldOut {
            share: 0.9,
            seed: 0
        }
        .takes(None));
    }

    #[test]
    fn shares_are_fractions_or_percent() {
        assert_eq!(share("10%"), Ok(0.1));
        assert_eq!(share(" 2.5 %"), Ok(0.025));
        assert_eq!(share("0.1"), Ok(0.1));
        for bad in ["", "0", "1", "100%", "10", "-1%", "x", "NaN", "inf%"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }
}
