// Shoal's own operations over lanes, one pass over memory each: optimizer updates with coefficients of every lane, element-wise
// activations that differ between lanes, dropout masks keyed by sample. torch's kernels do the same in several passes, and are what
// runs where no compiler is found (lanes/optim.py, lanes/activations.py, lanes/rng.py): the formulas there are the ones here.
//
// Every loop goes lane by lane, and inside a lane over the same counts whatever the lane's place: which elements fall into a
// vector and which into the rest of a loop, and so every rounding, does not depend on neighbours.
//
// Glossary: lanes first everywhere; P elements of a flat parameter row; G groups of elements with coefficients of their own;
// c (K, lanes, G) coefficients of one tick; q samples of a micro-batch; n elements of a lane.

#include "functions.h"

namespace {

// Rows of the coefficient table, as in lanes/optim.py.
enum { DECAY, L2, C3, C4, C5, C6, C7, SIGN, C8, ROWS };
enum Family { SGD, ADAM, RMS, RMS_CENTERED };

template <typename T>
void sgd(int64_t n, T* __restrict p, T* __restrict m, const T* __restrict g, const T* c) {
  for (int64_t i = 0; i < n; ++i) {
    const T d = g[i] * c[SIGN] + p[i] * c[L2];
    m[i] = m[i] * c[C3] + d * c[C4];
    p[i] = p[i] * c[DECAY] + (d * c[C5] + m[i] * c[C6]) * c[C7];
  }
}

template <typename T>
void adam(int64_t n, T* __restrict p, T* __restrict m, T* __restrict v, const T* __restrict g, const T* c) {
  for (int64_t i = 0; i < n; ++i) {
    const T d = g[i] * c[SIGN] + p[i] * c[L2];
    m[i] += (d - m[i]) * c[C3];
    v[i] += (d * d - v[i]) * c[C4];
    p[i] = p[i] * c[DECAY] + m[i] * c[C7] / (c[C6] + std::sqrt(v[i]) * c[C5]);
  }
}

template <typename T>
void rms(int64_t n, T* __restrict p, T* __restrict m, T* __restrict v, const T* __restrict g, const T* c) {
  for (int64_t i = 0; i < n; ++i) {
    const T d = g[i] * c[SIGN] + p[i] * c[L2];
    v[i] += (d * d - v[i]) * c[C3];
    m[i] = m[i] * c[C5] + d * c[C6] / (std::sqrt(v[i]) + c[C4]);
    p[i] = p[i] * c[DECAY] + m[i] * c[C7];
  }
}

template <typename T>
void rms_centered(int64_t n, T* __restrict p, T* __restrict m, T* __restrict v, T* __restrict a, const T* __restrict g, const T* c) {
  for (int64_t i = 0; i < n; ++i) {
    const T d = g[i] * c[SIGN] + p[i] * c[L2];
    v[i] += (d * d - v[i]) * c[C3];
    a[i] += (d - a[i]) * c[C3];
    m[i] = m[i] * c[C5] + d * c[C6] / (std::sqrt(v[i] - a[i] * a[i]) + c[C4]);
    p[i] = p[i] * c[DECAY] + m[i] * c[C7];
  }
}

// What follows the gradients of a tick, for a stretch of lanes beginning at lane ``first`` of the fleet. Parameter k has sizes[k]
// elements from offsets[k] on in a flat row, and lies in parts[k], (lanes of the fleet, sizes[k]). A lane that goes on adds its
// parts to what it has in g. A lane whose batch is full updates: from g, or, if the batch is of one tick only, from the parts
// themselves. Others keep their parts in g. Without parts, g holds the gradients already.
template <typename T>
void advance(int family, int64_t lanes, int64_t P, int64_t G, int64_t first, int64_t n_parts, const int64_t* offsets,
             const int64_t* sizes, T* p, T* m, T* v, T* a, T* g, const T* c, const uint8_t* due, const T* const* parts,
             const uint8_t* goes_on) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const bool full = due != nullptr && due[lane];
    if (parts == nullptr && !full) continue;
    for (int64_t k = 0; k < n_parts; ++k) {
      const int64_t n = sizes[k], at = lane * P + offsets[k];
      const T* gradient = g + at;
      if (parts != nullptr) {
        const T* __restrict part = parts[k] + (first + lane) * n;
        T* __restrict sum = g + at;
        if (goes_on[lane])
          for (int64_t i = 0; i < n; ++i) sum[i] += part[i];
        else if (full)
          gradient = part;
        else
          std::memcpy(sum, part, n * sizeof(T));
      }
      if (!full) continue;
      T own[8];
      for (int64_t j = 0; j < 8; ++j) own[j] = c[(j * lanes + lane) * G + (G > 1 ? k : 0)];
      switch (family) {
        case SGD: sgd(n, p + at, m + at, gradient, own); break;
        case ADAM: adam(n, p + at, m + at, v + at, gradient, own); break;
        case RMS: rms(n, p + at, m + at, v + at, gradient, own); break;
        case RMS_CENTERED: rms_centered(n, p + at, m + at, v + at, a + at, gradient, own); break;
      }
    }
  }
}

