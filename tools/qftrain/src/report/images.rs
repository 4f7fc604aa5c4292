//! The part of a report that shows held-out images.

use std::fmt::Write;

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use qf_cli::page::{Base64, Text};

use crate::gallery::{Attention, Gallery, Shown, ShownCaption};

/// Captions whose images are shown.
const QUERIES: usize = 8;

/// The images as CSS classes, each once however often it is shown.
pub(super) fn style(gallery: &Gallery, run: usize) -> String {
    let mut css = String::new();
    for (at, image) in gallery.images.iter().enumerate() {
        let jpeg = Base64(&image.jpeg);
        // Formatting into a string does not fail.
        let _ = writeln!(
            css,
            ".i{run}-{at} {{ background-image: url(data:image/jpeg;base64,{jpeg}); }}"
        );
    }
    css
}

/// Captions found and written, images found, and attention.
pub(super) fn html(gallery: &Gallery, run: usize) -> String {
    let place = Place { gallery, run };
    let mut html = format!(
        "<p class=\"note\">After step {}. {} held-out images, all compared with all {} captions by contrastive score; \
         right ones are marked.</p>\n<h3>Captions found, and written</h3>\n<div class=\"grid\">\n",
        gallery.step,
        gallery.images.len(),
        gallery.captions.len()
    );
    let written = |(_, image): &(usize, &Shown)| image.generated.is_some();
    for (at, image) in gallery.images.iter().enumerate().filter(written) {
        html += &place.card(at, image);
    }
    html += "</div>\n<h3>Images found</h3>\n";
    for caption in first_of_each_image(gallery).take(QUERIES) {
        html += &place.strip(caption);
    }
    if !gallery.attention.is_empty() {
        html += "<h3>Where the queries look</h3>\n<p class=\"note\">Attention of each query to the image in the last layer \
                 with cross attention, the mean over its heads: light is looked at. First all queries together. The \
                 percentage goes to no patch but to the class token.</p>\n";
    }
    for attention in &gallery.attention {
        html += &place.attention(attention);
    }
    html
}

fn first_of_each_image(gallery: &Gallery) -> impl Iterator<Item = &ShownCaption> {
    let firsts = gallery
        .images
        .iter()
        .filter_map(|image| image.captions.first());
    firsts.map(|&at| &gallery.captions[at])
}

/// A gallery and the number of its run, which class names hold.
struct Place<'a> {
    gallery: &'a Gallery,
    run: usize,
}

impl Place<'_> {
    fn image(&self, at: usize, class: &str) -> String {
        let own = self.gallery.images[at].captions.first();
        let alt = own.map_or("", |&at| &self.gallery.captions[at].text);
        format!(
            "<span class=\"im{class} i{}-{at}\" role=\"img\" aria-label=\"{}\"></span>",
            self.run,
            Text(alt)
        )
    }

    /// An image with its captions, the model's, and those that were found.
    fn card(&self, at: usize, image: &Shown) -> String {
        let mut html = format!(
            "<article>{}<div class=\"text\"><div class=\"where\"><bdi>{}</bdi></div>\n",
            self.image(at, ""),
            Text(&image.key)
        );
        if let Some(generated) = &image.generated {
            let generated = if generated.is_empty() {
                "(nothing)"
            } else {
                generated
            };
            html += &format!(
                "<div><h3>The model writes</h3><p class=\"written\">{}</p></div>\n",
                Text(generated)
            );
        }
        html += "<div><h3>It was given</h3><ul class=\"truth\">";
        for &own in &image.captions {
            html += &format!("<li>{}</li>", Text(&self.gallery.captions[own].text));
        }
        html += "</ul></div>\n<div><h3>The model finds</h3><ol class=\"found\">";
        for &(caption, score) in &image.top {
            let is_right = image.captions.contains(&caption);
            let (class, mark) = if is_right {
                (" class=\"right\"", " ✓")
            } else {
                ("", "")
            };
            html += &format!(
                "<li><span class=\"score\">{score:.3}</span><span{class}>{}{mark}</span></li>",
                Text(&self.gallery.captions[caption].text)
            );
        }
        html + "</ol></div></div></article>\n"
    }

    /// A caption with the images that were found for it.
    fn strip(&self, caption: &ShownCaption) -> String {
        let found = match caption.rank {
            0 => "<span class=\"right-word\">found first</span>".to_string(),
            rank => format!("its image comes {}", ordinal(rank + 1)),
        };
        let mut html = format!(
            "<div class=\"query\"><p>{} <span class=\"note\">{found}</span></p><div class=\"strip\">",
            Text(&caption.text)
        );
        for &(image, score) in &caption.top {
            let class = if image == caption.image { " own" } else { "" };
            html += &format!(
                "<div>{}<small>{score:.3}</small></div>",
                self.image(image, class)
            );
        }
        html + "</div></div>\n"
    }

    /// An image, and it again under the map of each query.
    fn attention(&self, attention: &Attention) -> String {
        let mut html = format!(
            "<div class=\"attention\"><div>{}</div><div class=\"maps\">",
            self.image(attention.image, "")
        );
        for (query, (map, elsewhere)) in attention.maps.iter().zip(&attention.elsewhere).enumerate()
        {
            let name = match query {
                0 => "all".to_string(),
                query => query.to_string(),
            };
            let elsewhere = match elsewhere {
                share if *share >= 0.005 => format!(" · {:.0} %", 100.0 * share),
                _ => String::new(),
            };
            let Some(png) = shade(map, attention.side) else {
                continue;
            };
            html += &format!(
                "<div><span class=\"map\">{}<img alt=\"\" src=\"data:image/png;base64,{}\"></span>\
                 <small>{name}{elsewhere}</small></div>",
                self.image(attention.image, ""),
                Base64(&png)
            );
        }
        html + "</div></div>\n"
    }
}

/// A shade for the image: dark where nobody looks, clear where most is looked at. PNG, a pixel a patch.
fn shade(map: &[u8], side: usize) -> Option<Vec<u8>> {
    /// Of the darkest place.
    const DARK: u32 = 225;
    let pixels = map.iter().flat_map(|&attention| {
        let alpha = DARK * (255 - u32::from(attention)) / 255;
        [0, 0, 16, alpha as u8]
    });
    let pixels: Vec<u8> = pixels.collect();
    let side = u32::try_from(side).ok()?;
    let mut png = Vec::new();
    let encoder = PngEncoder::new(&mut png);
    let written = encoder.write_image(&pixels, side, side, ExtendedColorType::Rgba8);
    written.ok().map(|()| png)
}

fn ordinal(number: usize) -> String {
    let ending = match (number % 100, number % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals_end_as_they_are_spoken() {
        let numbers = [1, 2, 3, 4, 11, 12, 13, 21, 22, 101, 111];
        let expected = "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 101st 111th";
        assert_eq!(numbers.map(ordinal).join(" "), expected);
    }

    #[test]
    fn a_shade_is_clear_where_most_is_looked_at() {
        let png = shade(&[0, 255, 51, 102], 2).unwrap();
        let image = image::load_from_memory(&png).unwrap().to_rgba8();
        let alphas: Vec<u8> = image.pixels().map(|pixel| pixel.0[3]).collect();
        assert_eq!(alphas, [225, 0, 180, 135]);
    }
}
