//! Both passes over a plane: columns first, as vectors of neighbouring columns need no sum across them,
//! then rows. Samples are rounded and clipped to 8 bits in between, as in PIL.

use super::lanczos::{Axis, Weights, GROUP, PLACES, VECTOR};
use super::plane::Plane;

/// Tables of weights that are kept: luma and chroma across and down, for as many sizes as photographs
/// usually have. One takes about 10 KiB.
const MOST_TABLES: usize = 256;

/// Bytes of all tables but the last two.
const MOST_TABLE_BYTES: usize = 4 << 20;

/// Resizes planes.
#[derive(Debug, Default)]
pub(super) struct Passes {
    tables: Vec<Weights>,
    table_bytes: usize,
    /// A row after the first pass.
    line: Vec<u8>,
}

impl Passes {
    /// Resizes a plane across and down. None if there is no memory.
    pub(super) fn resize(
        &mut self,
        plane: &Plane,
        (across, down): (Axis, Axis),
        out: &mut Plane,
    ) -> Option<()> {
        out.set(across.size, down.size)?;
        self.make_room();
        let (across, down) = (self.table(across), self.table(down));
        let (across, down) = (&self.tables[across], &self.tables[down]);
        // Weights of 0 may lie behind the row.
        self.line.clear();
        self.line.resize(plane.pitch + across.taps + VECTOR, 0);
        let mut rows: Vec<&[u8]> = Vec::with_capacity(down.used);
        for (y, weights) in down
            .weights
            .chunks_exact(down.taps)
            .take(out.height)
            .enumerate()
        {
            let last = plane.height - 1;
            let start = down.starts[y];
            rows.clear();
            rows.extend((start..start + down.used).map(|row| plane.row(row.min(last))));
            columns(&rows, &weights[..down.used], &mut self.line[..plane.pitch]);
            row(&self.line, across, out.row_mut(y));
        }
        Some(())
    }

    /// The place of an axis' table.
    fn table(&mut self, axis: Axis) -> usize {
        if let Some(found) = self.tables.iter().position(|table| table.axis == axis) {
            return found;
        }
        let table = Weights::new(axis);
        self.table_bytes += table.bytes();
        self.tables.push(table);
        self.tables.len() - 1
    }

    /// Forgets all tables if they are too many.
    fn make_room(&mut self) {
        if self.tables.len() > MOST_TABLES || self.table_bytes > MOST_TABLE_BYTES {
            self.tables.clear();
            self.table_bytes = 0;
        }
    }
}

/// Sums of rows of equal length (a multiple of [`super::plane::PITCH_UNIT`]), by weights, of which there is an even
/// number, one for each row.
pub(super) fn columns(rows: &[&[u8]], weights: &[i16], line: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::has_avx2() {
        super::x86::columns(rows, weights, line);
        return;
    }
    portable_columns(rows, weights, line);
}

/// The results of a row, with room for whole groups behind it.
pub(super) fn row(line: &[u8], across: &Weights, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::has_avx2() {
        super::x86::row(line, across, out);
        return;
    }
    portable_row(line, across, out);
}

fn rounded(sum: i32) -> u8 {
    (sum >> PLACES).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PLACES - 1);

pub(super) fn portable_columns(rows: &[&[u8]], weights: &[i16], line: &mut [u8]) {
    for (at, sample) in line.iter_mut().enumerate() {
        let products = rows.iter().zip(weights);
        let products = products.map(|(row, &weight)| i32::from(row[at]) * i32::from(weight));
        *sample = rounded(HALF + products.sum::<i32>());
    }
}

pub(super) fn portable_row(line: &[u8], across: &Weights, out: &mut [u8]) {
    let entries = across.axis.size.next_multiple_of(GROUP);
    let rows = across.weights.chunks_exact(across.taps);
    for ((sample, &start), weights) in out[..entries].iter_mut().zip(&across.starts).zip(rows) {
        let products = line[start..].iter().zip(weights);
        let products = products.map(|(&sample, &weight)| i32::from(sample) * i32::from(weight));
        *sample = rounded(HALF + products.sum::<i32>());
    }
}
