// The update's sums and steps on all threads.
//
// Notable: the work is cut into pieces of leaves small enough that their exact int64 sums need little memory. Each
// piece draws the noise of a few hundred pairs at a time again; a transposed copy of it is then summed by int8
// products.
#include "arithmetic.h"
#include "engine.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace nanoegg {
namespace {

// Rows [first, first + rows) of one leaf of one layer.
struct Piece {
  int leaf, layer, first, rows;
};

std::vector<Piece> pieces(const Shape& s, int threads) {
  size_t most = (size_t)1 << 19; // entries: 4 MB of Z
  size_t total = 0;
  for (int leaf = 0; leaf < kLeaves; leaf++) total += leaf_size(s, leaf);
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
  bool split;                         // fitness * A does not fit int8: it is 128 high + low
  const int* stop;

  uint32_t start(const Piece& p, uint32_t pair) const {
    return noise_start(task.noise.base[p.leaf][p.layer], noise_pair(task.noise, 2 * (uint64_t)pair),
                       noise_length(task.shape, p.leaf, task.noise.rank));
  }

  void vector(const Piece& p, int64_t* z) const {
    std::vector<int8_t> draws(2 * p.rows);
    for (const uint32_t pair : pairs) {
      if (is_set(stop)) return;
      isa.draw(task.noise.key, start(p, pair) + 2 * p.first, draws.size(), draws.data());
      if (!task.use_clt) signs(draws.data(), draws.size());
      for (int i = 0; i < p.rows; i++) z[i] += task.fitness[pair] * draws[2 * i] * draws[2 * i + 1];
    }
  }

  // Clears the rows of A, `rank` for each of `count` pairs from number `done` on, where the pair has not read the byte.
  void mask(const Piece& p, size_t done, size_t count, int8_t* a_rows) const {
    const size_t rank = task.noise.rank, stride = padded(p.rows);
    for (size_t i = 0; i < count; i++) {
      const uint8_t* read = task.reads + pairs[done + i] / task.pairs_per_lane * task.shape.vocab + p.first;
      for (size_t r = 0; r < rank; r++, a_rows += stride)
        for (int o = 0; o < p.rows; o++) a_rows[o] = read[o] ? a_rows[o] : 0;
    }
  }

  // fit * A transposed to (rows, columns), so that a product can sum over columns. |fit A| is at most 128 * 86.
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
            const Digits d = digits((int16_t)(f * row[o]));
            low[o * out + k] = d.low;
            high[o * out + k] = d.high;
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
        if (is_set(stop)) return;
        const uint32_t from = start(p, pairs[i]);
        draw(from, cols, b_rows.as<int8_t>() + columns * b_stride, b_stride);
        draw((uint32_t)(from + (cols + p.first) * rank), rows, a_rows.as<int8_t>() + columns * a_stride, a_stride);
        std::fill_n(fit.begin() + columns, rank, task.fitness[pairs[i]]);
      }
      if (task.reads && p.leaf == kEmb) mask(p, done, columns / rank, a_rows.as<int8_t>());
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

// Calls use(piece, z) with each piece's sums, on any of the threads.
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
    if (!is_set(&stop)) use(p, z);
  });
}

size_t piece_offset(const Shape& s, const Piece& p) {
  return ((size_t)p.layer * leaf_rows(s, p.leaf) + p.first) * leaf_cols(s, p.leaf);
}

} // namespace

void update(const Isa& isa, const UpdateTask& task, Params params, const Bounds& bounds, int threads, const Poll& poll,
            int8_t* const* new_params) {
  for_each_piece(isa, task, threads, poll, [&](const Piece& p, const std::vector<int64_t>& z) {
    const int64_t* by_row = p.leaf == kEmb ? bounds.embedding : nullptr;
    const size_t offset = piece_offset(task.shape, p), each = by_row ? leaf_cols(task.shape, p.leaf) : z.size();
    for (size_t i = 0, row = p.first; i < z.size(); i += each, row++)
      isa.move(z.data() + i, each, params[p.leaf] + offset + i, by_row ? by_row[row] : bounds.all,
               new_params[p.leaf] + offset + i);
  });
}

void votes(const Isa& isa, const UpdateTask& task, int threads, const Poll& poll, int64_t* const* z) {
  for_each_piece(isa, task, threads, poll, [&](const Piece& p, const std::vector<int64_t>& sums) {
    std::copy(sums.begin(), sums.end(), z[p.leaf] + piece_offset(task.shape, p));
  });
}

} // namespace nanoegg
