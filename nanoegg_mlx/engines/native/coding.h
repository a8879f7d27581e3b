// The range coder's steps (docs/compressed-format.md). core/range_coder.py is the definition.
//
// Notable: the 256 frequencies are summed in groups of 16. A search looks at 16 sums of groups and at the 16
// frequencies of a group. All loops have 16 rounds without branches, for the compiler to make vector code of.
#pragma once

#include "arithmetic.h"
#include "tables.h"

namespace nanoegg {
namespace {

constexpr int kCoderGroup = 16;

// sum of the first n of 16 values
inline uint32_t sum_of_first(const uint32_t* v, int n) {
  uint32_t sum = 0;
  for (int i = 0; i < kCoderGroup; i++) sum += i < n ? v[i] : 0;
  return sum;
}

// The i for which the sum of the first i of 16 values is at most `value`, and that of the first i + 1 is above it; the
// last one if there is none. Subtracts the sum of the first i from `value`.
inline int find(const uint32_t* v, uint32_t& value) {
  uint32_t ends[kCoderGroup], sum = 0;
  for (int i = 0; i < kCoderGroup; i++) ends[i] = sum += v[i];
  int found = 0;
  for (int i = 0; i < kCoderGroup - 1; i++) found += ends[i] <= value;
  value -= ends[found] - v[found];
  return found;
}

// The frequencies f of the next byte; their sum is 2^12 to 2^28.
struct Frequencies {
  alignas(64) uint32_t f[256];
  alignas(64) uint32_t groups[kCoderGroup];
  uint32_t total = 0;

  explicit Frequencies(const int8_t* logits) {
    Tile::exp2(logits, f);
    for (int g = 0; g < kCoderGroup; g++) {
      groups[g] = 0;
      for (int i = 0; i < kCoderGroup; i++) groups[g] += f[g * kCoderGroup + i];
      total += groups[g];
    }
  }

  // F(byte)
  uint32_t before(int byte) const {
    const int group = byte / kCoderGroup;
    return sum_of_first(groups, group) + sum_of_first(f + group * kCoderGroup, byte % kCoderGroup);
  }

  // The byte with F(byte) <= value < F(byte) + f(byte); value becomes F(byte).
  int at(uint32_t& value) const {
    uint32_t rest = value;
    const int group = find(groups, rest), first = group * kCoderGroup, byte = first + find(f + first, rest);
    value -= rest;
    return byte;
  }
};

constexpr uint64_t kRangeBottom = (uint64_t)1 << 56;

inline void encode_byte(Coder& c, const Frequencies& frequencies, int byte) {
  const uint64_t r = c.range / frequencies.total, step = r * frequencies.before(byte);
  c.low += step;
  if (c.low < step) carry(c);
  c.range = r * frequencies.f[byte];
  for (; c.range < kRangeBottom; c.range <<= 8, c.low <<= 8) c.to[c.at++] = (uint8_t)(c.low >> 56);
}

// Any stream has a result: what is read beyond its end is 0, and a value beyond the total is in its last byte.
inline uint8_t decode_byte(Coder& c, const Frequencies& frequencies) {
  const uint64_t r = c.range / frequencies.total, quotient = c.low / r, last = frequencies.total - 1;
  uint32_t value = (uint32_t)(quotient < last ? quotient : last);
  const int byte = frequencies.at(value);
  c.low -= r * value;
  c.range = r * frequencies.f[byte];
  for (; c.range < kRangeBottom; c.range <<= 8, c.at++) c.low = c.low << 8 | (c.at < c.size ? c.from[c.at] : 0);
  return (uint8_t)byte;
}

// Codes byte t of the lane, if it has one, with the logits (256,) of its prediction.
inline void code(Coder& c, bool decodes, size_t t, const int8_t* logits) {
  if (t >= c.length) return;
  const Frequencies frequencies(logits);
  if (decodes)
    c.text[t] = decode_byte(c, frequencies);
  else
    encode_byte(c, frequencies, c.text[t]);
}

} // namespace
} // namespace nanoegg
