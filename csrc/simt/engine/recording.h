#pragma once
// What a run launched, on which arrays: enough to run the same launches elsewhere, on other code of the same kernels.
#include <cstddef>
#include <string>
#include <variant>
#include <vector>

#include "common/context.h"
#include "simt/device/launch.h"

namespace simt {

struct RecordedLaunch {
  const void* kernel;
  dim3 grid, block;
  size_t smem_bytes;
  std::vector<std::string> parameters;  // the bytes of each, with pointers into the arrays below
};

struct RecordedArray {
  std::string name;
  const char* address;
  size_t bytes;
  std::string contents;  // before the run; empty where nothing was written
};

struct Recording {
  bool active = false;
  std::vector<std::variant<RecordedLaunch, longspan::kernels::GemmArgs>> steps;  // kernels and products, in order
  std::vector<RecordedArray> arrays;
};

/// The current run's; `active` is the caller's to set.
extern Recording recording;

}  // namespace simt
