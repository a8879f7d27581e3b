// AVX-VNNI: the AVX-512 kernel of isa_avx512.cpp on 8 lanes and 16 registers, for machines whose AVX stops at 256 bits.
// A tile is 16 outputs by 6 members: 12 accumulators, 2 weight vectors and a broadcast.
#include "kernels.h"

#if defined(__x86_64__) && NANOEGG_AVXVNNI
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,avxvnni")
#endif

namespace nanoegg {
namespace {

struct Tile {
  static constexpr int kLanes = 8, kVectors = 2, kPanel = 16, kMembers = 6, kGroup = 4;
  static constexpr uint8_t kBias = 0x80;

  template <int NV, int NM>
  static void multiply(const uint8_t* panel, int groups, const int8_t* x, size_t stride, const int32_t* start,
                       int32_t* raw) {
    __m256i acc[NM][NV];
#pragma GCC unroll 8
    for (int m = 0; m < NM; m++)
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) acc[m][v] = _mm256_set1_epi32(start[m]);
    for (int k = 0; k < groups; k++) {
      __m256i w[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) w[v] = _mm256_loadu_si256((const __m256i*)(panel + 32 * v));
#pragma GCC unroll 8
      for (int m = 0; m < NM; m++) {
        int32_t four;
        __builtin_memcpy(&four, x + m * stride, 4);
        const __m256i broadcast = _mm256_set1_epi32(four);
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) acc[m][v] = _mm256_dpbusd_avx_epi32(acc[m][v], w[v], broadcast);
      }
      panel += 32 * NV;
      x += 4;
    }
#pragma GCC unroll 8
    for (int m = 0; m < NM; m++)
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) _mm256_storeu_si256((__m256i*)(raw + m * kPanel + 8 * v), acc[m][v]);
  }

  static int32_t reduce(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
  }

  static void dot(const int8_t* b, const int8_t* x, size_t n, int32_t* sums) {
    const __m256i flip = _mm256_set1_epi8((char)0x80), ones = _mm256_set1_epi8(1);
    __m256i products = _mm256_setzero_si256(), sum = _mm256_setzero_si256();
    for (size_t i = 0; i < n; i += 32) {
      const __m256i xs = _mm256_loadu_si256((const __m256i*)(x + i));
      const __m256i bs = _mm256_xor_si256(_mm256_loadu_si256((const __m256i*)(b + i)), flip);
      products = _mm256_dpbusd_avx_epi32(products, bs, xs);
      sum = _mm256_dpbusd_avx_epi32(sum, ones, xs);
    }
    sums[1] = reduce(sum);
    sums[0] = reduce(products) - 128 * sums[1];
  }

  static int32_t sum(const int8_t* x, size_t n) {
    const __m256i ones = _mm256_set1_epi8(1);
    __m256i total = _mm256_setzero_si256();
    for (size_t i = 0; i < n; i += 32)
      total = _mm256_dpbusd_avx_epi32(total, ones, _mm256_loadu_si256((const __m256i*)(x + i)));
    return reduce(total);
  }

  static uint32_t exp2_sum(const int8_t* logits, int vocab) {
    uint32_t total = 0;
    for (int j = 0; j < vocab; j++) total += (uint32_t)exp2_table[logits[j] + 128];
    return total;
  }

  static uint64_t peak(uint64_t rounds) {
    constexpr int kChains = 12;
    __m256i acc[kChains], w = _mm256_set1_epi8(3), x = _mm256_set1_epi8(5);
#pragma GCC unroll 12
    for (int i = 0; i < kChains; i++) {
      acc[i] = _mm256_setzero_si256();
      __asm__ volatile("" : "+x"(acc[i])); // or the compiler would see that all are the same
    }
    for (uint64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; i++) acc[i] = _mm256_dpbusd_avx_epi32(acc[i], w, x);
      __asm__ volatile("" : "+x"(w), "+x"(x));
    }
#pragma GCC unroll 12
    for (int i = 0; i < kChains; i++) __asm__ volatile("" : : "x"(acc[i]));
    return rounds * kChains * 32;
  }
};

} // namespace
} // namespace nanoegg

#include "block.h"

namespace nanoegg {
const Isa kAvxVnni = make_isa("avxvnni");
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
