// The number of processors that this process may use: those of its affinity mask, or fewer if a control group has a
// quota.
//
// Notable: the mask of a container with two CPUs usually has all CPUs of the machine. Its limit is a quota of time, set
// for a control group of the process, its own or an ancestor's. The path in /proc/self/cgroup may be the host's, with
// only the container's part of the tree mounted. So missing folders are skipped, and the root of the mount is always
// read.
#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <thread>

#include "engine.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace nanoegg {
namespace {

constexpr int kUnlimited = std::numeric_limits<int>::max();

int rounded_up(int64_t quota, int64_t period) {
  if (quota <= 0 || period <= 0) return kUnlimited;
  return (int)std::min<int64_t>((quota - 1) / period + 1, kUnlimited);
}

// Version 2: cpu.max holds "QUOTA PERIOD" or "max PERIOD", in microseconds.
int quota_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  int64_t quota, period;
  return file >> quota >> period ? rounded_up(quota, period) : kUnlimited;
}

// Version 1: a quota of -1 means no quota.
int quota_v1(const std::string& folder) {
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us"), period_file(folder + "/cpu.cfs_period_us");
  int64_t quota, period;
  return quota_file >> quota && period_file >> period ? rounded_up(quota, period) : kUnlimited;
}

// The smallest quota of the group at `path` and its ancestors, up to the root of the mount.
int smallest(int (*quota)(const std::string&), const std::string& mount, std::string path) {
  int least = quota(mount);
  for (; path.size() > 1; path.erase(path.rfind('/'))) least = std::min(least, quota(mount + path));
  return least;
}

} // namespace

int cgroup_cpus(const std::string& root) {
  int least = kUnlimited;
  const std::string mount = root + "/sys/fs/cgroup";
  std::ifstream groups(root + "/proc/self/cgroup");
  // Lines are ID:CONTROLLERS:PATH; in version 2 CONTROLLERS is empty.
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos || line.compare(second + 1, 1, "/") != 0) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (controllers.empty()) {
      for (const char* where : {"", "/unified"}) least = std::min(least, smallest(quota_v2, mount + where, path));
      continue;
    }
    std::istringstream names(controllers);
    for (std::string name; std::getline(names, name, ',');) {
      if (name != "cpu") continue;
      for (const std::string& where : {controllers, name})
        least = std::min(least, smallest(quota_v1, mount + "/" + where, path));
    }
  }
  return least == kUnlimited ? 0 : least;
}

int usable_cpus() {
  int cpus = (int)std::max(1u, std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cpus = std::max(1, CPU_COUNT(&set));
#endif
  const int quota = cgroup_cpus("");
  return quota ? std::min(cpus, quota) : cpus;
}

} // namespace nanoegg
