// Numbers that move by a hyper-validation gradient while a lane trains: what lanes/regularised does at a tick, without leaving the
// lane. Its derivatives are those of the plain loop (lanes/regularised/_plain.py), the rule is lanes/regularised/_rule.py's.
//
// Glossary: R numbers of a lane, the first of which are L1, weight decay, label smoothing and the learning rate; M moves of an epoch;
// P elements of a flat parameter row; v the hyper-validation gradient; w the direction along which derivatives are asked for.

#pragma once

#include "lane.h"

namespace shoal {

enum { L1_, DECAY_, SMOOTHING_, LR_, RATES_ };
// Coefficients of an update that weight decay is written to, as in lanes/optim.py.
enum { COEFFICIENT_DECAY, COEFFICIENT_L2 };

// T and n_lanes as in Job. What is kept of a lane is written.
template <typename T>
struct Moves {
  int64_t n;                   // R
  int64_t n_moves;             // M
  const int64_t* move;         // (n_lanes, T), which move follows a tick, -1 for none
  const int64_t* update;       // (n_lanes, M), after which of the trial's updates, from 1
  const int64_t* every;        // (n_lanes), updates from one move to the next
  const int64_t* terms;        // (n_lanes), of a Neumann series, 0 for T1-T2
  const double* scale;         // (n_lanes), of that
  char* const* data;           // hyper-validation data
  int64_t slots;               // q, of a move
  const int64_t* index;        // (n_lanes, M, q)
  const T* weights;            // (n_lanes, M, q)
  const int32_t* keys;         // (n_lanes, M, q)
  const uint8_t* on;           // (n_lanes, R), which move
  const double* base;          // (n_lanes, R)
  const double* step;          // (n_lanes, R)
  const double* low;           // (n_lanes, R)
  const double* high;          // (n_lanes, R)
  const int64_t* warmup;       // (n_lanes, R)
  const uint8_t* logarithmic;  // (R)
  const int64_t* input;        // (R), which of a lane's tensors holds a number, -1 for none
  const int64_t* item;         // (R), bytes of its element
  int64_t n_passes;            // that give derivatives in numbers
  const int64_t* given;        // (n_passes), how many each gives
  const int64_t* place;        // which they are, pass after pass
  const uint8_t* aimed;        // (n_lanes, G), of which parameters weight decay moves
  const uint8_t* apart;        // (n_lanes), whether it is decoupled from the gradient
  const double* rate;          // (n_lanes, T, G), learning rates
  const uint8_t* decayed;      // (n_lanes, parameters), which are decayed
  const T* fixed;              // (n_lanes, parameters), weight decay where it does not move
  int64_t first_buffer;        // of a lane's tensors, those that training renews
  int64_t n_buffers;
  double* kept;                // (n_lanes, 3, R), offset and two moments
  double* value;               // (n_lanes, R)
  double* record;              // (n_lanes, M + 1, R), values after so many moves
  double* sums;                // (n_lanes, R), of derivatives
  double* counts;              // (n_lanes, R), of how many
  int64_t* bad;                // (n_lanes, R), the first update whose derivative was not finite
};

// Weight decay of the update that follows tick t is what it has moved to.
template <typename T>
void write_decay(const Job<T>& job, int64_t l, int64_t t) {
  const Moves<T>& m = *job.moves;
  const int64_t G = job.n_groups, at = l * job.n_ticks + t;
  const double value = m.value[l * m.n + DECAY_];
  T* row = job.table + at * job.n_coefficients;
  for (int64_t g = 0; g < G; ++g) {
    if (!m.aimed[l * G + g]) continue;
    if (m.apart[l])
      row[COEFFICIENT_DECAY * G + g] = T(1.0 - m.rate[at * G + g] * value);
    else
      row[COEFFICIENT_L2 * G + g] = T(value);
  }
}

// How far to go from a point along a direction and back for a central difference, given the lengths of both.
template <typename T>
T nudge(double point, double along) {
  const double length = point > 0 ? point : 1.0;
  return along > 0 ? T(std::cbrt(double(std::numeric_limits<T>::epsilon())) * length / along) : T(0);
}

// Numbers of lane l move after the update of tick t, which began at the room's first row and saw the gradient in row[4]. The room has
// seven rows, R derivatives, what a pass gives of them, and a copy of the buffers (compiled/_moves.py).
template <typename T, int N_STATE, int N_DATA, int N_PARTS>
struct Mover {
  const Job<T>& job;
  const Pass<T>* passes;  // training, the hyper-validation gradient, derivatives in numbers
  const int64_t l, t;
  char* const* in;
  T* const* row;
  char* kept;
  char* scratch;
  const Moves<T>& m = *job.moves;
  const int64_t lane = job.lanes[l], P = job.row_size;
  T* const start = (T*)job.room;
  T* const v = start + P;
  T* const w = v + P;
  T* const point = w + P;
  T* const term = point + P;
  T* const total = term + P;
  T* const curved = total + P;
  double* const out = (double*)(curved + P);
  const T** const slopes = (const T**)(out + m.n);
  char* const buffers = (char*)(slopes + m.n);

