//! What a model makes of some held-out images: the captions and images it finds, the captions it writes, and
//! where its queries look. Saved in the run's gallery.json, shown in its report and in TensorBoard.

mod contents;
mod make;

pub(crate) use contents::{Attention, Gallery, Shown, ShownCaption};
pub(crate) use make::GalleryMaker;
