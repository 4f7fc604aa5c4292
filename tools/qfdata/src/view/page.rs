//! The page: what was seen, on one sheet.

use std::fmt::{self, Write};

use qf_cli::page::{Base64, Images, Page, Text};
use qf_pipeline::words::counted;
use qf_pipeline::LoaderConfig;

use super::charts::histogram;
use super::crops::Cropped;
use super::near::Alike;
use super::picture::{in_aspect, Thumbnail};
use super::seen::Seen;
use crate::inspect::codes::{self, Severity};
use crate::inspect::Facts;
use crate::size;
use crate::stats::Tally;

pub(super) const STYLE: &str = include_str!("view.css");

/// Kinds of findings that are shown without being asked for.
const MAX_OPEN_FINDINGS: usize = 8;

/// Captions of a sample that are shown.
const MAX_CAPTIONS: usize = 5;

/// # Errors
/// When an image cannot be encoded, or the tokenizer fails.
pub(super) fn html(
    seen: &mut Seen,
    crops: &[Cropped],
    near: &[Vec<Alike>],
    config: &LoaderConfig,
) -> anyhow::Result<String> {
    let lede = format!(
        "{} in {}",
        counted(seen.tally.samples, "sample", "samples"),
        counted(seen.shards as u64, "shard", "shards")
    );
    let facts = facts(seen);
    let titles = (&*format!("Data set: {lede}"), "Data set");
    let mut page = Page::new(titles, &lede, &facts, STYLE, Images::Embedded);
    write_findings(&mut page, seen)?;
    write_charts(&mut page, &seen.tally)?;
    let sheet = std::mem::take(&mut seen.sheet);
    let drawn = sheet.len();
    writeln!(
        page,
        "<section>\n<h2>Contact sheet</h2>\n<p class=\"lede\">{} drawn at random, in stored order</p>\n\
         <main class=\"grid sheet\">",
        counted(drawn as u64, "sample", "samples")
    )?;
    for facts in &sheet {
        let picture = match facts
            .picture
            .as_ref()
            .and_then(|picture| Some((picture, picture.pixels.as_ref()?)))
        {
            Some((picture, pixels)) => Some(in_aspect(pixels, (picture.width, picture.height))?),
            None => None,
        };
        let source = picture.as_ref().map(data_url);
        let shown = Shown::of(facts, &mut seen.tally)?;
        write_sample(&mut page, &shown, source.as_deref())?;
    }
    writeln!(page, "</main>\n</section>")?;
    write_crops(&mut page, crops, &sheet, config)?;
    write_near(&mut page, near)?;
    Ok(page.finish())
}

pub(super) fn data_url(picture: &Thumbnail) -> String {
    format!("data:image/jpeg;base64,{}", Base64(&picture.jpeg))
}

fn facts(seen: &Seen) -> Vec<(&'static str, String)> {
    let tally = &seen.tally;
    let formats: Vec<String> = tally
        .formats
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    let scripts: Vec<String> = tally
        .scripts
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    let mut facts = vec![
        ("bad samples", tally.bad_samples.to_string()),
        ("captions", tally.words.count().to_string()),
        ("images", size::display(tally.total_image_bytes)),
        ("formats", formats.join(", ")),
        ("scripts of captions", scripts.join(", ")),
    ];
    if tally.tokens.count() > 0 {
        facts.push(("captions cut at text_len", tally.cut_captions.to_string()));
    }
    facts
}

fn write_findings(page: &mut Page, seen: &Seen) -> fmt::Result {
    let mut found: Vec<_> = (seen.findings.iter())
        .filter_map(|(id, count)| Some((codes::find(id)?, count)))
        .collect();
    if found.is_empty() {
        return writeln!(page, "<section>\n<h2>Nothing was found</h2>\n</section>");
    }
    found.sort_by_key(|(code, count)| (code.severity, std::cmp::Reverse(**count)));
    let of = |severity: Severity| {
        let counts = found.iter().filter(|(code, _)| code.severity == severity);
        counts.map(|(_, count)| **count).sum::<u64>()
    };
    let errors = counted(of(Severity::Error), "error", "errors");
    let warnings = counted(of(Severity::Warning), "warning", "warnings");
    let notes = counted(of(Severity::Note), "note", "notes");
    // A long list would push the pictures off the screen.
    let open = if found.len() <= MAX_OPEN_FINDINGS {
        " open"
    } else {
        ""
    };
    writeln!(
        page,
        "<section>\n<details{open}>\n<summary><h2>Findings</h2> <span class=\"lede\">{errors}, {warnings}, {notes}</span>\
         </summary>\n<div class=\"scroll\"><table class=\"findings\">"
    )?;
    writeln!(
        page,
        "<tr><th>code</th><th></th><th class=\"number\">count</th><th>finding</th><th>what to do</th></tr>"
    )?;
    for (code, count) in found {
        let (severity, title) = (code.severity.name(), Text(code.title));
        writeln!(
            page,
            "<tr><td><code>{}</code></td><td><span class=\"tag {severity}\">{severity}</span></td>\
             <td class=\"number\">{count}</td><td>{title}</td><td>{}</td></tr>",
            code.id,
            with_code(code.remedy)
        )?;
    }
    writeln!(page, "</table></div>\n</details>\n</section>")
}

