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

inline floats rounded(const float*, floats x) { return x; }

// In the upper half of each word: rounded to nearest, ties to even; every NaN the quiet 0x7fc0, as in torch. The
// lower half is not cleared.
inline words nearest_bf16(floats x) {
  const words bits = bit_copy<words>(x);
  const words nearest = bits + 0x7fffu + ((bits >> 16) & 1u);
  return x == x ? nearest : words{} + 0x7fc00000u;
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

// A row is read and written two vectors at a time, as 2 * kWidth neighbours. Of bf16 the even ones and the odd ones:
// a shift and a mask in place of a shuffle each, and again none to write them.
struct Pair {
  floats first, second;
};

template <class T>
inline Pair load_pair(const T* p) {
  return {load(p), load(p + kWidth)};
}

inline Pair load_pair(const bf16* p) {
  words both;
  memcpy(&both, p, sizeof(both));
  return {bit_copy<floats>(both << 16), bit_copy<floats>(both & 0xffff0000u)};
}

template <class T>
inline auto rounded_pair(const T* p, Pair x) {
  struct {
    decltype(rounded(p, x.first)) first, second;
  } out = {rounded(p, x.first), rounded(p, x.second)};
  return out;
}

inline words rounded_pair(const bf16*, Pair x) {
  return (nearest_bf16(x.first) >> 16) | (nearest_bf16(x.second) & 0xffff0000u);
}

template <class T>
inline void store_pair(T* p, Pair x) {
  const auto bits = rounded_pair(p, x);
  memcpy(p, &bits, sizeof(bits));
}
