//! libtorch's own profiler (Kineto): which operators and kernels ran when.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use qf_pipeline::trace::Trace;
use tch::Device;

use crate::error::ModelError;

/// Where an operation ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    /// An operator, on a thread of the host.
    Thread(i64),
    /// A kernel or copy, on a stream of a GPU.
    Stream { gpu: i32, stream: i64 },
}

/// An operation of a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Operation {
    name: String,
    lane: Lane,
    /// Since the beginning of the profile.
    start_ns: i64,
    duration_ns: i64,
}

/// What a [`TorchProfiler`] records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// Operators and what they start on a GPU. Recording an operator takes the host about as long as
    /// starting it.
    Operators,
    /// What runs on a GPU alone, with hardly any cost to the host: for times that count.
    Gpu,
}

/// What ran between start and end of a [`TorchProfiler`].
#[derive(Clone, Debug)]
pub struct Operations {
    began: Instant,
    all: Vec<Operation>,
}

/// libtorch's profiler, running on this thread.
pub struct TorchProfiler {
    began: (Instant, SystemTime),
    is_running: bool,
}

impl TorchProfiler {
    /// Begins to record the operators of this thread, and what a GPU does, or the latter alone. There
    /// is one at a time.
    ///
    /// # Errors
    /// [`ModelError::Torch`] where libtorch fails, such as when it is running already.
    pub fn start(device: Device, recorded: Recorded) -> Result<TorchProfiler, ModelError> {
        ffi::start(recorded == Recorded::Operators, device.is_cuda())?;
        Ok(TorchProfiler {
            began: (Instant::now(), SystemTime::now()),
            is_running: true,
        })
    }

    /// Ends the recording. On a GPU it waits for what was begun.
    ///
    /// # Errors
    /// [`ModelError::Torch`] where libtorch fails.
    pub fn stop(mut self, device: Device) -> Result<Operations, ModelError> {
        if let Device::Cuda(index) = device {
            tch::Cuda::synchronize(index as i64);
        }
        self.is_running = false;
        let (began, at) = self.began;
        let epoch_ns = at
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        let epoch_ns = i64::try_from(epoch_ns).unwrap_or(i64::MAX);
        let mut all = ffi::stop()?;
        for operation in &mut all {
            operation.start_ns = operation.start_ns.saturating_sub(epoch_ns);
        }
        all.retain(|operation| operation.duration_ns >= 0);
        all.sort_by_key(|op| (op.lane, op.start_ns, std::cmp::Reverse(op.duration_ns)));
        Ok(Operations { began, all })
    }
}

impl Drop for TorchProfiler {
    fn drop(&mut self) {
        if self.is_running {
            // Nobody wants to know what ran.
            let _ = ffi::stop();
        }
    }
}

impl Operations {
    /// What ran, operators and kernels.
    #[cfg(test)]
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|operation| operation.name.as_str())
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Share of the time, from the first to the last operation on GPUs, in which a GPU did nothing;
    /// `None` where no GPU did anything. Of that time the part `left_out`, from 0 to 1, is passed over
    /// at the beginning: until the host is ahead of the GPU again.
    pub fn gpu_idle_share(&self, left_out: f64) -> Option<f64> {
        let spans = self.on_gpu();
        let spans = spans.map(|op| (op.start_ns, op.start_ns + op.duration_ns));
        idle_share(without_beginning(spans.collect(), left_out))
    }

    /// Kernels, copies and fills on GPUs.
    pub fn gpu_operations(&self) -> usize {
        self.on_gpu().count()
    }

    fn on_gpu(&self) -> impl Iterator<Item = &Operation> {
        let all = self.all.iter();
        all.filter(|op| matches!(op.lane, Lane::Stream { .. }))
    }

    /// Writes everything to a trace: a track for each stream of a GPU, and one for the operators of
    /// each thread.
    pub fn record(&self, trace: &Trace) {
        let mut threads: Vec<Lane> = Vec::new();
        // Ends of the operations that enclose the next one, outermost first.
        let mut open: Vec<i64> = Vec::new();
        let mut of_lane = None;
        for operation in &self.all {
            if of_lane != Some(operation.lane) {
                of_lane = Some(operation.lane);
                open.clear();
                if matches!(operation.lane, Lane::Thread(_)) {
                    threads.push(operation.lane);
                }
            }
            let track = match operation.lane {
                Lane::Stream { gpu, stream } => format!("GPU {gpu}, stream {stream}"),
                Lane::Thread(_) if threads.len() == 1 => "operators".into(),
                Lane::Thread(_) => format!("operators, thread {}", threads.len()),
            };
            let Ok(since) = u64::try_from(operation.start_ns) else {
                // From before the profile.
                continue;
            };
            // Clocks of the GPU and rounding may let an inner operation end after its outer one.
            let end = operation.start_ns + operation.duration_ns;
            open.retain(|&outer| outer > operation.start_ns);
            let end = open.last().map_or(end, |&outer| end.min(outer));
            open.push(end);
            let duration = u64::try_from(end - operation.start_ns).unwrap_or(0);
            trace.track(&track).record(
                &operation.name,
                self.began + Duration::from_nanos(since),
                Duration::from_nanos(duration),
                &[],
            );
        }
    }
}

