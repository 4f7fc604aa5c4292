//! What the operating system says of this process.

use std::time::Duration;

/// CPU time (user and system, all threads) of this process so far.
pub fn cpu_time() -> Option<Duration> {
    usage::get().map(|usage| {
        let time = |value: libc::timeval| {
            let secs = u64::try_from(value.tv_sec).unwrap_or(0);
            let micros = u64::try_from(value.tv_usec).unwrap_or(0);
            Duration::from_secs(secs) + Duration::from_micros(micros)
        };
        time(usage.ru_utime) + time(usage.ru_stime)
    })
}

/// Greatest resident set of this process so far, in bytes.
pub fn peak_rss_bytes() -> Option<u64> {
    // A process inherits `ru_maxrss` of whoever started it; Linux also knows its own.
    let status = std::fs::read_to_string("/proc/self/status").ok();
    let own = status.as_deref().and_then(high_water_mark);
    own.or_else(max_rss)
}

/// Resident set of this process now, in bytes; `None` where the system does not tell.
pub fn rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    kib_of(&status, "VmRSS:")
}

/// Gives memory that was freed, but kept by the C allocator for later use, back to the operating
/// system. Costs some milliseconds, and page faults when the memory is used again.
///
/// Blocks of many sizes that live and die together (the tensors of a validation, say) leave the heap
/// full of gaps that fit nothing else: without this the resident set of a long run creeps up. Does
/// nothing where the allocator is not glibc's.
pub fn release_free_memory() {
    heap::trim();
}

/// `VmHWM:     1234 kB` of /proc/PID/status, in bytes.
fn high_water_mark(status: &str) -> Option<u64> {
    kib_of(status, "VmHWM:")
}

fn kib_of(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn max_rss() -> Option<u64> {
    // Linux counts in KiB, macOS in bytes.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    usage::get()
        .and_then(|usage| u64::try_from(usage.ru_maxrss).ok())
        .map(|rss| rss * unit)
}

#[allow(unsafe_code)]
mod usage {
    //! `getrusage(2)`.

    pub(super) fn get() -> Option<libc::rusage> {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the pointer is to writable memory of the right size.
        let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
        // SAFETY: all zeros is a valid `rusage`, and a successful call has filled it.
        (result == 0).then(|| unsafe { usage.assume_init() })
    }
}

#[allow(unsafe_code)]
mod heap {
    //! `malloc_trim(3)`.

    pub(super) fn trim() {
        #[cfg(target_env = "gnu")]
        // SAFETY: glibc takes the locks it needs; no memory that is in use is touched.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_there_and_grow() {
        let before = cpu_time().unwrap();
        while cpu_time().unwrap() <= before {
            std::hint::black_box(0);
        }
        assert!(peak_rss_bytes().unwrap() > 1 << 20);
        if cfg!(target_os = "linux") {
            let now = rss_bytes().unwrap();
            assert!(now > 1 << 20 && now <= peak_rss_bytes().unwrap());
        }
        assert!(max_rss().unwrap() > 1 << 20);
    }

    #[test]
    fn the_high_water_mark_is_found() {
        let status = "Name:\tqfdata\nVmPeak:\t  99 kB\nVmHWM:\t   20 kB\nVmRSS:\t 9 kB\n";
        assert_eq!(high_water_mark(status), Some(20 << 10));
        for odd in [
            "",
            "VmHWM:",
            "VmHWM:\t20 MB",
            "VmHWM:\t99999999999999999999 kB",
        ] {
            assert_eq!(high_water_mark(odd), None);
        }
    }
}
