//! placeholder
use clap::Args;
#[derive(Args, Debug)]
pub(crate) struct SynthArgs {}
pub(crate) fn run(_: &SynthArgs) -> anyhow::Result<()> {
    Ok(())
}
