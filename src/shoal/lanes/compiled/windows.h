// Convolutions and pools over the windows of an image, for generated programs.
//
// A convolution is a product of its filters with the image unfolded: a column for every place of the window, a row for every element in
// it. Only so many rows of places are unfolded at once as stay in the second cache.
//
// Glossary: C channels of one group of the image; H, W its height and width; KH, KW the window; S step, P padding, D dilation, each for
// rows and columns; OH, OW places of the window; O filters of one group.

#pragma once

#include <type_traits>
#include <utility>

#include "lane.h"

namespace shoal {

template <int C_, int H_, int W_, int KH_, int KW_, int SH_, int SW_, int PH_, int PW_, int DH_, int DW_, int OH_, int OW_,
          int BAND_, int IMAGES_>
struct Window {
  static constexpr int C = C_, H = H_, W = W_, KH = KH_, KW = KW_, SH = SH_, SW = SW_, PH = PH_, PW = PW_, DH = DH_, DW = DW_;
  static constexpr int OH = OH_, OW = OW_, K = C * KH * KW, PLACES = OH * OW;
  // Unfolded, the image is itself.
  static constexpr bool PLAIN = KH == 1 && KW == 1 && SH == 1 && SW == 1 && PH == 0 && PW == 0;
  // Rows of places that are unfolded at once, images where those are all rows, and how many bands that makes.
  static constexpr int BAND = BAND_, IMAGES = IMAGES_;
  static constexpr int BANDS = OH / BAND, LAST = OH % BAND;

