// Plain AVX2, which has no dot product of four bytes. VPMADDUBSW comes close, but it saturates at 16 bits (two products
// of 127 * 255 exceed 32767). So both sides are widened to int16, and VPMADDWD adds pairs of products in int32,
// exactly. An accumulator holds two partial sums of each of 4 outputs, added when the tile is done. A tile is 8 outputs
// by 6 members.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif

#include "tile.h"
#include "x86.h"

namespace nanoegg {
namespace {

struct Vector {
  using Sums = __m256i;
  using Bytes = __m256i; // 16 bytes as int16
  static constexpr int kLanes = 4, kGroup = 4, kPair = 1, kVectors = 2, kMembers = 6, kChains = 10;
  static constexpr uint8_t kBias = 0;

  static Sums start(int32_t v) { return _mm256_set1_epi32(v); }
  static Bytes load(const void* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)); }
  static Bytes inputs(const int8_t* x, const int8_t*) { return _mm256_cvtepi8_epi16(_mm_set1_epi32(four_bytes(x))); }
  static Sums multiply_add(Sums sums, Bytes w, Bytes x) { return _mm256_add_epi32(sums, _mm256_madd_epi16(w, x)); }
  static void store(int32_t* out, const Sums* sums, int) {
    const __m256i pairs = _mm256_permute4x64_epi64(_mm256_hadd_epi32(*sums, *sums), 0x08);
    _mm_storeu_si128((__m128i*)out, _mm256_castsi256_si128(pairs));
  }
  static int32_t reduce(Sums sums) { return reduce_ymm(sums); }
};

using Tile = VectorTile<Vector>;

} // namespace
} // namespace nanoegg

#include "block.h"

namespace nanoegg {
const Isa kAvx2 = make_isa("avx2");
} // namespace nanoegg
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
