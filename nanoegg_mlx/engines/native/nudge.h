// A block of cohorts through all its tokens under nudged activations, and the credit of their nudges: pairs
// (docs/activations.md), or lanes with a baseline (docs/lane-baseline.md).
//
// Notable: the members of a cohort are rows side by side. Both members of a pair have the same coins and opposite
// signs. Per token the block keeps what the votes need: the pairs' mean inputs or the baselines' own, the coins, and
// the head's errors, packed for the sums (sums.h).
#pragma once

#include "layers.h"
#include "network.h"
#include "random.h"
#include "sums.h"

namespace nanoegg {
namespace {

void flip(const uint64_t* coins, bool inverted, size_t n, const int8_t* v, int8_t* out) {
  const uint64_t invert = inverted ? ~(uint64_t)0 : 0;
  for (size_t i = 0; i < n; i += kCoins) Tile::flip(*coins++ ^ invert, v + i, out + i);
}

// The mean error of each logit of two members, which may be one: with target and rounding, (8192 2 [o = target] - POW2
// - POW2) >> 1.
void head_errors(const int8_t* even, const int8_t* odd, int vocab, const int32_t* log2, int target, int16_t* errors) {
  const size_t n = padded(vocab);
  int16_t *a = errors + n, *b = a + n;
  Tile::pow2(even, n, log2[0], a);
  Tile::pow2(odd, n, log2[1], b);
  for (size_t i = 0; i < n; i++) errors[i] = (int16_t)(-(a[i] + b[i]) >> 1);
  for (size_t i = vocab; i < n; i++) errors[i] = 0;
  errors[target] += 8192;
}

// Two base-128 digits of each error, and the errors' squares, which fit uint32 up to 32 times.
inline void split_errors(const int16_t* __restrict errors, size_t n, int8_t* __restrict low, int8_t* __restrict high,
                         uint32_t* __restrict squares) {
  for (; n; n -= kPad, errors += kPad, low += kPad, high += kPad, squares += kPad) {
    for (size_t i = 0; i < kPad; i++) {
      const Digits d = digits(errors[i]);
      low[i] = d.low;
      high[i] = d.high;
      squares[i] += (uint32_t)(errors[i] * errors[i]);
    }
  }
}
constexpr size_t kMostErrors = 32;

void credit(const int32_t* d, size_t tokens, int cohorts, int decay, int32_t* following, int8_t* own, int8_t* later) {
  __builtin_memset(following, 0, cohorts * sizeof *following);
  for (size_t t = tokens; t-- > 0;) {
    for (int c = 0; c < cohorts; c++) {
      const size_t k = t * cohorts + c;
      following[c] = d[k] + ((decay * following[c]) >> 4);
      own[k] = (int8_t)clip(d[k]);
      later[k] = (int8_t)clip(following[c]);
    }
  }
}

// squares[k] = the sum over samples of w[j depth + k]^2.
inline void sum_sample_squares(const int8_t* w, int samples, size_t depth, int32_t* __restrict squares) {
  __builtin_memset(squares, 0, depth * sizeof *squares);
  for (int j = 0; j < samples; j++, w += depth)
    for (size_t k = 0; k < depth; k++) squares[k] += w[k] * w[k];
}

// The network's parts on all members of a block of cohorts, at one token.
struct NudgedNetwork {
  const CohortBlock& p;
  const Block& b;
  const Shape& shape;
  const size_t row, blocks; // bytes between the members' rows; coin blocks of a token
  const int samples;
  const Network network;

  explicit NudgedNetwork(const CohortBlock& block)
      : p(block),
        b(block.members),
        shape(b.model->shape),
        row(padded(shape.width)),
        blocks(coin_blocks_per_token(shape)),
        samples(block.kept.samples),
        network(b) {}

  // The coins of sample j of cohort c are those of this pair, or of this member.
  uint64_t number_of_coins(int c, int j) const {
    return p.antithetic ? p.first_member / 2 + c : p.first_member + (uint64_t)c * p.size + 1 + j;
  }

