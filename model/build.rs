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
    let libtorch = PathBuf::from(&lib_dir).join("..");
    compile_shim(&libtorch.join("include"));
    compile_for_gpus(&libtorch, torch_lib);
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
        // Full debug information of torch's templates takes as long as all the rest.
        build.debug(false).flag_if_supported("-g1");
        build.flag_if_supported("-fopenmp-simd");
        for folder in torch_headers(include) {
            build.flag("-isystem").flag(folder);
        }
        build.include("shim/names");
        build.file(file).compile(library);
    };
    build(1, "shim/ops.cpp", "qf_ops");
    build(1, "shim/low.cpp", "qf_low");
    build(1, "shim/add_norm.cpp", "qf_add_norm");
    build(1, "shim/fused.cpp", "qf_fused");
    build(1, "shim/gradients.cpp", "qf_gradients");
    build(1, "shim/c10d.cpp", "qf_c10d");
    build(1, "shim/stream.cpp", "qf_stream");
    build(1, "shim/profiler.cpp", "qf_profiler");
    build(1, "shim/context.cpp", "qf_context");
    build(1, "shim/host_memory.cpp", "qf_host_memory");
    build(3, "shim/kernels.cpp", "qf_kernels");
}

fn torch_headers(include: &Path) -> [PathBuf; 2] {
    [include.to_owned(), include.join("torch/csrc/api/include")]
}

/// The NCCL backend and CUDA graphs as shared libraries, which the program carries along and opens on a
/// GPU: their symbols are in libtorch_cuda.so, which the program does not link. Without the headers of
/// CUDA and NCCL (`QF_NCCL=1 scripts/setup.sh` fetches them for any libtorch) they are empty.
fn compile_for_gpus(libtorch: &Path, torch_lib: &Path) {
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    // Set-up touches this file where it adds headers. A file that is not there would be a change.
    let stamp = libtorch.join("build-version");
    if stamp.exists() {
        println!("cargo:rerun-if-changed={}", stamp.display());
    }
    let Some(out_dir) = std::env::var_os("OUT_DIR") else {
        return;
    };
    let folders = header_folders(libtorch, torch_lib);
    for name in ["nccl", "graph"] {
        let library = Path::new(&out_dir).join(format!("libqf_{name}.so"));
        let compiled = match &folders {
            Some(folders) => run_compiler(name, &libtorch.join("include"), folders, &library),
            None => Err(None),
        };
        let Err(problem) = compiled else {
            println!("cargo:{name}=1");
            continue;
        };
        if let Some(problem) = problem {
            println!("cargo:warning=shim/{name}.cpp is left out: it does not compile ({problem})");
        }
        // Half a library would be opened.
        if let Err(error) = std::fs::write(&library, "") {
            println!("cargo:warning=cannot write {}: {error}", library.display());
        }
    }
}

/// Folders that hold all headers of CUDA and NCCL that the shim needs: those that set-up fetched, the
/// packages that come with torch, a CUDA of the system. `None` where one of the headers is in none.
fn header_folders(libtorch: &Path, torch_lib: &Path) -> Option<Vec<PathBuf>> {
    let packages = torch_lib.join("../../nvidia");
    let system = std::env::var_os("CUDA_HOME").unwrap_or_else(|| "/usr/local/cuda".into());
    let folders = vec![
        libtorch.join("nccl-headers"),
        packages.join("cu13/include"),
        packages.join("nccl/include"),
        Path::new(&system).join("include"),
    ];
    let has = |header: &str| {
        let installed = Path::new("/usr/include").join(header);
        installed.exists() || folders.iter().any(|folder| folder.join(header).exists())
    };
    let all = ["cuda_runtime.h", "crt/host_config.h", "nccl.h"];
    all.iter().all(|header| has(header)).then_some(folders)
}

/// Compiles `shim/NAME.cpp`, or returns what went wrong.
fn run_compiler(
    name: &str,
    include: &Path,
    folders: &[PathBuf],
    library: &Path,
) -> Result<(), Option<String>> {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(1);
    build.define("USE_C10D_NCCL", None);
    // First those that only name types of other CUDA libraries.
    build.flag("-isystem").flag("shim/names/cuda");
    for folder in torch_headers(include).iter().chain(folders) {
        build.flag("-isystem").flag(folder);
    }
    let mut command = build.get_compiler().to_command();
    command.args(["-shared", "-fPIC", &format!("shim/{name}.cpp"), "-o"]);
    match command.arg(library).status() {
        Ok(status) if status.success() => Ok(()),
        status => Err(Some(format!("{status:?}"))),
    }
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
