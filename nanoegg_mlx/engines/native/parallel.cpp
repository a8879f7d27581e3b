// Threads that work through jobs, see parallel.h.
#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

namespace nanoegg {

int choose_threads(int threads) {
  if (threads < 0 || threads > kMaxThreads)
    throw std::invalid_argument("threads is " + std::to_string(threads) + "; it must be 0 to " +
                                std::to_string(kMaxThreads) + ".");
  return threads > 0 ? threads : std::min(usable_cpus(), kMaxThreads);
}

void parallel(int threads, size_t jobs, int* stop, const Poll& poll, const std::function<void(size_t, int)>& work) {
  if (jobs == 0) return;
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::condition_variable finished;
  int running = 0;
  std::exception_ptr failure;
  const auto run = [&](int thread) {
    try {
      for (size_t job; !is_set(stop) && (job = next++) < jobs;) work(job, thread);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      failure = std::current_exception();
      __atomic_store_n(stop, 1, __ATOMIC_RELAXED);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    running--;
    finished.notify_one();
  };

  std::vector<std::thread> pool;
  const int wanted = (int)std::min<size_t>(threads, jobs);
  pool.reserve(wanted);
  std::unique_lock<std::mutex> lock(mutex);
  for (int i = 0; i < wanted; i++) {
    try {
      pool.emplace_back(run, i);
    } catch (const std::system_error&) {
      if (pool.empty()) throw;
      break; // fewer threads do the same work
    }
    running++;
  }
  // The calling thread does no work: it alone can ask Python for signals.
  bool interrupted = false;
  while (!finished.wait_for(lock, std::chrono::milliseconds(50), [&] { return running == 0; })) {
    lock.unlock();
    if (!interrupted && poll && !poll()) {
      interrupted = true;
      __atomic_store_n(stop, 1, __ATOMIC_RELAXED);
    }
    lock.lock();
  }
  lock.unlock();
  for (std::thread& t : pool) t.join();
  if (interrupted) throw Interrupted();
  if (failure) std::rethrow_exception(failure);
}

} // namespace nanoegg
