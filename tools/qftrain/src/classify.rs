//! `qftrain classify`: zero-shot classification of a folder of class folders by prompts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use qf_model::host::upload_pixels;
use qf_pipeline::words::counted;
use qftrain::args::ClassifyArgs;
use serde_json::json;
use tch::{Kind, Tensor};

use crate::embed::embed_texts;
use crate::image_batches::FileBatches;
use crate::image_paths::image_paths;
use crate::model_source::{load, LoadedModel, ModelSource};
use crate::progress::Count;
use qf_cli::output::say;

/// A folder of images.
struct Class {
    name: String,
    images: usize,
    /// Images whose best class, or one of whose best five, is this one.
    right: usize,
    right_in_5: usize,
}

pub(crate) fn run(args: &ClassifyArgs) -> anyhow::Result<()> {
    if let Some(prompt) = args.prompt.iter().find(|prompt| !prompt.contains("{}")) {
        bail!("--prompt {prompt:?}: has no {{}} for the class to stand in");
    }
    let folders = class_folders(&args.folder)?;
    let mut classes: Vec<Class> = folders.iter().map(|folder| Class::of(folder)).collect();
    check_names(&folders, &classes)?;
    let (mut paths, mut class_of) = (Vec::new(), Vec::new());
    for (class, folder) in folders.iter().enumerate() {
        let images = image_paths(std::slice::from_ref(folder))?;
        class_of.extend(images.iter().map(|_| class));
        paths.extend(images);
    }
    let model = ModelSource::open(&args.model.model)?;
    let mut files = FileBatches::new(paths, &model.config.data, args.batch_size.into())?;
    let loaded = load(&args.model, model)?;
    let features = class_features(args, &loaded, &classes)?; // [K, d]
    let mut count = Count::new("classifying images", Some(files.total() as u64));
    while let Some(batch) = files.next()? {
        let images = upload_pixels(batch.pixels.as_batch(), loaded.device)?;
        let best = best_classes(&loaded, &images, &features)?;
        for ((&place, name), best) in batch.places.iter().zip(&batch.names).zip(best) {
            let own = class_of[place];
            let class = &mut classes[own];
            class.images += 1;
            class.right += usize::from(best.first().is_some_and(|&(first, _)| first == own));
            class.right_in_5 += usize::from(best.iter().any(|&(class, _)| class == own));
            if args.json {
                let named = best.iter().map(|&(at, cosine)| (&classes[at].name, cosine));
                let best: Vec<_> = named
                    .map(|(class, cosine)| json!({"class": class, "itc_cosine": cosine}))
                    .collect();
                let class = &classes[own].name;
                say(format_args!(
                    "{}",
                    json!({"image": name, "class": class, "best": best})
                ))?;
            }
        }
        count.add(batch.names.len() as u64);
    }
    count.finish();
    report(args, &loaded, &classes)?;
    files.end()
}

/// Two classes of one name have the same text: images of one would be as near to the other.
fn check_names(folders: &[PathBuf], classes: &[Class]) -> anyhow::Result<()> {
    for (number, class) in classes.iter().enumerate() {
        if let Some(other) = classes[..number]
            .iter()
            .position(|other| other.name == class.name)
        {
            bail!(
                "{} and {} are both the class `{}`; put their images into one folder",
                folders[other].display(),
                folders[number].display(),
                class.name
            );
        }
    }
    Ok(())
}

impl Class {
    fn of(folder: &Path) -> Class {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        Class {
            name: name.replace('_', " "),
            images: 0,
            right: 0,
            right_in_5: 0,
        }
    }
}

/// The folders in a folder, by name; hidden ones are passed over.
fn class_folders(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let list = || format!("cannot list {}", root.display());
    let entries = fs::read_dir(root).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut folders: Vec<PathBuf> = (entries.with_context(list)?.iter())
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default();
            !name.as_encoded_bytes().starts_with(b".")
        })
        .collect();
    folders.sort();
    if folders.len() < 2 {
        bail!(
            "{}: holds {}; classification wants a folder of images for each of several classes",
            root.display(),
            counted(folders.len() as u64, "folder", "folders")
        );
    }
    Ok(folders)
}

