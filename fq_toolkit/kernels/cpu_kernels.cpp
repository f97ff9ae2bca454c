// The quantizer's ops for CPU tensors.  fq_toolkit/kernels/native.py compiles this file at first use and calls the
// extern "C" functions at its end; fq_toolkit/kernels/reference.py defines what they compute.
//
// The lookup is a matrix product that never writes its result.  R rows of features are centred and laid side by side
// in the lanes of vector registers (a panel, channel by channel); the codes are broadcast, CODES at a time (a tile).
// When a tile's products are complete, each lane compares them with its own best and second best, so that no
// reduction across lanes is ever needed, and the scores die in registers.
//
// Scores are compared by their certified lower bounds.  With x' = fl(x - mu), c' = fl(c - mu) and u = 2^-24,
//
//     score(k) = |c'|^2 / 2 - <x', c'>          |computed - exact| <= radius(k) = offset(k) + slope(k) |x'|
//
// where slope = (C + 8) 1.1 u |c'| covers the rounding of both operands (2u) and of C chained multiply-adds, and
// offset covers the rounding of |c'|^2 / 2, of the last subtraction, and underflow.  The slope enters the product as
// one more channel, whose "feature" is |x'|.  A row is certified when its second lowest lower bound lies above the
// upper bound of the lowest.  The others are gathered into panels of their own and scored once more, and every code
// whose lower bound does not exceed that upper bound is compared by float64 direct differences, in channel order.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <unordered_map>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

inline int thread_index() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

#if defined(__AVX512F__)
constexpr int LANES = 16, CODES = 12;  // 24 accumulators, 2 features and a broadcast fill the 32 registers
#elif defined(__AVX__)
constexpr int LANES = 8, CODES = 6;
#elif defined(__aarch64__)
constexpr int LANES = 4, CODES = 12;
#else
constexpr int LANES = 4, CODES = 6;
#endif
constexpr int ROWS = 2 * LANES;  // rows of a panel
constexpr int64_t PANEL_BYTES = 128 << 10;  // panels that share one pass over the codes stay in the second-level cache

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));

constexpr int32_t NONFINITE_ROW = -1, MASKED_ROW = -2;
constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float LARGE = 1e36f;  // squared norms above it could overflow a score: such rows and codes are never certified

struct BFloat16 {
  uint16_t bits;
};

inline float wide(float v) { return v; }
inline double wide(double v) { return v; }
inline float wide(_Float16 v) { return static_cast<float>(v); }
inline float wide(BFloat16 v) {
  uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
inline void narrow(float v, float& out) { out = v; }
inline void narrow(double v, double& out) { out = v; }
inline void narrow(float v, _Float16& out) { out = static_cast<_Float16>(v); }
inline void narrow(float v, BFloat16& out) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  bool nan = v != v;
  bits += 0x7FFFu + ((bits >> 16) & 1u);  // to nearest, ties to even
  out.bits = nan ? 0x7FC0 : static_cast<uint16_t>(bits >> 16);
}
template <class T>
using Wide = decltype(wide(T{}));

// A strided (B, C, P, Q) view; row n is (b, p, q) in that order.
struct Shape {
  int64_t batch, channels, height, width;
  int64_t positions() const { return height * width; }
  int64_t rows() const { return batch * positions(); }
};
struct Strides {
  int64_t batch, channel, height, width;
};

// Where the rows [first, first + count) start in a view, and whether they are neighbours in memory.
struct RowOffsets {
  int64_t at[ROWS];
  bool adjacent;

  RowOffsets(const Shape& shape, const Strides& strides, int64_t first, int count) : adjacent(count == ROWS) {
    int64_t q = first % shape.width, p = first / shape.width % shape.height, b = first / shape.positions();
    for (int r = 0; r < count; r++) {
      at[r] = b * strides.batch + p * strides.height + q * strides.width;
      adjacent = adjacent && at[r] == at[0] + r;
      if (++q == shape.width) {
        q = 0;
        if (++p == shape.height) p = 0, b++;
      }
    }
    for (int r = count; r < ROWS; r++) at[r] = at[0];
  }
};

// Neighbouring rows of one channel are one or two cache lines, and the next channel is far away: ask for it early.
template <class T>
inline void prefetch(const T* from, int64_t stride) {
  constexpr int AHEAD = 16;
  const char* ahead = reinterpret_cast<const char*>(from + AHEAD * stride);
  for (size_t byte = 0; byte < ROWS * sizeof(T); byte += 64) __builtin_prefetch(ahead + byte);
}

