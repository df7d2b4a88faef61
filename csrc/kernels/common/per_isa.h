#pragma once
// Sources under `per_isa` in CMakeLists.txt are compiled once per instruction set. What they define lives in
// namespace longspan::kernels::LONGSPAN_ISA_NS, so that the linker can never merge code of one set into another.

#if defined(__x86_64__)
/// Declares one function in the namespace of every instruction set of this binary.
#define LONGSPAN_DECLARE_PER_ISA(declaration) \
  namespace baseline {                        \
  declaration;                                \
  }                                           \
  namespace v3 {                              \
  declaration;                                \
  }                                           \
  namespace v4 {                              \
  declaration;                                \
  }
/// Calls the variant of `function` that `isa` names.
#define LONGSPAN_CALL_PER_ISA(isa, function, ...)                \
  switch (isa) {                                                 \
    case Isa::kBaseline: return baseline::function(__VA_ARGS__); \
    case Isa::kV3: return v3::function(__VA_ARGS__);             \
    case Isa::kV4: return v4::function(__VA_ARGS__);             \
  }
#else
#define LONGSPAN_DECLARE_PER_ISA(declaration) \
  namespace baseline {                        \
  declaration;                                \
  }
#define LONGSPAN_CALL_PER_ISA(isa, function, ...) \
  (void)isa;                                      \
  return baseline::function(__VA_ARGS__)
#endif
