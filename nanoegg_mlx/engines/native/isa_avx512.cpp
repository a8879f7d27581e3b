// AVX-512 VNNI: VPDPBUSD multiplies four unsigned by four signed bytes into each of 16 int32 lanes, exactly.
// A tile is 64 outputs by 6 members: 24 accumulators, 4 weight vectors and a broadcast fill 29 of the 32 registers and
// hide the instruction's latency. Every weight loaded serves 6 members, every broadcast 64 outputs.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512")
#endif

#include "tile.h"

namespace nanoegg {
namespace {

struct Vector {
  using Sums = __m512i;
  using Bytes = __m512i;
  static constexpr int kLanes = 16, kGroup = 4, kPair = 1, kVectors = 4, kMembers = 6, kChains = 24;
  static constexpr uint8_t kBias = 0x80;

  static Sums start(int32_t v) { return _mm512_set1_epi32(v); }
  static Bytes load(const void* p) { return _mm512_loadu_si512(p); }
  static Bytes inputs(const int8_t* x, const int8_t*) { return _mm512_set1_epi32(four_bytes(x)); }
  static Bytes ones() { return _mm512_set1_epi8(1); }
  static Bytes flip(Bytes b) { return _mm512_xor_si512(b, _mm512_set1_epi8((char)0x80)); }
  static Sums multiply_add(Sums sums, Bytes w, Bytes x) { return _mm512_dpbusd_epi32(sums, w, x); }
  static void store(int32_t* out, const Sums* sums, int) { _mm512_storeu_si512(out, *sums); }
  static int32_t reduce(Sums sums) { return _mm512_reduce_add_epi32(sums); }
};

struct Tile : VectorTile<Vector> {
  // EXP2[l] = EXP2[240 + l % 16] >> (15 - l / 16): truncating twice is truncating once. 16 entries fit a register.
  static __m512i exp2_of(__m128i logits) {
    const __m512i octave = _mm512_loadu_si512(exp2_table + 240), low = _mm512_set1_epi32(15);
    const __m512i l = _mm512_add_epi32(_mm512_cvtepi8_epi32(logits), _mm512_set1_epi32(128));
    const __m512i shift = _mm512_sub_epi32(low, _mm512_srli_epi32(l, 4));
    return _mm512_srlv_epi32(_mm512_permutexvar_epi32(_mm512_and_si512(l, low), octave), shift);
  }

  static uint32_t exp2_sum(const int8_t* logits, int vocab) {
    __m512i total = _mm512_setzero_si512();
    for (int j = 0; j < vocab; j += 16) {
      const __mmask16 mask = vocab - j >= 16 ? 0xFFFF : (__mmask16)((1u << (vocab - j)) - 1);
      total = _mm512_mask_add_epi32(total, mask, total, exp2_of(_mm_maskz_loadu_epi8(mask, logits + j)));
    }
    return (uint32_t)_mm512_reduce_add_epi32(total);
  }

  static void exp2(const int8_t* logits, uint32_t* out) {
    for (int j = 0; j < 256; j += 16)
      _mm512_storeu_si512(out + j, exp2_of(_mm_loadu_si128((const __m128i*)(logits + j))));
  }

  static void flip(uint64_t coins, const int8_t* v, int8_t* out) {
    const __m512i plus = _mm512_loadu_si512(v);
    _mm512_storeu_si512(out, _mm512_mask_sub_epi8(plus, (__mmask64)~coins, _mm512_setzero_si512(), plus));
  }

  // POW2[k] = ((R[k % 16] >> k / 16) + 1) >> 1 with R[r] = floor(2^14 2^(-r/16)), but R[0] = 2^14 - 1: so the tie at 14
  // octaves rounds down, and nothing else changes.
  static void pow2(const int8_t* logits, size_t n, int32_t log2, int16_t* out) {
    alignas(64) static constexpr int16_t kTwice[32] = {16383, 15689, 15024, 14387, 13777, 13193, 12633, 12098,
                                                       11585, 11094, 10623, 10173, 9741,  9328,  8933,  8554};
    const __m512i twice = _mm512_load_si512(kTwice), low = _mm512_set1_epi16(15), one = _mm512_set1_epi16(1);
    const __m512i top = _mm512_set1_epi16((int16_t)(log2 - 128)), zero = _mm512_setzero_si512();
    for (size_t i = 0; i < n; i += 32) {
      const __m512i l = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)(logits + i)));
      __m512i k = _mm512_max_epi16(_mm512_sub_epi16(top, l), zero);
      k = _mm512_min_epi16(k, _mm512_set1_epi16(255));
      const __m512i r = _mm512_permutexvar_epi16(_mm512_and_si512(k, low), twice);
      const __m512i shifted = _mm512_srlv_epi16(r, _mm512_srli_epi16(k, 4));
      _mm512_storeu_si512(out + i, _mm512_srli_epi16(_mm512_add_epi16(shifted, one), 1));
    }
  }
};

} // namespace
} // namespace nanoegg

#include "block.h"

namespace nanoegg {
const Isa kAvx512Vnni = make_isa("avx512vnni");
} // namespace nanoegg
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
