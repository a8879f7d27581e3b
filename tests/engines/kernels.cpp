// A C interface to single kernels and their scalar twins, which kernels.py calls. The fast kernels are those of the
// installed extension, received as a pointer to its table of instruction sets; only the twins are compiled here.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "naive.h"
#include "naive_nudge.h"
#include "parallel.h"
#include "tables.h"
#include "weights.h"

using namespace nanoegg;

namespace {

const Isa* const* isas = nullptr;

// The instruction set of that name; null for "naive".
const Isa* find(const char* name) {
  for (const Isa* const* isa = isas; *isa; isa++)
    if (std::strcmp(name, (*isa)->name) == 0) return *isa;
  return nullptr;
}

// Rows at padded distances, as the kernels expect them.
Buffer pad_rows(const int8_t* rows, size_t count, size_t width) {
  Buffer buffer(count * padded(width));
  for (size_t i = 0; i < count; i++) std::copy_n(rows + i * width, width, buffer.as<int8_t>() + i * padded(width));
  return buffer;
}

template <class T>
void unpad_rows(const Buffer& buffer, size_t count, size_t width, T* rows) {
  for (size_t i = 0; i < count; i++) std::copy_n(buffer.as<T>() + i * padded(width), width, rows + i * width);
}

} // namespace

extern "C" {

int isa_bytes() { return (int)sizeof(Isa); }
void use_isas(const Isa* const* table) { isas = table; }

void draw(const char* isa, uint32_t hi, uint32_t lo, uint32_t start, size_t count, int8_t* out) {
  const Isa* fast = find(isa);
  (fast ? fast->draw : naive::draw)({hi, lo}, start, count, out);
}

void normals(const char* isa, const uint32_t* m, size_t count, int8_t* out) {
  if (const Isa* fast = find(isa)) return fast->pieces.normals(m, count, out);
  std::transform(m, m + count, out, naive::normal);
}

// b (members, rank, cols), a (members, rank, rows); rank 0: unperturbed.
void matmul(const char* isa, const int8_t* w, int rows, int cols, const int8_t* x, int members, const int8_t* b,
            const int8_t* a, int rank, int shift, int8_t* out) {
  const Isa* fast = find(isa);
  if (!fast) {
    for (int m = 0; m < members; m++) {
      naive::Perturbation p;
      for (int n = 0; n < cols; n++)
        for (int r = 0; r < rank; r++) p.b.push_back(b[((size_t)m * rank + r) * cols + n]);
      for (int o = 0; o < rows; o++)
        for (int r = 0; r < rank; r++) p.a.push_back(a[((size_t)m * rank + r) * rows + o]);
      naive::matmul(w, rows, cols, x + (size_t)m * cols, rank ? &p : nullptr, rank, shift, out + (size_t)m * rows);
    }
    return;
  }
  Buffer storage;
  const Packed packed = pack_matrix(*fast, w, rows, cols, storage);
  const Buffer xs = pad_rows(x, members, cols), ys((size_t)members * padded(rows));
  const size_t slot = rank * (padded(rows) + padded(cols));
  const Buffer factors(members * slot);
  std::vector<const int8_t*> each(members);
  for (int m = 0; m < members; m++) {
    int8_t* p = factors.as<int8_t>() + m * slot;
    each[m] = p;
    for (int r = 0; r < rank; r++) {
      std::copy_n(b + ((size_t)m * rank + r) * cols, cols, p + r * padded(cols));
      std::copy_n(a + ((size_t)m * rank + r) * rows, rows, p + rank * padded(cols) + r * padded(rows));
    }
  }
  std::vector<int32_t> signs(members, 1), start(members), projections((size_t)members * std::max(rank, 1));
  fast->pieces.matmul(packed, xs.as<int8_t>(), members, ys.as<int8_t>(), rank ? each.data() : nullptr, signs.data(),
                      rank, shift, start.data(), projections.data());
  unpad_rows(ys, members, rows, out);
}

// Raw products (members, rows).
void products(const char* isa, const int8_t* w, int rows, int cols, const int8_t* x, int members, int32_t* out) {
  const Isa* fast = find(isa);
  if (!fast) {
    for (int m = 0; m < members; m++) naive::products(w, rows, cols, x + (size_t)m * cols, out + (size_t)m * rows);
    return;
  }
  Buffer storage;
  const Packed packed = pack_matrix(*fast, w, rows, cols, storage);
  const Buffer xs = pad_rows(x, members, cols), raw((size_t)members * padded(rows) * sizeof(int32_t));
  std::vector<int32_t> start(members);
  fast->pieces.products(packed, xs.as<int8_t>(), members, start.data(), raw.as<int32_t>());
  unpad_rows(raw, members, rows, out);
}

void norm(const char* isa, const int8_t* x, const int8_t* w, int width, int8_t* out) {
  const Isa* fast = find(isa);
  const Buffer xs = pad_rows(x, 1, width), ws = pad_rows(w, 1, width), ys(padded(width));
  (fast ? fast->pieces.norm : naive::norm)(xs.as<int8_t>(), ws.as<int8_t>(), width, ys.as<int8_t>());
  unpad_rows(ys, 1, width, out);
}

// rows (4, width): fa, fb, bf, h; out (2, width): fa, g.
void gate(const char* isa, const int8_t* rows, int width, int8_t* out) {
  const Isa* fast = find(isa);
  const Buffer in = pad_rows(rows, 4, width), g(padded(width));
  const auto row = [&](int i) { return in.as<int8_t>() + i * padded(width); };
  (fast ? fast->pieces.gate : naive::gate)(row(0), row(1), row(2), row(3), width, g.as<int8_t>());
  unpad_rows(in, 1, width, out);
  unpad_rows(g, 1, width, out + width);
}

// rows (6, width): ca, cb, bh, fa, h, x; out (2, width): h, x.
void recur(const char* isa, const int8_t* rows, int width, int8_t* out) {
  const Isa* fast = find(isa);
  const Buffer in = pad_rows(rows, 6, width);
  const auto row = [&](int i) { return in.as<int8_t>() + i * padded(width); };
  (fast ? fast->pieces.recur : naive::recur)(row(0), row(1), row(2), row(3), width, row(4), row(5));
  std::copy_n(row(4), width, out);
  std::copy_n(row(5), width, out + width);
}

void coins(const char* isa, uint32_t hi, uint32_t lo, uint64_t first, size_t count, uint64_t* words) {
  const Isa* fast = find(isa);
  std::vector<uint64_t> room(count + 15);
  (fast ? fast->pieces.coins : naive::coins)({hi, lo}, first, count, room.data());
  std::copy_n(room.begin(), count, words);
}

void flip(const char* isa, const uint64_t* words, int inverted, size_t n, const int8_t* v, int8_t* out) {
  const Isa* fast = find(isa);
  (fast ? fast->pieces.flip : naive::flip)(words, inverted, n, v, out);
}

// rows (5, width): fa, fb, bf, e, h; out (2, width): fa, g.
void gate_nudged(const char* isa, const int8_t* rows, int width, int8_t* out) {
  const Isa* fast = find(isa);
  const Buffer in = pad_rows(rows, 5, width), g(padded(width));
  const auto row = [&](int i) { return in.as<int8_t>() + i * padded(width); };
  (fast ? fast->pieces.gate_nudged : naive::gate_nudged)(row(0), row(1), row(2), row(3), row(4), width, g.as<int8_t>());
  unpad_rows(in, 1, width, out);
  unpad_rows(g, 1, width, out + width);
}

// rows (7, width): ca, cb, bh, e, fa, h, x; out (2, width): h, x.
void recur_nudged(const char* isa, const int8_t* rows, int width, int8_t* out) {
  const Isa* fast = find(isa);
  const Buffer in = pad_rows(rows, 7, width);
  const auto row = [&](int i) { return in.as<int8_t>() + i * padded(width); };
  (fast ? fast->pieces.recur_nudged : naive::recur_nudged)(row(0), row(1), row(2), row(3), row(4), width, row(5),
                                                           row(6));
  std::copy_n(row(5), width, out);
  std::copy_n(row(6), width, out + width);
}

// rows (3, width): x, y, e; out (width,).
void add_nudged(const char* isa, const int8_t* rows, int width, int8_t* out) {
  const Isa* fast = find(isa);
  const Buffer in = pad_rows(rows, 3, width);
  const auto row = [&](int i) { return in.as<int8_t>() + i * padded(width); };
  (fast ? fast->pieces.add_nudged : naive::add_nudged)(row(0), row(1), row(2), padded(width));
  unpad_rows(in, 1, width, out);
}

// logits (2, vocab) of a pair; log2 (2,): LOG2 of their sums of EXP2.
void head_errors(const char* isa, const int8_t* logits, int vocab, const int32_t* log2, int target, int16_t* out) {
  const Isa* fast = find(isa);
  if (!fast) return naive::head_errors(logits, logits + vocab, vocab, target, out);
  const Buffer rows = pad_rows(logits, 2, vocab);
  std::vector<int16_t> errors(3 * padded(vocab));
  fast->pieces.head_errors(rows.as<int8_t>(), rows.as<int8_t>() + padded(vocab), vocab, log2, target, errors.data());
  std::copy_n(errors.begin(), vocab, out);
}

// d (tokens, pairs); out (2, tokens, pairs): own, later.
void credit(const char* isa, const int32_t* d, size_t tokens, int pairs, int decay, int8_t* out) {
  const Isa* fast = find(isa);
  int8_t* later = out + tokens * pairs;
  if (!fast) return naive::credit(d, tokens, pairs, decay, out, later);
  std::vector<int32_t> following(pairs);
  fast->pieces.credit(d, tokens, pairs, decay, following.data(), out, later);
}

// Sums over count k: coins (count,), w (count,), bytes (count,) and x (count, entries) -> z (n, entries), s (entries,)
// and by_byte (256, n).
void vote_sums(const char* isa, const uint64_t* coins, const int8_t* w, const uint8_t* bytes, const int8_t* x,
               size_t count, int entries, int n, int64_t* z, int64_t* s, int64_t* by_byte) {
  const Isa* fast = find(isa);
  if (!fast) {
    std::vector<int32_t> a, b(x, x + count * entries), credit(w, w + count);
    for (size_t k = 0; k < count; k++) {
      for (int i = 0; i < n; i++) a.push_back(coins[k] >> i & 1 ? w[k] : -w[k]);
      for (int i = 0; i < n; i++) by_byte[bytes[k] * n + i] += a[k * n + i];
    }
    naive::sum_products(a.data(), b.data(), count, n, entries, z);
    return naive::sum_squares(credit.data(), b.data(), count, entries, s);
  }
  const size_t depth = padded(count);
  const Buffer rows = pad_rows(x, count, entries), packed(depth * padded(entries)), words(depth * sizeof *coins),
               credit = pad_rows(w, 1, count), a(depth * kPad);
  std::copy_n(coins, count, words.as<uint64_t>());
  fast->pack_columns(rows.as<int8_t>(), padded(entries), (int)count, entries, packed.data());
  // pack_columns ends at the last group that holds a k.
  const size_t filled = (count + fast->group - 1) / fast->group * fast->group;
  int32_t totals[kPad];
  fast->sums.coin_rows(words.as<uint64_t>(), credit.as<int8_t>(), count, a.as<int8_t>(), totals);
  fast->sums.products(a.as<int8_t>(), totals, 0, n, packed.data(), entries, filled, 0, count, 1, z);
  fast->sums.squares(packed.data(), entries, filled, count, credit.as<int8_t>(), s);
  fast->sums.by_byte(words.as<uint64_t>(), credit.as<int8_t>(), bytes, count, n, n, by_byte);
}

// coins and w (samples, count); low and high (count, kPad).
void coin_digits(const char* isa, const uint64_t* coins, const int8_t* w, int samples, size_t count, int8_t* low,
                 int8_t* high) {
  const Isa* fast = find(isa);
  if (!fast) return naive::coin_digits(coins, count, w, count, samples, count, low, high);
  const size_t depth = padded(count), G = (size_t)fast->group;
  const Buffer words(samples * depth * sizeof *coins), credit = pad_rows(w, samples, count), rows(2 * depth * kPad);
  for (int j = 0; j < samples; j++) std::copy_n(coins + j * count, count, words.as<uint64_t>() + j * depth);
  int8_t* const packed = rows.as<int8_t>();
  fast->sums.coin_digits(words.as<uint64_t>(), depth, credit.as<int8_t>(), depth, samples, count, packed,
                         packed + depth * kPad);
  for (size_t k = 0; k < count; k++)
    for (size_t i = 0; i < kPad; i++) {
      const size_t at = k / G * G * kPad + i * G + k % G;
      low[k * kPad + i] = packed[at];
      high[k * kPad + i] = packed[depth * kPad + at];
    }
}

// x (count, entries), q (count,) -> s (entries,)
void weighted_squares(const char* isa, const int8_t* x, const int32_t* q, size_t count, int entries, int64_t* s) {
  const Isa* fast = find(isa);
  if (!fast) {
    const std::vector<int32_t> b(x, x + count * entries);
    return naive::weighted_squares(q, b.data(), count, entries, s);
  }
  const size_t depth = padded(count), filled = (count + fast->group - 1) / fast->group * fast->group;
  const Buffer rows = pad_rows(x, count, entries), packed(depth * padded(entries)), weights(depth * sizeof *q);
  std::copy_n(q, count, weights.as<int32_t>());
  fast->pack_columns(rows.as<int8_t>(), padded(entries), (int)count, entries, packed.as<uint8_t>());
  fast->sums.weighted_squares(packed.as<uint8_t>(), entries, filled, count, weights.as<int32_t>(), s);
}

int32_t log_likelihood(const char* isa, const int8_t* logits, int vocab, int target) {
  const Isa* fast = find(isa);
  return (fast ? fast->pieces.log_likelihood : naive::log_likelihood)(logits, vocab, target);
}

void move(const char* isa, const int64_t* z, size_t n, const int8_t* old, int64_t bound, int8_t* out) {
  const Isa* fast = find(isa);
  (fast ? fast->move : naive::move)(z, n, old, bound, out);
}

int32_t log2_table(uint32_t s) { return log2_sixteenths(s); }
int32_t pow2_entry(int i) { return pow2_table[i]; }
int32_t exp2_entry(int i) { return exp2_table[i]; }
int quota(const char* root) { return cgroup_cpus(root); }

// shape: vocab, width, layers. noise: null for none.
void naive_score(const int* shape, const int8_t* const* params, const Noise* noise, uint64_t first_member, int members,
                 const uint8_t* inputs, const uint8_t* targets, size_t tokens, int8_t* states, int64_t* scores,
                 int8_t* logits) {
  const Shape s{shape[0], shape[1], shape[2]};
  for (int i = 0; i < members; i++)
    scores[i] = naive::score(s, params, noise, first_member + i, inputs + i * tokens, targets + i * tokens, tokens,
                             states + (size_t)i * s.layers * s.width, logits + i * tokens * s.vocab);
}

// z[leaf]: the leaf's sums; reads may be null.
void naive_votes(const int* shape, const Noise* noise, const int8_t* fitness, size_t pairs, int use_clt, int normalised,
                 const uint8_t* reads, size_t pairs_per_lane, int64_t* const* z) {
  const Shape s{shape[0], shape[1], shape[2]};
  for (int leaf = 0; leaf < kLeaves; leaf++) {
    const size_t size = (size_t)leaf_rows(s, leaf) * leaf_cols(s, leaf);
    for (int layer = 0; layer < leaf_layers(s, leaf); layer++) {
      int64_t* const out = z[leaf] + layer * size;
      naive::votes(s, *noise, leaf, layer, fitness, pairs, use_clt, reads, pairs_per_lane, out);
      for (size_t i = 0; normalised && i < size; i++) out[i] >>= 4;
    }
  }
}

} // extern "C"
