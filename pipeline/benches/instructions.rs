//! Runs one stage a number of times, to be counted by valgrind: `make bench-instructions`.
//!
//! `instructions STAGE TIMES`; without arguments it lists the stages.

mod common;

use common::{tokenizer, Entropy, ImagePath, Photo, CAPTION};
use qf_pipeline::decode::DecodeQuality;

const STAGES: [&str; 9] = [
    "entropy-web",
    "resize-web",
    "exact-web",
    "balanced-web",
    "entropy-camera",
    "exact-camera",
    "balanced-camera",
    "fast-camera",
    "tokenise",
];

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let (Some(stage), Some(times)) = (arguments.next(), arguments.next()) else {
        println!("{}", STAGES.join("\n"));
        return;
    };
    let times: usize = times.parse().expect("a number of times");
    let photo = if stage.ends_with("camera") {
        Photo::camera()
    } else {
        Photo::web()
    };
    let mode = match stage.split('-').next() {
        Some("balanced") => DecodeQuality::Balanced,
        Some("fast") => DecodeQuality::Fast,
        _ => DecodeQuality::Exact,
    };
    let mut path = ImagePath::new(mode);
    let mut entropy = Entropy::new();
    let (image, tokenizer) = (photo.image(), tokenizer());
    let (mut ids, mut mask) = (vec![0; 32], vec![0; 32]);
    for _ in 0..times {
        match stage.as_str() {
            "entropy-web" | "entropy-camera" => entropy.run(&photo),
            "resize-web" => path.resize(&image),
            "tokenise" => tokenizer.encode(CAPTION, &mut ids, &mut mask).expect("ids"),
            _ => path.run(&photo.jpeg),
        }
    }
}