// ---- regularisers that move (lanes/regularised) ----

// Sixteen partial sums, whatever the machine's vectors: how a sum is rounded depends on the parameter's size alone.
constexpr int64_t SUMS = 16;

template <typename T>
double all(const T* sums) {
  double total = 0.0;
  for (int64_t j = 0; j < SUMS; ++j) total += double(sums[j]);
  return total;
}

// The derivative of an update in its gradient, element by element, is what SGD and Adam make of these coefficients. From p0 it led to p,
// with the gradient g; w becomes v times it. Adds up w sign(p0), v (p - p0), w w and p0 p0; w p0 and v p0 are those of this parameter.
template <int FAMILY, typename T>
void through(int64_t n, const T* __restrict p0, const T* __restrict p, const T* __restrict m, const T* __restrict s,
             const T* __restrict g, const T* __restrict v, T* __restrict w, const T* c, T by, double* sums) {
  T signs[SUMS] = {}, decays[SUMS] = {}, apart[SUMS] = {}, steps[SUMS] = {}, ww[SUMS] = {}, pp[SUMS] = {};
  const T plain = by * c[C7] * (c[C5] + c[C6] * c[C4]);
  const auto one = [&](int64_t i, int64_t j) {
    const T from = p0[i], along = v[i];
    T slope = plain;
    if (FAMILY == ADAM) {
      const T root = std::sqrt(s[i]), below = c[C5] * root + c[C6], d = c[SIGN] * g[i] + c[L2] * from;
      const T falls = root > T(0) ? d * m[i] * (c[C5] * c[C4]) / root : T(0);
      slope = by * c[C7] * (c[C3] - falls / below) / below;
    }
    const T there = along * slope;
    w[i] = there;
    signs[j] += there * T((T(0) < from) - (from < T(0)));
    decays[j] += there * from;
    apart[j] += along * from;
    steps[j] += along * (p[i] - from);
    ww[j] += there * there;
    pp[j] += from * from;
  };
  const int64_t whole = n - n % SUMS;
  for (int64_t i = 0; i < whole; i += SUMS)
    for (int64_t j = 0; j < SUMS; ++j) one(i + j, j);
  for (int64_t i = whole; i < n; ++i) one(i, i - whole);
  sums[0] += all(signs), sums[1] += all(steps), sums[2] += all(ww), sums[3] += all(pp);
  sums[4] = all(decays), sums[5] = all(apart);
}