/// The spans without the part `left_out` of the time that they take from first to last.
fn without_beginning(spans: Vec<(i64, i64)>, left_out: f64) -> Vec<(i64, i64)> {
    let first = spans.iter().map(|(start, _)| *start).min().unwrap_or(0);
    let last = spans.iter().map(|(_, stop)| *stop).max().unwrap_or(0);
    let begin = first + ((last - first) as f64 * left_out) as i64;
    let after = spans.into_iter().filter(|(_, stop)| *stop > begin);
    after
        .map(|(start, stop)| (start.max(begin), stop))
        .collect()
}

/// Share of the time between the first beginning and the last end that no span covers.
fn idle_share(mut spans: Vec<(i64, i64)>) -> Option<f64> {
    spans.sort_unstable();
    let &(first, _) = spans.first()?;
    let (mut covered, mut end) = (0, first);
    for (start, stop) in spans {
        covered += (stop - start.max(end)).max(0);
        end = end.max(stop);
    }
    let whole = end - first;
    (whole > 0).then(|| 1.0 - covered as f64 / whole as f64)
}

#[allow(unsafe_code)]
mod ffi {
    //! The C functions of `shim/profiler.cpp`.

    use std::ffi::{c_char, c_int, c_void, CStr};

    use super::{Lane, Operation};
    use crate::error::ModelError;
    use crate::ops::shim_result;

    type Visit = extern "C" fn(*mut c_void, *const c_char, i64, i64, c_int, i64);

    extern "C" {
        fn qf_profiler_start(cpu: c_int, cuda: c_int) -> *mut c_char;
        fn qf_profiler_stop(visit: Visit, context: *mut c_void) -> *mut c_char;
    }

    pub(super) fn start(cpu: bool, cuda: bool) -> Result<(), ModelError> {
        // SAFETY: no pointers; the shim turns every exception into a message.
        shim_result(unsafe { qf_profiler_start(c_int::from(cpu), c_int::from(cuda)) })
    }

    /// Every operation, its start in ns since 1970.
    pub(super) fn stop() -> Result<Vec<Operation>, ModelError> {
        extern "C" fn visit(
            context: *mut c_void,
            name: *const c_char,
            start_ns: i64,
            duration_ns: i64,
            gpu: c_int,
            lane: i64,
        ) {
            // SAFETY: `context` is the vector below, which nobody else reaches during the call, and
            // `name` a C string that lasts as long as this visit.
            let (all, name) =
                unsafe { (&mut *context.cast::<Vec<Operation>>(), CStr::from_ptr(name)) };
            all.push(Operation {
                name: name.to_string_lossy().into_owned(),
                lane: match gpu {
                    -1 => Lane::Thread(lane),
                    gpu => Lane::Stream { gpu, stream: lane },
                },
                start_ns,
                duration_ns,
            });
        }
        let mut all: Vec<Operation> = Vec::new();
        // SAFETY: the shim passes the pointer on to `visit` and keeps neither.
        shim_result(unsafe { qf_profiler_stop(visit, (&raw mut all).cast()) })?;
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    #[test]
    fn operators_are_seen_with_their_backward_pass() {
        let profiler = TorchProfiler::start(Device::Cpu, Recorded::Operators).unwrap();
        let x = Tensor::ones([64, 64], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        x.matmul(&x).sum(Kind::Float).backward();
        let elapsed = profiler.began.0.elapsed();
        let operations = profiler.stop(Device::Cpu).unwrap();
        let count = |name: &str| {
            operations
                .all
                .iter()
                .filter(|op| op.name.contains(name))
                .count()
        };
        assert!(count("aten::matmul") >= 1 && count("Backward") >= 2);
        for op in &operations.all {
            // The clocks of both sides agree to well below the length of a step.
            let end = Duration::from_nanos((op.start_ns + op.duration_ns).max(0) as u64);
            assert!(op.start_ns > -1_000_000, "{op:?}");
            assert!(
                end < elapsed + Duration::from_millis(1),
                "{op:?}, {elapsed:?}"
            );
        }
        assert_eq!(operations.gpu_idle_share(0.0), None);
        assert_eq!(operations.gpu_operations(), 0);
        // Another can follow, also after one that was given up.
        drop(TorchProfiler::start(Device::Cpu, Recorded::Operators).unwrap());
        let profiler = TorchProfiler::start(Device::Cpu, Recorded::Operators).unwrap();
        assert!(profiler.stop(Device::Cpu).unwrap().all.len() < operations.all.len());
    }

    #[test]
    fn idle_is_what_no_stream_covers() {
        assert_eq!(idle_share(vec![]), None);
        assert_eq!(idle_share(vec![(5, 5)]), None);
        assert_eq!(idle_share(vec![(0, 10)]), Some(0.0));
        // Two streams at once, a gap, one within another.
        let spans = vec![(60, 100), (10, 30), (20, 40), (62, 70)];
        assert!((idle_share(spans.clone()).unwrap() - 20.0 / 90.0).abs() < 1e-12);
        // From 55 on: a gap of 5, which the beginning is then no part of, and 40 of work.
        let rest = without_beginning(spans.clone(), 0.5);
        assert_eq!(rest, [(60, 100), (62, 70)]);
        assert_eq!(idle_share(rest), Some(0.0));
        assert_eq!(without_beginning(spans.clone(), 0.25)[1], (32, 40));
        assert_eq!(without_beginning(spans.clone(), 0.0), spans);
        assert_eq!(without_beginning(vec![], 0.5), []);
    }
}