  // each(i) for every element of every parameter, which are added up.
  template <typename Each>
  double sum(Each each) const {
    double out = 0.0;
    for (int64_t k = 0; k < N_PARTS; ++k) {
      const int64_t first = job.offsets[k], last = first + job.sizes[k];
#pragma omp simd reduction(+ : out)
      for (int64_t i = first; i < last; ++i) out += double(each(i));
    }
    return out;
  }

  double dot(const T* a, const T* b) const {
    return sum([=](int64_t i) { return a[i] * b[i]; });
  }

  // One pass with the parameters at `at`; what it gives is where `parts` point.
  void run(const Pass<T>& pass, const T* at, char* const* data, const int64_t* index, const T* weights, const int32_t* keys, bool tail,
           bool renews, const T** parts) const {
    char* given[N_STATE + N_DATA + 3];
    for (int64_t i = 0; i < N_STATE; ++i) given[i] = i < N_PARTS ? (char*)(at + job.offsets[i]) : in[i];
    char* to = buffers;
    for (int64_t i = m.first_buffer; renews && i < m.first_buffer + m.n_buffers; to += job.strides[i++]) {
      std::memcpy(to, in[i], job.strides[i]);
      given[i] = to;
    }
    for (int i = 0; i < N_DATA; ++i) given[N_STATE + i] = data[i];
    given[N_STATE + N_DATA] = (char*)index;
    given[N_STATE + N_DATA + 1] = (char*)weights;
    given[N_STATE + N_DATA + 2] = (char*)keys;
    T loss;
    (tail ? pass.tail_setup : pass.setup)(job, given, kept);
    (tail ? pass.tail_tick : pass.tick)(job, given, kept, scratch, &loss, parts);
  }

  // The same on the ticks of the batch that is full at tick t, the latest first; take() follows each.
  template <typename Take>
  void of_batch(const Pass<T>& pass, const T* at, bool renews, const T** parts, Take take) const {
    for (int64_t s = t;; --s) {
      const int64_t slots = (s * job.width + lane) * job.slots;
      run(pass, at, in + N_STATE, job.index + slots, job.weights + slots, job.keys + slots, s == job.tail, renews, parts);
      take();
      if (!job.goes_on[s * job.width + lane]) return;
    }
  }

  // v becomes the hyper-validation gradient of move k.
  void held_out(int64_t k) const {
    const T* parts[N_PARTS + 1];
    const int64_t slots = (l * m.n_moves + k) * m.slots;
    run(passes[1], row[0], m.data, m.index + slots, m.weights + slots, m.keys + slots, false, false, parts);
    for (int64_t i = 0; i < N_PARTS; ++i) std::memcpy(v + job.offsets[i], parts[i], job.sizes[i] * sizeof(T));
  }

  // w becomes -scale * sum over k of (1 - scale H)^k v, with H the training loss's Hessian, weight decay included.
  void neumann() const {
    const T scale = T(m.scale[l]);
    const T* parts[N_PARTS + 1];
    std::memcpy(term, v, P * sizeof(T));
    std::memcpy(total, v, P * sizeof(T));
    for (int64_t n = 0; n < m.terms[l]; ++n) {
      const T far = nudge<T>(std::sqrt(dot(row[0], row[0])), std::sqrt(dot(term, term)));
      std::memset(curved, 0, P * sizeof(T));
      for (const T sign : {T(1), T(-1)}) {
        if (!(far > T(0))) break;
        move_along(row[0], term, sign * far);
        of_batch(passes[0], point, true, parts, [&] {
          for (int64_t k = 0; k < N_PARTS; ++k)
            for (int64_t i = 0; i < job.sizes[k]; ++i) curved[job.offsets[k] + i] += sign / (2 * far) * parts[k][i];
        });
      }
      for (int64_t k = 0; k < N_PARTS; ++k) {
        const T fixed = m.fixed[l * N_PARTS + k];
        const T decay = fixed != T(0) && m.on[l * m.n + DECAY_] ? T(m.value[l * m.n + DECAY_]) : fixed;
        for (int64_t i = job.offsets[k]; i < job.offsets[k] + job.sizes[k]; ++i) {
          term[i] -= scale * (curved[i] + decay * term[i]);
          total[i] += term[i];
        }
      }
    }
    for (int64_t i = 0; i < P; ++i) w[i] = -scale * total[i];
  }

  // point = from + far * along
  void move_along(const T* __restrict from, const T* __restrict along, T far) const {
    T* __restrict to = point;
    for (int64_t i = 0; i < P; ++i) to[i] = from[i] + far * along[i];
  }