  // Columns [from, to) of places at which column `kw` of the window lies on the image.
  static constexpr int from(int kw) { return clamp((PW - kw * DW + SW - 1) / SW, PW > kw * DW); }
  static constexpr int to(int kw) { return clamp((W - 1 + PW - kw * DW) / SW + 1, W - 1 + PW >= kw * DW); }
  static constexpr int clamp(int place, bool any) { return !any ? 0 : place > OW ? OW : place; }
};

// Calls body(j) for j = 0, ..., N - 1, where each j is a constant.
template <typename Body, std::size_t... J>
inline void each_of(Body body, std::index_sequence<J...>) {
  (body(std::integral_constant<int, int(J)>()), ...);
}
template <int N, typename Body>
inline void each(Body body) {
  each_of(body, std::make_index_sequence<N>());
}

// The image x (C, H, W) -> (K, ROWS * OW), from row `first` of places on.
template <typename T, typename G, int ROWS>
void unfold(const T* x, int first, T* out) {
  for (int c = 0; c < G::C; ++c)
    for (int i = 0; i < G::KH; ++i)
      each<G::KW>([&](auto j) {
        constexpr int FROM = G::from(j), TO = G::to(j), LEFT = FROM < TO ? FROM : G::OW;
        for (int r = 0; r < ROWS; ++r, out += G::OW) {
          const int h = (first + r) * G::SH - G::PH + i * G::DH;
          if (h < 0 || h >= G::H) {
            std::memset(out, 0, sizeof(T) * G::OW);
            continue;
          }
          const T* row = x + (c * G::H + h) * int64_t(G::W) + (j * G::DW - G::PW);
          for (int w = 0; w < LEFT; ++w) out[w] = T(0);
          if constexpr (G::SW == 1 && FROM < TO) {
            std::memcpy(out + FROM, row + FROM, sizeof(T) * (TO - FROM));
          } else {
            for (int w = FROM; w < TO; ++w) out[w] = row[w * G::SW];
          }
          for (int w = TO; w < G::OW; ++w) out[w] = T(0);
        }
      });
}

// Adds what belongs to a place in the image: the opposite of `unfold`.
template <typename T, typename G, int ROWS>
void fold(const T* columns, int first, T* x) {
  for (int c = 0; c < G::C; ++c)
    for (int i = 0; i < G::KH; ++i)
      each<G::KW>([&](auto j) {
        constexpr int FROM = G::from(j), TO = G::to(j);
        for (int r = 0; r < ROWS; ++r, columns += G::OW) {
          const int h = (first + r) * G::SH - G::PH + i * G::DH;
          if (h < 0 || h >= G::H) continue;
          T* __restrict row = x + (c * G::H + h) * int64_t(G::W) + (j * G::DW - G::PW);
          for (int w = FROM; w < TO; ++w) row[w * G::SW] += columns[w];
        }
      });
}

// Calls body(first, rows) for every band, where `rows` is a constant.
template <int N>
struct Rows {
  static constexpr int N_ROWS = N;
};
template <typename G, typename Body>
inline void bands(Body body) {
  for (int b = 0; b < G::BANDS; ++b) body(b * G::BAND, Rows<G::BAND>());
  if constexpr (G::LAST > 0) body(G::BANDS * G::BAND, Rows<G::LAST>());
}

// x (N, GROUPS * C, H, W), w (GROUPS * O, C, KH, KW), bias (GROUPS * O) or null -> out (N, GROUPS * O, OH, OW). `columns` is memory for
// a band.
template <typename T, typename G, int N, int GROUPS, int O>
void convolve(const T* x, const T* w, const T* bias, T* out, T* columns) {
  for (int n = 0; n < N; ++n)
    for (int g = 0; g < GROUPS; ++g, x += G::C * G::H * G::W, out += O * G::PLACES) {
      const T* filters = w + g * O * G::K;
      const T* add = bias ? bias + g * O : nullptr;
      bands<G>([&](int first, auto rows) {
        constexpr int COUNT = decltype(rows)::N_ROWS * G::OW;
        if constexpr (G::PLAIN) {
          product<T, O, COUNT, G::K, G::K, 1, G::PLACES, G::PLACES>(filters, x + first * G::OW, out + first * G::OW, add, 1, 0);
        } else {
          unfold<T, G, decltype(rows)::N_ROWS>(x, first, columns);
          product<T, O, COUNT, G::K, G::K, 1, COUNT, G::PLACES>(filters, columns, out + first * G::OW, add, 1, 0);
        }
      });
    }
}

// The gradient g (N, GROUPS * O, OH, OW) of places -> that of the image, x (N, GROUPS * C, H, W).
template <typename T, typename G, int N, int GROUPS, int O>
void convolve_back(const T* g, const T* w, T* x, T* columns) {
  std::memset(x, 0, sizeof(T) * N * GROUPS * G::C * G::H * G::W);
  for (int n = 0; n < N; ++n)
    for (int k = 0; k < GROUPS; ++k, x += G::C * G::H * G::W, g += O * G::PLACES) {
      const T* filters = w + k * O * G::K;
      bands<G>([&](int first, auto rows) {
        constexpr int COUNT = decltype(rows)::N_ROWS * G::OW;
        if constexpr (G::PLAIN) {
          product<T, G::K, COUNT, O, 1, G::K, G::PLACES, G::PLACES>(filters, g + first * G::OW, x + first * G::OW, nullptr, 0, 0);
        } else {
          product<T, G::K, COUNT, O, 1, G::K, G::PLACES, COUNT>(filters, g + first * G::OW, columns, nullptr, 0, 0);
          fold<T, G, decltype(rows)::N_ROWS>(columns, first, x);
        }
      });
    }
}

// What is left of K elements after whole vectors, as a vector whose other elements are 0.
template <typename T, int K>
inline typename Vector<T>::V load_rest(const T* p) {
  constexpr int W = Vector<T>::W, REST = K % W;
  if constexpr (K >= W) {  // the last whole vector, without what was counted before
    typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> I;
    typedef I Bits __attribute__((vector_size(BYTES)));
    Bits keep{};
    for (int i = W - REST; i < W; ++i) keep[i] = -1;
    return (typename Vector<T>::V)((Bits)load(p + K - W) & keep);
  } else {
    typename Vector<T>::V part{};
    for (int i = 0; i < REST; ++i) part[i] = p[i];
    return part;
  }
}

// R by S elements of C += the sum over `count` pairs of A B^T, `step_a` and `step_b` apart. The K elements of the summed axis lie in order.
template <typename T, int R, int S, int K, int64_t LDA, int64_t LDB, int64_t LDC>
__attribute__((always_inline)) inline void dots(const T* a, const T* b, T* c, int count, int64_t step_a, int64_t step_b) {
  constexpr int W = Vector<T>::W, FULL = K / W * W;
  typename Vector<T>::V acc[R][S], x, y[S];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) acc[r][s] = typename Vector<T>::V{};
  for (int i = 0; i < count; ++i, a += step_a, b += step_b) {
    for (int k = 0; k < FULL; k += W) {
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) y[s] = load(b + s * LDB + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        x = load(a + r * LDA + k);
#pragma GCC unroll 8
        for (int s = 0; s < S; ++s) acc[r][s] += x * y[s];
      }
    }
    if constexpr (FULL < K) {
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) y[s] = load_rest<T, K>(b + s * LDB);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        x = load_rest<T, K>(a + r * LDA);
#pragma GCC unroll 8
        for (int s = 0; s < S; ++s) acc[r][s] += x * y[s];
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) {
      T sum = T(0);
      for (int i = 0; i < W; ++i) sum += acc[r][s][i];
      c[r * LDC + s] += sum;
    }
}

