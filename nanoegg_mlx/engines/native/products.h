// Matrix products of packed matrices, made of the instruction set's `Tile` (tile.h): perturbed ones for the network,
// raw ones for votes.
//
// Notable:
// * A perturbed matrix is never built: A (B^T x) is added to the raw products of a tile while they are in L1.
// * Everything is integer, so the order of summation, and with it tiles, blocks and threads, cannot change a result.
#pragma once

#include "arithmetic.h"

namespace nanoegg {
namespace {

using MultiplyFn = void (*)(const uint8_t* panel, int groups, const int8_t* x, size_t stride, size_t step,
                            const int32_t* start, int32_t* raw);

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

// Where accumulators start: -128 sum(x) if weights are packed as w + 128 (see tile.h).
inline int32_t accumulator_start(int32_t sum) { return Tile::kBias ? -128 * sum : 0; }
template <class T = Tile>
inline int32_t accumulator_start(const int8_t* x, size_t n) {
  if constexpr (T::kBias != 0) return -128 * T::sum(x, n);
  return 0;
}

inline int whole_groups(size_t inputs) { return (int)((inputs + Tile::kGroup - 1) / Tile::kGroup); }
inline int whole_lanes(int rows) { return (rows + Tile::kLanes - 1) / Tile::kLanes * Tile::kLanes; }

// `groups` groups of inputs of a packed matrix that has `depth` bytes for each output.
struct Panels {
  const uint8_t* data;
  int rows, groups;
  size_t depth;
};
inline Panels panels(const Packed& w) {
  const int groups = whole_groups(w.cols);
  return {w.data, w.rows, groups, (size_t)groups * Tile::kGroup};
}

// The members' inputs: group g of member m is at x + m stride + g step.
struct Members {
  const int8_t* x;
  size_t stride, step;
  int count;
};

// Calls use(member, first output, raw) for every member and panel, raw being kPanel products (zero past the outputs).
// The members are spread evenly over the fewest tiles: a tile of one member would load each weight for it alone.
template <class Use>
inline void for_each_tile(const Panels& w, const Members& x, const int32_t* start, Use use) {
  const int lanes_total = whole_lanes(w.rows);
  const int tiles = (x.count + Tile::kMembers - 1) / Tile::kMembers;
  const int each = x.count / tiles, extra = x.count % tiles;
  alignas(64) int32_t raw[Tile::kMembers * Tile::kPanel];
  for (int o = 0; o < lanes_total; o += Tile::kPanel) {
    const uint8_t* panel = w.data + (size_t)o * w.depth;
    const int width = (int)smaller(Tile::kPanel, lanes_total - o), vectors = width / Tile::kLanes;
    if (vectors < Tile::kVectors) __builtin_memset(raw, 0, sizeof raw);
    const MultiplyFn full =
        pick_multiply<Tile::kVectors, Tile::kMembers>(vectors, each + 1 > Tile::kMembers ? each : each + 1);
    const MultiplyFn part = each ? pick_multiply<Tile::kVectors, Tile::kMembers>(vectors, each) : full;
    int m = 0;
    for (int t = 0; t < tiles; t++) {
      const int count = each + (t < extra);
      (t < extra ? full : part)(panel, w.groups, x.x + m * x.stride, x.stride, x.step, start + m, raw);
      for (int i = 0; i < count; i++) use(m + i, o, raw + i * Tile::kPanel);
      m += count;
    }
  }
}

// The perturbation to add, decided outside of the loops.
enum Rank { kUnperturbed, kRankOne, kAnyRank };

template <bool kShift>
inline int8_t quotient(int32_t v, const Divisor& divisor) {
  return (int8_t)(kShift ? clip(v >> divisor.log2) : divide_clip(v, divisor.value, divisor.reciprocal));
}

// One member's outputs of one panel: raw + ((A u) >> shift), divided and clipped. A's planes are `plane` apart.
// Unsigned sums wrap at 32 bits, as the spec's int32 does; signed overflow would be undefined.
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
  for_each_tile(panels(p.w), {p.x, in, Tile::kGroup, p.members}, p.start, [&](int m, int o, const int32_t* raw) {
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
  for_each_tile(panels(w), {x, in, Tile::kGroup, members}, start, [&](int m, int o, const int32_t* tile) {
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
    for_each_tile(panels(b), {block, stride, Tile::kGroup, count}, start, [&](int m, int o, const int32_t* raw) {
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

} // namespace
} // namespace nanoegg
