// The certified lookup: a matrix product that hardly writes its result.
//
// ROWS rows of features are centred and laid side by side in the lanes of vector registers (a panel, channel by
// channel); the codes are broadcast, CODES at a time (a tile).  When the products of a tile are complete, each lane
// compares them with its own best and second best, so that no reduction across lanes is ever needed.  The scores of
// the last thousand codes stay in the cache, for the rows that need a second look; with few channels storing them costs
// more than computing them again for the few panels that hold such a row.
//
// Scores are compared by certified lower bounds.  With x' = fl(x - mu), c' = fl(c - mu) and u = 2^-24,
//
//     score(k) = |c'|^2 / 2 - <x', c'>        |computed - exact| <= radius(k) = offset(k) + <reach, slope(k)>
//
//   Single: reach = |x'| and slope = 1.1 (C + 8) u |c'|, for the rounding of both operands (2u) and of C chained
//           multiply-adds.
//   Paired: the operands are rounded to bfloat16, x' = xb + xr and c' = cb + cr, and multiplied two channels at a time.
//           What that loses is measured, not estimated: reach = (|x'|, |xr|) and slope = (1.01 |cr| + accumulation,
//           |c'|).  Each instruction does two channels, which pays wherever codes are not crowded within a few
//           thousandths of their norm.
//
// The offset covers the rounding of |c'|^2 / 2, of the last subtraction, and underflow.  The reach enters the product
// as one more channel, or pair, so that the lanes hold bounds rather than scores: value = -(score - radius).  A row is
// certified when its second best value lies below best - 2 radius.  For the others, every code whose value reaches
// that ceiling is compared by direct differences: in float32 first, whose relative error is (C + 4) u since nothing
// cancels, and in float64, summed in channel order, where float32 cannot decide.
#pragma once

#include <memory>
#include <unordered_map>

#include "finish.h"
#include "panels.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512BF16__)
constexpr bool PAIRED_AVAILABLE = true;
#else
constexpr bool PAIRED_AVAILABLE = false;
#endif

constexpr float LARGE = 1e36f;  // squared norms above it could overflow a score: such rows and codes are never certified
constexpr int64_t CHUNK_TILES = (1024 + CODES - 1) / CODES;  // scores kept of each row
constexpr int64_t WORKING_BYTES = 448 << 10;  // panels and scores of one thread leave room in the second-level cache

// From how much work on pairs pay, although crowded codes are then packed a second time without them; and from how many
// channels on scores are kept rather than computed again.
constexpr int64_t PAIRED_WORK = 1 << 15;  // codes times channels
constexpr int64_t KEEPING_CHANNELS = 64;

// Bits of a bfloat16, to nearest or, for positive bounds, never down.
inline uint32_t half_bits(float value) {
  BFloat16 rounded;
  narrow(value, rounded);
  return rounded.bits;
}
inline float half_value(uint32_t bits) { return wide(BFloat16{static_cast<uint16_t>(bits)}); }
inline float round_up(float value) {
  uint32_t bits = half_bits(value);
  return half_value(half_value(bits) < value ? bits + 1 : bits);
}
inline float pair_of(uint32_t first, uint32_t second) {
  uint32_t both = first | second << 16;
  float word;
  std::memcpy(&word, &both, 4);
  return word;
}

// Words (floats, or pairs of bfloat16) of a row or code, reach included.
inline int64_t depth_of(int64_t channels, bool paired) { return paired ? (channels + 1) / 2 + 1 : channels + 1; }

// The dictionary as the product wants it: tiles of CODES codes, word by word.
struct Codes {
  int64_t count, channels, depth, tiles;
  std::vector<float> storage, bias, offset, slope[2];
  float* packed;

