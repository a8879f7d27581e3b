// Plain AVX2: no four-byte dot product. VPMADDUBSW would do with its two products a lane, but it saturates at 16 bits
// (two products of 127 * 255 exceed 32767), so both sides are widened to int16 and VPMADDWD adds pairs in int32,
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

namespace nanoegg {
namespace {

struct Tile {
  static constexpr int kLanes = 4, kVectors = 2, kPanel = 8, kMembers = 6, kGroup = 4;
  static constexpr uint8_t kBias = 0;

  static __m256i widen(const void* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)); }

  template <int NV, int NM>
  static void multiply(const uint8_t* panel, int groups, const int8_t* x, size_t stride, const int32_t*, int32_t* raw) {
    __m256i acc[NM][NV];
#pragma GCC unroll 8
    for (int m = 0; m < NM; m++)
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) acc[m][v] = _mm256_setzero_si256();
    for (int k = 0; k < groups; k++) {
      __m256i w[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) w[v] = widen(panel + 16 * v);
#pragma GCC unroll 8
      for (int m = 0; m < NM; m++) {
        int32_t four;
        __builtin_memcpy(&four, x + m * stride, 4);
        const __m256i broadcast = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) acc[m][v] = _mm256_add_epi32(acc[m][v], _mm256_madd_epi16(w[v], broadcast));
      }
      panel += 16 * NV;
      x += 4;
    }
#pragma GCC unroll 8
    for (int m = 0; m < NM; m++)
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) {
        const __m256i pairs = _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc[m][v], acc[m][v]), 0x08);
        _mm_storeu_si128((__m128i*)(raw + m * kPanel + 4 * v), _mm256_castsi256_si128(pairs));
      }
  }

  static void dot(const int8_t* b, const int8_t* x, size_t n, int32_t* sums) {
    __m256i total = _mm256_setzero_si256();
    for (size_t i = 0; i < n; i += 16) total = _mm256_add_epi32(total, _mm256_madd_epi16(widen(b + i), widen(x + i)));
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    sums[0] = _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
  }

  static uint32_t exp2_sum(const int8_t* logits, int vocab) {
    uint32_t total = 0;
    for (int j = 0; j < vocab; j++) total += (uint32_t)exp2_table[logits[j] + 128];
    return total;
  }

  static uint64_t peak(uint64_t rounds) {
    constexpr int kChains = 10;
    __m256i acc[kChains], w = _mm256_set1_epi16(3), x = _mm256_set1_epi16(5);
#pragma GCC unroll 10
    for (int i = 0; i < kChains; i++) {
      acc[i] = _mm256_setzero_si256();
      __asm__ volatile("" : "+x"(acc[i])); // or the compiler would see that all are the same
    }
    for (uint64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 10
      for (int i = 0; i < kChains; i++) {
        acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(w, x));
        __asm__ volatile("" : "+x"(w), "+x"(x));
      }
    }
#pragma GCC unroll 10
    for (int i = 0; i < kChains; i++) __asm__ volatile("" : : "x"(acc[i]));
    return rounds * kChains * 16;
  }
};

} // namespace
} // namespace nanoegg

#include "block.h"

namespace nanoegg {
const Isa kAvx2 = make_isa("avx2");
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
