// One block of work, and the table of kernels that each instruction set provides. model.h states what the files
// compiled for one instruction set may use.
#pragma once

#include "model.h"

// Instruction sets that some compilers with C++17 lack: GCC 11 and clang 12 (Apple's 13) are the first with AVX-VNNI,
// GCC 10 with Arm's int8 matrix multiply.
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

// A few members that run through all their tokens on one core. The buffers after `stop` are the core's own workspace.
struct Block {
  const Model* model;
  const Noise* noise; // null: unperturbed
  uint64_t first_member;
  int members;
  size_t tokens;
  const uint8_t* inputs;  // (members, tokens)
  const uint8_t* targets; // (members, tokens); null: nothing is scored
  int8_t* states;         // (members, L, D), read and written
  int64_t* scores;        // (members,), or null
  double* bits;           // (members, tokens) exact code lengths in bits, or null
  int8_t* logits;         // (members, tokens, V), or null
  const int* stop;        // polled; non-zero ends the block early

  uint8_t* slots;              // noise factors, one slot per pair
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

// The parts of `run_block`, for tests that compare each with its scalar twin. Rows have padded() lengths with zero
// padding.
struct Pieces {
  // out[i] = the truncated normal of the 23-bit m[i].
  void (*normals)(const uint32_t* m, size_t count, int8_t* out);
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

// The kernels of one instruction set.
struct Isa {
  const char* name;
  int lanes, panel, group;
  uint8_t bias; // XORed into packed weights: 0x80 where the instruction multiplies unsigned by signed bytes

  void (*run_block)(const Block&);
  // out[i] = truncated normal draw start + i of key.
  void (*draw)(Key key, uint32_t start, size_t count, int8_t* out);
  // z (rows, cols) += scale * a (rows, K) b^T, with b (cols, K) packed; a's rows are `stride` apart, zero past K.
  void (*votes)(const int8_t* a, size_t stride, int rows, const Packed& b, int32_t scale, int64_t* z);
  // Packs columns [0, columns) of the transposed b_rows[k][n] (n < cols) as inputs of a Packed with cols outputs.
  void (*pack_columns)(const int8_t* b_rows, size_t stride, int columns, int cols, uint8_t* packed);
  // Spec section 7's step of n entries, given their sums.
  void (*move)(const int64_t* z, size_t n, const int8_t* old, int64_t bound, int8_t* out);
  // Int8 multiply-adds done by `rounds` rounds of nothing but dot products in registers.
  uint64_t (*peak)(uint64_t rounds);

  Pieces pieces;
};

extern const Isa kAvx512Vnni, kAvxVnni, kAvx2, kPortable, kI8mm, kDotprod, kNeon;

// The compiled instruction sets that this machine has, fastest first, ended by null.
const Isa* const* available_isas();

} // namespace nanoegg
