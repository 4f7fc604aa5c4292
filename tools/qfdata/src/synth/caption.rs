//! Words for a scene: every object with all its attributes, the relations, the background. Never
//! left or right: a flipped image keeps its captions.

use super::scene::{Background, Color, Draw, Item, Object, Scene, Shape, Size, Texture, Tone};

/// The most words of a caption: with two special tokens it stays below the 32 tokens of the model.
const MAX_WORDS: usize = 28;

/// Draws of a caption before the shortest wording is taken as it is.
const MAX_DRAWS: usize = 1000;

/// `count` different captions (fewer only if the scene does not have that many wordings).
pub(super) fn captions(scene: &Scene, count: usize, draw: &mut Draw) -> Vec<String> {
    let mut captions: Vec<String> = Vec::with_capacity(count);
    for _ in 0..MAX_DRAWS {
        if captions.len() == count {
            break;
        }
        let caption = caption(scene, draw);
        if caption.split(' ').count() <= MAX_WORDS && !captions.contains(&caption) {
            captions.push(caption);
        }
    }
    captions
}

fn caption(scene: &Scene, draw: &mut Draw) -> String {
    let objects = arrangement(scene, draw);
    let background = background(scene.background, draw);
    match draw.below(5) {
        0 | 1 => format!("{objects} on {background}"),
        2 => format!("{background} with {objects}"),
        3 => format!("a picture of {objects} on {background}"),
        _ => format!("there is {objects} on {background}"),
    }
}

fn arrangement(scene: &Scene, draw: &mut Draw) -> String {
    match &scene.rows[..] {
        [upper, lower] => {
            let (upper, lower) = (row(upper, " and ", draw), row(lower, " and ", draw));
            match draw.below(3) {
                0 => format!("{lower} below {upper}"),
                1 => format!("{lower} under {upper}"),
                _ => format!("{upper} above {lower}"),
            }
        }
        rows => {
            let beside = draw.one_of(&[" next to ", " beside "]);
            let rows: Vec<_> = rows.iter().map(|items| row(items, beside, draw)).collect();
            rows.join(" above ")
        }
    }
}

fn row(items: &[Item], between: &str, draw: &mut Draw) -> String {
    let mut words: Vec<_> = items.iter().map(|item| self::item(item, draw)).collect();
    if draw.below(2) == 0 {
        words.reverse();
    }
    words.join(between)
}

fn item(item: &Item, draw: &mut Draw) -> String {
    let outer = object(&item.object, draw);
    match &item.inner {
        None => outer,
        Some(inner) => {
            let inner = object(inner, draw);
            format!("{inner} {} {outer}", draw.one_of(&["inside", "in"]))
        }
    }
}

fn object(object: &Object, draw: &mut Draw) -> String {
    let size = match object.size {
        Size::Small => draw.one_of(&["small", "little"]),
        Size::Large => draw.one_of(&["large", "big"]),
    };
    let (color, shape) = (color(object.color), shape(object.shape));
    let (adjective, noun) = match object.texture {
        Texture::Solid => return format!("a {size} {color} {shape}"),
        Texture::Striped => ("striped", "stripes"),
        Texture::Dotted => ("dotted", "dots"),
    };
    match draw.below(3) {
        0 => format!("a {size} {color} {shape} with {noun}"),
        1 => format!("a {size} {color} {adjective} {shape}"),
        _ => format!("a {size} {adjective} {color} {shape}"),
    }
}

fn background(background: Background, draw: &mut Draw) -> String {
    let second_wording = draw.below(2) == 1;
    match (background, second_wording) {
        (Background::Plain(tone), false) => format!("a {} background", self::tone(tone)),
        (Background::Plain(tone), true) => format!("a plain {} background", self::tone(tone)),
        (Background::Gradient(top, bottom), false) => {
            let (top, bottom) = (tone(top), tone(bottom));
            format!("a background fading from {top} to {bottom}")
        }
        (Background::Gradient(top, bottom), true) => {
            format!("a {} to {} gradient", tone(top), tone(bottom))
        }
        (Background::Checker(a, b), false) => {
            format!("a {} and {} checkered background", tone(a), tone(b))
        }
        (Background::Checker(a, b), true) => {
            format!("a {} and {} checkerboard", tone(b), tone(a))
        }
    }
}

fn color(color: Color) -> &'static str {
    match color {
        Color::Red => "red",
        Color::Orange => "orange",
        Color::Yellow => "yellow",
        Color::Green => "green",
        Color::Blue => "blue",
        Color::Purple => "purple",
        Color::Pink => "pink",
        Color::Brown => "brown",
    }
}

fn tone(tone: Tone) -> &'static str {
    match tone {
        Tone::White => "white",
        Tone::Gray => "gray",
        Tone::Black => "black",
        Tone::Beige => "beige",
        Tone::Navy => "navy",
        Tone::Teal => "teal",
    }
}

fn shape(shape: Shape) -> &'static str {
    match shape {
        Shape::Circle => "circle",
        Shape::Square => "square",
        Shape::Triangle => "triangle",
        Shape::Star => "star",
        Shape::Ring => "ring",
        Shape::Cross => "cross",
        Shape::Heart => "heart",
        Shape::Hexagon => "hexagon",
        Shape::Diamond => "diamond",
        Shape::Crescent => "crescent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn captions_are_different_short_and_complete() {
        for stream in 0..3000 {
            let mut draw = Draw::new(5, stream);
            let scene = Scene::draw(&mut draw);
            let captions = captions(&scene, 8, &mut draw);
            assert_eq!(captions.len(), 8, "{scene:?}");
            for caption in &captions {
                let words: Vec<_> = caption.split(' ').collect();
                assert!(words.len() <= MAX_WORDS, "{caption}");
                assert!(!words
                    .iter()
                    .any(|word| ["left", "right", ""].contains(word)));
                for item in scene.rows.iter().flatten() {
                    for object in [Some(item.object), item.inner].into_iter().flatten() {
                        assert!(words.contains(&color(object.color)), "{caption}");
                        assert!(words.contains(&shape(object.shape)), "{caption}");
                    }
                }
            }
        }
    }

    #[test]
    fn different_scenes_have_different_captions() {
        let mut scene_of: HashMap<String, Scene> = HashMap::new();
        for stream in 0..5000 {
            let mut draw = Draw::new(6, stream);
            let scene = Scene::draw(&mut draw);
            for caption in captions(&scene, 5, &mut draw) {
                let other = scene_of.insert(caption.clone(), scene.clone());
                assert!(other.is_none_or(|other| other == scene), "{caption}");
            }
        }
    }
}