/// A normalised vector of each class, `[K, d]`: the mean of its prompts, as CLIP does it.
fn class_features(
    args: &ClassifyArgs,
    loaded: &LoadedModel,
    classes: &[Class],
) -> anyhow::Result<Tensor> {
    let features = classes.iter().map(|class| -> anyhow::Result<Tensor> {
        let prompts: Vec<String> = (args.prompt.iter())
            .map(|prompt| prompt.replace("{}", &class.name))
            .collect();
        let prompts = embed_texts(loaded, &prompts)?.f_to_kind(Kind::Float)?; // [P, d]
        let mean = prompts.f_mean_dim([0i64].as_slice(), false, None)?;
        Ok(mean.f_divide(&mean.f_norm()?)?)
    });
    let features: Vec<Tensor> = features.collect::<anyhow::Result<_>>()?;
    Ok(Tensor::f_stack(&features, 0)?)
}

/// The best five classes of each image, with the greatest cosine over its queries.
fn best_classes(
    loaded: &LoadedModel,
    images: &Tensor,
    classes: &Tensor,
) -> anyhow::Result<Vec<Vec<(usize, f32)>>> {
    let model = &loaded.model;
    let embeds = tch::no_grad(|| model.encode_image(images))?;
    let queries = model.image_features(&embeds)?.f_to_kind(Kind::Float)?; // [B, Q, d]
    let cosines = queries.f_matmul(&classes.f_tr()?)?; // [B, Q, K]
    let cosines = cosines.f_amax([1i64].as_slice(), false)?; // [B, K]
    let (_, count) = cosines.size2()?;
    let (cosines, places) = cosines.f_topk(count.min(5), 1, true, true)?;
    let cosines = Vec::<Vec<f32>>::try_from(cosines)?;
    let places = Vec::<Vec<i64>>::try_from(places)?;
    let row = |(places, cosines): (Vec<i64>, Vec<f32>)| {
        let places = places.into_iter().map(|place| place as usize);
        places.zip(cosines).collect()
    };
    Ok(places.into_iter().zip(cosines).map(row).collect())
}

fn report(args: &ClassifyArgs, loaded: &LoadedModel, classes: &[Class]) -> anyhow::Result<()> {
    let sum = |of: fn(&Class) -> usize| classes.iter().map(of).sum::<usize>();
    let (images, right, right_in_5) = (sum(|c| c.images), sum(|c| c.right), sum(|c| c.right_in_5));
    let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
    if args.json {
        let by_class: Vec<_> = classes
            .iter()
            .map(|class| {
                json!({
                    "class": class.name,
                    "images": class.images,
                    "top1": percent(class.right, class.images),
                    "top5": percent(class.right_in_5, class.images),
                })
            })
            .collect();
        let all = json!({
            "step": loaded.step,
            "images": images,
            "top1": percent(right, images),
            "top5": percent(right_in_5, images),
            "classes": by_class,
        });
        return say(format_args!("{all}"));
    }
    say(format_args!(
        "zero-shot classification by the model of {}: {} in {}",
        loaded.origin,
        counted(images as u64, "image", "images"),
        counted(classes.len() as u64, "class", "classes")
    ))?;
    let longest = classes.iter().map(|class| class.name.chars().count());
    let width = longest.max().unwrap_or(0).max("all".len());
    say(format_args!(
        "{:<width$} {:>8} {:>9} {:>9}",
        "class", "images", "top-1, %", "top-5, %"
    ))?;
    let row = |name: &str, images: usize, right: usize, right_in_5: usize| {
        say(format_args!(
            "{name:<width$} {images:>8} {:>9.1} {:>9.1}",
            percent(right, images),
            percent(right_in_5, images)
        ))
    };
    for class in classes {
        row(&class.name, class.images, class.right, class.right_in_5)?;
    }
    row("all", images, right, right_in_5)?;
    say(format_args!(
        "chance: {:.1} %",
        100.0 / classes.len() as f64
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_one_text_are_refused() {
        let folders = ["c/a_b", "c/cat", "c/a b"].map(PathBuf::from);
        let classes: Vec<Class> = folders.iter().map(|folder| Class::of(folder)).collect();
        let error = check_names(&folders, &classes).unwrap_err().to_string();
        assert!(
            error.contains("c/a_b and c/a b are both the class `a b`"),
            "{error}"
        );
        assert!(check_names(&folders[..2], &classes[..2]).is_ok());
    }
}
