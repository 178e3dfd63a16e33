// SPDX-License-Identifier: Apache-2.0
// PATCHREC_WIDTH floats at a time, in GCC/Clang vector extensions: the same source compiles to AVX-512, AVX2, SSE2
// or NEON. Included once per instruction set, inside that set's namespace and target pragma (see segment_sum.cpp);
// hence no include guard. The width is the register's: wider vectors are split badly by GCC 12 (3x the code).

constexpr int64_t kWidth = PATCHREC_WIDTH;

typedef float floats __attribute__((vector_size(4 * PATCHREC_WIDTH)));
typedef uint32_t words __attribute__((vector_size(4 * PATCHREC_WIDTH)));
typedef uint16_t halves __attribute__((vector_size(2 * PATCHREC_WIDTH)));

template <class To, class From>
inline To bit_copy(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_copy keeps the size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// GCC 12 takes five instructions over these two conversions where the CPU has one. The maskz forms here and below
// are for its headers, in which it sees an uninitialised value otherwise.
inline words widen(halves x) {
#if PATCHREC_WIDTH == 16
  return bit_copy<words>(_mm512_maskz_cvtepu16_epi32(0xffff, bit_copy<__m256i>(x)));
#elif PATCHREC_WIDTH == 8
  return bit_copy<words>(_mm256_cvtepu16_epi32(bit_copy<__m128i>(x)));
#else
  return __builtin_convertvector(x, words);
#endif
}

inline halves narrow(words x) {
#if PATCHREC_WIDTH == 16
  return bit_copy<halves>(_mm512_maskz_cvtepi32_epi16(0xffff, bit_copy<__m512i>(x)));
#else
  return __builtin_convertvector(x, halves);
#endif
}

inline halves load_bits(const uint16_t* p) {
  halves bits;
  memcpy(&bits, p, sizeof(bits));
  return bits;
}

inline floats load(const float* p) {
  floats x;
  memcpy(&x, p, sizeof(x));
  return x;
}

inline floats load(const bf16* p) {
  return bit_copy<floats>(widen(load_bits(&p->bits)) << 16);
}

inline floats rounded(const float*, floats x) { return x; }

// Round to nearest, ties to even; every NaN becomes the quiet NaN 0x7fc0, as in torch.
inline halves rounded(const bf16*, floats x) {
  const words bits = bit_copy<words>(x);
  const words nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const words nan = bit_copy<words>(x != x);
  return narrow((nearest & ~nan) | (nan & 0x7fc0u));
}

#if PATCHREC_WIDTH == 16

inline floats load(const f16* p) {
  return bit_copy<floats>(_mm512_maskz_cvtph_ps(0xffff, bit_copy<__m256i>(load_bits(&p->bits))));
}

inline halves rounded(const f16*, floats x) {
  return bit_copy<halves>(_mm512_maskz_cvtps_ph(0xffff, bit_copy<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
}

#elif PATCHREC_WIDTH == 8

inline floats load(const f16* p) {
  return bit_copy<floats>(_mm256_cvtph_ps(bit_copy<__m128i>(load_bits(&p->bits))));
}

inline halves rounded(const f16*, floats x) {
  return bit_copy<halves>(_mm256_cvtps_ph(bit_copy<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
}

#else

// Shifting the half's bits into place and multiplying by 2^112 rebiases the exponent and normalises subnormals;
// infinities and NaN (exponent all ones) are then given the float's full exponent.
inline floats load(const f16* p) {
  const words half = widen(load_bits(&p->bits));
  const words magnitude = (half & 0x7fffu) << 13;
  words bits = bit_copy<words>(bit_copy<floats>(magnitude) * 0x1p112f);
  const words special = bit_copy<words>(magnitude >= (0x7c00u << 13));
  bits |= special & 0x7f800000u;
  return bit_copy<floats>(bits | ((half & 0x8000u) << 16));
}

inline halves rounded(const f16*, floats x) {
  const words bits = bit_copy<words>(x);
  const words magnitude = bits & 0x7fffffffu;
  // Normal halves: rebias by 112 and round at bit 13 (overflow carries into 0x7c00, infinity).
  const words normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal halves: adding 0.5 makes the FPU round at 2^-24, the half's last place.
  const words half_bits = bit_copy<words>(floats{} + 0.5f);
  const words small = bit_copy<words>(bit_copy<floats>(magnitude) + 0.5f) - half_bits;
  const words is_small = bit_copy<words>(magnitude < (113u << 23));
  const words is_large = bit_copy<words>(magnitude >= (143u << 23));
  const words is_nan = bit_copy<words>(magnitude > 0x7f800000u);
  words half = (small & is_small) | (normal & ~is_small);
  half = (half & ~is_large) | (is_large & 0x7c00u) | (is_nan & 0x0200u);
  return narrow(half | ((bits >> 16) & 0x8000u));
}

#endif

template <class T>
inline void store(T* p, floats x) {
  const auto bits = rounded(p, x);
  memcpy(p, &bits, sizeof(bits));
}

// Writes past the caches, to a 64-byte aligned row; the caller fences.
template <class T>
inline void stream(T* p, floats x) {
#if PATCHREC_WIDTH == 16
  const auto bits = rounded(p, x);
  if constexpr (sizeof(bits) == 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bit_copy<__m512i>(bits));
  } else {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bit_copy<__m256i>(bits));
  }
#elif PATCHREC_WIDTH == 8
  const auto bits = rounded(p, x);
  if constexpr (sizeof(bits) == 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bit_copy<__m256i>(bits));
  } else {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), bit_copy<__m128i>(bits));
  }
#else
  store(p, x);
#endif
}

// 64 bytes as they are.
inline void stream_line(void* to, const void* from) {
#if PATCHREC_WIDTH == 16
  _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif PATCHREC_WIDTH == 8
  const auto* source = static_cast<const __m256i*>(from);
  _mm256_stream_si256(static_cast<__m256i*>(to), _mm256_loadu_si256(source));
  _mm256_stream_si256(static_cast<__m256i*>(to) + 1, _mm256_loadu_si256(source + 1));
#else
  memcpy(to, from, 64);
#endif
}
