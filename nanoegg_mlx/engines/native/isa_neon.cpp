// Plain NEON (every 64-bit Arm): SMULL makes int16 products, which always fit, SADALP adds neighbours into int32.
// An accumulator holds two partial sums of each of 2 outputs, added when the tile is done. A tile is 16 outputs by 3
// members.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "kernels.h"

namespace nanoegg {
namespace {

struct Tile {
  static constexpr int kLanes = 4, kVectors = 4, kPanel = 16, kMembers = 3, kGroup = 4;
  static constexpr uint8_t kBias = 0;

  template <int NV, int NM>
  static void multiply(const uint8_t* panel, int groups, const int8_t* x, size_t stride, const int32_t*, int32_t* raw) {
    int32x4_t acc[NM][NV][2];
#pragma GCC unroll 8
    for (int m = 0; m < NM; m++)
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) acc[m][v][0] = acc[m][v][1] = vdupq_n_s32(0);
    for (int k = 0; k < groups; k++) {
      int8x16_t broadcast[NM];
#pragma GCC unroll 8
      for (int m = 0; m < NM; m++) {
        int32_t four;
        __builtin_memcpy(&four, x + m * stride, 4);
        broadcast[m] = vreinterpretq_s8_s32(vdupq_n_s32(four));
      }
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) {
        const int8x16_t w = vld1q_s8((const int8_t*)panel + 16 * v);
#pragma GCC unroll 8
        for (int m = 0; m < NM; m++) {
          acc[m][v][0] = vpadalq_s16(acc[m][v][0], vmull_s8(vget_low_s8(w), vget_low_s8(broadcast[m])));
          acc[m][v][1] = vpadalq_s16(acc[m][v][1], vmull_high_s8(w, broadcast[m]));
        }
      }
      panel += 16 * NV;
      x += 4;
    }
#pragma GCC unroll 8
    for (int m = 0; m < NM; m++)
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) vst1q_s32(raw + m * kPanel + 4 * v, vpaddq_s32(acc[m][v][0], acc[m][v][1]));
  }

  static void dot(const int8_t* b, const int8_t* x, size_t n, int32_t* sums) {
    int32x4_t total = vdupq_n_s32(0);
    for (size_t i = 0; i < n; i += 16) {
      const int8x16_t bs = vld1q_s8(b + i), xs = vld1q_s8(x + i);
      total = vpadalq_s16(total, vmull_s8(vget_low_s8(bs), vget_low_s8(xs)));
      total = vpadalq_s16(total, vmull_high_s8(bs, xs));
    }
    sums[0] = vaddvq_s32(total);
  }

  static uint32_t exp2_sum(const int8_t* logits, int vocab) {
    uint32_t total = 0;
    for (int j = 0; j < vocab; j++) total += (uint32_t)exp2_table[logits[j] + 128];
    return total;
  }

  static uint64_t peak(uint64_t rounds) {
    constexpr int kChains = 16;
    int32x4_t acc[kChains];
    int8x8_t w = vdup_n_s8(3), x = vdup_n_s8(5);
#pragma GCC unroll 16
    for (int i = 0; i < kChains; i++) {
      acc[i] = vdupq_n_s32(0);
      __asm__ volatile("" : "+w"(acc[i])); // or the compiler would see that all are the same
    }
    for (uint64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 16
      for (int i = 0; i < kChains; i++) {
        acc[i] = vpadalq_s16(acc[i], vmull_s8(w, x));
        __asm__ volatile("" : "+w"(w), "+w"(x));
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kChains; i++) __asm__ volatile("" : : "w"(acc[i]));
    return rounds * kChains * 8;
  }
};

} // namespace
} // namespace nanoegg

#include "block.h"

namespace nanoegg {
const Isa kNeon = make_isa("neon");
}
#endif
