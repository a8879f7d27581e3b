// The Python module: checks every array before a kernel sees a pointer, releases the GIL, lets Ctrl-C through.
//
// Notable: arrays must be exactly right (dtype, shape, C order); nothing is converted or copied behind the caller's
// back. A wrong type or dtype is a TypeError, a wrong shape, order or value a ValueError, both with a sentence that
// names the argument. `naive_score` and the single kernels are there for the tests; the instruction set "naive" is a
// kernel's scalar twin.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>

#include "engine.h"
#include "naive.h"

namespace py = pybind11;
using namespace nanoegg;

namespace {

constexpr int kMaxWidth = 16384; // int32 sums of int8 products stay exact up to inputs of 4 * 16384
constexpr int kMaxLayers = 1 << 16;
constexpr int kMaxRank = 4096;
constexpr int kMaxRows = 1 << 20; // of a single product

std::string shape_text(const std::vector<py::ssize_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); i++)
    text += (i ? ", " : "") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  return text + (shape.size() == 1 ? ",)" : ")");
}

// A C-contiguous array of T with the given shape (-1: any length).
template <class T>
py::array array_of(const py::object& object, const std::string& name, const std::vector<py::ssize_t>& shape) {
  const std::string type = py::str(py::dtype::of<T>());
  if (!py::isinstance<py::array>(object))
    throw py::type_error(name + " must be a numpy array of " + type + ", it is a " +
                         std::string(py::str(py::type::of(object).attr("__name__"))));
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (!py::dtype::of<T>().is(array.dtype()) && !py::dtype::of<T>().equal(array.dtype()))
    throw py::type_error(name + " must have dtype " + type + ", it has " + std::string(py::str(array.dtype())));
  const std::vector<py::ssize_t> is(array.shape(), array.shape() + array.ndim());
  bool same = is.size() == shape.size();
  for (size_t i = 0; same && i < shape.size(); i++) same = shape[i] < 0 || shape[i] == is[i];
  if (!same) throw py::value_error(name + " must have shape " + shape_text(shape) + ", it has " + shape_text(is));
  if (!(array.flags() & py::array::c_style)) throw py::value_error(name + " must be C-contiguous");
  if ((uintptr_t)array.data() % alignof(T)) throw py::value_error(name + " must be aligned to its dtype");
  return array;
}
template <class T>
const T* pointer(const py::array& array) {
  return static_cast<const T*>(array.data());
}

void require(bool ok, const std::string& message) {
  if (!ok) throw py::value_error(message);
}

// Runs f with the GIL released; f gets a Poll that takes it back to look for signals.
template <class F>
void without_gil(F f) {
  bool signalled = false;
  {
    const py::gil_scoped_release release;
    try {
      f([&signalled] {
        const py::gil_scoped_acquire acquire;
        signalled = PyErr_CheckSignals() != 0;
        return !signalled;
      });
    } catch (const Interrupted&) {
    }
  }
  if (signalled) throw py::error_already_set();
}

// A parameter dict checked leaf by leaf; keeps the arrays alive.
struct ParamDict {
  Shape shape;
  std::vector<py::array> arrays;
  std::array<const int8_t*, kLeaves> leaves;

  static std::vector<py::ssize_t> leaf_shape(const Shape& s, int leaf) {
    std::vector<py::ssize_t> shape;
    if (is_layered(leaf)) shape.push_back(s.layers);
    shape.push_back(leaf_rows(s, leaf));
    if (is_matrix(leaf)) shape.push_back(leaf_cols(s, leaf));
    return shape;
  }