// C (M, N) += the sum over `count` pairs of A (M, K) B (N, K)^T.
template <typename T, int M, int N, int K, int64_t LDA, int64_t LDB, int64_t LDC>
void add_dots(const T* a, const T* b, T* c, int count, int64_t step_a, int64_t step_b) {
  constexpr int R = 4, S = 3, M4 = M / R * R, N3 = N / S * S;
  for (int n = 0; n < N3; n += S) {
    const T* y = b + n * LDB;
    for (int m = 0; m < M4; m += R) dots<T, R, S, K, LDA, LDB, LDC>(a + m * LDA, y, c + m * LDC + n, count, step_a, step_b);
    for (int m = M4; m < M; ++m) dots<T, 1, S, K, LDA, LDB, LDC>(a + m * LDA, y, c + m * LDC + n, count, step_a, step_b);
  }
  for (int n = N3; n < N; ++n) {
    const T* y = b + n * LDB;
    for (int m = 0; m < M4; m += R) dots<T, R, 1, K, LDA, LDB, LDC>(a + m * LDA, y, c + m * LDC + n, count, step_a, step_b);
    for (int m = M4; m < M; ++m) dots<T, 1, 1, K, LDA, LDB, LDC>(a + m * LDA, y, c + m * LDC + n, count, step_a, step_b);
  }
}

// The gradient g of places, and the image x -> that of the filters, w (GROUPS * O, C, KH, KW). Where several images fit into `columns`
// they are unfolded and summed up together.
template <typename T, typename G, int N, int GROUPS, int O>
void convolve_filters(const T* g, const T* x, T* w, T* columns) {
  constexpr int64_t IMAGE = GROUPS * G::C * G::H * G::W, OUT = GROUPS * O * G::PLACES;
  std::memset(w, 0, sizeof(T) * GROUPS * O * G::K);
  for (int k = 0; k < GROUPS; ++k) {
    const T* x_ = x + k * G::C * G::H * G::W;
    const T* g_ = g + k * O * G::PLACES;
    T* filters = w + k * O * G::K;
    if constexpr (G::PLAIN) {
      add_dots<T, O, G::K, G::PLACES, G::PLACES, G::PLACES, G::K>(g_, x_, filters, N, OUT, IMAGE);
    } else if constexpr (G::BAND == G::OH) {
      constexpr int SIZE = G::K * G::PLACES, FIT = G::IMAGES;
      for (int n = 0; n < N; n += FIT) {
        const int count = N - n < FIT ? N - n : FIT;
        for (int i = 0; i < count; ++i) unfold<T, G, G::OH>(x_ + (n + i) * IMAGE, 0, columns + i * SIZE);
        add_dots<T, O, G::K, G::PLACES, G::PLACES, G::PLACES, G::K>(g_ + n * OUT, columns, filters, count, OUT, SIZE);
      }
    } else {
      for (int n = 0; n < N; ++n)
        bands<G>([&](int first, auto rows) {
          constexpr int COUNT = decltype(rows)::N_ROWS * G::OW;
          unfold<T, G, decltype(rows)::N_ROWS>(x_ + n * IMAGE, first, columns);
          add_dots<T, O, G::K, COUNT, G::PLACES, COUNT, G::K>(g_ + n * OUT + first * G::OW, columns, filters, 1, 0, 0);
        });
    }
  }
}

