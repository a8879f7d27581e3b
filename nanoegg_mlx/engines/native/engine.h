// The two calls of an engine, score and update, on plain pointers: packing, blocks, threads, thresholds. No Python
// here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"

namespace nanoegg {

// Zeroed memory on a cache line boundary.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);
  uint8_t* data() const { return data_.get(); }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(uint8_t* p) const;
  };
  std::unique_ptr<uint8_t, Free> data_;
};

using Params = const int8_t* const*; // [leaf] -> the leaf's bytes in C order

// The name's instruction set; empty or null: NANOEGG_ISA, or else the fastest here. Throws std::invalid_argument.
const Isa& choose_isa(const char* name);
// `threads`, or one per usable processor if it is 0. Throws std::invalid_argument.
int choose_threads(int threads);
constexpr int kMaxThreads = 4096;

// cpus.cpp: the processors of the affinity mask, or as many as the control groups' quota grants (rounded up), if fewer.
int usable_cpus();
// The quota alone, 0 for none; root is put before /proc and /sys.
int cgroup_cpus(const std::string& root);

// Called on the calling thread about every 50 ms while the others work; false asks them to stop.
using Poll = std::function<bool()>;
struct Interrupted {};

// Calls work(job, thread) for all jobs on `threads` threads; work polls *stop where it can take long. Throws
// Interrupted, or what work threw.
void parallel(int threads, size_t jobs, int* stop, const Poll& poll, const std::function<void(size_t, int)>& work);

Packed pack_matrix(const Isa& isa, const int8_t* w, int rows, int cols, Buffer& storage);

// Parameters packed for one instruction set; immutable, to be shared by calls and threads.
class Weights {
 public:
  Weights(const Isa& isa, const Shape& shape, Params params);
  const Isa& isa() const { return isa_; }
  const Model& model() const { return model_; }

 private:
  const Isa& isa_;
  Model model_;
  std::vector<Buffer> storage_;
  std::vector<Packed> packed_[kLeaves];
};

struct ScoreTask {
  const Noise* noise = nullptr; // null: unperturbed
  uint64_t first_member = 0;
  size_t members = 0, tokens = 0;
  const uint8_t* inputs = nullptr;  // (lanes, tokens); member i reads lane i // group_size - first_member // group_size
  const uint8_t* targets = nullptr; // the same, or null
  uint64_t group_size = 1;
  int8_t* states = nullptr;  // (members, L, D), read and written
  int64_t* scores = nullptr; // (members,), zeros
  double* bits = nullptr;    // (members, tokens) exact code lengths in bits, or null
  int8_t* logits = nullptr;  // (members, tokens, V), or null
};

// block: most members a block may have, 0 to choose.
void score(const Weights& weights, const ScoreTask& task, int threads, int block, const Poll& poll);

struct UpdateTask {
  Shape shape;
  Noise noise;
  const int8_t* fitness = nullptr; // (pairs,)
  size_t pairs = 0;
  bool use_clt = true;
  bool normalised = false; // Z >> 4 after the sum
};
// Updates one entry of `params` after the other into new_params; moved[leaf] counts entries that changed.
void update(const Isa& isa, const UpdateTask& task, Params params, int64_t bound, int threads, const Poll& poll,
            int8_t* const* new_params, int64_t* moved);
// The sums Z themselves, z[leaf] shaped as the leaf.
void votes(const Isa& isa, const UpdateTask& task, int threads, const Poll& poll, int64_t* const* z);

// Int8 multiply-adds per second of a loop of dot products in registers on all threads.
double peak(const Isa& isa, int threads, double seconds, const Poll& poll);

} // namespace nanoegg