  explicit ParamDict(const py::dict& params) {
    for (const char* name : kLeafNames) require(params.contains(name), std::string("params has no ") + name);
    require(params.size() == (size_t)kLeaves, "params must have exactly the " + std::to_string(kLeaves) +
                                                  " leaves of the model, it has " + std::to_string(params.size()));
    const py::array emb = array_of<int8_t>(params["emb"], "params[\"emb\"]", {-1, -1});
    const py::array bf = array_of<int8_t>(params["blocks.att.bf"], "params[\"blocks.att.bf\"]", {-1, -1});
    require(emb.shape(0) >= 1 && emb.shape(0) <= 256,
            "vocab_size must be 1 to 256, emb has " + std::to_string(emb.shape(0)) + " rows");
    require(
        emb.shape(1) >= 1 && emb.shape(1) <= kMaxWidth,
        "n_embd must be 1 to " + std::to_string(kMaxWidth) + ", emb has " + std::to_string(emb.shape(1)) + " columns");
    require(bf.shape(0) >= 1 && bf.shape(0) <= kMaxLayers, "n_layer must be 1 to " + std::to_string(kMaxLayers) +
                                                               ", blocks.att.bf has " + std::to_string(bf.shape(0)) +
                                                               " rows");
    shape = {(int)emb.shape(0), (int)emb.shape(1), (int)bf.shape(0)};
    for (int leaf = 0; leaf < kLeaves; leaf++) {
      arrays.push_back(array_of<int8_t>(params[kLeafNames[leaf]], std::string("params[\"") + kLeafNames[leaf] + "\"]",
                                        leaf_shape(shape, leaf)));
      leaves[leaf] = pointer<int8_t>(arrays.back());
    }
  }
};

// Spec section 3's choice of perturbations, as Python holds it.
struct NoiseSpec {
  Noise noise{};
  std::vector<std::vector<uint32_t>> bases;

  NoiseSpec(const NoiseSpec&) = delete; // noise.base points into bases
  NoiseSpec(std::pair<uint32_t, uint32_t> key, const std::vector<py::object>& leaf_bases, int rank, int sigma_shift,
            uint64_t num_perturbations) {
    require(leaf_bases.size() == (size_t)kLeaves, "bases must have " + std::to_string(kLeaves) +
                                                      " arrays, one a leaf, it has " +
                                                      std::to_string(leaf_bases.size()));
    require(rank >= 1 && rank <= kMaxRank,
            "rank must be 1 to " + std::to_string(kMaxRank) + ", it is " + std::to_string(rank));
    require(sigma_shift >= -4 && sigma_shift <= 1 << 20,
            "sigma_shift must be -4 to 2^20, it is " + std::to_string(sigma_shift));
    require(num_perturbations % 2 == 0, "num_perturbations must be even, it is " + std::to_string(num_perturbations));
    noise.key = {key.first, key.second};
    noise.rank = rank;
    noise.shift = std::min(4 + sigma_shift, 31);
    noise.perturbations = num_perturbations;
    for (int leaf = 0; leaf < kLeaves; leaf++) {
      const py::array base = array_of<uint32_t>(
          leaf_bases[leaf], std::string("bases[") + std::to_string(leaf) + "] (" + kLeafNames[leaf] + ")", {-1});
      bases.emplace_back(pointer<uint32_t>(base), pointer<uint32_t>(base) + base.size());
      noise.base[leaf] = bases.back().data();
    }
  }

  void check(const Shape& shape) const {
    for (int leaf = 0; leaf < kLeaves; leaf++) {
      const size_t layers = leaf_layers(shape, leaf);
      require(bases[leaf].size() == layers, std::string("the noise has ") + std::to_string(bases[leaf].size()) +
                                                " bases for " + kLeafNames[leaf] + ", the model needs " +
                                                std::to_string(layers));
      require(noise_length(shape, leaf, noise.rank) <= (uint64_t)1 << 30,
              std::string("the noise of ") + kLeafNames[leaf] + " is longer than 2^30 draws");
    }
  }
};

void check_bytes(const py::array& array, const std::string& name, int vocab) {
  if (vocab == 256) return;
  const uint8_t* p = pointer<uint8_t>(array);
  for (py::ssize_t i = 0; i < array.size(); i++)
    require(p[i] < vocab,
            name + " holds byte " + std::to_string(p[i]) + ", the vocabulary has " + std::to_string(vocab));
}

struct Inputs {
  py::array inputs, targets;
  py::array states; // a copy, to be returned
  ScoreTask task;

