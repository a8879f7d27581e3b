/*
 * The model reads a byte and predicts the next one, in 8-bit integers only. Byte 0 begins a document: the first byte
 * that a state reads must be 0. C99; no floating point, no memory allocation, no library, and the same bits with every
 * compiler.
 *
 *   cc -O3 -c model.c                          the functions below, for a program of yours
 *   cc -O3 -DEGG_MAIN model.c -o model         a program: model sample | bits | compress | decompress
 *   #define EGG_HEADER, #include "model.c"     only the declarations, for the other files of your program
 */

#ifndef EGG_DECLARED
#define EGG_DECLARED

#include <stdint.h>

#include "shape.h"

/* What the model remembers of the document. */
typedef struct {
  int8_t h[EGG_LAYERS][EGG_WIDTH];
} egg_state;

/* Random draws of a seed: those of `nanoegg sample`. */
typedef struct {
  uint32_t key[2];
  uint32_t position;
} egg_random;

/* A range decoder. `read` returns the next byte of the stream, and 0 after its end. */
typedef struct {
  uint64_t code, range;
  uint8_t (*read)(void* from);
  void* from;
} egg_decoder;

/* A range encoder. `write` receives the stream. */
typedef struct {
  uint64_t low, range;
  uint32_t ones, zeros;
  int16_t last;
  void (*write)(void* to, uint8_t byte);
  void* to;
} egg_encoder;

/* Reads a byte: the new state, and the logits of the next byte, -127 to 127. Byte 0 clears the state first. */
void egg_step(egg_state* state, uint8_t byte, int8_t logits[256]);

/* The logarithm of the byte's probability, in sixteenths of a bit. */
int32_t egg_score(const int8_t logits[256], uint8_t byte);

/* Draws bytes from the model's distribution. */
void egg_seed(egg_random* random, uint64_t seed);
uint8_t egg_sample(const int8_t logits[256], egg_random* random);

/* One lane of a compressed file: start, then a byte after each step, and for the encoder an end. */
void egg_decoder_start(egg_decoder* decoder, uint8_t (*read)(void* from), void* from);
uint8_t egg_decode(egg_decoder* decoder, const int8_t logits[256]);
void egg_encoder_start(egg_encoder* encoder, void (*write)(void* to, uint8_t byte), void* to);
void egg_encode(egg_encoder* encoder, const int8_t logits[256], uint8_t byte);
void egg_encoder_end(egg_encoder* encoder);

/* SHA-256 of the model, as in the head of a compressed file. */
extern const uint8_t egg_model_hash[32];

#endif

#ifndef EGG_HEADER

/* The weights: matrices have a row for each output. */

#include "weights.h"

/* The network */

/* floor(a / 256). C leaves the shift of a negative number to the compiler; ~a is not negative. */
static inline int32_t egg_floor256(int32_t a) { return a < 0 ? ~(~a >> 8) : a >> 8; }

/* floor(a / d), d > 0; C rounds quotients towards zero. a ^ -1 is ~a. No branch, so that compilers use vectors. */
static inline int32_t egg_floor(int32_t a, int32_t d) {
  const int32_t sign = -(a < 0);
  return ((a ^ sign) / d) ^ sign;
}

static inline int8_t egg_clip(int32_t a) {
  a = a < -127 ? -127 : a;
  a = a > 127 ? 127 : a;
  return (int8_t)a;
}

/* One row of a matrix product: clip(w x // (16 root)), root = isqrt(n). */
static inline int8_t egg_product(const int8_t* w, const int8_t* x, int32_t n, int32_t root) {
  int32_t sum = 0;
  for (int32_t i = 0; i < n; i++) sum += (int32_t)w[i] * x[i];
  return egg_clip(egg_floor(sum, 16 * root));
}

/* y = x over its mean absolute value, times the weight. */
static void egg_norm(const int8_t* x, const int8_t* weight, int8_t* y) {
  int32_t sum = 0;
  for (int32_t i = 0; i < EGG_WIDTH; i++) sum += x[i] < 0 ? -x[i] : x[i];
  const int32_t d = (sum > 1 ? sum : 1) / EGG_WIDTH;
  for (int32_t i = 0; i < EGG_WIDTH; i++) {
    const int32_t xw = (int32_t)x[i] * weight[i];
    y[i] = d > 0 ? egg_clip(egg_floor(xw, d)) : (int8_t)(xw == 0 ? -1 : -2);
  }
}