template <class T>
T* aligned(std::vector<T>& storage, size_t count) {
  storage.resize(count + 64 / sizeof(T));
  auto address = reinterpret_cast<uintptr_t>(storage.data());
  return storage.data() + ((64 - address % 64) % 64) / sizeof(T);
}

// Exchange the blocks of STEP x STEP off the diagonal; all steps together transpose a square of LANES vectors.
template <int STEP>
inline void exchange(Floats* square) {
  Ints upper, lower;
  for (int j = 0; j < LANES; j++) {
    upper[j] = j & STEP ? LANES + j - STEP : j;
    lower[j] = j & STEP ? LANES + j : j + STEP;
  }
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++)
    if (!(i & STEP)) {
      Floats first = square[i], second = square[i + STEP];
#if defined(__clang__)
      for (int j = 0; j < LANES; j++) {
        square[i][j] = j & STEP ? second[j - STEP] : first[j];
        square[i + STEP][j] = j & STEP ? second[j] : first[j + STEP];
      }
#else
      square[i] = __builtin_shuffle(first, second, upper);
      square[i + STEP] = __builtin_shuffle(first, second, lower);
#endif
    }
  if constexpr (STEP > 1) exchange<STEP / 2>(square);
}

// Lay ROWS rows side by side: panel[c * ROWS + r] = element(r, c).
template <class Element>
inline void lay_rows(int64_t channels, float* panel, Element element) {
  const int64_t whole = channels / LANES * LANES;
  for (int half = 0; half < 2; half++)
    for (int64_t c = 0; c < whole; c += LANES) {
      Floats square[LANES];
      for (int r = 0; r < LANES; r++) {
        float values[LANES];
        for (int j = 0; j < LANES; j++) values[j] = element(half * LANES + r, c + j);
        std::memcpy(&square[r], values, sizeof values);
      }
      exchange<LANES / 2>(square);
      for (int j = 0; j < LANES; j++) std::memcpy(panel + (c + j) * ROWS + half * LANES, &square[j], sizeof square[j]);
    }
  for (int64_t c = whole; c < channels; c++)
    for (int r = 0; r < ROWS; r++) panel[c * ROWS + r] = element(r, c);
}

// ------------------------------------------------------------------------------------------------------ the lookup

// The dictionary as the product wants it: tiles of CODES codes, channel by channel, with the slope as last channel.
struct Codes {
  int64_t count, channels, tiles;
  std::vector<float> storage, bias, offset, slope;
  float* packed;

  Codes(const float* codebook, int64_t count, int64_t channels, const float* center, bool exact)
      : count(count), channels(channels), tiles((count + CODES - 1) / CODES) {
    packed = aligned(storage, tiles * CODES * (channels + 1) + LANES);
    bias.assign(tiles * CODES, INF);  // a code of infinite bias never wins: padding, NaN, and repeated codes
    offset.assign(tiles * CODES, 0);
    slope.assign(tiles * CODES, 0);
    std::fill(packed, packed + tiles * CODES * (channels + 1), 0.0f);
    const double unit = std::ldexp(1.0, -24), smallest = std::ldexp(1.0, -126);
    std::unordered_multimap<uint64_t, int64_t> seen;
    for (int64_t k = 0; k < count; k++) {
      const float* code = codebook + k * channels;
      float* column = packed + k / CODES * CODES * (channels + 1) + k % CODES;
      double squares = 0;
      bool finite = true;
      uint64_t hash = 14695981039346656037ull;
      for (int64_t c = 0; c < channels; c++) {
        double value = static_cast<double>(code[c]) - static_cast<double>(center[c]);
        finite = finite && std::isfinite(code[c]);
        squares += value * value;
        column[c * CODES] = static_cast<float>(value);
        float plain = code[c] + 0.0f;  // -0 and +0 are the same code
        uint32_t bits;
        std::memcpy(&bits, &plain, 4);
        hash = (hash ^ bits) * 1099511628211ull;
      }
      // Of equal codes only the first can win, and leaving the others out keeps rows near them certified.
      bool repeated = false;
      auto range = seen.equal_range(hash);
      for (auto at = range.first; at != range.second && !repeated; ++at)
        repeated = std::equal(code, code + channels, codebook + at->second * channels);
      bool usable = finite && !repeated;
      if (usable) seen.emplace(hash, k);
      bool certifiable = usable && squares <= LARGE;
      if (!certifiable)
        for (int64_t c = 0; c < channels; c++) column[c * CODES] = 0;
      if (!usable) continue;
      if (!certifiable) {
        bias[k] = -INF, offset[k] = INF;  // always the lowest bound, and never certain
        continue;
      }
      double half = squares / 2, norm = std::sqrt(squares);
      if (!exact) {
        bias[k] = static_cast<float>(half);
        continue;
      }
      offset[k] = static_cast<float>(8 * unit * half + smallest * (channels + 8) * (1 + norm));
      slope[k] = static_cast<float>((channels + 8) * 1.1 * unit * norm + smallest * (channels + 8));
      bias[k] = static_cast<float>(half - offset[k]);
      column[channels * CODES] = slope[k];
    }
  }
};