  Inputs(const Shape& shape, const py::object& in, const py::object& out, const py::object& old, const NoiseSpec* noise,
         uint64_t first_member, uint64_t group_size) {
    require(group_size >= 1, "group_size must be at least 1");
    const py::array given = array_of<int8_t>(old, "states", {-1, shape.layers, shape.width});
    const uint64_t members = given.shape(0);
    require(first_member < (uint64_t)1 << 62, "first_member is too large");
    const uint64_t lanes = members ? (first_member + members - 1) / group_size - first_member / group_size + 1 : 0;
    inputs = array_of<uint8_t>(in, "inputs", {(py::ssize_t)lanes, -1});
    check_bytes(inputs, "inputs", shape.vocab);
    if (!out.is_none()) {
      targets = array_of<uint8_t>(out, "targets", {(py::ssize_t)lanes, inputs.shape(1)});
      check_bytes(targets, "targets", shape.vocab);
      task.targets = pointer<uint8_t>(targets);
    }
    if (noise) {
      noise->check(shape);
      task.noise = &noise->noise;
    }
    states = py::array_t<int8_t>(std::vector<py::ssize_t>(given.shape(), given.shape() + 3));
    std::copy_n(pointer<int8_t>(given), given.size(), static_cast<int8_t*>(states.mutable_data()));
    task.first_member = first_member;
    task.members = members;
    task.tokens = inputs.shape(1);
    task.inputs = pointer<uint8_t>(inputs);
    task.group_size = group_size;
    task.states = static_cast<int8_t*>(states.mutable_data());
  }
};

template <class T>
py::array_t<T> zeros(const std::vector<py::ssize_t>& shape) {
  py::array_t<T> array(shape);
  std::fill_n(array.mutable_data(), array.size(), T(0));
  return array;
}

py::tuple py_score(const Weights& weights, const py::object& in, const py::object& out, const py::object& old,
                   const NoiseSpec* noise, uint64_t first_member, uint64_t group_size, int threads, bool exact,
                   int block) {
  require(!out.is_none(), "targets must be given");
  require(block >= 0, "block must not be negative, it is " + std::to_string(block));
  Inputs given(weights.model().shape, in, out, old, noise, first_member, group_size);
  const py::ssize_t members = given.task.members;
  auto scores = zeros<int64_t>({members});
  auto bits = zeros<double>({exact ? members : 0, (py::ssize_t)given.task.tokens});
  given.task.scores = scores.mutable_data();
  if (exact) given.task.bits = bits.mutable_data();
  without_gil([&](const Poll& poll) { score(weights, given.task, threads, block, poll); });
  if (exact) return py::make_tuple(scores, given.states, bits);
  return py::make_tuple(scores, given.states);
}

py::tuple py_logits(const Weights& weights, const py::object& in, const py::object& old, const NoiseSpec* noise,
                    uint64_t first_member, uint64_t group_size, int threads) {
  Inputs given(weights.model().shape, in, py::none(), old, noise, first_member, group_size);
  auto logits =
      zeros<int8_t>({(py::ssize_t)given.task.members, (py::ssize_t)given.task.tokens, weights.model().shape.vocab});
  given.task.logits = logits.mutable_data();
  without_gil([&](const Poll& poll) { score(weights, given.task, threads, 0, poll); });
  return py::make_tuple(logits, given.states);
}

UpdateTask update_task(const Shape& shape, const NoiseSpec& noise, const py::array& fitness, bool use_clt,
                       bool normalised) {
  noise.check(shape);
  require(fitness.size() < (py::ssize_t)1 << 31, "fitness has too many pairs");
  UpdateTask task;
  task.shape = shape;
  task.noise = noise.noise;
  task.fitness = pointer<int8_t>(fitness);
  task.pairs = fitness.size();
  task.use_clt = use_clt;
  task.normalised = normalised;
  return task;
}

