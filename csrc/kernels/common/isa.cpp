#include "common/isa.h"

#include <stdexcept>
#include <string>

namespace longspan::kernels {
namespace {

bool runs_here([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::kBaseline: return true;
    case Isa::kV3: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    case Isa::kV4:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd");
  }
  return false;
#else
  return isa == Isa::kBaseline;
#endif
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kV3: return "x86-64-v3";
    case Isa::kV4: return "x86-64-v4";
    default: return "baseline";
  }
}

Isa select_isa(const char* name) {
  constexpr Isa kAll[] = {Isa::kV4, Isa::kV3, Isa::kBaseline};
  const std::string wanted = name ? name : "";
  std::string allowed;
  for (Isa isa : kAll) {
    if (!runs_here(isa)) continue;
    if (wanted.empty() || wanted == isa_name(isa)) return isa;
    allowed += allowed.empty() ? isa_name(isa) : std::string(", ") + isa_name(isa);
  }
  throw std::invalid_argument("LONGSPAN_ISA is '" + wanted + "'; this machine runs: " + allowed);
}

}  // namespace longspan::kernels
