//! Runs code of others that may panic.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{catch_unwind, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;

thread_local! {
    /// Whether guarded code is running on this thread.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    /// Where the last panic of guarded code came from.
    static ORIGIN: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs a library on what the web holds: a decoder, the tokenizer, the reader of Arrow's metadata. Overflow
/// checks and slice indexing in those written in Rust do panic on rare damaged files. Such a file costs its
/// sample or its shard, not the thread, and the panic is part of its error: the process's panic
/// hook does not see it, so that nothing is printed beside what is logged of the sample. The caller looks at
/// nothing half done afterwards: what unwinds is dropped.
///
/// # Errors
/// ` failed on it (FILE:LINE): MESSAGE`, to follow the name of the library.
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match GUARDED.get() {
            true => ORIGIN.set(Some(origin(info))),
            false => others(info),
        }));
    });
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    GUARDED.set(outer);
    result.map_err(|payload| {
        let origin = ORIGIN.take().unwrap_or_default();
        format!("failed on it{origin}: {}", text(&*payload))
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
        let failing = || {
            let empty: Vec<u8> = Vec::new();
            let index = std::hint::black_box(3);
            empty[index]
        };
        let message = guarded(failing).expect_err("it panics");
        assert!(message.contains("guard.rs:"), "{message}");
        assert!(message.contains("index out of bounds"), "{message}");
        assert!(!GUARDED.get());
        // Panics elsewhere still go to the hook of the process.
        assert!(catch_unwind(|| panic!("not a decoder's")).is_err());
        assert!(ORIGIN.take().is_none());
        assert_eq!(guarded(|| 7), Ok(7));
    }
}
