// Arm dot product (SDOT, Armv8.2): four signed by signed bytes into each of 4 int32 lanes.
// A tile is 16 outputs by 6 members: 24 accumulators, 4 weight vectors and a broadcast of the 32 registers.
#if defined(__aarch64__)
#if defined(__clang__)
// Before version 16 clang's arm_neon.h declares these intrinsics by macro, so macros and target come before it.
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#if __clang_major__ < 16
#if !defined(__ARM_FEATURE_DOTPROD)
#define __ARM_FEATURE_DOTPROD 1
#endif
#endif
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include <arm_neon.h>

#include "tile.h"

namespace nanoegg {
namespace {

struct Vector {
  using Sums = int32x4_t;
  using Bytes = int8x16_t;
  static constexpr int kLanes = 4, kGroup = 4, kPair = 1, kVectors = 4, kMembers = 6, kChains = 24;
  static constexpr uint8_t kBias = 0;

  static Sums start(int32_t v) { return vdupq_n_s32(v); }
  static Bytes load(const void* p) { return vld1q_s8((const int8_t*)p); }
  static Bytes inputs(const int8_t* x, const int8_t*) { return vreinterpretq_s8_s32(vdupq_n_s32(four_bytes(x))); }
  static Sums multiply_add(Sums sums, Bytes w, Bytes x) { return vdotq_s32(sums, w, x); }
  static void store(int32_t* out, const Sums* sums, int) { vst1q_s32(out, *sums); }
  static int32_t reduce(Sums sums) { return vaddvq_s32(sums); }
};

using Tile = VectorTile<Vector>;

} // namespace
} // namespace nanoegg

#include "block.h"

namespace nanoegg {
const Isa kDotprod = make_isa("dotprod");
} // namespace nanoegg
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
