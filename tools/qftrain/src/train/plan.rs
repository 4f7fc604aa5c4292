//! What a run is to do, the same on all ranks: settings, data, folder.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{bail, Context};
use qf_cli::journal;
use qf_model::checkpoint::TrainState;
use qf_model::context::choose_kernels;
use qf_model::host::batch_allocator;
use qf_model::run_dir::RunDir;
use qf_model::train::{TrainConfig, Validator};
use qf_model::Ranks;
use qf_pipeline::loader::{DataSet, Loader, World};
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::survey::Survey;
use qf_pipeline::text::CaptionTokenizer;
use qf_pipeline::trace::Trace;
use qftrain::args::{Resume, TrainArgs};
use tch::Device;

use crate::configuration::{check_relative, configuration};
use crate::gallery::GalleryMaker;
use crate::ranks::Ranks as OwnPlace;
use crate::{agreement, data};

/// What the options, the configuration and the shards say of a run.
pub(super) struct Plan {
    pub(super) config: TrainConfig,
    pub(super) run_dir: RunDir,
    /// The run is there and goes on.
    pub(super) resumes: bool,
    pub(super) shards: Vec<ShardLocation>,
    sets: Vec<DataSet>,
    /// Validation shards; rank 0 alone has them.
    held_out: Vec<ShardLocation>,
}

/// Refuses held-out shards without a sample: validation would end the run, at its first time and at each
/// resumption. Of many shards the first and the last alone are looked at.
fn check_held_out(shards: &[ShardLocation], config: &TrainConfig) -> anyhow::Result<()> {
    let survey = Survey::of(shards, &config.data, &Stop::default());
    let problem =
        "validation.shards: no sample with an image and a caption in the first or the last shard";
    match survey.is_empty() {
        false => Ok(()),
        true if shards.len() <= 2 => {
            let names: Vec<_> = shards.iter().map(|shard| shard.name.as_ref()).collect();
            bail!("{problem}: {}", names.join(", "))
        }
        true => {
            log::warn!("{problem}");
            Ok(())
        }
    }
}

impl Plan {
    /// Resolves settings and shards; the ranks compare theirs. A rank that is started again continues
    /// the run that is there.
    pub(super) fn make(
        args: &TrainArgs,
        device: Device,
        own: Option<&OwnPlace>,
        ranks: &dyn Ranks,
    ) -> anyhow::Result<Plan> {
        let is_restart = own.is_some_and(|own| own.is_restart);
        let run_dir = RunDir::new(args.run_dir.clone().unwrap_or_else(default_run_dir));
        let goes_on = (is_restart || args.resume == Some(Resume::Auto))
            && args.run_dir.is_some()
            && run_dir.holds_run()?;
        let goes_on = ranks.max(&[i64::from(ranks.is_first() && goes_on)])? == [1];
        let resumes = args.resume == Some(Resume::Always) || goes_on;
        let config = configuration(args, resumes, &run_dir, device, ranks)?;
        config.validate()?;
        choose_kernels(config.kernels())?;
        let sets = data::data_sets(&config);
        let sets = sets.map_err(|error| match check_relative(&config).filter(|_| resumes) {
            Some(advice) => error.context(advice),
            None => error,
        })?;
        let shards = data::all_shards(&sets);
        agreement::check(ranks, &config, &shards)?;
        let mut held_out = Vec::new();
        if let Some(validation) = config.validation.as_ref().filter(|_| ranks.is_first()) {
            held_out =
                data::resolve(&validation.shards, &config.remote).context("validation.shards")?;
            data::warn_of_shared_shards(&shards, &held_out);
            check_held_out(&held_out, &config)?;
        }
        Ok(Plan {
            config,
            run_dir,
            resumes,
            shards,
            sets,
            held_out,
        })
    }

    /// Fits batch size and vocabulary to what is there.
    pub(super) fn fit(
        &mut self,
        args: &TrainArgs,
        state: Option<&TrainState>,
        tokenizer: &CaptionTokenizer,
        ranks: &dyn Ranks,
    ) -> anyhow::Result<()> {
        if let Some(state) = state {
            let named = |text: &String| text.starts_with("data.batch_size=");
            let is_chosen = args.batch_size.is_some() || args.set.iter().any(named);
            data::share_batch(&mut self.config, &state.loader, world(ranks)?, is_chosen)?;
        }
        self.config.model.qformer.fit_to_tokenizer(tokenizer);
        Ok(self.config.validate()?)
    }

    /// Validation, where it is configured. All ranks know when it is due; rank 0 alone has the data and
    /// does it.
    pub(super) fn validator(&self, tokenizer: &Arc<CaptionTokenizer>) -> Option<Validator> {
        let validation = self.config.validation.as_ref()?;
        let shards = self.held_out.clone();
        Some(Validator::new(
            &self.config,
            validation,
            shards,
            tokenizer.clone(),
        ))
    }

    /// Looks at held-out images, where there are some; on rank 0.
    pub(super) fn gallery(&self, tokenizer: &Arc<CaptionTokenizer>) -> Option<GalleryMaker> {
        let shards = self.held_out.clone();
        (!shards.is_empty())
            .then(|| GalleryMaker::new(&self.config.data, shards, tokenizer.clone()))
    }

    /// Starts this rank's loader, behind the batches that `state` has seen.
    pub(super) fn start_loader(
        &mut self,
        state: Option<TrainState>,
        tokenizer: &Arc<CaptionTokenizer>,
        device: Device,
        (own, ranks): (Option<&OwnPlace>, &dyn Ranks),
        trace: Option<&Trace>,
    ) -> anyhow::Result<Loader> {
        let mut config = self.config.data.clone();
        if let Some(own) = own.filter(|_| config.threads == 0) {
            // Not in the run's configuration: the next machine may have other cores.
            config.threads = own.loader_threads();
        }
        let mut loader = Loader::builder(config)
            .trace(trace.cloned())
            .world(world(ranks)?)
            .resume(state.map(|state| state.loader))
            .report_skips()
            .allocator(batch_allocator(device));
        for set in self.sets.drain(..) {
            loader = loader.data_set(set);
        }
        let loader = loader.batches(tokenizer.clone())?;
        if ranks.is_first() {
            data::note(&loader);
        }
        Ok(loader)
    }
}

fn world(ranks: &dyn Ranks) -> anyhow::Result<World> {
    Ok(World::new(
        u32::try_from(ranks.rank())?,
        u32::try_from(ranks.world_size())?,
    )?)
}

/// `runs/2026-11-23T18-31-05`, UTC.
fn default_run_dir() -> PathBuf {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = journal::Time(now.map_or(0, |since| since.as_secs())).to_string();
    PathBuf::from("runs").join(now.trim_end_matches('Z').replace(':', "-"))
}
