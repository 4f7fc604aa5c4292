//! The batch as one picture: a grid of tiles, each with key, caption and tokens below it.

use anyhow::{bail, Context};
use image::{Rgb, RgbImage};
use serde::Serialize;

use super::request::MAX_PIXELS;
use super::shown::{Caption, PieceKind, Sample, Shown};
use super::text::{elide_end, elide_start, length, wrap, Font, CHAR_HEIGHT, CHAR_WIDTH};

/// Tiles are enlarged by a whole factor up to this side: below it text has no room.
const MIN_TILE_SIDE: u32 = 160;

/// Space around and between tiles, in pixels.
const MARGIN: u32 = 18;
const LINE_HEIGHT: u32 = CHAR_HEIGHT + 2;
/// Between a tile and its text, and between groups of lines.
const GROUP_SPACE: u32 = 6;

/// Lines of a caption, and pairs of lines of its tokens.
const MAX_CAPTION_LINES: usize = 6;
const MAX_TOKEN_LINES: usize = 12;
/// Captions of one image that are drawn.
const MAX_CAPTIONS: usize = 5;
/// Bad samples that are drawn.
const MAX_SKIPPED: usize = 8;

const PAPER: Rgb<u8> = Rgb([250, 250, 249]);
const INK: Rgb<u8> = Rgb([24, 24, 27]);
const MUTED: Rgb<u8> = Rgb([113, 113, 122]);
const PIECE: Rgb<u8> = Rgb([29, 78, 216]);
const SPECIAL: Rgb<u8> = Rgb([161, 98, 7]);
const ALARM: Rgb<u8> = Rgb([200, 30, 30]);

/// The picture, and where its tiles are.
pub(super) struct Grid {
    pub(super) image: RgbImage,
    pub(super) layout: Layout,
}

/// Where tiles are, in pixels.
#[derive(Serialize)]
pub(super) struct Layout {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) columns: u32,
    /// Pixels of the picture along the side of a pixel of the batch.
    pub(super) scale: u32,
    /// `[B]` left and top of each tile.
    pub(super) tiles: Vec<(u32, u32)>,
}

/// A piece of text of one colour, `column` characters from the left.
struct Run {
    column: usize,
    text: String,
    color: Rgb<u8>,
}

/// A line of text, and the space above it.
struct Line {
    space: u32,
    runs: Vec<Run>,
}

impl Line {
    fn new(text: String, color: Rgb<u8>) -> Line {
        let column = 0;
        Line {
            space: 0,
            runs: vec![Run {
                column,
                text,
                color,
            }],
        }
    }
}

