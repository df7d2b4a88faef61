#include "simt/engine/build.h"

namespace simt {

const Build kBuild = Build::SIMT_BUILD;

}  // namespace simt
