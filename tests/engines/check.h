// Counting of checks, shared by the files of the check program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.h"

// Counts a check, and prints `what` if it failed.
void check(bool ok, const std::string& what);

inline bool same(const void* a, const void* b, size_t bytes) { return bytes == 0 || std::memcmp(a, b, bytes) == 0; }
template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && same(a.data(), b.data(), a.size() * sizeof(T));
}

// Reads the file of cases.
struct Reader {
  std::ifstream file;
  explicit Reader(const char* path) : file(path, std::ios::binary) {
    if (read<char>(8) != std::vector<char>{'e', 'g', 'g', 'c', 'a', 's', 'e', 's'})
      throw std::runtime_error(std::string(path) + " cannot be read or holds no cases");
  }
  template <class T>
  std::vector<T> read(size_t count) {
    std::vector<T> values(count);
    if (!file.read(reinterpret_cast<char*>(values.data()), (std::streamsize)(count * sizeof(T))))
      throw std::runtime_error("the cases end too early");
    return values;
  }
  int64_t number() { return read<int64_t>(1)[0]; }
};

using Leaves = std::vector<std::vector<int8_t>>;
inline Leaves read_leaves(Reader& in, const nanoegg::Shape& s) {
  Leaves leaves;
  for (int leaf = 0; leaf < nanoegg::kLeaves; leaf++)
    leaves.push_back(in.read<int8_t>((size_t)leaf_layers(s, leaf) * leaf_rows(s, leaf) * leaf_cols(s, leaf)));
  return leaves;
}
template <class P, class L>
std::vector<P> pointers(L& leaves) {
  std::vector<P> list;
  for (auto& leaf : leaves) list.push_back(leaf.data());
  return list;
}

// The nudged cases of the file, on every instruction set (check_nudge.cpp).
void check_nudge_cases(Reader& in);
// All kernels of an instruction set against their scalar twins (check_kernels.cpp).
void check_kernels(const nanoegg::Isa& isa);
// Those of nudged activations (check_nudge.cpp).
void check_nudges(const nanoegg::Isa& isa);
// Compression: the file's cases, on every instruction set, and random models on one (check_coding.cpp).
void check_coding_cases(Reader& in);
void check_coding(const nanoegg::Isa& isa);
