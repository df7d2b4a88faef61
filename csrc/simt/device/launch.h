#pragma once
// Kernel launches.
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "simt/device/language.h"

namespace simt {

/// A kernel with its arguments, seen by the engine as bytes that threads may read.
struct KernelCall {
  const void* kernel;
  void (*run)(const void* context);
  const void* context;
  size_t context_bytes;
  std::vector<std::string_view> parameters;  // the bytes of each argument
};
std::string error_text(cudaError_t error);
cudaError_t run_grid(const KernelCall& call, dim3 grid, dim3 block, size_t smem_bytes, const Caller& caller);

template <class... Parameters>
struct BoundKernel {
  void (*kernel)(Parameters...);
  std::tuple<Parameters...> arguments;

  std::vector<std::string_view> bytes() const {
    const auto of = [](const auto&... each) {
      return std::vector<std::string_view>{{reinterpret_cast<const char*>(&each), sizeof each}...};
    };
    return std::apply(of, arguments);
  }
  SIMT_ENGINE static void run(const void* context) {
    const auto* self = static_cast<const BoundKernel*>(context);
    std::apply(self->kernel, self->arguments);
  }
};

/// A stream (there is one, and it is synchronous), and the place of the launch in the source.
struct LaunchStream {
  Caller caller;
  LaunchStream(cudaStream_t, Caller caller_ = Caller::current()) : caller(caller_) {}
};

/// Runs every block to its end. Checks the configuration and returns an error, with a report, when a GPU would refuse it.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t smem_bytes, LaunchStream stream,
                   Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "the kernel takes another number of arguments");
  const BoundKernel<Parameters...> bound{kernel, std::tuple<Parameters...>(Parameters(arguments)...)};
  const KernelCall call{reinterpret_cast<const void*>(kernel), BoundKernel<Parameters...>::run, &bound, sizeof bound,
                        bound.bytes()};
  return run_grid(call, grid, block, smem_bytes, stream.caller);
}

}  // namespace simt
