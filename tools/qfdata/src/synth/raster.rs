//! Draws a scene: signed distances to outlines, blended over one pixel at the edge. Plain f64
//! arithmetic and square roots only, so that every machine gets the same pixels.

use super::scene::{Background, Color, Draw, Placed, Scene, Shape, Texture, Tone};

type Rgb = [f64; 3];
type Point = (f64, f64);

/// Fields of a checkered background along each side.
const CHECKER_FIELDS: u32 = 8;

/// Stripe period and dot spacing as shares of an object's radius.
const STRIPE_PERIOD: f64 = 0.44;
const DOT_SPACING: f64 = 0.5;
const DOT_RADIUS: f64 = 0.16;

/// The image of a scene, `size` pixels high and wide.
pub(super) fn render(scene: &Scene, size: u32, draw: &mut Draw) -> image::RgbImage {
    let placed = scene.place(draw);
    let mut pixels = Vec::with_capacity(size as usize * size as usize * 3);
    for y in 0..size {
        for x in 0..size {
            pixels.extend(background_at(scene.background, x, y, size));
        }
    }
    for object in &placed {
        draw_object(&mut pixels, size, object, draw);
    }
    let samples = pixels.iter().map(|&channel| (channel + 0.5) as u8);
    image::RgbImage::from_raw(size, size, samples.collect()).expect("three samples a pixel")
}

fn background_at(background: Background, x: u32, y: u32, size: u32) -> Rgb {
    match background {
        Background::Plain(tone) => rgb_of_tone(tone),
        Background::Gradient(top, bottom) => mix(
            rgb_of_tone(top),
            rgb_of_tone(bottom),
            f64::from(y) / f64::from(size - 1),
        ),
        Background::Checker(a, b) => {
            let field = |at: u32| at * CHECKER_FIELDS / size;
            match (field(x) + field(y)) % 2 {
                0 => rgb_of_tone(a),
                _ => rgb_of_tone(b),
            }
        }
    }
}

fn draw_object(pixels: &mut [f64], size: u32, placed: &Placed, draw: &mut Draw) {
    let side = f64::from(size);
    let radius = placed.radius * side;
    let center = (placed.center.0 * side, placed.center.1 * side);
    // A tilt of at most 8 degrees, as the half-angle's tangent; a diamond never looks like a square.
    let tilt = draw.between(-0.07, 0.07);
    let (cos, sin) = (
        (1.0 - tilt * tilt) / (1.0 + tilt * tilt),
        2.0 * tilt / (1.0 + tilt * tilt),
    );
    let base = rgb_of_color(placed.object.color)
        .map(|c| (c + draw.between(-10.0, 10.0)).clamp(0.0, 255.0));
    let accent = accent_of(base);
    let outline = Outline::of(placed.object.shape);
    let range = |at: f64| {
        let low = (at - radius - 2.0).max(0.0) as u32;
        let high = ((at + radius + 2.0).max(0.0) as u32).min(size - 1);
        low..=high
    };
    for y in range(center.1) {
        for x in range(center.0) {
            let (dx, dy) = (
                (f64::from(x) + 0.5 - center.0) / radius,
                (f64::from(y) + 0.5 - center.1) / radius,
            );
            let at = (dx * cos + dy * sin, dy * cos - dx * sin);
            let cover = coverage(outline.distance(at), radius);
            if cover == 0.0 {
                continue;
            }
            let marked = coverage(texture_distance(placed.object.texture, at), radius);
            let color = mix(base, accent, marked);
            let index = (y as usize * size as usize + x as usize) * 3;
            for (pixel, channel) in pixels[index..index + 3].iter_mut().zip(color) {
                *pixel += (channel - *pixel) * cover;
            }
        }
    }
}

/// Share of the pixel that is inside, from the distance of its centre to the edge.
fn coverage(distance: f64, radius_pixels: f64) -> f64 {
    (0.5 - distance * radius_pixels).clamp(0.0, 1.0)
}

/// Distance to the nearest stripe or dot; negative on it.
fn texture_distance(texture: Texture, (x, y): Point) -> f64 {
    // Offset from the nearest multiple of the period.
    let offset = |at: f64, period: f64| at - (at / period + 0.5).floor() * period;
    match texture {
        Texture::Solid => f64::INFINITY,
        Texture::Striped => offset(y, STRIPE_PERIOD).abs() - STRIPE_PERIOD / 4.0,
        Texture::Dotted => length((offset(x, DOT_SPACING), offset(y, DOT_SPACING))) - DOT_RADIUS,
    }
}

/// A shape within the unit circle; y points down.
enum Outline {
    Disc,
    Ring,
    Crescent,
    Heart,
    Polygon(Vec<Point>),
}

impl Outline {
    fn of(shape: Shape) -> Self {
        /// Cosine and sine of 18, 54 and 60 degrees.
        const C18: f64 = 0.951_056_516_295_153_5;
        const S18: f64 = 0.309_016_994_374_947_4;
        const C54: f64 = 0.587_785_252_292_473_1;
        const S54: f64 = 0.809_016_994_374_947_5;
        const S60: f64 = 0.866_025_403_784_438_6;
        let points = match shape {
            Shape::Circle => return Outline::Disc,
            Shape::Ring => return Outline::Ring,
            Shape::Crescent => return Outline::Crescent,
            Shape::Heart => return Outline::Heart,
            Shape::Square => vec![(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)],
            Shape::Diamond => vec![(0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)],
            Shape::Triangle => vec![(0.0, -1.0), (S60, 0.5), (-S60, 0.5)],
            Shape::Hexagon => vec![
                (1.0, 0.0),
                (0.5, S60),
                (-0.5, S60),
                (-1.0, 0.0),
                (-0.5, -S60),
                (0.5, -S60),
            ],
            Shape::Star => {
                // Outer and inner points in turn, from the top.
                let inner = 0.42;
                vec![
                    (0.0, -1.0),
                    (C54 * inner, -S54 * inner),
                    (C18, -S18),
                    (C18 * inner, S18 * inner),
                    (C54, S54),
                    (0.0, inner),
                    (-C54, S54),
                    (-C18 * inner, S18 * inner),
                    (-C18, -S18),
                    (-C54 * inner, -S54 * inner),
                ]
            }
            Shape::Cross => {
                let (arm, half) = (0.92, 0.3);
                vec![
                    (-half, -arm),
                    (half, -arm),
                    (half, -half),
                    (arm, -half),
                    (arm, half),
                    (half, half),
                    (half, arm),
                    (-half, arm),
                    (-half, half),
                    (-arm, half),
                    (-arm, -half),
                    (-half, -half),
                ]
            }
        };
        Outline::Polygon(points)
    }