  Codes(const float* codebook, int64_t count, int64_t channels, const float* center, bool paired, int threads)
      : count(count), channels(channels), depth(depth_of(channels, paired)), tiles((count + CODES - 1) / CODES) {
    packed = aligned(storage, tiles * CODES * depth + LANES);
    std::fill(packed, packed + tiles * CODES * depth, 0.0f);
    bias.assign(tiles * CODES, INF);  // a code of infinite bias never wins: padding, NaN, and repeated codes
    offset.assign(tiles * CODES, 0);
    slope[0].assign(tiles * CODES, 0);
    slope[1].assign(tiles * CODES, 0);
    std::vector<uint64_t> hashes(count);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t k = 0; k < count; k++) hashes[k] = pack(codebook + k * channels, k, center, paired);
    // Of equal codes only the first can win, and leaving the others out keeps the rows near them certified.
    std::unordered_multimap<uint64_t, int64_t> seen;
    seen.reserve(count);
    for (int64_t k = 0; k < count; k++) {
      if (bias[k] == INF) continue;
      auto range = seen.equal_range(hashes[k]);
      for (auto at = range.first; at != range.second; ++at) {
        const float *code = codebook + k * channels, *earlier = codebook + at->second * channels;
        if (std::equal(code, code + channels, earlier)) bias[k] = INF;
      }
      if (bias[k] != INF) seen.emplace(hashes[k], k);
    }
  }

  // Pack one code and set its bounds; returns a hash of its values.
  uint64_t pack(const float* code, int64_t k, const float* center, bool paired) {
    const double unit = std::ldexp(1.0, -24), smallest = std::ldexp(1.0, -126) * (channels + 8);
    float* column = packed + k / CODES * CODES * depth + k % CODES;
    double squares = 0, lost = 0;
    bool finite = true;
    uint64_t hash = 14695981039346656037ull;
    for (int64_t c = 0; c < channels; c++) {
      // The shift in double: what float32 would round here, the bounds would have to cover.
      double value = static_cast<double>(code[c]) - static_cast<double>(center[c]);
      finite = finite && std::isfinite(code[c]);
      squares += value * value;
      uint32_t half = half_bits(static_cast<float>(value));
      double remainder = value - half_value(half);
      lost += remainder * remainder;
      if (!paired)
        column[c * CODES] = static_cast<float>(value);
      else {
        uint32_t other;
        std::memcpy(&other, &column[c / 2 * CODES], 4);
        column[c / 2 * CODES] = c % 2 ? pair_of(other, half) : pair_of(half, 0);
      }
      float plain = code[c] + 0.0f;  // -0 and +0 are the same code
      uint32_t bits;
      std::memcpy(&bits, &plain, 4);
      hash = (hash ^ bits) * 1099511628211ull;
    }
    if (!finite || !(squares <= LARGE)) {
      for (int64_t word = 0; word < depth; word++) column[word * CODES] = 0;
      if (finite) bias[k] = -INF, offset[k] = INF;  // always the best bound, and never certain
      return hash;
    }
    // The bias is a lower bound of |c'|^2 / 2, and the slope rides as one more channel against the reach of the row:
    // together the product yields <x', c'> + <reach, slope> - bias = -(score - radius).
    const double half = squares / 2, norm = std::sqrt(squares);
    offset[k] = static_cast<float>(8 * unit * half + smallest * (1 + norm));
    bias[k] = static_cast<float>(half - offset[k]);
    if (!paired) {
      slope[0][k] = static_cast<float>(1.1 * (channels + 8) * unit * norm + smallest);
      column[channels * CODES] = slope[0][k];
    } else {
      slope[0][k] = round_up(static_cast<float>(2.2 * (channels + 16) * unit * norm + 1.01 * std::sqrt(lost) + smallest));
      slope[1][k] = round_up(static_cast<float>(norm * 1.0001 + smallest));
      column[(depth - 1) * CODES] = pair_of(half_bits(slope[0][k]), half_bits(slope[1][k]));
    }
    return hash;
  }
};

struct Best {
  Floats value[2], second[2];  // larger is nearer
  Ints index[2];
};

