// Pieces of one buffer, and the buffers of a block's network.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace nanoegg {

// Hands out pieces of one buffer. Without a base it only adds up their sizes, so that one list of pieces serves twice.
struct Carver {
  uint8_t* base = nullptr;
  size_t used = 0;
  template <class T>
  void take(T*& p, size_t count) {
    if (base) p = reinterpret_cast<T*>(base + used);
    used += padded(count * sizeof(T));
  }
};

inline void carve(Carver& c, Block& b, const Shape& s, int members, const Noise* noise) {
  const size_t m = members, row = padded(s.width), rank = noise ? noise->rank : 1;
  for (int8_t** p : {&b.x, &b.y, &b.fa, &b.fb, &b.g}) c.take(*p, m * row);
  c.take(b.mid, m * padded(4 * s.width));
  c.take(b.out, m * padded(s.vocab));
  c.take(b.h, m * s.layers * row);
  c.take(b.start, m);
  c.take(b.projections, m * rank);
  c.take(b.signs, m);
  c.take(b.factors, m);
  if (!noise) return;
  uint64_t draws = 0;
  for (int leaf = 0; leaf < kLeaves; leaf++) draws = std::max(draws, noise_length(s, leaf, noise->rank));
  c.take(b.slot_draws, draws);
  c.take(b.vectors, m * vector_rows(s) * row);
  c.take(b.slots, (m / 2 + 1) * slot_bytes(s, noise->rank));
}

} // namespace nanoegg
