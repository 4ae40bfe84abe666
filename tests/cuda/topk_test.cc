// The GPU's choice of experts against the CPU's router, bit for bit: random rules, hostile rows.
#include "router/topk.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <sstream>

#include "catch.h"
#include "cuda/buffer.h"
#include "moe/router.h"

namespace {

using namespace moe;
using namespace moe::cuda;
using moe::cuda::test::Buffer;
using moe::cuda::test::have_gpu;
using moe::test::skip;
using Random = std::mt19937;

int below(Random& random, int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); }

template <typename T>
T one_of(Random& random, std::initializer_list<T> values) {
  return values.begin()[below(random, static_cast<int>(values.size()))];
}

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// ---- rows

enum RowKind {
  ordinary,
  ties,
  any_bits,
  no_candidate,
  denormal,
  huge,
  constant,
  sparse,
  kRowKinds
};

void fill_row(Random& random, float* row, int32_t n) {
  const int kind = below(random, 2) ? ordinary : below(random, kRowKinds);
  const float nothing = one_of(random, {-HUGE_VALF, HUGE_VALF, std::nanf("")});
  const float value = float_of(static_cast<uint32_t>(random()));
  for (int32_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(random());
    const float unit = static_cast<float>(static_cast<int32_t>(bits)) * 0x1p-31f;
    switch (kind) {
      case ordinary: row[i] = unit * 8; break;
      case ties: row[i] = std::round(unit * 3); break;
      case any_bits: row[i] = float_of(bits); break;
      case no_candidate: row[i] = nothing; break;
      case denormal: row[i] = float_of(bits & 0x807fffffu); break;
      case huge: row[i] = unit * std::numeric_limits<float>::max(); break;
      case constant: row[i] = value; break;
      default: row[i] = bits % 8 ? nothing : unit; break;
    }
  }
}

// ---- rules

struct Problem {
  RouterSpec spec;
  int32_t top_k = 0;  // of the call
  int64_t tokens = 0, valid = 0;
  bool bias = false, scale = false, mask = false, wide = false;

  static constexpr int64_t kVocabulary = 100;
};

void choose_groups(Random& random, RouterSpec* spec) {
  const int32_t c = spec->candidates();
  const bool by_32 = c % 32 == 0 && below(random, 2);  // has a kernel of its own
  const int32_t groups = by_32 ? c / 32 : 1 << below(random, 6);
  if (c % groups != 0 || c / groups < 2) return;
  spec->num_groups = groups;
  const int32_t least = (spec->top_k + c / groups - 1) / (c / groups);
  spec->top_groups = least + below(random, groups - least + 1);
  spec->group_score = one_of(random, {GroupScore::max, GroupScore::top2_sum});
}

Problem make_problem(Random& random, int64_t tokens) {
  Problem p;
  RouterSpec& s = p.spec;
  s.num_experts =
      one_of(random, {1, 2, 3, 8, 31, 32, 33, 64, 100, 128, 128, 160, 256, 256, 384, 512});
  if (below(random, 40) == 0) s.num_experts = one_of(random, {1024, 2000, 4096});
  s.num_zero_experts = s.num_experts < 4096 ? one_of(random, {0, 0, 0, 8}) : 0;
  s.top_k = 1 + below(random, std::min(s.candidates(), kMaxTopK));
  s.scoring = static_cast<Scoring>(below(random, 4));
  s.weighting = static_cast<Weighting>(below(random, 3));
  s.normalize = static_cast<Normalize>(below(random, 4));
  s.epsilon = one_of(random, {0.f, 1e-20f, 1e-6f, 1.f});
  s.norm_power = one_of(random, {0.5f, 1.f, 2.f, 3.f});
  s.scaling = one_of(random, {1.f, 2.5f, -0.3f, 16.f});
  s.softcap = one_of(random, {0.f, 0.f, 30.f, 0.5f});
  const int selection = below(random, 10);
  if (selection == 0) {
    s.selection = Selection::sparsemixer;
    s.weighting = Weighting::score;
    s.top_k = std::min(s.top_k, 2);
    s.sparsemixer_epsilon = one_of(random, {0.f, 0.01f, 0.5f});
  } else if (selection == 1) {
    s.selection = Selection::token_lookup;
  } else if (below(random, 2)) {
    choose_groups(random, &s);
  }
  p.top_k = below(random, 3) ? s.top_k : 1 + below(random, s.top_k);
  p.tokens = s.candidates() > 600 ? tokens / 16 : tokens;
  p.valid = below(random, 4) ? p.tokens : below(random, static_cast<int>(p.tokens) + 1);
  p.bias = s.selection == Selection::top_k && below(random, 2);
  p.scale = below(random, 4) == 0;
  if (s.selection == Selection::top_k && below(random, 5) == 0) {  // what most models do
    s.num_groups = s.top_groups = 1;
    s.weighting = Weighting::softmax_of_selected_logits;
    s.normalize = Normalize::none;
    s.softcap = 0;
    p.bias = p.scale = false;
  }
  p.mask = below(random, 4) == 0;
  p.wide = below(random, 2);
  return p;
}

