//! The threads of the host that draw start values and read image files.

/// Starts them: one for each processor. Called once, before anything uses them.
///
/// # Errors
/// That the system gives no more threads.
pub fn start() -> Result<(), rayon::ThreadPoolBuildError> {
    rayon::ThreadPoolBuilder::new()
        .thread_name(|number| format!("qf-host-{number}"))
        .build_global()
}
