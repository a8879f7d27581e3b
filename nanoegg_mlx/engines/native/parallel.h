// Threads: how many this process may use, and a loop over jobs that can be interrupted.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

namespace nanoegg {

constexpr int kMaxThreads = 4096;
// `threads`, or one per usable processor if it is 0. Throws std::invalid_argument.
int choose_threads(int threads);

// The processors of the affinity mask, or what the control groups' quota grants (rounded up), if that is less
// (cpus.cpp).
int usable_cpus();
// The quota alone, 0 for none; root is put before /proc and /sys.
int cgroup_cpus(const std::string& root);

// Called on the calling thread about every 50 ms while the others work; false asks them to stop.
using Poll = std::function<bool()>;
struct Interrupted {};

inline bool is_set(const int* flag) { return __atomic_load_n(flag, __ATOMIC_RELAXED); }

// Calls work(job, thread) for all jobs on `threads` threads; work polls *stop where it can take long. Throws
// Interrupted, or what work threw.
void parallel(int threads, size_t jobs, int* stop, const Poll& poll, const std::function<void(size_t, int)>& work);

} // namespace nanoegg
