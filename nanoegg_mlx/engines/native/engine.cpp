// Packing, blocks, threads and thresholds around the kernels, see engine.h.
//
// Notable: a block is as many members as keep the weights' trip from L3 cheap while the block's activations stay in L2;
// blocks start at even members, so that a pair shares its noise. The update works through pieces of leaves small enough
// for their Z to be exact int64 without much memory, regenerating the noise of a few hundred pairs at a time.
#include "engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

namespace nanoegg {

Buffer::Buffer(size_t bytes) {
  const size_t rounded = padded(std::max<size_t>(bytes, 1));
  data_.reset(static_cast<uint8_t*>(::operator new(rounded, std::align_val_t(64))));
  std::memset(data_.get(), 0, rounded);
}
void Buffer::Free::operator()(uint8_t* p) const { ::operator delete(p, std::align_val_t(64)); }

const Isa& choose_isa(const char* name) {
  const char* asked = name && *name ? name : std::getenv("NANOEGG_ISA");
  std::string have;
  for (const Isa* const* isa = available_isas(); *isa; isa++) {
    if (!asked || !*asked || std::strcmp(asked, (*isa)->name) == 0) return **isa;
    have += (have.empty() ? "" : ", ") + std::string((*isa)->name);
  }
  throw std::invalid_argument("instruction set \"" + std::string(asked) + "\" (" +
                              (name && *name ? "isa" : "NANOEGG_ISA") + ") is not available here; there is: " + have);
}

int choose_threads(int threads) {
  if (threads < 0 || threads > kMaxThreads)
    throw std::invalid_argument("threads must be 0 to " + std::to_string(kMaxThreads) + ", it is " +
                                std::to_string(threads));
  return threads > 0 ? threads : std::min(usable_cpus(), kMaxThreads);
}

void parallel(int threads, size_t jobs, int* stop, const Poll& poll, const std::function<void(size_t, int)>& work) {
  if (jobs == 0) return;
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::condition_variable finished;
  int running = 0;
  std::exception_ptr failure;
  const auto run = [&](int thread) {
    try {
      for (size_t job; !__atomic_load_n(stop, __ATOMIC_RELAXED) && (job = next++) < jobs;) work(job, thread);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      failure = std::current_exception();
      __atomic_store_n(stop, 1, __ATOMIC_RELAXED);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    running--;
    finished.notify_one();
  };

  std::vector<std::thread> pool;
  const int wanted = (int)std::min<size_t>(threads, jobs);
  pool.reserve(wanted);
  std::unique_lock<std::mutex> lock(mutex);
  for (int i = 0; i < wanted; i++) {
    try {
      pool.emplace_back(run, i);
    } catch (const std::system_error&) {
      if (pool.empty()) throw;
      break; // fewer threads do the same work
    }
    running++;
  }
  bool interrupted = false;
  while (!finished.wait_for(lock, std::chrono::milliseconds(50), [&] { return running == 0; })) {
    lock.unlock();
    if (!interrupted && poll && !poll()) {
      interrupted = true;
      __atomic_store_n(stop, 1, __ATOMIC_RELAXED);
    }
    lock.lock();
  }
  lock.unlock();
  for (std::thread& t : pool) t.join();
  if (interrupted) throw Interrupted();
  if (failure) std::rethrow_exception(failure);
}

Packed pack_matrix(const Isa& isa, const int8_t* w, int rows, int cols, Buffer& storage) {
  const size_t group = isa.group, groups = (cols + group - 1) / group;
  const size_t lanes_total = (rows + isa.lanes - 1) / isa.lanes * isa.lanes;
  storage = Buffer(lanes_total * groups * group);
  uint8_t* panel = storage.data();
  std::memset(panel, isa.bias, lanes_total * groups * group);
  for (size_t o = 0; o < lanes_total; o += isa.panel) {
    const size_t width = std::min<size_t>(isa.panel, lanes_total - o);
    for (size_t i = 0; i < width && o + i < (size_t)rows; i++) {
      const int8_t* row = w + (o + i) * cols;
      uint8_t* out = panel + i * group;
      if (group == 4) {
        const uint32_t flip = isa.bias * 0x01010101u;
        size_t k = 0;
        for (; k + 4 <= (size_t)cols; k += 4, out += width * 4) {
          uint32_t four;
          std::memcpy(&four, row + k, 4);
          four ^= flip;
          std::memcpy(out, &four, 4);
        }
        for (size_t j = 0; k + j < (size_t)cols; j++) out[j] = (uint8_t)row[k + j] ^ isa.bias;
      } else {
        for (size_t k = 0; k < (size_t)cols; k++)
          out[k / group * width * group + k % group] = (uint8_t)row[k] ^ isa.bias;
      }
    }
    panel += width * groups * group;
  }
  return {storage.data(), rows, cols};
}

Weights::Weights(const Isa& isa, const Shape& shape, Params params) : isa_(isa), model_{} {
  model_.shape = shape;
  const size_t row = padded(shape.width);
  Buffer emb(shape.vocab * row), vectors(vector_rows(shape) * row);
  for (int t = 0; t < shape.vocab; t++)
    std::memcpy(emb.data() + t * row, params[kEmb] + (size_t)t * shape.width, shape.width);
  for (int leaf = 0; leaf < kLeaves; leaf++) {
    if (leaf == kEmb) continue;
    const int rows = leaf_rows(shape, leaf), cols = leaf_cols(shape, leaf);
    for (int layer = 0; layer < leaf_layers(shape, leaf); layer++) {
      const int8_t* p = params[leaf] + (size_t)layer * rows * cols;
      if (is_matrix(leaf)) {
        storage_.emplace_back();
        packed_[leaf].push_back(pack_matrix(isa, p, rows, cols, storage_.back()));
      } else {
        std::memcpy(vectors.data() + vector_row(shape, leaf, layer) * row, p, rows);
      }
    }
    model_.matrices[leaf] = packed_[leaf].data();
  }
  model_.emb = emb.as<int8_t>();
  model_.vectors = vectors.as<int8_t>();
  storage_.push_back(std::move(emb));
  storage_.push_back(std::move(vectors));
}

namespace {

// Hands out pieces of one buffer, in two passes: sizes first, then places.
struct Carver {
  uint8_t* base = nullptr;
  size_t used = 0;
  template <class T>
  void take(T*& p, size_t count) {
    if (base) p = reinterpret_cast<T*>(base + used);
    used += padded(count * sizeof(T));
  }
};

void carve(Carver& c, Block& b, const Shape& s, int members, const Noise* noise) {
  const size_t m = members, row = padded(s.width), rank = noise ? noise->rank : 1;
  for (int8_t** p : {&b.x, &b.y, &b.fa, &b.fb, &b.g}) c.take(*p, m * row);
  c.take(b.mid, m * padded(4 * s.width));
  c.take(b.out, m * padded(s.vocab));
  c.take(b.h, m * s.layers * row);
  c.take(b.start, m);
  c.take(b.projections, m * rank);
  c.take(b.signs, m);
  c.take(b.factors, m);
  if (!noise) return;
  uint64_t draws = 0;
  for (int leaf = 0; leaf < kLeaves; leaf++) draws = std::max(draws, noise_length(s, leaf, noise->rank));
  c.take(b.slot_draws, draws);
  c.take(b.vectors, m * vector_rows(s) * row);
  c.take(b.slots, (m / 2 + 1) * slot_bytes(s, noise->rank));
}

size_t workspace_bytes(const Shape& s, int members, const Noise* noise) {
  Carver c;
  Block b{};
  carve(c, b, s, members, noise);
  return c.used;
}

// 48 members use each weight fetched from L3 48 times, which is enough, and fill whole tiles; fewer if their noise
// would take too much memory. More than 64 and the activations no longer stay in a 1 MB L2 beside the streams.
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

  std::vector<const uint8_t*> inputs(task.members), targets(task.members);
  for (size_t i = 0; i < task.members; i++) {
    const uint64_t lane = (first + i) / task.group_size - first / task.group_size;
    inputs[i] = task.inputs + lane * task.tokens;
    targets[i] = task.targets ? task.targets + lane * task.tokens : nullptr;
  }
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
    b.inputs = inputs.data() + i;
    b.targets = task.targets ? targets.data() + i : nullptr;
    b.states = task.states + i * state;
    b.scores = task.scores + i;
    b.bits = task.bits ? task.bits + i * task.tokens : nullptr;
    b.logits = task.logits ? task.logits + i * task.tokens * shape.vocab : nullptr;
    b.stop = &stop;
    Carver c{workspaces[thread].data()};
    carve(c, b, shape, most, task.noise);
    weights.isa().run_block(b);
  });
}

