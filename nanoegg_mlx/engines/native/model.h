// The model's shapes, a member's noise, and how both lie in memory.
//
// Notable: the files compiled for one instruction set (isa_*.cpp and the headers they include) use this header, other
// headers of its kind, and plain pointers; no function of the standard library. The linker keeps one copy of an inline
// function for the whole program. If that copy came from a file compiled with AVX-512, the program would crash on
// processors without it. For the same reason the helpers below are `static inline`: each file has its own copy.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace nanoegg {

// Leaves of the parameter tree in the order of spec section 2.
enum Leaf : int { kUf, kUh, kWf, kWh, kBf, kBh, kLn1, kLn2, kMlp0, kMlp1, kEmb, kHead, kLnOut, kLeaves };

extern const char* const kLeafNames[kLeaves];

// Every activation row, noise factor and vector is padded with zeros to a multiple of this many entries, so that the
// vector loops have no tails. The padding stays zero through the network, except where a comment states otherwise.
constexpr size_t kPad = 64;
static inline size_t padded(size_t n) { return (n + kPad - 1) / kPad * kPad; }

struct Shape {
  int vocab, width, layers;
};
static inline bool is_matrix(int leaf) { return leaf < kBf || (leaf >= kMlp0 && leaf <= kHead); }
static inline bool is_layered(int leaf) { return leaf < kEmb; }
static inline int leaf_layers(const Shape& s, int leaf) { return is_layered(leaf) ? s.layers : 1; }
// Outputs of a matrix; length of a vector.
static inline int leaf_rows(const Shape& s, int leaf) {
  return leaf == kMlp0 ? 4 * s.width : leaf == kEmb || leaf == kHead ? s.vocab : s.width;
}
// Inputs of a matrix; 1 for a vector.
static inline int leaf_cols(const Shape& s, int leaf) {
  return !is_matrix(leaf) ? 1 : leaf == kMlp1 ? 4 * s.width : s.width;
}
static inline size_t leaf_size(const Shape& s, int leaf) {
  return (size_t)leaf_layers(s, leaf) * leaf_rows(s, leaf) * leaf_cols(s, leaf);
}

struct Key {
  uint32_t hi, lo;
};

// Everything that decides a member's perturbation (spec section 3).
struct Noise {
  Key key;                       // key(seed)
  const uint32_t* base[kLeaves]; // base[leaf][layer], first word of fold_in(leaf_key, true_epoch)
  int rank;
  int shift;              // 4 + sigma_shift, at most 31: a larger shift of an int32 has the same result
  uint64_t perturbations; // num_perturbations; 0: each pair has noise of its own
};
static inline uint64_t noise_pair(const Noise& noise, uint64_t member) {
  return (noise.perturbations ? member % noise.perturbations : member) >> 1;
}
static inline uint32_t noise_start(uint32_t base, uint64_t pair64, uint64_t length) {
  const uint32_t pair = (uint32_t)pair64;
  const uint32_t hash = ((pair >> 16) ^ pair) * 0x45D9F3Bu;
  const uint32_t start = (base ^ hash) & ((1u << 30) - 1);
  const uint32_t last = (uint32_t)((1u << 30) - length);
  return start < last ? start : last;
}
static inline uint64_t noise_length(const Shape& s, int leaf, int rank) {
  return is_matrix(leaf) ? (uint64_t)(leaf_rows(s, leaf) + leaf_cols(s, leaf)) * rank
                         : 2 * (uint64_t)leaf_rows(s, leaf);
}

// Low-rank factors of one pair, in its slot of a block's noise: for each matrix, `rank` planes B of padded(inputs)
// bytes, then `rank` planes A of padded(outputs).
static inline size_t factor_bytes(const Shape& s, int leaf, int rank) {
  return rank * (padded(leaf_cols(s, leaf)) + padded(leaf_rows(s, leaf)));
}
static inline size_t factor_offset(const Shape& s, int leaf, int layer, int rank) {
  size_t in_layer = 0, per_layer = 0, after = 0;
  for (int i = 0; i < kLeaves; i++) {
    if (!is_matrix(i)) continue;
    const size_t bytes = factor_bytes(s, i, rank);
    if (is_layered(i)) {
      if (i < leaf) in_layer += bytes;
      per_layer += bytes;
    } else if (i < leaf) {
      after += bytes;
    }
  }
  return is_layered(leaf) ? layer * per_layer + in_layer : s.layers * per_layer + after;
}
static inline size_t slot_bytes(const Shape& s, int rank) {
  return factor_offset(s, kHead, 0, rank) + factor_bytes(s, kHead, rank);
}

// Vectors lie as rows of padded(width): bf, bh, ln1, ln2 of each layer, ln_out last.
static inline size_t vector_row(const Shape& s, int leaf, int layer) {
  return leaf == kLnOut ? 4 * (size_t)s.layers : 4 * (size_t)layer + (leaf - kBf);
}
static inline size_t vector_rows(const Shape& s) { return 4 * (size_t)s.layers + 1; }

// A matrix packed for one instruction set's dot product: panels of `panel` outputs (the last one narrower, a multiple
// of `lanes`); in a panel, for each group of `group` consecutive inputs, `group` bytes of each output in turn.
struct Packed {
  const uint8_t* data;
  int rows, cols;
};

struct Model {
  Shape shape;
  const Packed* matrices[kLeaves]; // [layer]; none for emb, which is only looked up
  const int8_t* emb;               // (V, padded(D))
  const int8_t* vectors;           // (vector_rows, padded(D))
};

} // namespace nanoegg
