//! Runs decoders that may panic.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{catch_unwind, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;

use super::{DecodeError, ImageFormat};

thread_local! {
    /// Whether a decoder is running on this thread.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    /// Where the last panic of a guarded decoder came from.
    static ORIGIN: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs a decoder. They are third-party code that is fed whatever the web holds; overflow checks
/// and slice indexing in those written in Rust do panic on rare damaged files. Such a file costs its
/// sample, not the worker thread, and the panic is part of the sample's error: the process's panic
/// hook does not see it, so that nothing is printed beside what is logged of the sample. Nothing half
/// done is looked at afterwards: a decoder that unwinds is dropped, the pixels are those of an error.
pub(super) fn guarded<T>(
    format: ImageFormat,
    decode: impl FnOnce() -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match GUARDED.get() {
            true => ORIGIN.set(Some(origin(info))),
            false => others(info),
        }));
    });
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(decode));
    GUARDED.set(outer);
    result.unwrap_or_else(|payload| {
        let origin = ORIGIN.take().unwrap_or_default();
        let message = format!("its decoder failed on it{origin}: {}", text(&*payload));
        Err(DecodeError::broken(format, message))
    })
}

/// ` (FILE:LINE)`, the file without the folders of the machine that compiled it.
fn origin(info: &PanicHookInfo<'_>) -> String {
    let Some(location) = info.location() else {
        return String::new();
    };
    let file = location.file();
    let file = file
        .rsplit_once("index.crates.io-")
        .map_or(file, |(_, file)| {
            file.split_once('/').map_or(file, |(_, file)| file)
        });
    format!(" ({file}:{})", location.line())
}

fn text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_that_says_where_it_came_from() {
        let failing = || -> Result<(), DecodeError> {
            let empty: Vec<u8> = Vec::new();
            let index = std::hint::black_box(3);
            let _ = empty[index];
            Ok(())
        };
        let error = guarded(ImageFormat::Bmp, failing).expect_err("it panics");
        let message = error.to_string();
        assert!(message.contains("guard.rs:"), "{message}");
        assert!(message.contains("index out of bounds"), "{message}");
        assert!(!GUARDED.get());
        // Panics elsewhere are still those of others.
        assert!(catch_unwind(|| panic!("not a decoder's")).is_err());
        assert!(ORIGIN.take().is_none());
        assert_eq!(guarded(ImageFormat::Bmp, || Ok(7)), Ok(7));
    }
}
