// The network's parts on all members of a block, whether weights are perturbed or not (spec sections 4 and 5).
#pragma once

#include "coding.h"
#include "layers.h"
#include "products.h"

namespace nanoegg {
namespace {

// Each part reads and writes the block's buffers.
struct Network {
  const Block& b;
  const Shape& shape;
  const size_t row; // bytes between the members' rows
  const int rank, shift;

  explicit Network(const Block& block)
      : b(block),
        shape(block.model->shape),
        row(padded(block.model->shape.width)),
        rank(block.noise ? block.noise->rank : 0),
        shift(block.noise ? block.noise->shift : 0) {}

  const int8_t* vector(int leaf, int layer, int m) const {
    const int8_t* own = b.noise ? b.vectors + m * vector_rows(shape) * row : b.model->vectors;
    return own + vector_row(shape, leaf, layer) * row;
  }

  void normalise(const int8_t* x, int leaf, int layer) const {
    for (int m = 0; m < b.members; m++) norm(x + m * row, vector(leaf, layer, m), shape.width, b.y + m * row);
  }

  void product(int leaf, int layer, const int8_t* x, int8_t* out) const {
    if (stopped(b.stop)) return; // products of a wide model are slow, and the results are not used any more
    multiply({b.model->matrices[leaf][layer], x, b.members, out, b.noise ? b.factors : nullptr,
              b.noise ? factor_offset(shape, leaf, layer, rank) : 0, b.signs, rank, shift, b.start, b.projections});
  }

  void layer(int i) const {
    int8_t* h = b.h + (size_t)i * b.members * row;
    normalise(b.x, kLn1, i);
    product(kWf, i, b.y, b.fa);
    product(kUf, i, h, b.fb);
    for (int m = 0; m < b.members; m++)
      gate(b.fa + m * row, b.fb + m * row, vector(kBf, i, m), h + m * row, shape.width, b.g + m * row);
    product(kUh, i, b.g, b.fb);
    product(kWh, i, b.y, b.g);
    for (int m = 0; m < b.members; m++)
      recur(b.g + m * row, b.fb + m * row, vector(kBh, i, m), b.fa + m * row, shape.width, h + m * row, b.x + m * row);
    normalise(b.x, kLn2, i);
    product(kMlp0, i, b.y, b.mid);
    product(kMlp1, i, b.mid, b.y);
    add(b.x, b.y, b.members * row);
  }

  // Logits of the byte after token t: the target's score, or a step of the coder.
  void head(size_t t) const {
    normalise(b.x, kLnOut, 0);
    product(kHead, 0, b.y, b.out);
    for (int m = 0; m < b.members; m++) {
      const int8_t* logits = b.out + m * padded(shape.vocab);
      const size_t at = m * b.tokens + t;
      if (b.coders) code(b.coders[m], b.decodes, t, logits);
      if (b.logits) __builtin_memcpy(b.logits + at * shape.vocab, logits, shape.vocab);
      if (!b.targets) continue;
      b.scores[m] += log_likelihood(logits, shape.vocab, b.targets[at]);
      if (b.bits) b.bits[at] = exact_bits(logits, shape.vocab, b.targets[at]);
    }
  }
};

// Calls copy(a member's row of b.h, the same row of b.states) for every layer.
template <class Copy>
inline void for_each_state(const Block& b, Copy copy) {
  const int L = b.model->shape.layers, D = b.model->shape.width;
  for (int m = 0; m < b.members; m++)
    for (int layer = 0; layer < L; layer++)
      copy(b.h + ((size_t)layer * b.members + m) * padded(D), b.states + ((size_t)m * L + layer) * D);
}

} // namespace
} // namespace nanoegg
