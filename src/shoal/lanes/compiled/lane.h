// What generated programs are made of: products of small matrices, copies that turn them, and the struct that describes an epoch.
//
// A program trains one lane after the other, each through all its ticks, so that what a lane needs stays in the nearest caches.
// No sum here depends on anything but the shapes, which are constants of the program: neighbours change no bit.
//
// Glossary: C (M, N) = A (M, K) B (K, N); W elements of a vector; q samples of a micro-batch; P elements of a flat parameter row;
// T ticks of an epoch.

#pragma once

#include <algorithm>
#include <limits>

#include "functions.h"

namespace shoal {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#else
constexpr int BYTES = 32;  // compilers make two of it where vectors are shorter
#endif

template <typename T>
struct Vector {
  static constexpr int W = BYTES / sizeof(T);
  typedef T V __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
};

template <typename T>
inline typename Vector<T>::V load(const T* p) {
  return *reinterpret_cast<const typename Vector<T>::V*>(p);
}

template <typename T>
inline void store(T* p, typename Vector<T>::V v) {
  *reinterpret_cast<typename Vector<T>::V*>(p) = v;
}

// ---- products ----
// Strides of a tile are arguments: as constants they make it no faster, and every layer would have tiles of its own to compile.

// A(m, k) = a[m am + k ak]; B(k, n) = b[k bk + n], readable up to a whole vector of columns; C(m, n) = c[m ldc + n];
// bias(m, n) = bias[m bias_m + n bias_n].
struct Strides {
  int64_t am, ak, bk, ldc, bias_m, bias_n;
};

// One tile, R rows by NV vectors, over KC of the summed axis. `more` adds to what C holds, else to the bias, if there is one. `last`
// columns of the last vector count. Six rows by two vectors keep twelve sums going, as many as hide what a sum takes.
template <typename T, int R, int NV>
__attribute__((noinline)) void tile(const Strides& by, int64_t KC, const T* a, const T* b, T* c, const T* bias, bool more, int last) {
  constexpr int W = Vector<T>::W;
  const int64_t am = by.am, ak = by.ak, bk = by.bk, ldc = by.ldc;
  typename Vector<T>::V acc[R][NV];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[r][v] = typename Vector<T>::V{};
  for (int64_t k = 0; k < KC; ++k, a += ak, b += bk) {
    typename Vector<T>::V row[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) row[v] = load(b + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const T x = a[r * am];
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[r][v] += x * row[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      T* to = c + r * ldc + v * W;
      const T* from = bias ? bias + r * by.bias_m + v * W * by.bias_n : nullptr;
      const int n = v == NV - 1 ? last : W;
      if (n == W && (more || !from || by.bias_n == 1)) {
        store(to, more ? acc[r][v] + load(to) : from ? acc[r][v] + load(from) : acc[r][v]);
      } else {
        T part[W];
        store(part, acc[r][v]);
        for (int j = 0; j < n; ++j) to[j] = part[j] + (more ? to[j] : from ? from[j * by.bias_n] : T(0));
      }
    }
}

// All rows of one panel of columns, NV vectors wide: tiles of six rows, one or two of four where that leaves none over, and the rest.
template <typename T, int M, int NV>
void panel(const Strides& by, int64_t KC, const T* a, const T* b, T* c, const T* bias, bool more, int last) {
  constexpr int FOURS = M % 6 == 4 ? 1 : M % 6 == 2 && M >= 8 ? 2 : 0, SIXES = (M - 4 * FOURS) / 6, REST = M - 4 * FOURS - 6 * SIXES;
  int m = 0;
  for (; m < 6 * SIXES; m += 6)
    tile<T, 6, NV>(by, KC, a + m * by.am, b, c + m * by.ldc, bias ? bias + m * by.bias_m : bias, more, last);
  for (; m < M - REST; m += 4)
    tile<T, 4, NV>(by, KC, a + m * by.am, b, c + m * by.ldc, bias ? bias + m * by.bias_m : bias, more, last);
  if constexpr (REST > 0)
    tile<T, REST, NV>(by, KC, a + m * by.am, b, c + m * by.ldc, bias ? bias + m * by.bias_m : bias, more, last);
}

// More of the summed axis than this is taken in turns: a panel of B then stays in the nearest cache.
constexpr int64_t DEPTH = 256;

// C (M, N) = bias + A B, each as in ``Strides``; the bias may be null.
template <typename T, int M, int N, int K, int64_t AM, int64_t AK, int64_t BK, int64_t LDC>
void product(const T* a, const T* b, T* c, const T* bias, int64_t bias_m, int64_t bias_n) {
  constexpr int W = Vector<T>::W, WIDE = 2 * W, FULL = N / WIDE * WIDE, REST = N - FULL;
  // Rows of B a large power of two apart fall on the same few places of a cache.
  constexpr bool GATHER = M >= 16 && K >= 16 && (BK * sizeof(T)) % 512 == 0;
  const Strides by{AM, AK, BK, LDC, bias_m, bias_n};
  for (int64_t first = 0; first < K; first += DEPTH) {
    const int64_t KC = K - first < DEPTH ? K - first : DEPTH;
    const bool more = first > 0;
    const T* a_ = a + first * AK;
    const T* b_ = b + first * BK;
    for (int n = 0; n < FULL; n += WIDE) {
      const T* bias_ = bias ? bias + n * bias_n : bias;
      if constexpr (GATHER) {
        alignas(64) T packed[DEPTH * WIDE];
        for (int64_t k = 0; k < KC; ++k) {
          store(packed + k * WIDE, load(b_ + n + k * BK));
          store(packed + k * WIDE + W, load(b_ + n + k * BK + W));
        }
        panel<T, M, 2>({AM, AK, WIDE, LDC, bias_m, bias_n}, KC, a_, packed, c + n, bias_, more, W);
      } else {
        panel<T, M, 2>(by, KC, a_, b_ + n, c + n, bias_, more, W);
      }
    }
    const T* bias_ = bias ? bias + FULL * bias_n : bias;
    if constexpr (REST > W)
      panel<T, M, 2>(by, KC, a_, b_ + FULL, c + FULL, bias_, more, REST - W);
    else if constexpr (REST > 0)
      panel<T, M, 1>(by, KC, a_, b_ + FULL, c + FULL, bias_, more, REST);
  }
}

// ---- copies ----

// Eight rows of eight floats, turned.
inline void turn_block(const float* from, int64_t step, float* to, int64_t out) {
  typedef float V __attribute__((vector_size(32), aligned(4), may_alias));
  const auto at = [=](int i) { return *reinterpret_cast<const V*>(from + i * step); };
  const V r0 = at(0), r1 = at(1), r2 = at(2), r3 = at(3), r4 = at(4), r5 = at(5), r6 = at(6), r7 = at(7);
#define LOW(x, y) __builtin_shufflevector(x, y, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH(x, y) __builtin_shufflevector(x, y, 2, 10, 3, 11, 6, 14, 7, 15)
  const V a0 = LOW(r0, r1), a1 = HIGH(r0, r1), a2 = LOW(r2, r3), a3 = HIGH(r2, r3);
  const V a4 = LOW(r4, r5), a5 = HIGH(r4, r5), a6 = LOW(r6, r7), a7 = HIGH(r6, r7);
#undef LOW
#undef HIGH
#define EVEN(x, y) __builtin_shufflevector(x, y, 0, 1, 8, 9, 4, 5, 12, 13)
#define ODD(x, y) __builtin_shufflevector(x, y, 2, 3, 10, 11, 6, 7, 14, 15)
  const V b0 = EVEN(a0, a2), b1 = ODD(a0, a2), b2 = EVEN(a1, a3), b3 = ODD(a1, a3);
  const V b4 = EVEN(a4, a6), b5 = ODD(a4, a6), b6 = EVEN(a5, a7), b7 = ODD(a5, a7);
#undef EVEN
#undef ODD
  const auto put = [=](int i, V v) { *reinterpret_cast<V*>(to + i * out) = v; };
#define NEAR(x, y) __builtin_shufflevector(x, y, 0, 1, 2, 3, 8, 9, 10, 11)
#define FAR(x, y) __builtin_shufflevector(x, y, 4, 5, 6, 7, 12, 13, 14, 15)
  put(0, NEAR(b0, b4));
  put(1, NEAR(b1, b5));
  put(2, NEAR(b2, b6));
  put(3, NEAR(b3, b7));
  put(4, FAR(b0, b4));
  put(5, FAR(b1, b5));
  put(6, FAR(b2, b6));
  put(7, FAR(b3, b7));
#undef NEAR
#undef FAR
}

// B (K, N) with b[k bk + n bn] -> rows of N, `out` apart, filled up with zeros.
template <typename T, int K, int N>
void pack(const T* b, int64_t bk, int64_t bn, T* to, int64_t out) {
  if constexpr (sizeof(T) == 4) {
    if (bk == 1) {
      constexpr int K8 = K / 8 * 8, N8 = N / 8 * 8;
      for (int n = 0; n < N8; n += 8)
        for (int k = 0; k < K8; k += 8) turn_block(reinterpret_cast<const float*>(b) + n * bn + k, bn, reinterpret_cast<float*>(to) + k * out + n, out);
      for (int k = K8; k < K; ++k)
        for (int n = 0; n < N8; ++n) to[k * out + n] = b[k + n * bn];
      for (int k = 0; k < K; ++k)
        for (int n = N8; n < out; ++n) to[k * out + n] = n < N ? b[k + n * bn] : T(0);
      return;
    }
  }
  for (int k = 0; k < K; ++k)
    for (int n = 0; n < out; ++n) to[k * out + n] = n < N ? b[k * bk + n * bn] : T(0);
}

// Where erf is y: a first guess (Winitzki 2008), and Newton's steps until nothing changes in double precision.
inline double erfinv_of(double y) {
  if (!(std::abs(y) < 1)) return std::abs(y) == 1 ? std::copysign(INFINITY, y) : NAN;
  const double log = std::log1p(-y * y), half = 4.330746750799873 + log / 2;
  double x = std::copysign(std::sqrt(std::sqrt(half * half - log / 0.147) - half), y);
  for (int i = 0; i < 4; ++i) {
    const double step = (std::erf(x) - y) / (1.1283791670955126 * std::exp(-x * x));
    x -= step / (1 + x * step);
  }
  return x;
}

// ---- along one axis ----
// The axis has N elements; OUTER blocks lie before it, INNER elements between its neighbours.

template <typename T, int64_t OUTER, int64_t N, int64_t INNER>
void log_softmax(const T* x, T* y) {
  for (int64_t o = 0; o < OUTER; ++o, x += N * INNER, y += N * INNER)
    for (int64_t i = 0; i < INNER; ++i) {
      T top = x[i], sum = T(0);
      for (int64_t k = 1; k < N; ++k) top = top != top || x[k * INNER + i] <= top ? top : x[k * INNER + i];
#pragma omp simd reduction(+ : sum)
      for (int64_t k = 0; k < N; ++k) sum += exp_of(x[k * INNER + i] - top);
      top += std::log(sum);
      for (int64_t k = 0; k < N; ++k) y[k * INNER + i] = x[k * INNER + i] - top;
    }
}

template <typename T, int64_t OUTER, int64_t N, int64_t INNER>
void softmax(const T* x, T* y) {
  for (int64_t o = 0; o < OUTER; ++o, x += N * INNER, y += N * INNER)
    for (int64_t i = 0; i < INNER; ++i) {
      T top = x[i], sum = T(0);
      for (int64_t k = 1; k < N; ++k) top = top != top || x[k * INNER + i] <= top ? top : x[k * INNER + i];
#pragma omp simd reduction(+ : sum)
      for (int64_t k = 0; k < N; ++k) {
        y[k * INNER + i] = exp_of(x[k * INNER + i] - top);
        sum += y[k * INNER + i];
      }
      for (int64_t k = 0; k < N; ++k) y[k * INNER + i] /= sum;
    }
}

template <typename T, int64_t OUTER, int64_t N, int64_t INNER>
void log_softmax_backward(const T* g, const T* y, T* out) {
  for (int64_t o = 0; o < OUTER; ++o, g += N * INNER, y += N * INNER, out += N * INNER)
    for (int64_t i = 0; i < INNER; ++i) {
      T sum = T(0);
      for (int64_t k = 0; k < N; ++k) sum += g[k * INNER + i];
      for (int64_t k = 0; k < N; ++k) out[k * INNER + i] = g[k * INNER + i] - exp_of(y[k * INNER + i]) * sum;
    }
}

template <typename T, int64_t OUTER, int64_t N, int64_t INNER>
void softmax_backward(const T* g, const T* y, T* out) {
  for (int64_t o = 0; o < OUTER; ++o, g += N * INNER, y += N * INNER, out += N * INNER)
    for (int64_t i = 0; i < INNER; ++i) {
      T sum = T(0);
#pragma omp simd reduction(+ : sum)
      for (int64_t k = 0; k < N; ++k) sum += g[k * INNER + i] * y[k * INNER + i];
      for (int64_t k = 0; k < N; ++k) out[k * INNER + i] = y[k * INNER + i] * (g[k * INNER + i] - sum);
    }
}

// x (ROWS, N) -> every row sorted, and where each element was; equal ones stay in their order, NaN counts as the largest.
template <typename T, int64_t ROWS, int64_t N, bool FALLING>
void sort(const T* x, T* y, int64_t* at) {
  for (int64_t r = 0; r < ROWS; ++r, x += N, y += N, at += N) {
    for (int64_t i = 0; i < N; ++i) at[i] = i;
    const auto less = [](T a, T b) { return a < b || (b != b && a == a); };
    std::stable_sort(at, at + N, [&](int64_t i, int64_t j) { return FALLING ? less(x[j], x[i]) : less(x[i], x[j]); });
    for (int64_t i = 0; i < N; ++i) y[i] = x[at[i]];
  }
}

// x (ROWS, N), weight and bias (N) or null -> y, mean (ROWS), rstd (ROWS).
template <typename T, int64_t ROWS, int64_t N>
void layer_norm(const T* x, const T* weight, const T* bias, T* y, T* mean, T* rstd, double eps) {
  for (int64_t r = 0; r < ROWS; ++r, x += N, y += N) {
    T sum = T(0), square = T(0);
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < N; ++i) sum += x[i];
    const T m = sum / T(N);
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < N; ++i) square += (x[i] - m) * (x[i] - m);
    const T s = T(1) / std::sqrt(square / T(N) + T(eps));
    for (int64_t i = 0; i < N; ++i) y[i] = (x[i] - m) * s * (weight ? weight[i] : T(1)) + (bias ? bias[i] : T(0));
    mean[r] = m;
    rstd[r] = s;
  }
}

// dw and db may be null.
template <typename T, int64_t ROWS, int64_t N>
void layer_norm_backward(const T* g, const T* x, const T* mean, const T* rstd, const T* weight, T* out, T* dw, T* db) {
  if (dw) std::memset(dw, 0, N * sizeof(T));
  if (db) std::memset(db, 0, N * sizeof(T));
  for (int64_t r = 0; r < ROWS; ++r, g += N, x += N, out += N) {
    const T m = mean[r], s = rstd[r];
    T sum = T(0), with = T(0);
#pragma omp simd reduction(+ : sum, with)
    for (int64_t i = 0; i < N; ++i) {
      const T d = g[i] * (weight ? weight[i] : T(1));
      sum += d;
      with += d * (x[i] - m) * s;
    }
    for (int64_t i = 0; i < N; ++i) {
      const T d = g[i] * (weight ? weight[i] : T(1));
      out[i] = s * (d - sum / T(N) - (x[i] - m) * s * with / T(N));
    }
    if (dw)
      for (int64_t i = 0; i < N; ++i) dw[i] += g[i] * (x[i] - m) * s;
    if (db)
      for (int64_t i = 0; i < N; ++i) db[i] += g[i];
  }
}

// x (N, C, S), weight and bias (C) or null -> y, and mean and 1 / standard deviation (C); running statistics follow in training.
template <typename T, int64_t N, int64_t C, int64_t S>
void batch_norm(const T* x, const T* weight, const T* bias, T* running_mean, T* running_var, bool training, double momentum,
                double eps, T* y, T* mean, T* rstd) {
  constexpr int64_t COUNT = N * S;
  T center[C], scale[C], shift[C];
  if (training) {
    T var[C];
    for (int64_t c = 0; c < C; ++c) center[c] = var[c] = T(0);
    for (int64_t n = 0; n < N; ++n)
      for (int64_t c = 0; c < C; ++c) {
        T sum = T(0);
#pragma omp simd reduction(+ : sum)
        for (int64_t s = 0; s < S; ++s) sum += x[(n * C + c) * S + s];
        center[c] += sum;
      }
    for (int64_t c = 0; c < C; ++c) center[c] /= T(COUNT);
    for (int64_t n = 0; n < N; ++n)
      for (int64_t c = 0; c < C; ++c) {
        T sum = T(0);
#pragma omp simd reduction(+ : sum)
        for (int64_t s = 0; s < S; ++s) {
          const T d = x[(n * C + c) * S + s] - center[c];
          sum += d * d;
        }
        var[c] += sum;
      }
    for (int64_t c = 0; c < C; ++c) {
      mean[c] = center[c];
      rstd[c] = T(1) / std::sqrt(var[c] / T(COUNT) + T(eps));
      scale[c] = rstd[c];
      if (running_mean) running_mean[c] += (center[c] - running_mean[c]) * T(momentum);
      if (running_var) running_var[c] += (var[c] / T(COUNT - 1) - running_var[c]) * T(momentum);
    }
  } else {
    for (int64_t c = 0; c < C; ++c) {
      center[c] = running_mean[c];
      scale[c] = T(1) / std::sqrt(running_var[c] + T(eps));
    }
  }
  for (int64_t c = 0; c < C; ++c) {
    scale[c] *= weight ? weight[c] : T(1);
    shift[c] = bias ? bias[c] : T(0);
  }
  for (int64_t n = 0; n < N; ++n)
    for (int64_t c = 0; c < C; ++c)
      for (int64_t s = 0; s < S; ++s) {
        const int64_t i = (n * C + c) * S + s;
        y[i] = (x[i] - center[c]) * scale[c] + shift[c];
      }
}

// dw and db may be null; mean and rstd are those of the batch in training, else follow from the running statistics.
template <typename T, int64_t N, int64_t C, int64_t S>
void batch_norm_backward(const T* g, const T* x, const T* weight, const T* running_mean, const T* running_var, const T* mean,
                         const T* rstd, bool training, double eps, T* out, T* dw, T* db) {
  T center[C], scale[C], sum[C], with[C];
  for (int64_t c = 0; c < C; ++c) {
    center[c] = training ? mean[c] : running_mean[c];
    scale[c] = training ? rstd[c] : T(1) / std::sqrt(running_var[c] + T(eps));
    sum[c] = with[c] = T(0);
  }
  for (int64_t n = 0; n < N; ++n)
    for (int64_t c = 0; c < C; ++c)
      {
        T all = T(0), along = T(0);
#pragma omp simd reduction(+ : all, along)
        for (int64_t s = 0; s < S; ++s) {
          const int64_t i = (n * C + c) * S + s;
          all += g[i];
          along += g[i] * (x[i] - center[c]);
        }
        sum[c] += all;
        with[c] += along;
      }
  for (int64_t c = 0; c < C; ++c) {
    if (dw) dw[c] = with[c] * scale[c];
    if (db) db[c] = sum[c];
    sum[c] = training ? sum[c] / T(N * S) : T(0);
    with[c] = training ? with[c] / T(N * S) * scale[c] * scale[c] : T(0);
    scale[c] *= weight ? weight[c] : T(1);
  }
  for (int64_t n = 0; n < N; ++n)
    for (int64_t c = 0; c < C; ++c)
      for (int64_t s = 0; s < S; ++s) {
        const int64_t i = (n * C + c) * S + s;
        out[i] = (g[i] - sum[c] - (x[i] - center[c]) * with[c]) * scale[c];
      }
}

// ---- an epoch ----

// Shoal's own operations, from the library that is built once per machine (lanes/native/kernels.cpp).
template <typename T>
struct Kernels {
  void (*forward)(int, T, int64_t, int64_t, const T*, T*);
  void (*backward)(int, T, int64_t, int64_t, const T*, const T*, const T*, T*);
  void (*mask)(int64_t, int64_t, int64_t, const int32_t*, const int32_t*, const int32_t*, const T*, T*);
  void (*loss)(int64_t, int64_t, int64_t, const T*, const int64_t*, const T*, const T*, int64_t, T*, T*);
  void (*loss_backward)(int64_t, int64_t, int64_t, const T*, const T*, const int64_t*, const T*, const T*, int64_t, T*);
  void (*advance)(int, int64_t, int64_t, int64_t, int64_t, int64_t, const int64_t*, const int64_t*, T*, T*, T*, T*, T*, const T*,
                  const uint8_t*, const T* const*, const uint8_t*);
  void (*through)(int64_t, const int64_t*, const int32_t*, int64_t, int64_t, int64_t, const int64_t*, const int64_t*, const T*, const T*,
                  const T*, const T*, const T*, const T*, T*, const T*, const T*, const T*, const uint8_t*, double*);
};

// Learning rates that move by their hypergradient (lanes/hypergradient.py); T and n_lanes as in Job.
template <typename T>
struct Rates {
  int64_t n;             // R, of a lane: 1, or one per parameter
  const int32_t* rule;   // (n_lanes): 0 none, 1 additive, 2 multiplicative
  const double* base;    // (n_lanes, T, R)
  const double* step;    // (n_lanes, T)
  const double* low;     // (n_lanes)
  const double* high;    // (n_lanes)
  const double* sense;   // (n_lanes, R)
  const int64_t* of;     // (n_lanes, R), the group of each parameter
  double* offset;        // (n_lanes, R)
  double* record;        // (n_lanes, T, R)
  T* update;             // (width, P)
};

template <typename T>
struct Moves;  // moves.h

// Some ticks of an epoch, for some lanes of a fleet.
template <typename T>
struct Job {
  const Kernels<T>* kernels;
  int64_t n_lanes;
  const int64_t* lanes;        // (n_lanes)
  const int64_t* ticks;        // (n_lanes), how many of them each lane takes
  int64_t width;               // lanes of the fleet
  char* const* inputs;         // lane 0's tensors, and the data
  const int64_t* strides;      // bytes from lane to lane; 0 for what all lanes share
  const int64_t* index;        // (T, width, q)
  const T* weights;            // (T, width, q)
  const int32_t* keys;         // (T, width, q)
  T* losses;                   // (T, width)
  int64_t row_size;            // P
  T* rows[5];                  // parameters, two moments, mean gradient, gradients: (width, P) each
  const int64_t* offsets;      // (parameters)
  const int64_t* sizes;        // (parameters)
  T* table;                    // (n_lanes, T, K, G)
  int64_t n_coefficients;      // K G
  int64_t n_groups;            // G
  int64_t n_ticks;             // T, of the table
  const int32_t* family;       // (n_lanes)
  const uint8_t* due;          // (T, width)
  const uint8_t* goes_on;      // (T, width)
  int64_t tail;                // which of these ticks is the smaller last one of an epoch, -1 for none
  int64_t slots;               // q
  const int32_t* codes;        // the library's number of each kind of activation
  const T* slopes;             // and its slope
  // (n_lanes, 5): L1, L2, the largest value and norm of a batch's gradient and the largest norm of a row, infinite where off; or null
  T* shaping;
  const int64_t* lengths;      // (parameters), elements in a row, 0 for one without rows
  const Rates<T>* rates;       // or null
  const Moves<T>* moves;       // or null
  char* room;                  // what moves need, of this thread
  const uint8_t* measured;     // (T, width), at which ticks norms are taken; or null
  double* squares;             // (T, width, 2), of a tick's gradient, and of what has been added up
};

template <typename T>
using Setup = void (*)(const Job<T>&, char* const* in, char* kept);
// Gradients go to scratch memory, where ``parts`` point; new buffers to where the old ones are.
template <typename T>
using Tick = void (*)(const Job<T>&, char* const* in, char* kept, char* scratch, T* loss, const T** parts);

// What a library makes of a batch: for a whole one, and for the smaller last one of an epoch, which may be the same.
template <typename T>
struct Pass {
  Setup<T> setup, tail_setup;
  Tick<T> tick, tail_tick;
};

// What happens to a whole batch's gradient before the optimizer sees it (lanes/clip.py): L1 and L2, clipping by value, by norm.
template <typename T>
void shape(int64_t n_parts, const int64_t* offsets, const int64_t* sizes, const T* p, T* g, const T* how) {
  const T l1 = how[0], l2 = how[1], value = how[2], norm = how[3];
  T total = T(0);
  for (int64_t k = 0; k < n_parts; ++k) {
    const T* from = p + offsets[k];
    T* to = g + offsets[k];
    const int64_t n = sizes[k];
    if (l1 != T(0))
      for (int64_t i = 0; i < n; ++i) to[i] += l1 * T((T(0) < from[i]) - (from[i] < T(0)));
    if (l2 != T(0))
      for (int64_t i = 0; i < n; ++i) to[i] += l2 * from[i];
    if (!std::isinf(value))
      for (int64_t i = 0; i < n; ++i) to[i] = to[i] < -value ? -value : (to[i] > value ? value : to[i]);
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; ++i) total += to[i] * to[i];
  }
  if (std::isinf(norm)) return;
  const T share = norm / (std::sqrt(total) + T(1e-6));
  if (share >= T(1)) return;  // NaN goes on
  for (int64_t k = 0; k < n_parts; ++k)
    for (int64_t i = 0; i < sizes[k]; ++i) g[offsets[k] + i] *= share;
}