/// Draws the batch.
///
/// # Errors
/// A picture of more than [`MAX_PIXELS`].
pub(super) fn draw(shown: &Shown, title: &str, columns: Option<u32>) -> anyhow::Result<Grid> {
    let size = u32::try_from(shown.image_size()).context("image size")?;
    let count = u32::try_from(shown.samples.len()).context("batch size")?;
    let scale = MIN_TILE_SIDE.div_ceil(size).max(1);
    let side = size * scale;
    let chars = (side / CHAR_WIDTH) as usize;
    let blocks: Vec<Vec<Line>> = shown
        .samples
        .iter()
        .map(|sample| sample_lines(sample, chars))
        .collect();
    let heights: Vec<u32> = blocks.iter().map(|block| height_of(block)).collect();
    let tallest = heights.iter().max().copied().unwrap_or(0);
    let cell = (side + MARGIN, side + GROUP_SPACE + tallest + MARGIN);
    let columns = columns
        .unwrap_or_else(|| squarish(count, cell))
        .clamp(1, count.max(1));
    let width = MARGIN + columns * cell.0;
    let chars = ((width - 2 * MARGIN) / CHAR_WIDTH) as usize;
    let head = head_lines(title, chars);
    let foot = skipped_lines(shown, chars);

    let mut tiles = Vec::with_capacity(shown.samples.len());
    let mut y = u64::from(MARGIN + height_of(&head) + MARGIN);
    for row in heights.chunks(columns as usize) {
        let row_height = row.iter().max().copied().unwrap_or(0);
        for column in 0..row.len() as u32 {
            tiles.push((MARGIN + column * cell.0, y));
        }
        y += u64::from(side + GROUP_SPACE + row_height + MARGIN);
    }
    let foot_y = y;
    if !foot.is_empty() {
        y += u64::from(height_of(&foot) + MARGIN);
    }
    if u64::from(width) * y > MAX_PIXELS {
        bail!(
            "the grid would have {width} × {y} pixels, more than {} million: take a smaller \
             --batch-size or --image-size",
            MAX_PIXELS / 1_000_000
        );
    }
    // Below 2³² now.
    let narrow = |y: u64| y as u32;
    let tiles: Vec<(u32, u32)> = tiles.into_iter().map(|(x, y)| (x, narrow(y))).collect();
    let mut image = RgbImage::from_pixel(width, narrow(y), PAPER);
    let font = Font::fixed();
    draw_lines(&mut image, &font, (MARGIN, MARGIN), &head);
    for (index, (&(x, y), block)) in tiles.iter().zip(&blocks).enumerate() {
        draw_tile(&mut image, (x, y), scale, size, &shown.interleaved(index));
        draw_lines(&mut image, &font, (x, y + side + GROUP_SPACE), block);
    }
    draw_lines(&mut image, &font, (MARGIN, narrow(foot_y)), &foot);
    let layout = Layout {
        width,
        height: narrow(y),
        columns,
        scale,
        tiles,
    };
    Ok(Grid { image, layout })
}

/// As many columns as make the grid about as wide as it is high.
fn squarish(count: u32, cell: (u32, u32)) -> u32 {
    let aspect = f64::from(cell.1) / f64::from(cell.0);
    let columns = (f64::from(count) * aspect).sqrt().round() as u32;
    // Rows of equal length where that takes a column or two more, or one less.
    let fits = |columns: &u32| *columns > 0 && count.is_multiple_of(*columns);
    let near = [columns, columns + 1, columns.saturating_sub(1), columns + 2];
    near.into_iter().find(fits).unwrap_or(columns)
}

/// Copies `pixels`, `[size, size, 3]`, with each pixel enlarged to `scale` × `scale`.
fn draw_tile(image: &mut RgbImage, (left, top): (u32, u32), scale: u32, size: u32, pixels: &[u8]) {
    let size = size as usize;
    for (row, line) in pixels.chunks_exact(3 * size).enumerate() {
        for (column, pixel) in line.chunks_exact(3).enumerate() {
            let color = Rgb([pixel[0], pixel[1], pixel[2]]);
            let (x, y) = (left + column as u32 * scale, top + row as u32 * scale);
            for y in y..y + scale {
                for x in x..x + scale {
                    image.put_pixel(x, y, color);
                }
            }
        }
    }
}

fn draw_lines(image: &mut RgbImage, font: &Font, (x, mut y): (u32, u32), lines: &[Line]) {
    for line in lines {
        y += line.space;
        for run in &line.runs {
            let x = x + run.column as u32 * CHAR_WIDTH;
            font.draw(image, (x, y), &run.text, run.color);
        }
        y += LINE_HEIGHT;
    }
}

fn height_of(lines: &[Line]) -> u32 {
    lines.iter().map(|line| line.space + LINE_HEIGHT).sum()
}

fn head_lines(title: &str, chars: usize) -> Vec<Line> {
    let lines = wrap(title, chars, 4).into_iter();
    lines.map(|line| Line::new(line, INK)).collect()
}

