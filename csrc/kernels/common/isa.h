#pragma once
// Instruction sets that one binary carries. CPU sources are compiled once per set, each in its own namespace.

namespace longspan::kernels {

enum class Isa : int { kBaseline, kV3, kV4 };

/// The best set that this machine runs and this library carries, or the one named by `name`
/// ("baseline", "x86-64-v3", "x86-64-v4"; null or empty chooses). Throws std::invalid_argument naming
/// what is allowed when the name is unknown or the machine cannot run it.
Isa select_isa(const char* name);

/// The name that `select_isa` takes.
const char* isa_name(Isa isa);

}  // namespace longspan::kernels
