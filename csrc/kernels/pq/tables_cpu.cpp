// Tables of asymmetric scores; see selection.h. Compiled without contraction: every operation rounds by itself.
#include "pq/score.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {

template <class S>
void adc_tables(const Codebook& codebook, const CodewordLanes<Compute<S>>& lanes, int64_t g, const S* q, int64_t stride,
                int64_t count, int64_t D, uint8_t* tables) {
  using T = Compute<S>;
  const int64_t M = codebook.subspaces, d = codebook.width, wide = lanes.wide, entries = 1 << code_bits(codebook.codewords);
  T values[kMaxSubspaces * kMaxCodewords], lowest[kMaxSubspaces];
  for (int64_t i = 0; i < count; ++i) {
    const S* row = q + i * stride;
    T range = T(0);
    for (int64_t m = 0; m < M; ++m) {
      Vec<T> low{}, high{};
      for (int64_t e = 0; e < wide; e += kLanes<T>) {
        Vec<T> sum{};
        for (int64_t j = 0; j < d && m * d + j < D; ++j)
          sum += load_as<T>(row + m * d + j) * load(lanes.data + ((g * M + m) * d + j) * wide + e);
        store(values + m * wide + e, sum);
        low = e == 0 ? sum : -max<T>(-low, -sum), high = e == 0 ? sum : max<T>(high, sum);
      }
      lowest[m] = -horizontal_max<T>(-low);
      const T spread = horizontal_max<T>(high) - lowest[m];
      range = spread > range ? spread : range;
    }
    const T factor = range > T(0) ? T(255) / range : T(0);
    for (int64_t m = 0; m < M; ++m) {
      T* value = values + m * wide;
      for (int64_t e = 0; e < wide; e += kLanes<T>) {
        const Vec<T> x = (load(value + e) - lowest[m]) * factor + T(0.5);
        const Vec<T> least = select<T>(x > T(0), x, Vec<T>{});
        store(value + e, select<T>(least < T(255), least, splat<T>(T(255))));
      }
      uint8_t* table = tables + (i * M + m) * entries;
      for (int64_t e = 0; e < entries; ++e) table[e] = e < codebook.codewords ? uint8_t(value[e]) : uint8_t(0);
    }
  }
}

template void adc_tables(const Codebook&, const CodewordLanes<float>&, int64_t, const float*, int64_t, int64_t, int64_t,
                         uint8_t*);
template void adc_tables(const Codebook&, const CodewordLanes<double>&, int64_t, const double*, int64_t, int64_t, int64_t,
                         uint8_t*);
template void adc_tables(const Codebook&, const CodewordLanes<float>&, int64_t, const bfloat16*, int64_t, int64_t, int64_t,
                         uint8_t*);

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