py::tuple py_update(const py::dict& params, const NoiseSpec& noise, const py::object& fitness, int64_t bound,
                    bool use_clt, bool normalised, int threads, const std::string& isa) {
  const ParamDict old(params);
  const py::array fit = array_of<int8_t>(fitness, "fitness", {-1});
  const UpdateTask task = update_task(old.shape, noise, fit, use_clt, normalised);
  py::dict updated, moved;
  std::array<int8_t*, kLeaves> out;
  std::array<int64_t, kLeaves> counts{};
  for (int leaf = 0; leaf < kLeaves; leaf++) {
    py::array_t<int8_t> array(ParamDict::leaf_shape(old.shape, leaf));
    out[leaf] = array.mutable_data();
    updated[kLeafNames[leaf]] = array;
  }
  const Isa& chosen = choose_isa(isa.c_str());
  without_gil([&](const Poll& poll) {
    update(chosen, task, old.leaves.data(), bound, threads, poll, out.data(), counts.data());
  });
  for (int leaf = 0; leaf < kLeaves; leaf++) moved[kLeafNames[leaf]] = counts[leaf];
  return py::make_tuple(updated, moved);
}

py::dict py_votes(const py::dict& params, const NoiseSpec& noise, const py::object& fitness, bool use_clt,
                  bool normalised, int threads, const std::string& isa) {
  const ParamDict old(params);
  const py::array fit = array_of<int8_t>(fitness, "fitness", {-1});
  const UpdateTask task = update_task(old.shape, noise, fit, use_clt, normalised);
  py::dict sums;
  std::array<int64_t*, kLeaves> z;
  for (int leaf = 0; leaf < kLeaves; leaf++) {
    py::array_t<int64_t> array(ParamDict::leaf_shape(old.shape, leaf));
    z[leaf] = array.mutable_data();
    sums[kLeafNames[leaf]] = array;
  }
  const Isa* chosen = isa == "naive" ? nullptr : &choose_isa(isa.c_str());
  without_gil([&](const Poll& poll) {
    if (chosen) return votes(*chosen, task, threads, poll, z.data());
    for (int leaf = 0; leaf < kLeaves; leaf++) {
      const size_t size = (size_t)leaf_rows(old.shape, leaf) * leaf_cols(old.shape, leaf);
      for (int layer = 0; layer < leaf_layers(old.shape, leaf); layer++) {
        int64_t* const out = z[leaf] + layer * size;
        naive::votes(old.shape, noise.noise, leaf, layer, task.fitness, task.pairs, use_clt, out);
        for (size_t i = 0; normalised && i < size; i++) out[i] >>= 4;
      }
    }
  });
  return sums;
}

py::tuple py_naive_score(const py::dict& params, const py::object& in, const py::object& out, const py::object& old,
                         const NoiseSpec* noise, uint64_t first_member, uint64_t group_size) {
  const ParamDict p(params);
  Inputs given(p.shape, in, out, old, noise, first_member, group_size);
  const ScoreTask& task = given.task;
  auto scores = zeros<int64_t>({(py::ssize_t)task.members});
  auto logits = zeros<int8_t>({(py::ssize_t)task.members, (py::ssize_t)task.tokens, p.shape.vocab});
  for (size_t i = 0; i < task.members; i++) {
    const uint64_t lane = (first_member + i) / group_size - first_member / group_size;
    scores.mutable_data()[i] = naive::score(
        p.shape, p.leaves.data(), task.noise, first_member + i, task.inputs + lane * task.tokens,
        task.targets ? task.targets + lane * task.tokens : nullptr, task.tokens,
        task.states + i * p.shape.layers * p.shape.width, logits.mutable_data() + i * task.tokens * p.shape.vocab);
  }
  return py::make_tuple(scores, given.states, logits);
}

// Single kernels, on the padded rows they expect.

Buffer pad_rows(const py::array& array) {
  const size_t rows = array.ndim() == 2 ? array.shape(0) : 1, cols = array.shape(array.ndim() - 1);
  Buffer buffer(rows * padded(cols));
  for (size_t i = 0; i < rows; i++)
    std::copy_n(pointer<int8_t>(array) + i * cols, cols, buffer.as<int8_t>() + i * padded(cols));
  return buffer;
}
py::array_t<int8_t> unpad_row(const int8_t* row, py::ssize_t n) {
  py::array_t<int8_t> array(std::vector<py::ssize_t>{n});
  std::copy_n(row, n, array.mutable_data());
  return array;
}