// ---- both routers

struct Inputs {
  std::vector<float> logits, bias, scale;
  std::vector<uint8_t> mask;
  std::vector<int64_t> token_ids, table;
  std::vector<int32_t> narrow_table;
};

Inputs make_inputs(const Problem& p, Random& random, Executor& executor) {
  const int64_t c = p.spec.candidates();
  Inputs in;
  in.logits.resize(p.tokens * c);
  struct Fill {
    Inputs* in;
    int64_t c, tokens;
    uint32_t seed;
  } fill{&in, c, p.tokens, static_cast<uint32_t>(random())};
  executor.run((p.tokens + 255) / 256,
               [](void* argument, int64_t i, int) {
                 const Fill& f = *static_cast<Fill*>(argument);
                 Random mine(f.seed + static_cast<uint32_t>(i));
                 for (int64_t t = i * 256; t < std::min(i * 256 + 256, f.tokens); ++t)
                   fill_row(mine, f.in->logits.data() + t * f.c, static_cast<int32_t>(f.c));
               },
               &fill);
  for (int64_t i = 0; i < c; ++i) {
    in.bias.push_back(static_cast<float>(below(random, 200) - 100) / 50);
    in.scale.push_back(static_cast<float>(below(random, 200)) / 100);
  }
  if (below(random, 4) == 0) in.bias[0] = -HUGE_VALF;
  if (p.mask)
    for (int64_t i = 0; i < p.tokens * c; ++i) in.mask.push_back(below(random, 4) != 0);
  for (int64_t t = 0; t < p.tokens; ++t)
    in.token_ids.push_back(below(random, static_cast<int>(Problem::kVocabulary)));
  for (int64_t i = 0; i < Problem::kVocabulary * p.spec.top_k; ++i) {
    in.table.push_back(below(random, static_cast<int>(c)));
    in.narrow_table.push_back(static_cast<int32_t>(in.table.back()));
  }
  return in;
}

struct Routed {
  std::vector<int32_t> ids;
  std::vector<float> weights;
  RouteCounts counts;
};

bool same_bits(const Routed& a, const Routed& b) {
  return a.ids == b.ids && a.weights.size() == b.weights.size() &&
         std::memcmp(a.weights.data(), b.weights.data(), a.weights.size() * 4) == 0 &&
         a.counts.nonfinite_rows == b.counts.nonfinite_rows &&
         a.counts.short_rows == b.counts.short_rows;
}

