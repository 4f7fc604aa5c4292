//! Memory of tensors on the CPU, in a process of its own: the allocator is the whole process's.

use std::collections::VecDeque;

use qf_model::error::ModelError;
use qf_model::host_memory::{block_bytes, keep_blocks, release, BlockBytes};
use tch::{Device, Kind, Tensor};

fn tensor(bytes: usize) -> Tensor {
    Tensor::empty([bytes as i64], (Kind::Uint8, Device::Cpu))
}

/// xorshift64: sizes and lifetimes without a pattern.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// Bytes that are resident and of no file, as Linux counts them.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<usize>().unwrap() * 1024
}

fn is_bounded(now: BlockBytes) -> bool {
    now.used <= now.peak && now.used + now.kept <= now.peak + now.peak / 4
}

/// Tensors of all sizes on several threads, written, checked and dropped on others: none shares memory
/// with another, and what is kept stays within the bound. Data begins where SIMD code wants it.
fn tensors_share_nothing() {
    let (sender, receiver) = std::sync::mpsc::sync_channel::<(Tensor, u8)>(8);
    let check = |tensor: &Tensor, value: u8| {
        let is_same = tensor.eq(i64::from(value)).all();
        assert!(bool::try_from(is_same).unwrap());
    };
    std::thread::scope(|scope| {
        for thread in 1..=3u64 {
            let sender = sender.clone();
            scope.spawn(move || {
                let mut random = Random(thread);
                let mut live = VecDeque::new();
                for turn in 0..1500 {
                    let value = (turn * 3 + thread) as u8;
                    let bytes = match random.below(4) {
                        0 => 1 + random.below(300),
                        1 => (128 << 10) - 80 + random.below(160),
                        2 => 1 << (10 + random.below(12)),
                        _ => 1 + random.below(2 << 20),
                    };
                    let mut new = tensor(bytes);
                    assert_eq!(new.data_ptr() as usize % 64, 0);
                    let _ = new.fill_(i64::from(value));
                    live.push_back((new, value));
                    if live.len() > 12 {
                        let (old, value) = live.swap_remove_back(random.below(12)).unwrap();
                        check(&old, value);
                        sender.send((old, value)).unwrap();
                    }
                    assert!(is_bounded(block_bytes()), "{:?}", block_bytes());
                }
            });
        }
        drop(sender);
        receiver
            .iter()
            .for_each(|(tensor, value)| check(&tensor, value));
    });
    let end = block_bytes();
    assert!(end.used == 0 && end.kept > 0, "{end:?}");
}

/// A tensor of a size that was there before takes the block of the one before it.
fn blocks_are_used_again() {
    release();
    let none = BlockBytes {
        used: 0,
        kept: 0,
        peak: 0,
    };
    assert_eq!(block_bytes(), none);
    let first = tensor(3 << 20);
    let at = first.data_ptr() as usize;
    let BlockBytes { used, .. } = block_bytes();
    // A header of 64 bytes, rounded up to an eighth of a power of two.
    assert_eq!(used, (3 << 20) + (1 << 18));
    drop(first);
    let again = tensor((3 << 20) + 1000);
    assert_eq!(again.data_ptr() as usize, at);
    // What is left of the bound is no place for both.
    drop(again);
    let other = tensor(2 << 20);
    let now = block_bytes();
    assert!(now.kept == 0 && is_bounded(now), "{now:?}");
    drop(other);
    release();
    assert_eq!(block_bytes(), none);
}

/// While tensors from 1 KiB to 1.6 MB come and go in any order, resident memory is within the bound, early
/// and ten times as late. What is kept goes back to the system.
fn resident_memory_is_bounded() {
    release();
    let mut random = Random(7);
    let mut live: Vec<Option<Tensor>> = (0..64).map(|_| None).collect();
    let before = resident();
    for turn in 1..=6000 {
        let of = random.below(live.len());
        let mut new = tensor((40 << 10) * random.below(41) + 1000 + random.below(200));
        let _ = new.fill_(1);
        live[of] = Some(new);
        if turn % 600 == 0 {
            let BlockBytes { peak, .. } = block_bytes();
            // Beside blocks, the small ones on the heap.
            let bound = peak + peak / 4 + (8 << 20);
            let grown = resident().saturating_sub(before);
            assert!(grown > 16 << 20 && grown < bound, "{grown} of {bound}");
        }
    }
    drop(live);
    let BlockBytes { used, kept, .. } = block_bytes();
    assert!(used == 0 && kept > 16 << 20, "{used}, {kept}");
    let before = resident();
    release();
    let after = resident();
    assert!(before - after > 16 << 20, "{before} to {after}");
}

/// What no machine has is an error that says how much was wanted, and the next tensor is there.
fn too_much_is_an_error() {
    for bytes in [1i64 << 55, i64::MAX] {
        let error = Tensor::f_empty([bytes], (Kind::Uint8, Device::Cpu)).unwrap_err();
        assert!(error.to_string().contains(&bytes.to_string()), "{error}");
        assert!(ModelError::from(error).is_out_of_memory());
    }
    // Nor does it count as having been in use.
    let none = BlockBytes {
        used: 0,
        kept: 0,
        peak: 0,
    };
    assert_eq!(block_bytes(), none);
    assert_eq!(
        i64::try_from(Tensor::ones([200_000], (Kind::Int64, Device::Cpu)).sum(Kind::Int64))
            .unwrap(),
        200_000
    );
    assert_eq!(tensor(0).numel(), 0);
}

/// One test: the figures are those of the process.
#[test]
fn large_tensors_have_blocks_of_their_own() {
    let before = Tensor::ones([1 << 20], (Kind::Float, Device::Cpu));
    keep_blocks().unwrap();
    // Whoever allocated a tensor frees it.
    drop(before);
    assert_eq!(block_bytes().used, 0);
    tensors_share_nothing();
    blocks_are_used_again();
    resident_memory_is_bounded();
    too_much_is_an_error();
}
