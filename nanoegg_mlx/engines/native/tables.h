// The staircases of spec sections 1 and 5 as tables, made when the library is loaded (tables.cpp).
#pragma once

#include <stdint.h>

namespace nanoegg {

// The truncated normal, by the float exponent and five mantissa bits of a draw's distance from its end of the range;
// an entry is: place of the step in the bucket << 16 | value above << 8 | value below.
constexpr int kNormalBuckets = 23 * 32;
extern uint32_t normal_lookup[2 * kNormalBuckets];

extern int32_t exp2_table[256]; // EXP2 of spec section 5
extern double exp2_exact[256];  // 2^(i/16), unrounded
extern int32_t pow2_table[256]; // POW2 of docs/activations.md

// coin_masks[coins][i]: 0 if bit i of the coins is 1, else 255.
extern uint8_t coin_masks[256][8];

// LOG2 of spec section 5 for 16 <= s <= 256 EXP2[255].
int32_t log2_sixteenths(uint32_t s);
double exact_log2(double s);

} // namespace nanoegg
