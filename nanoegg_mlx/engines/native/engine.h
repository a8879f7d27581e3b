// The calls of an engine on plain pointers, without Python: score (score.cpp), encode and decode (coding.cpp), nudge
// (nudge.cpp), update and votes (update.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "parallel.h"
#include "weights.h"

namespace nanoegg {

// The instruction set of that name; empty or null: NANOEGG_ISA, or else the fastest here. Throws std::invalid_argument.
const Isa& choose_isa(const char* name);
// Int8 multiply-adds per second of a loop of dot products in registers on all threads.
double peak(const Isa& isa, int threads, double seconds, const Poll& poll);

struct ScoreTask {
  const Noise* noise = nullptr; // null: unperturbed
  uint64_t first_member = 0;
  size_t members = 0, tokens = 0;
  const uint8_t* inputs = nullptr;  // (members, tokens)
  const uint8_t* targets = nullptr; // (members, tokens), or null
  int8_t* states = nullptr;         // (members, L, D), read and written
  int64_t* scores = nullptr;        // (members,), zeros
  double* bits = nullptr;           // (members, tokens) exact code lengths in bits, or null
  int8_t* logits = nullptr;         // (members, tokens, V), or null
  Coder* coders = nullptr;          // (members,), or null; see Block
  bool decodes = false;
};

// block: most members a block may have, 0 to choose.
void score(const Weights& weights, const ScoreTask& task, int threads, int block, const Poll& poll);

// The streams of lanes of text, and the lanes of streams of any content (coding.cpp). V is 256; the lanes' sizes differ
// by at most one.
std::vector<std::string> encode(const Weights& weights, const std::vector<std::string_view>& lanes, int threads,
                                int block, const Poll& poll);
std::vector<std::string> decode(const Weights& weights, const std::vector<std::string_view>& streams,
                                const std::vector<size_t>& sizes, int threads, int block, const Poll& poll);

struct NudgeTask {
  Key key;                // of the epoch's coins
  bool antithetic = true; // members are compared in pairs, else those of a lane with its first one
  int size = 2;           // members that are compared: a cohort
  uint64_t first_member = 0;
  size_t cohorts = 0, tokens = 0;
  int nudge = 2, head_nudge = 0; // 0: the head learns from its errors
  int credit_decay = 12;
  const uint8_t *inputs = nullptr, *targets = nullptr; // (cohorts, tokens)
  int8_t* states = nullptr;                            // (cohorts size, L, D), read and written
  int64_t* scores = nullptr;                           // (cohorts size,), zeros
  // Sums, zeros: z[leaf] shaped as the leaf; s[leaf] (L, inputs) for a layer's matrix, (L,) for a bias, (V,) for emb,
  // (D,) for the head. Unused ones are null.
  int64_t *z[kLeaves] = {}, *s[kLeaves] = {};
  int64_t* squared_errors = nullptr; // (V,), if the head learns from its errors; s[kHead] is then sum y^2
  // Zeros, or null: sums of X[i] X[j] for each input i of a matrix and the kPad inputs j of its chunk: (L, inputs,
  // kPad); by Input, and last the head's (D, kPad).
  int64_t* products[6] = {};

  int samples() const { return antithetic ? 1 : size - 1; } // score differences of a cohort at a token
};

// Scores members under nudged activations, and sums their votes (nudge.cpp). block: most members a block may have, 0 to
// choose.
void nudge(const Weights& weights, const NudgeTask& task, int threads, int block, const Poll& poll);

struct UpdateTask {
  Shape shape;
  Noise noise;
  const int8_t* fitness = nullptr; // (pairs,)
  size_t pairs = 0;
  bool use_clt = true;
  bool normalised = false; // Z >> 4 after the sum
  // (lanes, V), or null: whether the lane's text has the byte. If not, the lane's pairs have no vote on its embedding.
  const uint8_t* reads = nullptr;
  size_t pairs_per_lane = 1;
};

struct Bounds {
  int64_t all = 0;
  const int64_t* embedding = nullptr; // (V,) those of its rows, or null
};

// Spec section 7's step of all leaves, from params into new_params.
void update(const Isa& isa, const UpdateTask& task, Params params, const Bounds& bounds, int threads, const Poll& poll,
            int8_t* const* new_params);
// The sums Z themselves, z[leaf] shaped as the leaf.
void votes(const Isa& isa, const UpdateTask& task, int threads, const Poll& poll, int64_t* const* z);

} // namespace nanoegg
