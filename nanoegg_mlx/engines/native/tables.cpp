// The names of the leaves, and the tables of tables.h, made when the library is loaded.
//
// Notable: the steps of the normal come from core/normal_thresholds.json (write_normal_steps.py makes normal_steps.h of
// it when the library is built), EXP2, LOG2 and POW2 from exact integers. A draw m in [0, 2^23) is looked up by its
// distance t to the nearer end of the range, because the steps lie densely there. The bucket is the exponent and five
// bits of mantissa of float(t + 1). No bucket holds more than one step (checked when the table is made), so an entry is
// that step's place in the bucket and the values on its two sides.
#include "tables.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "model.h"
#include "normal_steps.h"

namespace nanoegg {

const char* const kLeafNames[kLeaves] = {
    "blocks.att.Uf",
    "blocks.att.Uh",
    "blocks.att.Wf",
    "blocks.att.Wh",
    "blocks.att.bf",
    "blocks.att.bh",
    "blocks.ln1.weight",
    "blocks.ln2.weight",
    "blocks.mlp.0.weight",
    "blocks.mlp.1.weight",
    "emb",
    "head",
    "ln_out.weight",
};

uint32_t normal_lookup[2 * kNormalBuckets];
int32_t exp2_table[256];
double exp2_exact[256];
int32_t pow2_table[256];
uint8_t coin_masks[256][8];

namespace {

// log2_steps[i] = the smallest s with LOG2(s) > i, up to the largest sum of EXP2, 256 EXP2[255] < 2^28.
constexpr int kLog2Steps = 382;
uint32_t log2_steps[kLog2Steps];

// floor(log2(s^16)) for 1 <= s < 2^30, in integers.
int log2_of_power(uint32_t s) {
  uint32_t limbs[15] = {1};
  for (int i = 0; i < 16; i++) {
    uint64_t carry = 0;
    for (uint32_t& limb : limbs) {
      carry += (uint64_t)limb * s;
      limb = (uint32_t)carry;
      carry >>= 32;
    }
  }
  int top = 14;
  while (limbs[top] == 0) top--;
  int bit = 31;
  while (!(limbs[top] >> bit)) bit--;
  return 32 * top + bit;
}

// The smallest s with s^16 >= 2^exponent. The float is only where the search begins.
uint32_t root16(int exponent) {
  uint32_t s = (uint32_t)std::ceil(std::exp2(exponent / 16.0));
  while (s > 1 && log2_of_power(s - 1) >= exponent) s--;
  while (log2_of_power(s) < exponent) s++;
  return s;
}

int32_t normal_of(uint32_t m) {
  const auto above = std::upper_bound(std::begin(kNormalIndex), std::end(kNormalIndex), m);
  return above == std::begin(kNormalIndex) ? kNormalFirst : kNormalValue[above - std::begin(kNormalIndex) - 1];
}

uint32_t float_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  return bits;
}

// The entry of the distances t with float(t + 1) in `bucket`; 0 if there are none.
uint32_t normal_entry(uint32_t side, uint32_t bucket) {
  const double scale = std::ldexp(1.0, bucket / 32);
  const double low = scale * (1 + bucket % 32 / 32.0), high = scale * (1 + (bucket % 32 + 1) / 32.0);
  const uint32_t first = (uint32_t)std::ceil(low) - 1;
  const uint32_t end = std::min((uint32_t)std::ceil(high) - 1, 1u << 22);
  if (first >= end) return 0;
  const auto value = [side](uint32_t t) { return normal_of(side ? (1u << 23) - 1 - t : t); };
  const int32_t below = value(first), above = value(end - 1);
  uint32_t offset = 0;
  if (above != below) {
    // The one place where the value changes, by bisection.
    uint32_t a = first, b = end - 1;
    while (b - a > 1) {
      const uint32_t mid = (a + b) / 2;
      (value(mid) == below ? a : b) = mid;
    }
    if (value(b) != above) std::abort();
    offset = float_bits((float)(b + 1)) >> 2 & 0xFFFF;
  }
  return offset << 16 | (uint32_t)(uint8_t)above << 8 | (uint8_t)below;
}

struct Tables {
  Tables() {
    // LOG2(s) = floor(16 log2(s / 16)) = floor(log2(s^16)) - 64, EXP2[i] = floor(2^((64 + i) / 16)).
    for (int i = 0; i < kLog2Steps; i++) log2_steps[i] = root16(64 + i + 1);
    for (int i = 0; i < 256; i++) {
      exp2_exact[i] = std::ldexp(std::exp2(i % 16 / 16.0), i / 16);
      exp2_table[i] = (int32_t)root16(64 + i) - (i % 16 != 0); // exact at whole octaves, else rounded up
    }
    for (int i = 0; i < 256; i++) {
      // floor(2^14 2^(-i/16)), halved and rounded. The only tie, 1/2 at 14 octaves, rounds to 0.
      const int32_t twice = i <= 224 ? (int32_t)root16(224 - i) - (i % 16 != 0) : 0;
      pow2_table[i] = i == 224 ? 0 : (twice + 1) / 2;
      for (int bit = 0; bit < 8; bit++) coin_masks[i][bit] = i >> bit & 1 ? 0 : 255;
    }
    for (uint32_t side = 0; side < 2; side++)
      for (uint32_t bucket = 0; bucket <= 22 * 32; bucket++)
        normal_lookup[side * kNormalBuckets + bucket] = normal_entry(side, bucket);
  }
} tables;

} // namespace

int32_t log2_sixteenths(uint32_t s) {
  return (int32_t)(std::upper_bound(std::begin(log2_steps), std::end(log2_steps), s) - std::begin(log2_steps));
}

double exact_log2(double s) { return std::log2(s); }

} // namespace nanoegg