template <bool PAIRED>
inline void multiply_add(Floats& sum, Floats row, float code) {
#if defined(__AVX512BF16__)
  if constexpr (PAIRED) {
    sum = _mm512_dpbf16_ps(sum, (__m512bh)row, (__m512bh)_mm512_set1_ps(code));
    return;
  }
#endif
  sum += row * code;
}

// Let the first COUNT codes of one tile compete for each lane of a panel.  Strictly better wins: ties keep the lowest.
// KEEP also writes the values.
template <bool PAIRED, bool KEEP, int COUNT>
void compete(const float* panel, const float* tile, int64_t depth, const float* bias, int32_t first, Best& best,
                    Floats* scores) {
  Floats sum[2][COUNT] = {};
  for (int64_t word = 0; word < depth; word++) {
    Floats low, high;
    std::memcpy(&low, panel + word * ROWS, sizeof low);
    std::memcpy(&high, panel + word * ROWS + LANES, sizeof high);
#pragma GCC unroll 12
    for (int j = 0; j < COUNT; j++) {
      multiply_add<PAIRED>(sum[0][j], low, tile[word * CODES + j]);
      multiply_add<PAIRED>(sum[1][j], high, tile[word * CODES + j]);
    }
  }
#pragma GCC unroll 12
  for (int j = 0; j < COUNT; j++) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      // The loser of best and value is what may be second: three selections for both places, without a branch.
      Floats value = sum[half][j] - bias[j];
      Ints better = value > best.value[half];
      Floats loser = better ? best.value[half] : value;
      best.second[half] = loser > best.second[half] ? loser : best.second[half];
      best.value[half] = better ? value : best.value[half];
      best.index[half] = better ? Ints{} + (first + j) : best.index[half];
      if (KEEP) scores[2 * j + half] = value;
    }
  }
}

// Which lanes do not lie below their ceiling, as bits.  An unordered value counts as not below.
inline uint32_t reaching(Floats value, Floats ceiling) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)value, (__m512)ceiling, _CMP_NLT_UQ);
#else
  Ints below = value < ceiling;
  uint32_t bits = 0;
  for (int lane = 0; lane < LANES; lane++) bits |= static_cast<uint32_t>(below[lane] == 0) << lane;
  return bits;
#endif
}

#if defined(__clang__)
#define NO_CONTRACTION
#else
#define NO_CONTRACTION __attribute__((noinline, optimize("fp-contract=off")))
#endif

// Float64 direct differences of one row with up to eight codes, each summed in channel order.
NO_CONTRACTION void direct_distances(const double* row, const float* const* codes, int64_t channels, double* totals) {
#if defined(__clang__)
#pragma clang fp contract(off)
#endif
  double sum[8] = {};
  for (int64_t c = 0; c < channels; c++)
    for (int j = 0; j < 8; j++) {
      double difference = row[c] - static_cast<double>(codes[j][c]);
      double square = difference * difference;
      sum[j] += square;
    }
  std::copy(sum, sum + 8, totals);
}

// In float32, in any order: the caller allows for (C + 4) u of it.
inline float direct_distance(const float* row, const float* code, int64_t channels) {
  float lanes[16] = {};
  const int64_t whole = channels / 16 * 16;
  for (int64_t c = 0; c < whole; c += 16)
    for (int j = 0; j < 16; j++) lanes[j] += (row[c + j] - code[c + j]) * (row[c + j] - code[c + j]);
  for (int64_t c = whole; c < channels; c++) lanes[c - whole] += (row[c] - code[c]) * (row[c] - code[c]);
  float total = 0;
  for (int j = 0; j < 16; j++) total += lanes[j];
  return total;
}

struct Candidate {
  int32_t code;
  float value;
};

// A panel on its way through the codes.
struct Panel {
  std::vector<float> storage, score_storage;
  float* words;
  Floats* scores;
  int64_t first;
  int count;
  int32_t state[ROWS];   // negative: left alone
  bool forced[ROWS];     // finite, but too large for a float32 score
  float reach[2][ROWS];
  Best best;
  float ceiling[ROWS];   // no code of a lower value can be nearest
  std::vector<Candidate> candidates[ROWS];
};

