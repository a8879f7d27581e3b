// Integer arithmetic that every kernel uses. Like all headers included after an instruction set is switched on, this
// one keeps its functions in an anonymous namespace: each instruction set has its own copy (see model.h).
#pragma once

#include "kernels.h"

namespace nanoegg {
namespace {

// Two statements, each a minimum or maximum: the compiler makes branches of one nested expression.
inline int32_t clamp(int32_t v, int32_t low, int32_t high) {
  v = v < low ? low : v;
  return v > high ? high : v;
}
inline int32_t clip(int32_t v) { return clamp(v, -127, 127); }
inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

// v = low + 128 high, low in [-64, 63], for |v| <= 127 * 127: two products of int8 replace one of int16.
struct Digits {
  int8_t low, high;
};
inline Digits digits(int16_t v) {
  const int16_t high = (int16_t)((v + 64) >> 7);
  return {(int8_t)(v - high * 128), (int8_t)high};
}

inline bool stopped(const int* stop) { return stop && __atomic_load_n(stop, __ATOMIC_RELAXED); }

// clip(v // d) for d < 2^14. v is first clipped to where the quotient is in range. Then v + 128 d is positive and below
// 256 d, which float holds exactly. With half a unit added, (v + 0.5) / d is at least 0.5 / d > 2^-15 away from every
// integer, and the two roundings (reciprocal, product) move it by at most 256 * 2^-23 = 2^-15.
inline int32_t divide_clip(int32_t v, int32_t d, float reciprocal) {
  v = clamp(v, -127 * d, 128 * d - 1);
  return (int32_t)(((float)(v + 128 * d) + 0.5f) * reciprocal) - 128;
}

inline int32_t integer_sqrt(int32_t n) {
  int32_t root = 0;
  while ((root + 1) * (root + 1) <= n) root++;
  return root;
}

// The divisor 16 isqrt(inputs) of a matrix product.
struct Divisor {
  int32_t value;
  float reciprocal;
  int log2; // -1 if it is not a power of two
  explicit Divisor(int inputs) : value(16 * integer_sqrt(inputs)), reciprocal(1.0f / (float)value), log2(-1) {
    for (int s = 0; s < 31; s++)
      if (value == 1 << s) log2 = s;
  }
};

} // namespace
} // namespace nanoegg