py::array py_draw(std::pair<uint32_t, uint32_t> key, uint32_t start, size_t count, const std::string& isa) {
  require(count <= ((uint64_t)1 << 32) - start, "start + count must not exceed 2^32");
  py::array_t<int8_t> out((py::ssize_t)count);
  (isa == "naive" ? naive::draw : choose_isa(isa.c_str()).draw)({key.first, key.second}, start, count,
                                                                out.mutable_data());
  return std::move(out);
}

py::array py_normals(const py::object& m_object, const std::string& isa) {
  const py::array m = array_of<uint32_t>(m_object, "m", {-1});
  const uint32_t* bits = pointer<uint32_t>(m);
  for (py::ssize_t i = 0; i < m.size(); i++) require(bits[i] < 1u << 23, "m must be below 2^23");
  py::array_t<int8_t> out(m.size());
  if (isa == "naive")
    std::transform(bits, bits + m.size(), out.mutable_data(), naive::normal);
  else
    choose_isa(isa.c_str()).normals(bits, m.size(), out.mutable_data());
  return std::move(out);
}

// The weights (outputs, inputs) and rows (members, inputs) of a product.
std::pair<py::array, py::array> operands(const py::object& w_object, const py::object& x_object) {
  const py::array w = array_of<int8_t>(w_object, "w", {-1, -1});
  require(w.shape(0) >= 1 && w.shape(0) <= 4 * kMaxWidth && w.shape(1) >= 1 && w.shape(1) <= 4 * kMaxWidth,
          "w must have 1 to " + std::to_string(4 * kMaxWidth) + " rows and columns");
  const py::array x = array_of<int8_t>(x_object, "x", {-1, w.shape(1)});
  require(x.shape(0) >= 1 && x.shape(0) <= kMaxRows, "x must have 1 to " + std::to_string(kMaxRows) + " rows");
  return {w, x};
}

// b (rank, inputs) and a (rank, outputs) of every member, or None.
py::array py_matmul(const py::object& w_object, const py::object& x_object, const py::object& b_object,
                    const py::object& a_object, int shift, const std::string& isa) {
  require(shift >= 0 && shift <= 31, "shift must be 0 to 31, it is " + std::to_string(shift));
  const auto [w, x] = operands(w_object, x_object);
  const int rows = (int)w.shape(0), cols = (int)w.shape(1), members = (int)x.shape(0);
  const bool noisy = !b_object.is_none();
  py::array b, a;
  if (noisy) {
    b = array_of<int8_t>(b_object, "b", {members, -1, cols});
    a = array_of<int8_t>(a_object, "a", {members, b.shape(1), rows});
    require(b.shape(1) >= 1 && b.shape(1) <= kMaxRank, "b must be of rank 1 to " + std::to_string(kMaxRank));
  }
  const int rank = noisy ? (int)b.shape(1) : 0;
  py::array_t<int8_t> out({(py::ssize_t)members, (py::ssize_t)rows});
  if (isa == "naive") {
    for (int m = 0; m < members; m++) {
      naive::Perturbation p;
      for (int n = 0; n < cols; n++)
        for (int r = 0; r < rank; r++) p.b.push_back(pointer<int8_t>(b)[((size_t)m * rank + r) * cols + n]);
      for (int o = 0; o < rows; o++)
        for (int r = 0; r < rank; r++) p.a.push_back(pointer<int8_t>(a)[((size_t)m * rank + r) * rows + o]);
      naive::matmul(pointer<int8_t>(w), rows, cols, pointer<int8_t>(x) + (size_t)m * cols, noisy ? &p : nullptr, rank,
                    shift, out.mutable_data() + (size_t)m * rows);
    }
    return std::move(out);
  }
  const Isa& chosen = choose_isa(isa.c_str());
  Buffer storage;
  const Packed packed = pack_matrix(chosen, pointer<int8_t>(w), rows, cols, storage);
  const Buffer xs = pad_rows(x), ys((size_t)members * padded(rows));
  const size_t slot = rank * (padded(rows) + padded(cols));
  const Buffer factors(members * slot);
  std::vector<const int8_t*> each(members);
  for (int m = 0; m < members; m++) {
    int8_t* p = factors.as<int8_t>() + m * slot;
    each[m] = p;
    for (int r = 0; r < rank; r++) {
      std::copy_n(pointer<int8_t>(b) + ((size_t)m * rank + r) * cols, cols, p + r * padded(cols));
      std::copy_n(pointer<int8_t>(a) + ((size_t)m * rank + r) * rows, rows, p + rank * padded(cols) + r * padded(rows));
    }
  }
  std::vector<int32_t> signs(members, 1), start(members), projections((size_t)members * std::max(rank, 1));
  chosen.matmul(packed, xs.as<int8_t>(), members, ys.as<int8_t>(), noisy ? each.data() : nullptr, signs.data(), rank,
                shift, start.data(), projections.data());
  for (int m = 0; m < members; m++)
    std::copy_n(ys.as<int8_t>() + m * padded(rows), rows, out.mutable_data() + (size_t)m * rows);
  return std::move(out);
}

