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

inline double exp_of(double x) { return std::exp(x); }
inline double tanh_of(double x) { return std::tanh(x); }
