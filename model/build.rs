//! Compiles the C++ of `shim/` against libtorch's headers, and passes libtorch's folders on to
//! whatever links a binary: an rpath to the real libraries, so that programs start with nothing
//! exported, and an rpath-link to the libraries that libtorch needs.

// A build script is configured by its environment.
#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=QF_LIBTORCH_VERSION=unknown");
    // From torch-sys (`links = "tch"`): the folder that it links against, perhaps one of links.
    let Ok(lib_dir) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        return;
    };
    let library = PathBuf::from(&lib_dir).join("libtorch_cpu.so");
    let real = library.canonicalize().unwrap_or(library);
    let Some(torch_lib) = real.parent() else {
        return;
    };
    println!("cargo:torch_lib={}", torch_lib.display());
    if let Some(version) = torch_lib.parent().and_then(version) {
        // The later of two lines counts.
        println!("cargo:rustc-env=QF_LIBTORCH_VERSION={version}");
    }
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", torch_lib.display());
    // A wheel keeps the CUDA runtime that libtorch_cpu.so needs in site-packages/nvidia/cu13/lib.
    let cuda = torch_lib.join("../../nvidia/cu13/lib");
    if let Ok(cuda) = cuda.canonicalize() {
        println!("cargo:cuda_lib={}", cuda.display());
        println!("cargo:rustc-link-arg=-Wl,-rpath-link,{}", cuda.display());
    }
    compile_shim(&PathBuf::from(&lib_dir).join("../include"));
}

/// The loops without torch for speed, the code on torch's headers for a quick build: all its time
/// at run time goes to what it calls.
fn compile_shim(include: &Path) {
    println!("cargo:rerun-if-changed=shim");
    let build = |opt_level: u32, file: &str, library: &str| {
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++17")
            .opt_level(opt_level)
            .warnings(true);
        build.flag_if_supported("-fopenmp-simd");
        for folder in [include.to_owned(), include.join("torch/csrc/api/include")] {
            build.flag("-isystem").flag(folder);
        }
        build.file(file).compile(library);
    };
    build(1, "shim/ops.cpp", "qf_ops");
    build(3, "shim/kernels.cpp", "qf_kernels");
}

/// The version of libtorch, from a file of its archive or of the Python package.
fn version(torch: &Path) -> Option<String> {
    if let Ok(text) = std::fs::read_to_string(torch.join("build-version")) {
        return Some(text.trim().to_string());
    }
    let text = std::fs::read_to_string(torch.join("version.py")).ok()?;
    let line = text.lines().find(|line| line.starts_with("__version__"))?;
    Some(line.split(['\'', '"']).nth(1)?.to_string())
}