// Raw int32 products (members, rows).
py::array py_products(const py::object& w_object, const py::object& x_object, const std::string& isa) {
  const auto [w, x] = operands(w_object, x_object);
  const int rows = (int)w.shape(0), cols = (int)w.shape(1), members = (int)x.shape(0);
  py::array_t<int32_t> out({(py::ssize_t)members, (py::ssize_t)rows});
  if (isa == "naive") {
    for (int m = 0; m < members; m++)
      naive::products(pointer<int8_t>(w), rows, cols, pointer<int8_t>(x) + (size_t)m * cols,
                      out.mutable_data() + (size_t)m * rows);
    return std::move(out);
  }
  const Isa& chosen = choose_isa(isa.c_str());
  Buffer storage;
  const Packed packed = pack_matrix(chosen, pointer<int8_t>(w), rows, cols, storage);
  const Buffer xs = pad_rows(x), raw((size_t)members * padded(rows) * sizeof(int32_t));
  std::vector<int32_t> start(members);
  chosen.products(packed, xs.as<int8_t>(), members, start.data(), raw.as<int32_t>());
  for (int m = 0; m < members; m++)
    std::copy_n(raw.as<int32_t>() + m * padded(rows), rows, out.mutable_data() + (size_t)m * rows);
  return std::move(out);
}

py::array vector_of(const py::object& object, const std::string& name) {
  const py::array v = array_of<int8_t>(object, name, {-1});
  require(v.size() >= 1 && v.size() <= kMaxWidth, name + " must have 1 to " + std::to_string(kMaxWidth) + " entries");
  return v;
}

py::array py_norm(const py::object& x_object, const py::object& w_object, const std::string& isa) {
  const py::array x = vector_of(x_object, "x"), w = array_of<int8_t>(w_object, "w", {x.shape(0)});
  const Buffer xs = pad_rows(x), ws = pad_rows(w), ys(padded(x.size()));
  (isa == "naive" ? naive::norm : choose_isa(isa.c_str()).norm)(xs.as<int8_t>(), ws.as<int8_t>(), (int)x.size(),
                                                                ys.as<int8_t>());
  return unpad_row(ys.as<int8_t>(), x.size());
}

py::tuple py_gate(const py::object& fa, const py::object& fb, const py::object& bf, const py::object& h,
                  const std::string& isa) {
  const py::array first = vector_of(fa, "fa");
  const py::ssize_t n = first.size();
  const Buffer a = pad_rows(first), b = pad_rows(array_of<int8_t>(fb, "fb", {n})),
               c = pad_rows(array_of<int8_t>(bf, "bf", {n})), d = pad_rows(array_of<int8_t>(h, "h", {n})), g(padded(n));
  (isa == "naive" ? naive::gate : choose_isa(isa.c_str()).gate)(a.as<int8_t>(), b.as<int8_t>(), c.as<int8_t>(),
                                                                d.as<int8_t>(), (int)n, g.as<int8_t>());
  return py::make_tuple(unpad_row(a.as<int8_t>(), n), unpad_row(g.as<int8_t>(), n));
}

