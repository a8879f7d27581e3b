// Learning from nudged activations on all threads: batches of blocks of cohorts, and the sums of their votes.
//
// Notable: a batch runs in two phases. First every block takes its cohorts through all their tokens and keeps their
// inputs (nudge.h). Then each job sums some rows of some matrices over all blocks of the batch, with K = cohorts x
// tokens, into the one result. So sums need no copy for each thread, and the memory does not grow with the population.
#include <algorithm>
#include <vector>

#include "engine.h"
#include "workspace.h"

namespace nanoegg {
namespace {

// k summed at a time: 64 rows of w xi then stay in L2, and their int32 sums are exact.
constexpr size_t kSpan = 2048;

void carve(Carver& c, Kept& kept, const Shape& s, size_t count, int samples, bool head_is_nudged) {
  kept.count = count;
  kept.samples = samples;
  kept.depth = padded(count);
  const size_t blocks = head_is_nudged ? coin_blocks_per_token(s) : first_coin_block(s, kNodeHead, 0);
  const size_t errors = head_is_nudged ? 0 : padded(s.vocab);
  c.take(kept.inputs, all_inputs(s) * kept.depth);
  c.take(kept.coins, blocks * samples * kept.depth);
  c.take(kept.bytes, kept.depth);
  c.take(kept.own, samples * kept.depth);
  c.take(kept.later, samples * kept.depth);
  c.take(kept.own_squares, kept.depth);
  c.take(kept.later_squares, kept.depth);
  c.take(kept.low, errors * kept.depth);
  c.take(kept.high, errors * kept.depth);
  c.take(kept.squared_errors, errors);
}

void carve(Carver& c, CohortBlock& p, const Shape& s, int cohorts, int size, int samples, size_t tokens) {
  carve(c, p.members, s, size * cohorts, nullptr);
  const size_t vocab = padded(s.vocab), blocks = coin_blocks_per_token(s);
  p.window = std::max<size_t>(1, std::min(tokens, 256 / blocks));
  c.take(p.words, cohorts * samples * p.window * blocks + 16);
  c.take(p.row, std::max(padded(4 * s.width), vocab));
  c.take(p.group, kMaxGroup * all_inputs(s));
  c.take(p.digits, 2 * kMaxGroup * vocab);
  c.take(p.errors, 3 * vocab);
  c.take(p.squares, vocab);
  c.take(p.differences, samples * tokens * cohorts);
  c.take(p.following, cohorts);
  c.take(p.scores, size);
  c.take(p.log2, size);
}

template <class T, class... Arguments>
size_t bytes_of(Arguments... arguments) {
  Carver c;
  T t{};
  carve(c, t, arguments...);
  return c.used;
}

// The nudge for each entry of a row of `size`, and zeros to its end.
Buffer nudge_row(int nudge, int size) {
  Buffer row(padded(size));
  std::fill_n(row.as<int8_t>(), size, (int8_t)nudge);
  return row;
}

struct Matrix {
  int leaf, node, input;
};
constexpr Matrix kMatrices[] = {{kWf, kNodeF, kInputY},     {kUf, kNodeF, kInputState}, {kWh, kNodeC, kInputY},
                                {kUh, kNodeC, kInputG},     {kMlp0, kNodeA, kInputQ},   {kMlp1, kNodeB, kInputA},
                                {kHead, kNodeHead, kInputY}};

// A part of the sums that one thread computes over all blocks of a batch.
struct Job {
  enum Kind { kVotes, kErrors, kSquares, kEmbedding, kProducts } kind;
  int layer;
  int node;       // of the votes
  int chunk;      // of kPad rows of the votes, or entries of the embedding or of an input
  int begin, end; // rows of the chunk
  Matrix matrix;  // of the squares
  int input;      // of the products of inputs
};

struct Summer {
  const Isa& isa;
  const NudgeTask& task;
  const Shape& shape;
  const std::vector<Kept>& blocks;
  const std::vector<int8_t>& ones;
  const int* stop;

  bool by_error() const { return task.head_nudge == 0; }

