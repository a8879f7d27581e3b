// The scalar twins of learning from nudged activations: docs/activations.md and docs/lane-baseline.md as plain loops,
// one member and one token at a time.
#pragma once

#include <cstdint>

#include "engine.h"
#include "naive.h"

namespace nanoegg::naive {

void coins(Key key, uint64_t first, size_t count, uint64_t* words);
// out = v with the signs of the coins' bits, or with the opposite ones.
void flip(const uint64_t* coins, bool inverted, size_t n, const int8_t* v, int8_t* out);
// As gate, recur and x = clip(x + y), with nudges e.
void gate_nudged(int8_t* fa, const int8_t* fb, const int8_t* bf, const int8_t* e, const int8_t* h, int width,
                 int8_t* g);
void recur_nudged(const int8_t* ca, const int8_t* cb, const int8_t* bh, const int8_t* e, const int8_t* fa, int width,
                  int8_t* h, int8_t* x);
void add_nudged(int8_t* x, const int8_t* y, const int8_t* e, size_t n);
// The mean errors of a pair's logits; of the same ones twice, their errors.
void head_errors(const int8_t* even, const int8_t* odd, int vocab, int target, int16_t* errors);
// own, later (tokens, pairs) of d (tokens, pairs).
void credit(const int32_t* d, size_t tokens, int pairs, int decay, int8_t* own, int8_t* later);

// z (outputs, inputs) += sum of a b^T, a (count, outputs), b (count, inputs).
void sum_products(const int32_t* a, const int32_t* b, size_t count, int outputs, int inputs, int64_t* z);
// s (inputs,) += sum of (w b)^2
void sum_squares(const int32_t* w, const int32_t* b, size_t count, int inputs, int64_t* s);

// low, high (count, 64): digits of Q[k][i], the sum over j of w[j w_stride + k] with the sign of bit i of
// coins[j coins_stride + k].
void coin_digits(const uint64_t* coins, size_t coins_stride, const int8_t* w, size_t w_stride, int samples,
                 size_t count, int8_t* low, int8_t* high);
// s (inputs,) += sum of q b^2
void weighted_squares(const int32_t* q, const int32_t* b, size_t count, int inputs, int64_t* s);

// The twin of nanoegg::nudge().
void nudge(const Shape& shape, Params params, const NudgeTask& task);

} // namespace nanoegg::naive
