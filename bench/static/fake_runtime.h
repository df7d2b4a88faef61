#pragma once
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

/// A kernel launch that was asked for: the mangled name, blocks, threads a block, bytes of dynamic shared memory.
struct Launch {
  std::string kernel;
  size_t blocks;
  unsigned threads;
  size_t shared;
};

/// The launches since the last call.
std::vector<Launch> take_launches();
