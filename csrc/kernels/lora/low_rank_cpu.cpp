// The thin products of an adapter; see low_rank.h.
#include "common/block_gemm.h"
#include "lora/lora.h"
#include "lora/low_rank.h"
#include "lora/mask_row.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

constexpr int64_t kTileRows = 64;  // of X: with 2048 columns of float a tile takes half of an L2 of 1 MiB
constexpr int64_t kPadding = 2 * kPanel<float>;

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
T* scratch(const Context& context, int64_t count) {
  return static_cast<T*>(context.workspace.get(context.workspace.self, (count ? count : 1) * int64_t(sizeof(T))));
}

template <class T>
int64_t padded(int64_t columns) {
  return round_up(columns, kLanes<T>);
}

template <class S>
struct Pass {
  using T = Compute<S>;
  const LowRankPass& p;
  const int64_t rows = p.x.size[0], width = p.x.size[1], tiles = ceil_div(rows, kTileRows);
  const bool copies = sizeof(S) != sizeof(T) || p.dropout > 0;
  const T* panels[kLoraGroup] = {};  // of the parts' factors

  /// The tile as a part sees it, and its row stride.
  const T* tile(int64_t t0, int64_t count, const LowRankPart& part, T* own, int64_t& ld) const {
    const S* from = static_cast<const S*>(p.x.data) + t0 * p.x.stride[0];
    ld = copies ? width : p.x.stride[0];
    if constexpr (sizeof(S) == sizeof(T)) {
      if (!copies) return from;
    }
    const T keep = T(1 / (1 - p.dropout));
    const uint32_t threshold = dropout_threshold(p.dropout);
    for (int64_t i = 0; i < count; ++i) {
      const S* x = from + i * p.x.stride[0];
      T* to = own + i * width;
      if (p.dropout > 0)
        each_run_of_mask(p.first_row + t0 + i, width, part.seed, [&](int64_t c, int64_t run, const uint32_t* words) {
          for (int64_t j = 0; j < run; ++j) to[c + j] = words[j] < threshold ? T(0) : load_as<T>(x + c + j) * keep;
        });
      else
        for (int64_t c = 0; c < width; ++c) to[c] = load_as<T>(x + c);
    }
    return own;
  }

  void product(const T* x, int64_t ld, int64_t t0, int64_t count, const LowRankPart& part, const T* factor, T* thin) const {
    const int64_t columns = padded<T>(part.rank);
    block_gemm<T>(count, columns, width, x, ld, {factor, width}, thin, columns, false);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t r = 0; r < part.rank; ++r)
        static_cast<T*>(p.out)[(t0 + i) * p.ld_out + part.first + r] = thin[i * columns + r];
  }

  void add_sums(const T* x, int64_t ld, int64_t t0, int64_t count, const LowRankPart& part, T* sums, int64_t stride,
                T* thin) const {
    const int64_t rank = part.rank + p.ones, columns = padded<T>(rank);
    T *rows_of_g = thin, *packed = thin + kTileRows * rank;
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t r = 0; r < part.rank; ++r)
        rows_of_g[i * rank + r] = static_cast<const T*>(p.g)[(t0 + i) * p.ld_g + part.first + r];
      if (p.ones) rows_of_g[i * rank + part.rank] = T(1);
    }
    pack_panels<T>(rows_of_g, rank, count, rank, columns, count, packed);
    if (p.parts_count == 1) {
      block_gemm<T, true>(width, columns, count, x, ld, {packed, count}, sums, stride, true);
      return;
    }
    // Whole vectors are written, so a part's last ones reach into the next part's columns: parts go through a buffer.
    T* wide = packed + kTileRows * columns;
    for (int64_t k0 = 0; k0 < width; k0 += kTileRows) {
      const int64_t some = least(kTileRows, width - k0);
      block_gemm<T, true>(some, columns, count, x + k0, ld, {packed, count}, wide, columns, false);
      for (int64_t k = 0; k < some; ++k) {
        T* to = sums + (k0 + k) * stride + part.first;
        for (int64_t r = 0; r < rank; ++r) to[r] += wide[k * columns + r];
      }
    }
  }

  int64_t columns() const {
    int64_t end = 0;
    for (int64_t i = 0; i < p.parts_count; ++i) end = p.parts[i].first + p.parts[i].rank;
    return end + p.ones;
  }

  void run(const Context& context) {
    int64_t widest = 0;
    for (int64_t i = 0; i < p.parts_count; ++i) {
      const LowRankPart& part = p.parts[i];
      widest = widest > part.rank + 1 ? widest : part.rank + 1;
      if (p.factor) panels[i] = pack_factor(part, context);
    }
    const int64_t own_elements = copies ? kTileRows * width : 0, thin_elements = 3 * kTileRows * padded<T>(widest + 1);
    T* own = scratch<T>(context, (own_elements + thin_elements) * context.parallel.workers);
    const int64_t stride = low_rank_stride(columns()), chunks = p.sums_wanted ? low_rank_chunks(rows, columns()) : tiles;
    const int64_t chunk_tiles = ceil_div(tiles, chunks);
    parallel_for(context, chunks, [&](int64_t chunk, int worker) {
      T *wide = own + (own_elements + thin_elements) * worker, *thin = wide + own_elements;
      T* sums = static_cast<T*>(p.sums) + (p.sums_wanted ? chunk * width * stride : 0);
      for (int64_t t = chunk * chunk_tiles; t < least(tiles, (chunk + 1) * chunk_tiles); ++t) {
        const int64_t t0 = t * kTileRows, count = least(kTileRows, rows - t0);
        for (int64_t i = 0; i < p.parts_count; ++i) {
          int64_t ld;
          const T* x = tile(t0, count, p.parts[i], wide, ld);
          if (p.factor) product(x, ld, t0, count, p.parts[i], panels[i], thin);
          if (p.sums_wanted) add_sums(x, ld, t0, count, p.parts[i], sums, stride, thin);
        }
      }
    });
  }

  const T* pack_factor(const LowRankPart& part, const Context& context) const {
    const int64_t columns = padded<T>(part.rank);
    T* out = scratch<T>(context, width * columns + kPadding);
    const T* from = static_cast<const T*>(p.factor) + part.first * p.factor_r;
    if (p.factor_r == 1)
      pack_panels<T>(from, p.factor_k, width, part.rank, columns, width, out);
    else
      pack_panels_transposed<T>(from, p.factor_r, part.rank, width, columns, out);
    return out;
  }
};

