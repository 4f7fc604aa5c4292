//! All tests of the workspace as one binary.

mod bin;
mod golden_batches;
mod hostile;
mod interop;
mod shard_cli;
mod train_cli;

#[test]
fn smoke() {
    let t = tch::Tensor::from_slice(&[1.0f32, 2.0]);
    assert_eq!(f64::try_from(t.sum(tch::Kind::Float)).unwrap(), 3.0);
}