namespace {

// Rows [first, first + rows) of one leaf of one layer.
struct Piece {
  int leaf, layer, first, rows;
};

std::vector<Piece> pieces(const Shape& s, int threads) {
  size_t most = (size_t)1 << 19; // entries: 4 MB of Z
  size_t total = 0;
  for (int leaf = 0; leaf < kLeaves; leaf++)
    total += (size_t)leaf_layers(s, leaf) * leaf_rows(s, leaf) * leaf_cols(s, leaf);
  // Enough pieces to keep all threads busy, but not so small that drawing B again for each costs much.
  most = std::min(most, std::max<size_t>(total / (4 * threads), (size_t)1 << 14));
  std::vector<Piece> list;
  for (int leaf = 0; leaf < kLeaves; leaf++) {
    const int rows = leaf_rows(s, leaf), each = (int)std::max<size_t>(most / leaf_cols(s, leaf), 64);
    for (int layer = 0; layer < leaf_layers(s, leaf); layer++) {
      for (int first = 0; first < rows; first += each)
        list.push_back({leaf, layer, first, std::min(each, rows - first)});
    }
  }
  const auto size = [&s](const Piece& p) { return (size_t)p.rows * leaf_cols(s, p.leaf); };
  std::stable_sort(list.begin(), list.end(), [&](const Piece& a, const Piece& b) { return size(a) > size(b); });
  return list;
}

void signs(int8_t* v, size_t n) {
  for (size_t i = 0; i < n; i++) v[i] = (int8_t)((v[i] > 0) - (v[i] < 0));
}

struct Voter {
  static constexpr size_t kColumns = 256; // pairs times rank summed by one product
  const Isa& isa;
  const UpdateTask& task;
  const std::vector<uint32_t>& pairs; // those with fitness
  bool split;                         // fitness * A does not fit int8: 128 high + low
  const int* stop;