  // Draws the coins of the tokens from t on, and lays them out by node for the votes.
  void draw(size_t t) const {
    const size_t tokens = smaller(p.window, b.tokens - t), count = tokens * blocks;
    const size_t kept = first_coin_block(shape, kNodeHead, 0) + (p.head_is_nudged ? coin_blocks(shape, kNodeHead) : 0);
    for (int c = 0; c < p.cohorts; c++)
      for (int j = 0; j < samples; j++)
        coins(p.key, (number_of_coins(c, j) * b.tokens + t) * blocks, count,
              p.words + (c * samples + j) * p.window * blocks);
    for (size_t i = 0; i < tokens; i++) {
      uint64_t* out = p.kept.coins + (t + i) * p.cohorts;
      for (size_t block = 0; block < kept; block++)
        for (int j = 0; j < samples; j++, out += p.kept.depth)
          for (int c = 0; c < p.cohorts; c++) out[c] = p.words[((c * samples + j) * p.window + i) * blocks + block];
    }
  }

  // The nudges of member m's node vector, `sizes` with its coins' signs; zeros of a baseline.
  const int8_t* nudges(size_t t, int m, int node, int layer, const int8_t* sizes) const {
    const int c = m / p.size, i = m % p.size;
    const size_t n = padded(node_size(shape, node));
    if (!p.antithetic && i == 0) {
      __builtin_memset(p.row, 0, n);
      return p.row;
    }
    const int sample = p.antithetic ? c : c * samples + i - 1;
    const uint64_t* words =
        p.words + (sample * p.window + t % p.window) * blocks + first_coin_block(shape, node, layer);
    flip(words, p.antithetic && i == 1, n, sizes, p.row);
    return p.row;
  }

  // Keeps the mean of each pair's rows, or each baseline's row, as an input X.
  void keep(size_t t, int input, int layer, const int8_t* rows) const {
    constexpr size_t G = Tile::kGroup;
    const int entries = input_size(shape, input);
    const size_t n = padded(entries), offset = input_offset(shape, input, layer);
    int8_t* group = p.group + offset * G;
    for (int c = 0; c < p.cohorts; c++, rows += p.size * n) {
      const size_t k = t * p.cohorts + c, slot = k % G;
      mean(rows, p.antithetic ? rows + n : rows, n, group + slot * n);
      if (slot + 1 < G && k + 1 < p.kept.count) continue;
      __builtin_memset(group + (slot + 1) * n, 0, (G - 1 - slot) * n);
      pack_panels(group, n, entries, p.kept.depth, k / G, p.kept.inputs + offset * p.kept.depth);
    }
  }

  // Each member's byte, embedded and nudged; byte 0 zeroes the states.
  void embed(size_t t) const {
    for (int m = 0; m < b.members; m++) {
      const int c = m / p.size, byte = b.inputs[c * b.tokens + t];
      if (m % p.size == 0) p.kept.bytes[t * p.cohorts + c] = (uint8_t)byte;
      if (byte == 0)
        for (int layer = 0; layer < shape.layers; layer++)
          __builtin_memset(b.h + ((size_t)layer * b.members + m) * row, 0, row);
      __builtin_memcpy(b.x + m * row, b.model->emb + byte * row, row);
      add(b.x + m * row, nudges(t, m, kNodeEmb, 0, p.nudges), row);
    }
  }

  void layer(size_t t, int i) const {
    int8_t* h = b.h + (size_t)i * b.members * row;
    const size_t hidden = padded(4 * shape.width);
    network.normalise(b.x, kLn1, i);
    keep(t, kInputY, i, b.y);
    keep(t, kInputState, i, h);
    network.product(kWf, i, b.y, b.fa);
    network.product(kUf, i, h, b.fb);
    for (int m = 0; m < b.members; m++)
      gate_nudged(b.fa + m * row, b.fb + m * row, network.vector(kBf, i, m), nudges(t, m, kNodeF, i, p.nudges),
                  h + m * row, shape.width, b.g + m * row);
    keep(t, kInputG, i, b.g);
    network.product(kUh, i, b.g, b.fb);
    network.product(kWh, i, b.y, b.g);
    for (int m = 0; m < b.members; m++)
      recur_nudged(b.g + m * row, b.fb + m * row, network.vector(kBh, i, m), nudges(t, m, kNodeC, i, p.nudges),
                   b.fa + m * row, shape.width, h + m * row, b.x + m * row);
    network.normalise(b.x, kLn2, i);
    keep(t, kInputQ, i, b.y);
    network.product(kMlp0, i, b.y, b.mid);
    for (int m = 0; m < b.members; m++) add(b.mid + m * hidden, nudges(t, m, kNodeA, i, p.hidden_nudges), hidden);
    keep(t, kInputA, i, b.mid);
    network.product(kMlp1, i, b.mid, b.y);
    for (int m = 0; m < b.members; m++)
      add_nudged(b.x + m * row, b.y + m * row, nudges(t, m, kNodeB, i, p.nudges), row);
  }