// For each of some lanes of a fleet: w (lanes of the fleet, P), and out (n_lanes, 5): the derivatives in L1, in weight decay and, times
// the learning rate, in that; and the squared norms of w and p0. c (n_lanes, K, G); by and rate (n_lanes, G): what an update is multiplied by after all, and the rate of a
// decay that is decoupled, else 0; decayed (n_lanes, n_parts).
template <typename T>
void through_update(int64_t n_lanes, const int64_t* lanes, const int32_t* family, int64_t P, int64_t G, int64_t n_parts,
                    const int64_t* offsets, const int64_t* sizes, const T* p0, const T* p, const T* m, const T* s, const T* g, const T* v,
                    T* w, const T* c, const T* by, const T* rate, const uint8_t* decayed, double* out) {
  for (int64_t l = 0; l < n_lanes; ++l) {
    double sums[6] = {}, decay = 0.0;
    for (int64_t k = 0; k < n_parts; ++k) {
      const int64_t at = lanes[l] * P + offsets[k], group = G > 1 ? k : 0;
      T own[8];
      for (int64_t j = 0; j < 8; ++j) own[j] = c[(l * ROWS + j) * G + group];
      const auto call = family[l] == ADAM ? through<ADAM, T> : through<SGD, T>;
      call(sizes[k], p0 + at, p + at, m + at, s + at, g + at, v + at, w + at, own, by[l * G + group], sums);
      const T apart = rate[l * G + group];
      if (decayed[l * n_parts + k]) decay += apart != T(0) ? -double(apart) * sums[5] : sums[4];
    }
    const double found[5] = {sums[0], decay, sums[1], sums[2], sums[3]};
    for (int64_t j = 0; j < 5; ++j) out[5 * l + j] = found[j];
  }
}

// ---- learning rates that move (lanes/hypergradient.py) ----

// out (lanes, n_parts, 3) = sums of g u, g g and u u over each parameter of the lanes whose batch is full; u becomes p there.
// Sixteen partial sums, whatever the machine's vectors: how a sum is rounded depends on the parameter's size alone.
template <typename T>
void rate_before(int64_t lanes, int64_t P, int64_t n_parts, const int64_t* offsets, const int64_t* sizes, int norms,
                 const T* __restrict g, T* __restrict u, const T* __restrict p, const uint8_t* due, double* out) {
  constexpr int64_t W = 16;
  for (int64_t lane = 0; lane < lanes; ++lane) {
    if (!due[lane]) continue;
    for (int64_t k = 0; k < n_parts; ++k) {
      const int64_t n = sizes[k], at = lane * P + offsets[k], whole = n - n % W;
      T gu[W] = {}, gg[W] = {}, uu[W] = {};
      for (int64_t i = at; i < at + whole; i += W)
        for (int64_t j = 0; j < W; ++j) {
          const T a = g[i + j], b = u[i + j];
          gu[j] += a * b;
          if (norms) gg[j] += a * a, uu[j] += b * b;
          u[i + j] = p[i + j];
        }
      for (int64_t i = at + whole; i < at + n; ++i) {
        const T a = g[i], b = u[i];
        gu[i - at - whole] += a * b;
        gg[i - at - whole] += a * a, uu[i - at - whole] += b * b;
        u[i] = p[i];
      }
      double* sums = out + (lane * n_parts + k) * 3;
      sums[0] = sums[1] = sums[2] = 0.0;
      for (int64_t j = 0; j < W; ++j) sums[0] += gu[j], sums[1] += gg[j], sums[2] += uu[j];
    }
  }
}

// u holds p as an optimizer has left it at the learning rate 1: it becomes the update, and p takes its share. rate (lanes, G).
template <typename T>
void rate_after(int64_t lanes, int64_t P, int64_t G, int64_t n_parts, const int64_t* offsets, const int64_t* sizes,
                T* __restrict u, T* __restrict p, const T* rate, const uint8_t* due) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    if (!due[lane]) continue;
    for (int64_t k = 0; k < n_parts; ++k) {
      const int64_t n = sizes[k], at = lane * P + offsets[k];
      const T share = rate[lane * G + (G > 1 ? k : 0)];
      for (int64_t i = at; i < at + n; ++i) {
        u[i] -= p[i];
        p[i] += share * u[i];
      }
    }
  }
}

// ---- dropout masks ----

