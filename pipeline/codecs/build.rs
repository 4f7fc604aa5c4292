//! Compiles the C side of `jpeg` against the libjpeg-turbo that `turbojpeg-sys` built.

#![allow(clippy::disallowed_methods)] // Cargo talks to build scripts through the environment.

fn main() {
    println!("cargo::rerun-if-changed=src/jpeg.c");
    let Some(include) = std::env::var_os("DEP_TURBOJPEG_INCLUDE") else {
        panic!("turbojpeg-sys did not say where its headers are");
    };
    let mut build = cc::Build::new();
    for folder in include.to_string_lossy().split(',') {
        build.include(folder);
    }
    // GCC warns of variables that longjmp clobbers wherever it inlines; none is read after one.
    build.flag_if_supported("-Wno-clobbered");
    build.file("src/jpeg.c").warnings(true).compile("qf_jpeg");
}
