// Plain NEON (every 64-bit Arm): SMULL makes int16 products, which always fit, SADALP adds neighbours into int32.
// An accumulator holds two partial sums of each of 2 outputs, added when the tile is done. A tile is 16 outputs by 3
// members.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "tile.h"

namespace nanoegg {
namespace {

struct Vector {
  struct Sums {
    int32x4_t low, high; // of outputs 0, 1 and 2, 3
  };
  using Bytes = int8x16_t;
  static constexpr int kLanes = 4, kGroup = 4, kPair = 1, kVectors = 4, kMembers = 3, kChains = 8;
  static constexpr uint8_t kBias = 0;

  static Sums start(int32_t v) { return {vdupq_n_s32(v), vdupq_n_s32(0)}; }
  static Bytes load(const void* p) { return vld1q_s8((const int8_t*)p); }
  static Bytes inputs(const int8_t* x, const int8_t*) { return vreinterpretq_s8_s32(vdupq_n_s32(four_bytes(x))); }
  static Sums multiply_add(Sums sums, Bytes w, Bytes x) {
    return {vpadalq_s16(sums.low, vmull_s8(vget_low_s8(w), vget_low_s8(x))),
            vpadalq_s16(sums.high, vmull_high_s8(w, x))};
  }
  static void store(int32_t* out, const Sums* sums, int) { vst1q_s32(out, vpaddq_s32(sums->low, sums->high)); }
  static int32_t reduce(Sums sums) { return vaddvq_s32(vaddq_s32(sums.low, sums.high)); }
};

inline void hide(Vector::Sums& sums) {
  hide(sums.low);
  hide(sums.high);
}

using Tile = VectorTile<Vector>;

} // namespace
} // namespace nanoegg

#include "block.h"

namespace nanoegg {
const Isa kNeon = make_isa("neon");
} // namespace nanoegg
#endif