  uint32_t start(const Piece& p, uint32_t pair) const {
    return noise_start(task.noise.base[p.leaf][p.layer], noise_pair(task.noise, 2 * (uint64_t)pair),
                       noise_length(task.shape, p.leaf, task.noise.rank));
  }

  void vector(const Piece& p, int64_t* z) const {
    std::vector<int8_t> draws(2 * p.rows);
    for (const uint32_t pair : pairs) {
      if (__atomic_load_n(stop, __ATOMIC_RELAXED)) return;
      isa.draw(task.noise.key, start(p, pair) + 2 * p.first, draws.size(), draws.data());
      if (!task.use_clt) signs(draws.data(), draws.size());
      for (int i = 0; i < p.rows; i++) z[i] += task.fitness[pair] * draws[2 * i] * draws[2 * i + 1];
    }
  }

  // fit * A transposed to (rows, columns), so that a product can sum over columns.
  void transpose(const Buffer& a_rows, const std::vector<int8_t>& fit, int rows, size_t columns, int8_t* low,
                 int8_t* high) const {
    const size_t stride = padded(rows), out = fit.size();
    for (int first = 0; first < rows; first += 64) {
      const int last = std::min(first + 64, rows);
      for (size_t k = 0; k < columns; k++) {
        const int8_t* row = a_rows.as<int8_t>() + k * stride;
        const int f = fit[k];
        if (split) {
          for (int o = first; o < last; o++) {
            const int v = f * row[o], rest = ((v + 64) & 127) - 64;
            low[o * out + k] = (int8_t)rest;
            high[o * out + k] = (int8_t)((v - rest) >> 7);
          }
        } else {
          for (int o = first; o < last; o++) low[o * out + k] = (int8_t)(f * row[o]);
        }
      }
      for (int o = first; o < last; o++) {
        std::memset(low + o * out + columns, 0, out - columns);
        if (split) std::memset(high + o * out + columns, 0, out - columns);
      }
    }
  }

