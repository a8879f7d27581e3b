// The vocabulary shared by every native source: shapes, noise, packed weights, one block of work, and the table of
// kernels each instruction set fills in.
//
// Notable: the files compiled for one instruction set (isa_*.cpp and block.h) may only use this header and plain
// pointers. A function of the standard library that got compiled there, with AVX-512 instructions say, could be the
// copy the linker keeps for everybody. For the same reason the helpers below are `static inline`.
#pragma once

#include <stddef.h>
#include <stdint.h>

// The instruction sets that not every compiler with C++17 knows: GCC 11 and clang 12 (Apple's 13) are the first with
// AVX-VNNI, GCC 10 with Arm's int8 matrix multiply.
#ifndef NANOEGG_AVXVNNI
#if defined(__apple_build_version__)
#define NANOEGG_AVXVNNI (__clang_major__ >= 13)
#elif defined(__clang__)
#define NANOEGG_AVXVNNI (__clang_major__ >= 12)
#else
#define NANOEGG_AVXVNNI (__GNUC__ >= 11)
#endif
#endif
#ifndef NANOEGG_I8MM
#if defined(__clang__)
#define NANOEGG_I8MM 1
#else
#define NANOEGG_I8MM (__GNUC__ >= 10)
#endif
#endif

namespace nanoegg {

// Leaves of the parameter tree in the order of spec section 2.
enum Leaf : int { kUf, kUh, kWf, kWh, kBf, kBh, kLn1, kLn2, kMlp0, kMlp1, kEmb, kHead, kLnOut, kLeaves };

extern const char* const kLeafNames[kLeaves];

// Every activation row, noise factor and vector is padded with zeros to a multiple of this many entries, so that the
// vector loops have no tails. The padding stays zero through the network, except where a comment says otherwise.
constexpr size_t kPad = 64;
static inline size_t padded(size_t n) { return (n + kPad - 1) / kPad * kPad; }

struct Shape {
  int vocab, width, layers;
};
static inline bool is_matrix(int leaf) { return leaf < kBf || (leaf >= kMlp0 && leaf <= kHead); }
static inline bool is_layered(int leaf) { return leaf < kEmb; }
static inline int leaf_layers(const Shape& s, int leaf) { return is_layered(leaf) ? s.layers : 1; }
// Outputs of a matrix; length of a vector.
static inline int leaf_rows(const Shape& s, int leaf) {
  return leaf == kMlp0 ? 4 * s.width : leaf == kEmb || leaf == kHead ? s.vocab : s.width;
}
// Inputs of a matrix; 1 for a vector.
static inline int leaf_cols(const Shape& s, int leaf) {
  return !is_matrix(leaf) ? 1 : leaf == kMlp1 ? 4 * s.width : s.width;
}

struct Key {
  uint32_t hi, lo;
};

// Everything that decides a member's perturbation (spec section 3).
struct Noise {
  Key key;                       // key(seed)
  const uint32_t* base[kLeaves]; // base[leaf][layer], first word of fold_in(leaf_key, true_epoch)
  int rank;
  int shift;              // 4 + sigma_shift, at most 31: a larger shift of an int32 gives the same
  uint64_t perturbations; // num_perturbations, 0 for one noise per pair
};
static inline uint64_t noise_pair(const Noise& noise, uint64_t member) {
  return (noise.perturbations ? member % noise.perturbations : member) >> 1;
}
static inline uint32_t noise_start(uint32_t base, uint64_t pair64, uint64_t length) {
  const uint32_t pair = (uint32_t)pair64;
  const uint32_t hash = ((pair >> 16) ^ pair) * 0x45D9F3Bu;
  const uint32_t start = (base ^ hash) & ((1u << 30) - 1);
  const uint32_t last = (uint32_t)((1u << 30) - length);
  return start < last ? start : last;
}
static inline uint64_t noise_length(const Shape& s, int leaf, int rank) {
  return is_matrix(leaf) ? (uint64_t)(leaf_rows(s, leaf) + leaf_cols(s, leaf)) * rank
                         : 2 * (uint64_t)leaf_rows(s, leaf);
}

// Where one pair's low-rank factors lie in its slot of a block's noise: for each matrix, `rank` planes B of
// padded(inputs) bytes, then `rank` planes A of padded(outputs).
static inline size_t factor_bytes(const Shape& s, int leaf, int rank) {
  return rank * (padded(leaf_cols(s, leaf)) + padded(leaf_rows(s, leaf)));
}
static inline size_t factor_offset(const Shape& s, int leaf, int layer, int rank) {
  size_t in_layer = 0, per_layer = 0, after = 0;
  for (int i = 0; i < kLeaves; i++) {
    if (!is_matrix(i)) continue;
    const size_t bytes = factor_bytes(s, i, rank);
    if (is_layered(i)) {
      if (i < leaf) in_layer += bytes;
      per_layer += bytes;
    } else if (i < leaf) {
      after += bytes;
    }
  }
  return is_layered(leaf) ? layer * per_layer + in_layer : s.layers * per_layer + after;
}
static inline size_t slot_bytes(const Shape& s, int rank) {
  return factor_offset(s, kHead, 0, rank) + factor_bytes(s, kHead, rank);
}

// Vectors lie as rows of padded(width): bf, bh, ln1, ln2 of each layer, ln_out last.
static inline size_t vector_row(const Shape& s, int leaf, int layer) {
  return leaf == kLnOut ? 4 * (size_t)s.layers : 4 * (size_t)layer + (leaf - kBf);
}
static inline size_t vector_rows(const Shape& s) { return 4 * (size_t)s.layers + 1; }

// A matrix packed for one instruction set's dot product: panels of `panel` outputs (the last one narrower, a multiple
// of `lanes`); in a panel, for each group of `group` consecutive inputs, `group` bytes of each output in turn.
struct Packed {
  const uint8_t* data;
  int rows, cols;
};

struct Model {
  Shape shape;
  const Packed* matrices[kLeaves]; // [layer]; none for emb, which is only looked up
  const int8_t* emb;               // (V, padded(D))
  const int8_t* vectors;           // (vector_rows, padded(D))
};

// A few members running through all their tokens on one core. The buffers after `stop` are the core's own workspace.
struct Block {
  const Model* model;
  const Noise* noise; // null: unperturbed
  uint64_t first_member;
  int members;
  size_t tokens;
  const uint8_t* const* inputs;  // [member] -> tokens bytes
  const uint8_t* const* targets; // [member] -> tokens bytes; null: nothing is scored
  int8_t* states;                // (members, L, D), read and written
  int64_t* scores;               // (members,), or null
  double* bits;                  // (members, tokens) exact code lengths in bits, or null
  int8_t* logits;                // (members, tokens, V), or null
  const int* stop;               // polled; non-zero ends the block early

