// The Python module: checks the arguments, releases the GIL, lets Ctrl-C through.
#include "arguments.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

using namespace nanoegg;

namespace {

// Runs f with the GIL released; f gets a Poll that takes it back to look for signals, and to call `check`.
template <class F>
void without_gil(F f, const py::object& check = py::none()) {
  std::unique_ptr<py::error_already_set> raised;
  {
    const py::gil_scoped_release release;
    try {
      f([&] {
        const py::gil_scoped_acquire acquire;
        try {
          if (PyErr_CheckSignals() != 0) throw py::error_already_set();
          if (!check.is_none()) check();
        } catch (py::error_already_set& error) {
          raised = std::make_unique<py::error_already_set>(error);
        }
        return !raised;
      });
    } catch (const Interrupted&) {
    }
  }
  if (raised) throw py::error_already_set(*raised);
}

template <class T>
py::array_t<T> zeros(const std::vector<py::ssize_t>& shape) {
  py::array_t<T> array(shape);
  std::fill_n(array.mutable_data(), array.size(), T(0));
  return array;
}

py::tuple py_score(const Weights& weights, const py::object& in, const py::object& out, const py::object& old,
                   const NoiseSpec* noise, uint64_t first_member, int threads, bool exact, int block,
                   const py::object& check) {
  require(!out.is_none(), "targets is None; it must be an array.");
  require(block >= 0, "block is " + std::to_string(block) + "; it must not be negative.");
  Inputs given(weights.model().shape, in, out, old, noise, first_member);
  const py::ssize_t members = given.task.members;
  auto scores = zeros<int64_t>({members});
  auto bits = zeros<double>({exact ? members : 0, (py::ssize_t)given.task.tokens});
  given.task.scores = scores.mutable_data();
  if (exact) given.task.bits = bits.mutable_data();
  without_gil([&](const Poll& poll) { score(weights, given.task, threads, block, poll); }, check);
  if (exact) return py::make_tuple(scores, given.states, bits);
  return py::make_tuple(scores, given.states);
}

py::tuple py_logits(const Weights& weights, const py::object& in, const py::object& old, const NoiseSpec* noise,
                    uint64_t first_member, int threads) {
  Inputs given(weights.model().shape, in, py::none(), old, noise, first_member);
  auto logits =
      zeros<int8_t>({(py::ssize_t)given.task.members, (py::ssize_t)given.task.tokens, weights.model().shape.vocab});
  given.task.logits = logits.mutable_data();
  without_gil([&](const Poll& poll) { score(weights, given.task, threads, 0, poll); });
  return py::make_tuple(logits, given.states);
}

py::list as_bytes(const std::vector<std::string>& strings) {
  py::list list;
  for (const std::string& s : strings) list.append(py::bytes(s));
  return list;
}

py::list py_encode(const Weights& weights, const py::list& lanes, int threads, int block) {
  require(block >= 0, "block is " + std::to_string(block) + "; it must not be negative.");
  const py::tuple kept(lanes); // the caller may change its list meanwhile
  const std::vector<std::string_view> texts = views_of(kept, "lanes");
  std::vector<size_t> sizes;
  for (const std::string_view text : texts) sizes.push_back(text.size());
  check_lanes(weights.model().shape, sizes, "sizes of the lanes");
  std::vector<std::string> streams;
  without_gil([&](const Poll& poll) { streams = encode(weights, texts, threads, block, poll); });
  return as_bytes(streams);
}

py::list py_decode(const Weights& weights, const py::list& streams, const std::vector<size_t>& sizes, int threads,
                   int block) {
  require(block >= 0, "block is " + std::to_string(block) + "; it must not be negative.");
  const py::tuple kept(streams);
  const std::vector<std::string_view> given = views_of(kept, "streams");
  require(sizes.size() == given.size(), "sizes has " + std::to_string(sizes.size()) +
                                            " entries; it must have one for each of the " +
                                            std::to_string(given.size()) + " streams.");
  check_lanes(weights.model().shape, sizes, "sizes");
  std::vector<std::string> lanes;
  without_gil([&](const Poll& poll) { lanes = decode(weights, given, sizes, threads, block, poll); });
  return as_bytes(lanes);
}

// The names of core.activations.Moments in their order, with zeros of their shapes.
struct NudgeSums {
  py::dict z, s, products;

