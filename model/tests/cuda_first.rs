//! A generator that is seeded before CUDA is opened does not hide it. Alone in its process: libtorch looks
//! for its CUDA part once.

use qf_model::device::{cuda_versions, open_device, seed, DeviceChoice};
use tch::{Device, Kind, Tensor};

#[path = "../../tests/test_data.rs"]
mod test_data;

#[test]
#[allow(clippy::disallowed_methods)] // torch's own seed, to compare with.
fn seeding_does_not_look_for_cuda() {
    seed(5, Device::Cpu).unwrap();
    let drawn = Tensor::rand([8], (Kind::Float, Device::Cpu));
    // A machine may have neither: what libtorch sees of its CUDA part is the question.
    let opened = open_device(DeviceChoice::Cuda(0));
    let has_libraries = match &opened {
        Ok(_) => true,
        Err(error) => !error.to_string().contains("libtorch are not there"),
    };
    match has_libraries {
        true => assert!(cuda_versions().is_some(), "{opened:?}"),
        false => test_data::skip(
            "seeding_does_not_look_for_cuda",
            "no CUDA libraries of libtorch",
        ),
    }
    // The numbers are those of torch's own seed.
    tch::manual_seed(5);
    assert_eq!(Tensor::rand([8], (Kind::Float, Device::Cpu)), drawn);
    let index = usize::from(u8::MAX);
    assert!(opened.is_ok() || seed(5, Device::Cuda(index)).is_err());
}