    /// Signed distance of a point to the outline, negative inside.
    fn distance(&self, (x, y): Point) -> f64 {
        match self {
            Outline::Disc => length((x, y)) - 0.95,
            Outline::Ring => (length((x, y)) - 0.77).abs() - 0.2,
            Outline::Crescent => {
                let outer = length((x, y)) - 0.95;
                let bite = length((x - 0.42, y)) - 0.75;
                outer.max(-bite)
            }
            Outline::Heart => {
                // A square on its corner and a disc on each of its upper edges.
                let half = 0.56;
                let (x, y) = (x.abs(), y - 0.12);
                let lobe = length((x - half / 2.0, y + half / 2.0))
                    - half * std::f64::consts::FRAC_1_SQRT_2;
                let square = (x + y.abs() - half) * std::f64::consts::FRAC_1_SQRT_2;
                lobe.min(square) - 0.05
            }
            Outline::Polygon(points) => polygon_distance(points, (x, y)),
        }
    }
}

/// Distance to the nearest edge; the sign is the parity of the edges that a ray to the right crosses.
fn polygon_distance(points: &[Point], at: Point) -> f64 {
    let mut nearest = f64::INFINITY;
    let mut inside = false;
    let ends = points.iter().cycle().skip(1);
    for (&from, &to) in points.iter().zip(ends) {
        let edge = (to.0 - from.0, to.1 - from.1);
        let offset = (at.0 - from.0, at.1 - from.1);
        let along = (offset.0 * edge.0 + offset.1 * edge.1) / (edge.0 * edge.0 + edge.1 * edge.1);
        let along = along.clamp(0.0, 1.0);
        nearest = nearest.min(length((
            offset.0 - edge.0 * along,
            offset.1 - edge.1 * along,
        )));
        if (from.1 > at.1) != (to.1 > at.1) && at.0 < from.0 + offset.1 / edge.1 * edge.0 {
            inside = !inside;
        }
    }
    if inside {
        -nearest
    } else {
        nearest
    }
}

fn length((x, y): Point) -> f64 {
    (x * x + y * y).sqrt()
}

fn mix(a: Rgb, b: Rgb, share: f64) -> Rgb {
    [0, 1, 2].map(|channel| a[channel] + (b[channel] - a[channel]) * share)
}

/// Colour of stripes and dots: lighter on dark colours, darker on light ones.
fn accent_of(color: Rgb) -> Rgb {
    let luma = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2];
    if luma < 125.0 {
        mix(color, [255.0; 3], 0.6)
    } else {
        mix(color, [0.0; 3], 0.5)
    }
}

fn rgb_of_color(color: Color) -> Rgb {
    match color {
        Color::Red => [215.0, 35.0, 35.0],
        Color::Orange => [245.0, 140.0, 20.0],
        Color::Yellow => [245.0, 220.0, 40.0],
        Color::Green => [45.0, 165.0, 60.0],
        Color::Blue => [50.0, 95.0, 235.0],
        Color::Purple => [140.0, 55.0, 180.0],
        Color::Pink => [250.0, 135.0, 195.0],
        Color::Brown => [130.0, 80.0, 40.0],
    }
}

fn rgb_of_tone(tone: Tone) -> Rgb {
    match tone {
        Tone::White => [248.0, 248.0, 248.0],
        Tone::Gray => [150.0, 150.0, 150.0],
        Tone::Black => [15.0, 15.0, 15.0],
        Tone::Beige => [235.0, 220.0, 185.0],
        Tone::Navy => [20.0, 30.0, 85.0],
        Tone::Teal => [30.0, 130.0, 135.0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outlines_are_inside_the_unit_circle_and_cover_what_they_should() {
        for shape in Shape::ALL {
            let outline = Outline::of(shape);
            let steps = 200;
            let mut inside = 0;
            for (row, column) in (0..steps).flat_map(|r| (0..steps).map(move |c| (r, c))) {
                let at = |step| f64::from(step) / f64::from(steps) * 2.6 - 1.3;
                let (x, y) = (at(column), at(row));
                if outline.distance((x, y)) < 0.0 {
                    assert!(length((x, y)) < 1.005, "{shape:?} at {x} {y}");
                    inside += 1;
                }
            }
            let area = f64::from(inside) / f64::from(steps * steps) * 2.6 * 2.6;
            assert!((0.8..3.0).contains(&area), "{shape:?} has area {area}");
        }
    }

    #[test]
    fn a_square_has_its_distances() {
        let square = Outline::of(Shape::Square);
        for (at, expected) in [
            ((0.0, 0.0), -0.7),
            ((0.5, 0.0), -0.2),
            ((1.0, 0.1), 0.3),
            ((1.0, 1.1), 0.5),
        ] {
            assert!((square.distance(at) - expected).abs() < 1e-12, "{at:?}");
        }
    }
}