  std::vector<Job> jobs(int threads) const {
    std::vector<Job> list;
    int chunks = 0;
    const auto rows = [&](Job::Kind kind, int layer, int node, int parts) {
      const int size = node_size(shape, node);
      for (int first = 0; first < size; first += (int)kPad, chunks++) {
        const int n = std::min((int)kPad, size - first), each = (n + parts - 1) / parts;
        for (int begin = 0; begin < n; begin += each)
          list.push_back({kind, layer, node, first / (int)kPad, begin, std::min(begin + each, n), {}, 0});
      }
    };
    // Whole chunks, because the parts of one all compute its w xi; unless they are too few for the threads.
    for (const int parts : {1, 4}) {
      list.clear();
      chunks = 0;
      for (const int node : {kNodeB, kNodeF, kNodeC, kNodeA})
        for (int layer = 0; layer < shape.layers; layer++) rows(Job::kVotes, layer, node, parts);
      rows(by_error() ? Job::kErrors : Job::kVotes, shape.layers, kNodeHead, parts);
      if (chunks >= 2 * threads) break;
    }
    for (const Matrix& m : kMatrices) {
      if (m.leaf == kWf) continue; // its squares are Wh's
      const int layers = m.leaf == kHead ? 1 : shape.layers;
      for (int layer = 0; layer < layers; layer++)
        list.push_back({Job::kSquares, m.leaf == kHead ? shape.layers : layer, 0, 0, 0, 0, m, 0});
    }
    for (int chunk = 0; chunk < (int)coin_blocks(shape, kNodeEmb); chunk++)
      list.push_back({Job::kEmbedding, 0, kNodeEmb, chunk, 0, 0, {}, 0});
    for (int layer = 0; layer <= shape.layers; layer++) {
      for (const int input : {kInputY, kInputState, kInputG, kInputQ, kInputA}) {
        if (!task.products[0] || (layer == shape.layers && input != kInputY)) continue;
        for (int chunk = 0; chunk < (int)(padded(input_size(shape, input)) / kPad); chunk++)
          list.push_back({Job::kProducts, layer, 0, chunk, 0, 0, {}, input});
      }
    }
    return list;
  }

  void run(const Job& job) const {
    switch (job.kind) {
      case Job::kVotes:
      case Job::kErrors: return votes(job);
      case Job::kSquares: return squares(job);
      case Job::kProducts: return input_products(job);
      default: return embedding(job);
    }
  }

  // Whether only the token's own score can depend on the node: its credit is then clip(d), else clip(R).
  bool is_own(int layer, int node) const {
    return node == kNodeHead || (layer == shape.layers - 1 && (node == kNodeA || node == kNodeB));
  }
  const int8_t* credit(const Kept& kept, int layer, int node) const {
    return is_own(layer, node) ? kept.own : kept.later;
  }

  // The sums of a matrix's part of one layer.
  template <class T>
  static T* part(T* sums, int leaf, int layer, size_t size) {
    return sums + (is_layered(leaf) ? layer * size : 0);
  }

  void votes(const Job& job) const {
    std::vector<int8_t> rows(job.kind == Job::kVotes ? 2 * kPad * kSpan : 0);
    int8_t* high = rows.data() + rows.size() / 2;
    int32_t totals[kPad];
    for (const Kept& kept : blocks) {
      for (size_t first = 0; first < kept.count; first += kSpan) {
        if (is_set(stop)) return;
        const size_t count = std::min(kSpan, kept.count - first);
        if (job.kind == Job::kErrors) {
          const size_t at = job.chunk * kPad * kept.depth + first * kPad;
          digit_products(job, kept, first, count, kept.low + at, kept.high + at);
          continue;
        }
        const size_t block = first_coin_block(shape, job.node, job.layer) + job.chunk;
        const uint64_t* coins = kept.coins + block * kept.samples * kept.depth + first;
        const int8_t* w = credit(kept, job.layer, job.node) + first;
        if (kept.samples > 1) {
          isa.sums.coin_digits(coins, kept.depth, w, kept.depth, kept.samples, count, rows.data(), high);
          digit_products(job, kept, first, count, rows.data(), high);
        } else {
          isa.sums.coin_rows(coins, w, count, rows.data(), totals);
          products(job, kept, first, count, rows.data(), totals, 1);
        }
      }
    }
  }