// What happens to parameters after an update (lanes/max_norm.py): rows that are longer than `limit` are shortened.
template <typename T>
void shorten(int64_t n_parts, const int64_t* offsets, const int64_t* sizes, const int64_t* lengths, T* p, T limit) {
  for (int64_t k = 0; k < n_parts; ++k) {
    const int64_t n = lengths[k];
    if (n == 0) continue;
    for (T* row = p + offsets[k]; row < p + offsets[k] + sizes[k]; row += n) {
      T total = T(0);
#pragma omp simd reduction(+ : total)
      for (int64_t i = 0; i < n; ++i) total += row[i] * row[i];
      const T norm = std::sqrt(total);
      if (!(norm > limit)) continue;
      const T share = limit / (norm + T(1e-7));
      for (int64_t i = 0; i < n; ++i) row[i] *= share;
    }
  }
}

// Squared norm of all of a gradient: parameter k has sizes[k] elements from at(k) on.
template <typename T, typename At>
double squared_norm(int64_t n_parts, const int64_t* sizes, At at) {
  double all = 0.0;
  for (int64_t k = 0; k < n_parts; ++k) {
    const T* __restrict g = at(k);
    T sum = T(0);
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < sizes[k]; ++i) sum += g[i] * g[i];
    all += double(sum);
  }
  return all;
}

