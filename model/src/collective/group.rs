//! Joining the other ranks, and parting from them.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::c10d::{C10dError, Gradients, Group, Nccl, Network, Reducer, Store};
use super::store::Board;
use super::watch::{first_line, OnLost, Watch, BEAT, LAST_WORDS};
use super::{Collective, Ranks, Reduction};
use crate::error::ModelError;

/// Bytes of gradients that travel together, as in `torch.nn.parallel.DistributedDataParallel`.
const BUCKET_BYTES: usize = 25 << 20;

/// Time in which rank 0 lets the others part before it takes the store away.
const PARTING: Duration = Duration::from_secs(10);

/// Heartbeats that a rank misses before it is named as the one that a connection broke to.
const MISSED_BEATS: u32 = 3;

/// Largest port-independent world: beyond it something else is wrong.
const MAX_WORLD_SIZE: i64 = 65_536;

/// How long ranks wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankTimeouts {
    /// For all ranks to come, from the start of this one. Default 300 s.
    pub join: Duration,
    /// For a heartbeat, which every rank sends each second. Default 15 s.
    pub silence: Duration,
    /// For the others to make the same call, while they are alive: rank 0 validates alone, say.
    /// Default 2 h.
    pub collective: Duration,
}

impl Default for RankTimeouts {
    fn default() -> Self {
        RankTimeouts {
            join: Duration::from_secs(300),
            silence: Duration::from_secs(15),
            collective: Duration::from_secs(2 * 3600),
        }
    }
}

/// Where this process stands among the ranks, and where they meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankConfig {
    /// This process, from 0.
    pub rank: i64,
    /// Number of ranks, 1 or more.
    pub world_size: i64,
    /// Name or address of the machine of rank 0.
    pub host: String,
    /// Port there.
    pub port: u16,
    /// Whether this process opens that port. Rank 0 does, unless a launcher has done so already.
    pub hosts_store: bool,
    /// Keeps attempts of one job apart where the store outlives them.
    pub attempt: String,
    /// The network interface that Gloo uses; none for that of the machine's name, or the loopback
    /// where `host` is one.
    pub interface: Option<String>,
}

/// What ranks tell each other before anything else.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Hello {
    world_size: i64,
    is_cuda: bool,
}

/// The processes of a data-parallel run, joined: [`Collective`] and [`Ranks`] over Gloo for tensors on
/// the CPU and NCCL for those on a GPU.
pub struct ProcessGroup {
    config: RankConfig,
    // In this order they are dropped: the store goes last.
    watch: Watch,
    /// Of the losses and of everything else outside of the backward pass.
    group: Group,
    /// Of the gradients, so that their order cannot mix with that of the losses' gathers.
    gradients: Group,
    board: Board,
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
        self.barrier()?;
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

    fn lost(&self, said: &str) -> ModelError {
        ModelError::RankLost {
            rank: self.config.rank,
            message: first_line(said).to_string(),
        }
    }
}

/// Ranks as c10d numbers them; they are below [`MAX_WORLD_SIZE`].
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

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.starts_with("127.") || host == "::1"
}

impl RankConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the one that is out of range.
    pub fn validate(&self) -> Result<(), ModelError> {
        let error = |setting, message| Err(ModelError::Config { setting, message });
        if !(1..=MAX_WORLD_SIZE).contains(&self.world_size) {
            let message = format!("{} is out of range; take 1 or more", self.world_size);
            return error("world_size", message);
        }
        if !(0..self.world_size).contains(&self.rank) {
            let (rank, size) = (self.rank, self.world_size);
            let message = format!("{rank} is not below the number of ranks, {size}");
            return error("rank", message);
        }
        if self.host.is_empty() {
            return error("master address", "is empty".into());
        }
        Ok(())
    }

    fn open(&self, hosts: bool, timeout: Duration) -> Result<Store, C10dError> {
        let store = Store::open((&self.host, self.port), hosts, &self.attempt, timeout);
        store.map_err(|said| {
            let said = first_line(&said);
            if hosts && said.contains("EADDRINUSE") {
                return format!(
                    "port {} is in use on this machine; end the process that has it, or take \
                     another MASTER_PORT on all ranks",
                    self.port
                );
            }
            match hosts {
                true => format!("cannot open the port ({said})"),
                false => format!(
                    "rank 0 cannot be reached within {} s; check that it runs, and that \
                     MASTER_ADDR and MASTER_PORT name its machine and a port open to this one \
                     ({said})",
                    timeout.as_secs()
                ),
            }
        })
    }

    /// Waits for all ranks and checks that they mean the same run.
    fn meet(&self, board: &Board, device: Device, deadline: Instant) -> Result<(), C10dError> {
        let claims = board.store.add(&format!("claim/{}", self.rank), 1)?;
        if claims != 1 {
            return Err(format!(
                "another process is rank {} already; give each its own RANK",
                self.rank
            ));
        }
        let own = Hello {
            world_size: self.world_size,
            is_cuda: device.is_cuda(),
        };
        let json = serde_json::to_vec(&own).map_err(|error| error.to_string())?;
        board.store.set(&format!("hello/{}", self.rank), &json)?;
        for rank in 0..self.world_size {
            let key = format!("hello/{rank}");
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(json) = board.store.get(&key, left.max(Duration::from_millis(1))) else {
                return Err(self.missing(board));
            };
            let other: Hello = serde_json::from_slice(&json)
                .map_err(|error| format!("rank {rank} is another program ({error})"))?;
            if other.world_size != own.world_size {
                return Err(format!(
                    "rank {rank} was started for {} ranks, this one for {}; give all the same \
                     WORLD_SIZE",
                    other.world_size, own.world_size
                ));
            }
            if other.is_cuda != own.is_cuda {
                let name = |is_cuda| if is_cuda { "a GPU" } else { "the CPU" };
                return Err(format!(
                    "rank {rank} computes on {}, this one on {}; give all the same --device",
                    name(other.is_cuda),
                    name(own.is_cuda)
                ));
            }
        }
        Ok(())
    }

    fn missing(&self, board: &Board) -> C10dError {
        let is_missing = |rank: &i64| !board.store.has(&format!("hello/{rank}")).unwrap_or(false);
        const SHOWN: usize = 8;
        let missing: Vec<i64> = (0..self.world_size).filter(is_missing).collect();
        let mut names: Vec<String> = missing.iter().take(SHOWN).map(i64::to_string).collect();
        if missing.len() > SHOWN {
            names.push("…".into());
        }
        format!(
            "{} of {} ranks did not come in time: {}; look at their logs, or at WORLD_SIZE",
            missing.len(),
            self.world_size,
            names.join(", ")
        )
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

impl std::fmt::Debug for ProcessGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessGroup")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