struct Best {
  Floats value[2], second[2];  // of the negated lower bounds: larger is nearer
  Ints index[2];
};

// Products of one panel with the first COUNT codes of one tile.
template <int COUNT>
inline void multiply(const float* panel, const float* tile, int64_t depth, Floats products[2][COUNT]) {
  Floats sum[2][COUNT] = {};
  for (int64_t c = 0; c < depth; c++) {
    Floats low, high;
    std::memcpy(&low, panel + c * ROWS, sizeof low);
    std::memcpy(&high, panel + c * ROWS + LANES, sizeof high);
#pragma GCC unroll 12
    for (int j = 0; j < COUNT; j++) {
      sum[0][j] += low * tile[c * CODES + j];
      sum[1][j] += high * tile[c * CODES + j];
    }
  }
  std::memcpy(products, sum, sizeof sum);
}

// Let the first COUNT codes of one tile compete for each lane of a panel.  Strictly better wins: ties keep the lowest.
template <int COUNT>
inline void compete(const float* panel, const float* tile, int64_t depth, const float* bias, int32_t first, Best& best) {
  Floats products[2][COUNT];
  multiply<COUNT>(panel, tile, depth, products);
#pragma GCC unroll 12
  for (int j = 0; j < COUNT; j++) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      Floats value = products[half][j] - bias[j];
      Ints better = value > best.value[half];
      Floats loser = better ? best.value[half] : value;
      best.second[half] = loser > best.second[half] ? loser : best.second[half];
      best.value[half] = better ? value : best.value[half];
      best.index[half] = better ? Ints{} + (first + j) : best.index[half];
    }
  }
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

