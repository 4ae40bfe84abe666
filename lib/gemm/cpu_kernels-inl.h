// The kernels themselves, for the instruction set HWY_TARGET. Included once per target.
#if defined(MOE_CPU_KERNELS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_CPU_KERNELS_INL
#undef MOE_CPU_KERNELS_INL
#else
#define MOE_CPU_KERNELS_INL
#endif

// Register tiles live in small arrays: a compiler keeps them in registers only if every loop over
// them is unrolled (27 -> 69 GFLOP/s on AVX2).
#if defined(__clang__)
#define MOE_UNROLL _Pragma("unroll")
#else
#define MOE_UNROLL _Pragma("GCC unroll 32")
#endif

HWY_BEFORE_NAMESPACE();
namespace moe::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, kPanel>;
using V = hn::Vec<D>;
using U = hn::RebindToUnsigned<D>;
constexpr int kLanes = hn::MaxLanes(D());
constexpr int kPanelVectors = kPanel / kLanes;

// Accumulators that stay in registers beside the weights and one input.
constexpr int kRegisters = HWY_TARGET == HWY_AVX2 ? 12 : 24;
constexpr int kMaxRows = kRegisters / (kLanes < 16 ? kPanelVectors : 2);
static_assert(kMaxRows <= kMaxTileRows);

HWY_INLINE V set(float value) { return hn::Set(D(), value); }

// a * b + c, rounded once.
HWY_INLINE V fma(V a, V b, V c) {
#if HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SCALAR
  alignas(64) float x[kLanes], y[kLanes], z[kLanes];
  hn::Store(a, D(), x);
  hn::Store(b, D(), y);
  hn::Store(c, D(), z);
  for (int i = 0; i < kLanes; ++i) z[i] = std::fma(x[i], y[i], z[i]);
  return hn::Load(D(), z);
#else
  return hn::MulAdd(a, b, c);
#endif
}

// ---- weights: `kOdd` input of input pair `pair`, outputs from `lane`, of a panel

struct F32 {
  using Type = float;
  static constexpr bool kWide = true;
  template <int kOdd>
  static HWY_INLINE V load(const Type* panel, int64_t pair, int64_t lane) {
    return hn::Load(D(), panel + (2 * pair + kOdd) * kPanel + lane);
  }
};

struct F16 {
  using Type = hwy::float16_t;
  static constexpr bool kWide = false;
  template <int kOdd>
  static HWY_INLINE V load(const Type* panel, int64_t pair, int64_t lane) {
    const hn::Rebind<hwy::float16_t, D> half;
    return hn::PromoteTo(D(), hn::Load(half, panel + (2 * pair + kOdd) * kPanel + lane));
  }
};

struct Bf16 {
  using Type = uint16_t;
  static constexpr bool kWide = false;
  template <int kOdd>
  static HWY_INLINE V load(const Type* panel, int64_t pair, int64_t lane) {
    const auto* words = reinterpret_cast<const uint32_t*>(panel) + pair * kPanel + lane;
    const auto both = hn::Load(U(), words);
    if constexpr (kOdd == 1) return hn::BitCast(D(), hn::And(both, hn::Set(U(), 0xffff0000u)));
    return hn::BitCast(D(), hn::ShiftLeft<16>(both));
  }
};

// E4M3 is f16 with a shorter exponent: shifted into place it is the value times 2^-8, subnormals
// included. Both inputs of an output lie in one 16-bit lane; kOdd is the upper.
template <int kOdd>
HWY_INLINE V widen_fp8(const uint8_t* pairs, V scale) {
  const hn::Rebind<int16_t, D> d16;
  const hn::Rebind<hwy::float16_t, D> half;
  auto both = hn::Load(d16, reinterpret_cast<const int16_t*>(pairs));
  if constexpr (kOdd == 0) both = hn::ShiftLeft<8>(both);
  const auto bits = hn::And(hn::ShiftRight<1>(both), hn::Set(d16, static_cast<int16_t>(0xbf80)));
  return hn::Mul(hn::PromoteTo(D(), hn::BitCast(half, bits)), scale);
}

// ---- products

// Cache lines of weights that are fetched while a tile is computed, so that the next block of the
// panels is there when its turn comes. The hardware fetches ahead too, but not over a page's end,
// and not while FMAs fill the reorder buffer.
struct Ahead {
  const std::byte* line = nullptr;  // of the first panel
  int64_t panel_bytes = 0;          // from one panel to the other
  int64_t bytes_per_pair = 0;       // of one panel; 0: nothing to fetch, `line` is in the cache

