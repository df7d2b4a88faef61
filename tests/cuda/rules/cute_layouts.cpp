// Prints CuTe's own tables of what each lane's registers hold, for test_engine_layouts.py: one line a table,
// "name threads values index index ...", threads fastest.
#include <cstdio>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/layout.hpp>

namespace {

template <class Layout>
void print(const char* name, const Layout& layout) {
  const int threads = int(cute::size<0>(layout)), values = int(cute::size<1>(layout));
  std::printf("%s %d %d", name, threads, values);
  for (int value = 0; value < values; ++value)
    for (int thread = 0; thread < threads; ++thread) std::printf(" %d", int(layout(thread, value)));
  std::printf("\n");
}

}  // namespace

int main() {
  using BFloat16 = cute::MMA_Traits<cute::SM80_16x8x16_F32BF16BF16F32_TN>;
  print("bf16_a", BFloat16::ALayout{});
  print("bf16_b", BFloat16::BLayout{});
  print("bf16_c", BFloat16::CLayout{});
  using Half = cute::MMA_Traits<cute::SM80_16x8x16_F32F16F16F32_TN>;
  print("f16_a", Half::ALayout{});
  print("f16_b", Half::BLayout{});
  print("f16_c", Half::CLayout{});
  print("ldmatrix_source", cute::Copy_Traits<cute::SM75_U32x4_LDSM_N>::SrcLayout{});
  print("ldmatrix_target", cute::Copy_Traits<cute::SM75_U32x4_LDSM_N>::DstLayout{});
  print("ldmatrix_trans_source", cute::Copy_Traits<cute::SM75_U16x8_LDSM_T>::SrcLayout{});
  print("ldmatrix_trans_target", cute::Copy_Traits<cute::SM75_U16x8_LDSM_T>::DstLayout{});
}
