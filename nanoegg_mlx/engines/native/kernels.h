// One block of work, and the table of kernels that each instruction set provides. model.h states what the files
// compiled for one instruction set may use.
#pragma once

#include "model.h"
#include "nodes.h"

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

// The range coder of a lane of text (docs/compressed-format.md). An encoder writes at most kMostCoded bytes for a byte:
// after range >= 2^56, r f(b) >= 2^56 / 2^28 * 16 = 2^32.
constexpr size_t kMostCoded = 3;
struct Coder {
  uint64_t low, range; // a decoder's low is the format's `code`
  uint8_t* text;       // (length,); a decoder writes it
  size_t length;
  const uint8_t* from; // of a decoder: the stream, (size,)
  uint8_t* to;         // of an encoder: the stream, with room for kMostCoded length bytes
  size_t size;
  size_t at; // bytes read or written
};
// Adds 1 to the bytes written so far.
static inline void carry(Coder& c) {
  for (size_t i = c.at; i > 0 && ++c.to[i - 1] == 0; i--) {
  }
}

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
  Coder* coders;          // (members,), or null; text[t] is the byte after token t, so that it lies in `inputs` too
  bool decodes;
  const int* stop; // polled; non-zero ends the block early

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

// What a block of cohorts leaves for the votes: members whose scores are compared, a pair, or a lane with its first
// member as the baseline. k = t cohorts + c numbers its `count` cohorts at tokens, kPad at a time: `depth` is count
// rounded up to whole kPad. Matrices (entries, k) are packed in groups of k as weights are in groups of inputs:
// `Panels` of products.h.
struct Kept {
  size_t count, depth;
  int samples;                          // score differences of a cohort at a token
  uint8_t* inputs;                      // (all_inputs, depth), panels: inputs X, a pair's mean or a baseline's
  uint64_t* coins;                      // (coin_blocks_per_token, samples, depth)
  uint8_t* bytes;                       // (depth,) the bytes read
  int8_t *own, *later;                  // (samples, depth) clip(d) and clip(R), zero from `count` on
  int32_t *own_squares, *later_squares; // (depth,) the samples' sums of their squares
  int8_t *low, *high;                   // (padded(V), depth), rows: base-128 digits of the head's errors
  int64_t* squared_errors;              // (padded(V),) their squares' sums
};

// A few cohorts that run through all their tokens on one core under nudged activations.
struct CohortBlock {
  Block members; // unperturbed, `size` for each cohort; inputs and targets are (cohorts, tokens)
  Key key;
  uint64_t first_member;
  int cohorts, size;
  bool antithetic; // a cohort is a pair
  int credit_decay;
  bool head_is_nudged; // or it learns from its errors
  // The nudge for each entry of a row, 0 in the padding: padded(D), padded(4 D) and padded(V) of them.
  const int8_t *nudges, *hidden_nudges, *logit_nudges;
  Kept kept;

  // The core's own workspace.
  size_t window;                    // tokens whose coins are drawn at a time
  uint64_t* words;                  // (cohorts, samples, window, coin_blocks_per_token) coins; room for 16 more
  int8_t* row;                      // (padded(max(4 D, V)),) nudges of one member
  int8_t* group;                    // (kMaxGroup, all_inputs) inputs X of an unfinished group of k
  int8_t* digits;                   // (2, kMaxGroup, padded(V)) likewise low and high
  int16_t* errors;                  // (3, padded(V))
  uint32_t* squares;                // (padded(V),)
  int32_t *differences, *following; // (samples, tokens, cohorts) d, and (cohorts,)
  int32_t *scores, *log2;           // (size,) of a cohort at a token, and LOG2 of its sums of EXP2
};
constexpr size_t kMaxGroup = 8;