  // What tile `index` of `count` fetches in its `pairs` steps: memory is busy all the time then,
  // not only while the first tile is computed.
  Ahead share(int64_t index, int64_t count, int64_t pairs) const {
    const int64_t each = (bytes_per_pair + count - 1) / count;
    return {line + index * pairs * each, panel_bytes, each};
  }

  template <int kPanels>
  HWY_INLINE void fetch(int64_t pair) const {
    const std::byte* at = line + pair * bytes_per_pair;
    MOE_UNROLL for (int p = 0; p < kPanels; ++p) {
      __builtin_prefetch(at + p * panel_bytes);
      if (bytes_per_pair > 64) __builtin_prefetch(at + p * panel_bytes + 64);
    }
  }
};

// One register tile: kRows rows times kHalves panels, over `pairs` input pairs.
template <class W, int kRows, int kHalves>
struct Tile {
  static constexpr int kVectors = kHalves * kPanelVectors;
  V acc[kRows][kVectors];

  HWY_INLINE void clear() {
    MOE_UNROLL for (int r = 0; r < kRows; ++r) {
      MOE_UNROLL for (int v = 0; v < kVectors; ++v) acc[r][v] = hn::Zero(D());
    }
  }

  template <int kOdd>
  HWY_INLINE void step(const typename W::Type* panel, int64_t panel_elements, int64_t pair,
                       const float* x) {
    V w[kVectors];
    MOE_UNROLL for (int v = 0; v < kVectors; ++v) {
      const int64_t half = v / kPanelVectors, lane = v % kPanelVectors * kLanes;
      w[v] = W::template load<kOdd>(panel + half * panel_elements, pair, lane);
    }
    MOE_UNROLL for (int r = 0; r < kRows; ++r) {
      const V input = set(x[(2 * pair + kOdd) * kRows + r]);
      MOE_UNROLL for (int v = 0; v < kVectors; ++v) acc[r][v] = fma(input, w[v], acc[r][v]);
    }
  }

  HWY_INLINE void add_to(float* sums, bool first) const {
    MOE_UNROLL for (int r = 0; r < kRows; ++r) {
      MOE_UNROLL for (int v = 0; v < kVectors; ++v) {
        float* at = sums + r * kPair + v * kLanes;
        hn::Store(first ? acc[r][v] : hn::Add(hn::Load(D(), at), acc[r][v]), D(), at);
      }
    }
  }
};

template <class W, int kRows>
HWY_NOINLINE void multiply_tile(const typename W::Type* panels, int64_t panel_elements,
                                const float* x, int64_t pairs, bool first, float* sums,
                                Ahead ahead) {
  constexpr int kHalves = kRows * 2 * kPanelVectors <= kRegisters ? 2 : 1;
  for (int half = 0; half < 2; half += kHalves) {
    Tile<W, kRows, kHalves> tile;
    tile.clear();
    for (int64_t pair = 0; pair < pairs; ++pair) {
      ahead.fetch<kHalves>(pair);
      tile.template step<0>(panels + half * panel_elements, panel_elements, pair, x);
      tile.template step<1>(panels + half * panel_elements, panel_elements, pair, x);
    }
    tile.add_to(sums + half * kPanel, first);
    ahead.line += ahead.panel_bytes;
  }
}

template <class W, int... kRowsLess1>
constexpr auto tile_functions(std::integer_sequence<int, kRowsLess1...>) {
  return std::array{&multiply_tile<W, kRowsLess1 + 1>...};
}

// All tiles times one block of the panels: `pairs` input pairs from input `begin` on.
template <class W>
HWY_INLINE void multiply_block(const Multiply& m, const typename W::Type* block,
                               int64_t panel_elements, int64_t begin, int64_t pairs, Ahead ahead) {
  static constexpr auto kTiles = tile_functions<W>(std::make_integer_sequence<int, kMaxRows>());
  const int64_t first_row = m.tiles.first_row(m.first_tile);
  for (int64_t t = m.first_tile; t < m.first_tile + m.tile_count; ++t) {
    const int64_t row = m.tiles.first_row(t) - first_row, rows = m.tiles.size(t);
    kTiles[rows - 1](block, panel_elements, m.x + row * m.inputs + begin * rows, pairs, begin == 0,
                     m.sums + row * kPair, ahead.share(t - m.first_tile, m.tile_count, pairs));
  }
}

// `count` inputs of both panels as f32 panels [count][kPanel], kChain * kPanel apart.
template <class W>
HWY_INLINE void widen(const typename W::Type* panels, int64_t panel_elements, int64_t count,
                      float* out) {
  for (int64_t v = 0; v < 2 * kPanelVectors; ++v) {
    const int64_t half = v / kPanelVectors, lane = v % kPanelVectors * kLanes;
    const auto* panel = panels + half * panel_elements;
    float* to = out + half * kChain * kPanel + lane;
    for (int64_t pair = 0; pair < count / 2; ++pair, to += 2 * kPanel) {
      hn::Store(W::template load<0>(panel, pair, lane), D(), to);
      hn::Store(W::template load<1>(panel, pair, lane), D(), to + kPanel);
    }
  }
}