  void matrix(const Piece& p, int64_t* z) const {
    const Noise& noise = task.noise;
    const size_t rank = noise.rank, cols = leaf_cols(task.shape, p.leaf), rows = p.rows;
    const size_t per_chunk = std::max<size_t>(1, kColumns / rank), most = padded(per_chunk * rank);
    const size_t b_stride = padded(cols), a_stride = padded(rows);
    const Buffer b_rows(most * b_stride), a_rows(most * a_stride), packed(most * b_stride);
    const Buffer low(most * rows), high(split ? most * rows : 1);
    std::vector<int8_t> draws(rank > 1 ? std::max(cols, rows) * rank : 0), fit(most);
    // One pair's factor into `rank` rows.
    const auto draw = [&](uint32_t first, size_t count, int8_t* out, size_t stride) {
      if (rank == 1) return isa.draw(noise.key, first, count, out);
      isa.draw(noise.key, first, count * rank, draws.data());
      for (size_t i = 0; i < count; i++)
        for (size_t r = 0; r < rank; r++) out[r * stride + i] = draws[i * rank + r];
    };
    for (size_t done = 0; done < pairs.size(); done += per_chunk) {
      size_t columns = 0;
      for (size_t i = done; i < std::min(done + per_chunk, pairs.size()); i++, columns += rank) {
        if (__atomic_load_n(stop, __ATOMIC_RELAXED)) return;
        const uint32_t from = start(p, pairs[i]);
        draw(from, cols, b_rows.as<int8_t>() + columns * b_stride, b_stride);
        draw((uint32_t)(from + (cols + p.first) * rank), rows, a_rows.as<int8_t>() + columns * a_stride, a_stride);
        std::fill_n(fit.begin() + columns, rank, task.fitness[pairs[i]]);
      }
      if (!task.use_clt) {
        signs(b_rows.as<int8_t>(), columns * b_stride);
        signs(a_rows.as<int8_t>(), columns * a_stride);
      }
      transpose(a_rows, fit, (int)rows, columns, low.as<int8_t>(), high.as<int8_t>());
      isa.pack_columns(b_rows.as<int8_t>(), b_stride, (int)columns, (int)cols, packed.data());
      const Packed b{packed.data(), (int)cols, (int)columns};
      isa.votes(low.as<int8_t>(), most, (int)rows, b, 1, z);
      if (split) isa.votes(high.as<int8_t>(), most, (int)rows, b, 128, z);
    }
  }
};

// Calls use(piece, z) with each piece's sums.
template <class Use>
void for_each_piece(const Isa& isa, const UpdateTask& task, int threads, const Poll& poll, Use use) {
  threads = choose_threads(threads);
  const std::vector<Piece> list = pieces(task.shape, threads);
  std::vector<uint32_t> voting;
  bool split = false;
  for (size_t i = 0; i < task.pairs; i++) {
    if (task.fitness[i]) voting.push_back((uint32_t)i);
    split = split || task.fitness[i] > 1 || task.fitness[i] < -1;
  }
  int stop = 0;
  const Voter voter{isa, task, voting, split, &stop};
  parallel(threads, list.size(), &stop, poll, [&](size_t job, int) {
    const Piece& p = list[job];
    std::vector<int64_t> z((size_t)p.rows * leaf_cols(task.shape, p.leaf));
    if (is_matrix(p.leaf))
      voter.matrix(p, z.data());
    else
      voter.vector(p, z.data());
    if (task.normalised)
      for (int64_t& v : z) v >>= 4;
    if (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) use(p, z);
  });
}

size_t piece_offset(const Shape& s, const Piece& p) {
  return ((size_t)p.layer * leaf_rows(s, p.leaf) + p.first) * leaf_cols(s, p.leaf);
}

} // namespace

void update(const Isa& isa, const UpdateTask& task, Params params, int64_t bound, int threads, const Poll& poll,
            int8_t* const* new_params, int64_t* moved) {
  std::fill_n(moved, (int)kLeaves, 0);
  std::mutex mutex;
  for_each_piece(isa, task, threads, poll, [&](const Piece& p, const std::vector<int64_t>& z) {
    const size_t offset = piece_offset(task.shape, p);
    const int64_t changed = isa.move(z.data(), z.size(), params[p.leaf] + offset, bound, new_params[p.leaf] + offset);
    const std::lock_guard<std::mutex> lock(mutex);
    moved[p.leaf] += changed;
  });
}

void votes(const Isa& isa, const UpdateTask& task, int threads, const Poll& poll, int64_t* const* z) {
  for_each_piece(isa, task, threads, poll, [&](const Piece& p, const std::vector<int64_t>& sums) {
    std::copy(sums.begin(), sums.end(), z[p.leaf] + piece_offset(task.shape, p));
  });
}

double peak(const Isa& isa, int threads, double seconds, const Poll& poll) {
  using Clock = std::chrono::steady_clock;
  threads = choose_threads(threads);
  std::vector<double> rates(threads);
  int stop = 0;
  parallel(threads, threads, &stop, poll, [&](size_t job, int) {
    const auto begin = Clock::now();
    uint64_t work = 0;
    double elapsed = 0;
    do {
      work += isa.peak(1 << 14);
      elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
    } while (elapsed < seconds && !__atomic_load_n(&stop, __ATOMIC_RELAXED));
    rates[job] = (double)work / elapsed;
  });
  double total = 0;
  for (const double r : rates) total += r;
  return total;
}

} // namespace nanoegg
