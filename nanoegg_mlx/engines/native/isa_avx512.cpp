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