// What one thread works with.
struct Scratch {
  std::unique_ptr<Panel[]> panels;
  std::vector<float> storage;
  float* centred;  // one panel in float32
  std::vector<float> row;
  std::vector<double> wide_row;
  int64_t compared = 0;
};

template <class T, bool PAIRED, bool KEEP>
struct Lookup {
  const T* x;
  Shape shape;
  Strides strides;
  const float* codebook;
  const float* center;
  const uint8_t* mask;
  const Codes& codes;
  bool exact;
  int32_t* indices;
  const Finish<T>& finish;

  int64_t chunk_tiles() const { return std::min(codes.tiles, CHUNK_TILES); }
  int64_t panels() const { return (shape.rows() + ROWS - 1) / ROWS; }
  int64_t panels_at_once() const {
    const int64_t bytes = (codes.depth + (KEEP ? chunk_tiles() * CODES : 0)) * ROWS * 4;
    return std::max<int64_t>(1, std::min<int64_t>(8, WORKING_BYTES / bytes));
  }
  int64_t groups() const { return (panels() + panels_at_once() - 1) / panels_at_once(); }

  void prepare(Scratch& scratch) const {
    scratch.panels.reset(new Panel[panels_at_once()]);
    for (int64_t i = 0; i < panels_at_once(); i++) {
      Panel& panel = scratch.panels[i];
      panel.words = aligned(panel.storage, codes.depth * ROWS);
      panel.scores = reinterpret_cast<Floats*>(aligned(panel.score_storage, chunk_tiles() * CODES * ROWS));
    }
    scratch.centred = aligned(scratch.storage, (shape.channels + 1) * ROWS);
    scratch.row.resize(shape.channels);
    scratch.wide_row.resize(shape.channels);
  }

  const T* row_start(int64_t n) const {
    int64_t q = n % shape.width, p = n / shape.width % shape.height, b = n / shape.positions();
    return x + b * strides.batch + p * strides.height + q * strides.width;
  }

  bool is_finite(int64_t n) const {
    const T* row = row_start(n);
    for (int64_t c = 0; c < shape.channels; c++)
      if (!std::isfinite(wide(row[c * strides.channel]))) return false;
    return true;
  }

  // Lay the centred rows of a panel side by side in float32, with a channel of zeros behind the last.
  void centre(float* centred, int64_t first, int count) const {
    RowOffsets rows(shape, strides, first, count);
    const int64_t channels = shape.channels;
    auto element = [&](const T* from, int64_t c) {
      return static_cast<float>(wide(*from) - static_cast<Wide<T>>(center[c]));
    };
    if (rows.adjacent)
      for (int64_t c = 0; c < channels; c++) {
        const T* from = x + rows.at[0] + c * strides.channel;
        prefetch(from, strides.channel);
        for (int r = 0; r < ROWS; r++) centred[c * ROWS + r] = element(from + r, c);
      }
    else if (strides.channel == 1)
      lay_rows(channels, centred, [&](int r, int64_t c) { return element(x + rows.at[r] + c, c); });
    else
      for (int r = 0; r < ROWS; r++)
        for (int64_t c = 0; c < channels; c++)
          centred[c * ROWS + r] = element(x + rows.at[r] + c * strides.channel, c);
    std::fill(centred + channels * ROWS, centred + (channels + 1) * ROWS, 0.0f);
  }

