// Learning from nudged activations without Python: the cases of write_cases.py, and kernels against the scalar twins of
// naive_nudge.h.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "engine.h"
#include "naive_nudge.h"
#include "nodes.h"
#include "random_inputs.h"

using namespace nanoegg;

namespace {

// Arrays for the results of a call.
struct Results {
  std::vector<int8_t> states;
  std::vector<int64_t> scores;
  // Z, then S, in the order of core.activations.Moments.
  std::vector<std::vector<int64_t>> sums;

  // The task with these arrays in it.
  NudgeTask with(NudgeTask task, const Shape& shape, const std::vector<int8_t>& before, bool input_products = false) {
    states = before;
    scores.assign(task.cohorts * task.size, 0);
    sums.clear();
    const std::vector<int> order{kWf, kUf, kWh, kUh, kMlp0, kMlp1, kBf, kBh, kEmb, kHead};
    const auto add = [&](size_t size) {
      sums.emplace_back(size);
      return sums.back().data();
    };
    for (const int leaf : order) task.z[leaf] = add(leaf_size(shape, leaf));
    for (const int leaf : order) {
      if (leaf == kHead && task.head_nudge == 0) task.squared_errors = add(shape.vocab);
      task.s[leaf] = add(leaf == kEmb ? shape.vocab : (size_t)leaf_layers(shape, leaf) * leaf_cols(shape, leaf));
    }
    for (int input = 0; input_products && input < 6; input++)
      task.products[input] = add(input == 5 ? shape.width * kPad : shape.layers * input_size(shape, input) * kPad);
    task.states = states.data();
    task.scores = scores.data();
    return task;
  }
};

void compare(const Results& is, const Results& expected, const std::string& what) {
  check(same(is.scores, expected.scores), what + ": scores");
  check(same(is.states, expected.states), what + ": states");
  for (size_t i = 0; i < expected.sums.size(); i++)
    check(same(is.sums[i], expected.sums[i]), what + ": sums " + std::to_string(i));
}

void check_coins(const Isa& isa) {
  for (const size_t count : {1, 15, 16, 17, 200}) {
    const Key key{(uint32_t)random_word(), (uint32_t)random_word()};
    for (const uint64_t first : {(uint64_t)0, ((uint64_t)7 << 32) - 9, random_word(), ~(uint64_t)0 - 3}) {
      std::vector<uint64_t> fast(count + 15), slow(count);
      isa.pieces.coins(key, first, count, fast.data());
      naive::coins(key, first, count, slow.data());
      fast.resize(count);
      check(same(fast, slow), std::string(isa.name) + " coins");
    }
  }
  for (int way = 0; way < kWays; way++) {
    std::vector<uint64_t> words{random_word(), 0, ~(uint64_t)0};
    std::vector<int8_t> v(192), fast(192), slow(192);
    fill(v.data(), v.size(), way);
    for (const bool inverted : {false, true}) {
      isa.pieces.flip(words.data(), inverted, 192, v.data(), fast.data());
      naive::flip(words.data(), inverted, 192, v.data(), slow.data());
      check(same(fast, slow), std::string(isa.name) + " flip");
    }
  }
}

void check_rows(const Isa& isa) {
  for (int width = 1; width <= 150; width++) {
    const size_t n = padded(width);
    // One buffer of each: fa, fb, bf, e, h, x.
    std::vector<std::vector<int8_t>> fast(6, std::vector<int8_t>(n));
    for (size_t i = 0; i < fast.size(); i++) fill(fast[i].data(), width, random_way(), i == 3 ? 64 : 127);
    auto slow = fast;
    std::vector<int8_t> g(n), slow_g(n);
    const auto rows = [](auto& r, int i) { return r[i].data(); };
    isa.pieces.gate_nudged(rows(fast, 0), rows(fast, 1), rows(fast, 2), rows(fast, 3), rows(fast, 4), width, g.data());
    naive::gate_nudged(rows(slow, 0), rows(slow, 1), rows(slow, 2), rows(slow, 3), rows(slow, 4), width, slow_g.data());
    check(fast == slow && same(g, slow_g), std::string(isa.name) + " nudged gate of " + std::to_string(width));
    isa.pieces.recur_nudged(rows(fast, 1), rows(fast, 2), g.data(), rows(fast, 3), rows(fast, 0), width, rows(fast, 4),
                            rows(fast, 5));
    naive::recur_nudged(rows(slow, 1), rows(slow, 2), g.data(), rows(slow, 3), rows(slow, 0), width, rows(slow, 4),
                        rows(slow, 5));
    check(fast == slow, std::string(isa.name) + " nudged recurrence of " + std::to_string(width));
    isa.pieces.add_nudged(rows(fast, 5), rows(fast, 1), rows(fast, 3), n);
    naive::add_nudged(rows(slow, 5), rows(slow, 1), rows(slow, 3), n);
    check(fast == slow, std::string(isa.name) + " nudged sum of " + std::to_string(width));
  }
}

void check_errors(const Isa& isa) {
  for (int vocab = 1; vocab <= 256; vocab++) {
    const size_t n = padded(vocab);
    std::vector<int8_t> logits[2] = {std::vector<int8_t>(n), std::vector<int8_t>(n)};
    const int target = random_in(0, vocab - 1);
    int32_t log2[2];
    for (int i = 0; i < 2; i++) {
      fill(logits[i].data(), vocab, random_way());
      log2[i] = logits[i][target] + 128 - naive::log_likelihood(logits[i].data(), vocab, target);
    }
    std::vector<int16_t> fast(3 * n), slow(n);
    isa.pieces.head_errors(logits[0].data(), logits[1].data(), vocab, log2, target, fast.data());
    naive::head_errors(logits[0].data(), logits[1].data(), vocab, target, slow.data());
    fast.resize(n);
    check(same(fast, slow), std::string(isa.name) + " head errors of " + std::to_string(vocab));
  }
  for (int decay = 0; decay < 16; decay++) {
    const int pairs = random_in(1, 40), tokens = random_in(1, 30);
    const size_t count = (size_t)pairs * tokens;
    std::vector<int32_t> d(count), following(pairs);
    for (int32_t& v : d) v = random_in(-400, 400);
    std::vector<int8_t> own(count), later(count), slow_own(count), slow_later(count);
    isa.pieces.credit(d.data(), tokens, pairs, decay, following.data(), own.data(), later.data());
    naive::credit(d.data(), tokens, pairs, decay, slow_own.data(), slow_later.data());
    check(same(own, slow_own) && same(later, slow_later), std::string(isa.name) + " credit");
  }
}

// Sums over `count` k of `entries` inputs, and a chunk of `n` nudged entries.
void check_sums(const Isa& isa, size_t count, int entries, int n) {
  const std::string what =
      std::string(isa.name) + " sums of " + std::to_string(count) + " x " + std::to_string(entries);
  const size_t depth = padded(count), stride = padded(entries);
  std::vector<uint64_t> coins(depth);
  std::vector<int8_t> w(depth), x(depth * stride), rows(depth * kPad);
  std::vector<uint8_t> bytes(depth), packed(depth * stride);
  for (uint64_t& word : coins) word = random_word();
  for (uint8_t& byte : bytes) byte = (uint8_t)random_in(0, 3);
  fill(w.data(), count, random_way());
  for (size_t k = 0; k < count; k++) fill(x.data() + k * stride, entries, random_way());
  isa.pack_columns(x.data(), stride, (int)depth, entries, packed.data());

  std::vector<int32_t> credit(w.begin(), w.begin() + count), a(count * n), b;
  for (size_t k = 0; k < count; k++) {
    for (int i = 0; i < n; i++) a[k * n + i] = coins[k] >> i & 1 ? w[k] : -w[k];
    b.insert(b.end(), x.begin() + k * stride, x.begin() + k * stride + entries);
  }
  std::vector<int64_t> z((size_t)n * entries), s(entries), emb(4 * n), slow_z(z.size()), slow_s(entries),
      slow_emb(4 * n);
  const int begin = n / 3, scale = random_in(0, 1) ? 1 : 128;
  const size_t cut = padded((count + 1) / 2);
  int32_t totals[kPad], again[kPad];
  for (size_t first = 0; first < count; first += cut) {
    const size_t these = std::min(cut, count - first);
    isa.sums.coin_rows(coins.data() + first, w.data() + first, these, rows.data(), totals);
    isa.sums.row_totals(rows.data(), these, again);
    check(same(totals, again, sizeof totals), what + ": totals");
    isa.sums.products(rows.data(), totals, begin, n - begin, packed.data(), entries, depth, first, these, scale,
                      z.data() + (size_t)begin * entries);
  }
  naive::sum_products(a.data(), b.data(), count, n, entries, slow_z.data());
  std::fill_n(slow_z.begin(), (size_t)begin * entries, 0);
  for (int64_t& v : slow_z) v *= scale;
  check(same(z, slow_z), what + ": products");

  isa.sums.squares(packed.data(), entries, depth, count, w.data(), s.data());
  naive::sum_squares(credit.data(), b.data(), count, entries, slow_s.data());
  check(same(s, slow_s), what + ": squares");
  isa.sums.by_byte(coins.data(), w.data(), bytes.data(), count, n, n, emb.data());
  for (size_t k = 0; k < count; k++)
    for (int i = 0; i < n; i++) slow_emb[(size_t)bytes[k] * n + i] += a[k * n + i];
  check(same(emb, slow_emb), what + ": by byte");
}

// The digits of summed coins, their products with inputs, and squares with weights, of `samples` samples.
void check_digits(const Isa& isa, size_t count, int samples, int entries) {
  const std::string what =
      std::string(isa.name) + " digits of " + std::to_string(samples) + " x " + std::to_string(count) + ": ";
  const size_t depth = padded(count), stride = padded(entries), G = (size_t)isa.group;
  // The rows of coins and credits are farther apart than they are long.
  const size_t coins_stride = depth + 64, w_stride = depth + 128;
  std::vector<uint64_t> coins(samples * coins_stride);
  std::vector<int8_t> w(samples * w_stride), x(depth * stride), low(depth * kPad), high(low.size());
  const int coin_way = random_in(0, 3), way = random_way();
  for (uint64_t& word : coins) word = coin_way == 0 ? 0 : coin_way == 1 ? ~(uint64_t)0 : random_word();
  for (int j = 0; j < samples; j++) fill(w.data() + j * w_stride, count, way);
  isa.sums.coin_digits(coins.data(), coins_stride, w.data(), w_stride, samples, count, low.data(), high.data());

  std::vector<int8_t> slow_low(count * kPad), slow_high(count * kPad);
  naive::coin_digits(coins.data(), coins_stride, w.data(), w_stride, samples, count, slow_low.data(), slow_high.data());
  bool equal = true;
  std::vector<int32_t> a(count * kPad), b;
  for (size_t k = 0; k < count; k++)
    for (size_t i = 0; i < kPad; i++) {
      const size_t packed = k / G * G * kPad + i * G + k % G, plain = k * kPad + i;
      equal = equal && low[packed] == slow_low[plain] && high[packed] == slow_high[plain];
      a[plain] = slow_low[plain] + 128 * slow_high[plain];
    }
  check(equal, what + "digits");

  for (size_t k = 0; k < count; k++) {
    fill(x.data() + k * stride, entries, random_way());
    b.insert(b.end(), x.begin() + k * stride, x.begin() + k * stride + entries);
  }
  std::vector<uint8_t> packed(depth * stride);
  isa.pack_columns(x.data(), stride, (int)depth, entries, packed.data());
  std::vector<int64_t> z(kPad * (size_t)entries), slow_z(z.size()), s(entries), slow_s(entries);
  int32_t totals[kPad];
  for (const auto& [digits, scale] : {std::pair{&low, 1}, std::pair{&high, 128}}) {
    isa.sums.row_totals(digits->data(), count, totals);
    isa.sums.products(digits->data(), totals, 0, kPad, packed.data(), entries, depth, 0, count, scale, z.data());
  }
  naive::sum_products(a.data(), b.data(), count, kPad, entries, slow_z.data());
  check(same(z, slow_z), what + "products");

  std::vector<int32_t> q(depth);
  const bool largest = random_in(0, 1);
  for (size_t k = 0; k < count; k++) q[k] = largest ? samples * 127 * 127 : random_in(0, samples * 127 * 127);
  isa.sums.weighted_squares(packed.data(), entries, depth, count, q.data(), s.data());
  naive::weighted_squares(q.data(), b.data(), count, entries, slow_s.data());
  check(same(s, slow_s), what + "squares");
}

// Whole calls, of random models and options.
void check_calls(const Isa& isa, bool antithetic) {
  int number = 0;
  for (const Shape shape :
       {Shape{1, 1, 1}, Shape{5, 7, 2}, Shape{17, 33, 3}, Shape{256, 20, 1}, Shape{70, 65, 1}, Shape{3, 130, 2}}) {
    const Random model(shape, 1, 8, 0, number % 5);
    const Weights weights(isa, shape, model.params.data());
    NudgeTask task;
    task.key = model.noise.key;
    task.antithetic = antithetic;
    task.size = antithetic ? 2 : std::vector<int>{2, 128, 10, 4}[number % 4];
    task.first_member = number % 2 ? (random_word() >> 8) / task.size * task.size : 0;
    task.cohorts = random_in(1, antithetic ? 9 : 3), task.tokens = random_in(1, 7);
    task.nudge = random_in(1, 64), task.credit_decay = random_in(0, 15);
    task.head_nudge = number % 2 ? random_in(1, 64) : 0;
    std::vector<uint8_t> inputs(task.cohorts * task.tokens), targets(inputs.size());
    for (uint8_t& v : inputs) v = random_in(0, 4) ? (uint8_t)random_in(0, shape.vocab - 1) : 0;
    for (uint8_t& v : targets) v = (uint8_t)random_in(0, shape.vocab - 1);
    task.inputs = inputs.data(), task.targets = targets.data();
    std::vector<int8_t> states(task.cohorts * task.size * shape.layers * shape.width);
    fill(states.data(), states.size(), random_way());
    Results slow;
    const bool input_products = number % 3 != 2;
    naive::nudge(shape, model.params.data(), slow.with(task, shape, states, input_products));
    for (const int block : {0, 2, 6, 20}) {
      Results fast;
      nudge(weights, fast.with(task, shape, states, input_products), 1 + block / 2 % 4, block, nullptr);
      compare(fast, slow,
              std::string("nudge ") + isa.name + " of width " + std::to_string(shape.width) + ", cohorts of " +
                  std::to_string(task.size) + ", block " + std::to_string(block));
    }
    number++;
  }
}

} // namespace