template <class T>
void update(const LowRankUpdate& u, const Context& context) {
  const int64_t rows = u.y.size[0], width = u.y.size[1], columns = padded<T>(width);
  T* panels = scratch<T>(context, u.rank * columns + kPadding);
  pack_panels<T>(static_cast<const T*>(u.factor), width, u.rank, width, columns, u.rank, panels);
  constexpr int64_t kRows = 16;
  T* own = scratch<T>(context, kRows * columns * context.parallel.workers);
  const T keep = T(1 / (1 - u.dropout));
  const uint32_t threshold = dropout_threshold(u.dropout);
  parallel_for(context, ceil_div(rows, kRows), [&](int64_t task, int worker) {
    T* wide = own + kRows * columns * worker;
    const int64_t t0 = task * kRows, count = least(kRows, rows - t0);
    block_gemm<T>(count, columns, u.rank, static_cast<const T*>(u.g) + t0 * u.ld_g, u.ld_g, {panels, u.rank}, wide, columns,
                  false);
    for (int64_t i = 0; i < count; ++i) {
      T* y = static_cast<T*>(u.y.data) + (t0 + i) * u.y.stride[0];
      const T* from = wide + i * columns;
      each_run_of_mask(u.first_row + t0 + i, width, u.seed, [&](int64_t c, int64_t run, const uint32_t* words) {
        for (int64_t j = 0; j < run; ++j) y[c + j] += words[j] < threshold ? T(0) : from[c + j] * keep;
      });
    }
  });
}

template <class T, class S>
void result(const LowRankResult& r, const Context& context) {
  constexpr int64_t kRows = 64;
  parallel_for(context, ceil_div(r.width, kRows), [&](int64_t task, int) {
    for (int64_t k = task * kRows; k < least(r.width, (task + 1) * kRows); ++k)
      for (int64_t column = 0; column < r.rank; ++column) {
        double sum = 0;
        for (int64_t chunk = 0; chunk < r.chunks; ++chunk)
          sum += double(static_cast<const T*>(r.sums)[(chunk * r.width + k) * r.stride + r.first + column]);
        store_as<T>(static_cast<S*>(r.to) + k * r.to_k + column * r.to_r, T(r.scale * sum));
      }
  });
}

}  // namespace

void low_rank_pass(const LowRankPass& pass, const Context& context) {
  if (pass.x.dtype == DType::kFloat64) return Pass<double>{pass}.run(context);
  if (pass.x.dtype == DType::kBFloat16) return Pass<bfloat16>{pass}.run(context);
  Pass<float>{pass}.run(context);
}

void low_rank_update(const LowRankUpdate& u, const Context& context) {
  if (u.y.dtype == DType::kFloat64) return update<double>(u, context);
  update<float>(u, context);
}

void low_rank_result(const LowRankResult& r, const Context& context) {
  if (r.dtype == DType::kFloat64) return result<double, double>(r, context);
  if (r.dtype == DType::kBFloat16) return result<float, bfloat16>(r, context);
  result<float, float>(r, context);
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
