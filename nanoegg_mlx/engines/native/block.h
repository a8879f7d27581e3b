// A block of members through all its tokens (spec sections 3 to 5), written once and compiled once per instruction set.
//
// A translation unit isa_*.cpp switches its instruction set on, defines a struct `Tile` with the two dot-product
// kernels only it can write, and includes this file; everything else here is plain loops over padded rows, which the
// compiler turns into that set's vector instructions. What `Tile` holds:
//   kLanes, kPanel, kGroup, kBias  the packing, see Packed; kPanel divides kPad
//   kVectors, kMembers             a tile is at most kVectors * kLanes (= kPanel) outputs by kMembers members
//   multiply<NV, NM>(...)          one tile of raw products
//   dot(b, x, n, sums)             sums[0] = b . x and sums[1] = sum x over n (a multiple of kPad) entries
//   sum(x, n)                      sum x, needed only if kBias
//   exp2_sum(logits, vocab)        sum EXP2[logits + 128]
//   peak(rounds)
//
// Notable:
// * Dot products of unsigned by signed bytes take the weight as w + 128. The 128 sum(x) too much is subtracted by
//   starting the accumulators there, so no other code knows.
// * A perturbed matrix is never built: A (B^T x) is added to the raw products of a tile while they are in L1.
// * The noise of a pair is drawn once for both members and the whole epoch; vectors, whose noise is dense, are
//   perturbed once per member.
// * Everything is integer, so the order of summation, and with it tiles, blocks and threads, cannot change a result.
// Everything lives in an anonymous namespace: each instruction set has its own copy.

#include "kernels.h"

