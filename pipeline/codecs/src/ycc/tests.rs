//! The passes against their plain form, and pictures against what they show.

use super::lanczos::{Axis, Weights, VECTOR};
use super::passes::{columns, portable_columns, portable_row, row};
use super::*;
use crate::testing::Numbers;

#[test]
fn vectors_give_what_plain_code_gives() {
    let mut numbers = Numbers(5);
    for (len, size, first, step) in [
        (640, 342, 0.94, 1.877),
        (640, 171, 636.2, -3.75),
        (33, 90, 0.2, 0.36),
        (7, 1, 3.5, 7.0),
        (1, 20, 0.1, 0.05),
        (900, 10, 45.0, 90.0),
    ] {
        let table = Weights::new(Axis {
            len,
            size,
            first,
            step,
        });
        for (at, weights) in table
            .weights
            .chunks_exact(table.taps)
            .take(size)
            .enumerate()
        {
            let sum: i32 = weights.iter().map(|&weight| i32::from(weight)).sum();
            assert_eq!(sum, 1 << 14, "{at} of {:?}", table.axis);
            let end = table.starts[at] + weights.iter().rposition(|&w| w != 0).unwrap() + 1;
            assert!(end <= len, "{at} of {:?}", table.axis);
            assert!(weights[table.used..].iter().all(|&weight| weight == 0));
        }
        let mut line: Vec<u8> = (0..len).map(|_| numbers.below(256) as u8).collect();
        line.resize(len.next_multiple_of(32) + table.taps + VECTOR, 0);
        let mut found = vec![0; size.next_multiple_of(32)];
        let mut plain = found.clone();
        row(&line, &table, &mut found);
        portable_row(&line, &table, &mut plain);
        assert_eq!(found, plain, "{:?}", table.axis);
        let rows: Vec<Vec<u8>> = (0..table.used)
            .map(|_| (0..96).map(|_| 255 * numbers.below(2) as u8).collect())
            .collect();
        let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
        let (mut found, mut plain) = ([0; 96], [1; 96]);
        columns(&rows, &table.weights[..table.used], &mut found);
        portable_columns(&rows, &table.weights[..table.used], &mut plain);
        assert_eq!(found, plain, "{:?}", table.axis);
    }
}

/// A picture whose luma rises to the right and whose Cb rises downwards.
fn slopes(width: usize, height: usize, halved: Halved) -> Stored {
    let mut stored = Stored {
        size: (width, height),
        rows: height,
        halved,
        ..Stored::default()
    };
    let half = |length: usize, is_halved| {
        if is_halved {
            length.div_ceil(2)
        } else {
            length
        }
    };
    let (across, down) = (half(width, halved.across), half(height, halved.down));
    for (number, plane) in stored.planes.iter_mut().enumerate() {
        let (columns, rows) = if number == 0 {
            (width, height)
        } else {
            (across, down)
        };
        plane.set(columns, rows).unwrap();
        for y in 0..rows {
            for x in 0..columns {
                // In the middle of a sample, of the picture's length.
                let at = |place: usize, samples: usize, of: usize| {
                    let every = if samples < of { 2 } else { 1 };
                    20 + ((2 * place + 1) * every * 100 / of) as u8
                };
                let sample = [at(x, columns, width), at(y, rows, height), 77][number];
                plane.row_mut(y)[x] = sample;
            }
        }
    }
    stored
}

/// Where a sample is upright, in columns and rows of 0 to 1, is what it says.
#[test]
fn turned_and_cut_pictures_show_what_was_stored() {
    let mut resizer = Resizer::default();
    for (across, down) in [(false, false), (true, false), (true, true), (false, true)] {
        let stored = slopes(121, 75, Halved { across, down });
        for turn in 0..8u8 {
            let (transposed, flip_columns, flip_rows) = (turn & 1 > 0, turn & 2 > 0, turn & 4 > 0);
            let scaled = if transposed { (37, 60) } else { (60, 37) };
            let target = Target {
                scaled,
                origin: (5, 2),
                size: (31, 30),
                transposed,
                flipped: (flip_columns, flip_rows),
            };
            let picture = resizer.resize(&stored, (121.0, 75.0), &target).unwrap();
            assert_eq!(picture.size, (31, 30));
            let [luma, blue, red] = &picture.planes;
            assert_eq!((luma.width, luma.height), (32, 30));
            assert_eq!((blue.width, blue.height, red.width), (16, 15, 16));
            let expected = |x: f64, y: f64, is_row: bool| {
                let (u, v) = (x / f64::from(scaled.0), y / f64::from(scaled.1));
                let (u, v) = if transposed { (v, u) } else { (u, v) };
                let place = if is_row { v } else { u };
                let flipped = if is_row { flip_rows } else { flip_columns };
                20.0 + 200.0 * if flipped { 1.0 - place } else { place }
            };
            // Away from the ends, where the filter has no samples beyond.
            for (x, y) in [(4, 4), (20, 9), (25, 25)] {
                let found = f64::from(luma.row(y)[x]);
                let wanted = expected(5.5 + x as f64, 2.5 + y as f64, false);
                assert!(
                    (found - wanted).abs() < 2.0,
                    "{turn} ({x}, {y}): {found} {wanted}"
                );
            }
            for (x, y) in [(3, 3), (9, 8), (12, 11)] {
                let found = f64::from(blue.row(y)[x]);
                let wanted = expected(6.0 + 2.0 * x as f64, 3.0 + 2.0 * y as f64, true);
                assert!(
                    (found - wanted).abs() < 2.0,
                    "{turn} ({x}, {y}): {found} {wanted}"
                );
                assert_eq!(red.row(y)[x], 77);
            }
        }
    }
}
