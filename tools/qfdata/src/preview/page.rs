//! The batch as one HTML page that needs nothing else: no script, no network.

use std::fmt::{self, Write};

use anyhow::Context;
use image::{ExtendedColorType, ImageEncoder};
use qf_cli::page::{Base64, Images, Page, Text};

use super::shown::{Caption, PieceKind, Sample, Shown, Tokens};

const STYLE: &str = include_str!("page.css");

/// Below this side a browser is to show pixels as squares, in CSS pixels.
const SMALL_SIDE: usize = 160;

/// The page. `facts` are pairs of a name and a value that describe the batch.
///
/// # Errors
/// When an image cannot be encoded as PNG.
pub(super) fn html(shown: &Shown, title: &str, facts: &[(&str, String)]) -> anyhow::Result<String> {
    let heading = "What the model sees";
    let titles = (&*format!("{heading}: {title}"), heading);
    let mut page = Page::new(titles, title, facts, STYLE, Images::Embedded);
    writeln!(page, "<main class=\"grid\">")?;
    for (index, sample) in shown.samples.iter().enumerate() {
        let png = png_of(&shown.interleaved(index), shown.image_size())?;
        write_sample(&mut page, sample, shown.image_size(), &png)?;
    }
    writeln!(page, "</main>")?;
    write_skipped(&mut page, shown)?;
    Ok(page.finish())
}

fn write_sample(page: &mut Page, sample: &Sample, size: usize, png: &[u8]) -> fmt::Result {
    let class = match size < SMALL_SIDE {
        true => " class=\"pixels\"",
        false => "",
    };
    let alt = match sample.captions.first() {
        Some(caption) => Text(&caption.text),
        None => Text(&sample.key),
    };
    writeln!(page, "<article>")?;
    writeln!(
        page,
        "<img{class} width=\"{size}\" height=\"{size}\" alt=\"{alt}\" src=\"data:image/png;base64,{}\">",
        Base64(png)
    )?;
    writeln!(page, "<div class=\"text\">\n<div>")?;
    writeln!(page, "<h2><bdi>{}</bdi></h2>", Text(&sample.key))?;
    if let Some(shard) = &sample.shard {
        let offset = sample.offset_bytes.unwrap_or(0);
        let shard = Text(shard);
        writeln!(
            page,
            "<div class=\"where\"><bdi>{shard}</bdi> at byte {offset}</div>"
        )?;
    }
    writeln!(page, "</div>")?;
    write_view(page, sample)?;
    if sample.captions.is_empty() {
        writeln!(page, "<p class=\"caption none\">no caption</p>")?;
    }
    for caption in &sample.captions {
        write_caption(page, caption)?;
    }
    write_all_captions(page, sample)?;
    writeln!(page, "</div>\n</article>")
}

/// The frame of the picture with the crop in it, and the same in words.
fn write_view(page: &mut Page, sample: &Sample) -> fmt::Result {
    let Sample { width, height, .. } = sample;
    let crop = &sample.crop;
    // Lines of one CSS pixel or so, whatever the size of the picture.
    let stroke = f64::from(*width.max(height)) / 48.0;
    writeln!(page, "<div class=\"view\">")?;
    writeln!(
        page,
        "<svg viewBox=\"{0} {0} {1} {2}\" stroke-width=\"{stroke}\" aria-hidden=\"true\">",
        -stroke,
        f64::from(*width) + 2.0 * stroke,
        f64::from(*height) + 2.0 * stroke
    )?;
    writeln!(
        page,
        "<rect class=\"frame\" width=\"{width}\" height=\"{height}\"/>"
    )?;
    writeln!(
        page,
        "<rect class=\"crop\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/></svg>",
        crop.x, crop.y, crop.width, crop.height
    )?;
    writeln!(
        page,
        "<span>{}</span>\n</div>",
        Text(&super::grid::view_text(sample))
    )
}

