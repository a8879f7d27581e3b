// The native engine without Python, for the sanitizers (`make sanitize`) and for an emulator (`make test-arm`).
//
//     check CASES [ISA,ISA,...]
//
// CASES is a file of write_cases.py: runs of the recorded traces and of the plain Python twin. Every instruction set of
// this machine replays them and must reproduce every recorded bit, and its kernels are compared with the scalar twins
// (check_kernels.cpp). The second argument lists the instruction sets that must be available, in their order. Prints
// every difference and, on its last line, how many checks passed and failed.
#include "check.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.h"

using namespace nanoegg;

namespace {

int passed = 0, failed = 0;

} // namespace

void check(bool ok, const std::string& what) {
  (ok ? passed : failed)++;
  if (!ok) std::printf("DIFFERS: %s\n", what.c_str());
}

namespace {

struct Epoch {
  std::vector<std::vector<uint32_t>> bases;
  int64_t bound;
  std::vector<int64_t> embedding_bounds; // empty unless the embedding is sparse
  std::vector<uint8_t> reads;
  std::vector<uint8_t> inputs, targets;
  std::vector<int64_t> scores;
  std::vector<int8_t> fitness, states;
  Leaves params;
};

struct Case {
  std::string name;
  Shape shape;
  Noise noise{};
  uint64_t group;
  bool use_clt, normalised, sparse;
  size_t members, tokens, rows, row_tokens;
  Leaves initial;
  std::vector<Epoch> epochs;
  std::vector<uint8_t> inputs, targets; // validation
  std::vector<int64_t> scores;

  explicit Case(Reader& in) {
    const std::vector<char> letters = in.read<char>((size_t)in.number());
    name.assign(letters.begin(), letters.end());
    shape.vocab = (int)in.number(), shape.width = (int)in.number(), shape.layers = (int)in.number();
    noise.key.hi = (uint32_t)in.number(), noise.key.lo = (uint32_t)in.number();
    noise.rank = (int)in.number();
    noise.shift = std::min((int)in.number() + 4, 31);
    noise.perturbations = (uint64_t)in.number();
    group = (uint64_t)in.number();
    use_clt = in.number(), normalised = in.number(), sparse = in.number();
    members = (size_t)in.number(), tokens = (size_t)in.number();
    epochs.resize((size_t)in.number());
    initial = read_leaves(in, shape);
    for (Epoch& epoch : epochs) {
      for (int leaf = 0; leaf < kLeaves; leaf++)
        epoch.bases.push_back(in.read<uint32_t>((size_t)leaf_layers(shape, leaf)));
      epoch.bound = in.number();
      epoch.embedding_bounds = in.read<int64_t>(sparse ? shape.vocab : 0);
      const std::vector<uint8_t> lanes = in.read<uint8_t>(members / group * tokens);
      epoch.reads = bytes_of(lanes);
      epoch.inputs = per_member(lanes);
      epoch.targets = per_member(in.read<uint8_t>(members / group * tokens));
      epoch.scores = in.read<int64_t>(members);
      epoch.fitness = in.read<int8_t>(members / 2);
      epoch.states = in.read<int8_t>(members * shape.layers * shape.width);
      epoch.params = read_leaves(in, shape);
    }
    rows = (size_t)in.number(), row_tokens = (size_t)in.number();
    inputs = in.read<uint8_t>(rows * row_tokens);
    targets = in.read<uint8_t>(rows * row_tokens);
    scores = in.read<int64_t>(rows);
  }

  // (lanes, V): whether a lane has the byte; nothing unless the embedding is sparse.
  std::vector<uint8_t> bytes_of(const std::vector<uint8_t>& lanes) const {
    std::vector<uint8_t> reads(sparse ? members / group * shape.vocab : 0);
    for (size_t i = 0; sparse && i < lanes.size(); i++) reads[i / tokens * shape.vocab + lanes[i]] = 1;
    return reads;
  }