Routed route_on_cpu(const Problem& p, const Inputs& in, Executor& executor) {
  const int64_t c = p.spec.candidates();
  RouterWeights weights;
  if (p.bias) weights.selection_bias = TensorView(in.bias.data(), DType::f32, {c});
  if (p.scale) weights.per_expert_scale = TensorView(in.scale.data(), DType::f32, {c});
  if (p.spec.selection == Selection::token_lookup)
    weights.token_experts =
        p.wide
            ? TensorView(in.table.data(), DType::i64, {Problem::kVocabulary, p.spec.top_k})
            : TensorView(in.narrow_table.data(), DType::i32, {Problem::kVocabulary, p.spec.top_k});
  auto router = Router::create(p.spec, weights);
  INFO((router.ok() ? Status() : router.status()).message());
  REQUIRE(router.ok());

  Routed out;  // past the valid rows: no expert
  out.ids.assign(p.tokens * p.top_k, -1);
  out.weights.assign(p.tokens * p.top_k, 0);
  RouteInput input;
  input.logits = TensorView(in.logits.data(), DType::f32, {p.valid, c});
  input.token_ids = in.token_ids.data();
  input.top_k = p.top_k;
  if (p.mask) input.expert_mask = in.mask.data();
  input.executor = &executor;
  const size_t bytes = (*router)->workspace_bytes(p.valid, executor.concurrency());
  std::vector<std::byte> workspace(bytes + 64);
  const size_t skew = reinterpret_cast<uintptr_t>(workspace.data()) % 64;
  input.workspace = {workspace.data() + (64 - skew) % 64, bytes};
  const Status status =
      (*router)->route(input, {p.valid, p.top_k, out.ids.data(), out.weights.data()}, &out.counts);
  INFO(status.message());
  REQUIRE(status.ok());
  return out;
}

Routed route_on_gpu(const Problem& p, const Inputs& in) {
  const Buffer<float> logits(in.logits), bias(in.bias), scale(in.scale);
  const Buffer<uint8_t> mask(in.mask);
  const Buffer<int64_t> token_ids(in.token_ids), table(in.table);
  const Buffer<int32_t> narrow_table(in.narrow_table);
  const Buffer<int64_t> valid(std::vector<int64_t>{p.valid});
  const Buffer<RouteCounts> counts(std::vector<RouteCounts>(1));
  const Buffer<int32_t> ids(p.tokens * p.top_k);
  const Buffer<float> weights(p.tokens * p.top_k);

  TopKArgs args;
  args.rule = rule::make_rule(p.spec, p.top_k);
  if (p.bias) args.rule.selection_bias = bias.data();
  if (p.scale) args.rule.per_expert_scale = scale.data();
  args.rule.token_experts_wide = p.wide;
  args.rule.token_experts = p.wide ? static_cast<const void*>(table.data()) : narrow_table.data();
  args.rule.token_experts_stride = p.spec.top_k;
  args.rule.vocabulary = Problem::kVocabulary;
  args.logits = logits.data();
  args.tokens = p.tokens;
  if (p.mask) args.mask = mask.data();
  args.token_ids = token_ids.data();
  args.valid_rows = valid.data();
  args.ids = ids.data();
  args.weights = weights.data();
  args.counts = counts.data();
  MOE_CHECK(launch_topk(args, nullptr));
  MOE_CHECK(cudaDeviceSynchronize());
  return {ids.host(), weights.host(), counts.host()[0]};
}

// Where two first differ, with the row's inputs.
std::string difference(const Routed& gpu, const Routed& cpu, const Problem& p, const Inputs& in) {
  std::ostringstream text;
  text << std::hexfloat << "nonfinite rows " << gpu.counts.nonfinite_rows << ", "
       << cpu.counts.nonfinite_rows << ", short rows " << gpu.counts.short_rows << ", "
       << cpu.counts.short_rows;
  for (size_t i = 0; i < gpu.ids.size(); ++i) {
    if (gpu.ids[i] == cpu.ids[i] && std::memcmp(&gpu.weights[i], &cpu.weights[i], 4) == 0) continue;
    const size_t row = i / p.top_k, candidates = p.spec.candidates();
    text << "; row " << row << ", place " << i % p.top_k << ": expert " << gpu.ids[i] << ", "
         << cpu.ids[i] << ", weight " << gpu.weights[i] << ", " << cpu.weights[i] << "; logits";
    for (size_t c = 0; c < candidates; ++c) text << " " << in.logits[row * candidates + c];
    if (p.bias) text << "; bias";
    for (size_t c = 0; p.bias && c < candidates; ++c) text << " " << in.bias[c];
    break;
  }
  return text.str();
}

