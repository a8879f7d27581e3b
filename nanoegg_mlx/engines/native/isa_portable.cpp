// Portable C++: the same tiles as plain loops, for 64-bit x86 without AVX2 and for all other processors.
#include "tile.h"

namespace nanoegg {
namespace {

struct Tile : Tables {
  static constexpr int kLanes = 16, kVectors = 1, kPanel = 16, kMembers = 2, kGroup = 1;
  static constexpr uint8_t kBias = 0;

  template <int NV, int NM>
  static void multiply(const uint8_t* panel, int groups, const int8_t* x, size_t stride, size_t step, const int32_t*,
                       int32_t* raw) {
    int32_t acc[NM][kPanel] = {};
    for (int k = 0; k < groups; k++, panel += kPanel, x += step)
      for (int m = 0; m < NM; m++)
        for (int i = 0; i < kPanel; i++) acc[m][i] += (int16_t)((int8_t)panel[i] * x[m * stride]);
    for (int m = 0; m < NM; m++)
      for (int i = 0; i < kPanel; i++) raw[m * kPanel + i] = acc[m][i];
  }

  static void dot(const int8_t* b, const int8_t* x, size_t n, int32_t* sums) {
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++) sum += b[i] * x[i];
    sums[0] = sum;
  }

  // The rate of a tile that stays in L1: without intrinsics there is no loop that is sure to stay in registers.
  static uint64_t peak(uint64_t rounds) {
    static uint8_t panel[64 * kPanel];
    static int8_t x[kMembers * 64];
    int32_t raw[kMembers * kPanel], start[kMembers] = {};
    for (uint64_t r = 0; r < rounds; r++) {
      multiply<kVectors, kMembers>(panel, 64, x, 64, 1, start, raw);
      __asm__ volatile("" : : "r"(raw) : "memory");
    }
    return rounds * 64 * kPanel * kMembers;
  }
};

} // namespace
} // namespace nanoegg

#include "block.h"

namespace nanoegg {
const Isa kPortable = make_isa("portable");
} // namespace nanoegg
