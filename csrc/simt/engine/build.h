#pragma once
// Which of the three builds this library is. Only build.cpp is compiled anew for each.

namespace simt {

enum class Build { kPlain, kHooks, kAsan };
extern const Build kBuild;

}  // namespace simt
