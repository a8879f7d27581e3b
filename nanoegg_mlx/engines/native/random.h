// Random numbers: Threefry-2x32 (spec section 1) and the truncated normal, as plain loops that the compiler turns into
// vector code.
#pragma once

#include "arithmetic.h"
#include "tables.h"

namespace nanoegg {
namespace {

inline uint32_t rotate(uint32_t x, int r) { return x << r | x >> (32 - r); }

// The 20 rounds on counter words (a, b) to which the first two keys were added; key[2] is their XOR with a constant.
inline void threefry(const uint32_t* key, uint32_t& a, uint32_t& b) {
  const uint32_t k0 = key[0], k1 = key[1], k2 = key[2];
  const auto round = [&a, &b](int r) { a += b, b = rotate(b, r) ^ a; };
  round(13), round(15), round(26), round(6), a += k1, b += k2 + 1;
  round(17), round(29), round(16), round(24), a += k2, b += k0 + 2;
  round(13), round(15), round(26), round(6), a += k0, b += k1 + 3;
  round(17), round(29), round(16), round(24), a += k1, b += k2 + 4;
  round(13), round(15), round(26), round(6), a += k2, b += k0 + 5;
}

constexpr size_t kDraws = 512; // drawn at a time, a multiple of 16
inline size_t whole_vectors(size_t n) { return (n + 15) / 16 * 16; }

// out[i] = the truncated normal of m[i], by the lookup of tables.cpp: bucket from the float's high bits, place in the
// bucket from the 16 bits below. `whole` is whole_vectors(count), at most kDraws.
inline void look_up(const uint32_t* __restrict m, size_t count, size_t whole, int8_t* __restrict out) {
  uint32_t entries[kDraws], offsets[kDraws];
  for (size_t i = 0; i < whole; i++) {
    const uint32_t side = m[i] >> 22;
    const int32_t t = (int32_t)(side ? m[i] ^ 0x7FFFFFu : m[i]);
    const float f = (float)(t + 1);
    uint32_t bits;
    __builtin_memcpy(&bits, &f, sizeof bits);
    entries[i] = side * kNormalBuckets + ((bits - 0x3F800000u) >> 18);
    offsets[i] = bits >> 2 & 0xFFFF;
  }
  // A loop of its own, so that it can become gathers.
  for (size_t i = 0; i < whole; i++) {
    const uint32_t entry = normal_lookup[entries[i]];
    entries[i] = entry >> (offsets[i] >= entry >> 16 ? 8u : 0u);
  }
  for (size_t i = 0; i < count; i++) out[i] = (int8_t)entries[i];
}

void normals(const uint32_t* m, size_t count, int8_t* out) {
  uint32_t chunk[kDraws] = {};
  for (size_t done = 0; done < count; done += kDraws) {
    const size_t n = smaller(kDraws, count - done);
    __builtin_memcpy(chunk, m + done, n * sizeof *m);
    look_up(chunk, n, whole_vectors(n), out + done);
  }
}

void draw(Key key, uint32_t start, size_t count, int8_t* out) {
  const uint32_t keys[3] = {key.hi, key.lo, key.hi ^ key.lo ^ 0x1BD11BDAu};
  uint32_t m[kDraws];
  for (size_t done = 0; done < count; done += kDraws) {
    const size_t n = smaller(kDraws, count - done), whole = whole_vectors(n);
    const uint32_t first = start + (uint32_t)done;
    for (size_t i = 0; i < whole; i++) {
      uint32_t a = keys[0], b = first + (uint32_t)i + keys[1];
      threefry(keys, a, b);
      m[i] = (a ^ b) >> 9;
    }
    look_up(m, n, whole, out + done);
  }
}

// words[i] = block first + i of the key, its first word in the low half; writes whole_vectors(count) of them.
void coins(Key key, uint64_t first, size_t count, uint64_t* words) {
  const uint32_t keys[3] = {key.hi, key.lo, key.hi ^ key.lo ^ 0x1BD11BDAu};
  for (size_t done = 0; done < count; done += 16, words += 16) {
    const uint32_t low = (uint32_t)(first + done), high = (uint32_t)((first + done) >> 32);
    for (uint32_t i = 0; i < 16; i++) {
      const uint32_t counter = low + i;
      uint32_t a = high + (counter < low) + keys[0], b = counter + keys[1];
      threefry(keys, a, b);
      words[i] = (uint64_t)b << 32 | a;
    }
  }
}

} // namespace
} // namespace nanoegg
