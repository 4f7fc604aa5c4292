//! The passes against their plain form, and pictures against what they show.

use super::lanczos::{Axis, Weights, VECTOR};
use super::passes::{columns, portable_columns, portable_row, row};
use super::*;
use crate::strip::STRIP_ROWS;
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

/// Rows of luma and chroma as decoders lay them out: where chroma is halved across, with samples before the
/// strip's own, and where it is halved down, with a row above and one below.
struct Rows {
    luma: Vec<Vec<u8>>,
    chroma: [Vec<Vec<u8>>; 2],
}

/// What stands at a column and a row of the whole picture's plane.
fn sample(plane: usize, x: usize, y: usize) -> u8 {
    (1 + plane * 80 + (x * 7 + y * 3) % 80) as u8
}

fn strip_rows(width: usize, first: usize, rows: usize, halved: Halved) -> Rows {
    const OTHER: u8 = 255;
    let row = |plane, before, columns: usize, y| {
        let own = (0..columns).map(|x| sample(plane, x, y));
        let mut row = vec![OTHER; before];
        row.extend(own);
        row.push(OTHER);
        row
    };
    let (before, columns) = match halved.across {
        true => ((LUMA_BEFORE, CHROMA_BEFORE), width.div_ceil(2)),
        false => ((0, 0), width),
    };
    let (first_row, chroma_rows) = match halved.down {
        true => (first / 2, rows.div_ceil(2)),
        false => (first, rows),
    };
    let chroma = |plane| {
        let mut all: Vec<_> = (first_row..first_row + chroma_rows)
            .map(|y| row(plane, before.1, columns, y))
            .collect();
        if halved.down {
            all.insert(0, vec![OTHER; 100]);
            all.push(vec![OTHER; 100]);
        }
        all
    };
    Rows {
        luma: (first..first + rows)
            .map(|y| row(0, before.0, width, y))
            .collect(),
        chroma: [chroma(1), chroma(2)],
    }
}

/// The rows, and none where there are fewer than a strip may have.
fn filled(rows: &[Vec<u8>]) -> [&[u8]; STRIP_ROWS] {
    std::array::from_fn(|at| rows.get(at).map_or(&[][..], Vec::as_slice))
}

impl Rows {
    fn strip(&self, first_row: usize, halved: Halved) -> ComponentStrip<'_> {
        ComponentStrip {
            first_row: first_row as u32,
            before: (0, 0),
            rows: self.luma.len(),
            halved,
            luma: filled(&self.luma),
            chroma: [filled(&self.chroma[0]), filled(&self.chroma[1])],
        }
    }
}

/// Every sample of every component is where it was in the picture, and nothing of what lies beside it.
#[test]
fn strips_make_the_whole_picture() {
    let (width, height) = (37, 41);
    let mut stored = Stored::default();
    for (across, down) in [(false, false), (true, false), (true, true), (false, true)] {
        let halved = Halved { across, down };
        stored.begin((width as u32, height as u32));
        for first in (0..height).step_by(STRIP_ROWS) {
            assert!(!stored.is_complete());
            let rows = STRIP_ROWS.min(height - first);
            let rows = strip_rows(width, first, rows, halved);
            assert!(stored.push(&rows.strip(first, halved)), "{halved:?}");
        }
        assert!(stored.is_complete());
        assert_eq!(stored.halved, halved);
        for (number, plane) in stored.planes.iter().enumerate() {
            let half = |length: usize, is_halved| match number > 0 && is_halved {
                true => length.div_ceil(2),
                false => length,
            };
            assert_eq!(
                (plane.width, plane.height),
                (half(width, across), half(height, down))
            );
            for y in 0..plane.height {
                let expected: Vec<u8> = (0..plane.width).map(|x| sample(number, x, y)).collect();
                assert_eq!(plane.row(y)[..plane.width], expected, "{halved:?}, row {y}");
            }
        }
    }
}

/// What is not the picture's next strip is refused: one that comes too early or twice, that is sampled
/// otherwise, whose rows are too short, and one row too many.
#[test]
fn strips_that_do_not_come_next_are_refused() {
    let halved = Halved {
        across: true,
        down: true,
    };
    let (width, height) = (20, 20);
    let mut stored = Stored::default();
    stored.begin((width as u32, height as u32));
    let whole = |first, rows| strip_rows(width, first, rows, halved);
    let (first, second) = (whole(0, STRIP_ROWS), whole(STRIP_ROWS, 4));
    assert!(!stored.push(&second.strip(STRIP_ROWS, halved)), "too early");
    for before in [(1, 0), (0, 1)] {
        let strip = ComponentStrip {
            before,
            ..first.strip(0, halved)
        };
        assert!(!stored.push(&strip), "not the whole picture");
    }
    assert!(stored.push(&first.strip(0, halved)));
    let finer = Halved::default();
    assert!(
        !stored.push(&second.strip(STRIP_ROWS, finer)),
        "sampled otherwise"
    );
    assert!(!stored.push(&second.strip(STRIP_ROWS + 4, halved)));
    let long = whole(STRIP_ROWS, 6);
    assert!(
        !stored.push(&long.strip(STRIP_ROWS, halved)),
        "too many rows"
    );
    let narrow = strip_rows(width - 3, STRIP_ROWS, 4, halved);
    assert!(
        !stored.push(&narrow.strip(STRIP_ROWS, halved)),
        "short rows"
    );
    assert!(!stored.is_complete());
    let target = Target {
        scaled: (10, 10),
        origin: (0, 0),
        size: (10, 10),
        transposed: false,
        flipped: (false, false),
    };
    let mut resizer = Resizer::default();
    assert!(resizer.resize(&stored, (20.0, 20.0), &target).is_none());
    assert!(stored.push(&second.strip(STRIP_ROWS, halved)));
    assert!(!stored.push(&second.strip(STRIP_ROWS, halved)), "twice");
    assert!(resizer.resize(&stored, (20.0, 20.0), &target).is_some());
    for (scaled, size) in [
        ((10, 0), (10, 10)),
        ((0, 10), (10, 10)),
        ((10, 10), (0, 10)),
        ((10, 10), (10, 0)),
    ] {
        let empty = Target {
            scaled,
            size,
            ..target
        };
        assert!(
            resizer.resize(&stored, (20.0, 20.0), &empty).is_none(),
            "{empty:?}"
        );
    }
}
