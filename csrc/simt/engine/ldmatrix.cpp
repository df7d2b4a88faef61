// ldmatrix x4, with the shared-memory bank conflicts that it would meet.
#include <algorithm>
#include <cstring>

#include "simt/engine/banks.h"
#include "simt/engine/machine.h"
#include "simt/engine/tensor_core.h"
#include "simt/engine/touch.h"

namespace simt {
namespace {

constexpr int kMatrices = 4, kMatrixRows = 8;
constexpr size_t kRowBytes = 16;

}  // namespace

void run_ldmatrix(void* const* lanes, const std::source_location& caller) {
  uint16_t matrix[kMatrices][kMatrixRows][kMatrixRows];
  const char* rows[kWarpSize];
  const Site site = Site::at(caller);
  Thread* const running = machine.current;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!lanes[lane]) return;  // reported
    rows[lane] = static_cast<const char*>(static_cast<const LdmatrixLane*>(lanes[lane])->row);
    // Each row is its own lane's access, whichever lane came last.
    machine.current = &machine.threads[running->warp * kWarpSize + lane];
    const bool good = check_aligned(rows[lane], kRowBytes, "ldmatrix row", site) &&
                      check_shared(rows[lane], kRowBytes, Access::kRead, "ldmatrix row", site);
    uint16_t* const row = matrix[lane / kMatrixRows][lane % kMatrixRows];
    if (good)
      memcpy(row, rows[lane], kRowBytes);
    else
      memset(row, kPoison, kRowBytes);
  }
  machine.current = running;
  const int extra = bank_conflicts(rows, kWarpSize, kRowBytes);
  count_request(encode(site), extra);
  machine.statistics.ldmatrix_conflicts += extra;
  ++machine.statistics.ldmatrix;
  // Lane i gets elements 2i and 2i + 1 of each matrix in row order, or of its transpose.
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const LdmatrixLane& own = *static_cast<const LdmatrixLane*>(lanes[lane]);
    const int row = lane / 4, column = lane % 4 * 2;
    for (int m = 0; m < kMatrices; ++m) {
      const uint32_t low = own.transposed ? matrix[m][column][row] : matrix[m][row][column];
      const uint32_t high = own.transposed ? matrix[m][column + 1][row] : matrix[m][row][column + 1];
      own.registers[m] = low | high << 16;
    }
  }
}

}  // namespace simt
