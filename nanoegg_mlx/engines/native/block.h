// A block of members through all its tokens (spec sections 3 to 5), and the table of an instruction set's kernels.
//
// A file isa_*.cpp switches its instruction set on, defines a struct `Tile` (most by the template of tile.h), and
// includes this header. So the network is written once and compiled once per instruction set. All of it is plain loops
// over padded rows, which the compiler makes vector code of, except `Tile`.
//
// Notable: the noise of a pair is drawn once for both members and the whole epoch. Vectors, whose noise is dense, are
// perturbed once per member.
#pragma once

#include "network.h"
#include "nudge.h"
#include "random.h"

namespace nanoegg {
namespace {

// Perturbs one vector for members [first, end), which share the noise that begins at draw `start`.
inline void perturb_vector(const Block& b, int leaf, int layer, int first, int end, uint32_t start) {
  const Shape& shape = b.model->shape;
  const size_t row = padded(shape.width), at = vector_row(shape, leaf, layer);
  const int8_t* v = b.model->vectors + at * row;
  const int rows = leaf_rows(shape, leaf);
  draw(b.noise->key, start, 2 * (size_t)rows, b.slot_draws);
  for (int m = first; m < end; m++) {
    int8_t* out = b.vectors + (m * vector_rows(shape) + at) * row;
    for (int i = 0; i < rows; i++) {
      const int32_t e = b.signs[m] * b.slot_draws[2 * i] * b.slot_draws[2 * i + 1];
      out[i] = (int8_t)clip(v[i] + (e >> b.noise->shift));
    }
  }
}

// Draws one matrix's factors: `rank` planes B, then `rank` planes A (see factor_offset).
inline void draw_factors(const Block& b, int leaf, uint32_t start, int8_t* planes) {
  const int rows = leaf_rows(b.model->shape, leaf), cols = leaf_cols(b.model->shape, leaf), rank = b.noise->rank;
  int8_t* a = planes + rank * padded(cols);
  if (rank == 1) {
    draw(b.noise->key, start, cols, planes);
    draw(b.noise->key, start + cols, rows, a);
    return;
  }
  draw(b.noise->key, start, (size_t)(cols + rows) * rank, b.slot_draws);
  const int8_t* d = b.slot_draws;
  for (int i = 0; i < cols; i++)
    for (int r = 0; r < rank; r++) planes[r * padded(cols) + i] = *d++;
  for (int i = 0; i < rows; i++)
    for (int r = 0; r < rank; r++) a[r * padded(rows) + i] = *d++;
}

// Draws the factors of every pair in the block, and perturbs the members' vectors.
void draw_noise(const Block& b) {
  const Shape& shape = b.model->shape;
  const Noise& noise = *b.noise;
  int8_t* slot = (int8_t*)b.slots;
  for (int m = 0, end; m < b.members; m = end, slot += slot_bytes(shape, noise.rank)) {
    const uint64_t pair = noise_pair(noise, b.first_member + m);
    for (end = m; end < b.members && noise_pair(noise, b.first_member + end) == pair; end++) {
      b.signs[end] = (b.first_member + end) & 1 ? -1 : 1;
      b.factors[end] = slot;
    }
    for (int leaf = 0; leaf < kLeaves; leaf++) {
      for (int layer = 0; layer < leaf_layers(shape, leaf); layer++) {
        if (stopped(b.stop)) return;
        const uint32_t start = noise_start(noise.base[leaf][layer], pair, noise_length(shape, leaf, noise.rank));
        if (is_matrix(leaf))
          draw_factors(b, leaf, start, slot + factor_offset(shape, leaf, layer, noise.rank));
        else
          perturb_vector(b, leaf, layer, m, end, start);
      }
    }
  }
}

inline void embed_row(const int8_t* __restrict e, const int8_t* __restrict b, int32_t u, int shift, size_t n,
                      int8_t* __restrict x) {
  for (; n; n -= kPad, e += kPad, b += kPad, x += kPad)
    for (size_t j = 0; j < kPad; j++) x[j] = (int8_t)clip(e[j] + ((b[j] * u) >> shift));
}

// x (members, padded(D)) = the embeddings of the members' bytes at token t; byte 0 zeroes the member's state.
void embed(const Block& b, size_t t) {
  const Shape& shape = b.model->shape;
  const size_t row = padded(shape.width);
  const int rank = b.noise ? b.noise->rank : 0;
  const size_t offset = b.noise ? factor_offset(shape, kEmb, 0, rank) : 0;
  for (int m = 0; m < b.members; m++) {
    const int token = b.inputs[m * b.tokens + t];
    const int8_t* e = b.model->emb + token * row;
    int8_t* x = b.x + m * row;
    if (token == 0)
      for (int layer = 0; layer < shape.layers; layer++)
        __builtin_memset(b.h + ((size_t)layer * b.members + m) * row, 0, row);
    if (!b.noise) {
      __builtin_memcpy(x, e, row);
      continue;
    }
    const int8_t* planes = b.factors[m] + offset;
    const int8_t* a = planes + rank * row;
    const int shift = b.noise->shift;
    if (rank == 1) {
      const int32_t u = b.signs[m] * a[token];
      embed_row(e, planes, u, shift, row, x);
    } else {
      for (size_t i = 0; i < row; i++) {
        uint32_t sum = 0;
        for (int r = 0; r < rank; r++)
          sum += (uint32_t)(int32_t)planes[r * row + i] * (uint32_t)(b.signs[m] * a[r * padded(shape.vocab) + token]);
        x[i] = (int8_t)clip(e[i] + ((int32_t)sum >> shift));
      }
    }
  }
}

void run_block(const Block& b) {
  if (b.noise) draw_noise(b);
  if (stopped(b.stop)) return;
  const size_t D = b.model->shape.width;
  const Network network(b);
  for_each_state(b, [D](int8_t* row, int8_t* state) { __builtin_memcpy(row, state, D); });
  for (size_t t = 0; t < b.tokens; t++) {
    embed(b, t);
    for (int layer = 0; layer < b.model->shape.layers; layer++) {
      if (stopped(b.stop)) return;
      network.layer(layer);
    }
    if (b.targets || b.logits || b.coders) network.head(t);
  }
  for_each_state(b, [D](int8_t* row, int8_t* state) { __builtin_memcpy(state, row, D); });
}

constexpr Isa make_isa(const char* name) {
  static_assert(kPad % Tile::kPanel == 0 && Tile::kVectors * Tile::kLanes == Tile::kPanel && kPad % Tile::kGroup == 0,
                "padded rows must hold whole panels and groups");
  static_assert(Tile::kGroup <= (int)kMaxGroup, "the workspace of a block of pairs must hold a group");
  Isa isa{name,  Tile::kLanes, Tile::kPanel, Tile::kGroup, Tile::kBias, run_block, draw,
          votes, pack_columns, move,         Tile::peak,   run_cohorts, {},        {}};
  isa.sums = {coin_rows, coin_digits, row_totals, sum_products, sum_squares, sum_weighted_squares, sum_by_byte};
  isa.pieces = {normals,     products,     matmul,     norm, gate,  recur,       log_likelihood,
                gate_nudged, recur_nudged, add_nudged, flip, coins, head_errors, credit};
  return isa;
}

} // namespace
} // namespace nanoegg
