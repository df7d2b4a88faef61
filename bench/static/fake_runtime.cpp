// The part of CUDA's runtime library that launching needs, for a machine without a GPU: it notes the launch and runs
// nothing. No CUDA header is included, because the stubs that nvcc generates call functions that headers keep private.
#include "fake_runtime.h"

#include <map>

namespace {

struct Dim3 {
  unsigned x, y, z;
};

struct Configuration {
  Dim3 grid, block;
  size_t shared;
  void* stream;
};

std::map<const void*, std::string>& kernels() {
  static std::map<const void*, std::string> names;
  return names;
}

Configuration pushed;
std::vector<Launch> noted;
int handle;

int launch(const void* kernel, Dim3 grid, Dim3 block, size_t shared) {
  noted.push_back({kernels().at(kernel), size_t(grid.x) * grid.y * grid.z, block.x * block.y * block.z, shared});
  return 0;
}

}  // namespace

std::vector<Launch> take_launches() { return std::exchange(noted, {}); }

extern "C" {

void** __cudaRegisterFatBinary(void*) { return reinterpret_cast<void**>(&handle); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  kernels()[host] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void* stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}
int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared, void* stream) {
  *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared;
  *static_cast<void**>(stream) = pushed.stream;
  return 0;
}

int __cudaGetKernel(const void** kernel, const void* host) {
  *kernel = host;
  return 0;
}
int __cudaLaunchKernel(const void* kernel, Dim3 grid, Dim3 block, void**, size_t shared, void*) {
  return launch(kernel, grid, block, shared);
}
int cudaLaunchKernel(const void* kernel, Dim3 grid, Dim3 block, void**, size_t shared, void*) {
  return launch(kernel, grid, block, shared);
}
int cudaFuncSetAttribute(const void*, int, int) { return 0; }
int cudaGetLastError() { return 0; }
const char* cudaGetErrorString(int) { return "no error"; }
}
