//! What the losses need from the other ranks of a data-parallel run.

use tch::Tensor;

use crate::error::ModelError;

/// The ranks of a data-parallel run, seen from one of them.
///
/// Every rank makes the same calls in the same order with tensors of the same shape.
pub trait Collective {
    /// This process among the ranks, from 0.
    fn rank(&self) -> i64;

    /// Number of ranks (W).
    fn world_size(&self) -> i64;

    /// `[B, …]` of every rank, in rank order: `[W · B, …]`. The result is a constant for autograd,
    /// own part included.
    ///
    /// # Errors
    /// [`ModelError`] when a rank cannot be reached.
    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor, ModelError>;

    /// The same, differentiable: the gradient of a rank's `tensor` is the sum over all ranks of the
    /// gradient of its part.
    ///
    /// # Errors
    /// [`ModelError`] when a rank cannot be reached.
    fn all_gather_with_grad(&self, tensor: &Tensor) -> Result<Tensor, ModelError>;
}

/// One process without others.
#[derive(Clone, Copy, Debug, Default)]
pub struct SingleProcess;

impl Collective for SingleProcess {
    fn rank(&self) -> i64 {
        0
    }

    fn world_size(&self) -> i64 {
        1
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor, ModelError> {
        // Detached as with several ranks, so that the gradients do not depend on their number.
        Ok(tensor.f_detach()?)
    }

    fn all_gather_with_grad(&self, tensor: &Tensor) -> Result<Tensor, ModelError> {
        Ok(tensor.shallow_clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_process_cuts_the_graph_only_where_asked() {
        let tensor = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
        assert!(!SingleProcess.all_gather(&tensor).unwrap().requires_grad());
        let gathered = SingleProcess.all_gather_with_grad(&tensor).unwrap();
        assert!(gathered.requires_grad());
        assert_eq!((SingleProcess.rank(), SingleProcess.world_size()), (0, 1));
    }
}
