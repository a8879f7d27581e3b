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

// The coins of a member or pair at a token, by layer; those outside the layers by themselves. And what is credited to
// them.
struct Sample {
  Row emb, head;
  std::vector<std::array<Row, 4>> nodes; // f, c, a, b
  int32_t d, R;
};

// What a member, or a cohort in the votes, has at a token.
struct Seen {
  std::vector<std::array<Row, 5>> inputs; // y, h, g, q, a
  Row last;                               // the head's input
  Row errors;
  int byte;
};

// One member at one token.
struct Member {
  const Shape& shape;
  Params params;
  int sign; // 0: without nudges
  const NudgeTask& task;
  Seen sees;
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
  void forward(int byte, const Sample& sample, int8_t* states) {
    const int D = shape.width;
    const std::vector<int8_t> nothing(std::max(4 * D, shape.vocab));
    std::vector<int8_t> x(params[kEmb] + byte * D, params[kEmb] + (byte + 1) * D);
    if (byte == 0) std::fill(states, states + (size_t)shape.layers * D, 0);
    add_nudged(x.data(), nothing.data(), nudges(sample.emb, task.nudge).data(), D);
    sees.inputs.resize(shape.layers);
    for (int layer = 0; layer < shape.layers; layer++) {
      int8_t* h = states + (size_t)layer * D;
      const auto e = [&](int node) { return nudges(sample.nodes[layer][node], task.nudge); };
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
      add_nudged(logits.data(), nothing.data(), nudges(sample.head, task.head_nudge).data(), logits.size());
  }
};

Row mean(const Row& even, const Row& odd) {
  Row out(even.size());
  for (size_t i = 0; i < out.size(); i++) out[i] = (even[i] + odd[i]) >> 1;
  return out;
}

// The coins of a pair or member of this number at token t.
Sample draw(const Shape& s, const NudgeTask& task, uint64_t number, size_t t) {
  const int D = s.width, V = s.vocab;
  const auto blocks = [](int size) { return (size_t)(size + 63) / 64; };
  const size_t per_token = blocks(D) + s.layers * (3 * blocks(D) + blocks(4 * D)) + blocks(V);
  std::vector<uint64_t> words(per_token);
  coins(task.key, (number * task.tokens + t) * per_token, per_token, words.data());
  size_t first = 0;
  const auto next = [&](int size) {
    const Row xi = signs(words, first, size);
    first += blocks(size);
    return xi;
  };
  Sample sample;
  sample.emb = next(D);
  for (int layer = 0; layer < s.layers; layer++) sample.nodes.push_back({next(D), next(D), next(4 * D), next(D)});
  sample.head = next(V);
  return sample;
}

// What the votes of a cohort see: a pair's means, or what the first of a lane's members has.
Seen common(const Shape& shape, const NudgeTask& task, const std::vector<Member>& members, int byte, int target) {
  const Member &even = members[0], &odd = members[task.antithetic ? 1 : 0];
  Seen seen;
  seen.byte = byte;
  std::vector<int16_t> errors(shape.vocab);
  head_errors(even.logits.data(), odd.logits.data(), shape.vocab, target, errors.data());
  seen.errors.assign(errors.begin(), errors.end());
  for (int layer = 0; layer < shape.layers; layer++) {
    seen.inputs.emplace_back();
    for (int i = 0; i < 5; i++) seen.inputs[layer][i] = mean(even.sees.inputs[layer][i], odd.sees.inputs[layer][i]);
  }
  seen.last = mean(even.sees.last, odd.sees.last);
  return seen;
}

// A cohort through its tokens, without their sums.
struct Run {
  std::vector<Seen> seen;                   // (tokens,)
  std::vector<std::vector<Sample>> samples; // (samples, tokens)
};

Run run(const Shape& shape, Params params, const NudgeTask& task, size_t cohort) {
  const size_t state = (size_t)shape.layers * shape.width, first = cohort * task.size;
  Run run;
  run.samples.resize(task.antithetic ? 1 : task.size - 1);
  for (size_t t = 0; t < task.tokens; t++) {
    for (size_t j = 0; j < run.samples.size(); j++) {
      const uint64_t member = task.first_member + first;
      run.samples[j].push_back(draw(shape, task, task.antithetic ? member / 2 : member + j + 1, t));
    }
    const int byte = task.inputs[cohort * task.tokens + t], target = task.targets[cohort * task.tokens + t];
    std::vector<Member> members;
    std::vector<int32_t> scores;
    for (int i = 0; i < task.size; i++) {
      const int sign = task.antithetic ? (i ? -1 : 1) : i > 0;
      members.push_back({shape, params, sign, task, {}, {}});
      members[i].forward(byte, run.samples[task.antithetic || i == 0 ? 0 : i - 1][t],
                         task.states + (first + i) * state);
      scores.push_back(log_likelihood(members[i].logits.data(), shape.vocab, target));
      task.scores[first + i] += scores[i];
    }
    for (size_t j = 0; j < run.samples.size(); j++)
      run.samples[j][t].d = task.antithetic ? scores[0] - scores[1] : scores[j + 1] - scores[0];
    run.seen.push_back(common(shape, task, members, byte, target));
  }
  for (auto& tokens : run.samples) {
    int32_t following = 0;
    for (size_t t = task.tokens; t-- > 0;)
      tokens[t].R = following = tokens[t].d + ((task.credit_decay * following) >> 4);
  }
  return run;
}

Row scaled(const Row& xi, int32_t w) {
  Row out;
  for (const int32_t v : xi) out.push_back(w * v);
  return out;
}

// Adds the votes and variances of a matrix.
void add_matrix(const Shape& s, const NudgeTask& task, int leaf, int layer, const Row& a, int32_t w, const Row& x) {
  const int outputs = leaf_rows(s, leaf), in = leaf_cols(s, leaf);
  sum_products(a.data(), x.data(), 1, outputs, in, task.z[leaf] + (size_t)layer * outputs * in);
  sum_squares(&w, x.data(), 1, in, task.s[leaf] + (size_t)layer * in);
}

// Adds the sums that do not depend on coins, of a cohort at a token.
void add_inputs(const Shape& s, const NudgeTask& task, const Seen& seen) {
  // The products of inputs with those of their chunk.
  const auto products = [&](int64_t* out, const Row& x) {
    for (size_t i = 0; out && i < x.size(); i++)
      for (size_t j = i / 64 * 64; j < i / 64 * 64 + 64 && j < x.size(); j++) out[i * 64 + j % 64] += x[i] * x[j];
  };
  for (int input = 0; task.products[0] && input < 5; input++)
    for (int layer = 0; layer < s.layers; layer++) {
      const Row& x = seen.inputs[layer][input];
      products(task.products[input] + layer * x.size() * 64, x);
    }
  products(task.products[5], seen.last);
  if (task.head_nudge) return;
  add_matrix(s, task, kHead, 0, seen.errors, 1, seen.last);
  for (int o = 0; o < s.vocab; o++) task.squared_errors[o] += (int64_t)seen.errors[o] * seen.errors[o];
}

// Adds the votes of one sample at one token.
void add_votes(const Shape& s, const NudgeTask& task, const Seen& seen, const Sample& sample) {
  const int D = s.width;
  const int32_t own = clip(sample.d), later = clip(sample.R);
  const auto matrix = [&](int leaf, int layer, const Row& xi, int32_t w, const Row& x) {
    add_matrix(s, task, leaf, layer, scaled(xi, w), w, x);
  };
  for (int layer = 0; layer < s.layers; layer++) {
    const auto& [f, c, a, b] = sample.nodes[layer];
    const auto& [y, h, g, q, hidden] = seen.inputs[layer];
    const int32_t w = layer == s.layers - 1 ? own : later;
    matrix(kWf, layer, f, later, y);
    matrix(kUf, layer, f, later, h);
    matrix(kWh, layer, c, later, y);
    matrix(kUh, layer, c, later, g);
    matrix(kMlp0, layer, a, w, q);
    matrix(kMlp1, layer, b, w, hidden);
    for (const auto& [leaf, xi] : {std::pair{kBf, &f}, std::pair{kBh, &c}}) {
      for (int i = 0; i < D; i++) task.z[leaf][(size_t)layer * D + i] += later * (*xi)[i];
      task.s[leaf][layer] += later * later;
    }
  }
  for (int i = 0; i < D; i++) task.z[kEmb][(size_t)seen.byte * D + i] += later * sample.emb[i];
  task.s[kEmb][seen.byte] += later * later;
  if (task.head_nudge) matrix(kHead, 0, sample.head, own, seen.last);
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

void coin_digits(const uint64_t* coins, size_t coins_stride, const int8_t* w, size_t w_stride, int samples,
                 size_t count, int8_t* low, int8_t* high) {
  for (size_t k = 0; k < count; k++) {
    for (int i = 0; i < 64; i++) {
      int32_t q = 0;
      for (int j = 0; j < samples; j++) {
        const int32_t v = w[j * w_stride + k];
        q += coins[j * coins_stride + k] >> i & 1 ? v : -v;
      }
      int32_t h = 0, l = q;
      for (; l > 63; l -= 128) h++;
      for (; l < -64; l += 128) h--;
      low[k * 64 + i] = (int8_t)l;
      high[k * 64 + i] = (int8_t)h;
    }
  }
}

void weighted_squares(const int32_t* q, const int32_t* b, size_t count, int inputs, int64_t* s) {
  for (size_t k = 0; k < count; k++)
    for (int i = 0; i < inputs; i++) s[i] += (int64_t)q[k] * b[k * inputs + i] * b[k * inputs + i];
}

void nudge(const Shape& shape, Params params, const NudgeTask& task) {
  for (size_t cohort = 0; cohort < task.cohorts; cohort++) {
    const Run its = run(shape, params, task, cohort);
    for (size_t t = 0; t < task.tokens; t++) {
      add_inputs(shape, task, its.seen[t]);
      for (const auto& sample : its.samples) add_votes(shape, task, its.seen[t], sample[t]);
    }
  }
}

} // namespace nanoegg::naive
