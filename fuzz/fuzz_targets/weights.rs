//! Any bytes as a weights file. Where the `safetensors` crate reads it, so do we, with the same tensors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qf_model::weights::WeightsFile;

fuzz_target!(|data: &[u8]| {
    let shard = qf_fuzz::write("model.bin", data);
    let path = shard.path().expect("a file");
    let Ok(file) = WeightsFile::open(path) else {
        return;
    };
    for name in file.names() {
        let (shape, _) = file.info(name).expect("a listed tensor");
        let elements: i64 = shape.iter().product();
        assert!(elements as u64 <= data.len() as u64, "{name} of {shape:?}");
        let tensor = file.tensor(name);
        if let Ok(tensor) = &tensor {
            assert_eq!(tensor.size(), shape);
        }
    }
    if let Ok(expected) = safetensors::SafeTensors::deserialize(data) {
        for (name, view) in expected.tensors() {
            let Some((shape, _)) = file.info(&name) else {
                continue;
            };
            let shape: Vec<usize> = shape.iter().map(|&side| side as usize).collect();
            assert_eq!(shape, view.shape(), "{name}");
        }
    }
});