inline uint32_t mix(uint32_t x) {
  // Shifts keep the sign, as torch's do on int32: the bits are the same as KeyedRandom's.
  x ^= static_cast<uint32_t>(static_cast<int32_t>(x) >> 16);
  x *= 0x85EBCA6Bu;
  x ^= static_cast<uint32_t>(static_cast<int32_t>(x) >> 13);
  return x * 0xC2B2AE35u;
}

// out (lanes, q, n) = scale where kept, else 0. keys (lanes, q), element (n), threshold and scale (lanes).
template <typename T>
void mask(int64_t lanes, int64_t q, int64_t n, const int32_t* keys, const int32_t* element, const int32_t* threshold,
          const T* scale, T* out) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const int32_t from = threshold[lane];
    const T kept = scale[lane];
    for (int64_t s = 0; s < q; ++s) {
      const uint32_t key = static_cast<uint32_t>(keys[lane * q + s]);
      T* row = out + (lane * q + s) * n;
      for (int64_t i = 0; i < n; ++i) {
        const int32_t bits = static_cast<int32_t>(mix(key ^ static_cast<uint32_t>(element[i])));
        row[i] = (bits >> 1) >= from ? kept : T(0);
      }
    }
  }
}

// ---- activations ----

enum Kind { IDENTITY, RELU, TANH, SIGMOID, SILU, GELU, GELU_TANH, LEAKY_RELU };
constexpr double ROOT_2_PI = 0.79788456080286535588, CUBIC = 0.044715, DENSITY = 0.39894228040143267794;  // of GELU

template <typename T, typename F>
void each(int64_t lanes, int64_t n, const T* x_, T* y_, F f) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const T* __restrict x = x_ + lane * n;
    T* __restrict y = y_ + lane * n;
    for (int64_t i = 0; i < n; ++i) y[i] = f(x[i]);
  }
}

template <typename T>
void forward(int kind, T slope, int64_t lanes, int64_t n, const T* x, T* y) {
  const auto each_ = [=](auto f) { each(lanes, n, x, y, f); };
  constexpr T A = T(ROOT_2_PI), B = T(CUBIC);
  switch (kind) {
    case IDENTITY: each_([](T x) { return x; }); break;
    case RELU: each_([](T x) { return x < T(0) ? T(0) : x; }); break;
    case TANH: each_([](T x) { return tanh_of(x); }); break;
    case SIGMOID: each_([](T x) { return T(1) / (T(1) + exp_of(-x)); }); break;
    case SILU: each_([](T x) { return x / (T(1) + exp_of(-x)); }); break;
    case GELU: each_([](T x) { return x * phi_of(x, exp_of(T(-0.5) * x * x)); }); break;
    case GELU_TANH: each_([=](T x) { return T(0.5) * x * (T(1) + tanh_of(A * (x + B * x * x * x))); }); break;
    case LEAKY_RELU: each_([=](T x) { return x > T(0) ? x : x * slope; }); break;
  }
}

template <typename T, typename F>
void each(int64_t lanes, int64_t n, const T* g_, const T* x_, const T* y_, T* out_, F f) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const T* __restrict g = g_ + lane * n;
    const T* __restrict x = x_ + lane * n;
    const T* __restrict y = y_ + lane * n;
    T* __restrict out = out_ + lane * n;
    for (int64_t i = 0; i < n; ++i) out[i] = f(g[i], x[i], y[i]);
  }
}

