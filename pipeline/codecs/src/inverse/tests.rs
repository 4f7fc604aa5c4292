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

#[allow(unsafe_code)]
fn sample(place: MaybeUninit<u8>) -> u8 {
    // SAFETY: the test has initialised all of them.
    unsafe { place.assume_init() }
}

/// Blocks and pairs of blocks against a reference that gives `samples_side` samples for a side.
fn check(samples_side: usize, reference: impl Fn(&Block, &Block) -> Vec<u8>) {
    if !crate::has_avx2() {
        println!("skipped: this processor has no AVX2");
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
        let [mut a, mut b] = blocks;
        let mut memory = [[MaybeUninit::new(7u8); 3 * SIDE]; SIDE];
        let mut rows = memory.each_mut().map(|row| &mut row[..]);
        let is_pair = number % 7 != 0;
        let second = is_pair.then_some(&mut b);
        transform(samples_side, &mut a, second, &factors, &mut rows, 5)
            .expect("rows are long enough");
        if !is_pair {
            b = [0; 64];
        }
        assert!(a == [0; 64] && b == [0; 64], "{number}: zeros are left");
        let memory = memory.map(|row| row.map(sample));
        for (at, row) in memory.iter().enumerate() {
            let mut wanted = [7; 3 * SIDE];
            for (block, expected) in expected.iter().enumerate().take(1 + usize::from(is_pair)) {
                if let Some(samples) = expected.chunks(samples_side).nth(at) {
                    wanted[5 + block * samples_side..][..samples_side].copy_from_slice(samples);
                }
            }
            assert_eq!(*row, wanted, "{number}: row {at} of {blocks:?}");
        }
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