  NudgeSums(const Shape& shape, NudgeTask& task, bool input_products) {
    const py::ssize_t L = shape.layers, V = shape.vocab, D = shape.width;
    for (const int leaf : {kWf, kUf, kWh, kUh, kMlp0, kMlp1}) {
      task.z[leaf] = add(z, kLeafNames[leaf], ParamDict::leaf_shape(shape, leaf));
      task.s[leaf] = add(s, kLeafNames[leaf], {L, leaf_cols(shape, leaf)});
    }
    for (const int leaf : {kBf, kBh}) {
      task.z[leaf] = add(z, kLeafNames[leaf], {L, D});
      task.s[leaf] = add(s, kLeafNames[leaf], {L});
    }
    task.z[kEmb] = add(z, kLeafNames[kEmb], {V, D});
    task.s[kEmb] = add(s, kLeafNames[kEmb], {V});
    task.z[kHead] = add(z, kLeafNames[kHead], {V, D});
    if (task.head_nudge == 0) task.squared_errors = add(s, "head.E", {V});
    task.s[kHead] = add(s, task.head_nudge == 0 ? "head.Y" : kLeafNames[kHead], {D});
    if (!input_products) return;
    const char* names[] = {"y", "last", "g", "z", "hidden"};
    for (int input = 0; input < 5; input++)
      task.products[input] = add(products, names[input], {L, input_size(shape, input), (py::ssize_t)kPad});
    task.products[5] = add(products, "head", {D, (py::ssize_t)kPad});
  }

  static int64_t* add(py::dict& dict, const char* name, const std::vector<py::ssize_t>& shape) {
    auto array = zeros<int64_t>(shape);
    dict[name] = array;
    return array.mutable_data();
  }
};

py::tuple py_nudge(const Weights& weights, const py::object& in, const py::object& out, const py::object& old,
                   std::pair<uint32_t, uint32_t> key, uint64_t first_member, int cohort, bool antithetic,
                   int nudge_size, int head_nudge, int credit_decay, bool input_products, int threads, int block,
                   const py::object& check) {
  require_range("nudge", nudge_size, 1, 64);
  require_range("head_nudge", head_nudge, 0, 64);
  require_range("credit_decay", credit_decay, 0, 15);
  require(block >= 0, "block is " + std::to_string(block) + "; it must not be negative.");
  const Shape& shape = weights.model().shape;
  NudgeInputs given(shape, in, out, old, first_member, cohort, antithetic);
  NudgeTask& task = given.task;
  task.key = {key.first, key.second};
  task.nudge = nudge_size, task.head_nudge = head_nudge, task.credit_decay = credit_decay;
  auto scores = zeros<int64_t>({given.states.shape(0)});
  task.scores = scores.mutable_data();
  const NudgeSums sums(shape, task, input_products);
  without_gil([&](const Poll& poll) { nudge(weights, task, threads, block, poll); }, check);
  return py::make_tuple(scores, given.states, sums.z, sums.s, sums.products);
}

// A dict of a new array of T for every leaf, and the arrays' memory.
template <class T>
struct LeafArrays {
  py::dict dict;
  std::array<T*, kLeaves> data;
  explicit LeafArrays(const Shape& shape) {
    for (int leaf = 0; leaf < kLeaves; leaf++) {
      py::array_t<T> array(ParamDict::leaf_shape(shape, leaf));
      data[leaf] = array.mutable_data();
      dict[kLeafNames[leaf]] = array;
    }
  }
};

py::dict py_update(const py::dict& params, const NoiseSpec& noise, const py::object& fitness, int64_t bound,
                   const py::object& reads, const py::object& embedding_bounds, bool use_clt, bool normalised,
                   int threads, const std::string& isa) {
  const ParamDict old(params);
  const Ballot given(old.shape, noise, fitness, reads, use_clt, normalised);
  Bounds bounds{bound};
  py::array rows; // keeps the array alive
  if (!embedding_bounds.is_none()) {
    rows = array_of<int64_t>(embedding_bounds, "embedding_bounds", {old.shape.vocab});
    bounds.embedding = pointer<int64_t>(rows);
  }
  const Isa& chosen = choose_isa(isa.c_str());
  const LeafArrays<int8_t> updated(old.shape);
  without_gil([&](const Poll& poll) {
    update(chosen, given.task, old.leaves.data(), bounds, threads, poll, updated.data.data());
  });
  return updated.dict;
}

py::dict py_votes(const py::dict& params, const NoiseSpec& noise, const py::object& fitness, const py::object& reads,
                  bool use_clt, bool normalised, int threads, const std::string& isa) {
  const ParamDict old(params);
  const Ballot given(old.shape, noise, fitness, reads, use_clt, normalised);
  const Isa& chosen = choose_isa(isa.c_str());
  const LeafArrays<int64_t> sums(old.shape);
  without_gil([&](const Poll& poll) { votes(chosen, given.task, threads, poll, sums.data.data()); });
  return sums.dict;
}

double py_peak(int threads, double seconds, const std::string& isa) {
  require(seconds > 0 && seconds <= 60,
          "seconds is " + std::to_string(seconds) + "; it must be above 0 and at most 60.");
  const Isa& chosen = choose_isa(isa.c_str());
  double rate = 0;
  without_gil([&](const Poll& poll) { rate = peak(chosen, threads, seconds, poll); });
  return rate;
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
                        "array of bases, one per layer (spec section 3).")
      .def(py::init<std::pair<uint32_t, uint32_t>, const std::vector<py::object>&, int, int, uint64_t>(),
           py::arg("key"), py::arg("bases"), py::arg("rank") = 1, py::arg("sigma_shift") = 4,
           py::arg("num_perturbations") = 0);

