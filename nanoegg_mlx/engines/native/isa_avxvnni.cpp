// AVX-VNNI: VPDPBUSD as in isa_avx512.cpp, with 8 lanes and 16 registers, for machines whose AVX stops at 256 bits.
// A tile is 16 outputs by 6 members: 12 accumulators, 2 weight vectors and a broadcast.
#include "kernels.h"

#if defined(__x86_64__) && NANOEGG_AVXVNNI
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,avxvnni")
#endif

#include "tile.h"
#include "x86.h"

namespace nanoegg {
namespace {

struct Vector {
  using Sums = __m256i;
  using Bytes = __m256i;
  static constexpr int kLanes = 8, kGroup = 4, kPair = 1, kVectors = 2, kMembers = 6, kChains = 12;
  static constexpr uint8_t kBias = 0x80;

  static Sums start(int32_t v) { return _mm256_set1_epi32(v); }
  static Bytes load(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
  static Bytes inputs(const int8_t* x, const int8_t*) { return _mm256_set1_epi32(four_bytes(x)); }
  static Bytes ones() { return _mm256_set1_epi8(1); }
  static Bytes flip(Bytes b) { return _mm256_xor_si256(b, _mm256_set1_epi8((char)0x80)); }
  static Sums multiply_add(Sums sums, Bytes w, Bytes x) { return _mm256_dpbusd_avx_epi32(sums, w, x); }
  static void store(int32_t* out, const Sums* sums, int) { _mm256_storeu_si256((__m256i*)out, *sums); }
  static int32_t reduce(Sums sums) { return reduce_ymm(sums); }
};

using Tile = VectorTile<Vector>;

} // namespace
} // namespace nanoegg

#include "block.h"

namespace nanoegg {
const Isa kAvxVnni = make_isa("avxvnni");
} // namespace nanoegg
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