static void egg_layer(int8_t* h, int32_t l, int8_t* x) {
  int8_t y[EGG_WIDTH], g[EGG_WIDTH], hidden[4 * EGG_WIDTH];
  uint8_t f[EGG_WIDTH];
  egg_norm(x, egg_ln1[l], y);
  for (int32_t i = 0; i < EGG_WIDTH; i++) {
    const int32_t sum =
        egg_product(egg_Wf[l][i], y, EGG_WIDTH, EGG_ROOT) + egg_product(egg_Uf[l][i], h, EGG_WIDTH, EGG_ROOT);
    f[i] = (uint8_t)(egg_clip(sum + egg_bf[l][i]) + 127);
    g[i] = (int8_t)egg_floor256((int32_t)f[i] * h[i]);
  }
  for (int32_t i = 0; i < EGG_WIDTH; i++) {
    const int32_t sum =
        egg_product(egg_Wh[l][i], y, EGG_WIDTH, EGG_ROOT) + egg_product(egg_Uh[l][i], g, EGG_WIDTH, EGG_ROOT);
    const int32_t c = egg_clip(sum + egg_bh[l][i]);
    h[i] = (int8_t)(h[i] + egg_floor256(f[i] * (c - h[i])));
    x[i] = egg_clip((int32_t)x[i] + h[i]);
  }
  egg_norm(x, egg_ln2[l], y);
  for (int32_t i = 0; i < 4 * EGG_WIDTH; i++) hidden[i] = egg_product(egg_mlp0[l][i], y, EGG_WIDTH, EGG_ROOT);
  for (int32_t i = 0; i < EGG_WIDTH; i++)
    x[i] = egg_clip((int32_t)x[i] + egg_product(egg_mlp1[l][i], hidden, 4 * EGG_WIDTH, EGG_HIDDEN_ROOT));
}

void egg_step(egg_state* state, uint8_t byte, int8_t logits[256]) {
  int8_t x[EGG_WIDTH], y[EGG_WIDTH];
  for (int32_t i = 0; i < EGG_WIDTH; i++) x[i] = egg_emb[byte][i];
  for (int32_t l = 0; l < EGG_LAYERS; l++) {
    if (byte == 0)
      for (int32_t i = 0; i < EGG_WIDTH; i++) state->h[l][i] = 0;
    egg_layer(state->h[l], l, x);
  }
  egg_norm(x, egg_ln_out, y);
  for (int32_t i = 0; i < 256; i++) logits[i] = egg_product(egg_head[i], y, EGG_WIDTH, EGG_ROOT);
}

/* Probabilities: a byte's is proportional to 2^(logit / 16). */

/* floor(2^(40 - i / 16)), i >= 0 */
static inline uint64_t egg_power(int32_t i) {
  static const uint64_t powers[16] = {1099511627776, 1052895941924, 1008256608221, 965509835818,
                                      924575386326,  885376423199,  847839367509,  811893759832,
                                      777472127993,  744509860418,  712945084849,  682718552209,
                                      653773525389,  626055672747,  599512966122,  574095583180};
  return powers[i & 15] >> (i >> 4);
}

/* EXP2[logit + 128], the frequency of a byte in the range coder and in the score */
static inline uint32_t egg_frequency(int8_t logit) { return (uint32_t)egg_power(576 - 128 - logit); }

static uint32_t egg_frequency_sum(const int8_t logits[256]) {
  uint32_t sum = 0;
  for (int32_t i = 0; i < 256; i++) sum += egg_frequency(logits[i]);
  return sum;
}

int32_t egg_score(const int8_t logits[256], uint8_t byte) {
  const uint32_t sum = egg_frequency_sum(logits);
  int32_t log2 = 0; /* the largest n with 16 * 2^(n / 16) <= sum; only whole powers are equal to their floor */
  while (sum >> 5 >> (log2 >> 4)) log2 += 16;
  log2 += 15;
  while (sum < egg_power(576 - log2) + ((log2 & 15) != 0)) log2--;
  return logits[byte] + 128 - log2;
}

/* Threefry-2x32 with 20 rounds */
static void egg_threefry(const uint32_t key[2], uint32_t n, uint32_t out[2]) {
  static const uint8_t rotations[8] = {13, 15, 26, 6, 17, 29, 16, 24};
  const uint32_t schedule[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDAU};
  uint32_t a = key[0], b = n + key[1];
  for (uint32_t i = 0; i < 20; i++) {
    const uint8_t rotation = rotations[i & 7];
    a += b;
    b = ((b << rotation) | (b >> (32 - rotation))) ^ a;
    if ((i & 3) == 3) {
      const uint32_t s = (i >> 2) + 1;
      a += schedule[s % 3];
      b += schedule[(s + 1) % 3] + s;
    }
  }
  out[0] = a;
  out[1] = b;
}

void egg_seed(egg_random* random, uint64_t seed) {
  const uint32_t key[2] = {(uint32_t)(seed >> 32), (uint32_t)seed};
  uint32_t samples[2];
  egg_threefry(key, 2, samples); /* key 2 is that of the samples, of which this is number 0 */
  egg_threefry(samples, 0, random->key);
  random->position = 0;
}