  uint8_t* slots;              // noise factors, one slot a pair
  int8_t* slot_draws;          // raw draws of one leaf
  int8_t* vectors;             // (members, vector_rows, padded(D)) perturbed vectors
  const int8_t** factors;      // [member] -> its pair's slot
  int32_t* signs;              // [member]
  int8_t *x, *y, *fa, *fb, *g; // (members, padded(D)) each
  int8_t* mid;                 // (members, padded(4 D))
  int8_t* out;                 // (members, padded(V))
  int8_t* h;                   // (L, members, padded(D))
  int32_t* start;              // (members,) start values of the accumulators
  int32_t* projections;        // (members, rank) sign * B^T x
};

// What an instruction set brings. `matmul` to `log_likelihood` are the pieces of `run_block`, exposed for the tests
// that hold them against naive.h; their rows have padded() lengths with zero padding.
struct Isa {
  const char* name;
  int lanes, panel, group;
  uint8_t bias; // XORed into packed weights: 0x80 where the instruction wants them unsigned

  void (*run_block)(const Block&);
  // out[i] = truncated normal draw start + i of key.
  void (*draw)(Key key, uint32_t start, size_t count, int8_t* out);
  // out[i] = the truncated normal of the 23-bit m[i]; part of draw.
  void (*normals)(const uint32_t* m, size_t count, int8_t* out);
  // z (rows, cols) += scale * a (rows, K) b^T, with b (cols, K) packed; a's rows are `stride` apart, zero past K.
  void (*votes)(const int8_t* a, size_t stride, int rows, const Packed& b, int32_t scale, int64_t* z);
  // Packs columns [0, columns) of the transposed b_rows[k][n] (n < cols) as inputs of a Packed with cols outputs.
  void (*pack_columns)(const int8_t* b_rows, size_t stride, int columns, int cols, uint8_t* packed);
  // Spec section 7's step of n entries, given their sums; returns how many changed.
  int64_t (*move)(const int64_t* z, size_t n, const int8_t* old, int64_t bound, int8_t* out);
  // Int8 multiply-adds carried out by `rounds` rounds of nothing but dot products in registers.
  uint64_t (*peak)(uint64_t rounds);

  // raw (members, padded(rows)) = w x exactly in int32; workspace: start (members,).
  void (*products)(const Packed& w, const int8_t* x, int members, int32_t* start, int32_t* raw);
  void (*matmul)(const Packed& w, const int8_t* x, int members, int8_t* out, const int8_t* const* factors,
                 const int32_t* signs, int rank, int shift, int32_t* start, int32_t* projections);
  void (*norm)(const int8_t* x, const int8_t* w, int width, int8_t* out);
  // fa becomes clip(fa + fb + bf), g becomes (f h) >> 8 with f = fa + 127.
  void (*gate)(int8_t* fa, const int8_t* fb, const int8_t* bf, const int8_t* h, int width, int8_t* g);
  // c = clip(ca + cb + bh); h += (f (c - h)) >> 8; x = clip(x + h).
  void (*recur)(const int8_t* ca, const int8_t* cb, const int8_t* bh, const int8_t* fa, int width, int8_t* h,
                int8_t* x);
  int32_t (*log_likelihood)(const int8_t* logits, int vocab, int target);
};

extern const Isa kAvx512Vnni, kAvxVnni, kAvx2, kPortable, kI8mm, kDotprod, kNeon;

// The instruction sets compiled in that this machine has, fastest first, ended by null.
const Isa* const* available_isas();

// Tables (tables.cpp).
constexpr int kNormalSteps = 163;
extern const int32_t kNormalFirst;
extern const int32_t kNormalIndex[kNormalSteps];
extern const int8_t kNormalValue[kNormalSteps];
constexpr int kLog2Steps = 398;
extern const int32_t kLog2First;
extern const uint32_t kLog2Breakpoints[kLog2Steps];
extern const int16_t kLog2Values[kLog2Steps];
constexpr int kNormalBuckets = 23 * 32;
extern uint32_t normal_lookup[2 * kNormalBuckets];
extern int32_t exp2_table[256];
extern double exp2_exact[256];

// LOG2 of spec section 5 for s >= 1.
int32_t log2_sixteenths(uint32_t s);
double exact_log2(double s);

} // namespace nanoegg
