//! How near the image path comes to its floor: entropy decoding down to the crop's last row, resizing and
//! layout. Both in turns, so that a busy machine slows them alike: `cargo bench -p qf-pipeline --bench floor`.

mod common;

use std::time::Instant;

use common::{Entropy, ImagePath, Photo};
use qf_pipeline::decode::DecodeQuality;

/// Rounds, and pictures of each kind in a round; there are 64 crops.
const ROUNDS: usize = 31;
const PICTURES: usize = 64;

fn seconds(mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..PICTURES {
        run();
    }
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    println!(
        "fraction of the lower bound, medians of {ROUNDS} rounds of {PICTURES} crops in turns"
    );
    for photo in [Photo::web(), Photo::camera()] {
        let image = photo.image();
        for (name, quality) in [
            ("exact", DecodeQuality::Exact),
            ("balanced", DecodeQuality::Balanced),
        ] {
            let (mut entropy, mut resize) = (Entropy::new(), ImagePath::new(quality));
            let mut path = ImagePath::new(quality);
            let mut rounds = Vec::new();
            for _ in 0..ROUNDS {
                let floor = seconds(|| {
                    entropy.run(&photo);
                    resize.resize(&image);
                });
                rounds.push((floor, seconds(|| path.run(&photo.jpeg))));
            }
            let each = |seconds: f64| seconds / PICTURES as f64 * 1e3;
            println!(
                "{} {name}: {:.2} (floor {:.2} ms, all {:.2} ms)",
                photo.name,
                median(rounds.iter().map(|(floor, all)| floor / all).collect()),
                each(median(rounds.iter().map(|(floor, _)| *floor).collect())),
                each(median(rounds.iter().map(|(_, all)| *all).collect())),
            );
        }
    }
}