template <typename T>
void backward(int kind, T slope, int64_t lanes, int64_t n, const T* g, const T* x, const T* y, T* out) {
  const auto each_ = [=](auto f) { each(lanes, n, g, x, y, out, f); };
  constexpr T A = T(ROOT_2_PI), B = T(CUBIC), D = T(DENSITY);
  switch (kind) {
    case IDENTITY: each_([](T g, T, T) { return g; }); break;
    case RELU: each_([](T g, T, T y) { return y <= T(0) ? T(0) : g; }); break;
    case TANH: each_([](T g, T, T y) { return g * (T(1) - y * y); }); break;
    case SIGMOID: each_([](T g, T, T y) { return g * (y * (T(1) - y)); }); break;
    case SILU:
      each_([](T g, T x, T) {
        const T s = T(1) / (T(1) + exp_of(-x));
        return g * (s * (T(1) + x * (T(1) - s)));
      });
      break;
    case GELU:
      each_([=](T g, T x, T y) {
        const T e = exp_of(T(-0.5) * x * x);
        return g * (phi_again(x, y, e) + x * e * D);
      });
      break;
    case GELU_TANH:
      each_([=](T g, T x, T) {
        const T t = tanh_of(A * (x + B * x * x * x));
        const T slant = A * (T(1) + T(3) * B * x * x);
        return g * (T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * slant);
      });
      break;
    case LEAKY_RELU: each_([=](T g, T x, T) { return x > T(0) ? g : g * slope; }); break;
  }
}

// ---- cross-entropy ----

// Samples at a time: what is kept of them between passes stays in the nearest cache, and loops run along them.
constexpr int64_t BLOCK = 256;

// scores (lanes, q, C), target (lanes, q), weight (lanes, C) or null, smoothing (lanes) or null -> loss (lanes, q),
// log_p (lanes, C, q).
template <typename T>
void class_loss(int64_t lanes, int64_t q, int64_t C, const T* scores, const int64_t* target, const T* weight, const T* smoothing,
                int64_t ignore, T* loss, T* log_p) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    T top[BLOCK], sum[BLOCK];
    const T s = smoothing == nullptr ? T(0) : smoothing[lane];
    for (int64_t first = 0; first < q; first += BLOCK) {
      const int64_t n = q - first < BLOCK ? q - first : BLOCK, at = lane * q + first;
      for (int64_t c = 0; c < C; ++c) {
        T* __restrict row = log_p + (lane * C + c) * q + first;
        for (int64_t i = 0; i < n; ++i) row[i] = scores[(at + i) * C + c];
        if (c == 0)
          for (int64_t i = 0; i < n; ++i) top[i] = row[i];
        else
          for (int64_t i = 0; i < n; ++i) top[i] = row[i] <= top[i] ? top[i] : row[i];  // NaN wins
      }
      for (int64_t i = 0; i < n; ++i) sum[i] = T(0);
      for (int64_t c = 0; c < C; ++c) {
        const T* __restrict row = log_p + (lane * C + c) * q + first;
        for (int64_t i = 0; i < n; ++i) sum[i] += exp_of(row[i] - top[i]);
      }
      for (int64_t i = 0; i < n; ++i) top[i] += std::log(sum[i]);
      for (int64_t i = 0; i < n; ++i) sum[i] = T(0);  // from here on of weighted log p, for smoothing
      for (int64_t c = 0; c < C; ++c) {
        T* __restrict row = log_p + (lane * C + c) * q + first;
        const T w = weight == nullptr ? T(1) : weight[lane * C + c];
        for (int64_t i = 0; i < n; ++i) row[i] -= top[i];
        if (s > T(0))
          for (int64_t i = 0; i < n; ++i) sum[i] += w * row[i];
      }
      for (int64_t i = 0; i < n; ++i) {
        const int64_t y = target[at + i];
        if (y == ignore || y < 0 || y >= C) {
          loss[at + i] = T(0);
          continue;
        }
        const T own = -(weight == nullptr ? T(1) : weight[lane * C + y]) * log_p[(lane * C + y) * q + first + i];
        loss[at + i] = s > T(0) ? (T(1) - s) * own - s / T(C) * sum[i] : own;
      }
    }
  }
}