template <class W>
void multiply(const Multiply& m) {
  using Type = typename W::Type;
  const auto* panels = reinterpret_cast<const Type*>(m.panels);
  const int64_t panel_elements = m.inputs * kPanel;
  const bool in_cache = choose_widening(sizeof(Type), m.tile_count) == Widening::in_cache;
  alignas(64) float wide[W::kWide ? 1 : 2 * kChain * kPanel];
  for (int64_t begin = 0; begin < m.inputs; begin += kChain) {
    const int64_t count = std::min(kChain, m.inputs - begin);
    const Type* block = panels + begin * kPanel;
    Ahead ahead = {reinterpret_cast<const std::byte*>(m.x)};
    const std::byte* const next = begin + count < m.inputs
                                      ? reinterpret_cast<const std::byte*>(block + count * kPanel)
                                      : m.next_panels;
    if (next)
      ahead = {next, panel_elements * int64_t{sizeof(Type)}, 2 * kPanel * int64_t{sizeof(Type)}};
    if (!W::kWide && in_cache) {
      widen<W>(block, panel_elements, count, wide);
      multiply_block<F32>(m, wide, kChain * kPanel, begin, count / 2, ahead);
    } else {
      multiply_block<W>(m, block, panel_elements, begin, count / 2, ahead);
    }
  }
}

// Inputs [begin, begin + count) of both panels of a pair, times their scales, as f32 panels
// [count][kPanel], kChain * kPanel apart. Rounded once: an element times its scale.
HWY_INLINE void widen_fp8_block(const Multiply& m, int64_t begin, int64_t count, float* out) {
  const auto* codes = reinterpret_cast<const uint8_t*>(m.panels);
  const auto* scales = reinterpret_cast<const float*>(codes + m.inputs * kPair);
  const int64_t group = m.group > 0 ? m.group : m.inputs;
  for (int64_t at = begin; at < begin + count;) {
    const int64_t end = std::min(begin + count, (at / group + 1) * group);
    for (int64_t v = 0; v < 2 * kPanelVectors; ++v) {
      const int64_t panel = v / kPanelVectors, lane = v % kPanelVectors * kLanes;
      const uint8_t* from = codes + panel * m.inputs * kPanel + 2 * lane;
      float* to = out + (panel * kChain - begin) * kPanel + lane;
      const V scale =
          hn::Mul(hn::Load(D(), scales + at / group * kPair + panel * kPanel + lane), set(256.0f));
      for (int64_t i = at; i < end; i += 2) {
        hn::Store(widen_fp8<0>(from + i * kPanel, scale), D(), to + i * kPanel);
        hn::Store(widen_fp8<1>(from + i * kPanel, scale), D(), to + (i + 1) * kPanel);
      }
    }
    at = end;
  }
}

// fp8 is widened a block at a time, which stays in the L1 cache for all rows of the chunk.
void multiply_fp8(const Multiply& m) {
  alignas(64) float block[2 * kChain * kPanel];
  for (int64_t begin = 0; begin < m.inputs; begin += kChain) {
    const int64_t count = std::min(kChain, m.inputs - begin);
    widen_fp8_block(m, begin, count, block);
    multiply_block<F32>(m, block, kChain * kPanel, begin, count / 2,
                        {reinterpret_cast<const std::byte*>(m.x)});
  }
}

// ---- activations; formulas in moe/weights.h

// Within 2 ulp; x is clamped to where the result is a normal number.
HWY_INLINE V exp(V x) {
  x = hn::IfThenElse(hn::Gt(x, set(88.0f)), set(88.0f), x);
  x = hn::IfThenElse(hn::Lt(x, set(-87.0f)), set(-87.0f), x);
  const V shift = set(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const V shifted = fma(x, set(1.44269504f), shift);
  const V n = hn::Sub(shifted, shift);
  V r = fma(n, set(-0.693359375f), x);
  r = fma(n, set(2.12194440e-4f), r);
  V p = set(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                  5.0000001201e-1f, 1.0f, 1.0f})
    p = fma(p, r, set(c));
  const auto power = hn::Add(hn::ShiftLeft<23>(hn::BitCast(U(), shifted)), hn::Set(U(), 127 << 23));
  return hn::Mul(p, hn::BitCast(D(), power));
}