uint8_t egg_sample(const int8_t logits[256], egg_random* random) {
  int32_t best = -128;
  for (int32_t i = 0; i < 256; i++) best = logits[i] > best ? logits[i] : best;
  uint64_t total = 0;
  for (int32_t i = 0; i < 256; i++) total += egg_power(best - logits[i]);
  uint32_t draw[2];
  egg_threefry(random->key, random->position++, draw);
  /* place = draw total / 2^64, a product of 112 bits in parts of 32; total is at most 2^48 */
  const uint64_t high = total >> 32, low = total & 0xFFFFFFFFU;
  const uint64_t middle = draw[0] * low + ((draw[1] * low) >> 32);
  const uint64_t place = draw[0] * high + (middle >> 32) + ((draw[1] * high + (middle & 0xFFFFFFFFU)) >> 32);
  uint64_t below = 0;
  for (int32_t i = 0; i < 255; i++) {
    below += egg_power(best - logits[i]);
    if (place < below) return (uint8_t)i;
  }
  return 255;
}

/* The range coder */

void egg_decoder_start(egg_decoder* decoder, uint8_t (*read)(void* from), void* from) {
  decoder->read = read;
  decoder->from = from;
  decoder->range = UINT64_MAX;
  decoder->code = 0;
  for (int32_t i = 0; i < 8; i++) decoder->code = decoder->code << 8 | read(from);
}

uint8_t egg_decode(egg_decoder* decoder, const int8_t logits[256]) {
  const uint32_t sum = egg_frequency_sum(logits);
  const uint64_t r = decoder->range / sum, place = decoder->code / r;
  const uint32_t wanted = place < sum ? (uint32_t)place : sum - 1;
  uint32_t below = 0, frequency = egg_frequency(logits[0]);
  int32_t byte = 0;
  while (below + frequency <= wanted) {
    below += frequency;
    frequency = egg_frequency(logits[++byte]);
  }
  decoder->code -= r * below;
  decoder->range = r * frequency;
  while (decoder->range >> 56 == 0) {
    decoder->code = decoder->code << 8 | decoder->read(decoder->from);
    decoder->range <<= 8;
  }
  return (uint8_t)byte;
}

void egg_encoder_start(egg_encoder* encoder, void (*write)(void* to, uint8_t byte), void* to) {
  encoder->write = write;
  encoder->to = to;
  encoder->low = 0;
  encoder->range = UINT64_MAX;
  encoder->ones = encoder->zeros = 0;
  encoder->last = -1;
}

/* Writes a byte that no carry can change. Zeros wait for another byte, since a stream does not end with them. */
static void egg_put(egg_encoder* encoder, uint8_t byte) {
  if (byte == 0) {
    encoder->zeros++;
    return;
  }
  for (; encoder->zeros > 0; encoder->zeros--) encoder->write(encoder->to, 0);
  encoder->write(encoder->to, byte);
}

/* Writes the bytes that waited for a carry: the last one below 255 (-1: none), and those of 255 after it. */
static void egg_settle(egg_encoder* encoder, uint8_t carry) {
  if (encoder->last >= 0) egg_put(encoder, (uint8_t)(encoder->last + carry));
  for (; encoder->ones > 0; encoder->ones--) egg_put(encoder, carry ? 0 : 255);
  encoder->last = -1;
}

static void egg_add(egg_encoder* encoder, uint64_t n) {
  encoder->low += n;
  if (encoder->low < n) egg_settle(encoder, 1);
}

/* Moves the most significant byte of low to those that wait. */
static void egg_shift(egg_encoder* encoder) {
  const uint8_t byte = (uint8_t)(encoder->low >> 56);
  encoder->low <<= 8;
  if (byte == 255) {
    encoder->ones++;
  } else {
    egg_settle(encoder, 0);
    encoder->last = byte;
  }
}

void egg_encode(egg_encoder* encoder, const int8_t logits[256], uint8_t byte) {
  const uint64_t r = encoder->range / egg_frequency_sum(logits);
  uint32_t below = 0;
  for (int32_t i = 0; i < byte; i++) below += egg_frequency(logits[i]);
  egg_add(encoder, r * below);
  encoder->range = r * egg_frequency(logits[byte]);
  while (encoder->range >> 56 == 0) {
    egg_shift(encoder);
    encoder->range <<= 8;
  }
}

void egg_encoder_end(egg_encoder* encoder) {
  /* The shortest number whose first bytes, and zeros after them, are from low to low + range */
  uint64_t rest = UINT64_MAX;
  int32_t bytes = 0;
  while (((0 - encoder->low) & rest) >= encoder->range) {
    rest >>= 8;
    bytes++;
  }
  egg_add(encoder, (0 - encoder->low) & rest);
  for (; bytes > 0; bytes--) egg_shift(encoder);
  egg_settle(encoder, 0);
}

#ifdef EGG_MAIN
#include "program.c"
#endif

#endif
