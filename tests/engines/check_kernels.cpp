// The kernels of an instruction set against the scalar twins of naive.h, on random and extreme inputs: single kernels,
// then whole calls of score() and votes().
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "engine.h"
#include "naive.h"
#include "normal_steps.h"
#include "random_inputs.h"

using namespace nanoegg;

namespace {

bool same_rows(const Buffer& buffer, const std::vector<int8_t>& rows, size_t count, size_t width) {
  for (size_t i = 0; i < count; i++)
    if (!same(buffer.as<int8_t>() + i * padded(width), rows.data() + i * width, width)) return false;
  return true;
}

void check_draws(const Isa& isa) {
  std::vector<uint32_t> m;
  for (const uint32_t step : kNormalIndex)
    for (uint32_t v = step - 1; v <= step + 1; v++)
      if (v < 1u << 23) m.push_back(v);
  for (uint32_t i = 0; i < 1u << 23; i += 4099) m.push_back(i);
  std::vector<int8_t> fast(m.size()), slow;
  for (const uint32_t v : m) slow.push_back(naive::normal(v));
  isa.pieces.normals(m.data(), m.size(), fast.data());
  check(same(fast, slow), std::string(isa.name) + " normals");
  for (const size_t count : {1, 2, 15, 16, 17, 511, 512, 513, 1100}) {
    const Key key{(uint32_t)random_word(), (uint32_t)random_word()};
    const uint32_t last = (uint32_t)((1u << 30) - count);
    for (const uint32_t start : {0u, (uint32_t)random_in(0, (int)last), last}) {
      std::vector<int8_t> a(count), b(count);
      isa.draw(key, start, count, a.data());
      naive::draw(key, start, count, b.data());
      check(same(a, b), std::string(isa.name) + " draw of " + std::to_string(count));
    }
  }
}

void check_product(const Isa& isa, int rows, int cols, int members, int rank) {
  std::vector<int8_t> w((size_t)rows * cols), x((size_t)members * cols), expected((size_t)members * rows);
  fill(w.data(), w.size(), random_way());
  for (int m = 0; m < members; m++) fill(x.data() + (size_t)m * cols, cols, random_way());
  const std::string what = std::string(isa.name) + " product of " + std::to_string(rows) + " x " +
                           std::to_string(cols) + ", members " + std::to_string(members) + ", rank " +
                           std::to_string(rank);
  Buffer storage;
  const Packed packed = pack_matrix(isa, w.data(), rows, cols, storage);
  const Buffer xs = padded_rows(x.data(), members, cols);
  std::vector<int32_t> start(members), raw(members * padded(rows)), expected_raw(rows);
  isa.pieces.products(packed, xs.as<int8_t>(), members, start.data(), raw.data());
  bool equal = true;
  for (int m = 0; m < members; m++) {
    naive::products(w.data(), rows, cols, x.data() + (size_t)m * cols, expected_raw.data());
    equal = equal && same(raw.data() + m * padded(rows), expected_raw.data(), rows * sizeof(int32_t));
  }
  check(equal, what);

  const int shift = random_in(0, 31);
  const size_t in = padded(cols), out = padded(rows), slot = rank * (in + out);
  Buffer factors(members * slot), ys(members * out);
  std::vector<const int8_t*> each;
  std::vector<int32_t> signs, projections((size_t)members * std::max(rank, 1));
  for (int m = 0; m < members; m++) {
    int8_t* b = factors.as<int8_t>() + m * slot;
    int8_t* a = b + rank * in;
    each.push_back(b);
    signs.push_back(m % 2 ? -1 : 1);
    const int way = random_way();
    naive::Perturbation p;
    for (int r = 0; r < rank; r++) fill(b + r * in, cols, way), fill(a + r * out, rows, random_way());
    for (int i = 0; i < cols; i++)
      for (int r = 0; r < rank; r++) p.b.push_back(b[r * in + i]);
    for (int i = 0; i < rows; i++)
      for (int r = 0; r < rank; r++) p.a.push_back(signs[m] * a[r * out + i]);
    naive::matmul(w.data(), rows, cols, x.data() + (size_t)m * cols, rank ? &p : nullptr, rank, shift,
                  expected.data() + (size_t)m * rows);
  }
  isa.pieces.matmul(packed, xs.as<int8_t>(), members, ys.as<int8_t>(), rank ? each.data() : nullptr, signs.data(), rank,
                    shift, start.data(), projections.data());
  check(same_rows(ys, expected, members, rows), what + ", shift " + std::to_string(shift));
}

void check_products(const Isa& isa) {
  for (int cols = 1; cols <= 140; cols++)
    check_product(isa, random_in(1, 70), cols, random_in(1, 13), std::vector<int>{0, 1, 1, 2, 3}[cols % 5]);
  for (const int cols : {256, 257, 1040, 1041, 1100, 4097})
    for (int rank = 0; rank <= 2; rank++) check_product(isa, 65, cols, random_in(1, 8), rank);
  // The largest possible sums: 65536 products of -128 and -128, or of 255 and 127 before their correction.
  const int cols = 65536;
  for (const int8_t value : {127, -128}) {
    const std::vector<int8_t> w(2 * cols, value), x(cols, value);
    Buffer storage;
    const Packed packed = pack_matrix(isa, w.data(), 2, cols, storage);
    const Buffer xs = padded_rows(x.data(), 1, cols);
    int32_t start[1];
    std::vector<int32_t> raw(padded(2));
    isa.pieces.products(packed, xs.as<int8_t>(), 1, start, raw.data());
    check(raw[0] == value * value * cols && raw[1] == raw[0], std::string(isa.name) + " largest sum");
  }
}

void check_elementwise(const Isa& isa) {
  for (int width = 1; width <= 200; width++) {
    const int d = 1 + width % 127;
    std::vector<int8_t> in[6], a(width), b(width);
    for (auto& v : in) {
      v.resize(width);
      fill(v.data(), width, random_way(), width % 3 ? 127 : d);
    }
    const std::string what = std::string(isa.name) + " of width " + std::to_string(width);
    Buffer rows[6];
    for (int i = 0; i < 6; i++) rows[i] = padded_rows(in[i].data(), 1, width);
    const auto row = [&rows](int i) { return rows[i].as<int8_t>(); };
    const Buffer out(padded(width));

    isa.pieces.norm(row(0), row(1), width, out.as<int8_t>());
    naive::norm(in[0].data(), in[1].data(), width, a.data());
    check(same_rows(out, a, 1, width), "norm " + what);

    a = in[0];
    isa.pieces.gate(row(0), row(1), row(2), row(3), width, out.as<int8_t>());
    naive::gate(a.data(), in[1].data(), in[2].data(), in[3].data(), width, b.data());
    check(same_rows(rows[0], a, 1, width) && same_rows(out, b, 1, width), "gate " + what);

    a = in[4], b = in[5];
    isa.pieces.recur(row(1), row(2), row(3), row(0), width, row(4), row(5));
    std::vector<int8_t> f(row(0), row(0) + width);
    naive::recur(in[1].data(), in[2].data(), in[3].data(), f.data(), width, a.data(), b.data());
    check(same_rows(rows[4], a, 1, width) && same_rows(rows[5], b, 1, width), "recur " + what);
  }
  for (int vocab = 1; vocab <= 256; vocab++) {
    std::vector<int8_t> logits(vocab);
    fill(logits.data(), vocab, vocab % kWays);
    const int target = random_in(0, vocab - 1);
    check(
        isa.pieces.log_likelihood(logits.data(), vocab, target) == naive::log_likelihood(logits.data(), vocab, target),
        std::string("log-likelihood ") + isa.name + " of " + std::to_string(vocab));
  }
  for (int n = 0; n <= 150; n++) {
    const int64_t bound = std::vector<int64_t>{0, 1, 16 * 500, 16 * 500 + 1, (int64_t)1 << 60}[n % 5];
    std::vector<int64_t> z(n);
    std::vector<int8_t> old(n), a(n), b(n);
    for (int64_t& v : z) v = n % 2 ? random_in(-1000, 1000) : (int64_t)random_word() >> 5;
    fill(old.data(), n, n % kWays);
    isa.move(z.data(), n, old.data(), bound, a.data());
    naive::move(z.data(), n, old.data(), bound, b.data());
    check(same(a, b), std::string("move ") + isa.name + " of " + std::to_string(n));
  }
}

void check_scores(const Isa& isa, const Random& model, bool perturbed) {
  const Shape& s = model.shape;
  const Weights weights(isa, s, model.params.data());
  const size_t members = random_in(1, 21), tokens = 5, state = (size_t)s.layers * s.width;
  const uint64_t first = random_in(0, 9);
  std::vector<uint8_t> inputs(members * tokens), targets(inputs.size());
  for (uint8_t& v : inputs) v = random_in(0, 4) ? (uint8_t)random_in(0, s.vocab - 1) : 0;
  for (uint8_t& v : targets) v = (uint8_t)random_in(0, s.vocab - 1);
  std::vector<int8_t> before(members * state), slow, logits(members * tokens * s.vocab), slow_logits(logits.size());
  fill(before.data(), before.size(), random_way());
  slow = before;
  std::vector<int64_t> slow_scores(members);
  const Noise* noise = perturbed ? &model.noise : nullptr;
  for (size_t i = 0; i < members; i++)
    slow_scores[i] =
        naive::score(s, model.params.data(), noise, first + i, inputs.data() + i * tokens, targets.data() + i * tokens,
                     tokens, slow.data() + i * state, slow_logits.data() + i * tokens * s.vocab);
  for (const int block : {0, 2, 6}) {
    std::vector<int8_t> states = before;
    std::vector<int64_t> scores(members);
    score(weights,
          {noise, first, members, tokens, inputs.data(), targets.data(), states.data(), scores.data(), nullptr,
           logits.data()},
          1 + block, block, nullptr);
    check(
        same(scores, slow_scores) && same(states, slow) && same(logits, slow_logits),
        std::string("score ") + isa.name + " of width " + std::to_string(s.width) + ", block " + std::to_string(block));
  }
}

// lanes: 0, or of a text that has some of the bytes only.
void check_votes(const Isa& isa, const Random& model, bool use_clt, bool fast, size_t lanes) {
  const Shape& s = model.shape;
  std::vector<int8_t> fitness(300);
  fill(fitness.data(), fitness.size(), 0, fast ? 1 : 127);
  std::vector<std::vector<int64_t>> z;
  std::vector<int64_t*> pointers;
  for (const auto& leaf : model.leaves) z.emplace_back(leaf.size());
  for (auto& v : z) pointers.push_back(v.data());
  std::vector<uint8_t> reads(lanes * s.vocab);
  for (uint8_t& v : reads) v = (uint8_t)random_in(0, 1);
  const uint8_t* read = lanes ? reads.data() : nullptr;
  const size_t each_lane = fitness.size() / std::max<size_t>(lanes, 1);
  votes(isa, {s, model.noise, fitness.data(), fitness.size(), use_clt, false, read, each_lane}, 3, nullptr,
        pointers.data());
  for (int leaf = 0; leaf < kLeaves; leaf++) {
    std::vector<int64_t> expected(z[leaf].size());
    const size_t each = (size_t)leaf_rows(s, leaf) * leaf_cols(s, leaf);
    for (int layer = 0; layer < leaf_layers(s, leaf); layer++)
      naive::votes(s, model.noise, leaf, layer, fitness.data(), fitness.size(), use_clt, read, each_lane,
                   expected.data() + layer * each);
    check(same(z[leaf], expected), std::string("votes ") + isa.name + " for " + kLeafNames[leaf]);
  }
}

} // namespace

void check_kernels(const Isa& isa) {
  random_state = 1; // the same inputs for every instruction set
  check_draws(isa);
  check_products(isa);
  check_elementwise(isa);
  int number = 0;
  for (const Shape shape : {Shape{1, 1, 1}, Shape{5, 7, 2}, Shape{17, 33, 1}, Shape{256, 20, 1}}) {
    for (const int rank : {1, 3}) {
      const Random model(shape, rank, std::vector<int>{0, 8, 31, 4}[number % 4], number % 3 ? 0 : 6, number % 5);
      check_scores(isa, model, true);
      check_scores(isa, model, false);
      if (shape.vocab < 256)
        check_votes(isa, model, number % 2, number % 3, std::vector<size_t>{0, 300, 12}[number % 3]);
      number++;
    }
  }
  check_nudges(isa);
}