  // `products` of numbers in two base-128 digits.
  void digit_products(const Job& job, const Kept& kept, size_t first, size_t count, const int8_t* low,
                      const int8_t* high) const {
    int32_t totals[kPad];
    for (const auto& [rows, scale] : {std::pair{low, 1}, std::pair{high, 128}}) {
      isa.sums.row_totals(rows, count, totals);
      products(job, kept, first, count, rows, totals, scale);
    }
  }

  // Adds the products of rows with all inputs of the node, and the rows' totals to its bias.
  void products(const Job& job, const Kept& kept, size_t first, size_t count, const int8_t* rows, const int32_t* totals,
                int scale) const {
    for (const Matrix& m : kMatrices) {
      if (m.node != job.node) continue;
      const int inputs = leaf_cols(shape, m.leaf);
      int64_t* z = part(task.z[m.leaf], m.leaf, job.layer, (size_t)leaf_rows(shape, m.leaf) * inputs);
      isa.sums.products(rows, totals, job.begin, job.end - job.begin,
                        kept.inputs + input_offset(shape, m.input, job.layer) * kept.depth, inputs, kept.depth, first,
                        count, scale, z + (job.chunk * kPad + job.begin) * inputs);
    }
    if (job.node != kNodeF && job.node != kNodeC) return;
    const int leaf = job.node == kNodeF ? kBf : kBh;
    int64_t* z = part(task.z[leaf], leaf, job.layer, shape.width) + job.chunk * kPad;
    for (int i = job.begin; i < job.end; i++) z[i] += scale * totals[i];
  }

  void squares(const Job& job) const {
    const Matrix& m = job.matrix;
    const int inputs = leaf_cols(shape, m.leaf);
    std::vector<int64_t> s(inputs);
    for (const Kept& kept : blocks) {
      if (is_set(stop)) return;
      const uint8_t* x = kept.inputs + input_offset(shape, m.input, job.layer) * kept.depth;
      const bool plain = m.leaf == kHead && by_error();
      const int8_t* w = plain ? ones.data() : credit(kept, job.layer, m.node);
      const int32_t* q = is_own(job.layer, m.node) ? kept.own_squares : kept.later_squares;
      if (plain || kept.samples == 1)
        isa.sums.squares(x, inputs, kept.depth, kept.count, w, s.data());
      else
        isa.sums.weighted_squares(x, inputs, kept.depth, kept.count, q, s.data());
    }
    for (const int leaf : {m.leaf, m.leaf == kWh ? (int)kWf : -1})
      for (int i = 0; leaf >= 0 && i < inputs; i++) part(task.s[leaf], leaf, job.layer, inputs)[i] += s[i];
  }

  void embedding(const Job& job) const {
    const int begin = job.chunk * (int)kPad, n = std::min((int)kPad, shape.width - begin);
    int64_t* z = task.z[kEmb] + begin;
    std::vector<int8_t> low(task.samples() > 1 ? kPad * kSpan : 0), high(low.size());
    for (const Kept& kept : blocks) {
      const uint64_t* coins = kept.coins + (size_t)job.chunk * kept.samples * kept.depth;
      for (size_t first = 0; first < kept.count; first += kSpan) {
        if (is_set(stop)) return;
        const size_t count = std::min(kSpan, kept.count - first);
        const int8_t* w = kept.later + first;
        const uint8_t* bytes = kept.bytes + first;
        if (kept.samples > 1) {
          isa.sums.coin_digits(coins + first, kept.depth, w, kept.depth, kept.samples, count, low.data(), high.data());
          digits_by_byte(low.data(), high.data(), bytes, count, n, z);
        } else {
          isa.sums.by_byte(coins + first, w, bytes, count, n, shape.width, z);
        }
      }
    }
  }

  // z[bytes[k]][i] += low + 128 high of n entries of rows (kPad, count), which are packed in groups of k.
  void digits_by_byte(const int8_t* low, const int8_t* high, const uint8_t* bytes, size_t count, int n,
                      int64_t* z) const {
    const size_t G = isa.group;
    for (size_t k = 0; k < count; k++) {
      const size_t at = k / G * G * kPad + k % G;
      int64_t* row = z + (size_t)bytes[k] * shape.width;
      for (int i = 0; i < n; i++) row[i] += low[at + i * G] + 128 * high[at + i * G];
    }
  }

