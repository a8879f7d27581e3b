// Arm int8 matrix multiply (SMMLA, Armv8.6): a 2 by 8 times 8 by 2 product per instruction, twice SDOT's work.
// Rows of two members meet rows of two outputs, and an accumulator holds the four sums of that square. A tile is 16
// outputs by 6 members: 24 accumulators.
#include "kernels.h"

#if defined(__aarch64__) && NANOEGG_I8MM
#if defined(__clang__)
// Before version 16 clang's arm_neon.h declares these intrinsics by macro, so macros and target come before it.
#pragma clang attribute push(__attribute__((target("i8mm"))), apply_to = function)
#if __clang_major__ < 16
#if !defined(__ARM_FEATURE_MATMUL_INT8)
#define __ARM_FEATURE_MATMUL_INT8 1
#endif
#endif
#else
#pragma GCC target("arch=armv8.2-a+i8mm")
#endif

#include <arm_neon.h>

#include "tile.h"

namespace nanoegg {
namespace {

struct Vector {
  using Sums = int32x4_t; // outputs 0, 1 of the first member, then of the second
  using Bytes = int8x16_t;
  static constexpr int kLanes = 4, kGroup = 8, kPair = 2, kVectors = 4, kMembers = 6, kChains = 24;
  static constexpr uint8_t kBias = 0;

  static Sums start(int32_t v) { return vdupq_n_s32(v); }
  static Bytes load(const void* p) { return vld1q_s8((const int8_t*)p); }
  static Bytes inputs(const int8_t* x, const int8_t* second) { return vcombine_s8(vld1_s8(x), vld1_s8(second)); }
  static Sums multiply_add(Sums sums, Bytes w, Bytes x) { return vmmlaq_s32(sums, x, w); }
  static void store(int32_t* out, const Sums* sums, int member) {
    vst1q_s32(out, member ? vcombine_s32(vget_high_s32(sums[0]), vget_high_s32(sums[1]))
                          : vcombine_s32(vget_low_s32(sums[0]), vget_low_s32(sums[1])));
  }
  // Of 16 bytes by 16 bytes the square's diagonal is the two halves' dot products; the rest is of no use.
  static int32_t reduce(Sums sums) { return vgetq_lane_s32(sums, 0) + vgetq_lane_s32(sums, 3); }
};

using Tile = VectorTile<Vector>;

} // namespace
} // namespace nanoegg

#include "block.h"

namespace nanoegg {
const Isa kI8mm = make_isa("i8mm");
} // namespace nanoegg
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
