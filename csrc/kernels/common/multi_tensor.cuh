#pragma once
// One launch over many tensors. The table of them travels in the kernel's parameters, so nothing is copied to the device
// first and a CUDA graph keeps it:
//
//   using Table = TensorTable<2, Extra>;                     // 2 arrays a tensor, and a plain struct of what else it needs
//   __global__ void kernel(const __grid_constant__ Table table, ...) {
//     const TensorChunk at = table.chunk_of(blockIdx.x);     // at.tensor; elements [at.first, at.first + kChunk) of it
//     float* x = static_cast<float*>(table.array[0][at.tensor]);
//     const int64_t size = table.size[at.tensor];
//   }
//   std::vector<Table::Entry> entries;                       // on the host
//   launch_tables<Table>(entries, kChunk, [&](const Table& table, unsigned blocks) { simt::launch(kernel, blocks, ...); });
#include <climits>
#include <vector>

#include "common/simt.h"
#include "common/types.h"

namespace longspan::kernels {

/// Where a block works: tensor of the table, and its first element there.
struct TensorChunk {
  int tensor;
  int64_t first;
};

/// Up to kCapacity tensors of `Arrays` pointers each; `Extra` is trivially copyable. With what the kernel takes beside it
/// (256 bytes are left for that) it fits into the 32764 bytes of parameters that nvcc 12.1 and sm_70 allow.
template <int Arrays, class Extra>
struct TensorTable {
  /// One tensor on the host. Arrays may be null; `size` counts elements.
  struct Entry {
    void* array[Arrays];
    int64_t size;
    Extra extra;
  };
  static constexpr int kBytes = 32764 - 256, kEach = 8 * Arrays + 8 + 4 + int(sizeof(Extra));
  static constexpr int kCapacity = (kBytes - 64) / kEach;

  void* array[Arrays][kCapacity];
  int64_t size[kCapacity];
  int64_t chunk;  // elements a block
  Extra extra[kCapacity];
  int count, first_chunk[kCapacity + 1];

  SIMT_DEVICE TensorChunk chunk_of(unsigned block) const {
    int low = 0, high = count;  // the last tensor whose first chunk is at most the block
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (first_chunk[middle] <= int(block))
        low = middle;
      else
        high = middle;
    }
    return {low, (int64_t(block) - first_chunk[low]) * chunk};
  }
};

/// Calls launch(table, blocks) for as many tables as the entries need, in order; entries without elements are left out.
/// `launch_table` starts `blocks` blocks of `chunk` elements. Throws std::invalid_argument for a tensor of more than
/// INT_MAX chunks.
template <class Table, class Launch>
void launch_tables(const std::vector<typename Table::Entry>& entries, int64_t chunk, Launch&& launch_table) {
  static_assert(sizeof(Table) <= size_t(Table::kBytes));
  Table table{};
  table.chunk = chunk;
  const auto flush = [&] {
    if (table.count) launch_table(table, unsigned(table.first_chunk[table.count]));
    table.count = 0;
  };
  for (const typename Table::Entry& entry : entries) {
    if (entry.size <= 0) continue;
    const int64_t chunks = ceil_div(entry.size, chunk);
    if (chunks > INT_MAX) throw std::invalid_argument("a tensor has too many elements for one launch");
    if (table.count == Table::kCapacity || chunks > INT_MAX - int64_t(table.first_chunk[table.count])) flush();
    const int i = table.count++;
    for (int a = 0; a < int(sizeof entry.array / sizeof(void*)); ++a) table.array[a][i] = entry.array[a];
    table.size[i] = entry.size, table.extra[i] = entry.extra;
    table.first_chunk[i + 1] = table.first_chunk[i] + int(chunks);
  }
  flush();
}

}  // namespace longspan::kernels