template <class T>
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

  // What one thread keeps: a few panels, and the rows that wait for a second look.
  struct Scratch {
    std::vector<float> storage, waiting_storage;
    float *panels, *waiting;
    std::vector<int64_t> rows;
    std::vector<float> ceilings;  // negated upper bound of the best code of each waiting row
    std::vector<double> row;
  };

  int64_t depth() const { return shape.channels + 1; }

  bool is_finite(int64_t offset) const {
    for (int64_t c = 0; c < shape.channels; c++)
      if (!std::isfinite(wide(x[offset + c * strides.channel]))) return false;
    return true;
  }

  // Centre `count` rows into the lanes of a panel; `forced` rows are finite but too large for a float32 score.
  void pack(float* panel, int64_t first, int count, int32_t* state, bool* forced) const {
    RowOffsets rows(shape, strides, first, count);
    const int64_t channels = shape.channels;
    if (rows.adjacent) {
      for (int64_t c = 0; c < channels; c++) {
        const T* from = x + rows.at[0] + c * strides.channel;
        prefetch(from, strides.channel);
        for (int r = 0; r < ROWS; r++)
          panel[c * ROWS + r] = static_cast<float>(wide(from[r]) - static_cast<Wide<T>>(center[c]));
      }
    } else if (strides.channel == 1) {
      lay_rows(channels, panel, [&](int r, int64_t c) {
        return static_cast<float>(wide(x[rows.at[r] + c]) - static_cast<Wide<T>>(center[c]));
      });
    } else {
      for (int r = 0; r < ROWS; r++) {
        const T* from = x + rows.at[r];
        for (int64_t c = 0; c < channels; c++)
          panel[c * ROWS + r] =
              static_cast<float>(wide(from[c * strides.channel]) - static_cast<Wide<T>>(center[c]));
      }
    }
    float squares[ROWS] = {};
    for (int64_t c = 0; c < channels; c++)
      for (int r = 0; r < ROWS; r++) squares[r] += panel[c * ROWS + r] * panel[c * ROWS + r];
    for (int r = 0; r < ROWS; r++) {
      panel[channels * ROWS + r] = std::sqrt(squares[r]) * 1.0001f;  // its own rounding is below 1e-4 for C < 1600
      state[r] = 0;
      forced[r] = false;
      if (r >= count) continue;
      if (mask && !mask[first + r])
        state[r] = MASKED_ROW;
      else if (!(squares[r] <= LARGE)) {
        if (is_finite(rows.at[r]))
          forced[r] = true;
        else
          state[r] = NONFINITE_ROW;
      }
    }
  }

  // Compare the waiting rows with every code that may be nearest, by direct differences.
  void settle(Scratch& scratch) const {
    const int64_t channels = shape.channels;
    const int count = static_cast<int>(scratch.rows.size());
    if (count == 0) return;
    std::vector<std::vector<int32_t>> candidates(count);
    for (int64_t tile = 0; tile < codes.tiles; tile++) {
      Floats products[2][CODES];
      multiply<CODES>(scratch.waiting, codes.packed + tile * CODES * depth(), depth(), products);
      for (int j = 0; j < CODES; j++) {
        int64_t k = tile * CODES + j;
        if (codes.bias[k] == INF) continue;
        for (int r = 0; r < count; r++) {
          float value = products[r / LANES][j][r % LANES] - codes.bias[k];
          // "Not below", so that an overflowed value stays a candidate.
          if (!(value < scratch.ceilings[r])) candidates[r].push_back(static_cast<int32_t>(k));
        }
      }
    }
    for (int r = 0; r < count; r++) {
      int64_t n = scratch.rows[r], q = n % shape.width, p = n / shape.width % shape.height, b = n / shape.positions();
      const T* from = x + b * strides.batch + p * strides.height + q * strides.width;
      for (int64_t c = 0; c < channels; c++) scratch.row[c] = static_cast<double>(wide(from[c * strides.channel]));
      double nearest = 0;
      int32_t winner = NONFINITE_ROW;
      const auto& list = candidates[r];
      for (size_t start = 0; start < list.size(); start += 8) {
        const float* group[8];
        double totals[8];
        size_t size = std::min<size_t>(8, list.size() - start);
        for (size_t j = 0; j < 8; j++) group[j] = codebook + list[start + std::min(j, size - 1)] * channels;
        direct_distances(scratch.row.data(), group, channels, totals);
        for (size_t j = 0; j < size; j++)
          if (winner < 0 || totals[j] < nearest) nearest = totals[j], winner = list[start + j];
      }
      indices[n] = winner;
    }
    scratch.rows.clear();
    scratch.ceilings.clear();
  }

  void wait(Scratch& scratch, const float* panel, int lane, int64_t row, float ceiling) const {
    const int slot = static_cast<int>(scratch.rows.size());
    for (int64_t c = 0; c < depth(); c++) scratch.waiting[c * ROWS + slot] = panel[c * ROWS + lane];
    scratch.rows.push_back(row);
    scratch.ceilings.push_back(ceiling);
    if (slot + 1 == ROWS) settle(scratch);
  }

  // Look up the panels [first_panel, last_panel), sharing one pass over the codes.
  void group(Scratch& scratch, int64_t first_panel, int64_t last_panel) const {
    constexpr int MOST = 8;
    Best best[MOST];
    int32_t state[MOST][ROWS];
    bool forced[MOST][ROWS];
    const int panels = static_cast<int>(last_panel - first_panel);
    auto count = [&](int i) {
      return static_cast<int>(std::min<int64_t>(ROWS, shape.rows() - (first_panel + i) * ROWS));
    };
    for (int i = 0; i < panels; i++) {
      pack(scratch.panels + i * depth() * ROWS, (first_panel + i) * ROWS, count(i), state[i], forced[i]);
      for (int half = 0; half < 2; half++) {
        best[i].value[half] = Floats{} - INF;
        best[i].second[half] = Floats{} - INF;
        best[i].index[half] = Ints{} + NONFINITE_ROW;
      }
    }
    for (int64_t tile = 0; tile < codes.tiles; tile++) {
      const int64_t left = codes.count - tile * CODES;  // the last tile may be narrow: do not multiply its padding
      const auto step = left <= CODES / 3 ? compete<CODES / 3> : left <= 2 * CODES / 3 ? compete<2 * CODES / 3> : compete<CODES>;
      for (int i = 0; i < panels; i++)
        step(scratch.panels + i * depth() * ROWS, codes.packed + tile * CODES * depth(), depth(),
             codes.bias.data() + tile * CODES, static_cast<int32_t>(tile * CODES), best[i]);
    }
    for (int i = 0; i < panels; i++)
      for (int r = 0; r < count(i); r++) {
        const int64_t n = (first_panel + i) * ROWS + r;
        const float value = best[i].value[r / LANES][r % LANES], second = best[i].second[r / LANES][r % LANES];
        const int32_t index = best[i].index[r / LANES][r % LANES];
        const float* panel = scratch.panels + i * depth() * ROWS;
        if (state[i][r] < 0)
          indices[n] = state[i][r];
        else if (forced[i][r])
          wait(scratch, panel, r, n, -INF);
        else if (!exact || index < 0)
          indices[n] = index;
        else {
          double radius = static_cast<double>(codes.offset[index]) +
                          static_cast<double>(codes.slope[index]) * panel[shape.channels * ROWS + r];
          double ceiling = static_cast<double>(value) - 2 * radius;
          // A code too large to be scored makes the radius infinite, and the comparison false.
          if (static_cast<double>(second) < ceiling)
            indices[n] = index;
          else
            wait(scratch, panel, r, n, std::isfinite(ceiling) ? std::nextafter(static_cast<float>(ceiling), -INF) : -INF);
        }
      }
  }

  void run(int threads) const {
    const int64_t panels = (shape.rows() + ROWS - 1) / ROWS;
    const int64_t each = std::max<int64_t>(1, std::min<int64_t>(8, PANEL_BYTES / (depth() * ROWS * 4)));
    const int64_t groups = (panels + each - 1) / each;
    // Exceptions must not leave a parallel region: they are remembered and thrown again behind it.
    bool failed = false;
    std::vector<Scratch> scratches(threads);
    for (auto& scratch : scratches) {
      scratch.panels = aligned(scratch.storage, each * depth() * ROWS);
      scratch.waiting = aligned(scratch.waiting_storage, depth() * ROWS);
      std::fill(scratch.waiting, scratch.waiting + depth() * ROWS, 0.0f);
      scratch.row.resize(shape.channels);
    }
    auto guarded = [&failed](auto work) {
      try {
        work();
      } catch (const std::bad_alloc&) {
#pragma omp atomic write
        failed = true;
      }
    };
#pragma omp parallel num_threads(threads)
    {
      Scratch& scratch = scratches[thread_index()];
#pragma omp for schedule(dynamic, 1)
      for (int64_t g = 0; g < groups; g++)
        guarded([&] { group(scratch, g * each, std::min(panels, (g + 1) * each)); });
      guarded([&] { settle(scratch); });
    }
    if (failed) throw std::bad_alloc();
  }
};

