#pragma once
// What the CUDA kernels of the quantiser share: the codebook and the vectors of one call.
#include "common/convert.cuh"
#include "pq/pq.h"

namespace longspan::kernels {

/// A codebook on the device; `data` may be null where only its shape counts.
struct DeviceCodebook {
  const float* data = nullptr;
  int groups = 1, M = 0, E = 0, d = 0, W = 0, bits = 4;

  DeviceCodebook() = default;
  explicit DeviceCodebook(const Codebook& c)
      : data(static_cast<const float*>(c.data)),
        groups(int(c.groups)),
        M(int(c.subspaces)),
        E(int(c.codewords)),
        d(int(c.width)),
        W(int(code_words(c.subspaces, c.codewords))),
        bits(code_bits(c.codewords)) {}

  /// Codewords [M,E,d] of head h of H.
  SIMT_DEVICE const float* of_head(int h, int H) const { return data + int64_t(h / (H / groups)) * M * E * d; }
};

/// Vectors [B,H,T,D]; strides in elements.
template <class S>
struct DeviceVectors {
  S* data = nullptr;
  int64_t batch = 0, head = 0, row = 0;
  int H = 0, T = 0, D = 0;

  DeviceVectors() = default;
  explicit DeviceVectors(const View<4>& z)
      : data(static_cast<S*>(z.data)),
        batch(z.stride[0]),
        head(z.stride[1]),
        row(z.stride[2]),
        H(int(z.size[1])),
        T(int(z.size[2])),
        D(int(z.size[3])) {}

  /// Vector t of head bh % H of batch row bh / H.
  SIMT_DEVICE S* at(int bh, int t) const { return data + bh / H * batch + bh % H * head + t * row; }
};

/// Checks what the kernels count in 32 bits.
inline void check_vectors(const char* name, const View<4>& z) {
  if (z.dtype == DType::kFloat64)
    throw std::invalid_argument(std::string(name) + " on CUDA takes float32, float16 and bfloat16, not float64");
  if (z.size[0] * z.size[1] > 65535 || z.size[2] > INT32_MAX - 1024)
    throw std::invalid_argument(std::string(name) +
                                " on CUDA takes at most 65535 heads over the batch and 2^31 - 1024 rows");
}

/// Calls f with a value of the element type.
template <class F>
void of_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32: return f(float());
    case DType::kBFloat16: return f(__nv_bfloat16());
    case DType::kFloat16: return f(__half());
    case DType::kFloat64: return;  // refused before
  }
}

}  // namespace longspan::kernels