  // The scores of token t, their differences, and the head's errors.
  void head(size_t t) const {
    const size_t n = padded(shape.vocab);
    network.normalise(b.x, kLnOut, 0);
    keep(t, kInputY, shape.layers, b.y);
    network.product(kHead, 0, b.y, b.out);
    for (int c = 0; c < p.cohorts; c++) {
      const size_t k = t * p.cohorts + c;
      const int target = b.targets[c * b.tokens + t];
      const int8_t* first = b.out + (size_t)c * p.size * n;
      for (int i = 0; i < p.size; i++) {
        const int m = c * p.size + i;
        int8_t* logits = b.out + m * n;
        if (p.head_is_nudged) add(logits, nudges(t, m, kNodeHead, 0, p.logit_nudges), n);
        p.log2[i] = log2_sixteenths(Tile::exp2_sum(logits, shape.vocab));
        p.scores[i] = logits[target] + 128 - p.log2[i];
        b.scores[m] += p.scores[i];
      }
      for (int j = 0; j < samples; j++)
        p.differences[j * b.tokens * p.cohorts + k] =
            p.antithetic ? p.scores[0] - p.scores[1] : p.scores[1 + j] - p.scores[0];
      if (p.head_is_nudged) continue;
      if (!p.antithetic) p.log2[1] = p.log2[0];
      head_errors(first, p.antithetic ? first + n : first, shape.vocab, p.log2, target, p.errors);
      keep_errors(k);
    }
  }

  void keep_errors(size_t k) const {
    constexpr size_t G = Tile::kGroup;
    const size_t n = padded(shape.vocab), slot = k % G;
    const bool last = k + 1 == p.kept.count;
    int8_t *low = p.digits, *high = p.digits + G * n;
    split_errors(p.errors, n, low + slot * n, high + slot * n, p.squares);
    if (slot + 1 == G || last) {
      __builtin_memset(low + (slot + 1) * n, 0, (G - 1 - slot) * n);
      __builtin_memset(high + (slot + 1) * n, 0, (G - 1 - slot) * n);
      pack_rows(low, n, shape.vocab, p.kept.depth, k / G, p.kept.low);
      pack_rows(high, n, shape.vocab, p.kept.depth, k / G, p.kept.high);
    }
    if ((k + 1) % kMostErrors == 0 || last) {
      for (size_t i = 0; i < n; i++) p.kept.squared_errors[i] += p.squares[i];
      __builtin_memset(p.squares, 0, n * sizeof *p.squares);
    }
  }
};

void run_cohorts(const CohortBlock& p) {
  const Block& b = p.members;
  const size_t D = b.model->shape.width;
  const NudgedNetwork network(p);
  for_each_state(b, [D](int8_t* row, int8_t* state) { __builtin_memcpy(row, state, D); });
  for (size_t t = 0; t < b.tokens; t++) {
    if (t % p.window == 0) network.draw(t);
    network.embed(t);
    for (int layer = 0; layer < b.model->shape.layers; layer++) {
      if (stopped(b.stop)) return;
      network.layer(t, layer);
    }
    network.head(t);
  }
  for_each_state(b, [D](int8_t* row, int8_t* state) { __builtin_memcpy(state, row, D); });
  for (int j = 0; j < p.kept.samples; j++)
    credit(p.differences + j * p.kept.count, b.tokens, p.cohorts, p.credit_decay, p.following,
           p.kept.own + j * p.kept.depth, p.kept.later + j * p.kept.depth);
  sum_sample_squares(p.kept.own, p.kept.samples, p.kept.depth, p.kept.own_squares);
  sum_sample_squares(p.kept.later, p.kept.samples, p.kept.depth, p.kept.later_squares);
}

} // namespace
} // namespace nanoegg
