// Memory for the kernels, and parameters packed for one instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
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

// Packs w (rows, cols); the result points into `storage`.
Packed pack_matrix(const Isa& isa, const int8_t* w, int rows, int cols, Buffer& storage);

// Parameters packed for one instruction set; immutable, so that calls and threads can share them.
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

} // namespace nanoegg