// -------------------------------------------------------------------------------------- rows after the lookup is done

// Visit the rows of every sample in blocks of at most ROWS that never cross a sample, so that what is computed for a
// row cannot depend on its neighbours in the batch.
template <class Visit>
void for_each_block(const Shape& shape, int threads, Visit visit) {
  const int64_t positions = shape.positions(), blocks = (positions + ROWS - 1) / ROWS;
  const int64_t each = shape.channels * ROWS;  // a multiple of a cache line
  std::vector<float> storage;
  float* scratch = aligned(storage, threads * each);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t block = 0; block < shape.batch * blocks; block++) {
    int64_t sample = block / blocks, start = block % blocks * ROWS;
    visit(sample, sample * positions + start, static_cast<int>(std::min<int64_t>(ROWS, positions - start)),
          scratch + thread_index() * each);
  }
}

// The codes of a block of rows, channel by channel.  Rows that have none get the first code, to be ignored.
void gather(const float* codebook, int64_t channels, const int32_t* indices, int count, float* codes) {
  const float* rows[ROWS];
  for (int r = 0; r < ROWS; r++) rows[r] = codebook + (r < count ? std::max(indices[r], 0) : 0) * channels;
  lay_rows(channels, codes, [&](int r, int64_t c) { return rows[r][c]; });
}

// Which lanes of a block hold a row that has a code, in the width of the arithmetic so that the compiler can blend.
template <class W>
struct Valid {
  std::conditional_t<sizeof(W) == 8, int64_t, int32_t> lane[ROWS];
  Valid(const int32_t* indices, int count) {
    for (int r = 0; r < ROWS; r++) lane[r] = r < count && indices[r] >= 0;
  }
};

