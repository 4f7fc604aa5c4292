//! What a run asks of its ranks, whatever stands behind them.

use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use super::c10d::Reduction;
use super::group::ProcessGroup;
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

/// What a run needs beyond its losses: agreement between the ranks. As in [`Collective`], every rank
/// makes the same calls in the same order.
pub trait Ranks: Collective {
    /// Reduces `tensor` over all ranks, in place.
    ///
    /// # Errors
    /// [`ModelError`] when a rank cannot be reached.
    fn all_reduce(&self, tensor: &mut Tensor, reduction: Reduction) -> Result<(), ModelError>;

    /// Overwrites `tensors` by those of rank 0.
    ///
    /// # Errors
    /// [`ModelError`] when a rank cannot be reached.
    fn broadcast(&self, tensors: &[&Tensor]) -> Result<(), ModelError>;

    /// The processes behind the ranks, where there are several.
    fn process_group(&self) -> Option<&ProcessGroup>;

    /// Leaves where this rank's data stand for rank 0, should this rank be lost.
    ///
    /// # Errors
    /// [`ModelError::RankLost`] when the store does not answer.
    fn leave_word(&self, state: &[u8]) -> Result<(), ModelError>;

    /// What every rank left last; `None` where one has not, or the store is gone. From now on this
    /// rank's watch is silent, so that there is time to make use of it.
    fn last_words(&self) -> Option<Vec<Vec<u8>>>;

    /// Whether this rank writes the run's files and speaks to the user.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// The largest of each of `values` over all ranks. Nothing waits for a device.
    ///
    /// # Errors
    /// [`ModelError`] when a rank cannot be reached.
    fn max(&self, values: &[i64]) -> Result<Vec<i64>, ModelError> {
        if self.world_size() == 1 {
            return Ok(values.to_vec());
        }
        let mut tensor = Tensor::f_from_slice(values)?;
        self.all_reduce(&mut tensor, Reduction::Max)?;
        Ok(Vec::<i64>::try_from(tensor)?)
    }

    /// Waits until every rank has come here.
    ///
    /// # Errors
    /// [`ModelError`] when a rank cannot be reached.
    fn barrier(&self) -> Result<(), ModelError> {
        self.max(&[0]).map(drop)
    }

    /// The bytes of every rank, in rank order, on every rank.
    ///
    /// # Errors
    /// [`ModelError`] when a rank cannot be reached.
    fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, ModelError> {
        if self.world_size() == 1 {
            return Ok(vec![bytes.to_vec()]);
        }
        let own = Tensor::f_from_slice(&[bytes.len() as i64])?;
        let lengths = Vec::<i64>::try_from(self.all_gather(&own)?)?;
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
        // As long as the longest: all ranks gather tensors of one shape.
        let padded = Tensor::f_zeros([1, longest], (Kind::Uint8, tch::Device::Cpu))?;
        if !bytes.is_empty() {
            let mut head = padded.f_narrow(1, 0, bytes.len() as i64)?;
            head.f_copy_(&Tensor::f_from_slice(bytes)?.f_unsqueeze(0)?)?;
        }
        let all = self.all_gather(&padded)?;
        let parts = lengths.iter().enumerate().map(|(rank, &length)| {
            let part = all.f_get(rank as i64)?.f_narrow(0, 0, length)?;
            Ok(Vec::<u8>::try_from(part.f_contiguous()?)?)
        });
        parts.collect()
    }

    /// The bytes of rank 0, on every rank; `bytes` of the others do not matter.
    ///
    /// # Errors
    /// [`ModelError`] when a rank cannot be reached.
    fn broadcast_bytes(&self, bytes: &[u8]) -> Result<Vec<u8>, ModelError> {
        if self.world_size() == 1 {
            return Ok(bytes.to_vec());
        }
        let own = if self.is_first() { bytes } else { &[] };
        let length = self.max(&[own.len() as i64])?.first().copied();
        let length = length.unwrap_or(0);
        let tensor = match self.is_first() && length > 0 {
            true => Tensor::f_from_slice(own)?,
            false => Tensor::f_zeros([length], (Kind::Uint8, tch::Device::Cpu))?,
        };
        if length > 0 {
            self.broadcast(&[&tensor])?;
        }
        Ok(Vec::<u8>::try_from(tensor)?)
    }
}

/// SHA-256 of what ranks compare.
pub fn digest(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).to_vec()
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

impl Ranks for SingleProcess {
    fn all_reduce(&self, _: &mut Tensor, _: Reduction) -> Result<(), ModelError> {
        Ok(())
    }

    fn broadcast(&self, _: &[&Tensor]) -> Result<(), ModelError> {
        Ok(())
    }

    fn process_group(&self) -> Option<&ProcessGroup> {
        None
    }

    fn leave_word(&self, _: &[u8]) -> Result<(), ModelError> {
        Ok(())
    }

    fn last_words(&self) -> Option<Vec<Vec<u8>>> {
        None
    }
}

impl Collective for ProcessGroup {
    fn rank(&self) -> i64 {
        self.config.rank
    }

    fn world_size(&self) -> i64 {
        self.config.world_size
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor, ModelError> {
        let gathered = self.group.gather(tensor, false);
        gathered.map_err(|said| self.lost(&said))
    }

    fn all_gather_with_grad(&self, tensor: &Tensor) -> Result<Tensor, ModelError> {
        let gathered = self.group.gather(tensor, true);
        gathered.map_err(|said| self.lost(&said))
    }
}

impl Ranks for ProcessGroup {
    fn all_reduce(&self, tensor: &mut Tensor, reduction: Reduction) -> Result<(), ModelError> {
        let reduced = self.group.reduce(tensor, reduction);
        reduced.map_err(|said| self.lost(&said))
    }

    fn broadcast(&self, tensors: &[&Tensor]) -> Result<(), ModelError> {
        let sent = self.group.broadcast(tensors);
        sent.map_err(|said| self.lost(&said))
    }

    fn process_group(&self) -> Option<&ProcessGroup> {
        Some(self)
    }

    fn leave_word(&self, state: &[u8]) -> Result<(), ModelError> {
        let left = self.board.leave_word(self.config.rank, state);
        left.map_err(|said| self.lost(&said))
    }

    fn last_words(&self) -> Option<Vec<Vec<u8>>> {
        self.watch.silence();
        let ranks = 0..self.config.world_size;
        ranks.map(|rank| self.board.last_word(rank).ok()?).collect()
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

    #[test]
    fn a_single_process_agrees_with_itself() {
        assert_eq!(SingleProcess.max(&[3, -1]).unwrap(), [3, -1]);
        assert_eq!(SingleProcess.gather_bytes(b"ab").unwrap(), [b"ab"]);
        assert_eq!(SingleProcess.broadcast_bytes(b"ab").unwrap(), b"ab");
        SingleProcess.barrier().unwrap();
        assert!(SingleProcess.is_first());
    }
}
