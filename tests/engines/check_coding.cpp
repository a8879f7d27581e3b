// Compression without Python: the cases of write_cases.py, random models against a scalar twin, and damaged streams.
#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "check.h"
#include "engine.h"
#include "naive.h"
#include "random_inputs.h"

using namespace nanoegg;

namespace {

// docs/compressed-format.md word for word, a lane at a time. An interval of numbers is [low, low + range).
struct NaiveCoder {
  const Random& model;
  std::vector<int8_t> states;
  uint8_t last = 0;
  std::vector<uint64_t> sums; // F(0) to F(255), T

  explicit NaiveCoder(const Random& m) : model(m), states(m.shape.layers * m.shape.width), sums(257) {}

  void predict() {
    int8_t logits[256];
    naive::score(model.shape, model.params.data(), nullptr, 0, &last, nullptr, 1, states.data(), logits);
    for (int b = 0; b < 256; b++) {
      const int l = logits[b] + 128;
      sums[b + 1] = sums[b] + (uint64_t)std::floor(16 * std::ldexp(std::exp2(l % 16 / 16.0), l / 16));
    }
  }

  std::string encode(std::string_view lane) {
    std::string out;
    uint64_t low = 0, range = ~(uint64_t)0;
    const auto add = [&](uint64_t step) {
      low += step;
      for (size_t i = out.size(); low < step && i > 0; i--)
        if (++out[i - 1] != 0) break;
    };
    for (const char byte : lane) {
      predict();
      last = (uint8_t)byte;
      const uint64_t r = range / sums[256];
      add(r * sums[last]);
      for (range = r * (sums[last + 1] - sums[last]); range >> 56 == 0; range <<= 8, low <<= 8)
        out += (char)(low >> 56);
    }
    for (int count = 0; count <= 8; count++) {
      const uint64_t unit = count ? (uint64_t)1 << (64 - 8 * count) : 0, step = (0 - low) & (unit - 1);
      if (step >= range) continue;
      if (low != 0 || count != 0) add(step);
      for (int i = 0; i < count; i++, low <<= 8) out += (char)(low >> 56);
      break;
    }
    while (!out.empty() && out.back() == 0) out.pop_back();
    return out;
  }

  std::string decode(std::string_view stream, size_t size) {
    std::string lane;
    size_t at = 0;
    uint64_t code = 0, range = ~(uint64_t)0;
    const auto next = [&] { code = code << 8 | (at < stream.size() ? (uint8_t)stream[at] : 0), at++; };
    while (at < 8) next();
    while (lane.size() < size) {
      predict();
      const uint64_t r = range / sums[256], value = std::min(code / r, sums[256] - 1);
      int b = 0;
      while (sums[b + 1] <= value) b++;
      code -= r * sums[b];
      for (range = r * (sums[b + 1] - sums[b]); range >> 56 == 0; range <<= 8) next();
      last = (uint8_t)b;
      lane += (char)b;
    }
    return lane;
  }
};

std::vector<std::string_view> views(const std::vector<std::string>& strings) {
  return {strings.begin(), strings.end()};
}

std::string random_bytes(size_t size) {
  std::string bytes;
  const int kind = random_in(0, 3);
  for (size_t i = 0; i < size; i++)
    bytes += (char)(kind == 0 ? 255 : kind == 1 ? 0 : kind == 2 ? random_in(0, 255) : random_in(96, 99));
  return bytes;
}

void check_model(const Isa& isa, const Shape& shape, int way) {
  const std::string what = std::string("coding ") + isa.name + " of width " + std::to_string(shape.width);
  const Random model(shape, 1, 8, 0, way);
  const Weights weights(isa, shape, model.params.data());
  const size_t size = random_in(0, 60);
  std::vector<std::string> lanes, streams, damaged, damaged_lanes;
  std::vector<size_t> sizes;
  for (int lane = random_in(1, 9); lane > 0; lane--) {
    sizes.push_back(size + random_in(0, 1));
    lanes.push_back(random_bytes(sizes.back()));
    streams.push_back(NaiveCoder(model).encode(lanes.back()));
    check(NaiveCoder(model).decode(streams.back(), sizes.back()) == lanes.back(), what + ": the twin itself");
    damaged.push_back(random_bytes(random_in(0, 200)));
    damaged_lanes.push_back(NaiveCoder(model).decode(damaged.back(), sizes.back()));
  }
  const int threads = random_in(1, 3), block = random_in(0, 5);
  check(encode(weights, views(lanes), threads, block, nullptr) == streams, what + ": streams");
  check(decode(weights, views(streams), sizes, threads, block, nullptr) == lanes, what + ": lanes");
  check(decode(weights, views(damaged), sizes, threads, block, nullptr) == damaged_lanes, what + ": damaged streams");
}

} // namespace

void check_coding(const Isa& isa) {
  for (int way = 0; way < kWays; way++)
    for (const Shape shape : {Shape{256, 1, 1}, Shape{256, 33, 2}, Shape{256, 64, 1}}) check_model(isa, shape, way);
}

void check_coding_cases(Reader& in) {
  const auto strings = [&in](size_t count) {
    std::vector<std::string> list;
    for (size_t i = 0; i < count; i++) {
      const std::vector<char> bytes = in.read<char>((size_t)in.number());
      list.emplace_back(bytes.begin(), bytes.end());
    }
    return list;
  };
  for (int64_t left = in.number(); left > 0; left--) {
    Shape shape{256, 0, 0};
    shape.width = (int)in.number(), shape.layers = (int)in.number();
    const Leaves params = read_leaves(in, shape);
    const size_t count = (size_t)in.number();
    const std::vector<std::string> lanes = strings(count), streams = strings(count);
    std::vector<size_t> sizes;
    for (const std::string& lane : lanes) sizes.push_back(lane.size());
    for (const Isa* const* isa = available_isas(); *isa; isa++) {
      const Weights weights(**isa, shape, pointers<const int8_t*>(params).data());
      check(encode(weights, views(lanes), 1, 0, nullptr) == streams, std::string((*isa)->name) + ": recorded streams");
      check(decode(weights, views(streams), sizes, 2, 2, nullptr) == lanes, std::string((*isa)->name) + ": lanes");
    }
  }
}