template <class T>
void load(const T* from, const RowOffsets& rows, int64_t shift, Wide<T>* lanes) {
  if (rows.adjacent)
    for (int r = 0; r < ROWS; r++) lanes[r] = wide(from[rows.at[0] + shift + r]);
  else
    for (int r = 0; r < ROWS; r++) lanes[r] = wide(from[rows.at[r] + shift]);
}

template <class T>
void store(T* to, const RowOffsets& rows, int64_t shift, int count, const Wide<T>* lanes) {
  if (rows.adjacent)
    for (int r = 0; r < ROWS; r++) narrow(lanes[r], to[rows.at[0] + shift + r]);
  else
    for (int r = 0; r < count; r++) narrow(lanes[r], to[rows.at[r] + shift]);
}

// Output and squared error.  Errors are summed in groups of sixteen, then in double, always in the same order.
template <class T>
struct Finish {
  const T* x;
  Shape shape;
  Strides strides, out_strides;
  const float* codebook;
  const int32_t* indices;
  Wide<T> strength;
  T* out;  // null: no output wanted
  double* row_error;

  void along_rows(int64_t first, int count) const {
    using W = Wide<T>;
    RowOffsets from(shape, strides, first, count), to(shape, out_strides, first, count);
    for (int r = 0; r < count; r++) {
      const T* row = x + from.at[r];
      T* target = out ? out + to.at[r] : nullptr;
      const int32_t index = indices[first + r];
      row_error[first + r] = 0;
      if (index < 0) {
        if (target) std::copy(row, row + shape.channels, target);
        continue;
      }
      const float* code = codebook + index * shape.channels;
      W lanes[16] = {};
      const int64_t whole = shape.channels / 16 * 16;
      for (int64_t c = 0; c < whole; c += 16)
        for (int j = 0; j < 16; j++) {
          W difference = wide(row[c + j]) - static_cast<W>(code[c + j]);
          lanes[j] += difference * difference;
        }
      for (int64_t c = whole; c < shape.channels; c++) {
        W difference = wide(row[c]) - static_cast<W>(code[c]);
        lanes[c - whole] += difference * difference;
      }
      double total = 0;
      for (int j = 0; j < 16; j++) total += lanes[j];
      row_error[first + r] = total;
      if (!target) continue;
      if (strength == 1)
        for (int64_t c = 0; c < shape.channels; c++) narrow(static_cast<W>(code[c]), target[c]);
      else
        for (int64_t c = 0; c < shape.channels; c++) {
          W value = wide(row[c]);
          narrow(value + strength * (static_cast<W>(code[c]) - value), target[c]);
        }
    }
  }

  void across_rows(int64_t first, int count, float* codes) const {
    using W = Wide<T>;
    RowOffsets from(shape, strides, first, count), to(shape, out_strides, first, count);
    gather(codebook, shape.channels, indices + first, count, codes);
    const Valid<W> valid(indices + first, count);
    double total[ROWS] = {};
    W error[ROWS] = {}, value[ROWS], result[ROWS];
    for (int64_t c = 0; c < shape.channels; c++) {
      prefetch(x + from.at[0] + c * strides.channel, strides.channel);
      load(x, from, c * strides.channel, value);
      const float* code = codes + c * ROWS;
      for (int r = 0; r < ROWS; r++) {
        W difference = value[r] - static_cast<W>(code[r]);
        error[r] += difference * difference;
      }
      if (c % 16 == 15 || c == shape.channels - 1)
        for (int r = 0; r < ROWS; r++) total[r] += error[r], error[r] = 0;
      if (!out) continue;
      if (strength == 1)
        for (int r = 0; r < ROWS; r++) result[r] = valid.lane[r] ? static_cast<W>(code[r]) : value[r];
      else
        for (int r = 0; r < ROWS; r++) {
          W blend = value[r] + strength * (static_cast<W>(code[r]) - value[r]);
          result[r] = valid.lane[r] ? blend : value[r];
        }
      store(out, to, c * out_strides.channel, count, result);
    }
    for (int r = 0; r < count; r++) row_error[first + r] = valid.lane[r] ? total[r] : 0;
  }

