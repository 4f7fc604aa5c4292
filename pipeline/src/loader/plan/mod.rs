//! Planning: which position of which data set comes next, and which are this rank's.

pub(crate) mod indexed;
pub(crate) mod mix;
pub(crate) mod position;
pub(crate) mod sets;
