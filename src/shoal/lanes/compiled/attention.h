// Scaled dot-product attention, for generated programs.
//
// Glossary: n sequences, one per sample and head; L queries, S keys and values, E elements of a query or key, V of a value; P what a
// row of the matrix of scores (L, S) is padded to.

#pragma once

#include "lane.h"

namespace shoal {

// Where the added mask of sequence n lies: mask(l, s) = at(n)[l * ROW + s * COLUMN], or nothing is masked but what comes later.
template <int64_t HEADS, int64_t SAMPLE, int64_t HEAD, int64_t ROW, int64_t COLUMN>
struct Mask {
  template <typename T>
  static const T* at(const T* mask, int64_t n) {
    return mask ? mask + n / HEADS * SAMPLE + n % HEADS * HEAD : nullptr;
  }
  static constexpr int64_t R = ROW, C = COLUMN;
};

// q (L, E), k (S, E) -> scores (L, P): scaled, masked, -infinity for keys after the query where CAUSAL. `turned` is memory for (E, P).
template <typename T, typename M, int L, int S, int E, int P, bool CAUSAL>
void attention_scores(const T* q, const T* k, const T* mask, T scale, T* turned, T* scores) {
  pack<T, E, S>(k, 1, E, turned, P);
  product<T, L, S, E, E, 1, P, P>(q, turned, scores, nullptr, 0, 0);
  for (int l = 0; l < L; ++l) {
    T* row = scores + l * P;
    for (int s = 0; s < S; ++s) row[s] *= scale;
    if (mask)
      for (int s = 0; s < S; ++s) row[s] += mask[l * M::R + s * M::C];
    if (CAUSAL)
      for (int s = l + 1; s < S; ++s) row[s] = -std::numeric_limits<T>::infinity();
  }
}

// q (N, L, E), k (N, S, E), v (N, S, V) -> out (N, L, V) and the logarithm of every query's sum of exponentials, (N, L). A query whose
// keys are all masked gets 0.
template <typename T, typename M, int N, int L, int S, int E, int V, int P, bool CAUSAL>
void attention(const T* q, const T* k, const T* v, const T* mask, double scale, T* out, T* logs, T* memory) {
  T *turned = memory, *scores = turned + E * P;
  for (int n = 0; n < N; ++n, q += L * E, k += S * E, v += S * V, out += L * V, logs += L) {
    attention_scores<T, M, L, S, E, P, CAUSAL>(q, k, M::at(mask, n), T(scale), turned, scores);
    for (int l = 0; l < L; ++l) {
      T* row = scores + l * P;
      T top = row[0], sum = T(0);
      for (int s = 1; s < S; ++s) top = top != top || row[s] <= top ? top : row[s];
      const bool none = top == -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(+ : sum)
      for (int s = 0; s < S; ++s) {
        row[s] = none ? T(0) : exp_of(row[s] - top);
        sum += row[s];
      }
      const T share = none ? T(0) : T(1) / sum;
      for (int s = 0; s < S; ++s) row[s] *= share;
      logs[l] = none ? top : top + std::log(sum);
    }
    product<T, L, V, S, P, 1, V, V>(scores, v, out, nullptr, 0, 0);
  }
}

// And back: g (N, L, V) -> dq, dk, dv.
template <typename T, typename M, int N, int L, int S, int E, int V, int P, bool CAUSAL>
void attention_back(const T* g, const T* q, const T* k, const T* v, const T* logs, const T* mask, double scale, T* dq, T* dk, T* dv,
                    T* memory) {
  T *turned = memory, *weights = turned + (E > V ? E : V) * P, *slopes = weights + L * P;
  for (int n = 0; n < N; ++n, g += L * V, q += L * E, k += S * E, v += S * V, logs += L, dq += L * E, dk += S * E, dv += S * V) {
    attention_scores<T, M, L, S, E, P, CAUSAL>(q, k, M::at(mask, n), T(scale), turned, weights);
    for (int l = 0; l < L; ++l) {
      T* row = weights + l * P;
      const bool none = logs[l] == -std::numeric_limits<T>::infinity();
      for (int s = 0; s < S; ++s) row[s] = none ? T(0) : exp_of(row[s] - logs[l]);
    }
    product<T, S, V, L, 1, P, V, V>(weights, g, dv, nullptr, 0, 0);
    pack<T, V, S>(v, 1, V, turned, P);
    product<T, L, S, V, V, 1, P, P>(g, turned, slopes, nullptr, 0, 0);
    for (int l = 0; l < L; ++l) {
      const T* row = weights + l * P;
      T* to = slopes + l * P;
      T sum = T(0);
#pragma omp simd reduction(+ : sum)
      for (int s = 0; s < S; ++s) sum += row[s] * to[s];
      for (int s = 0; s < S; ++s) to[s] = row[s] * (to[s] - sum) * T(scale);
    }
    product<T, L, E, S, P, 1, E, E>(slopes, k, dq, nullptr, 0, 0);
    product<T, S, E, L, 1, P, E, E>(slopes, q, dk, nullptr, 0, 0);
  }
}

}  // namespace shoal
