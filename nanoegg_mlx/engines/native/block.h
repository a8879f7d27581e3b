// A block of members through all its tokens (spec sections 3 to 5), and the table of an instruction set's kernels.
//
// A file isa_*.cpp switches its instruction set on, defines a struct `Tile` (most by the template of tile.h), and
// includes this header. So the network is written once and compiled once per instruction set. All of it is plain loops
// over padded rows, which the compiler makes vector code of, except `Tile`.
//
// Notable: the noise of a pair is drawn once for both members and the whole epoch. Vectors, whose noise is dense, are
// perturbed once per member.
#pragma once

#include "layers.h"
#include "products.h"
#include "random.h"

namespace nanoegg {
namespace {

// Draws the factors of every pair in the block, and perturbs the members' vectors.
void draw_noise(const Block& b) {
  const Shape& shape = b.model->shape;
  const Noise& noise = *b.noise;
  const int rank = noise.rank;
  const size_t slot_size = slot_bytes(shape, rank), row = padded(shape.width);
  int8_t* slot = (int8_t*)b.slots;
  for (int m = 0, end; m < b.members; m = end, slot += slot_size) {
    const uint64_t pair = noise_pair(noise, b.first_member + m);
    for (end = m; end < b.members && noise_pair(noise, b.first_member + end) == pair; end++) {
      b.signs[end] = (b.first_member + end) & 1 ? -1 : 1;
      b.factors[end] = slot;
    }
    for (int leaf = 0; leaf < kLeaves; leaf++) {
      const int rows = leaf_rows(shape, leaf), cols = leaf_cols(shape, leaf);
      for (int layer = 0; layer < leaf_layers(shape, leaf); layer++) {
        if (stopped(b.stop)) return;
        const uint32_t start = noise_start(noise.base[leaf][layer], pair, noise_length(shape, leaf, rank));
        if (!is_matrix(leaf)) {
          const size_t at = vector_row(shape, leaf, layer);
          const int8_t* v = b.model->vectors + at * row;
          draw(noise.key, start, 2 * (size_t)rows, b.slot_draws);
          for (int who = m; who < end; who++) {
            int8_t* out = b.vectors + (who * vector_rows(shape) + at) * row;
            for (int i = 0; i < rows; i++) {
              const int32_t e = b.signs[who] * b.slot_draws[2 * i] * b.slot_draws[2 * i + 1];
              out[i] = (int8_t)clip(v[i] + (e >> noise.shift));
            }
          }
          continue;
        }
        int8_t* planes = slot + factor_offset(shape, leaf, layer, rank);
        int8_t* a = planes + rank * padded(cols);
        if (rank == 1) {
          draw(noise.key, start, cols, planes);
          draw(noise.key, start + cols, rows, a);
          continue;
        }
        draw(noise.key, start, (size_t)(cols + rows) * rank, b.slot_draws);
        const int8_t* d = b.slot_draws;
        for (int i = 0; i < cols; i++)
          for (int r = 0; r < rank; r++) planes[r * padded(cols) + i] = *d++;
        for (int i = 0; i < rows; i++)
          for (int r = 0; r < rank; r++) a[r * padded(rows) + i] = *d++;
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
  const Shape& shape = b.model->shape;
  const int D = shape.width, L = shape.layers, V = shape.vocab, M = b.members;
  const size_t row = padded(D);
  const int rank = b.noise ? b.noise->rank : 0, shift = b.noise ? b.noise->shift : 0;

  if (b.noise) draw_noise(b);
  if (stopped(b.stop)) return;
  const size_t vector_stride = b.noise ? vector_rows(shape) * row : 0;
  const int8_t* const vectors = b.noise ? b.vectors : b.model->vectors;
  const auto vector = [&](int leaf, int layer, int m) {
    return vectors + m * vector_stride + vector_row(shape, leaf, layer) * row;
  };
  const auto product = [&](int leaf, int layer, const int8_t* x, int8_t* out) {
    if (stopped(b.stop)) return; // products of a wide model are slow, and the results are not used any more
    multiply({b.model->matrices[leaf][layer], x, M, out, b.noise ? b.factors : nullptr,
              b.noise ? factor_offset(shape, leaf, layer, rank) : 0, b.signs, rank, shift, b.start, b.projections});
  };

  for (int m = 0; m < M; m++)
    for (int layer = 0; layer < L; layer++)
      __builtin_memcpy(b.h + ((size_t)layer * M + m) * row, b.states + ((size_t)m * L + layer) * D, D);

  for (size_t t = 0; t < b.tokens; t++) {
    embed(b, t);
    for (int layer = 0; layer < L; layer++) {
      if (stopped(b.stop)) return;
      int8_t* h = b.h + (size_t)layer * M * row;
      for (int m = 0; m < M; m++) norm(b.x + m * row, vector(kLn1, layer, m), D, b.y + m * row);
      product(kWf, layer, b.y, b.fa);
      product(kUf, layer, h, b.fb);
      for (int m = 0; m < M; m++)
        gate(b.fa + m * row, b.fb + m * row, vector(kBf, layer, m), h + m * row, D, b.g + m * row);
      product(kUh, layer, b.g, b.fb);
      product(kWh, layer, b.y, b.g);
      for (int m = 0; m < M; m++)
        recur(b.g + m * row, b.fb + m * row, vector(kBh, layer, m), b.fa + m * row, D, h + m * row, b.x + m * row);
      for (int m = 0; m < M; m++) norm(b.x + m * row, vector(kLn2, layer, m), D, b.y + m * row);
      product(kMlp0, layer, b.y, b.mid);
      product(kMlp1, layer, b.mid, b.y);
      add(b.x, b.y, M * row);
    }
    if (!b.targets && !b.logits) continue;
    for (int m = 0; m < M; m++) norm(b.x + m * row, vector(kLnOut, 0, m), D, b.y + m * row);
    product(kHead, 0, b.y, b.out);
    for (int m = 0; m < M; m++) {
      const int8_t* logits = b.out + m * padded(V);
      if (b.logits) __builtin_memcpy(b.logits + (m * b.tokens + t) * V, logits, V);
      if (!b.targets) continue;
      const int target = b.targets[m * b.tokens + t];
      b.scores[m] += log_likelihood(logits, V, target);
      if (b.bits) b.bits[m * b.tokens + t] = exact_bits(logits, V, target);
    }
  }

  for (int m = 0; m < M; m++)
    for (int layer = 0; layer < L; layer++)
      __builtin_memcpy(b.states + ((size_t)m * L + layer) * D, b.h + ((size_t)layer * M + m) * row, D);
}

constexpr Isa make_isa(const char* name) {
  static_assert(kPad % Tile::kPanel == 0 && Tile::kVectors * Tile::kLanes == Tile::kPanel && kPad % Tile::kGroup == 0,
                "padded rows must hold whole panels and groups");
  return {name,         Tile::kLanes, Tile::kPanel, Tile::kGroup,
          Tile::kBias,  run_block,    draw,         votes,
          pack_columns, move,         Tile::peak,   {normals, products, matmul, norm, gate, recur, log_likelihood}};
}

} // namespace
} // namespace nanoegg
