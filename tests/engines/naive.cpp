// The scalar twins of naive.h.
#include "naive.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "normal_steps.h"

namespace nanoegg::naive {
namespace {

int32_t clip(int32_t v) { return std::min(std::max(v, -127), 127); }

int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

int32_t isqrt(int32_t n) {
  int32_t root = 0;
  while ((root + 1) * (root + 1) <= n) root++;
  return root;
}

int32_t wrapped_add(int32_t a, int32_t b) { return (int32_t)((uint32_t)a + (uint32_t)b); }
int32_t wrapped_multiply(int32_t a, int32_t b) { return (int32_t)((uint32_t)a * (uint32_t)b); }
int32_t sign(int32_t v) { return (v > 0) - (v < 0); }

} // namespace

void random_block(Key key, uint64_t index, uint32_t* words) {
  static const int rotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {key.hi, key.lo, key.hi ^ key.lo ^ 0x1BD11BDAu};
  uint32_t x0 = (uint32_t)(index >> 32) + keys[0], x1 = (uint32_t)index + keys[1];
  for (uint32_t group = 0; group < 5; group++) {
    for (const int r : rotations[group % 2]) {
      x0 += x1;
      x1 = (x1 << r | x1 >> (32 - r)) ^ x0;
    }
    x0 += keys[(group + 1) % 3];
    x1 += keys[(group + 2) % 3] + group + 1;
  }
  words[0] = x0, words[1] = x1;
}

uint32_t random_bits(Key key, uint64_t index) {
  uint32_t words[2];
  random_block(key, index, words);
  return (words[0] ^ words[1]) >> 9;
}

int8_t normal(uint32_t m) {
  int32_t value = kNormalFirst;
  for (int i = 0; i < kNormalSteps; i++)
    if (kNormalIndex[i] <= m) value = kNormalValue[i];
  return (int8_t)value;
}

void draw(Key key, uint32_t start, size_t count, int8_t* out) {
  for (size_t i = 0; i < count; i++) out[i] = normal(random_bits(key, (uint64_t)start + i));
}

Perturbation perturbation(const Shape& shape, const Noise& noise, int leaf, int layer, uint64_t member) {
  const int rows = leaf_rows(shape, leaf), cols = leaf_cols(shape, leaf), rank = noise.rank;
  const uint64_t same = noise.perturbations ? member % noise.perturbations : member;
  const uint64_t length = noise_length(shape, leaf, rank);
  std::vector<int8_t> draws(length);
  draw(noise.key, noise_start(noise.base[leaf][layer], same >> 1, length), length, draws.data());
  const int32_t s = member % 2 ? -1 : 1;
  Perturbation p;
  if (is_matrix(leaf)) {
    for (int i = 0; i < cols * rank; i++) p.b.push_back(draws[i]);
    for (int i = 0; i < rows * rank; i++) p.a.push_back(s * draws[cols * rank + i]);
  } else {
    for (int i = 0; i < rows; i++) p.e.push_back(s * draws[2 * i] * draws[2 * i + 1]);
  }
  return p;
}

void products(const int8_t* w, int outputs, int inputs, const int8_t* x, int32_t* out) {
  for (int o = 0; o < outputs; o++) {
    out[o] = 0;
    for (int n = 0; n < inputs; n++) out[o] += w[(size_t)o * inputs + n] * x[n];
  }
}

void matmul(const int8_t* w, int outputs, int inputs, const int8_t* x, const Perturbation* p, int rank, int shift,
            int8_t* out) {
  std::vector<int32_t> projection(p ? rank : 0);
  for (size_t r = 0; r < projection.size(); r++)
    for (int n = 0; n < inputs; n++) projection[r] = wrapped_add(projection[r], p->b[n * rank + r] * x[n]);
  std::vector<int32_t> raw(outputs);
  products(w, outputs, inputs, x, raw.data());
  for (int o = 0; o < outputs; o++) {
    int32_t y = raw[o];
    if (p) {
      int32_t term = 0;
      for (int r = 0; r < rank; r++) term = wrapped_add(term, wrapped_multiply(p->a[o * rank + r], projection[r]));
      y = wrapped_add(y, term >> shift);
    }
    out[o] = (int8_t)clip((int32_t)floor_divide(y, 16 * isqrt(inputs)));
  }
}

void norm(const int8_t* x, const int8_t* w, int width, int8_t* out) {
  int32_t total = 0;
  for (int i = 0; i < width; i++) total += std::abs(x[i]);
  const int32_t d = std::max(total, 1) / width;
  for (int i = 0; i < width; i++) {
    const int32_t product = x[i] * w[i];
    if (d == 0)
      out[i] = product == 0 ? -1 : -2;
    else
      out[i] = (int8_t)clip((int32_t)floor_divide(product, d));
  }
}

void gate(int8_t* fa, const int8_t* fb, const int8_t* bf, const int8_t* h, int width, int8_t* g) {
  for (int i = 0; i < width; i++) {
    fa[i] = (int8_t)clip(fa[i] + fb[i] + bf[i]);
    g[i] = (int8_t)(((fa[i] + 127) * h[i]) >> 8);
  }
}

void recur(const int8_t* ca, const int8_t* cb, const int8_t* bh, const int8_t* fa, int width, int8_t* h, int8_t* x) {
  for (int i = 0; i < width; i++) {
    const int32_t f = fa[i] + 127, c = clip(ca[i] + cb[i] + bh[i]);
    h[i] = (int8_t)(h[i] + ((f * (c - h[i])) >> 8));
    x[i] = (int8_t)clip(x[i] + h[i]);
  }
}

int32_t log_likelihood(const int8_t* logits, int vocab, int target) {
  // In double, whose error is far smaller than the distance of any integer's logarithm from a step, but for the powers
  // of two, of which exp2 and log2 are exact.
  double sum = 0;
  for (int j = 0; j < vocab; j++) {
    const int l = logits[j] + 128;
    sum += std::floor(16 * std::ldexp(std::exp2(l % 16 / 16.0), l / 16));
  }
  const int32_t log2 = (int32_t)std::floor(16 * std::log2(sum / 16));
  return logits[target] + 128 - log2;
}

int64_t score(const Shape& shape, Params params, const Noise* noise, uint64_t member, const uint8_t* inputs,
              const uint8_t* targets, size_t tokens, int8_t* states, int8_t* logits) {
  const int D = shape.width, V = shape.vocab;
  const int rank = noise ? noise->rank : 0, shift = noise ? noise->shift : 0;
  const auto product = [&](int leaf, int layer, const std::vector<int8_t>& x) {
    const int outputs = leaf_rows(shape, leaf), in = leaf_cols(shape, leaf);
    std::vector<int8_t> y(outputs);
    Perturbation p;
    if (noise) p = perturbation(shape, *noise, leaf, layer, member);
    matmul(params[leaf] + (size_t)layer * outputs * in, outputs, in, x.data(), noise ? &p : nullptr, rank, shift,
           y.data());
    return y;
  };
  const auto vector = [&](int leaf, int layer) {
    const int8_t* v = params[leaf] + (size_t)layer * D;
    std::vector<int8_t> out(v, v + D);
    if (!noise) return out;
    const Perturbation p = perturbation(shape, *noise, leaf, layer, member);
    for (int i = 0; i < D; i++) out[i] = (int8_t)clip(out[i] + (p.e[i] >> shift));
    return out;
  };

  int64_t total = 0;
  std::vector<int8_t> x(D), y(D);
  for (size_t t = 0; t < tokens; t++) {
    const int token = inputs[t];
    if (token == 0) std::fill(states, states + (size_t)shape.layers * D, 0);
    for (int i = 0; i < D; i++) x[i] = params[kEmb][(size_t)token * D + i];
    if (noise) {
      const Perturbation p = perturbation(shape, *noise, kEmb, 0, member);
      for (int i = 0; i < D; i++) {
        int32_t term = 0;
        for (int r = 0; r < rank; r++) term = wrapped_add(term, p.b[i * rank + r] * p.a[token * rank + r]);
        x[i] = (int8_t)clip(x[i] + (term >> shift));
      }
    }
    for (int layer = 0; layer < shape.layers; layer++) {
      int8_t* h = states + (size_t)layer * D;
      const std::vector<int8_t> state(h, h + D);
      norm(x.data(), vector(kLn1, layer).data(), D, y.data());
      std::vector<int8_t> f = product(kWf, layer, y), g(D);
      gate(f.data(), product(kUf, layer, state).data(), vector(kBf, layer).data(), h, D, g.data());
      recur(product(kWh, layer, y).data(), product(kUh, layer, g).data(), vector(kBh, layer).data(), f.data(), D, h,
            x.data());
      norm(x.data(), vector(kLn2, layer).data(), D, y.data());
      const std::vector<int8_t> out = product(kMlp1, layer, product(kMlp0, layer, y));
      for (int i = 0; i < D; i++) x[i] = (int8_t)clip(x[i] + out[i]);
    }
    norm(x.data(), vector(kLnOut, 0).data(), D, y.data());
    const std::vector<int8_t> out = product(kHead, 0, y);
    if (logits) std::copy(out.begin(), out.end(), logits + t * V);
    if (targets) total += log_likelihood(out.data(), V, targets[t]);
  }
  return total;
}

void votes(const Shape& shape, const Noise& noise, int leaf, int layer, const int8_t* fitness, size_t pairs,
           bool use_clt, const uint8_t* reads, size_t pairs_per_lane, int64_t* z) {
  const int rows = leaf_rows(shape, leaf), cols = leaf_cols(shape, leaf), rank = noise.rank;
  const auto value = [use_clt](int32_t v) { return use_clt ? v : sign(v); };
  std::fill(z, z + (size_t)rows * cols, 0);
  for (size_t pair = 0; pair < pairs; pair++) {
    const Perturbation p = perturbation(shape, noise, leaf, layer, 2 * pair);
    for (int o = 0; o < rows; o++) {
      if (leaf == kEmb && reads && !reads[pair / pairs_per_lane * shape.vocab + o]) continue;
      for (int n = 0; n < cols; n++) {
        if (!is_matrix(leaf)) z[o] += fitness[pair] * value(p.e[o]);
        for (int r = 0; is_matrix(leaf) && r < rank; r++)
          z[(size_t)o * cols + n] += fitness[pair] * value(p.a[o * rank + r]) * value(p.b[n * rank + r]);
      }
    }
  }
}

void move(const int64_t* z, size_t n, const int8_t* old, int64_t bound, int8_t* out) {
  for (size_t i = 0; i < n; i++) {
    const int step = 16 * std::abs(z[i]) < bound ? 0 : z[i] > 0 ? 1 : -1;
    out[i] = (int8_t)clip(old[i] + step);
  }
}

} // namespace nanoegg::naive
