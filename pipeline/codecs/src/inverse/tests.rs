//! Against the transform as it is written down.

use super::*;
use crate::testing::Numbers;

/// `jidctint.c` as libjpeg-turbo's SIMD code does it: sums of inputs, and what lies between the passes,
/// have 16 bits.
fn reference(block: &Block, factors: &Block) -> [u8; SIDE * SIDE] {
    fn pass(input: [i16; 8], shift: i32) -> [i16; 8] {
        let [i0, i1, i2, i3, i4, i5, i6, i7] = input;
        let (z3, z4) = (i7.wrapping_add(i3), i5.wrapping_add(i1));
        let (sum, difference) = (i0.wrapping_add(i4), i0.wrapping_sub(i4));
        let wide = [i1, i2, i3, i5, i6, i7, z3, z4, sum, difference].map(i64::from);
        let [i1, i2, i3, i5, i6, i7, z3, z4, sum, difference] = wide;
        let z1 = (i2 + i6) * 4433;
        let (t2, t3) = (z1 - i6 * 15137, z1 + i2 * 6270);
        let (t0, t1) = (sum * 8192, difference * 8192);
        let even = [t0 + t3, t1 + t2, t1 - t2, t0 - t3];
        let (z1, z2) = (-(i7 + i1) * 7373, -(i5 + i3) * 20995);
        let z5 = (z3 + z4) * 9633;
        let (z3, z4) = (z5 - z3 * 16069, z5 - z4 * 3196);
        let odd = [
            i1 * 12299 + z1 + z4,
            i3 * 25172 + z2 + z3,
            i5 * 16819 + z2 + z4,
            i7 * 2446 + z1 + z3,
        ];
        std::array::from_fn(|at| {
            let sum = match at {
                0..4 => even[at] + odd[at],
                _ => even[7 - at] - odd[7 - at],
            };
            let shifted = (sum + (1 << (shift - 1))) as i32 >> shift;
            shifted.clamp(i16::MIN.into(), i16::MAX.into()) as i16
        })
    }
    let product = |at: usize| block[at].wrapping_mul(factors[at]);
    let is_flat = block[SIDE..].iter().all(|&coefficient| coefficient == 0);
    let mut halfway = [[0; 8]; 8];
    for column in 0..8 {
        let input = std::array::from_fn(|row| product(row * 8 + column));
        let results = match is_flat {
            true => [input[0] << 2; 8],
            false => pass(input, 11),
        };
        for (row, value) in halfway.iter_mut().zip(results) {
            row[column] = value;
        }
    }
    let mut samples = [0; 64];
    for (row, input) in halfway.into_iter().enumerate() {
        for (column, value) in pass(input, 18).into_iter().enumerate() {
            samples[row * 8 + column] = (value.clamp(-128, 127) + 128) as u8;
        }
    }
    samples
}

/// `jidctred.c`, as the SIMD code does it.
fn reduced_reference(block: &Block, factors: &Block) -> [u8; HALF * HALF] {
    fn pass([i0, i1, i2, i3, _, i5, i6, i7]: [i16; 8], shift: i32) -> [i16; 4] {
        let [i0, i1, i2, i3, i5, i6, i7] = [i0, i1, i2, i3, i5, i6, i7].map(i64::from);
        let even = i2 * 15137 - i6 * 6270;
        let (a, b) = ((i0 << 14) + even, (i0 << 14) - even);
        let inner = -i7 * 1730 + i5 * 11893 - i3 * 17799 + i1 * 8697;
        let outer = -i7 * 4176 - i5 * 4926 + i3 * 7373 + i1 * 20995;
        [a + outer, b + inner, b - inner, a - outer].map(|sum| {
            let shifted = (sum + (1 << (shift - 1))) as i32 >> shift;
            shifted.clamp(i16::MIN.into(), i16::MAX.into()) as i16
        })
    }
    let product = |at: usize| block[at].wrapping_mul(factors[at]);
    let other_rows = [1, 2, 3, 5, 6, 7];
    let is_flat = other_rows
        .into_iter()
        .all(|row| block[row * SIDE..][..SIDE].iter().all(|&c| c == 0));
    let mut halfway = [[0; 8]; HALF];
    for column in 0..8 {
        let input = std::array::from_fn(|row| product(row * 8 + column));
        let results = match is_flat {
            true => [input[0] << 2; HALF],
            false => pass(input, 12),
        };
        for (row, value) in halfway.iter_mut().zip(results) {
            row[column] = value;
        }
    }
    let mut samples = [0; HALF * HALF];
    for (row, input) in halfway.into_iter().enumerate() {
        for (column, value) in pass(input, 19).into_iter().enumerate() {
            samples[row * HALF + column] = (value.clamp(-128, 127) + 128) as u8;
        }
    }
    samples
}

