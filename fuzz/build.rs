//! Links the target `weights` with the rpath that qf-model's build script found.

#[allow(clippy::disallowed_methods)] // Cargo speaks to build scripts through the environment.
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(dir) = std::env::var("DEP_QF_MODEL_TORCH_TORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{dir}");
    }
}
