// The scalar twins of naive_nudge.h.
#include "naive_nudge.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <vector>

namespace nanoegg::naive {
namespace {

using Row = std::vector<int32_t>;

int32_t clip(int32_t v) { return std::min(std::max(v, -127), 127); }
Row wide(const int8_t* v, size_t n) { return Row(v, v + n); }

// A node vector's coins, +1 and -1.
Row signs(const std::vector<uint64_t>& words, size_t first, int size) {
  Row xi(size);
  for (int i = 0; i < size; i++) xi[i] = words[first + i / 64] >> i % 64 & 1 ? 1 : -1;
  return xi;
}

// The coins and the mean inputs of a pair at a token, by layer; those outside the layers by themselves.
struct Token {
  Row emb, head;
  std::vector<std::array<Row, 4>> nodes;  // f, c, a, b
  std::vector<std::array<Row, 5>> inputs; // y, h, g, q, a
  Row last;                               // the head's input
  Row errors;
  int byte;
  int32_t d, R;
};

// One member at one token.
struct Member {
  const Shape& shape;
  Params params;
  int sign;
  const NudgeTask& task;
  Token sees; // its inputs
  std::vector<int8_t> logits;

  std::vector<int8_t> product(int leaf, int layer, const std::vector<int8_t>& x) const {
    const int outputs = leaf_rows(shape, leaf), in = leaf_cols(shape, leaf);
    std::vector<int8_t> y(outputs);
    matmul(params[leaf] + (size_t)layer * outputs * in, outputs, in, x.data(), nullptr, 0, 0, y.data());
    return y;
  }
  std::vector<int8_t> nudges(const Row& xi, int size) const {
    std::vector<int8_t> e;
    for (const int32_t v : xi) e.push_back((int8_t)(sign * size * v));
    return e;
  }
  std::vector<int8_t> normalised(const std::vector<int8_t>& x, int leaf, int layer) const {
    std::vector<int8_t> y(x.size());
    norm(x.data(), params[leaf] + (size_t)layer * shape.width, shape.width, y.data());
    return y;
  }

