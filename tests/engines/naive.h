// The scalar twins: spec sections 1, 3, 4, 5 and 7 as plain loops, one member at a time, nothing packed, padded or
// shared. The fast kernels are tested against them, and they are the place to read what those compute.
#pragma once

#include <cstdint>
#include <vector>

#include "model.h"

namespace nanoegg::naive {

using Params = const int8_t* const*; // [leaf] -> the leaf's bytes in C order, layers first

void random_block(Key key, uint64_t index, uint32_t* words); // Threefry's two words
uint32_t random_bits(Key key, uint64_t index);               // the 23-bit draw m
int8_t normal(uint32_t m);
void draw(Key key, uint32_t start, size_t count, int8_t* out);

// One member's perturbation of one leaf of one layer, its sign included.
struct Perturbation {
  std::vector<int32_t> a, b; // matrix: (outputs, rank) and (inputs, rank)
  std::vector<int32_t> e;    // vector: (d,)
};
Perturbation perturbation(const Shape& shape, const Noise& noise, int leaf, int layer, uint64_t member);

// out (outputs,) = W x
void products(const int8_t* w, int outputs, int inputs, const int8_t* x, int32_t* out);
// out (outputs,); p null: unperturbed.
void matmul(const int8_t* w, int outputs, int inputs, const int8_t* x, const Perturbation* p, int rank, int shift,
            int8_t* out);
void norm(const int8_t* x, const int8_t* w, int width, int8_t* out);
void gate(int8_t* fa, const int8_t* fb, const int8_t* bf, const int8_t* h, int width, int8_t* g);
void recur(const int8_t* ca, const int8_t* cb, const int8_t* bh, const int8_t* fa, int width, int8_t* h, int8_t* x);
int32_t log_likelihood(const int8_t* logits, int vocab, int target);

// One member through its tokens: returns the score, updates states (L, D); logits (tokens, V) or null; noise or null.
int64_t score(const Shape& shape, Params params, const Noise* noise, uint64_t member, const uint8_t* inputs,
              const uint8_t* targets, size_t tokens, int8_t* states, int8_t* logits);

// z (rows, cols) of one leaf and layer, not yet divided for normalised fitness. reads (lanes, V) or null: a pair votes
// on the embeddings of the bytes that its lane has.
void votes(const Shape& shape, const Noise& noise, int leaf, int layer, const int8_t* fitness, size_t pairs,
           bool use_clt, const uint8_t* reads, size_t pairs_per_lane, int64_t* z);
void move(const int64_t* z, size_t n, const int8_t* old, int64_t bound, int8_t* out);

} // namespace nanoegg::naive