  // The products of the inputs of a chunk with each other.
  void input_products(const Job& job) const {
    const bool of_head = job.layer == shape.layers;
    const int size = input_size(shape, job.input), n = std::min((int)kPad, size - job.chunk * (int)kPad);
    std::vector<int8_t> rows(kPad * kSpan);
    std::vector<int64_t> sums((size_t)n * n);
    int32_t totals[kPad];
    for (const Kept& kept : blocks) {
      const uint8_t* x =
          kept.inputs + (input_offset(shape, job.input, job.layer) + (size_t)job.chunk * kPad) * kept.depth;
      for (size_t first = 0; first < kept.count; first += kSpan) {
        if (is_set(stop)) return;
        const size_t count = std::min(kSpan, kept.count - first);
        panel_rows(x, n, kept.depth, first, count, rows.data());
        isa.sums.row_totals(rows.data(), count, totals);
        isa.sums.products(rows.data(), totals, 0, n, x, n, kept.depth, first, count, 1, sums.data());
      }
    }
    int64_t* out = of_head ? task.products[5] : task.products[job.input] + (size_t)job.layer * size * kPad;
    for (int i = 0; i < n; i++)
      for (int j = 0; j < n; j++) out[((size_t)job.chunk * kPad + i) * kPad + j] += sums[(size_t)i * n + j];
  }

  // The rows (kPad, count) of n <= kPad inputs that are packed as panels x, from k = first on.
  void panel_rows(const uint8_t* x, int n, size_t depth, size_t first, size_t count, int8_t* rows) const {
    const size_t G = isa.group, lanes = (n + isa.lanes - 1) / isa.lanes * isa.lanes;
    std::fill_n(rows, kPad * ((count + G - 1) / G * G), 0);
    for (size_t i = 0; i < lanes; i += isa.panel) {
      const size_t width = std::min<size_t>(isa.panel, lanes - i), bytes = width * G;
      const uint8_t* group = x + i * depth + first * width;
      for (size_t k = 0; k < count; k += G, group += bytes)
        for (size_t b = 0; b < bytes; b++) rows[k * kPad + i * G + b] = (int8_t)(group[b] ^ isa.bias);
    }
  }

