/* The program. Each function returns NULL, or what is wrong in one sentence. */

#include <stdio.h>
#include <string.h>

#define BLOCK 65536        /* bytes of text in a block that this program writes */
#define MOST_TEXT 16777216 /* bytes of text in a block that it reads */
#define MOST_LANES 65536

static const char truncated[] = "The compressed file is damaged: it ends too early.";

/* The only large memory: the sizes of a block's lanes, or a block of text and its stream. */
static union {
  uint32_t sizes[MOST_LANES];
  struct {
    uint8_t text[BLOCK], stream[BLOCK];
  } block;
} memory;

/* SHA-256 (FIPS 180-4) */

typedef struct {
  uint32_t h[8];
  uint64_t size;
  uint8_t block[64];
} sha256;

static uint32_t rotate(uint32_t a, int n) { return a >> n | a << (32 - n); }

static void sha256_start(sha256* s) {
  static const uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  memcpy(s->h, h, sizeof h);
  s->size = 0;
}

static void sha256_block(sha256* s) {
  static const uint32_t k[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
      0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
      0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
      0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
      0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
      0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
      0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  uint32_t w[64], v[8];
  for (int i = 0; i < 16; i++) {
    const uint8_t* b = s->block + 4 * i;
    w[i] = (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
  }
  for (int i = 16; i < 64; i++) {
    const uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + w[i - 7] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
  }
  memcpy(v, s->h, sizeof v);
  for (int i = 0; i < 64; i++) {
    const uint32_t a = v[0], e = v[4];
    const uint32_t t = v[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & v[5]) ^ (~e & v[6])) + k[i] + w[i];
    const uint32_t u = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
    memmove(v + 1, v, 7 * sizeof v[0]);
    v[4] += t;
    v[0] = t + u;
  }
  for (int i = 0; i < 8; i++) s->h[i] += v[i];
}

static void sha256_add(sha256* s, uint8_t byte) {
  s->block[s->size++ % 64] = byte;
  if (s->size % 64 == 0) sha256_block(s);
}

static void sha256_end(sha256* s, uint8_t digest[32]) {
  const uint64_t bits = 8 * s->size;
  sha256_add(s, 0x80);
  while (s->size % 64 != 56) sha256_add(s, 0);
  for (int i = 56; i >= 0; i -= 8) sha256_add(s, (uint8_t)(bits >> i));
  for (int i = 0; i < 32; i++) digest[i] = (uint8_t)(s->h[i / 4] >> (24 - 8 * (i % 4)));
}

/* Bytes of the standard streams, with the CRC-32 since the block's start */

static struct {
  uint32_t crc;  /* of what was read or written */
  uint32_t left; /* bytes of the lane's stream that were not read */
  int ended;     /* whether the input ended too early */
} stream;

static void crc_add(uint8_t byte) {
  stream.crc ^= byte;
  for (int i = 0; i < 8; i++) stream.crc = stream.crc >> 1 ^ (stream.crc & 1 ? 0xEDB88320U : 0);
}

static uint32_t crc_end(void) {
  const uint32_t crc = ~stream.crc;
  stream.crc = UINT32_MAX;
  return crc;
}

static uint8_t get(void) {
  const int c = stream.ended ? EOF : getchar();
  if (c == EOF) {
    stream.ended = 1;
    return 0;
  }
  crc_add((uint8_t)c);
  return (uint8_t)c;
}

static uint64_t get_number(int bytes) {
  uint64_t n = 0;
  for (int i = 0; i < bytes; i++) n |= (uint64_t)get() << 8 * i;
  return n;
}

static void put(uint8_t byte) {
  crc_add(byte);
  putchar(byte);
}

static void put_number(uint64_t n, int bytes) {
  for (int i = 0; i < bytes; i++) put((uint8_t)(n >> 8 * i));
}

static const char* finished(void) {
  if (ferror(stdin)) return "Standard input cannot be read.";
  if (fflush(stdout) != 0 || ferror(stdout)) return "Standard output cannot be written.";
  return NULL;
}

/* A whole number of at least 0 in decimal digits */
static int parsed(const char* text, uint64_t* n) {
  *n = 0;
  if (*text == 0) return 0;
  for (; *text != 0; text++) {
    const char *digits = "0123456789", *digit = strchr(digits, *text);
    if (digit == NULL) return 0;
    const uint64_t value = (uint64_t)(digit - digits);
    if (*n > (UINT64_MAX - value) / 10) return 0;
    *n = 10 * *n + value;
  }
  return 1;
}

/* model sample: what `nanoegg sample --raw` writes */
static const char* sample(const char* prompt, uint64_t bytes, uint64_t seed) {
  egg_state state;
  egg_random random;
  int8_t logits[256];
  egg_seed(&random, seed);
  egg_step(&state, 0, logits);
  for (; *prompt != 0; prompt++) egg_step(&state, (uint8_t)*prompt, logits);
  for (; bytes > 0; bytes--) {
    const uint8_t byte = egg_sample(logits, &random);
    if (byte == 0 || putchar(byte) == EOF || fflush(stdout) != 0) break;
    egg_step(&state, byte, logits);
  }
  return finished();
}

/* Whether (2 n + 1) / 20000, halfway between two figures of 4 decimals, becomes the upper one, (n + 1) / 10000. Python
   prints the nearest double, which may be on either side; where it is exact, the figure becomes even. */
static int rounds_up(uint64_t n) {
  const uint64_t p = 2 * n + 1, q = 20000;
  int shift = 52; /* the double is a whole number of 2^-shift */
  for (uint64_t t = p; t >= 2 * q; t /= 2) shift--;
  for (uint64_t t = p; t < q; t *= 2) shift++;
  uint64_t rest = p % q;
  for (; shift > 0; shift--) rest = 2 * rest % q;
  return rest == 0 ? n % 2 == 1 : rest > q / 2;
}

/* model bits: the integer figure of `nanoegg eval FILE --rows 1`, with 4 decimals */
static const char* bits(void) {
  egg_state state;
  int8_t logits[256];
  uint64_t count = 0;
  int64_t score = 0;
  egg_step(&state, 0, logits);
  for (int c; (c = getchar()) != EOF; count++) {
    score += egg_score(logits, (uint8_t)c);
    egg_step(&state, (uint8_t)c, logits);
  }
  if (ferror(stdin)) return finished();
  if (count == 0) return "Standard input is empty; it must have at least one byte.";
  const int negative = score > 0; /* EXP2 and LOG2 truncate: a certain byte can cost less than nothing */
  const uint64_t top = 625 * (uint64_t)(negative ? score : -score), rest = top % count;
  uint64_t figure = top / count;
  if (rest > count - rest || (rest == count - rest && rounds_up(figure))) figure++;
  printf("%s%llu.%04llu\n", negative ? "-" : "", (unsigned long long)(figure / 10000),
         (unsigned long long)(figure % 10000));
  return finished();
}

/* Compressed files, version 1 */

static const uint8_t magic[12] = {0x89, 'E', 'G', 'G', 13, 10, 26, 10, 1, 0, 0, 0};

/* Receives the bytes of a stream; counts those that have no room. */
static void collect(void* size, uint8_t byte) {
  uint32_t* n = size;
  if (*n < BLOCK) memory.block.stream[*n] = byte;
  ++*n;
}

/* The size of the block's stream; it stops at n, where the text itself is shorter. */
static uint32_t encode(uint32_t n) {
  egg_state state;
  egg_encoder encoder;
  int8_t logits[256];
  uint32_t size = 0;
  egg_encoder_start(&encoder, collect, &size);
  egg_step(&state, 0, logits);
  for (uint32_t i = 0; i < n && size < n; i++) {
    egg_encode(&encoder, logits, memory.block.text[i]);
    egg_step(&state, memory.block.text[i], logits);
  }
  egg_encoder_end(&encoder);
  return size;
}

static const char* compress(void) {
  sha256 sum;
  uint8_t digest[32];
  uint64_t total = 0;
  uint32_t n;
  sha256_start(&sum);
  fwrite(magic, 1, sizeof magic, stdout);
  fwrite(egg_model_hash, 1, sizeof egg_model_hash, stdout);
  while ((n = (uint32_t)fread(memory.block.text, 1, BLOCK, stdin)) > 0) {
    for (uint32_t i = 0; i < n; i++) sha256_add(&sum, memory.block.text[i]);
    const uint32_t size = encode(n);
    const int coded = size + 4 < n;
    crc_end();
    put_number(n, 4);
    put_number(coded ? 1 : 0, 4);
    put_number(coded ? size + 4 : n, 4);
    if (coded) put_number(size, 4);
    for (uint32_t i = 0; i < (coded ? size : n); i++) put(coded ? memory.block.stream[i] : memory.block.text[i]);
    put_number(crc_end(), 4);
    total += n;
    if (ferror(stdout)) break;
  }
  if (ferror(stdin)) return finished(); /* without its end, the file is no whole one */
  put_number(0, 4);
  put_number(total, 8);
  sha256_end(&sum, digest);
  fwrite(digest, 1, sizeof digest, stdout);
  return finished();
}

static uint8_t get_of_lane(void* from) {
  (void)from;
  if (stream.left == 0) return 0;
  stream.left--;
  return get();
}

static void decode(uint32_t n, uint32_t size, sha256* sum) {
  egg_state state;
  egg_decoder decoder;
  int8_t logits[256];
  uint8_t byte = 0;
  stream.left = size;
  egg_decoder_start(&decoder, get_of_lane, NULL);
  for (; n > 0 && !stream.ended; n--) {
    egg_step(&state, byte, logits);
    byte = egg_decode(&decoder, logits);
    sha256_add(sum, byte);
    putchar(byte);
  }
  while (stream.left > 0 && !stream.ended) get_of_lane(NULL);
}

static const char* decompress_block(uint32_t n, sha256* sum) {
  const uint32_t lanes = (uint32_t)get_number(4), payload = (uint32_t)get_number(4);
  if (stream.ended) return truncated;
  if (n > MOST_TEXT || lanes > MOST_LANES || lanes > n || payload < 4 * lanes || (lanes == 0 && payload != n))
    return "The compressed file is damaged: the sizes of a block are impossible.";
  uint64_t streams = 4 * (uint64_t)lanes;
  for (uint32_t i = 0; i < lanes; i++) streams += memory.sizes[i] = (uint32_t)get_number(4);
  if (stream.ended) return truncated;
  if (lanes > 0 && streams != payload)
    return "The compressed file is damaged: the sizes of a block's lanes do not fit.";
  for (uint32_t i = 0; i < lanes; i++) {
    const uint64_t first = (uint64_t)n * i / lanes, last = (uint64_t)n * (i + 1) / lanes;
    decode((uint32_t)(last - first), memory.sizes[i], sum);
  }
  for (uint32_t i = 0; lanes == 0 && i < n && !stream.ended; i++) {
    const uint8_t byte = get();
    sha256_add(sum, byte);
    if (!stream.ended) putchar(byte);
  }
  const uint32_t crc = crc_end();
  if (get_number(4) != crc && !stream.ended) return "The compressed file is damaged: the checksum of a block differs.";
  return stream.ended ? truncated : NULL;
}

static const char* decompress(void) {
  sha256 sum;
  uint8_t digest[32];
  uint64_t total = 0;
  uint32_t n;
  int same = 1;
  for (int i = 0; i < 8; i++) same &= get() == magic[i];
  if (!same) return "Standard input is not a compressed file of nanoegg; it must begin with the bytes 89 45 47 47.";
  if (get_number(4) != 1 && !stream.ended) return "The version of the compressed file is unknown; it must be 1.";
  for (int i = 0; i < 32; i++) same &= get() == egg_model_hash[i];
  if (stream.ended) return truncated;
  if (!same) return "The compressed file is of another model; it must be of the model in this program.";
  sha256_start(&sum);
  while (crc_end(), (n = (uint32_t)get_number(4)) > 0 && !ferror(stdout)) {
    const char* problem = decompress_block(n, &sum);
    if (problem != NULL) return problem;
    total += n;
  }
  if (ferror(stdout)) return finished();
  same = get_number(8) == total;
  sha256_end(&sum, digest);
  for (int i = 0; i < 32; i++) same &= get() == digest[i];
  if (stream.ended) return truncated;
  if (!same) return "The compressed file is damaged: the size or the SHA-256 of the text differs.";
  if (getchar() != EOF) return "The compressed file is damaged: bytes follow its end.";
  return finished();
}

static const char* run(int count, char** arguments) {
  const char* command = count > 1 ? arguments[1] : "";
  uint64_t bytes = 500, seed = 0;
  if (strcmp(command, "sample") == 0 && count <= 5) {
    if (count > 3 && !parsed(arguments[3], &bytes))
      return "BYTES is no number of bytes; it must be a whole number from 0 to 18446744073709551615.";
    if (count > 4 && !parsed(arguments[4], &seed))
      return "SEED is no seed; it must be a whole number from 0 to 18446744073709551615.";
    return sample(count > 2 ? arguments[2] : "", bytes, seed);
  }
  if (count == 2 && strcmp(command, "bits") == 0) return bits();
  if (count == 2 && strcmp(command, "compress") == 0) return compress();
  if (count == 2 && strcmp(command, "decompress") == 0) return decompress();
  return "The command is missing or unknown; it must be sample [PROMPT] [BYTES] [SEED], bits, compress or decompress.";
}

int main(int count, char** arguments) {
  const char* problem = run(count, arguments);
  if (problem == NULL) return 0;
  if (ferror(stdin)) problem = "Standard input cannot be read.";
  fprintf(stderr, "error: %s\n", problem);
  return 2;
}
