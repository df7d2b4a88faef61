// Rows from one dtype to another; see cast.h.
#include <algorithm>

#include "common/context.h"
#include "common/vec.h"

namespace longspan::kernels::LONGSPAN_ISA_NS {
namespace {

template <class T, class From, class To>
void cast_as(const View<2>& from, double scale, const View<2>& to, const Context& context) {
  constexpr int64_t kRows = 64;
  parallel_for(context, ceil_div(from.size[0], kRows), [&](int64_t task, int) {
    for (int64_t i = task * kRows; i < std::min(from.size[0], (task + 1) * kRows); ++i) {
      const From* x = static_cast<const From*>(from.data) + i * from.stride[0];
      To* y = static_cast<To*>(to.data) + i * to.stride[0];
      for (int64_t j = 0; j < from.size[1]; ++j) store_as<T>(y + j, T(scale) * load_as<T>(x + j));
    }
  });
}

}  // namespace

void cast(const View<2>& from, double scale, const View<2>& to, const Context& context) {
  if (from.dtype == DType::kFloat64) return cast_as<double, double, double>(from, scale, to, context);
  const bool narrow = from.dtype == DType::kBFloat16;
  if (to.dtype == DType::kBFloat16)
    return narrow ? cast_as<float, bfloat16, bfloat16>(from, scale, to, context)
                  : cast_as<float, float, bfloat16>(from, scale, to, context);
  return narrow ? cast_as<float, bfloat16, float>(from, scale, to, context)
                : cast_as<float, float, float>(from, scale, to, context);
}

}  // namespace longspan::kernels::LONGSPAN_ISA_NS