  // (members, tokens) from (lanes, tokens): a group of members reads the same lane.
  std::vector<uint8_t> per_member(const std::vector<uint8_t>& lanes) const {
    std::vector<uint8_t> all(members * tokens);
    for (size_t i = 0; i < members; i++)
      std::copy_n(lanes.begin() + i / group * tokens, tokens, all.begin() + i * tokens);
    return all;
  }
};

// Runs a case on one instruction set from its initial parameters; the recorded ones are only compared with.
void replay(const Isa& isa, const Case& run, int threads, int block) {
  const std::string what = std::string(isa.name) + ", " + run.name;
  Leaves params = run.initial, updated = run.initial;
  std::vector<int8_t> states(run.members * run.shape.layers * run.shape.width);
  int number = 0;
  for (const Epoch& epoch : run.epochs) {
    Noise noise = run.noise;
    for (int leaf = 0; leaf < kLeaves; leaf++) noise.base[leaf] = epoch.bases[leaf].data();
    const Weights weights(isa, run.shape, pointers<const int8_t*>(params).data());
    std::vector<int64_t> scores(run.members);
    score(weights,
          {&noise, 0, run.members, run.tokens, epoch.inputs.data(), epoch.targets.data(), states.data(), scores.data()},
          threads, block, nullptr);
    UpdateTask task{run.shape, noise, epoch.fitness.data(), epoch.fitness.size(), run.use_clt, run.normalised};
    Bounds bounds{epoch.bound};
    if (run.sparse) {
      task.reads = epoch.reads.data(), task.pairs_per_lane = run.group / 2;
      bounds.embedding = epoch.embedding_bounds.data();
    }
    update(isa, task, pointers<const int8_t*>(params).data(), bounds, threads, nullptr,
           pointers<int8_t*>(updated).data());
    params = updated;
    const std::string where = what + ", epoch " + std::to_string(number++);
    check(scores == epoch.scores, where + ": scores");
    check(same(states, epoch.states), where + ": states");
    check(params == epoch.params, where + ": parameters");
  }
  if (run.rows == 0) return;
  const Weights weights(isa, run.shape, pointers<const int8_t*>(params).data());
  std::vector<int8_t> zero(run.rows * run.shape.layers * run.shape.width);
  std::vector<int64_t> scores(run.rows);
  score(weights,
        {nullptr, 0, run.rows, run.row_tokens, run.inputs.data(), run.targets.data(), zero.data(), scores.data()},
        threads, block, nullptr);
  check(scores == run.scores, what + ": validation");
}

void check_choice(const std::string& expected) {
  std::string have;
  for (const Isa* const* isa = available_isas(); *isa; isa++)
    have += (have.empty() ? "" : ",") + std::string((*isa)->name);
  std::printf("instruction sets: %s\n", have.c_str());
  check(expected.empty() || have == expected, "the instruction sets: " + have + " instead of " + expected);
  unsetenv("NANOEGG_ISA");
  check(&choose_isa("") == *available_isas(), "the fastest instruction set is chosen");
  for (const Isa* const* isa = available_isas(); *isa; isa++) {
    setenv("NANOEGG_ISA", (*isa)->name, 1);
    check(&choose_isa(nullptr) == *isa, "NANOEGG_ISA chooses");
    check(&choose_isa("portable") == &kPortable, "a name comes before NANOEGG_ISA");
  }
  setenv("NANOEGG_ISA", "none such", 1);
  try {
    choose_isa("");
    check(false, "an unknown NANOEGG_ISA is an error");
  } catch (const std::invalid_argument& error) {
    check(std::strstr(error.what(), "none such") && std::strstr(error.what(), "portable"), error.what());
  }
  unsetenv("NANOEGG_ISA");
}

} // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    std::fprintf(stderr, "usage: check CASES [ISA,ISA,...]\n");
    return 2;
  }
  try {
    check_choice(count > 2 ? arguments[2] : "");
    Reader in(arguments[1]);
    int number = 0;
    for (int64_t left = in.number(); left > 0; left--, number++) {
      const Case run(in);
      int turn = number;
      for (const Isa* const* isa = available_isas(); *isa; isa++, turn++)
        replay(**isa, run, 1 + turn % 3, std::vector<int>{0, 2, 4, 64}[turn % 4]);
    }
    check_nudge_cases(in);
    check_coding_cases(in);
    for (const Isa* const* isa = available_isas(); *isa; isa++) {
      check_kernels(**isa);
      check_coding(**isa);
    }
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    failed++;
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
