// Checks of everything that Python passes, before a kernel gets a pointer. For binding.cpp alone.
//
// Notable: arrays must be exactly right (dtype, shape, C order); nothing is converted or copied without being asked
// for. A wrong type or dtype is a TypeError, a wrong shape, order or value a ValueError, each with a sentence that
// names the argument.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine.h"

namespace py = pybind11;

namespace nanoegg {
namespace {

constexpr int kMaxWidth = 16384; // int32 sums of int8 products stay exact up to inputs of 4 * 16384
constexpr int kMaxLayers = 1 << 16;
constexpr int kMaxRank = 4096;

std::string shape_text(const std::vector<py::ssize_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); i++)
    text += (i ? ", " : "") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  return text + (shape.size() == 1 ? ",)" : ")");
}

void require(bool ok, const std::string& message) {
  if (!ok) throw py::value_error(message);
}

// Requires low <= value <= high.
void require_range(const std::string& name, int64_t value, int64_t low, int64_t high) {
  require(value >= low && value <= high, name + " is " + std::to_string(value) + "; it must be " + std::to_string(low) +
                                             " to " + std::to_string(high) + ".");
}

// A C-contiguous array of T with the given shape (-1: any length).
template <class T>
py::array array_of(const py::object& object, const std::string& name, const std::vector<py::ssize_t>& shape) {
  const std::string type = py::str(py::dtype::of<T>());
  if (!py::isinstance<py::array>(object))
    throw py::type_error(name + " is a " + std::string(py::str(py::type::of(object).attr("__name__"))) +
                         "; it must be a NumPy array of " + type + ".");
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (!py::dtype::of<T>().is(array.dtype()) && !py::dtype::of<T>().equal(array.dtype()))
    throw py::type_error(name + " has dtype " + std::string(py::str(array.dtype())) + "; it must be " + type + ".");
  const std::vector<py::ssize_t> is(array.shape(), array.shape() + array.ndim());
  bool same = is.size() == shape.size();
  for (size_t i = 0; same && i < shape.size(); i++) same = shape[i] < 0 || shape[i] == is[i];
  require(same, name + " has shape " + shape_text(is) + "; it must be " + shape_text(shape) + ".");
  require(array.flags() & py::array::c_style, name + " is not C-contiguous; it must be.");
  require((uintptr_t)array.data() % alignof(T) == 0, name + " is not aligned to its dtype; it must be.");
  return array;
}
template <class T>
const T* pointer(const py::array& array) {
  return static_cast<const T*>(array.data());
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
    for (const char* name : kLeafNames)
      require(params.contains(name), std::string("params has no ") + name + "; it must have all leaves of the model.");
    require(params.size() == (size_t)kLeaves, "params has " + std::to_string(params.size()) +
                                                  " leaves; it must have exactly the " + std::to_string(kLeaves) +
                                                  " leaves of the model.");
    const py::array emb = array_of<int8_t>(params["emb"], "params[\"emb\"]", {-1, -1});
    const py::array bf = array_of<int8_t>(params["blocks.att.bf"], "params[\"blocks.att.bf\"]", {-1, -1});
    require_range("vocab_size (rows of emb)", emb.shape(0), 1, 256);
    require_range("n_embd (columns of emb)", emb.shape(1), 1, kMaxWidth);
    require_range("n_layer (rows of blocks.att.bf)", bf.shape(0), 1, kMaxLayers);
    shape = {(int)emb.shape(0), (int)emb.shape(1), (int)bf.shape(0)};
    for (int leaf = 0; leaf < kLeaves; leaf++) {
      arrays.push_back(array_of<int8_t>(params[kLeafNames[leaf]], std::string("params[\"") + kLeafNames[leaf] + "\"]",
                                        leaf_shape(shape, leaf)));
      leaves[leaf] = pointer<int8_t>(arrays.back());
    }
  }
};

// An epoch's perturbations as Python passes them (spec section 3).
struct NoiseSpec {
  Noise noise{};
  std::vector<std::vector<uint32_t>> bases;

  NoiseSpec(const NoiseSpec&) = delete; // noise.base points into bases
  NoiseSpec(std::pair<uint32_t, uint32_t> key, const std::vector<py::object>& leaf_bases, int rank, int sigma_shift,
            uint64_t num_perturbations) {
    require(leaf_bases.size() == (size_t)kLeaves, "bases has " + std::to_string(leaf_bases.size()) +
                                                      " arrays; it must have " + std::to_string(kLeaves) +
                                                      ", one per leaf.");
    require_range("rank", rank, 1, kMaxRank);
    require_range("sigma_shift", sigma_shift, -4, 1 << 20);
    require(num_perturbations % 2 == 0,
            "num_perturbations is " + std::to_string(num_perturbations) + "; it must be even.");
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
      require(bases[leaf].size() == layers, std::string("noise has ") + std::to_string(bases[leaf].size()) +
                                                " bases for " + kLeafNames[leaf] + "; it must have " +
                                                std::to_string(layers) + ".");
      const uint64_t length = noise_length(shape, leaf, noise.rank);
      require(length <= (uint64_t)1 << 30, std::string("noise of ") + kLeafNames[leaf] + " is " +
                                               std::to_string(length) + " draws long; it must be at most 2^30.");
    }
  }
};

// Requires bytes below the vocabulary size: the kernels look embeddings up without a check.
void check_bytes(const py::array& array, const std::string& name, int vocab) {
  if (vocab == 256) return;
  const uint8_t* p = pointer<uint8_t>(array);
  for (py::ssize_t i = 0; i < array.size(); i++)
    require(p[i] < vocab, name + " holds byte " + std::to_string(p[i]) + "; it must be below the vocabulary size, " +
                              std::to_string(vocab) + ".");
}