void check_nudges(const Isa& isa) {
  check_coins(isa);
  check_rows(isa);
  check_errors(isa);
  for (const size_t count : {1, 7, 63, 64, 65, 300, 700})
    for (const int entries : {1, 15, 33, 64, 100, 130}) check_sums(isa, count, entries, random_in(1, 64));
  for (const int samples : {1, 2, 9, 63, 127})
    for (const size_t count : {1, 7, 64, 65, 300}) check_digits(isa, count, samples, random_in(1, 130));
  check_calls(isa, true);
  check_calls(isa, false);
}

void check_nudge_cases(Reader& in) {
  for (int64_t left = in.number(), number = 0; left > 0; left--, number++) {
    const std::vector<char> letters = in.read<char>((size_t)in.number());
    Shape shape;
    shape.vocab = (int)in.number(), shape.width = (int)in.number(), shape.layers = (int)in.number();
    NudgeTask task;
    task.key.hi = (uint32_t)in.number(), task.key.lo = (uint32_t)in.number();
    task.nudge = (int)in.number(), task.head_nudge = (int)in.number(), task.credit_decay = (int)in.number();
    task.first_member = (uint64_t)in.number(), task.size = (int)in.number(), task.antithetic = in.number() != 0;
    task.cohorts = (size_t)in.number(), task.tokens = (size_t)in.number();
    const Leaves params = read_leaves(in, shape);
    const size_t state = (size_t)shape.layers * shape.width;
    const std::vector<uint8_t> inputs = in.read<uint8_t>(task.cohorts * task.tokens),
                               targets = in.read<uint8_t>(inputs.size());
    const std::vector<int8_t> states = in.read<int8_t>(task.cohorts * task.size * state);
    task.inputs = inputs.data(), task.targets = targets.data();
    Results expected;
    expected.with(task, shape, states);
    expected.scores = in.read<int64_t>(expected.scores.size());
    expected.states = in.read<int8_t>(states.size());
    for (auto& sums : expected.sums) sums = in.read<int64_t>(sums.size());
    int turn = (int)number;
    for (const Isa* const* isa = available_isas(); *isa; isa++, turn++) {
      Results results;
      const Weights weights(**isa, shape, pointers<const int8_t*>(params).data());
      nudge(weights, results.with(task, shape, states), 1 + turn % 3, std::vector<int>{0, 2, 4, 64}[turn % 4], nullptr);
      compare(results, expected, std::string((*isa)->name) + ", " + std::string(letters.begin(), letters.end()));
    }
  }
}
