// Compiles the kernels of fused.cu.inc for the GPU that is there, with the compiler that comes with
// libtorch's CUDA part (NVRTC), and starts them. Both libraries are opened as they are needed: the
// program links nothing of CUDA.

#include "fused.h"

#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "protect.h"

namespace {

constexpr char SOURCE[] =
#include "fused.cu.inc"
    ;

template <class F>
F symbol(void* library, const char* name) {
  auto found = reinterpret_cast<F>(dlsym(library, name));
  TORCH_CHECK(found, "no ", name, " (", dlerror(), ")");
  return found;
}

void* open_first(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (void* library = dlopen(name, RTLD_NOW | RTLD_GLOBAL)) return library;
  }
  TORCH_CHECK(false, dlerror());
}

// What is used of the driver's interface (cuda.h).
struct Driver {
  using Device = int;
  int (*current)(Device*);
  int (*attribute)(int*, int, Device);
  int (*load)(void**, const void*);
  int (*function)(void**, void*, const char*);
  int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*,
                void**, void**);

  Driver() {
    void* library = open_first({"libcuda.so.1"});
    current = symbol<decltype(current)>(library, "cuCtxGetDevice");
    attribute = symbol<decltype(attribute)>(library, "cuDeviceGetAttribute");
    load = symbol<decltype(load)>(library, "cuModuleLoadData");
    function = symbol<decltype(function)>(library, "cuModuleGetFunction");
    launch = symbol<decltype(launch)>(library, "cuLaunchKernel");
  }
};

const Driver& driver() {
  static const Driver driver;
  return driver;
}

void check(int result, const char* what) {
  TORCH_CHECK(result == 0, what, " failed (CUDA error ", result, ")");
}

// What is used of the compiler's interface (nvrtc.h).
struct Compiler {
  using Program = void*;
  int (*create)(Program*, const char*, const char*, int, const char* const*, const char* const*);
  int (*compile)(Program, int, const char* const*);
  int (*log_size)(Program, size_t*);
  int (*log)(Program, char*);
  int (*code_size)(Program, size_t*);
  int (*code)(Program, char*);
  int (*destroy)(Program*);

  Compiler() {
    // libtorch's own library of that name opens the compiler beside it.
    void* library = open_first({"libcaffe2_nvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"});
    create = symbol<decltype(create)>(library, "nvrtcCreateProgram");
    compile = symbol<decltype(compile)>(library, "nvrtcCompileProgram");
    log_size = symbol<decltype(log_size)>(library, "nvrtcGetProgramLogSize");
    log = symbol<decltype(log)>(library, "nvrtcGetProgramLog");
    code_size = symbol<decltype(code_size)>(library, "nvrtcGetCUBINSize");
    code = symbol<decltype(code)>(library, "nvrtcGetCUBIN");
    destroy = symbol<decltype(destroy)>(library, "nvrtcDestroyProgram");
    open_builtins(reinterpret_cast<void*>(create));
  }

  // The compiler looks for a second library, which is beside it but on no path.
  static void open_builtins(void* of) {
    Dl_info info;
    if (!dladdr(of, &info) || !info.dli_fname) return;
    const std::string path = info.dli_fname;
    const std::string folder = path.substr(0, path.rfind('/') + 1);
    for (const char* version : {"13.0", "13.1", "13.2", "12.9", "12.8", "12.6"}) {
      const auto name = folder + "libnvrtc-builtins.so." + version;
      if (dlopen(name.c_str(), RTLD_NOW | RTLD_GLOBAL)) return;
    }
  }
};

std::vector<char> compiled(int major, int minor, int64_t width) {
  const Compiler compiler;
  Compiler::Program program;
  check(compiler.create(&program, SOURCE, "fused.cu", 0, nullptr, nullptr), "nvrtcCreateProgram");
  const auto architecture =
      "--gpu-architecture=sm_" + std::to_string(major) + std::to_string(minor);
  const auto rows = "-DWIDTH=" + std::to_string(width);
  const char* options[] = {architecture.c_str(), rows.c_str(), "--std=c++17"};
  const int result = compiler.compile(program, 3, options);
  size_t size = 0;
  if (result != 0) {
    compiler.log_size(program, &size);
    std::vector<char> log(size + 1);
    compiler.log(program, log.data());
    compiler.destroy(&program);
    TORCH_CHECK(false, "the kernels do not compile (NVRTC error ", result, "): ", log.data());
  }
  check(compiler.code_size(program, &size), "nvrtcGetCUBINSize");
  std::vector<char> code(size);
  check(compiler.code(program, code.data()), "nvrtcGetCUBIN");
  compiler.destroy(&program);
  return code;
}

std::mutex kernels_lock;
std::map<std::pair<int, int64_t>, qf::AddNormKernels> kernels;

// Rows of other widths are left to torch's operations: a warp takes whole vectors of a row, and a block
// keeps four rows of sums in 48 KB.
bool fits(int64_t width) { return width > 0 && width % 128 == 0 && width <= 1536; }

}  // namespace

namespace qf {

const AddNormKernels* add_norm_kernels(const at::Device& device, int64_t width) {
  const std::lock_guard<std::mutex> lock(kernels_lock);
  const auto found = kernels.find({device.index(), width});
  return found == kernels.end() ? nullptr : &found->second;
}

void launch(Kernel kernel, const at::Device& device, int64_t blocks, void** arguments) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  void* stream = guard.getStreamNativeHandle(guard.getStream(device));
  check(driver().launch(kernel, static_cast<unsigned>(blocks), 1, 1, 128, 1, 1, 0, stream, arguments,
                        nullptr),
        "cuLaunchKernel");
}

}  // namespace qf

extern "C" {

// Makes the kernels for rows of this width ready on a device. Returns null, or what is in the way,
// which the caller frees with qf_free_message: torch's operations then do their work.
char* qf_fused_prepare(int index, int64_t width) {
  return qf::protect([&] {
    if (!fits(width)) return;
    const std::pair<int, int64_t> key{index, width};
    const std::lock_guard<std::mutex> lock(kernels_lock);
    if (kernels.count(key)) return;
    const c10::impl::VirtualGuardImpl guard(at::kCUDA);
    guard.setDevice(c10::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index)));
    Driver::Device device = 0;
    check(driver().current(&device), "cuCtxGetDevice");
    int major = 0, minor = 0;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    check(driver().attribute(&major, 75, device), "cuDeviceGetAttribute");
    check(driver().attribute(&minor, 76, device), "cuDeviceGetAttribute");
    const auto code = compiled(major, minor, width);
    void* module = nullptr;
    check(driver().load(&module, code.data()), "cuModuleLoadData");
    qf::AddNormKernels made{};
    check(driver().function(&made.forward, module, "qf_add_norm"), "cuModuleGetFunction");
    check(driver().function(&made.backward, module, "qf_add_norm_backward"), "cuModuleGetFunction");
    check(driver().function(&made.shares, module, "qf_add_shares"), "cuModuleGetFunction");
    kernels.emplace(key, made);
  });
}

}  // extern "C"
