//! The batch as one HTML page that needs nothing else: no script, no network.

use std::fmt::{self, Display, Write};

use anyhow::Context;
use image::{ExtendedColorType, ImageEncoder};
use qf_pipeline::printable::PrintableLines;

use super::shown::{Caption, PieceKind, Sample, Shown, Tokens};

const STYLE: &str = include_str!("page.css");

/// Below this side a browser is to show pixels as squares, in CSS pixels.
const SMALL_SIDE: usize = 160;

/// The page. `facts` are pairs of a name and a value that describe the batch.
///
/// # Errors
/// When an image cannot be encoded as PNG.
pub(super) fn html(shown: &Shown, title: &str, facts: &[(&str, String)]) -> anyhow::Result<String> {
    let mut page = String::new();
    // Formatting into a string does not fail.
    write_page(&mut page, shown, title, facts)?;
    Ok(page)
}

fn write_page(
    page: &mut String,
    shown: &Shown,
    title: &str,
    facts: &[(&str, String)],
) -> anyhow::Result<()> {
    page.push_str("<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    // Nothing is loaded, whatever a caption may say.
    page.push_str(
        "<meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n",
    );
    writeln!(page, "<title>What the model sees: {}</title>", Text(title))?;
    writeln!(page, "<style>\n{STYLE}</style>\n<header>")?;
    writeln!(page, "<h1>What the model sees</h1>")?;
    writeln!(page, "<p class=\"lede\"><bdi>{}</bdi></p>", Text(title))?;
    writeln!(page, "<dl class=\"facts\">")?;
    for (name, value) in facts {
        let (name, value) = (Text(name), Text(value));
        writeln!(
            page,
            "<div><dt>{name}</dt><dd><bdi>{value}</bdi></dd></div>"
        )?;
    }
    writeln!(page, "</dl>\n</header>\n<main>")?;
    for (index, sample) in shown.samples.iter().enumerate() {
        let png = png_of(&shown.interleaved(index), shown.image_size())?;
        write_sample(page, sample, shown.image_size(), &png)?;
    }
    writeln!(page, "</main>")?;
    write_skipped(page, shown)?;
    page.push_str("</html>\n");
    Ok(())
}

fn write_sample(page: &mut String, sample: &Sample, size: usize, png: &[u8]) -> fmt::Result {
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
fn write_view(page: &mut String, sample: &Sample) -> fmt::Result {
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

fn write_caption(page: &mut String, caption: &Caption) -> fmt::Result {
    writeln!(page, "<div>")?;
    let text = Text(&caption.text);
    writeln!(page, "<p class=\"caption\"><bdi>{text}</bdi></p>")?;
    if let Some(tokens) = &caption.tokens {
        write_tokens(page, tokens)?;
    }
    writeln!(page, "</div>")
}

fn write_tokens(page: &mut String, tokens: &Tokens) -> fmt::Result {
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
fn write_all_captions(page: &mut String, sample: &Sample) -> fmt::Result {
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

fn write_skipped(page: &mut String, shown: &Shown) -> fmt::Result {
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

/// A text between tags or in a quoted attribute. Characters that could not be seen, or that reorder what
/// follows them, are written as their escapes.
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in PrintableLines(self.0).to_string().chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                _ => f.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// Bytes in base64 (RFC 4648), as `data:` URLs hold them.
struct Base64<'a>(&'a [u8]);

impl Display for Base64<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ALPHABET: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        for group in self.0.chunks(3) {
            let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            for index in 0..4 {
                let digit = ALPHABET[(bits >> (18 - 6 * index) & 63) as usize];
                f.write_char(if index <= group.len() {
                    char::from(digit)
                } else {
                    '='
                })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vectors of RFC 4648, section 10, and bytes of every value.
    #[test]
    fn base64_as_the_rfc_has_it() {
        for (bytes, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(Base64(bytes.as_bytes()).to_string(), expected);
        }
        assert_eq!(Base64(&[0xfb, 0xff, 0xbf]).to_string(), "+/+/");
    }

    #[test]
    fn nothing_of_a_text_is_markup() {
        let text = Text("<img src=x onerror='a(\"b\")'>&\u{1b}[31m\u{202e}\u{0}é");
        assert_eq!(
            text.to_string(),
            "&lt;img src=x onerror=&#39;a(&quot;b&quot;)&#39;&gt;&amp;\\x1b[31m\\u202e\\x00é"
        );
    }
}
