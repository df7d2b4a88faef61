#pragma once
// Comparing the places where threads wait.
#include <cstring>
#include <source_location>

namespace simt {

/// The function counts too: two instantiations of a template are different instructions on the device.
inline bool same_place(const std::source_location& a, const std::source_location& b) {
  const auto same = [](const char* x, const char* y) { return x == y || strcmp(x, y) == 0; };
  return a.line() == b.line() && a.column() == b.column() && same(a.file_name(), b.file_name()) &&
         same(a.function_name(), b.function_name());
}

}  // namespace simt
