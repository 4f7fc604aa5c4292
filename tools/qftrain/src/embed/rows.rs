//! Rows with names and vectors.

use tch::{Device, Kind, Tensor};

/// Some rows.
pub(super) struct Table {
    /// Of each column of strings, a value for each row.
    pub(super) strings: Vec<Vec<String>>,
    /// Of each column of vectors, the values of all rows one behind the other.
    pub(super) vectors: Vec<Vec<f32>>,
}

/// A column of vectors.
#[derive(Clone, Debug)]
pub(super) struct Column {
    pub(super) name: &'static str,
    /// Of one row's value.
    pub(super) shape: Vec<usize>,
}

impl Column {
    /// Numbers of a row.
    pub(super) fn width(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The numbers of a tensor, row major.
pub(super) fn values(tensor: &Tensor) -> anyhow::Result<Vec<f32>> {
    let tensor = tensor.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
    Ok(Vec::try_from(tensor.f_flatten(0, -1)?)?)
}
