//! What holds images and captions.

use clap::Args;
use qf_pipeline::captions::CaptionLines;
use qf_pipeline::LoaderConfig;

use crate::settings::Settings;

/// What holds images and captions, where it is not found by itself.
#[derive(Args, Clone, Debug)]
pub struct ColumnArgs {
    /// Column of Arrow shards, or extension in tar shards, with the images [default: found by name]
    #[arg(long, value_name = "NAME")]
    pub image_column: Option<String>,

    /// Column of Arrow shards, extension in tar shards, or field of their .json, with the captions
    /// [default: found by name: txt, caption, text, ...]
    #[arg(long, value_name = "NAME")]
    pub caption_column: Option<String>,

    /// What a .txt holds: each (line is a caption) or one [default: by the first samples of the data]
    #[arg(long, value_name = "each|one")]
    pub caption_lines: Option<CaptionLines>,
}

impl ColumnArgs {
    /// Sets what was given in a configuration to be.
    pub fn set(&self, settings: &mut Settings) -> anyhow::Result<()> {
        let lines = self.caption_lines.map(|lines| lines.name().to_string());
        for (key, value) in [
            ("data.image_column", &self.image_column),
            ("data.caption_column", &self.caption_column),
            ("data.caption_lines", &lines),
        ] {
            if let Some(value) = value {
                settings.set(key, value.clone())?;
            }
        }
        Ok(())
    }

    /// These settings of a run with what was given for other data.
    pub fn over(&self, data: LoaderConfig) -> LoaderConfig {
        LoaderConfig {
            image_column: self.image_column.clone().or(data.image_column),
            caption_column: self.caption_column.clone().or(data.caption_column),
            caption_lines: self.caption_lines.or(data.caption_lines),
            ..data
        }
    }
}