// grad (lanes, q), the others as above -> out (lanes, q, C).
template <typename T>
void class_loss_backward(int64_t lanes, int64_t q, int64_t C, const T* grad, const T* log_p, const int64_t* target, const T* weight,
                         const T* smoothing, int64_t ignore, T* out) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    T kept[BLOCK], even[BLOCK];
    const T s = smoothing == nullptr ? T(0) : smoothing[lane];
    T all = T(C);
    if (weight != nullptr) {
      all = T(0);
      for (int64_t c = 0; c < C; ++c) all += weight[lane * C + c];
    }
    for (int64_t first = 0; first < q; first += BLOCK) {
      const int64_t n = q - first < BLOCK ? q - first : BLOCK, at = lane * q + first;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t y = target[at + i];
        const bool counts = y != ignore && y >= 0 && y < C;
        kept[i] = counts ? (T(1) - s) * (weight == nullptr ? T(1) : weight[lane * C + y]) * grad[at + i] : T(0);
        even[i] = counts ? s / T(C) * grad[at + i] : T(0);
      }
      for (int64_t c = 0; c < C; ++c) {
        const T* __restrict row = log_p + (lane * C + c) * q + first;
        const T w = weight == nullptr ? T(1) : weight[lane * C + c];
        for (int64_t i = 0; i < n; ++i) {
          const T p = exp_of(row[i]);
          const T own = target[at + i] == c ? kept[i] : T(0);
          out[(at + i) * C + c] = kept[i] * p - own + even[i] * (all * p - w);
        }
      }
    }
  }
}

// ---- the gates of an LSTM's step, float32 ----

// A tensor (lanes, B, n) whose rows lie without gaps, lanes `stride` apart.
struct Rows {
  float* at;
  int64_t stride;
};

// One sample, each gate a pointer of its own: that no two of them overlap is what lets the loops become vectors.
inline void lstm_row(int64_t H, const float* __restrict gi, const float* __restrict gf, const float* __restrict gk,
                     const float* __restrict go, const float* __restrict c, float* __restrict i_, float* __restrict f_,
                     float* __restrict k_, float* __restrict o_, float* __restrict cell, float* __restrict out) {
  for (int64_t j = 0; j < H; ++j) {
    const float i = 1.0f / (1.0f + exp_of(-gi[j])), f = 1.0f / (1.0f + exp_of(-gf[j])), o = 1.0f / (1.0f + exp_of(-go[j]));
    const float k = tanh_of(gk[j]), after = f * c[j] + i * k;
    i_[j] = i;
    f_[j] = f;
    k_[j] = k;
    o_[j] = o;
    cell[j] = after;
    out[j] = o * tanh_of(after);
  }
}

inline void lstm_row_backward(int64_t H, const float* __restrict dh, const float* __restrict i_, const float* __restrict f_,
                              const float* __restrict k_, const float* __restrict o_, const float* __restrict cell,
                              const float* __restrict c, float* __restrict dc, float* __restrict di, float* __restrict df,
                              float* __restrict dk, float* __restrict do_) {
  for (int64_t j = 0; j < H; ++j) {
    const float i = i_[j], f = f_[j], k = k_[j], o = o_[j], t = tanh_of(cell[j]);
    const float d = dc[j] + dh[j] * o * (1.0f - t * t);
    di[j] = d * k * (i * (1.0f - i));
    df[j] = d * c[j] * (f * (1.0f - f));
    dk[j] = d * i * (1.0f - k * k);
    do_[j] = dh[j] * t * (o * (1.0f - o));
    dc[j] = d * f;
  }
}

// g (lanes, B, 4 H) before the gates i f k o, c the cell before -> gates, cell after, out = o tanh(cell).
void lstm(int64_t lanes, int64_t B, int64_t H, Rows g_, Rows c_, Rows gates_, Rows cell_, Rows out_) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    for (int64_t b = 0; b < B; ++b) {
      const float* g = g_.at + lane * g_.stride + b * 4 * H;
      float* gates = gates_.at + lane * gates_.stride + b * 4 * H;
      lstm_row(H, g, g + H, g + 2 * H, g + 3 * H, c_.at + lane * c_.stride + b * H, gates, gates + H, gates + 2 * H,
               gates + 3 * H, cell_.at + lane * cell_.stride + b * H, out_.at + lane * out_.stride + b * H);
    }
  }
}