fn write_caption(page: &mut Page, caption: &Caption) -> fmt::Result {
    writeln!(page, "<div>")?;
    let text = Text(&caption.text);
    writeln!(page, "<p class=\"caption\"><bdi>{text}</bdi></p>")?;
    if let Some(tokens) = &caption.tokens {
        write_tokens(page, tokens)?;
    }
    writeln!(page, "</div>")
}

fn write_tokens(page: &mut Page, tokens: &Tokens) -> fmt::Result {
    writeln!(page, "<ol class=\"tokens\">")?;
    for (id, piece) in tokens.used() {
        let class = match PieceKind::of(piece) {
            PieceKind::Word => "",
            PieceKind::Special => " class=\"special\"",
            PieceKind::Unknown => " class=\"unknown\"",
        };
        let piece = Text(piece);
        writeln!(page, "<li{class}><b><bdi>{piece}</bdi></b><i>{id}</i></li>")?;
    }
    let padding = tokens.padding();
    if let Some(id) = tokens.token_ids.last().filter(|_| padding > 0) {
        writeln!(
            page,
            "<li class=\"pad\"><b>{padding} × [PAD]</b><i>{id}</i></li>"
        )?;
    }
    writeln!(page, "</ol>")?;
    if tokens.cut_tokens > 0 {
        let (cut, len) = (tokens.cut_tokens, tokens.token_ids.len());
        let s = if cut == 1 { "" } else { "s" };
        writeln!(
            page,
            "<p class=\"cut\">{cut} more token{s} cut off at {len}</p>"
        )?;
    }
    Ok(())
}

/// What the sample holds, where that is more than what is shown already.
fn write_all_captions(page: &mut Page, sample: &Sample) -> fmt::Result {
    if sample.all_captions.is_empty() {
        return Ok(());
    }
    let is_drawn = |index: usize| {
        let captions = sample.captions.iter();
        captions
            .filter_map(|caption| caption.index)
            .any(|drawn| drawn == index)
    };
    let heading = match sample.all_captions.len() {
        1 => "As stored".to_string(),
        count if sample.captions.len() == 1 => format!("One of {count}, as stored"),
        count => format!("All {count}, as stored"),
    };
    writeln!(page, "<div>\n<h3>{heading}</h3>\n<ol class=\"all\">")?;
    for (index, raw) in sample.all_captions.iter().enumerate() {
        let class = match is_drawn(index) && sample.all_captions.len() > sample.captions.len() {
            true => " class=\"drawn\"",
            false => "",
        };
        writeln!(page, "<li{class}><bdi>{}</bdi></li>", Text(raw))?;
    }
    writeln!(page, "</ol>\n</div>")
}

fn write_skipped(page: &mut Page, shown: &Shown) -> fmt::Result {
    if shown.skipped_count() == 0 {
        return Ok(());
    }
    let what = super::describe::passed_over(shown.skipped_count());
    writeln!(page, "<section class=\"bad\">\n<h2>{what}</h2>\n<ul>")?;
    for bad in &shown.skipped {
        write!(page, "<li><code><bdi>{}</bdi></code> ", Text(&bad.key))?;
        if let Some(shard) = &bad.shard {
            let (shard, offset) = (Text(shard), bad.offset_bytes.unwrap_or(0));
            write!(page, "in <bdi>{shard}</bdi> at byte {offset}: ")?;
        }
        let message = Text(&bad.message);
        writeln!(
            page,
            "<span class=\"reason\">{}</span>: <bdi>{message}</bdi></li>",
            bad.reason
        )?;
    }
    if shown.unnamed > 0 {
        writeln!(page, "<li>and {} more</li>", shown.unnamed)?;
    }
    writeln!(page, "</ul>\n</section>")
}

/// An image, `[size, size, 3]`, as a PNG file.
fn png_of(pixels: &[u8], size: usize) -> anyhow::Result<Vec<u8>> {
    let side = u32::try_from(size).context("image size")?;
    let mut png = Vec::new();
    image::codecs::png::PngEncoder::new(&mut png)
        .write_image(pixels, side, side, ExtendedColorType::Rgb8)
        .context("cannot encode an image as PNG")?;
    Ok(png)
}