int64_t compare(int64_t rows, int64_t tokens) {
  Random random(static_cast<uint32_t>(moe::test::seed()));
  auto executor = make_executor();
  REQUIRE(executor.ok());
  int64_t done = 0;
  while (done < rows) {
    const Problem p = make_problem(random, tokens);
    const Inputs in = make_inputs(p, random, **executor);
    INFO("after " << done << " rows: " << p.spec.candidates() << " candidates, top_k " << p.top_k
                  << ", scoring " << int(p.spec.scoring) << ", selection " << int(p.spec.selection)
                  << ", weighting " << int(p.spec.weighting) << ", normalize "
                  << int(p.spec.normalize) << ", groups " << p.spec.num_groups);
    const Routed gpu = route_on_gpu(p, in), cpu = route_on_cpu(p, in, **executor);
    if (!same_bits(gpu, cpu)) FAIL(difference(gpu, cpu, p, in));
    done += p.valid;
  }
  return done;
}

TEST_CASE("the GPU routes with the CPU's bits", "[cuda]") {
  if (!have_gpu()) return skip("there is no CUDA device here");
  compare(5000, 32);
}

// A problem of the most candidates and the most choices; every second of the plain rule.
Problem largest_problem(Random& random, int round) {
  Problem p = make_problem(random, 1024);
  RouterSpec& s = p.spec;
  s.num_experts = kMaxExperts - s.num_zero_experts;
  s.top_k = p.top_k = s.selection == Selection::sparsemixer ? 2 : kMaxTopK;
  s.num_groups = s.top_groups = 1;
  if (s.selection == Selection::top_k && round % 2 == 0) {
    s.num_groups = one_of(random, {1, 64, 1024, 2048});
    s.top_groups = std::max<int32_t>(1, s.num_groups / 2);
  }
  p.tokens = 64;
  p.valid = below(random, 2) ? p.tokens : p.tokens - 7;
  return p;
}

TEST_CASE("4096 candidates and 32 choices have the CPU's bits too", "[cuda]") {
  if (!have_gpu()) return skip("there is no CUDA device here");
  CHECK(kMaxExperts == 4096);
  CHECK(kMaxTopK == 32);
  Random random(static_cast<uint32_t>(moe::test::seed()));
  auto executor = make_executor();
  REQUIRE(executor.ok());
  for (int round = 0; round < 40; ++round) {
    const Problem p = largest_problem(random, round);
    const Inputs in = make_inputs(p, random, **executor);
    INFO("scoring " << int(p.spec.scoring) << ", selection " << int(p.spec.selection) << ", groups "
                    << p.spec.num_groups << ", zero experts " << p.spec.num_zero_experts);
    REQUIRE(same_bits(route_on_gpu(p, in), route_on_cpu(p, in, **executor)));
  }
}

TEST_CASE("more candidates or choices than the GPU's router takes are refused", "[cuda]") {
  if (!have_gpu()) return skip("there is no CUDA device here");
  const Buffer<float> logits(5000), weights(64);
  const Buffer<int32_t> ids(64);
  TopKArgs args;
  args.logits = logits.data();
  args.tokens = 1;
  args.ids = ids.data();
  args.weights = weights.data();
  args.rule.top_k = 1;
  args.rule.candidates = kMaxExperts + 1;
  CHECK(launch_topk(args, nullptr) == cudaErrorInvalidValue);
  args.rule.candidates = 64;
  args.rule.top_k = kMaxTopK + 1;
  CHECK(launch_topk(args, nullptr) == cudaErrorInvalidValue);
}

TEST_CASE("the GPU routes ten million rows with the CPU's bits", "[cuda][slow]") {
  if (!have_gpu()) return skip("there is no CUDA device here");
  WARN(compare(10'000'000, 16384) << " rows alike");
}

}  // namespace