  // Updates the member's states (L, D).
  void forward(const Token& token, int8_t* states) {
    const int D = shape.width;
    const std::vector<int8_t> nothing(std::max(4 * D, shape.vocab));
    std::vector<int8_t> x(params[kEmb] + token.byte * D, params[kEmb] + (token.byte + 1) * D);
    if (token.byte == 0) std::fill(states, states + (size_t)shape.layers * D, 0);
    add_nudged(x.data(), nothing.data(), nudges(token.emb, task.nudge).data(), D);
    sees.inputs.resize(shape.layers);
    for (int layer = 0; layer < shape.layers; layer++) {
      int8_t* h = states + (size_t)layer * D;
      const auto e = [&](int node) { return nudges(token.nodes[layer][node], task.nudge); };
      const auto bias = [&](int leaf) { return params[leaf] + (size_t)layer * D; };
      const std::vector<int8_t> before(h, h + D), y = normalised(x, kLn1, layer);
      std::vector<int8_t> f = product(kWf, layer, y), g(D);
      gate_nudged(f.data(), product(kUf, layer, before).data(), bias(kBf), e(0).data(), h, D, g.data());
      recur_nudged(product(kWh, layer, y).data(), product(kUh, layer, g).data(), bias(kBh), e(1).data(), f.data(), D, h,
                   x.data());
      const std::vector<int8_t> q = normalised(x, kLn2, layer);
      std::vector<int8_t> a = product(kMlp0, layer, q);
      add_nudged(a.data(), nothing.data(), e(2).data(), a.size());
      add_nudged(x.data(), product(kMlp1, layer, a).data(), e(3).data(), D);
      int number = 0;
      using Rows = std::initializer_list<const std::vector<int8_t>*>;
      for (const auto* input : Rows{&y, &before, &g, &q, &a})
        sees.inputs[layer][number++] = wide(input->data(), input->size());
    }
    const std::vector<int8_t> y = normalised(x, kLnOut, 0);
    sees.last = wide(y.data(), D);
    logits = product(kHead, 0, y);
    if (task.head_nudge)
      add_nudged(logits.data(), nothing.data(), nudges(token.head, task.head_nudge).data(), logits.size());
  }
};

Row mean(const Row& even, const Row& odd) {
  Row out(even.size());
  for (size_t i = 0; i < out.size(); i++) out[i] = (even[i] + odd[i]) >> 1;
  return out;
}

// The coins of pair p at token t.
void draw(const Shape& s, const NudgeTask& task, uint64_t p, size_t t, Token& token) {
  const int D = s.width, V = s.vocab;
  const auto blocks = [](int size) { return (size_t)(size + 63) / 64; };
  const size_t per_token = blocks(D) + s.layers * (3 * blocks(D) + blocks(4 * D)) + blocks(V);
  std::vector<uint64_t> words(per_token);
  coins(task.key, (p * task.tokens + t) * per_token, per_token, words.data());
  size_t first = 0;
  const auto next = [&](int size) {
    const Row xi = signs(words, first, size);
    first += blocks(size);
    return xi;
  };
  token.emb = next(D);
  for (int layer = 0; layer < s.layers; layer++) token.nodes.push_back({next(D), next(D), next(4 * D), next(D)});
  token.head = next(V);
}

// One pair through its tokens, without their sums.
std::vector<Token> run(const Shape& shape, Params params, const NudgeTask& task, size_t pair) {
  std::vector<Token> tokens(task.tokens);
  const size_t state = (size_t)shape.layers * shape.width;
  for (size_t t = 0; t < task.tokens; t++) {
    Token& token = tokens[t];
    token.byte = task.inputs[pair * task.tokens + t];
    draw(shape, task, task.first_pair + pair, t, token);
    Member even{shape, params, 1, task, {}, {}}, odd{shape, params, -1, task, {}, {}};
    even.forward(token, task.states + 2 * pair * state);
    odd.forward(token, task.states + (2 * pair + 1) * state);
    const int target = task.targets[pair * task.tokens + t];
    const int32_t scores[2] = {log_likelihood(even.logits.data(), shape.vocab, target),
                               log_likelihood(odd.logits.data(), shape.vocab, target)};
    for (int i = 0; i < 2; i++) task.scores[2 * pair + i] += scores[i];
    token.d = scores[0] - scores[1];
    std::vector<int16_t> errors(shape.vocab);
    head_errors(even.logits.data(), odd.logits.data(), shape.vocab, target, errors.data());
    token.errors.assign(errors.begin(), errors.end());
    for (int layer = 0; layer < shape.layers; layer++) {
      token.inputs.emplace_back();
      for (int i = 0; i < 5; i++) token.inputs[layer][i] = mean(even.sees.inputs[layer][i], odd.sees.inputs[layer][i]);
    }
    token.last = mean(even.sees.last, odd.sees.last);
  }
  int32_t following = 0;
  for (size_t t = task.tokens; t-- > 0;) tokens[t].R = following = tokens[t].d + ((task.credit_decay * following) >> 4);
  return tokens;
}

Row scaled(const Row& xi, int32_t w) {
  Row out;
  for (const int32_t v : xi) out.push_back(w * v);
  return out;
}

// Adds the sums of one pair at one token.
void add_sums(const Shape& s, const NudgeTask& task, const Token& token) {
  const int D = s.width, V = s.vocab;
  const int32_t own = clip(token.d), later = clip(token.R), one = 1;
  const auto matrix = [&](int leaf, int layer, const Row& a, int32_t w, const Row& x) {
    const int outputs = leaf_rows(s, leaf), in = leaf_cols(s, leaf);
    sum_products(a.data(), x.data(), 1, outputs, in, task.z[leaf] + (size_t)layer * outputs * in);
    sum_squares(&w, x.data(), 1, in, task.s[leaf] + (size_t)layer * in);
  };
  // The products of inputs with those of their chunk.
  const auto inputs = [&](int64_t* out, const Row& x) {
    for (size_t i = 0; out && i < x.size(); i++)
      for (size_t j = i / 64 * 64; j < i / 64 * 64 + 64 && j < x.size(); j++) out[i * 64 + j % 64] += x[i] * x[j];
  };
  for (int input = 0; task.products[0] && input < 5; input++)
    for (int layer = 0; layer < s.layers; layer++) {
      const Row& x = token.inputs[layer][input];
      inputs(task.products[input] + layer * x.size() * 64, x);
    }
  inputs(task.products[5], token.last);
  for (int layer = 0; layer < s.layers; layer++) {
    const auto& [f, c, a, b] = token.nodes[layer];
    const auto& [y, h, g, q, hidden] = token.inputs[layer];
    const int32_t w = layer == s.layers - 1 ? own : later;
    matrix(kWf, layer, scaled(f, later), later, y);
    matrix(kUf, layer, scaled(f, later), later, h);
    matrix(kWh, layer, scaled(c, later), later, y);
    matrix(kUh, layer, scaled(c, later), later, g);
    matrix(kMlp0, layer, scaled(a, w), w, q);
    matrix(kMlp1, layer, scaled(b, w), w, hidden);
    for (const auto& [leaf, xi] : {std::pair{kBf, &f}, std::pair{kBh, &c}}) {
      for (int i = 0; i < D; i++) task.z[leaf][(size_t)layer * D + i] += later * (*xi)[i];
      task.s[leaf][layer] += later * later;
    }
  }
  for (int i = 0; i < D; i++) task.z[kEmb][(size_t)token.byte * D + i] += later * token.emb[i];
  task.s[kEmb][token.byte] += later * later;
  if (task.head_nudge) {
    matrix(kHead, 0, scaled(token.head, own), own, token.last);
  } else {
    matrix(kHead, 0, token.errors, one, token.last);
    for (int o = 0; o < V; o++) task.squared_errors[o] += (int64_t)token.errors[o] * token.errors[o];
  }
}

} // namespace

void coins(Key key, uint64_t first, size_t count, uint64_t* words) {
  for (size_t i = 0; i < count; i++) {
    uint32_t block[2];
    random_block(key, first + i, block);
    words[i] = (uint64_t)block[1] << 32 | block[0];
  }
}

void flip(const uint64_t* coins, bool inverted, size_t n, const int8_t* v, int8_t* out) {
  for (size_t i = 0; i < n; i++) out[i] = (int8_t)((coins[i / 64] >> i % 64 & 1) != inverted ? v[i] : -v[i]);
}

void gate_nudged(int8_t* fa, const int8_t* fb, const int8_t* bf, const int8_t* e, const int8_t* h, int width,
                 int8_t* g) {
  for (int i = 0; i < width; i++) {
    const int32_t f = clip(fa[i] + fb[i] + bf[i] + e[i]);
    fa[i] = (int8_t)f;
    g[i] = (int8_t)(((f + 127) * h[i]) >> 8);
  }
}

void recur_nudged(const int8_t* ca, const int8_t* cb, const int8_t* bh, const int8_t* e, const int8_t* fa, int width,
                  int8_t* h, int8_t* x) {
  for (int i = 0; i < width; i++) {
    const int32_t f = fa[i] + 127, c = clip(ca[i] + cb[i] + bh[i] + e[i]);
    h[i] = (int8_t)(h[i] + ((f * (c - h[i])) >> 8));
    x[i] = (int8_t)clip(x[i] + h[i]);
  }
}

void add_nudged(int8_t* x, const int8_t* y, const int8_t* e, size_t n) {
  for (size_t i = 0; i < n; i++) x[i] = (int8_t)clip(x[i] + y[i] + e[i]);
}

void head_errors(const int8_t* even, const int8_t* odd, int vocab, int target, int16_t* errors) {
  // log2 of the sum of EXP2, from the target's likelihood.
  const auto log2 = [&](const int8_t* logits) { return logits[target] + 128 - log_likelihood(logits, vocab, target); };
  const auto error = [&](const int8_t* logits, int32_t log2, int o) {
    const int32_t k = std::min(std::max(log2 - (logits[o] + 128), 0), 255);
    // In double, which is exact at the only tie, 1/2; that rounds to the even 0.
    return (o == target ? 8192 : 0) - (int32_t)std::nearbyint(8192 * std::exp2(-k / 16.0));
  };
  const int32_t log2_even = log2(even), log2_odd = log2(odd);
  for (int o = 0; o < vocab; o++) errors[o] = (int16_t)((error(even, log2_even, o) + error(odd, log2_odd, o)) >> 1);
}

void credit(const int32_t* d, size_t tokens, int pairs, int decay, int8_t* own, int8_t* later) {
  for (int p = 0; p < pairs; p++) {
    int32_t following = 0;
    for (size_t t = tokens; t-- > 0;) {
      const size_t k = t * pairs + p;
      following = d[k] + ((decay * following) >> 4);
      own[k] = (int8_t)clip(d[k]);
      later[k] = (int8_t)clip(following);
    }
  }
}

void sum_products(const int32_t* a, const int32_t* b, size_t count, int outputs, int inputs, int64_t* z) {
  for (size_t k = 0; k < count; k++)
    for (int o = 0; o < outputs; o++)
      for (int i = 0; i < inputs; i++) z[(size_t)o * inputs + i] += (int64_t)a[k * outputs + o] * b[k * inputs + i];
}

void sum_squares(const int32_t* w, const int32_t* b, size_t count, int inputs, int64_t* s) {
  for (size_t k = 0; k < count; k++)
    for (int i = 0; i < inputs; i++) s[i] += (int64_t)w[k] * b[k * inputs + i] * w[k] * b[k * inputs + i];
}

void nudge(const Shape& shape, Params params, const NudgeTask& task) {
  for (size_t pair = 0; pair < task.pairs; pair++)
    for (const Token& token : run(shape, params, task, pair)) add_sums(shape, task, token);
}

} // namespace nanoegg::naive