// From the gradients dh, dc after a step: dg before its gates, and in dc that of the cell before it.
void lstm_backward(int64_t lanes, int64_t B, int64_t H, Rows dh_, Rows dc_, Rows gates_, Rows cell_, Rows c_, Rows dg_) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    for (int64_t b = 0; b < B; ++b) {
      const float* gates = gates_.at + lane * gates_.stride + b * 4 * H;
      float* dg = dg_.at + lane * dg_.stride + b * 4 * H;
      lstm_row_backward(H, dh_.at + lane * dh_.stride + b * H, gates, gates + H, gates + 2 * H, gates + 3 * H,
                        cell_.at + lane * cell_.stride + b * H, c_.at + lane * c_.stride + b * H,
                        dc_.at + lane * dc_.stride + b * H, dg, dg + H, dg + 2 * H, dg + 3 * H);
    }
  }
}

}  // namespace

extern "C" {

void shoal_advance_f32(int family, int64_t lanes, int64_t P, int64_t G, int64_t first, int64_t n_parts, const int64_t* offsets,
                       const int64_t* sizes, float* p, float* m, float* v, float* a, float* g, const float* c,
                       const uint8_t* due, const float* const* parts, const uint8_t* goes_on) {
  advance(family, lanes, P, G, first, n_parts, offsets, sizes, p, m, v, a, g, c, due, parts, goes_on);
}

void shoal_advance_f64(int family, int64_t lanes, int64_t P, int64_t G, int64_t first, int64_t n_parts, const int64_t* offsets,
                       const int64_t* sizes, double* p, double* m, double* v, double* a, double* g, const double* c,
                       const uint8_t* due, const double* const* parts, const uint8_t* goes_on) {
  advance(family, lanes, P, G, first, n_parts, offsets, sizes, p, m, v, a, g, c, due, parts, goes_on);
}

void shoal_through_f32(int64_t n_lanes, const int64_t* lanes, const int32_t* family, int64_t P, int64_t G, int64_t n_parts,
                       const int64_t* offsets, const int64_t* sizes, const float* p0, const float* p, const float* m, const float* s,
                       const float* g, const float* v, float* w, const float* c, const float* by, const float* rate, const uint8_t* decayed,
                       double* out) {
  through_update(n_lanes, lanes, family, P, G, n_parts, offsets, sizes, p0, p, m, s, g, v, w, c, by, rate, decayed, out);
}

void shoal_through_f64(int64_t n_lanes, const int64_t* lanes, const int32_t* family, int64_t P, int64_t G, int64_t n_parts,
                       const int64_t* offsets, const int64_t* sizes, const double* p0, const double* p, const double* m, const double* s,
                       const double* g, const double* v, double* w, const double* c, const double* by, const double* rate, const uint8_t* decayed,
                       double* out) {
  through_update(n_lanes, lanes, family, P, G, n_parts, offsets, sizes, p0, p, m, s, g, v, w, c, by, rate, decayed, out);
}

void shoal_rate_before_f32(int64_t lanes, int64_t P, int64_t n_parts, const int64_t* offsets, const int64_t* sizes, int norms,
                           const float* g, float* u, const float* p, const uint8_t* due, double* out) {
  rate_before(lanes, P, n_parts, offsets, sizes, norms, g, u, p, due, out);
}

void shoal_rate_before_f64(int64_t lanes, int64_t P, int64_t n_parts, const int64_t* offsets, const int64_t* sizes, int norms,
                           const double* g, double* u, const double* p, const uint8_t* due, double* out) {
  rate_before(lanes, P, n_parts, offsets, sizes, norms, g, u, p, due, out);
}

void shoal_rate_after_f32(int64_t lanes, int64_t P, int64_t G, int64_t n_parts, const int64_t* offsets, const int64_t* sizes,
                          float* u, float* p, const float* rate, const uint8_t* due) {
  rate_after(lanes, P, G, n_parts, offsets, sizes, u, p, rate, due);
}

void shoal_rate_after_f64(int64_t lanes, int64_t P, int64_t G, int64_t n_parts, const int64_t* offsets, const int64_t* sizes,
                          double* u, double* p, const double* rate, const uint8_t* due) {
  rate_after(lanes, P, G, n_parts, offsets, sizes, u, p, rate, due);
}

void shoal_mask_f32(int64_t lanes, int64_t q, int64_t n, const int32_t* keys, const int32_t* element, const int32_t* threshold,
                    const float* scale, float* out) {
  mask(lanes, q, n, keys, element, threshold, scale, out);
}

void shoal_mask_f64(int64_t lanes, int64_t q, int64_t n, const int32_t* keys, const int32_t* element, const int32_t* threshold,
                    const double* scale, double* out) {
  mask(lanes, q, n, keys, element, threshold, scale, out);
}

void shoal_forward_f32(int kind, float slope, int64_t lanes, int64_t n, const float* x, float* y) {
  forward(kind, slope, lanes, n, x, y);
}

void shoal_backward_f32(int kind, float slope, int64_t lanes, int64_t n, const float* g, const float* x, const float* y, float* out) {
  backward(kind, slope, lanes, n, g, x, y, out);
}

void shoal_forward_f64(int kind, double slope, int64_t lanes, int64_t n, const double* x, double* y) {
  forward(kind, slope, lanes, n, x, y);
}

void shoal_backward_f64(int kind, double slope, int64_t lanes, int64_t n, const double* g, const double* x, const double* y, double* out) {
  backward(kind, slope, lanes, n, g, x, y, out);
}

void shoal_loss_f32(int64_t lanes, int64_t q, int64_t C, const float* scores, const int64_t* target, const float* weight,
                    const float* smoothing, int64_t ignore, float* loss, float* log_p) {
  class_loss(lanes, q, C, scores, target, weight, smoothing, ignore, loss, log_p);
}

void shoal_loss_f64(int64_t lanes, int64_t q, int64_t C, const double* scores, const int64_t* target, const double* weight,
                    const double* smoothing, int64_t ignore, double* loss, double* log_p) {
  class_loss(lanes, q, C, scores, target, weight, smoothing, ignore, loss, log_p);
}

void shoal_loss_backward_f32(int64_t lanes, int64_t q, int64_t C, const float* grad, const float* log_p, const int64_t* target,
                             const float* weight, const float* smoothing, int64_t ignore, float* out) {
  class_loss_backward(lanes, q, C, grad, log_p, target, weight, smoothing, ignore, out);
}

void shoal_loss_backward_f64(int64_t lanes, int64_t q, int64_t C, const double* grad, const double* log_p, const int64_t* target,
                             const double* weight, const double* smoothing, int64_t ignore, double* out) {
  class_loss_backward(lanes, q, C, grad, log_p, target, weight, smoothing, ignore, out);
}

void shoal_lstm_f32(int64_t lanes, int64_t B, int64_t H, float* g, int64_t g_stride, float* c, int64_t c_stride, float* gates,
                    int64_t gates_stride, float* cell, int64_t cell_stride, float* out, int64_t out_stride) {
  lstm(lanes, B, H, {g, g_stride}, {c, c_stride}, {gates, gates_stride}, {cell, cell_stride}, {out, out_stride});
}

void shoal_lstm_backward_f32(int64_t lanes, int64_t B, int64_t H, float* dh, int64_t dh_stride, float* dc, int64_t dc_stride,
                             float* gates, int64_t gates_stride, float* cell, int64_t cell_stride, float* c, int64_t c_stride,
                             float* dg, int64_t dg_stride) {
  lstm_backward(lanes, B, H, {dh, dh_stride}, {dc, dc_stride}, {gates, gates_stride}, {cell, cell_stride}, {c, c_stride},
                {dg, dg_stride});
}
}
