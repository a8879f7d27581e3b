// The choice between the compiled instruction sets that this machine has, and their peak.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace nanoegg {
namespace {

#if defined(__x86_64__)
struct Features {
  bool avx2 = false, avx_vnni = false, avx512_vnni = false;
  Features() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return;
    // Registers are usable only if the operating system saves them: bits 1, 2 of XCR0 for AVX, 5 to 7 for AVX-512.
    unsigned xcr0, high;
    __asm__("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    const bool ymm = (xcr0 & 0x06) == 0x06, zmm = (xcr0 & 0xE6) == 0xE6;
    if (!ymm || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    avx2 = b >> 5 & 1;
    const bool f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1, vnni = c >> 11 & 1;
    avx512_vnni = avx2 && zmm && f && dq && bw && vl && vnni;
    avx_vnni = avx2 && a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
  }
};
#elif defined(__aarch64__)
struct Features {
  bool dotprod = false, i8mm = false;
  Features() {
#if defined(__linux__)
    dotprod = getauxval(AT_HWCAP) >> 20 & 1; // HWCAP_ASIMDDP
    i8mm = getauxval(26) >> 13 & 1;          // HWCAP2_I8MM, AT_HWCAP2
#elif defined(__APPLE__)
    dotprod = has("hw.optional.arm.FEAT_DotProd");
    i8mm = has("hw.optional.arm.FEAT_I8MM");
#endif
  }
#if defined(__APPLE__)
  static bool has(const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value;
  }
#endif
};
#endif

struct List {
  const Isa* isas[5] = {};
  List() {
    int n = 0;
#if defined(__x86_64__)
    const Features have;
    if (have.avx512_vnni) isas[n++] = &kAvx512Vnni;
#if NANOEGG_AVXVNNI
    if (have.avx_vnni) isas[n++] = &kAvxVnni;
#endif
    if (have.avx2) isas[n++] = &kAvx2;
#elif defined(__aarch64__)
    const Features have;
#if NANOEGG_I8MM
    if (have.i8mm) isas[n++] = &kI8mm;
#endif
    if (have.dotprod) isas[n++] = &kDotprod;
    isas[n++] = &kNeon;
#endif
    isas[n++] = &kPortable;
  }
};

} // namespace

const Isa* const* available_isas() {
  static const List list;
  return list.isas;
}

const Isa& choose_isa(const char* name) {
  const bool given = name && *name;
  const char* asked = given ? name : std::getenv("NANOEGG_ISA");
  std::string have;
  for (const Isa* const* isa = available_isas(); *isa; isa++) {
    if (!asked || !*asked || std::strcmp(asked, (*isa)->name) == 0) return **isa;
    have += (have.empty() ? "" : ", ") + std::string((*isa)->name);
  }
  throw std::invalid_argument((given ? "isa is \"" : "NANOEGG_ISA is \"") + std::string(asked) +
                              "\"; it must be one of: " + have + ".");
}

double peak(const Isa& isa, int threads, double seconds, const Poll& poll) {
  using Clock = std::chrono::steady_clock;
  threads = choose_threads(threads);
  std::vector<double> rates(threads);
  int stop = 0;
  parallel(threads, threads, &stop, poll, [&](size_t job, int) {
    const auto begin = Clock::now();
    uint64_t work = 0;
    double elapsed = 0;
    do {
      work += isa.peak(1 << 14);
      elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
    } while (elapsed < seconds && !is_set(&stop));
    rates[job] = (double)work / elapsed;
  });
  double total = 0;
  for (const double r : rates) total += r;
  return total;
}

} // namespace nanoegg