  void start(Panel& panel, Scratch& scratch, int64_t number) const {
    const int64_t channels = shape.channels;
    panel.first = number * ROWS;
    panel.count = static_cast<int>(std::min<int64_t>(ROWS, shape.rows() - panel.first));
    float* centred = PAIRED ? scratch.centred : panel.words;
    centre(centred, panel.first, panel.count);
    float squares[ROWS] = {}, lost[ROWS] = {};
    for (int64_t c = 0; c < channels; c++)
      for (int r = 0; r < ROWS; r++) squares[r] += centred[c * ROWS + r] * centred[c * ROWS + r];
    if constexpr (PAIRED)
      for (int64_t c = 0; c < channels; c += 2)
        for (int r = 0; r < ROWS; r++) {
          float even = centred[c * ROWS + r], odd = centred[(c + 1) * ROWS + r];
          uint32_t first = nearest_half(even), second = nearest_half(odd);
          float even_rest = even - half_value(first), odd_rest = odd - half_value(second);
          lost[r] += even_rest * even_rest + odd_rest * odd_rest;
          panel.words[c / 2 * ROWS + r] = pair_of(first, second);
        }
    for (int r = 0; r < ROWS; r++) {
      // The factor covers the rounding of the norms themselves, which is below 1e-4 for fewer than 1600 channels.
      const float slack = 1.0001f + 6e-8f * channels;
      panel.reach[0][r] = std::sqrt(squares[r]) * slack;
      panel.reach[1][r] = std::sqrt(lost[r]) * slack;
      panel.state[r] = 0;
      panel.forced[r] = false;
      if (r < panel.count) {
        if (mask && !mask[panel.first + r])
          panel.state[r] = MASKED_ROW;
        else if (!(squares[r] <= LARGE)) {
          panel.forced[r] = is_finite(panel.first + r);
          if (!panel.forced[r]) panel.state[r] = NONFINITE_ROW;
        }
      }
      if (PAIRED) {
        panel.reach[0][r] = round_up(panel.reach[0][r]);
        panel.reach[1][r] = round_up(panel.reach[1][r]);
        panel.words[(codes.depth - 1) * ROWS + r] =
            pair_of(half_bits(panel.reach[0][r]), half_bits(panel.reach[1][r]));
      } else {
        panel.words[(codes.depth - 1) * ROWS + r] = panel.reach[0][r];
      }
      panel.ceiling[r] = -INF;
      panel.candidates[r].clear();
    }
    for (int half = 0; half < 2; half++) {
      panel.best.value[half] = Floats{} - INF;
      panel.best.second[half] = Floats{} - INF;
      panel.best.index[half] = Ints{} + NONFINITE_ROW;
    }
  }