/// Coefficients as damaged pictures have them.
fn wild(numbers: &mut Numbers, side: usize) -> Block {
    let mut block = [0; 64];
    for row in 0..side {
        for column in 0..side {
            block[row * 8 + column] = match numbers.below(4) {
                0 => numbers.below(1 << 16) as u16 as i16,
                1 => numbers.below(32) as i16 - 16,
                _ => 0,
            };
        }
    }
    if numbers.below(3) == 0 {
        block[SIDE..].fill(0);
    }
    if numbers.below(9) == 0 {
        block[4 * SIDE] = 3;
    }
    block
}

/// Coefficients as pictures have them, in so many first rows and columns.
fn block(numbers: &mut Numbers, side: usize) -> Block {
    let mut block = [0; 64];
    let density = 1 + numbers.below(8);
    for row in 0..side {
        for column in 0..side {
            if row + column == 0 || numbers.below(8) < density {
                let most = 400 >> (row + column);
                block[row * 8 + column] = numbers.below(2 * most + 1) as i16 - most as i16;
            }
        }
    }
    block
}

/// Blocks and pairs of blocks against a reference that gives `samples_side` samples for a side.
fn check(samples_side: usize, reference: impl Fn(&Block, &Block) -> Vec<u8>) {
    if !crate::cpu::has_avx2() {
        crate::test_data::skip("inverse", "this processor has no AVX2");
        return;
    }
    let mut numbers = Numbers(1);
    for number in 0..20_000 {
        let sides = [0; 2].map(|_| match numbers.below(4) {
            0 => 1,
            1 => 4,
            2 => 1 + numbers.below(8) as usize,
            _ => 8,
        });
        let factors: Block = std::array::from_fn(|_| 1 + numbers.below(4) as i16);
        let blocks = sides.map(|side| match number % 2 {
            0 => block(&mut numbers, side),
            _ => wild(&mut numbers, side),
        });
        let expected = blocks.map(|block| reference(&block, &factors));
        // As MCUs of one to three blocks, and one of another component.
        let (count, across) = (1 + numbers.below(2) as usize, 1 + numbers.below(3) as usize);
        let other = [5; 64];
        let order: Vec<usize> = (0..count * across)
            .map(|_| numbers.below(2) as usize)
            .collect();
        let mut memory = Vec::new();
        for mcu in order.chunks(across) {
            memory.extend(mcu.iter().map(|&block| blocks[block]));
            memory.push(other);
        }
        let stretch = Stretch {
            blocks: &mut memory,
            mcu_blocks: across + 1,
            offset: 0,
            across,
        };
        let plane = PlanePlan {
            index: 0,
            across,
            down: 1,
            side: samples_side,
            factors,
        };
        const PITCH: usize = 8 * SIDE;
        let mut samples = [7; PITCH * SIDE];
        transform(stretch, &plane, &mut samples[5..], PITCH).expect("rows are long enough");
        for mcu in memory.chunks(across + 1) {
            let zeros = mcu[..across].iter().all(|block| *block == [0; 64]);
            assert!(zeros && mcu[across] == other, "{number}: zeros are left");
        }
        for (at, row) in samples.chunks(PITCH).enumerate() {
            let mut wanted = [7; PITCH];
            for (place, &block) in order.iter().enumerate() {
                if let Some(samples) = expected[block].chunks(samples_side).nth(at) {
                    wanted[5 + place * samples_side..][..samples_side].copy_from_slice(samples);
                }
            }
            let is_lone = (across == 1 && count == 1) || across == 3;
            if is_lone && at < samples_side {
                // Where a neighbour of the last would be.
                wanted[5 + order.len() * samples_side..][..samples_side].fill(128);
            }
            assert_eq!(*row, wanted, "{number}: row {at} of {blocks:?}");
        }
    }
}

#[test]
fn rows_that_are_too_short_are_refused() {
    let mut memory = [[1; 64]];
    let mut transform = |side, len: usize| {
        let stretch = Stretch {
            blocks: &mut memory,
            mcu_blocks: 1,
            offset: 0,
            across: 1,
        };
        let plane = PlanePlan {
            index: 0,
            across: 1,
            down: 1,
            side,
            factors: [1; 64],
        };
        super::transform(stretch, &plane, &mut vec![0; len], 30)
    };
    if crate::cpu::has_avx2() {
        assert_eq!(transform(SIDE, 7 * 30 + 15), None);
        assert_eq!(transform(SIDE, 7 * 30 + 16), Some(()));
        assert_eq!(transform(HALF, 3 * 30 + 7), None);
        assert_eq!(transform(HALF, 3 * 30 + 8), Some(()));
    }
}

#[test]
fn blocks_are_transformed_as_written_down() {
    check(SIDE, |block, factors| reference(block, factors).to_vec());
}

#[test]
fn blocks_are_reduced_as_written_down() {
    check(HALF, |block, factors| {
        reduced_reference(block, factors).to_vec()
    });
}
