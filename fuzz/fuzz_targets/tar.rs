//! Any bytes as a tar shard, with and without their header checksums put right: streaming, and reading by an
//! index, give the same samples.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qf_fuzz::{check_index, repair_tar, stream, write};

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    for round in 0..2 {
        if round == 1 {
            repair_tar(&mut bytes);
        }
        let shard = write("a.tar", &bytes);
        let (samples, end) = stream(&shard);
        if samples.len() < 1000 {
            check_index(&shard, &samples, end.is_ok());
        }
    }
});
