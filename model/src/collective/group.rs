//! Joining the other ranks, and parting from them.

use std::time::{Duration, Instant};

use tch::{Device, Tensor};

use super::c10d::{C10dError, Gradients, Group, Nccl, Network, Reducer, Reduction};
use super::rank::{is_loopback, RankConfig, RankTimeouts};
use super::store::{first_line, Board};
use super::watch::{OnLost, Watch, BEAT, LAST_WORDS};
use crate::error::ModelError;

/// Bytes of gradients that travel together, as in `torch.nn.parallel.DistributedDataParallel`.
const BUCKET_BYTES: usize = 25 << 20;

/// Time in which rank 0 lets the others part before it takes the store away.
const PARTING: Duration = Duration::from_secs(10);

/// Heartbeats that a rank misses before it is named as the one that a connection broke to.
const MISSED_BEATS: u32 = 3;

/// The processes of a data-parallel run, joined: [`Collective`](super::Collective) and [`Ranks`](super::Ranks) over Gloo for tensors on
/// the CPU and NCCL for those on a GPU.
pub struct ProcessGroup {
    pub(super) config: RankConfig,
    // In this order they are dropped: the store goes last.
    pub(super) watch: Watch,
    /// Of the losses and of everything else outside of the backward pass.
    pub(super) group: Group,
    /// Of the gradients, so that their order cannot mix with that of the losses' gathers.
    pub(super) gradients: Group,
    pub(super) board: Board,
}

impl ProcessGroup {
    /// Joins the ranks for computing on `device`, which must be the same kind on all. `on_lost` is
    /// called once, from another thread, when a rank is found dead or has given a reason to end: the
    /// caller may be inside a call that never returns, so it should end the process.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a place that cannot be, [`ModelError::Rendezvous`] when the ranks do
    /// not meet: naming the address and those that are missing, or the port that is in use.
    pub fn join(
        config: RankConfig,
        device: Device,
        timeouts: RankTimeouts,
        on_lost: impl FnOnce(String) + Send + 'static,
    ) -> Result<ProcessGroup, ModelError> {
        config.validate()?;
        let on_lost: OnLost = Box::new(on_lost);
        let error = |message: String| ModelError::Rendezvous {
            rank: config.rank,
            address: format!("{}:{}", config.host, config.port),
            message,
        };
        let deadline = Instant::now() + timeouts.join;
        let board = Board {
            store: config
                .open(config.hosts_store, timeouts.join)
                .map_err(error)?,
        };
        config.meet(&board, device, deadline).map_err(error)?;
        let nccl = match device {
            Device::Cuda(_) => {
                let nccl = Nccl::open();
                Some(nccl.map_err(|said| error(format!("NCCL: {said}")))?)
            }
            _ => None,
        };
        let network = match &config.interface {
            Some(interface) => Network::Interface(interface),
            None if is_loopback(&config.host) => Network::Address("127.0.0.1"),
            None => Network::Default,
        };
        let ranks = (config.rank as i32, config.world_size as i32);
        let join = |name: &str| {
            let waits = (timeouts.join, timeouts.collective);
            Group::join(&board.store, name, ranks, waits, network, nccl).map_err(|said| {
                error(format!(
                    "the ranks met, but cannot connect to each other ({}); name the network \
                     interface that they share, with GLOO_SOCKET_IFNAME say",
                    first_line(&said)
                ))
            })
        };
        let (group, gradients) = (join("losses")?, join("gradients")?);
        let own_board = Board {
            store: config.open(false, timeouts.join).map_err(error)?,
        };
        let watch = Watch::start(own_board, &config, timeouts.silence, on_lost)
            .map_err(|io| error(format!("cannot start a thread ({io})")))?;
        Ok(ProcessGroup {
            config,
            watch,
            group,
            gradients,
            board,
        })
    }

    /// Overwrites each tensor by that of the rank it is paired with, in few large messages.
    ///
    /// # Errors
    /// [`ModelError::RankLost`] when a rank cannot be reached.
    pub fn share(&self, tensors: &[(&Tensor, i64)]) -> Result<(), ModelError> {
        let shared = self.group.share(&with_ranks(tensors), BUCKET_BYTES);
        shared.map_err(|said| self.lost(&said))
    }

    /// Sends tensors to the rank `to`, which is to [`receive`](Self::receive) them in this order.
    /// They travel by way of the host: a GPU needs no memory for them at either end.
    ///
    /// # Errors
    /// [`ModelError::RankLost`] when the rank cannot be reached.
    pub fn send(&self, tensors: &[&Tensor], to: i64) -> Result<(), ModelError> {
        let sent = self.group.send(tensors, to as i32);
        sent.map_err(|said| self.lost(&said))
    }

