#pragma once
// CUDA's device environment for g++: what common/simt.h gives kernels when the compiler is not nvcc.
// Every operation that can go wrong takes the caller's source position as a default argument.
#include "simt/device/language.h"
// The order matters: language.h undefines what the toolkit's headers define.
#include "simt/device/atomic.h"
#include "simt/device/intrinsics.h"
#include "simt/device/launch.h"
#include "simt/device/ptx.h"
#include "simt/device/shared.h"
#include "simt/device/thread.h"
#include "simt/device/warp.h"
