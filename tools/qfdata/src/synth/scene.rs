//! What is in a scene, and where: drawn attributes and relations, then a layout.

use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Random numbers of one image.
pub(super) struct Draw(ChaCha8Rng);

impl Draw {
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }

    /// Uniform in `0..count`.
    pub(super) fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.0.next_u64()) * count as u128) >> 64) as usize
    }

    /// Uniform in `[low, high)`.
    pub(super) fn between(&mut self, low: f64, high: f64) -> f64 {
        let unit = (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        low + (high - low) * unit
    }

    pub(super) fn one_of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

/// Outline of an object; every one is its own mirror image but for the crescent, whose name does not
/// say which way it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Shape {
    Circle,
    Square,
    Triangle,
    Star,
    Ring,
    Cross,
    Heart,
    Hexagon,
    Diamond,
    Crescent,
}

impl Shape {
    pub(super) const ALL: [Shape; 10] = [
        Shape::Circle,
        Shape::Square,
        Shape::Triangle,
        Shape::Star,
        Shape::Ring,
        Shape::Cross,
        Shape::Heart,
        Shape::Hexagon,
        Shape::Diamond,
        Shape::Crescent,
    ];

    /// Shapes with room for another object in the middle.
    const CONTAINERS: [Shape; 5] = [
        Shape::Circle,
        Shape::Square,
        Shape::Ring,
        Shape::Hexagon,
        Shape::Diamond,
    ];
}

/// Colour of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Color {
    Red,
    Orange,
    Yellow,
    Green,
    Blue,
    Purple,
    Pink,
    Brown,
}

impl Color {
    const ALL: [Color; 8] = [
        Color::Red,
        Color::Orange,
        Color::Yellow,
        Color::Green,
        Color::Blue,
        Color::Purple,
        Color::Pink,
        Color::Brown,
    ];
}

/// Colour of a background; none is an object's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Tone {
    White,
    Gray,
    Black,
    Beige,
    Navy,
    Teal,
}

impl Tone {
    const ALL: [Tone; 6] = [
        Tone::White,
        Tone::Gray,
        Tone::Black,
        Tone::Beige,
        Tone::Navy,
        Tone::Teal,
    ];
}

/// Size of an object; large ones have about twice the diameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Size {
    Small,
    Large,
}

/// Surface of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Texture {
    Solid,
    Striped,
    Dotted,
}

/// One object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Object {
    pub(super) size: Size,
    pub(super) texture: Texture,
    pub(super) color: Color,
    pub(super) shape: Shape,
}

/// An object and perhaps a small one inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Item {
    pub(super) object: Object,
    pub(super) inner: Option<Object>,
}

/// What is behind the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Background {
    Plain(Tone),
    /// From top to bottom.
    Gradient(Tone, Tone),
    /// Two tones in ascending order.
    Checker(Tone, Tone),
}

/// A scene as captions tell it. Equal scenes are those that the same words describe.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Scene {
    /// Top row first; items of a row are next to each other, in ascending order (left and right mean
    /// nothing). One or two rows of one or two items, three objects at most.
    pub(super) rows: Vec<Vec<Item>>,
    pub(super) background: Background,
}

/// An object with its place; lengths are shares of the image's side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) object: Object,
    pub(super) center: (f64, f64),
    /// The outline lies within this distance of the centre.
    pub(super) radius: f64,
}

impl Object {
    fn draw(draw: &mut Draw) -> Self {
        Self {
            size: draw.one_of(&[Size::Small, Size::Large]),
            texture: match draw.below(5) {
                0 => Texture::Striped,
                1 => Texture::Dotted,
                _ => Texture::Solid,
            },
            color: draw.one_of(&Color::ALL),
            shape: draw.one_of(&Shape::ALL),
        }
    }
}

impl Background {
    fn draw(draw: &mut Draw) -> Self {
        let first = draw.one_of(&Tone::ALL);
        let second = loop {
            let tone = draw.one_of(&Tone::ALL);
            if tone != first {
                break tone;
            }
        };
        match draw.below(4) {
            0 | 1 => Background::Plain(first),
            2 => Background::Gradient(first, second),
            _ => Background::Checker(first.min(second), first.max(second)),
        }
    }
}

