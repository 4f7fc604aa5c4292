#!/usr/bin/env python3
"""Lends the torch package that libtorch came from to the Python of the tests.

    link_torch.py TORCH SITE_PACKAGES

Makes SITE_PACKAGES/torch a folder of links into the package TORCH. The CPU set-up keeps no CUDA
libraries, which `import torch` loads with its bindings; in their place go libraries that have the
symbols and do nothing. Nothing is called on a machine without a GPU.
"""

import os
import subprocess
import sys
import tempfile

# What the bindings load beside torch's own libraries.
CUDA = "libtorch_cuda.so"
EMPTY = ["libcudnn.so.9", "libcufile.so.0"]


def symbols(library, which):
    """Names that a library defines or needs; with `which` = -u only those it cannot do without."""
    command = ["nm", "-D", f"--{which}-only", library]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = (line.split()[-2:] for line in lines)
    return {name.split("@")[0] for kind, name in found if kind not in "wv"}


def stub_source(names):
    """C for the symbols: functions return a buffer of zeros, types have only their name."""
    lines = [
        "static char zeros[1 << 16] __attribute__((aligned(4096)));",
        "static void *nothing(void) { return zeros; }",
        "extern void *_ZTVN10__cxxabiv117__class_type_infoE[];",
    ]
    for name in sorted(names):
        if name.startswith("_ZTI"):
            value = f'{{ &_ZTVN10__cxxabiv117__class_type_infoE[2], "{name[4:]}" }}'
            lines.append(f"void *{name}[4] = {value};")
        elif name.startswith("_ZTV"):
            lines.append(f"void *{name}[64];")
        else:
            lines.append(f'void *{name}(void) __attribute__((alias("nothing")));')
    return "\n".join(lines) + "\n"


def build(source, target, *arguments):
    """Compiles C to a shared library."""
    with tempfile.NamedTemporaryFile("w", suffix=".c") as file:
        file.write(source)
        file.flush()
        soname = f"-Wl,-soname,{os.path.basename(target)}"
        command = ["cc", "-w", "-shared", "-fPIC", "-o", target, file.name, soname, *arguments]
        subprocess.run(command, check=True)


def main(torch, site):
    lib, bindings = os.path.join(torch, "lib"), os.path.join(torch, "lib", "libtorch_python.so")
    own = os.path.join(site, "torch")
    os.makedirs(os.path.join(own, "lib"))
    for folder, target in [(torch, own), (lib, os.path.join(own, "lib"))]:
        for entry in os.listdir(folder):
            if not os.path.lexists(os.path.join(target, entry)):
                os.symlink(os.path.join(folder, entry), os.path.join(target, entry))
    package_site = os.path.dirname(torch)
    for entry in os.listdir(package_site):
        is_part = entry.startswith(("torch-", "nvidia")) or entry in ("torchgen", "functorch")
        if is_part and not os.path.lexists(os.path.join(site, entry)):
            os.symlink(os.path.join(package_site, entry), os.path.join(site, entry))
    if os.path.exists(os.path.join(lib, CUDA)):
        return
    needed = symbols(bindings, "undefined")
    for entry in os.listdir(lib):
        if entry.endswith(".so") and entry != os.path.basename(bindings):
            needed -= symbols(os.path.join(lib, entry), "defined")
    # Of the C and C++ libraries, CUDA's runtime and Python there are real ones.
    cuda = ("at", "c10d", "sdp", "torch")
    namespaces = tuple(f"{len(name)}{name}" for name in cuda)
    kinds = ("_ZN", "_ZNK", "_ZTIN", "_ZTVN")
    stubs = {
        name
        for name in needed
        if name.startswith(("cudnn", "cuFile"))
        or any(name.startswith(kind + space) for kind in kinds for space in namespaces)
    }
    build(stub_source(stubs), os.path.join(own, "lib", CUDA), "-lstdc++")
    for library in EMPTY:
        build("", os.path.join(own, "lib", library))


if __name__ == "__main__":
    main(*(os.path.abspath(argument) for argument in sys.argv[1:]))
