// Recurrent layers, one direction of one layer, for generated programs: what lanes/cells.py and lanes/cells_back.py do, for one lane.
//
// Glossary: S steps, B samples, F features of the input, H units; G columns before the gates, H for each of them, in torch's order:
// LSTM i f g o, GRU r z n, RNN one. x (S, B, F), state (B, H), w_ih (G, F), w_hh (G, H), biases (G); keep (S, B) says which steps a
// sequence has; elsewhere the state is carried on. P columns before the gates filled up to whole vectors.

#pragma once

#include "lane.h"

namespace shoal {

enum Cell { LSTM, GRU, RNN_TANH, RNN_RELU };

template <Cell KIND>
constexpr int GATES = KIND == LSTM ? 4 : KIND == GRU ? 3 : 1;
// Blocks of H columns that are kept for the way back, per sample and step.
template <Cell KIND>
constexpr int KEPT = KIND == LSTM || KIND == GRU ? 4 : 0;

template <typename T>
inline T sigmoid_of(T x) {
  return T(1) / (T(1) + exp_of(-x));
}

template <Cell KIND_, int S_, int B_, int F_, int H_, bool REVERSE_>
struct Layer {
  static constexpr Cell KIND = KIND_;
  static constexpr int S = S_, B = B_, F = F_, H = H_, G = GATES<KIND> * H, K = KEPT<KIND> * H;
  static constexpr bool REVERSE = REVERSE_;
  template <typename T>
  static constexpr int P = (G + Vector<T>::W - 1) / Vector<T>::W * Vector<T>::W;
  static constexpr int step(int i) { return REVERSE ? S - 1 - i : i; }
};

// -> y (S, B, H), the last state (B, H) and cell, and for the way back cells (S, B, H) and gates (S, B, K). `memory` is
// P (F + H + 1) + S B G + B G numbers. c0, last_c and cells are an LSTM's.
template <typename T, typename L>
void recurrent(const T* x, const T* h0, const T* c0, const T* w_ih, const T* w_hh, const T* b_ih, const T* b_hh, const bool* keep, T* y,
               T* last_h, T* last_c, T* cells, T* gates, T* memory) {
  constexpr int S = L::S, B = L::B, F = L::F, H = L::H, G = L::G, P = L::template P<T>, BH = B * H;
  T *from_x = memory, *from_h = from_x + F * P, *bias = from_h + H * P, *inputs = bias + P, *g = inputs + S * B * G;
  pack<T, F, G>(w_ih, 1, F, from_x, P);
  pack<T, H, G>(w_hh, 1, H, from_h, P);
  // A GRU's second bias belongs to its hidden side.
  for (int k = 0; k < G; ++k) bias[k] = (b_ih ? b_ih[k] : T(0)) + (b_hh && L::KIND != GRU ? b_hh[k] : T(0));
  product<T, S * B, G, F, F, 1, P, G>(x, from_x, inputs, bias, 0, 1);
  const T *h = h0, *c = c0;
  for (int i = 0; i < S; ++i) {
    const int t = L::step(i);
    const T* in = inputs + t * B * G;
    T* to = y + t * BH;
    if constexpr (L::KIND == GRU)
      product<T, B, G, H, H, 1, P, G>(h, from_h, g, b_hh, 0, 1);
    else
      product<T, B, G, H, H, 1, P, G>(h, from_h, g, in, G, 1);
    for (int b = 0; b < B; ++b) {
      const T *row = g + b * G, *before = h + b * H;
      T* out = to + b * H;
      T* kept = gates + (t * B + b) * L::K;
      if constexpr (L::KIND == LSTM) {
        const T* cell = c + b * H;
        T* next = cells + t * BH + b * H;
#pragma GCC ivdep
        for (int k = 0; k < H; ++k) {
          const T i_ = sigmoid_of(row[k]), f_ = sigmoid_of(row[H + k]), g_ = tanh_of(row[2 * H + k]), o_ = sigmoid_of(row[3 * H + k]);
          kept[k] = i_, kept[H + k] = f_, kept[2 * H + k] = g_, kept[3 * H + k] = o_;
          next[k] = f_ * cell[k] + i_ * g_;
          out[k] = o_ * tanh_of(next[k]);
        }
        if (keep && !keep[t * B + b]) std::memcpy(next, cell, sizeof(T) * H);
      } else if constexpr (L::KIND == GRU) {
        const T* from = in + b * G;
#pragma GCC ivdep
        for (int k = 0; k < H; ++k) {
          const T r = sigmoid_of(from[k] + row[k]), z = sigmoid_of(from[H + k] + row[H + k]), q = row[2 * H + k];
          const T n = tanh_of(from[2 * H + k] + r * q);
          kept[k] = r, kept[H + k] = z, kept[2 * H + k] = n, kept[3 * H + k] = q;
          out[k] = n + z * (before[k] - n);
        }
      } else {
#pragma GCC ivdep
        for (int k = 0; k < H; ++k) out[k] = L::KIND == RNN_TANH ? tanh_of(row[k]) : (row[k] < T(0) ? T(0) : row[k]);
      }
      if (keep && !keep[t * B + b]) std::memcpy(out, before, sizeof(T) * H);
    }
    h = to;
    if constexpr (L::KIND == LSTM) c = cells + t * BH;
  }
  std::memcpy(last_h, h, sizeof(T) * BH);
  if constexpr (L::KIND == LSTM) std::memcpy(last_c, c, sizeof(T) * BH);
}

// Gradients of y, the last state and the last cell (each may be null) -> those of all that goes in; dx may be null. `memory` is
// 2 S B G + S B H numbers, and 2 vectors. w_ih and w_hh, x and y may be read a vector past their end.
template <typename T, typename L>
void recurrent_back(const T* dy, const T* dh_n, const T* dc_n, const T* x, const T* h0, const T* c0, const T* w_ih, const T* w_hh,
                    const bool* keep, const T* y, const T* cells, const T* gates, T* dx, T* dh, T* dc, T* dw_ih, T* dw_hh, T* db_ih,
                    T* db_hh, T* memory) {
  constexpr int S = L::S, B = L::B, F = L::F, H = L::H, G = L::G, BH = B * H, W = Vector<T>::W;
  // Gradients before the gates, of the input's side and of the state's; the states before each step.
  T *gx = memory, *gh = L::KIND == GRU ? gx + S * B * G : gx, *states = gx + 2 * S * B * G + W;
  for (int k = 0; k < BH; ++k) dh[k] = dh_n ? dh_n[k] : T(0);
  if constexpr (L::KIND == LSTM)
    for (int k = 0; k < BH; ++k) dc[k] = dc_n ? dc_n[k] : T(0);
  for (int i = S - 1; i >= 0; --i) {
    const int t = L::step(i), before = i > 0 ? L::step(i - 1) : -1;
    const T* h = before < 0 ? h0 : y + before * BH;
    std::memcpy(states + t * BH, h, sizeof(T) * BH);
    if (dy)
      for (int k = 0; k < BH; ++k) dh[k] += dy[t * BH + k];
    T* through = states + S * BH;  // what reaches the state before without a product
    for (int b = 0; b < B; ++b) {
      T *d = dh + b * H, *on = through + b * H, *row = gx + (t * B + b) * G, *side = gh + (t * B + b) * G;
      if (keep && !keep[t * B + b]) {
        std::memcpy(on, d, sizeof(T) * H);
        std::memset(row, 0, sizeof(T) * G);
        std::memset(side, 0, sizeof(T) * G);
        continue;
      }
      const T* kept = gates + (t * B + b) * L::K;
      if constexpr (L::KIND == LSTM) {
        const T *cell = cells + t * BH + b * H, *last = (before < 0 ? c0 : cells + before * BH) + b * H;
        T* e = dc + b * H;
#pragma GCC ivdep
        for (int k = 0; k < H; ++k) {
          const T i_ = kept[k], f_ = kept[H + k], g_ = kept[2 * H + k], o_ = kept[3 * H + k], tanh_c = tanh_of(cell[k]);
          const T all = e[k] + d[k] * o_ * (T(1) - tanh_c * tanh_c);
          row[k] = all * g_ * i_ * (T(1) - i_);
          row[H + k] = all * last[k] * f_ * (T(1) - f_);
          row[2 * H + k] = all * i_ * (T(1) - g_ * g_);
          row[3 * H + k] = d[k] * tanh_c * o_ * (T(1) - o_);
          e[k] = all * f_;
          on[k] = T(0);
        }
      } else if constexpr (L::KIND == GRU) {
        const T* state = h + b * H;
#pragma GCC ivdep
        for (int k = 0; k < H; ++k) {
          const T r = kept[k], z = kept[H + k], n = kept[2 * H + k], q = kept[3 * H + k];
          const T dn = d[k] * (T(1) - z) * (T(1) - n * n), dr = dn * q * r * (T(1) - r);
          const T dz = d[k] * (state[k] - n) * z * (T(1) - z);
          row[k] = side[k] = dr;
          row[H + k] = side[H + k] = dz;
          row[2 * H + k] = dn;
          side[2 * H + k] = dn * r;
          on[k] = d[k] * z;
        }
      } else {
        const T* out = y + t * BH + b * H;
#pragma GCC ivdep
        for (int k = 0; k < H; ++k) {
          row[k] = L::KIND == RNN_TANH ? d[k] * (T(1) - out[k] * out[k]) : (out[k] > T(0) ? d[k] : T(0));
          on[k] = T(0);
        }
      }
    }
    product<T, B, H, G, G, 1, H, H>(gh + t * B * G, w_hh, dh, through, H, 1);
  }
  product<T, G, F, S * B, 1, G, F, F>(gx, x, dw_ih, nullptr, 0, 0);
  product<T, G, H, S * B, 1, G, H, H>(gh, states, dw_hh, nullptr, 0, 0);
  for (int side = 0; side < 2; ++side) {
    const T* from = side ? gh : gx;
    T* to = side ? db_hh : db_ih;
    if (!to) continue;
    std::memset(to, 0, sizeof(T) * G);
    for (int r = 0; r < S * B; ++r)
      for (int k = 0; k < G; ++k) to[k] += from[r * G + k];
  }
  if (dx) product<T, S * B, F, G, G, 1, F, F>(gx, w_ih, dx, nullptr, 0, 0);
}

}  // namespace shoal
