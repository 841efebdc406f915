// The loop over lanes and ticks of a compiled epoch. Glossary: as in lane.h.

#pragma once

#include "lane.h"
#include "moves.h"

namespace shoal {

// N_STATE tensors of a lane and N_DATA of the data, then a tick's slots: samples, weights, keys. The first of the passes trains; a
// program with more of them has what numbers need that MOVE. Every pass keeps what is its own for an epoch in `kept`.
template <typename T, int N_STATE, int N_DATA, int N_PARTS, bool MOVE>
void epoch(const Job<T>& job, const Pass<T>* passes, char* kept, char* tail_kept, char* other_kept, char* scratch) {
  char* in[N_STATE + N_DATA + 3];
  const T* parts[N_PARTS + 1];
  const Pass<T>& train = passes[0];
  for (int64_t l = 0; l < job.n_lanes; ++l) {
    const int64_t lane = job.lanes[l];
    for (int i = 0; i < N_STATE + N_DATA; ++i) in[i] = job.inputs[i] + lane * job.strides[i];
    const auto set_up = [&] {
      train.setup(job, in, kept);
      if (job.tail >= 0) train.tail_setup(job, in, tail_kept);
    };
    set_up();
    const int64_t P = job.row_size;
    T* row[5];
    for (int i = 0; i < 5; ++i) row[i] = job.rows[i] + lane * P;
    for (int64_t t = 0; t < job.ticks[l]; ++t) {
      const int64_t at = t * job.width + lane;
      in[N_STATE + N_DATA] = (char*)(job.index + at * job.slots);
      in[N_STATE + N_DATA + 1] = (char*)(job.weights + at * job.slots);
      in[N_STATE + N_DATA + 2] = (char*)(job.keys + at * job.slots);
      if (t == job.tail)
        train.tail_tick(job, in, tail_kept, scratch, job.losses + at, parts);
      else
        train.tick(job, in, kept, scratch, job.losses + at, parts);
      const T* const* given = parts;
      const uint8_t* goes_on = job.goes_on + at;
      const bool moves = job.rates != nullptr && job.rates->rule[l] != 0, measured = job.measured != nullptr && job.measured[at];
      int64_t move = -1;  // that follows the update, of numbers
      if constexpr (MOVE) {
        if (job.moves != nullptr) move = job.moves->move[l * job.n_ticks + t];
        if (job.moves != nullptr && job.due[at]) write_decay(job, l, t);
      }
      T* const u = moves ? job.rates->update + lane * P : nullptr;
      const auto of_tick = [&](int64_t k) { return parts[k]; };
      const auto of_batch = [&](int64_t k) { return row[4] + job.offsets[k]; };
      if (measured) job.squares[2 * at] = squared_norm<T>(N_PARTS, job.sizes, of_tick);
      if (moves && job.due[at] && job.shaping == nullptr && !*goes_on)
        move_rates<N_PARTS>(job, l, t, row[0], u, of_tick);
      else if (job.shaping != nullptr || measured || move >= 0 || (moves && job.due[at])) {
        // The parts are added up first; a batch that is whole is then looked at and shaped where it lies.
        job.kernels->advance(-1, 1, P, 1, 0, N_PARTS, job.offsets, job.sizes, nullptr, nullptr, nullptr, nullptr, row[4], nullptr,
                             nullptr, parts, goes_on);
        if (measured) job.squares[2 * at + 1] = squared_norm<T>(N_PARTS, job.sizes, of_batch);
        if (moves && job.due[at]) move_rates<N_PARTS>(job, l, t, row[0], u, of_batch);
        if (job.due[at] && job.shaping != nullptr) shape(N_PARTS, job.offsets, job.sizes, row[0], row[4], job.shaping + l * 5);
        given = nullptr;
        goes_on = nullptr;
      }
      if (move >= 0) std::memcpy(job.room, row[0], P * sizeof(T));
      job.kernels->advance(job.family[l], 1, P, job.n_groups, 0, N_PARTS, job.offsets, job.sizes, moves ? u : row[0], row[1],
                           row[2], row[3], row[4], job.table + (l * job.n_ticks + t) * job.n_coefficients, job.due + at, given, goes_on);
      if (moves && job.due[at]) take_share(job, l, t, N_PARTS, row[0], u);
      if (job.shaping != nullptr && job.due[at] && !std::isinf(job.shaping[l * 5 + 4]))
        shorten(N_PARTS, job.offsets, job.sizes, job.lengths, row[0], job.shaping[l * 5 + 4]);
      if constexpr (MOVE) {
        if (move >= 0 && Mover<T, N_STATE, N_DATA, N_PARTS>{job, passes, l, t, in, row, other_kept, scratch}(move)) set_up();
      }
    }
  }
}

}  // namespace shoal