  // What takes no time: the squares of credit alone and of errors.
  void small_sums() const {
    for (const Kept& kept : blocks) {
      int64_t total = 0;
      for (size_t k = 0; k < kept.count; k++) {
        total += kept.later_squares[k];
        task.s[kEmb][kept.bytes[k]] += kept.later_squares[k];
      }
      for (int layer = 0; layer < shape.layers; layer++)
        for (const int leaf : {kBf, kBh}) task.s[leaf][layer] += total;
      for (int o = 0; by_error() && o < shape.vocab; o++) task.squared_errors[o] += kept.squared_errors[o];
    }
  }
};

// How the cohorts are divided: `batches` of at most `blocks` blocks of at most `cohorts` cohorts.
struct Plan {
  size_t batches, blocks;
  int cohorts;
};

// As many members a block as score() takes, if what they keep fits the budget: 64 MB, and 16 MB a thread. A batch has a
// block a thread, or more as long as they keep little. Where a cohort alone exceeds the budget (at a width of 64 a pair
// keeps 1.2 kB a token, so two threads share the budget up to 40,000 tokens), a batch is fewer cohorts than threads.
Plan make_plan(const Shape& s, const NudgeTask& task, int threads, int block) {
  const size_t budget = ((size_t)64 << 20) + ((size_t)threads << 24), little = (size_t)16 << 20;
  const bool head_is_nudged = task.head_nudge > 0;
  const auto bytes = [&](size_t cohorts) {
    return bytes_of<Kept>(s, cohorts * task.tokens, task.samples(), head_is_nudged);
  };
  size_t cohorts = std::max(1, (block > 0 ? block : 48) / task.size);
  cohorts = std::min(cohorts, (task.cohorts + threads - 1) / threads);
  while (cohorts > 1 && threads * bytes(cohorts) > budget) cohorts--;
  size_t blocks = std::max<size_t>(1, std::min<size_t>(threads, budget / bytes(cohorts)));
  blocks = std::max(blocks, little / bytes(cohorts) / threads * threads);
  const size_t batches = (task.cohorts + blocks * cohorts - 1) / (blocks * cohorts);
  // Evenly.
  const size_t per_batch = (task.cohorts + batches - 1) / batches;
  blocks = std::min(blocks, per_batch);
  return {batches, blocks, (int)((per_batch + blocks - 1) / blocks)};
}

} // namespace

void nudge(const Weights& weights, const NudgeTask& task, int threads, int block, const Poll& poll) {
  threads = choose_threads(threads);
  if (task.cohorts == 0 || task.tokens == 0) return;
  const Shape& shape = weights.model().shape;
  const bool head_is_nudged = task.head_nudge > 0;
  const Plan plan = make_plan(shape, task, threads, block);
  const int size = task.size, samples = task.samples();
  const size_t T = task.tokens, state = (size_t)size * shape.layers * shape.width;

  const size_t kept_bytes = bytes_of<Kept>(shape, plan.cohorts * T, samples, head_is_nudged);
  std::vector<Buffer> memory(plan.blocks), workspaces(std::min<size_t>(threads, plan.blocks));
  for (Buffer& m : memory) m = Buffer(kept_bytes);
  for (Buffer& w : workspaces) w = Buffer(bytes_of<CohortBlock>(shape, plan.cohorts, size, samples, T));
  const Buffer nudges = nudge_row(task.nudge, shape.width), hidden_nudges = nudge_row(task.nudge, 4 * shape.width),
               logit_nudges = nudge_row(task.head_nudge, shape.vocab);
  const std::vector<int8_t> ones(padded(plan.cohorts * T), 1);

  int stop = 0;
  for (size_t batch = 0; batch < plan.batches; batch++) {
    const size_t first = task.cohorts * batch / plan.batches;
    const size_t cohorts = task.cohorts * (batch + 1) / plan.batches - first;
    std::vector<Kept> kept(std::min(plan.blocks, cohorts));
    parallel(threads, kept.size(), &stop, poll, [&](size_t job, int thread) {
      const size_t from = first + cohorts * job / kept.size(), to = first + cohorts * (job + 1) / kept.size();
      CohortBlock p{};
      Carver workspace{workspaces[thread].data()}, keeper{memory[job].data()};
      carve(workspace, p, shape, plan.cohorts, size, samples, T);
      carve(keeper, p.kept, shape, (to - from) * T, samples, head_is_nudged);
      p.members.model = &weights.model();
      p.members.members = size * (int)(to - from);
      p.members.tokens = T;
      p.members.inputs = task.inputs + from * T;
      p.members.targets = task.targets + from * T;
      p.members.states = task.states + from * state;
      p.members.scores = task.scores + size * from;
      p.members.stop = &stop;
      p.key = task.key;
      p.first_member = task.first_member + size * from;
      p.cohorts = (int)(to - from);
      p.size = size;
      p.antithetic = task.antithetic;
      p.credit_decay = task.credit_decay;
      p.head_is_nudged = head_is_nudged;
      p.nudges = nudges.as<int8_t>();
      p.hidden_nudges = hidden_nudges.as<int8_t>();
      p.logit_nudges = logit_nudges.as<int8_t>();
      if (!head_is_nudged) std::fill_n(p.kept.squared_errors, padded(shape.vocab), 0);
      // Credit of 0 where there is no cohort: the tail of the last group.
      const size_t depth = p.kept.depth;
      for (int8_t* w : {p.kept.own, p.kept.later})
        for (int j = 0; j < samples; j++) std::fill(w + j * depth + p.kept.count, w + (j + 1) * depth, 0);
      weights.isa().run_cohorts(p);
      kept[job] = p.kept;
    });
    const Summer summer{weights.isa(), task, shape, kept, ones, &stop};
    const std::vector<Job> jobs = summer.jobs(threads);
    parallel(threads, jobs.size(), &stop, poll, [&](size_t job, int) { summer.run(jobs[job]); });
    summer.small_sums();
  }
}

} // namespace nanoegg
