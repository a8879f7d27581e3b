// Packing, see weights.h and Packed.
#include "weights.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace nanoegg {

Buffer::Buffer(size_t bytes) {
  const size_t rounded = padded(std::max<size_t>(bytes, 1));
  data_.reset(static_cast<uint8_t*>(::operator new(rounded, std::align_val_t(64))));
  std::memset(data_.get(), 0, rounded);
}
void Buffer::Free::operator()(uint8_t* p) const { ::operator delete(p, std::align_val_t(64)); }

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
      // Four bytes at a time where a group is four: an engine packs all weights at every call.
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

} // namespace nanoegg
