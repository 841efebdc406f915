// Exponential functions that compilers turn into vectors; for float64, the C library's.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// e^x to 1 unit in the last place and a bit: 2^k * (1 + r + r^2 E(r)), |r| <= ln 2 / 2; E fitted to 3e-9.
inline float exp_of(float x) {
  const float bounded = x > 88.72283f ? 88.72283f : (x < -87.33654f ? -87.33654f : x);
  const float k = std::nearbyint(bounded * 1.44269504f);
  const float r = (bounded - k * 0.693359375f) + k * 2.12194440e-4f;
  const float e = 0.49999994f + r * (0.16666521f + r * (0.041668389f + r * (0.0083687101f + r * 0.0013814610f)));
  const int32_t bits = (static_cast<int32_t>(k) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  const float y = (1.0f + r + r * r * e) * power;
  return x > 88.72283f ? INFINITY : (x < -103.0f ? 0.0f : y);
}

// A polynomial near zero, where 1 - e^(-2|x|) would cancel; fitted to 3e-9 up to 0.6.
inline float tanh_of(float x) {
  const float a = std::fabs(x), z = a * a;
  const float q = -0.33333299f + z * (0.13331924f + z * (-0.053783827f + z * (0.020795964f + z * -0.0058951504f)));
  const float e = exp_of(-2.0f * a);
  return std::copysign(a < 0.6f ? a + a * z * q : (1.0f - e) / (1.0f + e), x);
}

// The natural logarithm to 1 unit in the last place: of m 2^k, with m between the roots of 1/2 and 2 (Cephes, logf).
inline float log_of(float x) {
  const bool small = x < 1.17549435e-38f;
  const float scaled = small ? x * 8388608.0f : x;
  int32_t bits;
  std::memcpy(&bits, &scaled, sizeof bits);
  const int32_t k = (bits - 0x3f3504f3) >> 23;
  bits -= k << 23;
  float m;
  std::memcpy(&m, &bits, sizeof m);
  const float f = m - 1.0f, z = f * f, e = static_cast<float>(k) - (small ? 23.0f : 0.0f);
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float y = f + (f * z * p - 2.12194440e-4f * e - 0.5f * z) + 0.693359375f * e;
  return x > 0.0f ? (x > 3.40282347e38f ? x : y) : (x == 0.0f ? -INFINITY : NAN);
}

// erfc(a) / e^(-a^2) for a >= 0: t R(t), t = 1 / (1 + 0.3275911 a), as in Abramowitz and Stegun 7.1.26; R fitted to 8e-9.
inline float erfcx_(float a) {
  const float t = 1.0f / (1.0f + 0.3275911f * a);
  float r = 0.029345682f;
  r = r * t - 0.116739005f;
  r = r * t + 0.132955983f;
  r = r * t - 0.047288354f;
  r = r * t + 0.0858009085f;
  r = r * t + 0.0892678052f;
  r = r * t + 0.126934752f;
  r = r * t + 0.155184522f;
  r = r * t + 0.174889922f;
  r = r * t + 0.184824318f;
  r = r * t + 0.184823468f;
  return r * t;
}

// Phi(x), the standard normal distribution function, given e^(-x^2 / 2).
inline float phi_of(float x, float e) {
  const float tail = 0.5f * erfcx_(std::fabs(x) * 0.70710678f) * e;
  return x < 0.0f ? tail : 1.0f - tail;
}
inline double phi_of(double x, double) { return 0.5 * std::erfc(-x * 0.70710678118654752440); }

// Phi(x), given y = x Phi(x): near zero by its series, whose next term is below 1e-10.
inline float phi_again(float x, float y, float) {
  const float z = x * x;
  const float near = 0.5f + x * (0.398942280f - z * (0.0664903801f - z * 0.00997355701f));
  return z > 0.01f ? y / x : near;
}
inline double phi_again(double x, double, double e) { return phi_of(x, e); }

inline double exp_of(double x) { return std::exp(x); }
inline double tanh_of(double x) { return std::tanh(x); }
inline double log_of(double x) { return std::log(x); }
