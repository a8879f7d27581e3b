// For the instruction sets with 256-bit registers.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace nanoegg {
namespace {

// The sum of 8 lanes of int32.
inline int32_t reduce_ymm(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
}

} // namespace
} // namespace nanoegg