// The largest element of every window of PLANES images, and where it lies in its image; the first of equals, NaN above all.
template <typename T, typename G, int PLANES>
void max_pool(const T* x, T* out, int64_t* at) {
  constexpr int BOTTOM = (G::OH - 1) * G::SH - G::PH + (G::KH - 1) * G::DH, RIGHT = (G::OW - 1) * G::SW - G::PW + (G::KW - 1) * G::DW;
  for (int p = 0; p < PLANES; ++p, x += G::H * G::W)
    for (int oh = 0; oh < G::OH; ++oh, out += G::OW, at += G::OW) {
      T best[G::OW];
      int where[G::OW];
      if constexpr (G::PH == 0 && G::PW == 0 && BOTTOM < G::H && RIGHT < G::W) {
        for (int ow = 0; ow < G::OW; ++ow) {
          where[ow] = oh * G::SH * G::W + ow * G::SW;
          best[ow] = x[where[ow]];
        }
        each<G::KH * G::KW>([&](auto k) {
          const int first = (oh * G::SH + k / G::KW * G::DH) * G::W + k % G::KW * G::DW;
          for (int ow = 0; ow < G::OW; ++ow) {
            const T v = x[first + ow * G::SW];
            const bool more = v > best[ow] || v != v;
            best[ow] = more ? v : best[ow];
            where[ow] = more ? first + ow * G::SW : where[ow];
          }
        });
      } else {
        for (int ow = 0; ow < G::OW; ++ow) {
          where[ow] = -1;
          for (int i = 0; i < G::KH; ++i)
            for (int j = 0; j < G::KW; ++j) {
              const int h = oh * G::SH - G::PH + i * G::DH, w = ow * G::SW - G::PW + j * G::DW;
              if (h < 0 || h >= G::H || w < 0 || w >= G::W) continue;
              const T v = x[h * G::W + w];
              if (where[ow] >= 0 && !(v > best[ow] || v != v)) continue;
              best[ow] = v;
              where[ow] = h * G::W + w;
            }
        }
      }
      for (int ow = 0; ow < G::OW; ++ow) {
        out[ow] = best[ow];
        at[ow] = where[ow];
      }
    }
}

template <typename T, typename G, int PLANES>
void max_pool_back(const T* g, const int64_t* at, T* x) {
  std::memset(x, 0, sizeof(T) * PLANES * G::H * G::W);
  for (int p = 0; p < PLANES; ++p, x += G::H * G::W)
    for (int i = 0; i < G::PLACES; ++i, ++g, ++at) x[*at] += *g;
}

// Rows [from, to) of the image under place `o`, and how many elements a mean is taken over: with the padding, or without.
struct Span {
  int from, to, padded;
};
template <int S, int P, int KERNEL, int SIZE>
inline Span span(int o) {
  const int from = o * S - P, to = from + KERNEL < SIZE + P ? from + KERNEL : SIZE + P;
  return {from < 0 ? 0 : from, to < SIZE ? to : SIZE, to - from};
}

