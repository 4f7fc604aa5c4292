//! Links with the rpath that qf-model's build script found.

// A build script is configured by its environment.
#![allow(clippy::disallowed_methods)]

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(dir) = std::env::var("DEP_QF_MODEL_TORCH_TORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{dir}");
        println!("cargo:rustc-env=QF_TORCH_LIB={dir}");
    }
    if std::env::var_os("DEP_QF_MODEL_TORCH_NCCL").is_some() {
        println!("cargo:rustc-env=QF_NCCL=1");
    }
    if let Ok(dir) = std::env::var("DEP_QF_MODEL_TORCH_CUDA_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath-link,{dir}");
    }
}
