//! Groups of pictures that are nearly the same, side by side.

use std::collections::BTreeMap;

use qf_pipeline::augment::SampleRng;
use qf_pipeline::config::Processing;
use qf_pipeline::image_stage::ImageSettings;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::LoaderConfig;

use super::fetch::{self, Place};
use super::picture::{in_aspect, Thumbnail, SHEET_SIDE};
use crate::inspect::doubles::Double;
use crate::interrupt::Interrupt;

/// Pairs that are looked at for groups.
pub(super) const MAX_PAIRS: usize = 200;
/// Groups that are shown, and pictures of one.
const MAX_GROUPS: usize = 12;
const MAX_MEMBERS: usize = 8;

/// A picture of a group.
pub(super) struct Alike {
    pub(super) shard: String,
    pub(super) key: String,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) picture: Thumbnail,
}

/// Joins pairs to groups, and reads their pictures once more.
pub(super) fn groups(
    shards: &[ShardLocation],
    pairs: Vec<Double>,
    config: &LoaderConfig,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<Vec<Alike>>> {
    let mut groups: Vec<Vec<Place>> = Vec::new();
    for pair in &pairs {
        let (first, later) = (
            (pair.first.shard, pair.first.sample),
            (pair.later.shard, pair.later.sample),
        );
        let known = groups
            .iter_mut()
            .find(|group| group.contains(&first) || group.contains(&later));
        match known {
            Some(group) => {
                for place in [first, later] {
                    if !group.contains(&place) {
                        group.push(place);
                    }
                }
            }
            None => groups.push(vec![first, later]),
        }
    }
    groups.truncate(MAX_GROUPS);
    groups
        .iter_mut()
        .for_each(|group| group.truncate(MAX_MEMBERS));
    let places: Vec<Place> = groups.iter().flatten().copied().collect();
    let samples = fetch::samples(shards, &places, config, &interrupt.stop());
    let whole = LoaderConfig {
        processing: Processing::Eval,
        image_size: SHEET_SIDE,
        ..config.clone()
    };
    let mut stage = ImageSettings::new(&whole)?.stage();
    let mut pictures: BTreeMap<Place, Alike> = BTreeMap::new();
    for (place, sample) in samples {
        interrupt.check()?;
        let image = sample.image(config.image_column.as_deref());
        let Some(Ok(opened)) = image
            .and_then(|member| member.bytes())
            .map(|bytes| stage.open(bytes))
        else {
            continue;
        };
        let mut pixels = stage.blank();
        // The evaluation transform draws nothing.
        let mut rng = SampleRng::new(0, 0, 0, 0);
        if stage.render(&opened, &mut rng, pixels.as_mut()).is_ok() {
            let (width, height) = (opened.width(), opened.height());
            let alike = Alike {
                shard: sample.id.shard.to_string(),
                key: sample.id.key.clone(),
                width,
                height,
                picture: in_aspect(&pixels, (width, height))?,
            };
            pictures.insert(place, alike);
        }
    }
    let groups = groups.into_iter().map(|group| {
        let members = group.iter().filter_map(|place| pictures.remove(place));
        members.collect::<Vec<_>>()
    });
    Ok(groups.filter(|group| group.len() > 1).collect())
}
