// Packing of what a block of cohorts leaves for the votes, and the sums over it (docs/activations.md, "Votes").
//
// Notable: a vote is an int8 product with K = cohorts x tokens. Both its factors are packed in groups of k, as dot
// products read them, at the moment when they are computed: nothing is transposed. The coins are kept as bits and
// become rows of w xi, a chunk of 64 entries and some thousand k at a time, just before the products that read them.
#pragma once

#include "arithmetic.h"
#include "products.h"

namespace nanoegg {
namespace {

using Word __attribute__((may_alias)) = uint32_t;

// out = 64 entries of a group of rows (kGroup, ·), a group of each entry in turn, XOR bias.
inline void interleave(const int8_t* __restrict rows, size_t stride, uint8_t bias, uint8_t* __restrict out) {
  constexpr int G = Tile::kGroup;
  const uint8_t* r = (const uint8_t*)rows;
  if constexpr (G == 1) {
    for (size_t i = 0; i < kPad; i++) out[i] = r[i] ^ bias;
  } else {
    Word* words = (Word*)out;
    for (int h = 0; h < G / 4; h++, r += 4 * stride) {
      const uint8_t *r1 = r + stride, *r2 = r1 + stride, *r3 = r2 + stride;
      for (size_t i = 0; i < kPad; i++)
        words[i * (G / 4) + h] = (r[i] | r1[i] << 8 | r2[i] << 16 | (uint32_t)r3[i] << 24) ^ bias * 0x01010101u;
    }
  }
}

// Packs group g of k for `entries` entries into panels. The rows of the group are `stride` apart.
inline void pack_panels(const int8_t* group, size_t stride, int entries, size_t depth, size_t g, uint8_t* packed) {
  constexpr int G = Tile::kGroup, P = Tile::kPanel;
  const size_t lanes_total = whole_lanes(entries);
  for (size_t n = 0; n < lanes_total; n += kPad) {
    alignas(64) uint8_t part[kPad * G];
    interleave(group + n, stride, Tile::kBias, part);
    for (size_t i = n; i < lanes_total && i < n + kPad; i += P) {
      const size_t width = smaller(P, lanes_total - i);
      uint8_t* to = packed + i * depth + g * width * G;
      if (width == P)
        __builtin_memcpy(to, part + (i - n) * G, P * G);
      else
        __builtin_memcpy(to, part + (i - n) * G, width * G);
    }
  }
}

// Packs group g of k for `entries` entries as rows, in chunks of kPad.
inline void pack_rows(const int8_t* group, size_t stride, int entries, size_t depth, size_t g, int8_t* packed) {
  for (size_t n = 0; n < padded(entries); n += kPad)
    interleave(group + n, stride, 0, (uint8_t*)packed + n * depth + g * kPad * Tile::kGroup);
}

// out = (even + odd) >> 1, in bytes: as unsigned numbers (with the sign bit inverted) what both share, and half of
// where they differ. (GCC 12 miscompiles the usual idiom of a mean of bytes on Arm.)
inline void mean(const int8_t* __restrict even, const int8_t* __restrict odd, size_t n, int8_t* __restrict out) {
  for (; n; n -= kPad, even += kPad, odd += kPad, out += kPad) {
    for (size_t j = 0; j < kPad; j++) {
      const uint8_t a = (uint8_t)even[j] ^ 0x80, b = (uint8_t)odd[j] ^ 0x80;
      out[j] = (int8_t)((uint8_t)((a & b) + ((uint8_t)(a ^ b) >> 1)) ^ 0x80);
    }
  }
}

void coin_rows(const uint64_t* coins, const int8_t* w, size_t count, int8_t* rows, int32_t* totals) {
  constexpr size_t G = Tile::kGroup, kMost = 256; // of so many k the sum fits int16
  alignas(64) int8_t group[G * kPad], same[kPad];
  __builtin_memset(totals, 0, kPad * sizeof *totals);
  for (size_t first = 0; first < count; first += kMost) {
    const size_t end = smaller(first + kMost, count);
    int16_t sums[kPad] = {};
    for (size_t k = first; k < end; k += G, rows += kPad * G) {
      for (size_t j = 0; j < G; j++) {
        __builtin_memset(same, w[k + j], kPad);
        Tile::flip(coins[k + j], same, group + j * kPad);
        for (size_t i = 0; i < kPad; i++) sums[i] = (int16_t)(sums[i] + group[j * kPad + i]);
      }
      interleave(group, kPad, 0, (uint8_t*)rows);
    }
    for (size_t i = 0; i < kPad; i++) totals[i] += sums[i];
  }
}

void coin_digits(const uint64_t* coins, size_t coins_stride, const int8_t* w, size_t w_stride, int samples,
                 size_t count, int8_t* low, int8_t* high) {
  constexpr size_t G = Tile::kGroup;
  alignas(64) int8_t lows[G * kPad], highs[G * kPad], same[kPad], signed_w[kPad];
  for (size_t k = 0; k < count; k += G, low += kPad * G, high += kPad * G) {
    for (size_t g = 0; g < G; g++) {
      int16_t sums[kPad] = {};
      for (int j = 0; j < samples; j++) {
        __builtin_memset(same, w[j * w_stride + k + g], kPad);
        Tile::flip(coins[j * coins_stride + k + g], same, signed_w);
        for (size_t i = 0; i < kPad; i++) sums[i] = (int16_t)(sums[i] + signed_w[i]);
      }
      for (size_t i = 0; i < kPad; i++) {
        const Digits d = digits(sums[i]);
        lows[g * kPad + i] = d.low;
        highs[g * kPad + i] = d.high;
      }
    }
    interleave(lows, kPad, 0, (uint8_t*)low);
    interleave(highs, kPad, 0, (uint8_t*)high);
  }
}

template <class T>
inline void row_totals_of(const int8_t* rows, size_t count, int32_t* totals) {
  constexpr size_t G = T::kGroup;
  if constexpr (T::kBias != 0) {
    T::group_totals(rows, whole_groups(count), kPad, totals);
  } else {
    __builtin_memset(totals, 0, kPad * sizeof *totals);
    for (size_t k = 0; k < count; k += G, rows += kPad * G)
      for (size_t i = 0; i < kPad; i++)
        for (size_t j = 0; j < G; j++) totals[i] += rows[i * G + j];
  }
}

void row_totals(const int8_t* rows, size_t count, int32_t* totals) { row_totals_of<Tile>(rows, count, totals); }

void sum_products(const int8_t* rows, const int32_t* totals, int begin, int n, const uint8_t* x, int entries,
                  size_t depth, size_t first, size_t count, int32_t scale, int64_t* z) {
  constexpr size_t G = Tile::kGroup;
  int32_t start[kPad];
  for (int i = 0; i < n; i++) start[i] = accumulator_start(totals[begin + i]);
  // A panel's groups are as far apart as it is wide, and the last panel may be narrower.
  const Members members{rows + begin * G, G, kPad * G, n};
  const auto add = [&](int from, int to) {
    const Panels part{x + from * depth + first * smaller(Tile::kPanel, to - from), to - from, whole_groups(count),
                      depth};
    for_each_tile(part, members, start, [&](int m, int o, const int32_t* raw) {
      int64_t* row = z + (size_t)m * entries + from + o;
      const int some = (int)smaller(Tile::kPanel, entries - from - o);
      if (some == Tile::kPanel)
        for (int i = 0; i < Tile::kPanel; i++) row[i] += (int64_t)scale * raw[i];
      else
        for (int i = 0; i < some; i++) row[i] += (int64_t)scale * raw[i];
    });
  };
  const int lanes_total = whole_lanes(entries), whole = lanes_total / Tile::kPanel * Tile::kPanel;
  if (whole) add(0, whole);
  if (whole < lanes_total) add(whole, lanes_total);
}

void sum_squares(const uint8_t* x, int entries, size_t depth, size_t count, const int8_t* w, int64_t* s) {
  constexpr size_t G = Tile::kGroup, kRow = Tile::kPanel * G, kMost = 16; // of so many squares the sum fits uint32
  const size_t groups = whole_groups(count), lanes_total = whole_lanes(entries);
  for (size_t n = 0; n < lanes_total; n += Tile::kPanel) {
    const size_t width = smaller(Tile::kPanel, lanes_total - n);
    const uint8_t* p = x + n * depth;
    uint64_t totals[kRow] = {};
    for (size_t first = 0; first < groups; first += kMost) {
      uint32_t sums[kRow] = {};
      const size_t end = smaller(first + kMost, groups);
      for (size_t g = first; g < end; g++, p += width * G) {
        alignas(64) int8_t ws[kRow], xs[kRow] = {};
        for (int i = 0; i < Tile::kPanel; i++) __builtin_memcpy(ws + i * G, w + g * G, G);
        __builtin_memcpy(xs, p, width * G);
        for (size_t i = 0; i < kRow; i++) {
          const int16_t v = (int16_t)((int8_t)((uint8_t)xs[i] ^ Tile::kBias) * ws[i]);
          sums[i] += (uint32_t)((int32_t)v * v);
        }
      }
      for (size_t i = 0; i < kRow; i++) totals[i] += sums[i];
    }
    for (size_t i = 0; i < smaller(width, entries - n); i++)
      for (size_t j = 0; j < G; j++) s[n + i] += (int64_t)totals[i * G + j];
  }
}

void sum_weighted_squares(const uint8_t* x, int entries, size_t depth, size_t count, const int32_t* q, int64_t* s) {
  constexpr size_t G = Tile::kGroup;
  const size_t groups = whole_groups(count), lanes_total = whole_lanes(entries);
  for (size_t n = 0; n < lanes_total; n += Tile::kPanel) {
    const size_t width = smaller(Tile::kPanel, lanes_total - n), some = smaller(width, entries - n);
    const uint8_t* p = x + n * depth;
    int64_t totals[Tile::kPanel] = {};
    for (size_t g = 0; g < groups; g++, p += width * G) {
      const int32_t* weights = q + g * G;
      for (size_t i = 0; i < some; i++) {
        for (size_t j = 0; j < G; j++) {
          const int32_t v = (int8_t)(p[i * G + j] ^ Tile::kBias);
          totals[i] += (int64_t)weights[j] * (v * v);
        }
      }
    }
    for (size_t i = 0; i < some; i++) s[n + i] += totals[i];
  }
}

void sum_by_byte(const uint64_t* coins, const int8_t* w, const uint8_t* bytes, size_t count, int n, size_t stride,
                 int64_t* z) {
  const auto add = [](int64_t* __restrict row, uint64_t word, int64_t credit, int entries) {
    for (int i = 0; i < entries; i++) row[i] += word >> i & 1 ? credit : -credit;
  };
  for (size_t k = 0; k < count; k++) {
    int64_t* row = z + bytes[k] * stride;
    if (n == (int)kCoins)
      add(row, coins[k], w[k], kCoins);
    else
      add(row, coins[k], w[k], n);
  }
}

} // namespace
} // namespace nanoegg