  void run(int threads) const {
    const bool channels_adjacent = strides.channel == 1 && (!out || out_strides.channel == 1);
    for_each_block(shape, threads, [&](int64_t, int64_t first, int count, float* codes) {
      if (channels_adjacent)
        along_rows(first, count);
      else
        across_rows(first, count, codes);
    });
  }
};

template <class T>
struct Backward {
  const T* x;
  Shape shape;
  Strides strides, grad_strides, out_strides;
  const float* codebook;
  const int32_t* indices;
  const float* grad_error;
  const T* grad;  // null: zero
  T* out;

  void along_rows(int64_t sample, int64_t first, int count) const {
    using W = Wide<T>;
    RowOffsets from(shape, strides, first, count), through(shape, grad_strides, first, count),
        to(shape, out_strides, first, count);
    const W factor = 2 * static_cast<W>(grad_error[sample]);
    for (int r = 0; r < count; r++) {
      const T* row = x + from.at[r];
      T* target = out + to.at[r];
      const T* passed = grad ? grad + through.at[r] : nullptr;
      const int32_t index = indices[first + r];
      const float* code = codebook + std::max(index, 0) * shape.channels;
      for (int64_t c = 0; c < shape.channels; c++) {
        W pull = index < 0 ? 0 : factor * (wide(row[c]) - static_cast<W>(code[c]));
        narrow(passed ? pull + wide(passed[c]) : pull, target[c]);
      }
    }
  }

  void across_rows(int64_t sample, int64_t first, int count, float* codes) const {
    using W = Wide<T>;
    RowOffsets from(shape, strides, first, count), through(shape, grad_strides, first, count),
        to(shape, out_strides, first, count);
    gather(codebook, shape.channels, indices + first, count, codes);
    const W factor = 2 * static_cast<W>(grad_error[sample]);
    W value[ROWS], passed[ROWS] = {}, result[ROWS];
    const Valid<W> valid(indices + first, count);
    for (int64_t c = 0; c < shape.channels; c++) {
      prefetch(x + from.at[0] + c * strides.channel, strides.channel);
      load(x, from, c * strides.channel, value);
      if (grad) load(grad, through, c * grad_strides.channel, passed);
      for (int r = 0; r < ROWS; r++) {
        W pull = factor * (value[r] - static_cast<W>(codes[c * ROWS + r]));
        result[r] = (valid.lane[r] ? pull : 0) + passed[r];
      }
      store(out, to, c * out_strides.channel, count, result);
    }
  }

  void run(int threads) const {
    const bool channels_adjacent =
        strides.channel == 1 && out_strides.channel == 1 && (!grad || grad_strides.channel == 1);
    for_each_block(shape, threads, [&](int64_t sample, int64_t first, int count, float* codes) {
      if (channels_adjacent)
        along_rows(sample, first, count);
      else
        across_rows(sample, first, count, codes);
    });
  }
};

// Per-code sums.  A thread owns some channels and adds the rows in order, in double: no atomics, and the result does
// not depend on the number of threads.
template <class T, int WIDTH>
void sum_channels(const T* x, const Shape& shape, const Strides& strides, const int32_t* indices, int64_t num_codes,
                  int64_t first, int count, double* totals, float* sums) {
  std::fill(totals, totals + num_codes * WIDTH, 0.0);
  int64_t n = 0;
  for (int64_t b = 0; b < shape.batch; b++)
    for (int64_t p = 0; p < shape.height; p++) {
      const T* line = x + b * strides.batch + p * strides.height + first * strides.channel;
      for (int64_t q = 0; q < shape.width; q++, n++) {
        if (indices[n] < 0) continue;
        double* total = totals + static_cast<int64_t>(indices[n]) * WIDTH;
        const T* from = line + q * strides.width;
        if (count < WIDTH)
          for (int j = 0; j < count; j++) total[j] += wide(from[j * strides.channel]);
        else if (strides.channel == 1)
          for (int j = 0; j < WIDTH; j++) total[j] += wide(from[j]);
        else
          for (int j = 0; j < WIDTH; j++) total[j] += wide(from[j * strides.channel]);
      }
    }
  for (int64_t k = 0; k < num_codes; k++)
    for (int j = 0; j < count; j++) sums[k * shape.channels + first + j] = static_cast<float>(totals[k * WIDTH + j]);
}

