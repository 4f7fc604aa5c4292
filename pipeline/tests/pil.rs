//! Image files as evaluation reads them, against PIL up to 12: since 13 it may resize the rows
//! first, up to 12 of 255 apart where what overshoots is clipped.

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::photographs;
use common::test_data::python;
use qf_pipeline::image_file::ImageReader;
use qf_pipeline::pixels::PlanarRgb;
use qf_pipeline::LoaderConfig;

const SIZE: usize = 224;

const SCRIPT: &str = r#"
import sys
import PIL
from PIL import Image, ImageOps
if int(PIL.__version__.split(".")[0]) > 12:
    sys.exit("Pillow " + PIL.__version__ + " is not the reference; run make test")
for path in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    sys.stdout.buffer.write(image.resize((224, 224), Image.Resampling.BICUBIC).tobytes())
"#;

#[test]
fn evaluation_is_pil() {
    let files = photographs("evaluation_is_pil");
    let Some(python) = python("evaluation_is_pil") else {
        return;
    };
    let config = LoaderConfig {
        image_size: SIZE,
        ..LoaderConfig::default()
    };
    let reader = ImageReader::new(&config).expect("valid");
    let read = reader.read_all(&files).into_iter();
    let decodable: Vec<(PathBuf, PlanarRgb)> = files
        .into_iter()
        .zip(read)
        .filter_map(|(file, image)| Some((file, image.ok()?)))
        .collect();
    let (mut worst_share, mut equal) = (0f64, 0);
    for some in decodable.chunks(40) {
        let output = Command::new(&python)
            .args(["-c", SCRIPT])
            .args(some.iter().map(|(file, _)| file))
            .output()
            .expect("runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        const LEN: usize = 3 * SIZE * SIZE;
        assert_eq!(output.stdout.len(), some.len() * LEN);
        for ((file, ours), theirs) in some.iter().zip(output.stdout.chunks(LEN)) {
            let ours = ours.as_batch().to_rgb_image(0).expect("an image");
            equal += usize::from(ours.data() == theirs);
            // Plain JPEGs; what is special is decoded by other code than Pillow's.
            let is_plain = file
                .parent()
                .is_some_and(|folder| folder.ends_with("pairs"));
            assert!(!is_plain || ours.data() == theirs, "{}", file.display());
            let beyond = ours.data().iter().zip(theirs);
            let beyond = beyond.filter(|(ours, theirs)| ours.abs_diff(**theirs) > 1);
            let share = beyond.count() as f64 / LEN as f64;
            worst_share = worst_share.max(share);
            assert!(
                share <= 0.001,
                "{}: {:.3} % beyond 1",
                file.display(),
                share * 100.0
            );
        }
    }
    println!(
        "{} files, {equal} equal; of the others at most {:.4} % of values beyond 1",
        decodable.len(),
        worst_share * 100.0
    );
}