namespace nanoegg {
namespace {

// As two steps, each a minimum or maximum: nested in one expression the compiler makes branches of them.
inline int32_t clamp(int32_t v, int32_t low, int32_t high) {
  v = v < low ? low : v;
  return v > high ? high : v;
}
inline int32_t clip(int32_t v) { return clamp(v, -127, 127); }
inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }
inline bool stopped(const int* stop) { return stop && __atomic_load_n(stop, __ATOMIC_RELAXED); }

// clip(v // d) for d < 2^14. v is first clipped to where the quotient is; then v + 128 d is positive and below 256 d,
// exact in float, and half a unit added keeps (v + 0.5) / d at least 0.5 / d > 2^-15 away from the integers, where the
// two roundings (reciprocal, product) move it by at most 256 * 2^-23 = 2^-15.
inline int32_t divide_clip(int32_t v, int32_t d, float reciprocal) {
  v = clamp(v, -127 * d, 128 * d - 1);
  return (int32_t)(((float)(v + 128 * d) + 0.5f) * reciprocal) - 128;
}

inline int32_t integer_sqrt(int32_t n) {
  int32_t root = 0;
  while ((root + 1) * (root + 1) <= n) root++;
  return root;
}

// The divisor 16 isqrt(inputs) of a matrix product.
struct Divisor {
  int32_t value;
  float reciprocal;
  int log2; // -1 if it is no power of two
  explicit Divisor(int inputs) : value(16 * integer_sqrt(inputs)), reciprocal(1.0f / (float)value), log2(-1) {
    for (int s = 0; s < 31; s++)
      if (value == 1 << s) log2 = s;
  }
};

// Random numbers

inline uint32_t rotate(uint32_t x, int r) { return x << r | x >> (32 - r); }

constexpr size_t kDraws = 512; // drawn at a time, a multiple of 16

// out[i] = the truncated normal of m[i], by the lookup of tables.cpp: bucket from the float's high bits, place in the
// bucket from the 16 bits below. whole is count rounded up to a multiple of 16, at most kDraws.
inline void look_up(const uint32_t* __restrict m, size_t count, size_t whole, int8_t* __restrict out) {
  uint32_t entries[kDraws], offsets[kDraws];
  for (size_t i = 0; i < whole; i++) {
    const uint32_t side = m[i] >> 22;
    const int32_t t = (int32_t)(side ? m[i] ^ 0x7FFFFFu : m[i]);
    const float f = (float)(t + 1);
    uint32_t bits;
    __builtin_memcpy(&bits, &f, sizeof bits);
    entries[i] = side * kNormalBuckets + ((bits - 0x3F800000u) >> 18);
    offsets[i] = bits >> 2 & 0xFFFF;
  }
  // A loop of its own, so that it can become gathers.
  for (size_t i = 0; i < whole; i++) {
    const uint32_t entry = normal_lookup[entries[i]];
    entries[i] = entry >> (offsets[i] >= entry >> 16 ? 8u : 0u);
  }
  for (size_t i = 0; i < count; i++) out[i] = (int8_t)entries[i];
}

void normals(const uint32_t* m, size_t count, int8_t* out) {
  uint32_t chunk[kDraws] = {};
  for (size_t done = 0; done < count; done += kDraws) {
    const size_t n = smaller(kDraws, count - done);
    __builtin_memcpy(chunk, m + done, n * sizeof *m);
    look_up(chunk, n, (n + 15) / 16 * 16, out + done);
  }
}

void draw(Key key, uint32_t start, size_t count, int8_t* out) {
  const uint32_t k0 = key.hi, k1 = key.lo, k2 = k0 ^ k1 ^ 0x1BD11BDAu;
  uint32_t m[kDraws];
  for (size_t done = 0; done < count; done += kDraws) {
    const size_t n = smaller(kDraws, count - done);
    const size_t whole = (n + 15) / 16 * 16;
    const uint32_t first = start + (uint32_t)done;
    for (size_t i = 0; i < whole; i++) {
      uint32_t a = k0, b = first + (uint32_t)i + k1;
      const auto round = [&a, &b](int r) { a += b, b = rotate(b, r) ^ a; };
      round(13), round(15), round(26), round(6), a += k1, b += k2 + 1;
      round(17), round(29), round(16), round(24), a += k2, b += k0 + 2;
      round(13), round(15), round(26), round(6), a += k0, b += k1 + 3;
      round(17), round(29), round(16), round(24), a += k1, b += k2 + 4;
      round(13), round(15), round(26), round(6), a += k2, b += k0 + 5;
      m[i] = (a ^ b) >> 9;
    }
    look_up(m, n, whole, out + done);
  }
}

// Matrix products

using MultiplyFn = void (*)(const uint8_t* panel, int groups, const int8_t* x, size_t stride, const int32_t* start,
                            int32_t* raw);

template <int NV, int NM>
constexpr MultiplyFn pick_multiply(int vectors, int members) {
  if (members < NM) {
    if constexpr (NM > 1) return pick_multiply<NV, NM - 1>(vectors, members);
  }
  if (vectors < NV) {
    if constexpr (NV > 1) return pick_multiply<NV - 1, NM>(vectors, members);
  }
  return Tile::template multiply<NV, NM>;
}

// Where accumulators start, see the top of the file.
inline int32_t accumulator_start(int32_t sum) { return Tile::kBias ? -128 * sum : 0; }
template <class T = Tile>
inline int32_t accumulator_start(const int8_t* x, size_t n) {
  if constexpr (T::kBias != 0) return -128 * T::sum(x, n);
  return 0;
}

// Calls use(member, first output, raw) for every member and panel, raw being kPanel products (zero past the outputs).
template <class Use>
inline void for_each_tile(const Packed& w, const int8_t* x, size_t stride, int members, const int32_t* start, Use use) {
  const int groups = (w.cols + Tile::kGroup - 1) / Tile::kGroup;
  const int lanes_total = (w.rows + Tile::kLanes - 1) / Tile::kLanes * Tile::kLanes;
  const int tiles = (members + Tile::kMembers - 1) / Tile::kMembers;
  const int each = members / tiles, extra = members % tiles;
  alignas(64) int32_t raw[Tile::kMembers * Tile::kPanel];
  const uint8_t* panel = w.data;
  for (int o = 0; o < lanes_total; o += Tile::kPanel) {
    const int width = (int)smaller(Tile::kPanel, lanes_total - o), vectors = width / Tile::kLanes;
    if (vectors < Tile::kVectors) __builtin_memset(raw, 0, sizeof raw);
    const MultiplyFn full =
        pick_multiply<Tile::kVectors, Tile::kMembers>(vectors, each + 1 > Tile::kMembers ? each : each + 1);
    const MultiplyFn part = each ? pick_multiply<Tile::kVectors, Tile::kMembers>(vectors, each) : full;
    int m = 0;
    for (int t = 0; t < tiles; t++) {
      const int count = each + (t < extra);
      (t < extra ? full : part)(panel, groups, x + m * stride, stride, start + m, raw);
      for (int i = 0; i < count; i++) use(m + i, o, raw + i * Tile::kPanel);
      m += count;
    }
    panel += (size_t)width * groups * Tile::kGroup;
  }
}

// How much of the perturbation there is to add, decided outside of the loops.
enum Rank { kUnperturbed, kRankOne, kAnyRank };

template <bool kShift>
inline int8_t quotient(int32_t v, const Divisor& divisor) {
  return (int8_t)(kShift ? clip(v >> divisor.log2) : divide_clip(v, divisor.value, divisor.reciprocal));
}

// One member's outputs of one panel: raw + ((A u) >> shift), divided and clipped. A's planes are `plane` apart.
template <Rank kRank, bool kShift>
inline void finish(const int32_t* __restrict raw, const int8_t* __restrict a, size_t plane, const int32_t* __restrict u,
                   int rank, int shift, const Divisor& divisor, int8_t* __restrict out) {
  if constexpr (kRank == kUnperturbed) {
    for (int i = 0; i < Tile::kPanel; i++) out[i] = quotient<kShift>(raw[i], divisor);
  } else if constexpr (kRank == kRankOne) {
    const uint32_t u0 = (uint32_t)u[0];
    for (int i = 0; i < Tile::kPanel; i++) {
      const int32_t term = (int32_t)((uint32_t)(int32_t)a[i] * u0) >> shift;
      out[i] = quotient<kShift>((int32_t)((uint32_t)raw[i] + (uint32_t)term), divisor);
    }
  } else {
    uint32_t sum[Tile::kPanel] = {};
    for (int r = 0; r < rank; r++)
      for (int i = 0; i < Tile::kPanel; i++) sum[i] += (uint32_t)(int32_t)a[r * plane + i] * (uint32_t)u[r];
    for (int i = 0; i < Tile::kPanel; i++)
      out[i] = quotient<kShift>((int32_t)((uint32_t)raw[i] + (uint32_t)((int32_t)sum[i] >> shift)), divisor);
  }
}

// A matrix product's arguments: out (members, padded(rows)) = matmul(W, x) of spec section 3. factors[m] + offset
// points to the member's B planes, the A planes follow; null: unperturbed. start and projections are workspace.
struct Product {
  const Packed& w;
  const int8_t* x;
  int members;
  int8_t* out;
  const int8_t* const* factors;
  size_t offset;
  const int32_t* signs;
  int rank, shift;
  int32_t *start, *projections;
};

template <Rank kRank, bool kShift>
void multiply_members(const Product& p, const Divisor& divisor) {
  const size_t in = padded(p.w.cols), outs = padded(p.w.rows);
  for (int m = 0; m < p.members; m++) {
    const int8_t* row = p.x + m * in;
    if constexpr (kRank == kUnperturbed) {
      p.start[m] = accumulator_start(row, in);
    } else {
      int32_t sums[2] = {0, 0};
      for (int r = 0; r < p.rank; r++) {
        Tile::dot(p.factors[m] + p.offset + r * in, row, in, sums);
        p.projections[m * p.rank + r] = (int32_t)((uint32_t)p.signs[m] * (uint32_t)sums[0]);
      }
      p.start[m] = accumulator_start(sums[1]);
    }
  }
  const size_t a = p.offset + p.rank * in;
  for_each_tile(p.w, p.x, in, p.members, p.start, [&](int m, int o, const int32_t* raw) {
    finish<kRank, kShift>(raw, kRank == kUnperturbed ? nullptr : p.factors[m] + a + o, outs, p.projections + m * p.rank,
                          p.rank, p.shift, divisor, p.out + m * outs + o);
  });
}

void multiply(const Product& p) {
  const Divisor divisor(p.w.cols);
  const bool shift = divisor.log2 >= 0;
  if (!p.factors) {
    (shift ? multiply_members<kUnperturbed, true> : multiply_members<kUnperturbed, false>)(p, divisor);
  } else if (p.rank == 1) {
    (shift ? multiply_members<kRankOne, true> : multiply_members<kRankOne, false>)(p, divisor);
  } else {
    (shift ? multiply_members<kAnyRank, true> : multiply_members<kAnyRank, false>)(p, divisor);
  }
}
void matmul(const Packed& w, const int8_t* x, int members, int8_t* out, const int8_t* const* factors,
            const int32_t* signs, int rank, int shift, int32_t* start, int32_t* projections) {
  multiply({w, x, members, out, factors, 0, signs, rank, shift, start, projections});
}

void products(const Packed& w, const int8_t* x, int members, int32_t* start, int32_t* raw) {
  const size_t in = padded(w.cols), outs = padded(w.rows);
  for (int m = 0; m < members; m++) start[m] = accumulator_start(x + m * in, in);
  for_each_tile(w, x, in, members, start, [&](int m, int o, const int32_t* tile) {
    __builtin_memcpy(raw + m * outs + o, tile, Tile::kPanel * sizeof *raw);
  });
}

void votes(const int8_t* a, size_t stride, int rows, const Packed& b, int32_t scale, int64_t* z) {
  constexpr int kRows = 64;
  int32_t start[kRows];
  for (int first = 0; first < rows; first += kRows) {
    const int count = (int)smaller(kRows, rows - first);
    const int8_t* block = a + first * stride;
    for (int m = 0; m < count; m++) start[m] = accumulator_start(block + m * stride, padded(b.cols));
    for_each_tile(b, block, stride, count, start, [&](int m, int o, const int32_t* raw) {
      int64_t* row = z + (size_t)(first + m) * b.rows + o;
      const int n = (int)smaller(Tile::kPanel, b.rows - o);
      for (int i = 0; i < n; i++) row[i] += (int64_t)scale * raw[i];
    });
  }
}

void pack_columns(const int8_t* b_rows, size_t stride, int columns, int cols, uint8_t* packed) {
  constexpr int G = Tile::kGroup;
  static const int8_t zeros[kPad] = {};
  const int groups = (columns + G - 1) / G;
  const int lanes_total = (cols + Tile::kLanes - 1) / Tile::kLanes * Tile::kLanes;
  for (int n = 0; n < lanes_total; n += Tile::kPanel) {
    const int width = (int)smaller(Tile::kPanel, lanes_total - n);
    for (int k = 0; k < groups * G; k += G, packed += width * G) {
      const int8_t* row[G];
      for (int j = 0; j < G; j++) row[j] = k + j < columns ? b_rows + (k + j) * stride + n : zeros;
      for (int i = 0; i < width; i++)
        for (int j = 0; j < G; j++) packed[i * G + j] = (uint8_t)row[j][i] ^ Tile::kBias;
    }
  }
}

int64_t move(const int64_t* __restrict z, size_t n, const int8_t* __restrict old, int64_t bound,
             int8_t* __restrict out) {
  int64_t moved = 0;
  const auto entries = [&](size_t count) {
    int32_t changed = 0;
    for (size_t i = 0; i < count; i++) {
      const int64_t magnitude = 16 * (z[i] < 0 ? -z[i] : z[i]);
      const int32_t step = z[i] > 0 ? 1 : -1;
      const int32_t value = clip(old[i] + (magnitude < bound ? 0 : step));
      out[i] = (int8_t)value;
      changed += value != old[i];
    }
    moved += changed;
    z += count, old += count, out += count;
  };
  for (; n >= kPad; n -= kPad) entries(kPad);
  entries(n);
  return moved;
}

// The rest of the network, one member's rows at a time. The inner loops have kPad rounds and no aliasing, which is all
// the compiler needs to turn them into straight vector code.

void norm(const int8_t* __restrict x, const int8_t* __restrict w, int width, int8_t* __restrict out) {
  const size_t n = padded(width);
  int32_t total = 0;
  for (size_t i = 0; i < n; i += kPad)
    for (size_t j = 0; j < kPad; j++) total += x[i + j] < 0 ? -x[i + j] : x[i + j];
  const int32_t d = (total > 1 ? total : 1) / width;
  if (d == 0) {
    for (int i = 0; i < width; i++) out[i] = x[i] * w[i] == 0 ? -1 : -2;
    return;
  }
  const float reciprocal = 1.0f / (float)d;
  for (size_t i = 0; i < n; i += kPad, x += kPad, w += kPad, out += kPad)
    for (size_t j = 0; j < kPad; j++) out[j] = (int8_t)divide_clip(x[j] * w[j], d, reciprocal);
}

void gate(int8_t* __restrict fa, const int8_t* __restrict fb, const int8_t* __restrict bf, const int8_t* __restrict h,
          int width, int8_t* __restrict g) {
  for (size_t n = padded(width); n; n -= kPad, fa += kPad, fb += kPad, bf += kPad, h += kPad, g += kPad) {
    for (size_t j = 0; j < kPad; j++) {
      const int16_t s = (int16_t)(fa[j] + fb[j] + bf[j]);
      const int16_t low = s < -127 ? -127 : s, f = low > 127 ? 127 : low;
      fa[j] = (int8_t)f;
      g[j] = (int8_t)((int16_t)((int16_t)(f + 127) * (int16_t)h[j]) >> 8);
    }
  }
}

void recur(const int8_t* __restrict ca, const int8_t* __restrict cb, const int8_t* __restrict bh,
           const int8_t* __restrict fa, int width, int8_t* __restrict h, int8_t* __restrict x) {
  for (size_t n = padded(width); n; n -= kPad, ca += kPad, cb += kPad, bh += kPad, fa += kPad, h += kPad, x += kPad) {
    for (size_t j = 0; j < kPad; j++) {
      const int32_t c = clip(ca[j] + cb[j] + bh[j]);
      const int32_t state = h[j] + (((fa[j] + 127) * (c - h[j])) >> 8);
      h[j] = (int8_t)state;
      x[j] = (int8_t)clip(x[j] + state);
    }
  }
}

// x = clip(x + y)
inline void add(int8_t* __restrict x, const int8_t* __restrict y, size_t n) {
  for (; n; n -= kPad, x += kPad, y += kPad) {
    for (size_t j = 0; j < kPad; j++) {
      const int16_t s = (int16_t)(x[j] + y[j]), low = s < -127 ? -127 : s;
      x[j] = (int8_t)(low > 127 ? 127 : low);
    }
  }
}

int32_t log_likelihood(const int8_t* logits, int vocab, int target) {
  return logits[target] + 128 - log2_sixteenths(Tile::exp2_sum(logits, vocab));
}

double exact_bits(const int8_t* logits, int vocab, int target) {
  double sum = 0;
  for (int j = 0; j < vocab; j++) sum += exp2_exact[logits[j] + 128];
  return exact_log2(sum) - (logits[target] + 128) / 16.0;
}

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
    const int token = b.inputs[m][t];
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
    if (stopped(b.stop)) return; // a product of a wide model takes long, and the block's results will be thrown away
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
      b.scores[m] += log_likelihood(logits, V, b.targets[m][t]);
      if (b.bits) b.bits[m * b.tokens + t] = exact_bits(logits, V, b.targets[m][t]);
    }
  }

  for (int m = 0; m < M; m++)
    for (int layer = 0; layer < L; layer++)
      __builtin_memcpy(b.states + ((size_t)m * L + layer) * D, b.h + ((size_t)layer * M + m) * row, D);
}

constexpr Isa make_isa(const char* name) {
  static_assert(kPad % Tile::kPanel == 0 && Tile::kVectors * Tile::kLanes == Tile::kPanel && kPad % Tile::kGroup == 0,
                "");
  return {name,     Tile::kLanes, Tile::kPanel, Tile::kGroup, Tile::kBias, run_block,
          draw,     normals,      votes,        pack_columns, move,        Tile::peak,
          products, matmul,       norm,         gate,         recur,       log_likelihood};
}

} // namespace
} // namespace nanoegg