  // To nearest, ties to even, without a branch for NaN: rows that hold one are left alone anyway.
  static uint32_t nearest_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  }

  template <bool WRITE>
  void score_tile(Panel& panel, int64_t tile, int64_t first_tile, Best& best) const {
    const int64_t left = codes.count - tile * CODES;  // the last tile may be narrow: do not multiply its padding
    const auto step = left <= CODES / 3       ? compete<PAIRED, WRITE, CODES / 3>
                      : left <= 2 * CODES / 3 ? compete<PAIRED, WRITE, 2 * CODES / 3>
                                              : compete<PAIRED, WRITE, CODES>;
    step(panel.words, codes.packed + tile * CODES * codes.depth, codes.depth, codes.bias.data() + tile * CODES,
         static_cast<int32_t>(tile * CODES), best, panel.scores + (tile - first_tile) * CODES * 2);
  }

  // After a chunk of codes: raise the ceilings, and note the codes that reach them.
  void collect(Panel& panel, int64_t first_tile, int64_t last_tile) const {
    const bool only_chunk = codes.tiles <= CHUNK_TILES;
    bool settled = true;
    for (int r = 0; r < panel.count; r++) {
      const int32_t index = panel.best.index[r / LANES][r % LANES];
      if (index < 0 || panel.state[r] < 0 || panel.forced[r]) continue;
      // The best value is -(score - radius) of its code, so -(value) + 2 radius bounds the score of that code, and thus
      // of the nearest, from above.  A code whose lower bound lies above that, value below the ceiling, is out.
      const double radius = static_cast<double>(codes.offset[index]) +
                            static_cast<double>(codes.slope[0][index]) * panel.reach[0][r] +
                            static_cast<double>(codes.slope[1][index]) * panel.reach[1][r];
      const double ceiling = static_cast<double>(panel.best.value[r / LANES][r % LANES]) - 2 * radius;
      // A code too large to be scored has an infinite value and radius: no ceiling follows, and all codes reach it.
      if (std::isfinite(ceiling))
        panel.ceiling[r] = std::max(panel.ceiling[r], std::nextafter(static_cast<float>(ceiling), -INF));
      settled = settled && panel.best.second[r / LANES][r % LANES] < panel.ceiling[r];
    }
    if (only_chunk && settled) return;
    if (!KEEP) {
      Best again = panel.best;  // a copy, as the same codes compete a second time
      for (int64_t tile = first_tile; tile < last_tile; tile++) score_tile<true>(panel, tile, first_tile, again);
    }
    Floats ceiling[2];
    std::memcpy(ceiling, panel.ceiling, sizeof ceiling);
    for (int64_t k = first_tile * CODES; k < std::min(codes.count, last_tile * CODES); k++) {
      if (codes.bias[k] == INF) continue;
      const Floats* scores = panel.scores + 2 * (k - first_tile * CODES);
      uint32_t lanes[2] = {reaching(scores[0], ceiling[0]), reaching(scores[1], ceiling[1])};
      for (int half = 0; half < 2; half++)
        for (; lanes[half]; lanes[half] &= lanes[half] - 1) {
          const int lane = __builtin_ctz(lanes[half]);
          panel.candidates[half * LANES + lane].push_back({static_cast<int32_t>(k), scores[half][lane]});
        }
    }
  }

  // The index of a row whose bounds overlap.
  int32_t settle(Scratch& scratch, Panel& panel, int r) const {
    const int64_t channels = shape.channels;
    const T* from = row_start(panel.first + r);
    auto& candidates = panel.candidates[r];
    if (panel.forced[r]) {
      candidates.clear();
      for (int64_t k = 0; k < codes.count; k++)
        if (codes.bias[k] != INF) candidates.push_back({static_cast<int32_t>(k), 0});
    } else {
      const float ceiling = panel.ceiling[r];
      auto low = [ceiling](const Candidate& candidate) { return candidate.value < ceiling; };
      candidates.erase(std::remove_if(candidates.begin(), candidates.end(), low), candidates.end());
    }
    scratch.compared += candidates.size();
    if (!std::is_same<T, double>::value && !panel.forced[r] && candidates.size() > 1) {
      for (int64_t c = 0; c < channels; c++) scratch.row[c] = static_cast<float>(wide(from[c * strides.channel]));
      float nearest = INF;
      for (auto& candidate : candidates) {
        candidate.value = direct_distance(scratch.row.data(), codebook + candidate.code * channels, channels);
        nearest = std::min(nearest, candidate.value);
      }
      // Without `exact` the nearest in float32 is the answer, and no second code is kept beside it.
      const float relative = exact ? (channels + 4) * 1.2e-7f : 0, absolute = exact ? channels * 1.2e-38f : 0;
      const float reached = nearest * (1 + relative) + absolute;
      auto high = [=](const Candidate& candidate) { return candidate.value * (1 - relative) - absolute > reached; };
      candidates.erase(std::remove_if(candidates.begin(), candidates.end(), high), candidates.end());
    }
    if (candidates.size() == 1 || (!exact && !candidates.empty())) return candidates[0].code;
    // In ascending order of codes and strictly nearer: the lowest code wins a tie.
    for (int64_t c = 0; c < channels; c++) scratch.wide_row[c] = static_cast<double>(wide(from[c * strides.channel]));
    double nearest = 0;
    int32_t winner = NONFINITE_ROW;
    for (size_t start = 0; start < candidates.size(); start += 8) {
      const float* group[8];
      double totals[8];
      const size_t size = std::min<size_t>(8, candidates.size() - start);
      for (size_t j = 0; j < 8; j++) group[j] = codebook + candidates[start + std::min(j, size - 1)].code * channels;
      direct_distances(scratch.wide_row.data(), group, channels, totals);
      for (size_t j = 0; j < size; j++)
        if (winner < 0 || totals[j] < nearest) nearest = totals[j], winner = candidates[start + j].code;
    }
    return winner;
  }

  // Look up some panels together, so that they share one pass over the codes.
  void group(Scratch& scratch, int64_t number) const {
    const int64_t first = number * panels_at_once(), last = std::min(panels(), first + panels_at_once());
    for (int64_t i = first; i < last; i++) start(scratch.panels[i - first], scratch, i);
    for (int64_t chunk = 0; chunk < codes.tiles; chunk += CHUNK_TILES) {
      const int64_t end = std::min(codes.tiles, chunk + CHUNK_TILES);
      for (int64_t tile = chunk; tile < end; tile++)
        for (int64_t i = 0; i < last - first; i++)
          score_tile<KEEP>(scratch.panels[i], tile, chunk, scratch.panels[i].best);
      for (int64_t i = 0; i < last - first; i++) collect(scratch.panels[i], chunk, end);
    }
    for (int64_t i = 0; i < last - first; i++) {
      Panel& panel = scratch.panels[i];
      for (int r = 0; r < panel.count; r++) {
        int32_t index = panel.best.index[r / LANES][r % LANES];
        if (panel.state[r] < 0)
          index = panel.state[r];
        else if (panel.forced[r] || (index >= 0 && !(panel.best.second[r / LANES][r % LANES] < panel.ceiling[r])))
          index = settle(scratch, panel, r);
        indices[panel.first + r] = index;
      }
      finish.rows(panel.first, panel.count, scratch.centred);  // while the rows are in the cache
    }
  }

  // Look up the groups [first, last).  Returns how many codes were compared directly.
  int64_t run(int64_t first, int64_t last, int threads) const {
    std::vector<Scratch> scratches(threads);
    for (auto& scratch : scratches) prepare(scratch);
    bool failed = false;  // exceptions must not leave a parallel region
    // Dynamic, as groups with many open rows take longer; a row's result does not depend on who computes it.
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t g = first; g < last; g++) {
      try {
        group(scratches[thread_index()], g);
      } catch (const std::bad_alloc&) {
#pragma omp atomic write
        failed = true;
      }
    }
    if (failed) throw std::bad_alloc();
    int64_t compared = 0;
    for (auto& scratch : scratches) compared += scratch.compared;
    return compared;
  }
};