/// Key, size and crop, captions and tokens of a sample.
fn sample_lines(sample: &Sample, chars: usize) -> Vec<Line> {
    let mut lines = vec![Line::new(elide_start(&sample.key, chars), INK)];
    let view = wrap(&view_text(sample), chars, 2).into_iter();
    lines.extend(view.map(|line| Line::new(line, MUTED)));
    if sample.captions.is_empty() {
        let mut line = Line::new("no caption".into(), MUTED);
        line.space = GROUP_SPACE;
        lines.push(line);
    }
    for (index, caption) in sample.captions.iter().take(MAX_CAPTIONS).enumerate() {
        let first = lines.len();
        let words = wrap(&caption.text, chars, MAX_CAPTION_LINES).into_iter();
        lines.extend(words.map(|line| Line::new(line, INK)));
        if let Some(line) = lines.get_mut(first) {
            line.space = GROUP_SPACE;
        }
        // Of the others the words alone, or the text would be much higher than the tile.
        if index == 0 {
            lines.extend(token_lines(caption, chars));
        }
    }
    if let Some(more @ 1..) = sample.captions.len().checked_sub(MAX_CAPTIONS) {
        lines.push(Line::new(format!("and {more} more"), MUTED));
    }
    lines
}

/// `640×480, crop 512×400 at 12,30, mirrored`
pub(super) fn view_text(sample: &Sample) -> String {
    let crop = &sample.crop;
    let mut text = format!("{}×{}", sample.width, sample.height);
    text.push_str(&match sample.is_whole() {
        true => ", whole".to_string(),
        false => format!(
            ", crop {}×{} at {},{}",
            crop.width, crop.height, crop.x, crop.y
        ),
    });
    if sample.mirrored {
        text.push_str(", mirrored");
    }
    text
}

/// Pieces with their ids below them, as many side by side as fit.
fn token_lines(caption: &Caption, chars: usize) -> Vec<Line> {
    let Some(tokens) = &caption.tokens else {
        return Vec::new();
    };
    let mut pairs: Vec<(Line, Line)> = Vec::new();
    let mut column = usize::MAX;
    for (id, piece) in tokens.used() {
        let (piece_text, id) = (elide_end(piece, chars), elide_end(&id.to_string(), chars));
        let width = length(&piece_text).max(length(&id));
        if column.saturating_add(width) > chars {
            let blank = || Line {
                space: 0,
                runs: Vec::new(),
            };
            let mut pair = (blank(), blank());
            pair.0.space = GROUP_SPACE;
            pairs.push(pair);
            column = 0;
        }
        let Some((pieces, ids)) = pairs.last_mut() else {
            break;
        };
        let color = match PieceKind::of(piece) {
            PieceKind::Word => PIECE,
            PieceKind::Special => SPECIAL,
            PieceKind::Unknown => ALARM,
        };
        let text = piece_text;
        pieces.runs.push(Run {
            column,
            text,
            color,
        });
        ids.runs.push(Run {
            column,
            text: id,
            color: MUTED,
        });
        column += width + 1;
    }
    let hidden = pairs.len() > MAX_TOKEN_LINES;
    pairs.truncate(MAX_TOKEN_LINES);
    let mut lines: Vec<Line> = pairs.into_iter().flat_map(|(a, b)| [a, b]).collect();
    if hidden {
        lines.push(Line::new(elide_end("… all tokens: --html", chars), MUTED));
    }
    let mut rest = Line::new(format!("{} × [PAD]", tokens.padding()), MUTED);
    if tokens.cut_tokens > 0 {
        rest = Line::new(format!("{} more cut off", tokens.cut_tokens), ALARM);
    }
    rest.space = 2;
    if tokens.cut_tokens > 0 || tokens.padding() > 0 {
        lines.push(rest);
    }
    lines
}

fn skipped_lines(shown: &Shown, chars: usize) -> Vec<Line> {
    let count = shown.skipped_count();
    if count == 0 {
        return Vec::new();
    }
    let what = super::describe::passed_over(count);
    let mut lines = vec![Line::new(format!("{what}:"), ALARM)];
    for bad in shown.skipped.iter().take(MAX_SKIPPED) {
        let text = format!("{}: {}: {}", bad.key, bad.reason, bad.message);
        let wrapped = wrap(&text, chars, 3).into_iter();
        lines.extend(wrapped.map(|line| Line::new(line, INK)));
    }
    if let Some(more @ 1..) = count.checked_sub(MAX_SKIPPED as u64) {
        lines.push(Line::new(format!("and {more} more"), MUTED));
    }
    lines
}
