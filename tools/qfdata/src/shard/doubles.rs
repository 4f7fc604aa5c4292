//! Images that an earlier sample has already: the same bytes, or a perceptual hash that is close.

use std::collections::HashMap;

use super::args::Doubles;
use super::row::SkipCause;
use super::work::Facts;

/// The images so far: of each 16 bytes of its SHA-256, or 8 of its perceptual hash, and its key.
pub(super) struct Seen {
    kind: Option<Doubles>,
    keys: Vec<String>,
    exact: HashMap<[u8; 16], usize>,
    near: Near,
}

impl Seen {
    pub(super) fn new(kind: Option<Doubles>, near_distance: u8) -> Seen {
        Seen {
            kind,
            keys: Vec::new(),
            exact: HashMap::new(),
            near: Near::new(near_distance),
        }
    }

    /// The earlier sample with this image, if there is one: why it is one, its key, and how many bits of
    /// the hash differ.
    pub(super) fn twin(&self, facts: &Facts) -> Option<(SkipCause, &str, u32)> {
        let kind = self.kind?;
        let digest = digest(facts)?;
        if let Some(&sample) = self.exact.get(&digest) {
            return Some((SkipCause::Double, &self.keys[sample], 0));
        }
        if kind != Doubles::Near {
            return None;
        }
        let (sample, distance) = self.near.closest(facts.phash?)?;
        Some((SkipCause::NearDouble, &self.keys[sample], distance))
    }

    /// Remembers a sample that is kept.
    pub(super) fn add(&mut self, key: &str, facts: &Facts) {
        if let (Some(kind), Some(digest)) = (self.kind, digest(facts)) {
            let sample = self.keys.len();
            self.keys.push(key.to_owned());
            self.exact.insert(digest, sample);
            if let (Doubles::Near, Some(hash)) = (kind, facts.phash) {
                self.near.add(hash, sample);
            }
        }
    }
}

fn digest(facts: &Facts) -> Option<[u8; 16]> {
    facts.sha256?.first_chunk().copied()
}

/// Hashes of 64 bits, found by any within a distance d of them. A hash is cut into d + 1 pieces: of two
/// that differ in at most d bits, at least one piece is equal, so hashes with a piece in common are all
/// that need be compared.
struct Near {
    distance: u32,
    hashes: Vec<(u64, usize)>,
    /// Piece number and bits → positions in `hashes`.
    pieces: HashMap<(u32, u64), Vec<u32>>,
}

impl Near {
    fn new(distance: u8) -> Near {
        Near {
            distance: u32::from(distance),
            hashes: Vec::new(),
            pieces: HashMap::new(),
        }
    }

    /// The pieces of a hash, with their numbers.
    fn pieces(&self, hash: u64) -> impl Iterator<Item = (u32, u64)> {
        let count = self.distance + 1;
        (0..count).map(move |piece| {
            let (from, to) = (64 * piece / count, 64 * (piece + 1) / count);
            let bits = (hash >> from) & (u64::MAX >> (64 - (to - from)));
            (piece, bits)
        })
    }

    fn add(&mut self, hash: u64, sample: usize) {
        let position = u32::try_from(self.hashes.len()).unwrap_or(u32::MAX);
        self.hashes.push((hash, sample));
        for piece in self.pieces(hash) {
            self.pieces.entry(piece).or_default().push(position);
        }
    }

    /// The closest within the distance, the first of those that are as close; and its distance.
    fn closest(&self, hash: u64) -> Option<(usize, u32)> {
        let mut best: Option<(u32, u32)> = None;
        for piece in self.pieces(hash) {
            for &position in self.pieces.get(&piece).into_iter().flatten() {
                let Some((other, _)) = self.hashes.get(position as usize) else {
                    continue;
                };
                let distance = (hash ^ other).count_ones();
                if distance <= self.distance {
                    let found = (distance, position);
                    best = Some(best.map_or(found, |best| best.min(found)));
                }
            }
        }
        let (distance, position) = best?;
        Some((self.hashes.get(position as usize)?.1, distance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_hash_is_that_of_a_linear_search() {
        let mut state = 7u64;
        let mut draw = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state ^ (state >> 31)
        };
        for distance in [0u8, 1, 3, 8, 16] {
            let mut near = Near::new(distance);
            let mut hashes = Vec::new();
            for sample in 0..300 {
                let hash = draw();
                near.add(hash, sample);
                hashes.push(hash);
            }
            let mut found = 0;
            for base in 0..300 {
                let mut hash = hashes[base];
                for _ in 0..draw() % 20 {
                    hash ^= 1 << (draw() % 64);
                }
                let expected = hashes
                    .iter()
                    .enumerate()
                    .map(|(at, other)| ((hash ^ other).count_ones(), at))
                    .min()
                    .filter(|(d, _)| *d <= u32::from(distance))
                    .map(|(d, at)| (at, d));
                assert_eq!(near.closest(hash), expected, "distance {distance}");
                found += usize::from(expected.is_some());
            }
            assert!(found > 5, "{found} within {distance}");
        }
    }

    #[test]
    fn doubles_name_the_sample_that_is_kept() {
        let facts = |byte: u8, phash: u64| Facts {
            sha256: Some([byte; 32]),
            phash: Some(phash),
            ..Facts::default()
        };
        let mut seen = Seen::new(Some(Doubles::Near), 3);
        seen.add("a", &facts(1, 0b1111));
        seen.add("b", &facts(2, u64::MAX));
        assert_eq!(seen.twin(&facts(2, 5)), Some((SkipCause::Double, "b", 0)));
        assert_eq!(
            seen.twin(&facts(3, 0b1100)),
            Some((SkipCause::NearDouble, "a", 2))
        );
        assert_eq!(seen.twin(&facts(3, 0xff00_0000)), None);
        let mut exact = Seen::new(Some(Doubles::Exact), 3);
        exact.add("a", &facts(1, 0));
        assert_eq!(exact.twin(&facts(3, 0)), None);
        assert!(exact.twin(&facts(1, 9)).is_some());
        let mut none = Seen::new(None, 3);
        none.add("a", &facts(1, 0));
        assert_eq!(none.twin(&facts(1, 0)), None);
    }
}