// Means of windows. DIVISOR replaces the number of elements, unless it is 0; PADDED counts padding as elements.
template <typename T, typename G, int PLANES, bool PADDED, int DIVISOR>
void mean_pool(const T* x, T* out) {
  for (int p = 0; p < PLANES; ++p, x += G::H * G::W)
    for (int oh = 0; oh < G::OH; ++oh) {
      const Span rows = span<G::SH, G::PH, G::KH, G::H>(oh);
      for (int ow = 0; ow < G::OW; ++ow, ++out) {
        const Span columns = span<G::SW, G::PW, G::KW, G::W>(ow);
        T sum = T(0);
        for (int h = rows.from; h < rows.to; ++h)
          for (int w = columns.from; w < columns.to; ++w) sum += x[h * G::W + w];
        const int count = PADDED ? rows.padded * columns.padded : (rows.to - rows.from) * (columns.to - columns.from);
        *out = sum / T(DIVISOR ? DIVISOR : count);
      }
    }
}

template <typename T, typename G, int PLANES, bool PADDED, int DIVISOR>
void mean_pool_back(const T* g, T* x) {
  std::memset(x, 0, sizeof(T) * PLANES * G::H * G::W);
  for (int p = 0; p < PLANES; ++p, x += G::H * G::W)
    for (int oh = 0; oh < G::OH; ++oh) {
      const Span rows = span<G::SH, G::PH, G::KH, G::H>(oh);
      for (int ow = 0; ow < G::OW; ++ow, ++g) {
        const Span columns = span<G::SW, G::PW, G::KW, G::W>(ow);
        const int count = PADDED ? rows.padded * columns.padded : (rows.to - rows.from) * (columns.to - columns.from);
        const T part = *g / T(DIVISOR ? DIVISOR : count);
        for (int h = rows.from; h < rows.to; ++h)
          for (int w = columns.from; w < columns.to; ++w) x[h * G::W + w] += part;
      }
    }
}

// Means over OH by OW parts of PLANES images: part o begins at o H / OH and ends where the next begins, or one row later.
template <int H, int OH>
inline Span part(int o) {
  return {o * H / OH, ((o + 1) * H + OH - 1) / OH, 0};
}

template <typename T, int PLANES, int H, int W, int OH, int OW>
void adaptive_mean(const T* x, T* out) {
  for (int p = 0; p < PLANES; ++p, x += H * W)
    for (int oh = 0; oh < OH; ++oh)
      for (int ow = 0; ow < OW; ++ow, ++out) {
        const Span rows = part<H, OH>(oh), columns = part<W, OW>(ow);
        T sum = T(0);
        for (int h = rows.from; h < rows.to; ++h)
          for (int w = columns.from; w < columns.to; ++w) sum += x[h * W + w];
        *out = sum / T((rows.to - rows.from) * (columns.to - columns.from));
      }
}

template <typename T, int PLANES, int H, int W, int OH, int OW>
void adaptive_mean_back(const T* g, T* x) {
  std::memset(x, 0, sizeof(T) * PLANES * H * W);
  for (int p = 0; p < PLANES; ++p, x += H * W)
    for (int oh = 0; oh < OH; ++oh)
      for (int ow = 0; ow < OW; ++ow, ++g) {
        const Span rows = part<H, OH>(oh), columns = part<W, OW>(ow);
        const T share = *g / T((rows.to - rows.from) * (columns.to - columns.from));
        for (int h = rows.from; h < rows.to; ++h)
          for (int w = columns.from; w < columns.to; ++w) x[h * W + w] += share;
      }
}

// PLANES images, every element repeated FH times along columns and FW times along rows.
template <typename T, int PLANES, int H, int W, int FH, int FW>
void enlarge(const T* x, T* out) {
  for (int h = 0; h < PLANES * H; ++h, x += W)
    for (int i = 0; i < FH; ++i, out += W * FW)
      for (int w = 0; w < W; ++w)
        for (int j = 0; j < FW; ++j) out[w * FW + j] = x[w];
}

template <typename T, int PLANES, int H, int W, int FH, int FW>
void enlarge_back(const T* g, T* x) {
  std::memset(x, 0, sizeof(T) * PLANES * H * W);
  for (int h = 0; h < PLANES * H; ++h, x += W)
    for (int i = 0; i < FH; ++i, g += W * FW)
      for (int w = 0; w < W; ++w)
        for (int j = 0; j < FW; ++j) x[w] += g[w * FW + j];
}

}  // namespace shoal
