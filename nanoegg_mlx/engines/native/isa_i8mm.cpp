// Arm int8 matrix multiply (SMMLA, Armv8.6): a 2 by 8 times 8 by 2 product an instruction, twice SDOT's work.
// Rows of two members meet rows of two outputs; an accumulator holds the four sums of that square. A tile is 16 outputs
// by 6 members: 24 accumulators. An odd member is multiplied with itself and the second half thrown away.
#include "kernels.h"

#if defined(__aarch64__) && NANOEGG_I8MM
#if defined(__clang__)
// Before version 16 clang's arm_neon.h declares these intrinsics by macro, so both come before it.
#pragma clang attribute push(__attribute__((target("i8mm,dotprod"))), apply_to = function)
#if __clang_major__ < 16
#if !defined(__ARM_FEATURE_DOTPROD)
#define __ARM_FEATURE_DOTPROD 1
#endif
#if !defined(__ARM_FEATURE_MATMUL_INT8)
#define __ARM_FEATURE_MATMUL_INT8 1
#endif
#endif
#else
#pragma GCC target("arch=armv8.2-a+i8mm+dotprod")
#endif

#include <arm_neon.h>

namespace nanoegg {
namespace {

struct Tile {
  static constexpr int kLanes = 4, kVectors = 4, kPanel = 16, kMembers = 6, kGroup = 8;
  static constexpr uint8_t kBias = 0;

  template <int NV, int NM>
  static void multiply(const uint8_t* panel, int groups, const int8_t* x, size_t stride, const int32_t*, int32_t* raw) {
    constexpr int kPairs = (NM + 1) / 2;
    int32x4_t acc[kPairs][2 * NV];
#pragma GCC unroll 8
    for (int p = 0; p < kPairs; p++)
#pragma GCC unroll 8
      for (int v = 0; v < 2 * NV; v++) acc[p][v] = vdupq_n_s32(0);
    for (int k = 0; k < groups; k++) {
      int8x16_t both[kPairs];
#pragma GCC unroll 8
      for (int p = 0; p < kPairs; p++)
        both[p] = vcombine_s8(vld1_s8(x + 2 * p * stride), vld1_s8(x + (2 * p + 1 < NM ? 2 * p + 1 : 2 * p) * stride));
#pragma GCC unroll 8
      for (int v = 0; v < 2 * NV; v++) {
        const int8x16_t w = vld1q_s8((const int8_t*)panel + 16 * v);
#pragma GCC unroll 8
        for (int p = 0; p < kPairs; p++) acc[p][v] = vmmlaq_s32(acc[p][v], both[p], w);
      }
      panel += 32 * NV;
      x += 8;
    }
#pragma GCC unroll 8
    for (int m = 0; m < NM; m++)
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) {
        const int32x4_t first = acc[m / 2][2 * v], second = acc[m / 2][2 * v + 1];
        const int32x4_t four = m % 2 ? vcombine_s32(vget_high_s32(first), vget_high_s32(second))
                                     : vcombine_s32(vget_low_s32(first), vget_low_s32(second));
        vst1q_s32(raw + m * kPanel + 4 * v, four);
      }
  }

  static void dot(const int8_t* b, const int8_t* x, size_t n, int32_t* sums) {
    int32x4_t total = vdupq_n_s32(0);
    for (size_t i = 0; i < n; i += 16) total = vdotq_s32(total, vld1q_s8(b + i), vld1q_s8(x + i));
    sums[0] = vaddvq_s32(total);
  }

  static uint32_t exp2_sum(const int8_t* logits, int vocab) {
    uint32_t total = 0;
    for (int j = 0; j < vocab; j++) total += (uint32_t)exp2_table[logits[j] + 128];
    return total;
  }

  static uint64_t peak(uint64_t rounds) {
    constexpr int kChains = 24;
    int32x4_t acc[kChains];
    int8x16_t w = vdupq_n_s8(3), x = vdupq_n_s8(5);
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) {
      acc[i] = vdupq_n_s32(0);
      __asm__ volatile("" : "+w"(acc[i])); // or the compiler would see that all are the same
    }
    for (uint64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 24
      for (int i = 0; i < kChains; i++) acc[i] = vmmlaq_s32(acc[i], w, x);
      __asm__ volatile("" : "+w"(w), "+w"(x));
    }
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) __asm__ volatile("" : : "w"(acc[i]));
    return rounds * kChains * 32;
  }
};

} // namespace
} // namespace nanoegg

#include "block.h"

namespace nanoegg {
const Isa kI8mm = make_isa("i8mm");
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