// Moves the learning rates of lane l before the update of tick t by its gradient, which for parameter k begins at at(k). u, the last
// update, becomes p, for the optimizer to work on.
template <int64_t N_PARTS, typename T, typename At>
void move_rates(const Job<T>& job, int64_t l, int64_t t, const T* p, T* u, At at) {
  const Rates<T>& r = *job.rates;
  const bool norms = r.rule[l] == 2;
  double sums[3 * N_PARTS];
  for (int64_t k = 0; k < N_PARTS; ++k) {
    const T* __restrict g = at(k);
    const T* __restrict from = p + job.offsets[k];
    T* __restrict to = u + job.offsets[k];
    const int64_t n = job.sizes[k];
    T gu = T(0), gg = T(0), uu = T(0);
    if (norms) {
#pragma omp simd reduction(+ : gu, gg, uu)
      for (int64_t i = 0; i < n; ++i) {
        const T a = g[i], b = to[i];
        gu += a * b;
        gg += a * a;
        uu += b * b;
        to[i] = from[i];
      }
    } else {
#pragma omp simd reduction(+ : gu)
      for (int64_t i = 0; i < n; ++i) {
        gu += g[i] * to[i];
        to[i] = from[i];
      }
    }
    sums[3 * k] = gu, sums[3 * k + 1] = gg, sums[3 * k + 2] = uu;
  }
  const double low = r.low[l], high = r.high[l], step = r.step[l * job.n_ticks + t];
  for (int64_t k = 0; k < r.n; ++k) {
    double dot = 0.0, gg = 0.0, uu = 0.0;  // over the parameters of the group
    for (int64_t j = 0; j < N_PARTS; ++j)
      if (r.n == 1 || r.of[l * r.n + j] == r.of[l * r.n + k]) dot += sums[3 * j], gg += sums[3 * j + 1], uu += sums[3 * j + 2];
    dot *= r.sense[l * r.n + k];
    const int64_t now = (l * job.n_ticks + t) * r.n + k;
    const double base = r.base[now];
    const auto within = [=](double x) { return x < low ? low : (x > high ? high : x); };  // NaN stays
    double offset = r.offset[l * r.n + k], rate;
    if (!norms) {
      if (step > 0) offset -= step * dot;
      rate = within(base + offset);
      offset = rate - base;
    } else {
      const double scale = std::sqrt(gg * uu);
      if (step > 0) offset += std::log1p(step * (scale == 0 ? 0.0 : -dot / scale));
      rate = within(base * std::exp(offset));
      if (base > 0 && rate > 0) offset = std::log(rate / base);
    }
    r.offset[l * r.n + k] = offset;
    r.record[now] = rate;
  }
}

// u holds p as an optimizer has left it at the learning rate 1: it becomes the update, and p takes its share.
template <typename T>
void take_share(const Job<T>& job, int64_t l, int64_t t, int64_t n_parts, T* p, T* u) {
  const Rates<T>& r = *job.rates;
  for (int64_t k = 0; k < n_parts; ++k) {
    const T share = T(r.record[(l * job.n_ticks + t) * r.n + (r.n > 1 ? k : 0)]);
    T* __restrict to = p + job.offsets[k];
    T* __restrict by = u + job.offsets[k];
    for (int64_t i = 0; i < job.sizes[k]; ++i) {
      by[i] -= to[i];
      to[i] += share * by[i];
    }
  }
}

}  // namespace shoal