py::tuple py_recur(const py::object& ca, const py::object& cb, const py::object& bh, const py::object& fa,
                   const py::object& h, const py::object& x, const std::string& isa) {
  const py::array first = vector_of(ca, "ca");
  const py::ssize_t n = first.size();
  const Buffer a = pad_rows(first), b = pad_rows(array_of<int8_t>(cb, "cb", {n})),
               c = pad_rows(array_of<int8_t>(bh, "bh", {n})), f = pad_rows(array_of<int8_t>(fa, "fa", {n})),
               state = pad_rows(array_of<int8_t>(h, "h", {n})), out = pad_rows(array_of<int8_t>(x, "x", {n}));
  (isa == "naive" ? naive::recur : choose_isa(isa.c_str()).recur)(
      a.as<int8_t>(), b.as<int8_t>(), c.as<int8_t>(), f.as<int8_t>(), (int)n, state.as<int8_t>(), out.as<int8_t>());
  return py::make_tuple(unpad_row(state.as<int8_t>(), n), unpad_row(out.as<int8_t>(), n));
}

int32_t py_log_likelihood(const py::object& logits_object, int target, const std::string& isa) {
  const py::array logits = array_of<int8_t>(logits_object, "logits", {-1});
  require(logits.size() >= 1 && logits.size() <= 256, "logits must have 1 to 256 entries");
  require(target >= 0 && target < logits.size(), "target must be an index of logits");
  return (isa == "naive" ? naive::log_likelihood : choose_isa(isa.c_str()).log_likelihood)(pointer<int8_t>(logits),
                                                                                           (int)logits.size(), target);
}

py::tuple py_move(const py::object& z_object, const py::object& old_object, int64_t bound, const std::string& isa) {
  const py::array z = array_of<int64_t>(z_object, "z", {-1}), old = array_of<int8_t>(old_object, "old", {z.shape(0)});
  py::array_t<int8_t> out(z.size());
  const int64_t moved = (isa == "naive" ? naive::move : choose_isa(isa.c_str()).move)(
      pointer<int64_t>(z), z.size(), pointer<int8_t>(old), bound, out.mutable_data());
  return py::make_tuple(out, moved);
}

