//! Keys and values of attention.

use tch::Tensor;

use crate::error::ModelError;

/// Keys and values of one attention, each `[B, heads, S, d]`.
#[derive(Debug)]
pub(crate) struct KeyValue {
    pub(crate) key: Tensor,
    pub(crate) value: Tensor,
}

impl KeyValue {
    /// The batch entries of `index`, `[N]` i64.
    pub(crate) fn select(&self, index: &Tensor) -> Result<KeyValue, ModelError> {
        Ok(KeyValue {
            key: self.key.f_index_select(0, index)?,
            value: self.value.f_index_select(0, index)?,
        })
    }

    /// The keys and values of `later` after these, of the same batch.
    pub(super) fn join(&self, later: &KeyValue) -> Result<KeyValue, ModelError> {
        Ok(KeyValue {
            key: Tensor::f_cat(&[&self.key, &later.key], 2)?,
            value: Tensor::f_cat(&[&self.value, &later.value], 2)?,
        })
    }
}

/// An image as cross attention sees it: keys and values of every layer that has one, in order.
///
/// They depend on nothing but the image, so that one computation serves every call of a step.
#[derive(Debug)]
pub(crate) struct ImageKeyValues(pub(super) Vec<KeyValue>);

impl ImageKeyValues {
    /// The images of `index`, `[N]` i64.
    pub(crate) fn select(&self, index: &Tensor) -> Result<ImageKeyValues, ModelError> {
        let layers = self.0.iter().map(|layer| layer.select(index));
        Ok(ImageKeyValues(layers.collect::<Result<_, _>>()?))
    }
}
