// Scoring on all threads: blocks of members and their workspaces.
//
// Notable: a block has so many members that each weight fetched from L3 serves many of them, and so few that their
// activations stay in L2. Blocks start at even members, so that a pair shares its noise.
#include "engine.h"

#include <algorithm>
#include <vector>

#include "workspace.h"

namespace nanoegg {
namespace {

size_t workspace_bytes(const Shape& s, int members, const Noise* noise) {
  Carver c;
  Block b{};
  carve(c, b, s, members, noise);
  return c.used;
}

// 48 members use each weight fetched from L3 48 times, which is enough, and fill whole tiles. Fewer if their noise
// would need too much memory. With more than 64, the activations do not stay in an L2 of 1 MB beside the streams.
int choose_block(const Shape& s, const Noise* noise) {
  int members = 48;
  while (members > 6 && workspace_bytes(s, members, noise) > (size_t)48 << 20) members /= 2;
  return members;
}

} // namespace

void score(const Weights& weights, const ScoreTask& task, int threads, int block, const Poll& poll) {
  if (task.members == 0 || task.tokens == 0) return;
  const Shape& shape = weights.model().shape;
  threads = choose_threads(threads);
  const size_t limit = std::max(2, block > 0 ? block : choose_block(shape, task.noise));

  // Blocks of nearly equal numbers of pairs, a multiple of the threads unless there are too few pairs.
  const uint64_t first = task.first_member, end = first + task.members, even = first & ~(uint64_t)1;
  const size_t pairs = (size_t)((end - even + 1) / 2);
  size_t blocks = (2 * pairs + limit - 1) / limit;
  blocks = std::min<size_t>((blocks + threads - 1) / threads * threads, pairs);
  const auto boundary = [&](size_t i) {
    return std::min(std::max(even + 2 * (uint64_t)(pairs * i / blocks), first), end);
  };
  const int most = (int)(2 * ((pairs + blocks - 1) / blocks));

  const size_t workspace = workspace_bytes(shape, most, task.noise);
  std::vector<Buffer> workspaces(std::min<size_t>(threads, blocks));
  for (Buffer& w : workspaces) w = Buffer(workspace);

  int stop = 0;
  const size_t state = (size_t)shape.layers * shape.width;
  parallel(threads, blocks, &stop, poll, [&](size_t job, int thread) {
    const uint64_t from = boundary(job), to = boundary(job + 1);
    const size_t i = from - first;
    Block b{};
    b.model = &weights.model();
    b.noise = task.noise;
    b.first_member = from;
    b.members = (int)(to - from);
    b.tokens = task.tokens;
    b.inputs = task.inputs + i * task.tokens;
    b.targets = task.targets ? task.targets + i * task.tokens : nullptr;
    b.states = task.states + i * state;
    b.scores = task.scores + i;
    b.bits = task.bits ? task.bits + i * task.tokens : nullptr;
    b.logits = task.logits ? task.logits + i * task.tokens * shape.vocab : nullptr;
    b.coders = task.coders ? task.coders + i : nullptr;
    b.decodes = task.decodes;
    b.stop = &stop;
    Carver c{workspaces[thread].data()};
    carve(c, b, shape, most, task.noise);
    weights.isa().run_block(b);
  });
}

} // namespace nanoegg
