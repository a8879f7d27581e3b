// One tile of a matrix product: a few vectors of outputs by a few members, all sums in registers. Written once here;
// an instruction set provides the vector operations as a struct `Vector`:
//
//   kLanes              outputs (int32 sums) per vector
//   kGroup              consecutive inputs that one instruction sums for each output
//   kPair               members whose inputs one operand holds: 1, or 2 for 2 by 2 products
//   kVectors, kMembers  the largest tile: kVectors * kLanes outputs by kMembers members
//   kBias               0x80 where the instruction multiplies unsigned by signed bytes, else 0
//   kChains             independent sums that keep the multiplier busy, for peak()
//   Sums, Bytes         register types of accumulators and operands
//   start(v)            Sums whose totals are v for each output
//   load(p)             kLanes * kGroup / kPair bytes of weights or of a row
//   inputs(x, second)   kGroup inputs of one member for all lanes; if kPair is 2, of two members
//   multiply_add(sums, weights, inputs)
//   store(out, sums, i) kLanes totals of member i of a pair, from kPair accumulators
//   reduce(sums)        the total over all lanes of multiply_add(sums, load(b), load(x))
//   ones(), flip(b)     only if kBias: bytes of 1; bytes b XOR 0x80
//
// Notable: dot products of unsigned by signed bytes take the weight as w + 128. The surplus 128 sum(x) is subtracted by
// starting the accumulators there, so no other code depends on it.
#pragma once

#include "kernels.h"
#include "tables.h"

namespace nanoegg {
namespace {

// Functions that look tables up, where an instruction set has nothing faster.
struct Tables {
  // The sum of EXP2[logits + 128].
  static uint32_t exp2_sum(const int8_t* logits, int vocab) {
    uint32_t total = 0;
    for (int j = 0; j < vocab; j++) total += (uint32_t)exp2_table[logits[j] + 128];
    return total;
  }

  // out[j] = EXP2[logits[j] + 128] for 256 logits.
  static void exp2(const int8_t* logits, uint32_t* out) {
    for (int j = 0; j < 256; j++) out[j] = (uint32_t)exp2_table[logits[j] + 128];
  }

  // out[i] = v[i] where bit i of the coins is 1, else -v[i], for 64 entries.
  static void flip(uint64_t coins, const int8_t* v, int8_t* out) {
    uint8_t mask[64];
    for (int i = 0; i < 8; i++) __builtin_memcpy(mask + 8 * i, coin_masks[coins >> 8 * i & 0xFF], 8);
    for (int i = 0; i < 64; i++) out[i] = (int8_t)(((uint8_t)v[i] ^ mask[i]) - mask[i]);
  }

  // out[i] = POW2[log2 - 128 - logits[i]], the index clipped to the table; n is a multiple of kPad.
  static void pow2(const int8_t* logits, size_t n, int32_t log2, int16_t* out) {
    for (size_t i = 0; i < n; i++) {
      int32_t index = log2 - 128 - logits[i];
      index = index < 0 ? 0 : index;
      out[i] = (int16_t)pow2_table[index > 255 ? 255 : index];
    }
  }
};

inline int32_t four_bytes(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return four;
}

// Makes the compiler assume that a vector register changes here, at no instruction. Needs an overload if Sums is not
// one register.
template <class T>
inline void hide(T& v) {
#if defined(__x86_64__)
  __asm__ volatile("" : "+v"(v));
#else
  __asm__ volatile("" : "+w"(v));
#endif
}

// The part of an instruction set that the kernels use: the packing (see Packed), the tile, and
//   multiply<NV, NM>(...)   raw products of NV vectors of outputs by NM members; x + m stride + g step is member m's
//                           group g of inputs
//   dot(b, x, n, sums)      sums[0] = b . x over n entries (a multiple of kPad); if kBias, sums[1] = sum x
//   sum(x, n)               sum x, only if kBias; likewise group_totals
//   exp2_sum, exp2, flip, pow2    see Tables
//   peak(rounds)            see Isa
template <class Vector>
struct VectorTile : Tables {
  using Sums = typename Vector::Sums;
  using Bytes = typename Vector::Bytes;
  static constexpr int kLanes = Vector::kLanes, kVectors = Vector::kVectors, kMembers = Vector::kMembers;
  static constexpr int kGroup = Vector::kGroup, kPair = Vector::kPair, kPanel = kLanes * kVectors;
  static constexpr uint8_t kBias = Vector::kBias;
  static constexpr int kBytes = kLanes * kGroup / kPair; // of one load
  // In a round, the kind of operand that is fewer is held in registers, and the other kind passes through one register;
  // otherwise the accumulators would not fit.
  static constexpr bool kHoldWeights = kVectors * kPair <= kMembers / kPair;