  // out (R) becomes the derivative of the hyper-validation loss in every number that moves.
  void derivative(int64_t k) const {
    held_out(k);
    const int64_t G = job.n_groups, at = l * job.n_ticks + t, none = 0;
    T ones[N_PARTS], rates[N_PARTS];
    for (int64_t g = 0; g < G; ++g) ones[g] = T(1), rates[g] = m.apart[l] ? T(m.rate[at * G + g]) : T(0);
    double sums[5];
    job.kernels->through(1, &none, job.family + l, P, G, N_PARTS, job.offsets, job.sizes, start, row[0], row[1], row[2], row[4], v, w,
                         job.table + at * job.n_coefficients, ones, rates, m.decayed + l * N_PARTS, sums);
    out[L1_] = sums[0], out[DECAY_] = sums[1], out[LR_] = sums[2] / m.base[l * m.n + LR_];
    const T* from = start;
    if (m.terms[l] > 0) {
      neumann();
      from = row[0];
      sums[3] = dot(w, w), sums[4] = dot(from, from);
      out[L1_] = sum([=](int64_t i) { return w[i] * T((T(0) < from[i]) - (from[i] < T(0))); });
      out[DECAY_] = 0.0;
      for (int64_t j = 0; j < N_PARTS; ++j)
        for (int64_t i = job.offsets[j]; m.fixed[l * N_PARTS + j] != T(0) && i < job.offsets[j] + job.sizes[j]; ++i)
          out[DECAY_] += double(w[i] * from[i]);
    }
    in_numbers(from, std::sqrt(sums[4]), std::sqrt(sums[3]));
  }

  // Those in numbers of loss and model: the derivative along w of the training loss's derivative in each, as a central difference.
  void in_numbers(const T* from, double length, double along) const {
    const T far = nudge<T>(length, along);
    const int64_t* place = m.place;
    for (int64_t p = 0; p < m.n_passes; place += m.given[p++]) {
      bool wanted = false;
      for (int64_t j = 0; j < m.given[p]; ++j) wanted |= m.on[l * m.n + place[j]] != 0;
      if (!wanted) continue;
      if (!std::isfinite(along) || !std::isfinite(length)) {
        for (int64_t j = 0; j < m.given[p]; ++j) out[place[j]] = NAN;
        continue;
      }
      for (const T sign : {T(1), T(-1)}) {
        if (!(far > T(0))) break;
        const double share = double(sign / (2 * far));
        move_along(from, w, sign * far);
        of_batch(passes[2 + p], point, false, slopes, [&] {
          for (int64_t j = 0; j < m.given[p]; ++j) out[place[j]] += share * double(slopes[j][0]);
        });
      }
    }
  }

  // Move what moves, and say whether a tensor of the lane has changed.
  bool operator()(int64_t k) const {
    constexpr double BETA1 = 0.9, BETA2 = 0.99;
    std::fill(out, out + m.n, 0.0);
    derivative(k);
    const int64_t update = m.update[l * m.n_moves + k];
    const double count = double(update / m.every[l] > 1 ? update / m.every[l] : 1);
    bool changed = false;
    for (int64_t r = 0; r < m.n; ++r) {
      const int64_t at = l * m.n + r;
      double* const held = m.kept + (l * 3) * m.n + r;
      double& offset = held[0];
      double& first = held[m.n];
      double& second = held[2 * m.n];
      double& value = m.value[at];
      if (m.on[at]) {
        const bool finite = std::isfinite(out[r]), logarithmic = m.logarithmic[r] != 0;
        m.sums[at] += out[r], m.counts[at] += 1.0;
        if (!finite && m.bad[at] == 0) m.bad[at] = update;
        const double slope = finite ? logarithmic ? out[r] * value : out[r] : 0.0;
        const double step = update <= m.warmup[at] ? 0.0 : m.step[at], base = m.base[at];
        first = BETA1 * first + (1 - BETA1) * slope;
        second = BETA2 * second + (1 - BETA2) * slope * slope;
        const double size = std::sqrt(second / (1 - std::pow(BETA2, count)));
        if (step > 0) {
          offset -= step * (size > 0 ? first / (1 - std::pow(BETA1, count)) / size : 0.0);
          const double moved = logarithmic ? base * std::exp(offset) : base + offset;
          value = moved < m.low[at] ? m.low[at] : (moved > m.high[at] ? m.high[at] : moved);
        }
        offset = logarithmic ? std::log(value / base) : value - base;
        if (r == L1_ && job.shaping != nullptr) job.shaping[l * 5] = T(value);
        if (m.input[r] >= 0) {
          char* const to = in[m.input[r]];
          if (m.item[r] == 4)
            *(float*)to = float(value);
          else
            *(double*)to = value;
          changed = true;
        }
      }
      m.record[(l * (m.n_moves + 1) + k + 1) * m.n + r] = value;
    }
    return changed;
  }
};

}  // namespace shoal
