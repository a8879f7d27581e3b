// AVX-512 VNNI: VPDPBUSD multiplies four unsigned by four signed bytes into each of 16 int32 lanes, exactly.
// A tile is 64 outputs by 6 members: 24 accumulators, 4 weight vectors and a broadcast fill 29 of the 32 registers and
// hide the instruction's latency; every weight loaded serves 6 members, every broadcast 64 outputs.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512")
#endif

namespace nanoegg {
namespace {

struct Tile {
  static constexpr int kLanes = 16, kVectors = 4, kPanel = 64, kMembers = 6, kGroup = 4;
  static constexpr uint8_t kBias = 0x80;

  template <int NV, int NM>
  static void multiply(const uint8_t* panel, int groups, const int8_t* x, size_t stride, const int32_t* start,
                       int32_t* raw) {
    __m512i acc[NM][NV];
#pragma GCC unroll 8
    for (int m = 0; m < NM; m++)
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) acc[m][v] = _mm512_set1_epi32(start[m]);
    for (int k = 0; k < groups; k++) {
      __m512i w[NV];
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) w[v] = _mm512_loadu_si512(panel + 64 * v);
#pragma GCC unroll 8
      for (int m = 0; m < NM; m++) {
        int32_t four;
        __builtin_memcpy(&four, x + m * stride, 4);
        const __m512i broadcast = _mm512_set1_epi32(four);
#pragma GCC unroll 8
        for (int v = 0; v < NV; v++) acc[m][v] = _mm512_dpbusd_epi32(acc[m][v], w[v], broadcast);
      }
      panel += 64 * NV;
      x += 4;
    }
#pragma GCC unroll 8
    for (int m = 0; m < NM; m++)
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) _mm512_storeu_si512(raw + m * kPanel + 16 * v, acc[m][v]);
  }

  static void dot(const int8_t* b, const int8_t* x, size_t n, int32_t* sums) {
    const __m512i flip = _mm512_set1_epi8((char)0x80), ones = _mm512_set1_epi8(1);
    __m512i products = _mm512_setzero_si512(), sum = _mm512_setzero_si512();
    for (size_t i = 0; i < n; i += 64) {
      const __m512i xs = _mm512_loadu_si512(x + i);
      products = _mm512_dpbusd_epi32(products, _mm512_xor_si512(_mm512_loadu_si512(b + i), flip), xs);
      sum = _mm512_dpbusd_epi32(sum, ones, xs);
    }
    sums[1] = _mm512_reduce_add_epi32(sum);
    sums[0] = _mm512_reduce_add_epi32(products) - 128 * sums[1];
  }

  static int32_t sum(const int8_t* x, size_t n) {
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i total = _mm512_setzero_si512();
    for (size_t i = 0; i < n; i += 64) total = _mm512_dpbusd_epi32(total, ones, _mm512_loadu_si512(x + i));
    return _mm512_reduce_add_epi32(total);
  }

  // EXP2[l] = EXP2[240 + l % 16] >> (15 - l / 16): truncating twice is truncating once. 16 entries fit a register.
  static uint32_t exp2_sum(const int8_t* logits, int vocab) {
    const __m512i octave = _mm512_loadu_si512(exp2_table + 240), low = _mm512_set1_epi32(15);
    __m512i total = _mm512_setzero_si512();
    for (int j = 0; j < vocab; j += 16) {
      const __mmask16 mask = vocab - j >= 16 ? 0xFFFF : (__mmask16)((1u << (vocab - j)) - 1);
      const __m512i l =
          _mm512_add_epi32(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, logits + j)), _mm512_set1_epi32(128));
      const __m512i shift = _mm512_sub_epi32(low, _mm512_srli_epi32(l, 4));
      const __m512i e = _mm512_permutexvar_epi32(_mm512_and_si512(l, low), octave);
      total = _mm512_mask_add_epi32(total, mask, total, _mm512_srlv_epi32(e, shift));
    }
    return (uint32_t)_mm512_reduce_add_epi32(total);
  }

  static uint64_t peak(uint64_t rounds) {
    constexpr int kChains = 24;
    __m512i acc[kChains], w = _mm512_set1_epi8(3), x = _mm512_set1_epi8(5);
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) {
      acc[i] = _mm512_setzero_si512();
      __asm__ volatile("" : "+v"(acc[i])); // or the compiler would see that all are the same
    }
    for (uint64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 24
      for (int i = 0; i < kChains; i++) acc[i] = _mm512_dpbusd_epi32(acc[i], w, x);
      __asm__ volatile("" : "+v"(w), "+v"(x));
    }
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) __asm__ volatile("" : : "v"(acc[i]));
    return rounds * kChains * 64;
  }
};

} // namespace
} // namespace nanoegg

#include "block.h"

namespace nanoegg {
const Isa kAvx512Vnni = make_isa("avx512vnni");
}
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