template <class T>
void sum_rows(const T* x, const Shape& shape, const Strides& strides, const int32_t* indices, int64_t num_codes,
              float* sums, int threads) {
  constexpr int WIDTH = 16;
  const int64_t blocks = (shape.channels + WIDTH - 1) / WIDTH;
  threads = static_cast<int>(std::min<int64_t>(threads, blocks));
  std::vector<double> totals(threads * num_codes * WIDTH);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t block = 0; block < blocks; block++)
    sum_channels<T, WIDTH>(x, shape, strides, indices, num_codes, block * WIDTH,
                           static_cast<int>(std::min<int64_t>(WIDTH, shape.channels - block * WIDTH)),
                           totals.data() + thread_index() * num_codes * WIDTH, sums);
}

// ---------------------------------------------------------------------------------------------------------- entries

struct ForwardArguments {
  const void* x;
  const int64_t *shape, *strides, *out_strides;
  const float *codebook, *center;
  int64_t num_codes;
  const uint8_t* mask;
  double strength;
  void* out;
  int32_t* indices;
  float* sq_error;
  int64_t* counts;
  float* sums;
  int32_t exact, threads;
};

Shape shape_of(const int64_t* s) { return {s[0], s[1], s[2], s[3]}; }
Strides strides_of(const int64_t* s) { return {s[0], s[1], s[2], s[3]}; }

template <class T>
void forward(const ForwardArguments& a) {
  const Shape shape = shape_of(a.shape);
  const Strides strides = strides_of(a.strides);
  const T* x = static_cast<const T*>(a.x);
  {
    const Codes codes(a.codebook, a.num_codes, shape.channels, a.center, a.exact != 0);
    Lookup<T>{x, shape, strides, a.codebook, a.center, a.mask, codes, a.exact != 0, a.indices}.run(a.threads);
  }
  std::vector<double> row_error(shape.rows());
  Finish<T>{x,         shape,     strides,
            strides_of(a.out_strides), a.codebook, a.indices,
            static_cast<Wide<T>>(a.strength), static_cast<T*>(a.out), row_error.data()}
      .run(a.threads);
  for (int64_t b = 0; b < shape.batch; b++) {
    double total = 0;
    for (int64_t i = 0; i < shape.positions(); i++) total += row_error[b * shape.positions() + i];
    a.sq_error[b] = static_cast<float>(total);
  }
  std::fill(a.counts, a.counts + a.num_codes, 0);
  for (int64_t n = 0; n < shape.rows(); n++)
    if (a.indices[n] >= 0) a.counts[a.indices[n]]++;
  if (a.sums) sum_rows(x, shape, strides, a.indices, a.num_codes, a.sums, a.threads);
}

struct BackwardArguments {
  const void* x;
  const int64_t *shape, *strides, *grad_strides, *out_strides;
  const float* codebook;
  const int32_t* indices;
  const float* grad_error;
  const void* grad;
  void* out;
  int32_t threads;
};

template <class T>
void backward(const BackwardArguments& a) {
  Backward<T>{static_cast<const T*>(a.x),
              shape_of(a.shape),
              strides_of(a.strides),
              strides_of(a.grad_strides),
              strides_of(a.out_strides),
              a.codebook,
              a.indices,
              a.grad_error,
              static_cast<const T*>(a.grad),
              static_cast<T*>(a.out)}
      .run(a.threads);
}

enum DType { FLOAT16, BFLOAT16, FLOAT32, FLOAT64 };

}  // namespace

// Each returns 0, or 1 when memory ran out, or 2 for an unknown dtype.
extern "C" int fq_quantize_forward(int dtype, const ForwardArguments* arguments) {
  try {
    switch (dtype) {
      case FLOAT16: forward<_Float16>(*arguments); return 0;
      case BFLOAT16: forward<BFloat16>(*arguments); return 0;
      case FLOAT32: forward<float>(*arguments); return 0;
      case FLOAT64: forward<double>(*arguments); return 0;
      default: return 2;
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

extern "C" int fq_quantize_backward(int dtype, const BackwardArguments* arguments) {
  try {
    switch (dtype) {
      case FLOAT16: backward<_Float16>(*arguments); return 0;
      case BFLOAT16: backward<BFloat16>(*arguments); return 0;
      case FLOAT32: backward<float>(*arguments); return 0;
      case FLOAT64: backward<double>(*arguments); return 0;
      default: return 2;
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// 1 when compiled with OpenMP.
extern "C" int fq_parallel() {
#ifdef _OPENMP
  return 1;
#else
  return 0;
#endif
}
