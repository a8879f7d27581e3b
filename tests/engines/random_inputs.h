// Random and extreme inputs of the check program.
#pragma once

#include <cstring>
#include <vector>

#include "engine.h"

namespace nanoegg {

inline uint64_t random_state = 1;
inline uint64_t random_word() {
  uint64_t z = random_state += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}
inline int random_in(int low, int high) { return low + (int)(random_word() % (uint64_t)(high - low + 1)); }

// The number of ways in which fill() fills an array.
constexpr int kWays = 7;
// bound: of the magnitude. Maximal products of one sign saturate 16 bits if an instruction adds pairs in 16 bits.
inline void fill(int8_t* p, size_t n, int way, int bound = 127) {
  for (size_t i = 0; i < n; i++) {
    switch (way) {
      case 0: p[i] = (int8_t)random_in(-bound, bound); break;
      case 1: p[i] = (int8_t)bound; break;
      case 2: p[i] = (int8_t)-bound; break;
      case 3: p[i] = (int8_t)(i % 2 ? bound : -bound); break;
      case 4: p[i] = (int8_t)(random_word() & 1 ? bound : -bound); break;
      case 5: p[i] = (int8_t)random_in(-2, 2); break;
      default: p[i] = 0;
    }
  }
}
inline int random_way() { return random_in(0, 2) ? 0 : random_in(1, kWays - 1); }

// Rows at padded distances, as kernels expect them, from contiguous rows.
inline Buffer padded_rows(const int8_t* rows, size_t count, size_t width) {
  Buffer buffer(count * padded(width));
  for (size_t i = 0; i < count; i++) std::memcpy(buffer.as<int8_t>() + i * padded(width), rows + i * width, width);
  return buffer;
}

// A random model and its noise.
struct Random {
  Shape shape;
  std::vector<std::vector<int8_t>> leaves;
  std::vector<const int8_t*> params;
  std::vector<std::vector<uint32_t>> bases;
  Noise noise{};

  Random(Shape s, int rank, int shift, uint64_t perturbations, int way) : shape(s) {
    noise = {{(uint32_t)random_word(), (uint32_t)random_word()}, {}, rank, shift, perturbations};
    for (int leaf = 0; leaf < kLeaves; leaf++) {
      const int layers = leaf_layers(s, leaf);
      leaves.emplace_back((size_t)layers * leaf_rows(s, leaf) * leaf_cols(s, leaf));
      fill(leaves.back().data(), leaves.back().size(), way);
      bases.emplace_back();
      for (int i = 0; i < layers; i++) bases.back().push_back((uint32_t)random_word());
    }
    for (int leaf = 0; leaf < kLeaves; leaf++) {
      params.push_back(leaves[leaf].data());
      noise.base[leaf] = bases[leaf].data();
    }
  }
  Random(const Random&) = delete; // params and noise.base point into it
};

} // namespace nanoegg
