// Arm dot product (SDOT, Armv8.2): four signed by signed bytes into each of 4 int32 lanes.
// A tile is 16 outputs by 6 members: 24 accumulators, 4 weight vectors and a broadcast of the 32 registers.
#if defined(__aarch64__)
#if defined(__clang__)
// Before version 16 clang's arm_neon.h declares these intrinsics by macro, so both come before it.
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

#include "kernels.h"

namespace nanoegg {
namespace {

struct Tile {
  static constexpr int kLanes = 4, kVectors = 4, kPanel = 16, kMembers = 6, kGroup = 4;
  static constexpr uint8_t kBias = 0;

  template <int NV, int NM>
  static void multiply(const uint8_t* panel, int groups, const int8_t* x, size_t stride, const int32_t*, int32_t* raw) {
    int32x4_t acc[NM][NV];
#pragma GCC unroll 8
    for (int m = 0; m < NM; m++)
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) acc[m][v] = vdupq_n_s32(0);
    for (int k = 0; k < groups; k++) {
      int8x16_t w[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) w[v] = vld1q_s8((const int8_t*)panel + 16 * v);
#pragma GCC unroll 8
      for (int m = 0; m < NM; m++) {
        int32_t four;
        __builtin_memcpy(&four, x + m * stride, 4);
        const int8x16_t broadcast = vreinterpretq_s8_s32(vdupq_n_s32(four));
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) acc[m][v] = vdotq_s32(acc[m][v], w[v], broadcast);
      }
      panel += 16 * NV;
      x += 4;
    }
#pragma GCC unroll 8
    for (int m = 0; m < NM; m++)
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) vst1q_s32(raw + m * kPanel + 4 * v, acc[m][v]);
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
      for (int i = 0; i < kChains; i++) acc[i] = vdotq_s32(acc[i], w, x);
      __asm__ volatile("" : "+w"(w), "+w"(x));
    }
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) __asm__ volatile("" : : "w"(acc[i]));
    return rounds * kChains * 16;
  }
};

} // namespace
} // namespace nanoegg

#include "block.h"

namespace nanoegg {
const Isa kDotprod = make_isa("dotprod");
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
