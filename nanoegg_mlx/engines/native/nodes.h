// The node vectors that are nudged, their coins, and the inputs that are kept for the votes (docs/activations.md).
#pragma once

#include "model.h"

namespace nanoegg {

// Those of a layer, in order; before the first layer comes emb, after the last one head.
enum Node : int { kNodeF, kNodeC, kNodeA, kNodeB, kNodeEmb, kNodeHead };

static inline int node_size(const Shape& s, int node) {
  return node == kNodeA ? 4 * s.width : node == kNodeHead ? s.vocab : s.width;
}

// A Threefry block has the coins of 64 entries.
constexpr size_t kCoins = 64;
static_assert(kCoins == kPad, "a padded row must have whole blocks of coins");
static inline size_t coin_blocks(const Shape& s, int node) { return padded(node_size(s, node)) / kCoins; }
// The number of a node's first block among those of a token; layer is ignored outside the layers.
static inline size_t first_coin_block(const Shape& s, int node, int layer) {
  const size_t d = coin_blocks(s, kNodeF), a = coin_blocks(s, kNodeA), per_layer = 3 * d + a;
  switch (node) {
    case kNodeEmb: return 0;
    case kNodeHead: return d + s.layers * per_layer;
    case kNodeF: return d + layer * per_layer;
    case kNodeC: return 2 * d + layer * per_layer;
    case kNodeA: return 3 * d + layer * per_layer;
    default: return 3 * d + a + layer * per_layer;
  }
}
static inline size_t coin_blocks_per_token(const Shape& s) {
  return first_coin_block(s, kNodeHead, 0) + coin_blocks(s, kNodeHead);
}

// The inputs of a layer's matrices by their names in docs/activations.md; y of layer L is the head's input. The state
// is the one before the step.
enum Input : int { kInputY, kInputState, kInputG, kInputQ, kInputA };
static inline int input_size(const Shape& s, int input) { return input == kInputA ? 4 * s.width : s.width; }
// Where an input begins among all inputs, each with padded(D) entries, or 4 padded(D).
static inline size_t input_offset(const Shape& s, int input, int layer) {
  return (8 * (size_t)layer + input) * padded(s.width);
}
static inline size_t all_inputs(const Shape& s) { return (8 * (size_t)s.layers + 1) * padded(s.width); }

} // namespace nanoegg