impl Scene {
    /// Any scene. Its objects differ from each other in colour.
    pub(super) fn draw(draw: &mut Draw) -> Self {
        let mut objects: Vec<Object> = Vec::new();
        let wanted = draw.one_of(&[1, 1, 2, 2, 3]);
        while objects.len() < wanted {
            let object = Object::draw(draw);
            if objects.iter().all(|other| other.color != object.color) {
                objects.push(object);
            }
        }
        let mut items: Vec<Item> = objects
            .iter()
            .map(|&object| Item {
                object,
                inner: None,
            })
            .collect();
        if items.len() > 1 && draw.percent(25) {
            if let Some(inner) = items.pop() {
                let container = &mut items[0];
                container.object.size = Size::Large;
                container.object.shape = draw.one_of(&Shape::CONTAINERS);
                // Details of an object this small do not survive a crop's resizing.
                container.inner = Some(Object {
                    size: Size::Small,
                    texture: Texture::Solid,
                    ..inner.object
                });
            }
        }
        let one_row = items.len() == 1 || (items.len() == 2 && draw.percent(40));
        let mut rows = if one_row {
            vec![items]
        } else {
            // Two items on two rows, or three as one and two or two and one.
            let upper = 1 + usize::from(items.len() == 3 && draw.percent(50));
            let lower = items.split_off(upper);
            match draw.percent(50) {
                true => vec![items, lower],
                false => vec![lower, items],
            }
        };
        for row in &mut rows {
            row.sort();
        }
        Self {
            rows,
            background: Background::draw(draw),
        }
    }

    /// Objects with their places, in drawing order. Rows lie clear above each other, items of a row
    /// clear beside each other, in either order; all keep `MARGIN` from the borders.
    pub(super) fn place(&self, draw: &mut Draw) -> Vec<Placed> {
        const MARGIN: f64 = 0.13;
        const ROOM: f64 = 1.0 - 2.0 * MARGIN;
        let mut sized: Vec<Vec<(Item, f64)>> = Vec::new();
        for row in &self.rows {
            let mut row: Vec<_> = row
                .iter()
                .map(|&item| {
                    let radius = match (item.object.size, item.inner) {
                        (Size::Small, _) => draw.between(0.085, 0.095),
                        (Size::Large, None) => draw.between(0.150, 0.165),
                        (Size::Large, Some(_)) => draw.between(0.165, 0.175),
                    };
                    (item, radius)
                })
                .collect();
            if draw.percent(50) {
                row.reverse();
            }
            sized.push(row);
        }
        let gap = draw.between(0.03, 0.05);
        let sum = |lengths: &[f64]| {
            lengths.iter().sum::<f64>() + gap * lengths.len().saturating_sub(1) as f64
        };
        let heights: Vec<f64> = sized
            .iter()
            .map(|row| {
                row.iter()
                    .map(|(_, radius)| 2.0 * radius)
                    .fold(0.0, f64::max)
            })
            .collect();
        let widths: Vec<f64> = sized
            .iter()
            .map(|row| {
                sum(&row
                    .iter()
                    .map(|(_, radius)| 2.0 * radius)
                    .collect::<Vec<_>>())
            })
            .collect();
        let widest = widths.iter().copied().fold(0.0, f64::max);
        let mut top = MARGIN + draw.between(0.0, (ROOM - sum(&heights)).max(0.0));
        let left = MARGIN + draw.between(0.0, (ROOM - widest).max(0.0));
        let mut placed = Vec::new();
        for ((row, height), width) in sized.iter().zip(&heights).zip(&widths) {
            // A narrow row stands near the middle of a wide one: above means above, not beside.
            let play = (widest - width) / 2.0;
            let mut x = left + play + draw.between(-0.5, 0.5) * play;
            for &(item, radius) in row {
                let center = (x + radius, top + height / 2.0);
                placed.push(Placed {
                    object: item.object,
                    center,
                    radius,
                });
                placed.extend(item.inner.map(|object| Placed {
                    object,
                    center,
                    radius: radius * draw.between(0.42, 0.45),
                }));
                x += 2.0 * radius + gap;
            }
            top += height + gap;
        }
        placed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_keep_clear_of_borders_and_each_other() {
        for stream in 0..2000 {
            let mut draw = Draw::new(3, stream);
            let scene = Scene::draw(&mut draw);
            let placed = scene.place(&mut draw);
            assert!((1..=3).contains(&placed.len()));
            for (index, a) in placed.iter().enumerate() {
                for at in [a.center.0, a.center.1] {
                    assert!(
                        at - a.radius >= 0.129 && at + a.radius <= 0.871,
                        "{scene:?}"
                    );
                }
                for b in &placed[..index] {
                    let (dx, dy) = (a.center.0 - b.center.0, a.center.1 - b.center.1);
                    let distance = (dx * dx + dy * dy).sqrt();
                    let apart = distance > (a.radius + b.radius) * 0.99;
                    let inside = distance == 0.0 && a.radius < b.radius / 2.0;
                    assert!(apart || inside, "{scene:?} {placed:?}");
                }
            }
        }
    }

    #[test]
    fn upper_rows_are_above_lower_rows() {
        for stream in 0..500 {
            let mut draw = Draw::new(4, stream);
            let scene = Scene::draw(&mut draw);
            let placed = scene.place(&mut draw);
            let y_of = |item: &Item| {
                let found = placed.iter().find(|placed| placed.object == item.object);
                found.unwrap().center.1
            };
            if let [upper, lower] = &scene.rows[..] {
                for (a, b) in upper.iter().flat_map(|a| lower.iter().map(move |b| (a, b))) {
                    assert!(y_of(a) < y_of(b));
                }
            }
        }
    }
}
