// Compression on all threads: lanes of text as members of blocks, each with a range coder (docs/compressed-format.md).
#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "engine.h"

namespace nanoegg {
namespace {

// The texts of all lanes as the network reads them: rows of a 0 byte and a lane's text. A decoder writes the text.
struct Rows {
  size_t width;
  std::vector<uint8_t> bytes;
  std::vector<Coder> coders;

  explicit Rows(const std::vector<size_t>& sizes) : width(1), coders(sizes.size()) {
    for (const size_t size : sizes) width = std::max(width, size + 1);
    bytes.resize(sizes.size() * width);
    for (size_t i = 0; i < sizes.size(); i++) {
      coders[i].range = ~(uint64_t)0;
      coders[i].text = bytes.data() + i * width + 1;
      coders[i].length = sizes[i];
    }
  }

  void run(const Weights& weights, bool decodes, int threads, int block, const Poll& poll) {
    const Shape& shape = weights.model().shape;
    std::vector<int8_t> states(coders.size() * shape.layers * shape.width);
    ScoreTask task;
    task.members = coders.size();
    task.tokens = width;
    task.inputs = bytes.data();
    task.states = states.data();
    task.coders = coders.data();
    task.decodes = decodes;
    score(weights, task, threads, block, poll);
  }
};

// The number of bytes of a finished stream. One more byte is enough to lie in [low, low + range), since the range is
// 2^56 at least; none, if that interval holds a multiple of 2^64.
size_t finish(Coder& c) {
  if (c.low != 0 && 0 - c.low < c.range) {
    carry(c);
  } else if (c.low != 0) {
    const uint64_t value = c.low + ((0 - c.low) & (((uint64_t)1 << 56) - 1));
    c.to[c.at++] = (uint8_t)(value >> 56);
  }
  while (c.at > 0 && c.to[c.at - 1] == 0) c.at--;
  return c.at;
}

} // namespace

std::vector<std::string> encode(const Weights& weights, const std::vector<std::string_view>& lanes, int threads,
                                int block, const Poll& poll) {
  std::vector<size_t> sizes;
  for (const std::string_view lane : lanes) sizes.push_back(lane.size());
  Rows rows(sizes);
  std::vector<std::string> streams(lanes.size());
  for (size_t i = 0; i < lanes.size(); i++) {
    std::copy(lanes[i].begin(), lanes[i].end(), rows.coders[i].text);
    streams[i].resize(kMostCoded * lanes[i].size() + 1);
    rows.coders[i].to = reinterpret_cast<uint8_t*>(streams[i].data());
  }
  rows.run(weights, false, threads, block, poll);
  for (size_t i = 0; i < lanes.size(); i++) streams[i].resize(finish(rows.coders[i]));
  return streams;
}

std::vector<std::string> decode(const Weights& weights, const std::vector<std::string_view>& streams,
                                const std::vector<size_t>& sizes, int threads, int block, const Poll& poll) {
  Rows rows(sizes);
  for (size_t i = 0; i < sizes.size(); i++) {
    Coder& c = rows.coders[i];
    c.from = reinterpret_cast<const uint8_t*>(streams[i].data());
    c.size = streams[i].size();
    for (; c.at < 8; c.at++) c.low = c.low << 8 | (c.at < c.size ? c.from[c.at] : 0);
  }
  rows.run(weights, true, threads, block, poll);
  std::vector<std::string> lanes;
  for (const Coder& c : rows.coders) lanes.emplace_back(reinterpret_cast<const char*>(c.text), c.length);
  return lanes;
}

} // namespace nanoegg