/// A text whose backticks mark code.
fn with_code(text: &str) -> String {
    let parts = text.split('`').enumerate();
    let part = |(at, part): (usize, &str)| match at % 2 {
        0 => Text(part).to_string(),
        _ => format!("<code>{}</code>", Text(part)),
    };
    parts.map(part).collect()
}

fn write_charts(page: &mut Page, tally: &Tally) -> fmt::Result {
    writeln!(
        page,
        "<section>\n<h2>Distributions</h2>\n<div class=\"charts\">"
    )?;
    for (name, spread, unit) in [
        ("shorter side", &tally.shorter_side, (1.0, " pixels")),
        ("width / height", &tally.aspect, (1000.0, "")),
        ("megapixels", &tally.pixels, (1000.0, "")),
        ("kB per image", &tally.image_bytes, (1000.0, " kB")),
        ("words per caption", &tally.words, (1.0, "")),
        ("tokens per caption", &tally.tokens, (1.0, "")),
        ("captions per sample", &tally.captions_per_sample, (1.0, "")),
    ] {
        histogram(page, name, spread, unit)?;
    }
    writeln!(page, "</div>\n</section>")
}

/// What a card shows of a sample.
pub(super) struct Shown {
    pub(super) shard: String,
    pub(super) key: String,
    pub(super) offset_bytes: u64,
    /// Width, height, format, bytes.
    pub(super) picture: Option<(u32, u32, &'static str, u64)>,
    /// With their tokens, where these are known.
    pub(super) captions: Vec<(String, Option<usize>)>,
    pub(super) problems: Vec<(&'static codes::Code, String)>,
}

impl Shown {
    pub(super) fn of(facts: &Facts, tally: &mut Tally) -> anyhow::Result<Shown> {
        let mut captions = Vec::new();
        for caption in &facts.captions {
            captions.push((caption.clone(), tally.count_tokens(caption)?));
        }
        let problems = facts.findings.iter();
        let problems = problems.map(|finding| (finding.code, finding.message.clone()));
        Ok(Shown {
            shard: facts.id.shard.to_string(),
            key: facts.id.key.clone(),
            offset_bytes: facts.id.offset_bytes,
            picture: facts.picture.as_ref().map(|picture| {
                (
                    picture.width,
                    picture.height,
                    picture.format.name(),
                    picture.bytes,
                )
            }),
            captions,
            problems: problems.collect(),
        })
    }
}

/// A card of the sheet; `source` is the URL of its picture.
pub(super) fn write_sample(page: &mut Page, shown: &Shown, source: Option<&str>) -> fmt::Result {
    writeln!(page, "<article>")?;
    let alt = shown
        .captions
        .first()
        .map_or(&*shown.key, |(caption, _)| caption);
    match source {
        Some(source) => writeln!(
            page,
            "<div class=\"picture\"><img loading=\"lazy\" alt=\"{}\" src=\"{source}\"></div>",
            Text(alt)
        )?,
        None => writeln!(page, "<div class=\"picture none\">no picture</div>")?,
    }
    writeln!(
        page,
        "<div class=\"text\">\n<div>\n<h2><bdi>{}</bdi></h2>",
        Text(&shown.key)
    )?;
    let (shard, offset) = (Text(&shown.shard), shown.offset_bytes);
    writeln!(
        page,
        "<div class=\"where\"><bdi>{shard}</bdi> at byte {offset}</div>"
    )?;
    if let Some((width, height, format, bytes)) = shown.picture {
        let bytes = size::display(bytes);
        writeln!(
            page,
            "<div class=\"where\">{width}×{height} {format}, {bytes}</div>"
        )?;
    }
    writeln!(page, "</div>")?;
    if !shown.problems.is_empty() {
        writeln!(page, "<ul class=\"chips\">")?;
        for (code, message) in &shown.problems {
            let (class, title) = (code.severity.name(), Text(code.title));
            writeln!(
                page,
                "<li class=\"{class}\" title=\"{}: {}\">{title}</li>",
                code.id,
                Text(message)
            )?;
        }
        writeln!(page, "</ul>")?;
    }
    match shown.captions.is_empty() {
        true => writeln!(page, "<p class=\"caption none\">no caption</p>")?,
        false => writeln!(page, "<ul class=\"captions\">")?,
    }
    for (caption, tokens) in shown.captions.iter().take(MAX_CAPTIONS) {
        let tokens = match tokens {
            Some(count) => format!(" <span class=\"tokens\">{count} tokens</span>"),
            None => String::new(),
        };
        writeln!(
            page,
            "<li class=\"caption\"><bdi>{}</bdi>{tokens}</li>",
            Text(caption)
        )?;
    }
    if let Some(more @ 1..) = shown.captions.len().checked_sub(MAX_CAPTIONS) {
        writeln!(page, "<li class=\"where\">and {more} more</li>")?;
    }
    if !shown.captions.is_empty() {
        writeln!(page, "</ul>")?;
    }
    writeln!(page, "</div>\n</article>")
}

fn write_crops(
    page: &mut Page,
    crops: &[Cropped],
    sheet: &[Facts],
    config: &LoaderConfig,
) -> anyhow::Result<()> {
    if crops.is_empty() {
        return Ok(());
    }
    let side = config.image_size;
    writeln!(
        page,
        "<section>\n<h2>What training sees</h2>\n<p class=\"lede\">The original, and its crop in each of eight \
         epochs with seed {}: {side}×{side} pixels, drawn by the loader</p>\n<div class=\"crops\">",
        config.seed
    )?;
    for cropped in crops {
        writeln!(
            page,
            "<div>\n<h3><bdi>{}</bdi></h3>\n<div class=\"row\">",
            Text(&cropped.key)
        )?;
        let original = sheet.iter().find(|facts| facts.id.key == cropped.key);
        let pixels = original.and_then(|facts| facts.picture.as_ref()?.pixels.as_ref());
        let (width, height) = (cropped.width, cropped.height);
        if let Some(pixels) = pixels {
            let source = data_url(&in_aspect(pixels, (width, height))?);
            writeln!(
                page,
                "<div class=\"original\"><img alt=\"the original\" src=\"{source}\">"
            )?;
            let stroke = f64::from(width.max(height)) / 160.0;
            writeln!(page, "<svg viewBox=\"0 0 {width} {height}\" stroke-width=\"{stroke:.2}\" aria-hidden=\"true\">")?;
            for crop in &cropped.crops {
                let [x, y, w, h] = crop.region;
                writeln!(
                    page,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" opacity=\".55\"/>"
                )?;
            }
            writeln!(page, "</svg></div>")?;
        }
        writeln!(page, "<div class=\"eight\">")?;
        for crop in &cropped.crops {
            let [x, y, w, h] = crop.region;
            let mirrored = if crop.mirrored { ", mirrored" } else { "" };
            writeln!(
                page,
                "<div><img width=\"{}\" height=\"{}\" alt=\"crop of epoch {2}\" src=\"{3}\"><p>epoch {2}: {w}×{h} at \
                 {x}, {y}{mirrored}</p></div>",
                crop.pixels.width,
                crop.pixels.height,
                crop.epoch,
                data_url(&crop.pixels)
            )?;
        }
        writeln!(page, "</div>\n</div>\n</div>")?;
    }
    writeln!(page, "</div>\n</section>")?;
    Ok(())
}

fn write_near(page: &mut Page, near: &[Vec<Alike>]) -> fmt::Result {
    if near.is_empty() {
        return Ok(());
    }
    writeln!(
        page,
        "<section>\n<h2>Nearly the same</h2>\n<p class=\"lede\">Pictures whose perceptual hashes differ in a few \
         bits</p>\n<div class=\"near\">"
    )?;
    for group in near {
        writeln!(page, "<div>")?;
        for alike in group {
            let (key, shard) = (Text(&alike.key), Text(&alike.shard));
            writeln!(
                page,
                "<div><img width=\"{}\" height=\"{}\" alt=\"{key}\" src=\"{}\"><h3><bdi>{key}</bdi></h3>\
                 <p><bdi>{shard}</bdi></p><p>{}×{}</p></div>",
                alike.picture.width,
                alike.picture.height,
                data_url(&alike.picture),
                alike.width,
                alike.height
            )?;
        }
        writeln!(page, "</div>")?;
    }
    writeln!(page, "</div>\n</section>")
}

/// For filters: which severity a word names.
pub(super) fn severity_of(name: &str) -> Option<Severity> {
    let all = [Severity::Error, Severity::Warning, Severity::Note];
    all.into_iter().find(|severity| severity.name() == name)
}