  m.def(
      "score", py_score, py::arg("weights"), py::arg("inputs"), py::arg("targets"), py::arg("states"),
      py::arg("noise") = nullptr, py::arg("first_member") = 0, py::arg("threads") = 0, py::arg("exact") = false,
      py::arg("block") = 0, py::arg("check") = py::none(),
      "Scores of members first_member, first_member + 1, ..., one per row of states.\n\n"
      "inputs, targets: (members, T) uint8.\n"
      "states: (members, L, D) int8, not changed. noise: None for unperturbed parameters (validation).\n"
      "threads: 0 for one per processor. block: most members that a core takes at once, 0 to choose.\n"
      "check: None, or called every 50 ms; an exception that it raises ends the call, as Ctrl-C does in the main "
      "thread.\n"
      "Returns scores (members,) int64, new states, and if exact is set each token's code length in bits, (members, T) "
      "float64.");
  m.def("logits", py_logits, py::arg("weights"), py::arg("inputs"), py::arg("states"), py::arg("noise") = nullptr,
        py::arg("first_member") = 0, py::arg("threads") = 0,
        "Logits (members, T, V) int8 and new states; arguments as in score().");
  m.def(
      "encode", py_encode, py::arg("weights"), py::arg("lanes"), py::arg("threads") = 0, py::arg("block") = 0,
      "The streams of lanes of text, a list of bytes each (docs/compressed-format.md); V is 256, and the lanes' sizes "
      "differ by at most one.\n\n"
      "threads, block: as in score().");
  m.def("decode", py_decode, py::arg("weights"), py::arg("streams"), py::arg("sizes"), py::arg("threads") = 0,
        py::arg("block") = 0,
        "The lanes of these sizes from their streams; a damaged stream gives another text. Arguments as in encode().");
  m.def("nudge", py_nudge, py::arg("weights"), py::arg("inputs"), py::arg("targets"), py::arg("states"), py::arg("key"),
        py::arg("first_member") = 0, py::arg("cohort") = 2, py::arg("antithetic") = true, py::arg("nudge") = 2,
        py::arg("head_nudge") = 0, py::arg("credit_decay") = 12, py::arg("input_products") = false,
        py::arg("threads") = 0, py::arg("block") = 0, py::arg("check") = py::none(),
        "Scores of members first_member, first_member + 1, ... under nudged activations, and the sums of their votes "
        "(docs/activations.md, docs/lane-baseline.md).\n\n"
        "cohort: members whose scores are compared, 2 of a pair or up to 128 of a lane; first_member is a multiple.\n"
        "inputs, targets: (cohorts, T) uint8. states: (cohorts cohort, L, D) int8, not changed.\n"
        "key: two words, of the epoch's coins. head_nudge: 0 where the head learns from its own error.\n"
        "threads, block, check: as in score().\n"
        "Returns scores (cohorts cohort,) int64, new states, and dicts of int64 arrays: Z, S and C of "
        "core.activations.Moments;\n"
        "C is empty without input_products.");
  m.def("update", py_update, py::arg("params"), py::arg("noise"), py::arg("fitness"), py::arg("bound"),
        py::arg("reads") = py::none(), py::arg("embedding_bounds") = py::none(), py::arg("use_clt") = true,
        py::arg("normalised") = false, py::arg("threads") = 0, py::arg("isa") = "",
        "Spec section 7: fitness (pairs,) int8, bound an integer. normalised divides Z by 16. Returns a new parameter "
        "dict.\n\n"
        "reads: None, or (lanes, V) bool, the bytes that each lane's pairs have read: they vote on their embeddings "
        "only (docs/perturbed-weights.md).\n"
        "embedding_bounds: None, or (V,) int64, the bounds of the embedding's rows.");
  m.def("votes", py_votes, py::arg("params"), py::arg("noise"), py::arg("fitness"), py::arg("reads") = py::none(),
        py::arg("use_clt") = true, py::arg("normalised") = false, py::arg("threads") = 0, py::arg("isa") = "",
        "The sums Z of update() for every leaf, int64; arguments as there.");
  m.def("peak", py_peak, py::arg("threads") = 0, py::arg("seconds") = 0.5, py::arg("isa") = "",
        "Int8 multiply-adds per second of dot products in registers on all threads.");
  m.def("info", info, "The instruction set chosen, those available (fastest first), and the number of threads.");

  // The tests call the single kernels through this pointer, so that they test the machine code that users run. Its name
  // holds the table's size: a capsule of another build is refused.
  static const std::string table = "nanoegg.isas." + std::to_string(sizeof(Isa));
  m.attr("_isas") = py::capsule(available_isas(), table.c_str());
}