HWY_INLINE V sigmoid(V x) { return hn::Div(set(1.0f), hn::Add(set(1.0f), exp(hn::Neg(x)))); }
HWY_INLINE V silu(V x) { return hn::Div(x, hn::Add(set(1.0f), exp(hn::Neg(x)))); }
HWY_INLINE V relu(V x) { return hn::IfThenElse(hn::Lt(x, set(0.0f)), set(0.0f), x); }
HWY_INLINE V at_most(V x, V limit) { return hn::IfThenElse(hn::Gt(x, limit), limit, x); }
HWY_INLINE V clamp(V x, V limit) {
  const V low = hn::Neg(limit);
  return hn::IfThenElse(hn::Lt(x, low), low, at_most(x, limit));
}

// x * Phi(x). Phi from the Chebyshev fit of erfc in Numerical Recipes (2nd ed., 6.2, erfcc), whose
// fractional error is below 1.2e-7.
HWY_INLINE V gelu(V x) {
  const V z = hn::Mul(hn::Abs(x), set(0.70710678f));
  const V t = hn::Div(set(1.0f), fma(z, set(0.5f), set(1.0f)));
  V p = set(0.17087277f);
  for (float c : {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f, 0.09678418f,
                  0.37409196f, 1.00002368f, -1.26551223f})
    p = fma(p, t, set(c));
  const V half = hn::Mul(hn::Mul(set(0.5f), t), exp(fma(hn::Neg(z), z, p)));  // erfc(z) / 2
  return hn::Mul(x, hn::IfThenElse(hn::Lt(x, set(0.0f)), half, hn::Sub(set(1.0f), half)));
}

HWY_INLINE V gelu_tanh(V x) {  // (1 + tanh(y)) / 2 = sigmoid(2 y)
  const V cubic = fma(hn::Mul(x, x), set(0.044715f), set(1.0f));
  return hn::Mul(x, sigmoid(hn::Mul(hn::Mul(set(1.59576912f), x), cubic)));
}

// row[i] = function(row[i], row[from_up + i]), biases added, for kOutputs values of every row.
template <int kOutputs, class Function>
HWY_INLINE void for_each(int64_t rows, int64_t from_up, const float* bias, float* sums,
                         Function function) {
  for (int64_t r = 0; r < rows; ++r, sums += kPair)
    MOE_UNROLL for (int i = 0; i < kOutputs; i += kLanes) {
      V gate = hn::Load(D(), sums + i), up = hn::Load(D(), sums + from_up + i);
      if (bias) {
        gate = hn::Add(gate, hn::LoadU(D(), bias + i));
        up = hn::Add(up, hn::LoadU(D(), bias + from_up + i));
      }
      hn::Store(function(gate, up), D(), sums + i);
    }
}

// function(gate) * up, or function(up) where nothing is gated.
template <class Function>
HWY_INLINE void unit(bool gated, int64_t rows, const float* bias, float* sums, Function function) {
  if (gated)
    for_each<kPanel>(rows, kPanel, bias, sums, [&](V g, V u) { return hn::Mul(function(g), u); });
  else
    for_each<kPair>(rows, 0, bias, sums, [&](V, V u) { return function(u); });
}

void activate(const ExpertSpec& spec, const float* bias, int64_t rows, float* sums) {
  const V limit = set(spec.limit), alpha = set(spec.alpha);
  const auto each = [&](auto function) { unit(spec.gated, rows, bias, sums, function); };
  switch (spec.activation) {
    case Activation::silu: return each([](V x) { return silu(x); });
    case Activation::gelu: return each([](V x) { return gelu(x); });
    case Activation::gelu_tanh: return each([](V x) { return gelu_tanh(x); });
    case Activation::relu: return each([](V x) { return relu(x); });
    case Activation::relu2: return each([](V x) { return hn::Mul(relu(x), relu(x)); });
    case Activation::swiglu_oai:
      return for_each<kPanel>(rows, kPanel, bias, sums, [&](V g, V u) {
        const V low = at_most(g, limit);
        const V swish = hn::Mul(low, sigmoid(hn::Mul(alpha, low)));
        return hn::Mul(hn::Add(clamp(u, limit), set(1.0f)), swish);
      });
    case Activation::swiglu_step:
      return for_each<kPanel>(rows, kPanel, bias, sums, [&](V g, V u) {
        return hn::Mul(at_most(silu(g), limit), clamp(u, limit));
      });
  }
}

constexpr Kernels kernels(const char* name, bool (*available)()) {
  return {name,          available,      kMaxRows,     multiply<F32>,
          multiply<F16>, multiply<Bf16>, multiply_fp8, activate};
}

}  // namespace HWY_NAMESPACE
}  // namespace moe::cpu
HWY_AFTER_NAMESPACE();

#undef MOE_UNROLL
#endif  // include guard per target