py::dict info() {
  py::list available;
  for (const Isa* const* isa = available_isas(); *isa; isa++) available.append((*isa)->name);
  py::dict d;
  d["isa"] = choose_isa(nullptr).name;
  d["available"] = available;
  d["threads"] = choose_threads(0);
  return d;
}

} // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Int8 kernels for CPUs: score a population, update its parameters. Bit-identical to the MLX engine.";

  py::class_<Weights>(m, "Weights",
                      "Parameters packed for one instruction set, for any number of score() and logits() calls.")
      .def(py::init([](const py::dict& params, const std::string& isa) {
             const ParamDict p(params);
             return std::make_unique<Weights>(choose_isa(isa.c_str()), p.shape, p.leaves.data());
           }),
           py::arg("params"), py::arg("isa") = "")
      .def_property_readonly("isa", [](const Weights& w) { return w.isa().name; })
      .def_property_readonly(
          "shape",
          [](const Weights& w) {
            return py::make_tuple(w.model().shape.vocab, w.model().shape.width, w.model().shape.layers);
          },
          "(vocab_size, n_embd, n_layer)");

  py::class_<NoiseSpec>(m, "Noise",
                        "An epoch's perturbations: key(seed) as two words, and for each of the 13 leaves a uint32 "
                        "array of bases, one a layer (spec section 3).")
      .def(py::init<std::pair<uint32_t, uint32_t>, const std::vector<py::object>&, int, int, uint64_t>(),
           py::arg("key"), py::arg("bases"), py::arg("rank") = 1, py::arg("sigma_shift") = 4,
           py::arg("num_perturbations") = 0);

  m.def(
      "score", py_score, py::arg("weights"), py::arg("inputs"), py::arg("targets"), py::arg("states"),
      py::arg("noise") = nullptr, py::arg("first_member") = 0, py::arg("group_size") = 1, py::arg("threads") = 0,
      py::arg("exact") = false, py::arg("block") = 0,
      "Scores of members first_member, first_member + 1, ... as many as states has.\n\n"
      "inputs, targets: (lanes, T) uint8; member i reads lane i // group_size, counted from the first member's lane.\n"
      "states: (members, L, D) int8, not changed. noise: None for unperturbed parameters (validation).\n"
      "threads: 0 for one a processor. block: most members a core takes at once, 0 to choose.\n"
      "Returns scores (members,) int64, new states, and if exact is set each token's code length in bits, (members, T) "
      "float64.");
  m.def("logits", py_logits, py::arg("weights"), py::arg("inputs"), py::arg("states"), py::arg("noise") = nullptr,
        py::arg("first_member") = 0, py::arg("group_size") = 1, py::arg("threads") = 0,
        "Logits (members, T, V) int8 and new states; arguments as in score().");
  m.def("update", py_update, py::arg("params"), py::arg("noise"), py::arg("fitness"), py::arg("bound"),
        py::arg("use_clt") = true, py::arg("normalised") = false, py::arg("threads") = 0, py::arg("isa") = "",
        "Spec section 7: fitness (pairs,) int8, bound an integer. normalised divides Z by 16. Returns a new parameter "
        "dict and a dict of how many entries of each leaf changed.");
  m.def("votes", py_votes, py::arg("params"), py::arg("noise"), py::arg("fitness"), py::arg("use_clt") = true,
        py::arg("normalised") = false, py::arg("threads") = 0, py::arg("isa") = "",
        "The sums Z of update() for every leaf, int64.");
  m.def(
      "peak",
      [](int threads, double seconds, const std::string& isa) {
        require(seconds > 0 && seconds <= 60, "seconds must be above 0 and at most 60");
        const Isa& chosen = choose_isa(isa.c_str());
        double rate = 0;
        without_gil([&](const Poll& poll) { rate = peak(chosen, threads, seconds, poll); });
        return rate;
      },
      py::arg("threads") = 0, py::arg("seconds") = 0.5, py::arg("isa") = "",
      "Int8 multiply-adds per second of dot products in registers on all threads.");
  m.def("info", info, "The instruction set chosen, those available (fastest first), and the number of threads.");

  m.def("naive_score", py_naive_score, py::arg("params"), py::arg("inputs"), py::arg("targets"), py::arg("states"),
        py::arg("noise") = nullptr, py::arg("first_member") = 0, py::arg("group_size") = 1,
        "The scalar twin of score() and logits(): scores, new states, logits.");
  m.def("draw", py_draw, py::arg("key"), py::arg("start"), py::arg("count"), py::arg("isa") = "");
  m.def("normals", py_normals, py::arg("m"), py::arg("isa") = "");
  m.def("matmul", py_matmul, py::arg("w"), py::arg("x"), py::arg("b") = py::none(), py::arg("a") = py::none(),
        py::arg("shift") = 8, py::arg("isa") = "");
  m.def("products", py_products, py::arg("w"), py::arg("x"), py::arg("isa") = "");
  m.def("norm", py_norm, py::arg("x"), py::arg("w"), py::arg("isa") = "");
  m.def("gate", py_gate, py::arg("fa"), py::arg("fb"), py::arg("bf"), py::arg("h"), py::arg("isa") = "");
  m.def("recur", py_recur, py::arg("ca"), py::arg("cb"), py::arg("bh"), py::arg("fa"), py::arg("h"), py::arg("x"),
        py::arg("isa") = "");
  m.def("move", py_move, py::arg("z"), py::arg("old"), py::arg("bound"), py::arg("isa") = "");
  m.def("cgroup_cpus", cgroup_cpus, py::arg("root") = "",
        "The processors that the control groups' quota grants, rounded up; 0 if there is none. root is put before "
        "/proc and /sys.");
  m.def("log_likelihood", py_log_likelihood, py::arg("logits"), py::arg("target"), py::arg("isa") = "");
}
