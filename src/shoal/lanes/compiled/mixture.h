// A weighted sum of several activations of one input, in one pass forward and one back (lanes/mixtures.py).
//
// Glossary: x, y, g (N); K activations, their weights w (K); d (K) the derivatives in these. What is kept for the way back, (K + 2, N):
// sigmoid and tanh of x, which most activations follow from, and the values of activations that do not.

#pragma once

#include "lane.h"

namespace shoal {

// Activations as the native library numbers them (lanes/native/kernels.cpp); these are sums of what ``Basis`` names.
enum Activation { A_IDENTITY, A_RELU, A_TANH, A_SIGMOID, A_SILU };
enum Basis { B_IDENTITY, B_RELU, B_TANH, B_SIGMOID, B_SILU, BASES };

// Sigmoid and tanh of x, from e^-|x| (exp_of, for such arguments alone) and one division. 1 - e^-|x| would cancel near zero, where
// the exponent is 0 and it is known to all digits.
inline void sigmoid_tanh(float x, float& s, float& t) {
  const float a = std::fabs(x), b = a > 87.0f ? 87.0f : a;
  const float k = std::nearbyint(b * -1.44269504f);
  const float r = (-b - k * 0.693359375f) + k * 2.12194440e-4f;
  const float h = 0.49999994f + r * (0.16666521f + r * (0.041668389f + r * (0.0083687101f + r * 0.0013814610f)));
  const int32_t bits = (static_cast<int32_t>(k) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  const float m = r + r * r * h, e = (1.0f + m) * power, less = b < 0.34f ? -m : 1.0f - e;
  const float u = 1.0f + e, v = 1.0f + e * e, w = 1.0f / (u * v), top = v * w;
  s = x < 0.0f ? e * top : top;
  t = std::copysign(less * u * (u * w), x);
}
inline void sigmoid_tanh(double x, double& s, double& t) {
  s = 1.0 / (1.0 + std::exp(-x));
  t = std::tanh(x);
}

// What each basis counts for, c (BASES), and for every activation which it is, or BASES for none.
template <typename T, int K>
void bases(const int32_t* codes, const int64_t* kinds, const T* w, int* which, T* c) {
  std::fill(c, c + BASES, T(0));
  for (int k = 0; k < K; ++k) {
    const int code = codes[kinds[k]];
    which[k] = code >= A_IDENTITY && code <= A_SILU ? code : int(BASES);
    if (which[k] < BASES) c[which[k]] += w[k];
  }
}

template <typename T, int64_t N, int K>
void mixture(const Job<T>& job, const int64_t* kinds, const T* w, const T* __restrict x_, T* __restrict y_, T* kept) {
  int which[K];
  T c[BASES];
  bases<T, K>(job.codes, kinds, w, which, c);
  T* __restrict s_ = kept;
  T* __restrict t_ = kept + N;
  const T identity = c[B_IDENTITY], relu = c[B_RELU], tanh = c[B_TANH], sigmoid = c[B_SIGMOID], silu = c[B_SILU];
  for (int64_t i = 0; i < N; ++i) {
    const T x = x_[i];
    T s, t;
    sigmoid_tanh(x, s, t);
    y_[i] = x * (identity + silu * s) + relu * (x < T(0) ? T(0) : x) + tanh * t + sigmoid * s;
    s_[i] = s;
    t_[i] = t;
  }
  for (int k = 0; k < K; ++k) {
    if (which[k] < BASES) continue;
    T* __restrict own = kept + (k + 2) * N;
    job.kernels->forward(job.codes[kinds[k]], job.slopes[kinds[k]], 1, N, x_, own);
    for (int64_t i = 0; i < N; ++i) y_[i] += w[k] * own[i];
  }
}

// spare (N)
template <typename T, int64_t N, int K>
void mixture_backward(const Job<T>& job, const int64_t* kinds, const T* w, const T* __restrict g_, const T* __restrict x_, const T* kept,
                      T* __restrict out, T* d, T* __restrict spare) {
  int which[K];
  T c[BASES];
  bases<T, K>(job.codes, kinds, w, which, c);
  const T* __restrict s_ = kept;
  const T* __restrict t_ = kept + N;
  const T identity = c[B_IDENTITY], relu = c[B_RELU], tanh = c[B_TANH], sigmoid = c[B_SIGMOID], silu = c[B_SILU];
  T di = 0, dr = 0, dt = 0, ds = 0, du = 0;
#pragma omp simd reduction(+ : di, dr, dt, ds, du)
  for (int64_t i = 0; i < N; ++i) {
    const T g = g_[i], x = x_[i], s = s_[i], t = t_[i], positive = x < T(0) ? T(0) : x;
    const T slant = s * (T(1) - s), gx = g * x;
    di += gx, dr += g * positive, dt += g * t, ds += g * s, du += gx * s;
    out[i] = g * (identity + (x > T(0) ? relu : T(0)) + tanh * (T(1) - t * t) + sigmoid * slant + silu * (s + x * slant));
  }
  const T found[BASES] = {di, dr, dt, ds, du};
  for (int k = 0; k < K; ++k) {
    if (which[k] < BASES) {
      d[k] = found[which[k]];
      continue;
    }
    const T* __restrict own = kept + (k + 2) * N;
    T sum = T(0);
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < N; ++i) sum += g_[i] * own[i];
    d[k] = sum;
    job.kernels->backward(job.codes[kinds[k]], job.slopes[kinds[k]], 1, N, g_, x_, own, spare);
    for (int64_t i = 0; i < N; ++i) out[i] += w[k] * spare[i];
  }
}

}  // namespace shoal
