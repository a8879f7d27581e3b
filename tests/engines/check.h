// Counting of checks, shared by the files of the check program.
#pragma once

#include <cstddef>
#include <cstring>
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

// All kernels of an instruction set against their scalar twins (check_kernels.cpp).
void check_kernels(const nanoegg::Isa& isa);