  // The loops over accumulators are unrolled completely, or they would not stay in registers.
  template <int NV, int NM>
  static void multiply(const uint8_t* panel, int groups, const int8_t* x, size_t stride, size_t step,
                       const int32_t* start, int32_t* raw) {
    constexpr int kRows = (NM + kPair - 1) / kPair, kColumns = NV * kPair;
    // An odd last member is paired with itself; the second half of its sums is not stored.
    const auto inputs = [&x, stride](int row) {
      const int first = row * kPair, second = first + kPair - 1;
      return Vector::inputs(x + first * stride, x + (second < NM ? second : first) * stride);
    };
    Sums acc[kRows][kColumns];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; c++) acc[r][c] = Vector::start(kBias ? start[r] : 0);
    for (int k = 0; k < groups; k++) {
      if constexpr (kHoldWeights) {
        Bytes w[kColumns];
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; c++) w[c] = Vector::load(panel + kBytes * c);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++) {
          const Bytes in = inputs(r);
#pragma GCC unroll 8
          for (int c = 0; c < kColumns; c++) acc[r][c] = Vector::multiply_add(acc[r][c], w[c], in);
        }
      } else {
        Bytes in[kRows];
#pragma GCC unroll 8
        for (int r = 0; r < kRows; r++) in[r] = inputs(r);
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; c++) {
          const Bytes w = Vector::load(panel + kBytes * c);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; r++) acc[r][c] = Vector::multiply_add(acc[r][c], w, in[r]);
        }
      }
      panel += kBytes * kColumns;
      x += step;
    }
#pragma GCC unroll 8
    for (int m = 0; m < NM; m++)
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) Vector::store(raw + m * kPanel + kLanes * v, acc[m / kPair] + kPair * v, m % kPair);
  }

  static void dot(const int8_t* b, const int8_t* x, size_t n, int32_t* sums) {
    Sums products = Vector::start(0);
    if constexpr (kBias != 0) {
      Sums total = Vector::start(0);
      for (size_t i = 0; i < n; i += kBytes) {
        const Bytes xs = Vector::load(x + i);
        products = Vector::multiply_add(products, Vector::flip(Vector::load(b + i)), xs);
        total = Vector::multiply_add(total, Vector::ones(), xs);
      }
      sums[1] = Vector::reduce(total);
      sums[0] = Vector::reduce(products) - 128 * sums[1];
    } else {
      for (size_t i = 0; i < n; i += kBytes)
        products = Vector::multiply_add(products, Vector::load(b + i), Vector::load(x + i));
      sums[0] = Vector::reduce(products);
    }
  }

  static int32_t sum(const int8_t* x, size_t n) {
    Sums total = Vector::start(0);
    for (size_t i = 0; i < n; i += kBytes) total = Vector::multiply_add(total, Vector::ones(), Vector::load(x + i));
    return Vector::reduce(total);
  }

  // totals[i] = the sum of row i of `rows` rows that lie in groups of kGroup bytes, a group of each row in turn.
  static void group_totals(const int8_t* x, int groups, size_t rows, int32_t* totals) {
    for (size_t i = 0; i < rows; i += kLanes) {
      Sums total = Vector::start(0);
      const int8_t* p = x + i * kGroup;
      for (int g = 0; g < groups; g++, p += rows * kGroup)
        total = Vector::multiply_add(total, Vector::ones(), Vector::load(p));
      Vector::store(totals + i, &total, 0);
    }
  }

  static uint64_t peak(uint64_t rounds) {
    constexpr int kChains = Vector::kChains;
    int8_t operands[2 * kBytes];
    __builtin_memset(operands, 3, kBytes);
    __builtin_memset(operands + kBytes, 5, kBytes);
    Bytes w = Vector::load(operands), x = Vector::load(operands + kBytes);
    Sums acc[kChains];
    // Without hide() the compiler would compute one chain, since all are the same.
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) {
      acc[i] = Vector::start(0);
      hide(acc[i]);
    }
    for (uint64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 24
      for (int i = 0; i < kChains; i++) {
        acc[i] = Vector::multiply_add(acc[i], w, x);
        hide(w);
        hide(x);
      }
    }
#pragma GCC unroll 24
    for (int i = 0; i < kChains; i++) hide(acc[i]);
    return rounds * kChains * kLanes * kGroup;
  }
};

} // namespace
} // namespace nanoegg
