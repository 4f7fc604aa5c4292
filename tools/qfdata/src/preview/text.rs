//! Text in pixels: the `fixed` font of the X Window System, and lines that fit a width.

use std::collections::HashMap;

use image::{Rgb, RgbImage};

/// Width of every character, in pixels.
pub(super) const CHAR_WIDTH: u32 = 6;
/// Height of every character, in pixels.
pub(super) const CHAR_HEIGHT: u32 = 13;

/// Glyphs of Latin, Greek and Cyrillic letters and of punctuation, as a table of code points and rows.
const TABLE: &str = include_str!("fixed-6x13.hex");

/// Rows from the top, the leftmost pixel in the highest bit.
type Glyph = [u8; CHAR_HEIGHT as usize];

/// What stands for a character that the font lacks: a box.
const MISSING: Glyph = [
    0, 0, 0xf8, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0xf8, 0, 0,
];

/// Draws characters of 6 × 13 pixels.
pub(super) struct Font(HashMap<char, Glyph>);

impl Font {
    /// The font `fixed`. It has Latin, Greek and Cyrillic letters; a box stands for any other character.
    pub(super) fn fixed() -> Font {
        Font(TABLE.lines().filter_map(parse_line).collect())
    }

    /// Draws one line with its top left corner at (`x`, `y`). What is outside the image is left out.
    pub(super) fn draw(
        &self,
        image: &mut RgbImage,
        (x, y): (u32, u32),
        text: &str,
        color: Rgb<u8>,
    ) {
        for (column, character) in (0..).zip(text.chars()) {
            let glyph = self.0.get(&character).unwrap_or(&MISSING);
            for (row, bits) in (0..).zip(glyph) {
                for bit in (0..CHAR_WIDTH).filter(|bit| bits & (0x80 >> bit) != 0) {
                    let (x, y) = (x + column * CHAR_WIDTH + bit, y + row);
                    if let Some(pixel) = image.get_pixel_mut_checked(x, y) {
                        *pixel = color;
                    }
                }
            }
        }
    }
}

/// `0041 0000205088888…`; nothing for a comment.
fn parse_line(line: &str) -> Option<(char, Glyph)> {
    let (code, rows) = line.split_once(' ')?;
    let character = char::from_u32(u32::from_str_radix(code, 16).ok()?)?;
    let mut glyph = Glyph::default();
    for (index, row) in glyph.iter_mut().enumerate() {
        *row = u8::from_str_radix(rows.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some((character, glyph))
}

/// The text in lines of at most `columns` characters, broken between words where it can be. Of more than
/// `max_lines` lines the last one ends in `…`.
pub(super) fn wrap(text: &str, columns: usize, max_lines: usize) -> Vec<String> {
    let columns = columns.max(1);
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() {
            if length(&line) + 1 + length(word) <= columns {
                line.push(' ');
            } else {
                lines.push(std::mem::take(&mut line));
            }
        }
        for character in word.chars() {
            if length(&line) == columns {
                lines.push(std::mem::take(&mut line));
            }
            line.push(character);
        }
        if lines.len() > max_lines {
            break;
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    if lines.len() > max_lines {
        lines.truncate(max_lines);
        if let Some(last) = lines.last_mut() {
            *last = elide_end(&format!("{last:<columns$} "), columns);
        }
    }
    lines
}

/// The text, its end replaced by `…` where it has more than `columns` characters.
pub(super) fn elide_end(text: &str, columns: usize) -> String {
    if length(text) <= columns {
        return text.to_string();
    }
    let kept: String = text.chars().take(columns.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// The text, its start replaced by `…` where it has more than `columns` characters: of a path the end
/// tells more.
pub(super) fn elide_start(text: &str, columns: usize) -> String {
    let excess = length(text).saturating_sub(columns);
    if excess == 0 {
        return text.to_string();
    }
    format!("…{}", text.chars().skip(excess + 1).collect::<String>())
}

/// Characters of a text.
pub(super) fn length(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_a_glyph() {
        let font = Font::fixed();
        let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
        assert_eq!(font.0.len(), lines.count());
        for character in (' '..='~').chain("éßłøñČžάЖяạ–—’“”…€№".chars())
        {
            assert!(font.0.contains_key(&character), "{character}");
        }
    }

    #[test]
    fn letters_look_like_letters() {
        let mut image = RgbImage::new(3 * CHAR_WIDTH, CHAR_HEIGHT);
        // U+4E00 is none of the font's.
        Font::fixed().draw(&mut image, (0, 0), "Ag一", Rgb([255; 3]));
        let row = |y: u32| -> String {
            let pixels = (0..image.width()).map(|x| image.get_pixel(x, y).0[0]);
            pixels
                .map(|value| if value == 0 { '.' } else { '#' })
                .collect()
        };
        let rows: Vec<String> = (0..CHAR_HEIGHT).map(row).collect();
        let expected = [
            "..................",
            "..................",
            "..#.........#####.",
            ".#.#........#...#.",
            "#...#.......#...#.",
            "#...#..###..#...#.",
            "#...#.#...#.#...#.",
            "#####.#...#.#...#.",
            "#...#.#...#.#...#.",
            "#...#..####.#...#.",
            "#...#.....#.#####.",
            "......#...#.......",
            ".......###........",
        ];
        assert_eq!(rows, expected);
        // Beyond the edges nothing is drawn, and nothing breaks.
        Font::fixed().draw(&mut image, (u32::from(u16::MAX), 5), "A", Rgb([9; 3]));
    }

    #[test]
    fn lines_fit() {
        assert_eq!(wrap("a brown dog runs", 8, 9), ["a brown", "dog runs"]);
        assert_eq!(wrap("", 8, 9), [""; 0]);
        assert_eq!(wrap("abcdefghij kl", 4, 9), ["abcd", "efgh", "ij", "kl"]);
        assert_eq!(wrap("a brown dog runs away", 8, 2), ["a brown", "dog run…"]);
        assert_eq!(wrap("aaaa bbbb cccc", 5, 2), ["aaaa", "bbbb…"]);
        assert_eq!(wrap("aaaa bbbb cccc", 7, 2), ["aaaa", "bbbb…"]);
        assert_eq!(wrap("aaaa bbbb cccc", 4, 2), ["aaaa", "bbb…"]);
        assert_eq!(wrap("żółć żółć", 4, 9), ["żółć", "żółć"]);
        for columns in 1..12 {
            for line in wrap("some words of an unreasonable length", columns, 3) {
                assert!(length(&line) <= columns, "{line} in {columns}");
            }
        }
        assert_eq!(elide_start("photos/000017.jpg", 11), "…000017.jpg");
        assert_eq!(elide_start("a", 1), "a");
        assert_eq!(elide_end("photos", 4), "pho…");
    }
}
