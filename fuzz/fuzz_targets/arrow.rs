//! Any bytes as an Arrow shard: streaming, and reading by an index, give the same samples.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qf_fuzz::{check_index, stream, write};

fuzz_target!(|data: &[u8]| {
    let shard = write("a.arrow", data);
    let (samples, end) = stream(&shard);
    if samples.len() < 1000 {
        check_index(&shard, &samples, end.is_ok());
    }
});