    /// Overwrites each tensor, contiguous and in host memory, by one that the rank it is paired with
    /// sends.
    ///
    /// # Errors
    /// [`ModelError::RankLost`] when a rank cannot be reached.
    pub fn receive(&self, tensors: &[(&Tensor, i64)]) -> Result<(), ModelError> {
        let received = self.group.receive(&with_ranks(tensors));
        received.map_err(|said| self.lost(&said))
    }

    /// Averages the gradients of `params` over all ranks, in place, after the backward pass. A
    /// parameter must have a gradient on all ranks or on none.
    ///
    /// # Errors
    /// [`ModelError::RankLost`] when a rank cannot be reached.
    pub fn average_gradients(&self, params: &[&Tensor]) -> Result<(), ModelError> {
        let gradients = params.iter().map(|param| param.f_grad());
        let gradients = gradients.collect::<Result<Vec<_>, _>>()?;
        let gradients: Vec<&Tensor> = gradients.iter().filter(|grad| grad.defined()).collect();
        self.gradients
            .average(&gradients, BUCKET_BYTES)
            .map_err(|said| self.lost(&said))
    }

    /// Averages the gradients of `params`, which have none yet, over all ranks during those backward
    /// passes that are announced to it. All ranks make it at the same time.
    ///
    /// # Errors
    /// [`ModelError::RankLost`] when a rank cannot be reached.
    pub fn reducer(&self, params: &[&Tensor], gives: Gradients) -> Result<Reducer<'_>, ModelError> {
        self.gradients
            .reducer(params, BUCKET_BYTES, gives)
            .map_err(|said| self.lost(&said))
    }

    /// Parts from the other ranks when all have come here.
    ///
    /// # Errors
    /// [`ModelError::RankLost`] when a rank cannot be reached.
    pub fn leave(self) -> Result<(), ModelError> {
        if self.config.world_size > 1 {
            let mut nothing = Tensor::f_from_slice(&[0i64])?;
            let all = self.group.reduce(&mut nothing, Reduction::Max);
            all.map_err(|said| self.lost(&said))?;
        }
        // From here on the others may go in any order, and the store with rank 0.
        self.watch.silence();
        self.part(PARTING);
        Ok(())
    }

    fn part(&self, patience: Duration) {
        let config = &self.config;
        self.board
            .part(config.world_size, config.hosts_store, patience);
    }

    /// Ends the run for all ranks because of `error` here, and returns what to tell the user: the
    /// error itself, or what really happened where it is nothing but a connection that broke. From now
    /// on this rank's watch is silent.
    pub fn fail(&self, error: &str) -> String {
        self.watch.silence();
        let rank = self.config.rank;
        let (told, cause) = match is_broken_connection(error) {
            false => (format!("rank {rank}: {error}"), error.to_string()),
            true => {
                let cause = match self.find_cause() {
                    Ok(Some(cause)) => cause,
                    Err(_) if rank != 0 => "rank 0 is gone: its store does not answer".into(),
                    _ => format!("rank {rank} lost contact to another: {}", first_line(error)),
                };
                (cause.clone(), cause)
            }
        };
        // The others look for it every second. Without a store they see connections break.
        let _ = self.board.put_failure(&told);
        self.part(LAST_WORDS);
        cause
    }

    /// The reason that another rank gives, or the rank that no longer sends heartbeats.
    fn find_cause(&self) -> Result<Option<String>, C10dError> {
        let count = || -> Result<Vec<i64>, C10dError> {
            let all = (0..self.config.world_size).map(|rank| self.board.beats(rank));
            all.collect()
        };
        let before = count()?;
        for _ in 0..MISSED_BEATS * 10 {
            if let Some(cause) = self.board.failure()? {
                return Ok(Some(cause));
            }
            std::thread::sleep(BEAT / 10);
        }
        let silent = before.iter().zip(count()?).position(|(a, b)| *a == b);
        Ok(silent.map(|rank| format!("rank {rank} is gone: its process ended without a word")))
    }

    pub(super) fn lost(&self, said: &str) -> ModelError {
        ModelError::RankLost {
            rank: self.config.rank,
            message: first_line(said).to_string(),
        }
    }
}

/// Ranks as c10d numbers them; they are below [`MAX_WORLD_SIZE`](super::rank::MAX_WORLD_SIZE).
fn with_ranks<'a>(tensors: &[(&'a Tensor, i64)]) -> Vec<(&'a Tensor, i32)> {
    let pairs = tensors.iter();
    pairs.map(|&(tensor, rank)| (tensor, rank as i32)).collect()
}

/// Whether an error says no more than that another process is no longer there.
fn is_broken_connection(error: &str) -> bool {
    ["gloo", "Gloo", "NCCL", "ProcessGroup", "lost contact"]
        .iter()
        .any(|word| error.contains(word))
}

impl std::fmt::Debug for ProcessGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessGroup")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