template <class T>
void look_up(const T* x, const Shape& shape, const Strides& strides, const float* codebook, int64_t num_codes,
             const float* center, const uint8_t* mask, bool exact, int32_t* indices, const Finish<T>& finish,
             int threads) {
  int64_t done = 0;
  // Paired products save num_codes * channels / 32 cycles a row.  They pay when that exceeds the second look at the
  // rows that they leave open, and unless the first rows show that the codes are too crowded.
  if (PAIRED_AVAILABLE && num_codes * shape.channels >= PAIRED_WORK && shape.rows() > 0) {
    const Codes codes(codebook, num_codes, shape.channels, center, true, threads);
    const Lookup<T, true, true> lookup{x, shape, strides, codebook, center, mask, codes, exact, indices, finish};
    const int64_t probed = std::min(lookup.panels_at_once() * ROWS, shape.rows());
    const int64_t compared = lookup.run(0, 1, 1);  // its results are kept either way
    if (compared <= probed * (8 + num_codes / 64)) {
      lookup.run(1, lookup.groups(), threads);
      return;
    }
    done = probed / ROWS;
  }
  const Codes codes(codebook, num_codes, shape.channels, center, false, threads);
  auto run = [&](const auto& lookup) { lookup.run(done / lookup.panels_at_once(), lookup.groups(), threads); };
  if (shape.channels >= KEEPING_CHANNELS)
    run(Lookup<T, false, true>{x, shape, strides, codebook, center, mask, codes, exact, indices, finish});
  else
    run(Lookup<T, false, false>{x, shape, strides, codebook, center, mask, codes, exact, indices, finish});
}

}  // namespace