// The parts of `run_block` and `run_cohorts`, for tests that compare each with its scalar twin. Rows have padded()
// lengths with zero padding.
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

  // The parts under nudged activations; e are the nudges of a row.
  void (*gate_nudged)(int8_t* fa, const int8_t* fb, const int8_t* bf, const int8_t* e, const int8_t* h, int width,
                      int8_t* g);
  void (*recur_nudged)(const int8_t* ca, const int8_t* cb, const int8_t* bh, const int8_t* e, const int8_t* fa,
                       int width, int8_t* h, int8_t* x);
  // x = clip(x + y + e), n a multiple of kPad.
  void (*add_nudged)(int8_t* x, const int8_t* y, const int8_t* e, size_t n);
  // out = v with the coins' signs; for `inverted` coins with the opposite ones. n is a multiple of kCoins.
  void (*flip)(const uint64_t* coins, bool inverted, size_t n, const int8_t* v, int8_t* out);
  // words[i] = Threefry block first + i of the key; writes up to 15 more.
  void (*coins)(Key key, uint64_t first, size_t count, uint64_t* words);
  // The mean head errors of two members (padded(vocab),) in the first third of `errors`, which has room for three rows.
  // log2: LOG2 of the two members' sums of EXP2.
  void (*head_errors)(const int8_t* even, const int8_t* odd, int vocab, const int32_t* log2, int target,
                      int16_t* errors);
  // own = clip(d), later = clip(R), of d (tokens, cohorts); workspace: following (cohorts,).
  void (*credit)(const int32_t* d, size_t tokens, int cohorts, int decay, int32_t* following, int8_t* own,
                 int8_t* later);
};

// Sums over k = [first, first + count) of kept inputs; first is a multiple of kPad. Rows are a chunk of kPad entries of
// a node: their w xi, packed in groups of k.
struct Sums {
  // rows (kPad, count) = w[k] with the sign of the chunk's coins[k]; totals[i] = the sum of row i.
  void (*coin_rows)(const uint64_t* coins, const int8_t* w, size_t count, int8_t* rows, int32_t* totals);
  // The same for several samples: Q[k] = the sum over samples j < `samples` of w[j w_stride + k] with the sign of the
  // chunk's coins[j coins_stride + k], in two digits: Q = low + 128 high, low in [-64, 63]. At most 127 samples.
  void (*coin_digits)(const uint64_t* coins, size_t coins_stride, const int8_t* w, size_t w_stride, int samples,
                      size_t count, int8_t* low, int8_t* high);
  // totals[i] = the sum of row i of the first `count` k.
  void (*row_totals)(const int8_t* rows, size_t count, int32_t* totals);
  // z (n, entries) += scale * rows X^T for rows [begin, begin + n) of the chunk.
  void (*products)(const int8_t* rows, const int32_t* totals, int begin, int n, const uint8_t* x, int entries,
                   size_t depth, size_t first, size_t count, int32_t scale, int64_t* z);
  // s[i] += sum (w[k] X[i][k])^2
  void (*squares)(const uint8_t* x, int entries, size_t depth, size_t count, const int8_t* w, int64_t* s);
  // s[i] += sum q[k] X[i][k]^2, q[k] in [0, 127^3]
  void (*weighted_squares)(const uint8_t* x, int entries, size_t depth, size_t count, const int32_t* q, int64_t* s);
  // z[bytes[k]][i] += w[k] xi[k][i] for the n <= kCoins entries of a block of coins; z's rows are `stride` apart.
  void (*by_byte)(const uint64_t* coins, const int8_t* w, const uint8_t* bytes, size_t count, int n, size_t stride,
                  int64_t* z);
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

  // A block of cohorts, for nudge(), and the sums of its votes.
  void (*run_cohorts)(const CohortBlock&);
  Sums sums;

  Pieces pieces;
};

extern const Isa kAvx512Vnni, kAvxVnni, kAvx2, kPortable, kI8mm, kDotprod, kNeon;

// The compiled instruction sets that this machine has, fastest first, ended by null.
const Isa* const* available_isas();

} // namespace nanoegg