py::array copy(const py::array& states) {
  py::array_t<int8_t> copied(std::vector<py::ssize_t>(states.shape(), states.shape() + states.ndim()));
  std::copy_n(pointer<int8_t>(states), states.size(), copied.mutable_data());
  return copied;
}

// The arrays of a score() or logits() call.
struct Inputs {
  py::array inputs, targets;
  py::array states; // a copy, to be returned
  ScoreTask task;

  Inputs(const Shape& shape, const py::object& in, const py::object& out, const py::object& old, const NoiseSpec* noise,
         uint64_t first_member) {
    const py::array given = array_of<int8_t>(old, "states", {-1, shape.layers, shape.width});
    const py::ssize_t members = given.shape(0);
    require(first_member < (uint64_t)1 << 62,
            "first_member is " + std::to_string(first_member) + "; it must be below 2^62.");
    inputs = array_of<uint8_t>(in, "inputs", {members, -1});
    check_bytes(inputs, "inputs", shape.vocab);
    if (!out.is_none()) {
      targets = array_of<uint8_t>(out, "targets", {members, inputs.shape(1)});
      check_bytes(targets, "targets", shape.vocab);
      task.targets = pointer<uint8_t>(targets);
    }
    if (noise) {
      noise->check(shape);
      task.noise = &noise->noise;
    }
    states = copy(given);
    task.first_member = first_member;
    task.members = (size_t)members;
    task.tokens = (size_t)inputs.shape(1);
    task.inputs = pointer<uint8_t>(inputs);
    task.states = static_cast<int8_t*>(states.mutable_data());
  }
};

// The lanes or streams of an encode() or decode() call.
std::vector<std::string_view> views_of(const py::tuple& items, const std::string& name) {
  std::vector<std::string_view> views;
  for (size_t i = 0; i < items.size(); i++) {
    const py::object item = items[i];
    if (!py::isinstance<py::bytes>(item))
      throw py::type_error(name + "[" + std::to_string(i) + "] is a " +
                           std::string(py::str(py::type::of(item).attr("__name__"))) + "; it must be bytes.");
    views.emplace_back(py::reinterpret_borrow<py::bytes>(item));
  }
  return views;
}

// Requires what coding.cpp asks for. The limit is that of the format's blocks.
void check_lanes(const Shape& shape, const std::vector<size_t>& sizes, const std::string& name) {
  require(shape.vocab == 256, "vocab_size is " + std::to_string(shape.vocab) + "; it must be 256 to code bytes.");
  if (sizes.empty()) return;
  const auto [least, most] = std::minmax_element(sizes.begin(), sizes.end());
  require_range("The largest of " + name, (int64_t)std::min<size_t>(*most, INT64_MAX), 0, 1 << 24);
  require(*most - *least <= 1, name + " are from " + std::to_string(*least) + " to " + std::to_string(*most) +
                                   "; they must differ by at most one.");
}

// The arrays of a nudge() call.
struct NudgeInputs {
  py::array inputs, targets;
  py::array states; // a copy, to be returned
  NudgeTask task;

  NudgeInputs(const Shape& shape, const py::object& in, const py::object& out, const py::object& old,
              uint64_t first_member, int cohort, bool antithetic) {
    require_range("cohort", cohort, 2, antithetic ? 2 : 128);
    require(first_member < (uint64_t)1 << 62 && first_member % cohort == 0,
            "first_member is " + std::to_string(first_member) + "; it must be a multiple of " + std::to_string(cohort) +
                " below 2^62.");
    inputs = array_of<uint8_t>(in, "inputs", {-1, -1});
    check_bytes(inputs, "inputs", shape.vocab);
    targets = array_of<uint8_t>(out, "targets", {inputs.shape(0), inputs.shape(1)});
    check_bytes(targets, "targets", shape.vocab);
    states = copy(array_of<int8_t>(old, "states", {cohort * inputs.shape(0), shape.layers, shape.width}));
    task.antithetic = antithetic;
    task.size = cohort;
    task.first_member = first_member;
    task.cohorts = (size_t)inputs.shape(0);
    task.tokens = (size_t)inputs.shape(1);
    task.inputs = pointer<uint8_t>(inputs);
    task.targets = pointer<uint8_t>(targets);
    task.states = static_cast<int8_t*>(states.mutable_data());
  }
};

// The arrays of an update() or votes() call.
struct Ballot {
  py::array fitness, reads;
  UpdateTask task;

  Ballot(const Shape& shape, const NoiseSpec& noise, const py::object& fit, const py::object& read, bool use_clt,
         bool normalised) {
    fitness = array_of<int8_t>(fit, "fitness", {-1});
    noise.check(shape);
    require(fitness.size() < (py::ssize_t)1 << 31,
            "fitness has " + std::to_string(fitness.size()) + " pairs; it must have fewer than 2^31.");
    task.shape = shape;
    task.noise = noise.noise;
    task.fitness = pointer<int8_t>(fitness);
    task.pairs = (size_t)fitness.size();
    task.use_clt = use_clt;
    task.normalised = normalised;
    if (read.is_none()) return;
    reads = array_of<bool>(read, "reads", {-1, shape.vocab});
    const py::ssize_t lanes = reads.shape(0);
    require(lanes > 0 && fitness.size() % lanes == 0, "reads has " + std::to_string(lanes) +
                                                          " lanes; it must have a divisor of the " +
                                                          std::to_string(fitness.size()) + " pairs of fitness.");
    task.reads = pointer<uint8_t>(reads);
    task.pairs_per_lane = (size_t)(fitness.size() / lanes);
  }
};

} // namespace
} // namespace nanoegg
