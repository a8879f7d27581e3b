// The elementwise parts of the network and of the update, one member's rows at a time. The inner loops have kPad rounds
// and no aliasing, which is all the compiler needs to make straight vector code of them.
#pragma once

#include "arithmetic.h"
#include "tables.h"

namespace nanoegg {
namespace {

void norm(const int8_t* __restrict x, const int8_t* __restrict w, int width, int8_t* __restrict out) {
  const size_t n = padded(width);
  int32_t total = 0;
  for (size_t i = 0; i < n; i += kPad)
    for (size_t j = 0; j < kPad; j++) total += x[i + j] < 0 ? -x[i + j] : x[i + j];
  const int32_t d = (total > 1 ? total : 1) / width;
  if (d == 0) {
    for (int i = 0; i < width; i++) out[i] = x[i] * w[i] == 0 ? -1 : -2;
    return;
  }
  const float reciprocal = 1.0f / (float)d;
  for (size_t i = 0; i < n; i += kPad, x += kPad, w += kPad, out += kPad)
    for (size_t j = 0; j < kPad; j++) out[j] = (int8_t)divide_clip(x[j] * w[j], d, reciprocal);
}

// kNudged: whether the node's nudges e are added.
template <bool kNudged>
inline void gate_rows(int8_t* __restrict fa, const int8_t* __restrict fb, const int8_t* __restrict bf,
                      const int8_t* __restrict e, const int8_t* __restrict h, int width, int8_t* __restrict g) {
  for (size_t n = padded(width); n; n -= kPad, fa += kPad, fb += kPad, bf += kPad, e += kPad, h += kPad, g += kPad) {
    for (size_t j = 0; j < kPad; j++) {
      const int16_t s = (int16_t)(fa[j] + fb[j] + bf[j] + (kNudged ? e[j] : 0));
      const int16_t low = s < -127 ? -127 : s, f = low > 127 ? 127 : low;
      fa[j] = (int8_t)f;
      g[j] = (int8_t)((int16_t)((int16_t)(f + 127) * (int16_t)h[j]) >> 8);
    }
  }
}

void gate(int8_t* fa, const int8_t* fb, const int8_t* bf, const int8_t* h, int width, int8_t* g) {
  gate_rows<false>(fa, fb, bf, bf, h, width, g);
}
void gate_nudged(int8_t* fa, const int8_t* fb, const int8_t* bf, const int8_t* e, const int8_t* h, int width,
                 int8_t* g) {
  gate_rows<true>(fa, fb, bf, e, h, width, g);
}

template <bool kNudged>
inline void recur_rows(const int8_t* __restrict ca, const int8_t* __restrict cb, const int8_t* __restrict bh,
                       const int8_t* __restrict e, const int8_t* __restrict fa, int width, int8_t* __restrict h,
                       int8_t* __restrict x) {
  for (size_t n = padded(width); n;
       n -= kPad, ca += kPad, cb += kPad, bh += kPad, e += kPad, fa += kPad, h += kPad, x += kPad) {
    for (size_t j = 0; j < kPad; j++) {
      const int32_t c = clip(ca[j] + cb[j] + bh[j] + (kNudged ? e[j] : 0));
      const int32_t state = h[j] + (((fa[j] + 127) * (c - h[j])) >> 8);
      h[j] = (int8_t)state;
      x[j] = (int8_t)clip(x[j] + state);
    }
  }
}

void recur(const int8_t* ca, const int8_t* cb, const int8_t* bh, const int8_t* fa, int width, int8_t* h, int8_t* x) {
  recur_rows<false>(ca, cb, bh, bh, fa, width, h, x);
}
void recur_nudged(const int8_t* ca, const int8_t* cb, const int8_t* bh, const int8_t* e, const int8_t* fa, int width,
                  int8_t* h, int8_t* x) {
  recur_rows<true>(ca, cb, bh, e, fa, width, h, x);
}

// x = clip(x + y), or clip(x + y + e)
template <bool kNudged>
inline void add_rows(int8_t* __restrict x, const int8_t* __restrict y, const int8_t* __restrict e, size_t n) {
  for (; n; n -= kPad, x += kPad, y += kPad, e += kPad) {
    for (size_t j = 0; j < kPad; j++) {
      const int16_t s = (int16_t)(x[j] + y[j] + (kNudged ? e[j] : 0)), low = s < -127 ? -127 : s;
      x[j] = (int8_t)(low > 127 ? 127 : low);
    }
  }
}

inline void add(int8_t* x, const int8_t* y, size_t n) { add_rows<false>(x, y, y, n); }
void add_nudged(int8_t* x, const int8_t* y, const int8_t* e, size_t n) { add_rows<true>(x, y, e, n); }

int32_t log_likelihood(const int8_t* logits, int vocab, int target) {
  return logits[target] + 128 - log2_sixteenths(Tile::exp2_sum(logits, vocab));
}

double exact_bits(const int8_t* logits, int vocab, int target) {
  double sum = 0;
  for (int j = 0; j < vocab; j++) sum += exp2_exact[logits[j] + 128];
  return exact_log2(sum) - (logits[target] + 128) / 16.0;
}

// 16 |z| < bound in place of |z| < bound / 16, so that nothing is rounded. The rounds of kPad become vector code.
void move(const int64_t* __restrict z, size_t n, const int8_t* __restrict old, int64_t bound, int8_t* __restrict out) {
  const auto entries = [&](size_t count) {
    for (size_t i = 0; i < count; i++) {
      const int64_t magnitude = 16 * (z[i] < 0 ? -z[i] : z[i]);
      const int32_t step = z[i] > 0 ? 1 : -1;
      out[i] = (int8_t)clip(old[i] + (magnitude < bound ? 0 : step));
    }
    z += count, old += count, out += count;
  };
  for (; n >= kPad; n -= kPad) entries(kPad);
  entries(n);
}

} // namespace
} // namespace nanoegg
