// Few rows in two kernels (gemm/few_tiles.h) beside the same layer in one kernel a step: the same
// bits, whatever a layer has, and never more launches.
#include <cstring>
#include <optional>

#include "catch.h"
#include "cuda/host.h"
#include "cuda/oracle.h"
#include "moe/moe.h"
#include "runtime/layer.h"
#include "store/table.h"

namespace {

using namespace moe;
using namespace moe::cuda;
using namespace moe::cuda::test;
using moe::test::Random;
using moe::test::RandomModel;
using moe::test::skip;
using HostRows = moe::test::Rows;

// Random weights in slots of their own, as kernels see them.
struct Weights {
  Weights(const SlotShape& shape, int64_t slots, int32_t candidates, uint64_t seed)
      : memory(slots * slot_sections(shape).bytes) {
    pool.shape = shape;
    pool.sections = slot_sections(shape);
    pool.slots = slots;
    pool.num_experts = candidates;
    pool.slot_bytes = pool.sections.bytes;
    pool.base = memory.data();
    MOE_CHECK(fill_pool(pool, memory.data(), seed));
    MOE_CHECK(make_pool_maps(pool, &maps));
  }
  void give(Network* to, int32_t activation) const {
    to->pool = pool;
    to->kernel = &kHopper;
    to->maps = &maps;
    to->activation = activation;
    to->alpha = 1.702f;
    to->limit = 1.5f;
    to->rows = RowPrecision::exact;
  }
  ExpertPool pool;
  Buffer<std::byte> memory;
  PoolMaps maps;
};

struct Shape {
  int64_t tokens, hidden, intermediate, shared_intermediate;  // the last 0: no shared expert
  int32_t experts, zero_experts, top_k;
  int32_t element_bytes;
  bool bias, gated_by_row, weights_on_input, accumulate, in_place, given_logits;
  int32_t capacity, activation, valid_rows;
  double chosen;  // how many of the choices are an expert

  explicit Shape(Random& random) {
    const auto below = [&](int64_t most) { return random.between(1, most); };
    element_bytes = random.chance(0.5) ? 1 : 2;
    tokens = below(16);
    hidden = 16 * below(random.chance(0.3) ? 200 : 30);
    intermediate = 16 * below(60);
    shared_intermediate = random.chance(0.6) ? 16 * below(60) : 0;
    experts = static_cast<int32_t>(random.one_of({1, 2, 5, 16, 60}));
    zero_experts = random.chance(0.3) ? static_cast<int32_t>(below(4)) : 0;
    top_k = static_cast<int32_t>(below(std::min(experts + zero_experts, 10)));
    bias = random.chance(0.4);
    gated_by_row = random.chance(0.5);
    weights_on_input = random.chance(0.2);
    accumulate = random.chance(0.3);
    in_place = random.chance(0.3);
    given_logits = random.chance(0.5);
    capacity = random.chance(0.3) ? static_cast<int32_t>(below(5)) : 0;
    activation = static_cast<int32_t>(random.chance(0.5) ? 0 : random.between(0, 6));
    valid_rows =
        static_cast<int32_t>(random.chance(0.3) ? random.between(0, tokens) : int64_t{tokens});
    chosen = random.one_of({1.0, 1.0, 0.7, 0.0});
  }
  int32_t candidates() const { return experts + zero_experts; }
};

// A layer behind a table of its own; run() gives the bytes of the output.
class Layer {
 public:
  Layer(const Shape& shape, Random& random)
      : s(shape),
        routed_({s.hidden, s.intermediate, s.element_bytes, s.bias}, s.experts + 2, s.candidates(),
                7),
        hidden_(random, s.tokens, s.hidden, type_of(random), random.between(0, 9)),
        before_(random, s.tokens, s.hidden, s.in_place ? hidden_.dtype : type_of(random),
                s.in_place ? hidden_.stride - s.hidden : random.between(0, 9)),
        gate_(random, 1, s.hidden, DType::f32),
        in_(hidden_),
        out_(before_),
        gate_weights_(gate_),
        ids_(random_ids(random)),
        weights_(random_weights(random)),
        logits_(random_logits(random)),
        mask_(random_mask(random)),
        valid_rows_(std::vector<int64_t>{s.valid_rows}),
        table_(table_bytes(s.candidates())),
        cell_(1),
        counters_(std::vector<EpochCounters>{EpochCounters()}) {
    if (s.shared_intermediate > 0)
      shared_.emplace(SlotShape{s.hidden, s.shared_intermediate, s.element_bytes, s.bias}, 3, 1,
                      11);
    write_table();
    MOE_CHECK(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, 0));
    *report.report = {};
  }

  // few_tiles as LayerArgs has it; counts the launches.
  HostRows run(int32_t few_tiles, size_t* launches) {
    const Buffer<std::byte> workspace(
        static_cast<int64_t>(layer_workspace_bytes(layer_shape(), s.tokens, s.top_k)));  // poisoned
    LayerArgs args = layer_args();
    args.workspace = workspace.data();
    args.few_tiles = few_tiles;
    const DeviceRows& out = s.in_place ? in_ : out_;
    const std::vector<std::byte>& first = s.in_place ? hidden_.bytes : before_.bytes;
    MOE_CHECK(cudaMemcpy(out.bytes.data(), first.data(), first.size(), cudaMemcpyHostToDevice));
    *report.report = {};
    MOE_CHECK(cudaDeviceSynchronize());

    const OwnStream stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    MOE_CHECK(cudaStreamBeginCapture(stream.stream, cudaStreamCaptureModeGlobal));
    const cudaError_t error = enqueue_layer(args, stream.stream);
    MOE_CHECK(cudaStreamEndCapture(stream.stream, &graph));
    MOE_CHECK(error);
    MOE_CHECK(cudaGraphGetNodes(graph, nullptr, launches));
    MOE_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    MOE_CHECK(cudaGraphLaunch(exec, stream.stream));
    MOE_CHECK(cudaStreamSynchronize(stream.stream));
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    return out.host();
  }
  const HostRows& before() const { return s.in_place ? hidden_ : before_; }
  EpochCounters counters() const { return counters_.host()[0]; }

  const Shape s;
  const Pinned report;

 private:
  static DType type_of(Random& random) {
    return random.one_of({DType::bf16, DType::bf16, DType::f16, DType::f32});
  }
  std::vector<int32_t> random_ids(Random& random) const {
    std::vector<int32_t> ids, all(static_cast<size_t>(s.candidates()));
    for (int32_t e = 0; e < s.candidates(); ++e) all[e] = e;
    for (int64_t t = 0; t < s.tokens; ++t)
      for (int32_t j = 0; j < s.top_k; ++j) {
        std::swap(all[j], all[random.between(j, s.candidates() - 1)]);
        ids.push_back(random.chance(s.chosen) ? all[j] : -1);
      }
    return ids;
  }
  std::vector<float> random_weights(Random& random) const {
    std::vector<float> weights;
    for (int64_t p = 0; p < s.tokens * s.top_k; ++p) weights.push_back(random.normal());
    return weights;
  }
  std::vector<float> random_logits(Random& random) const {
    std::vector<float> logits;
    for (int64_t i = 0; i < s.tokens * s.candidates(); ++i) logits.push_back(random.normal());
    if (random.chance(0.3)) logits[0] = NAN;
    return logits;
  }
  std::vector<uint8_t> random_mask(Random& random) const {
    std::vector<uint8_t> mask;
    for (int64_t i = 0; i < s.tokens * s.candidates(); ++i) mask.push_back(random.chance(s.chosen));
    return mask;
  }
  void write_table() {
    DeviceTable head;
    head.candidates = s.candidates();
    head.shared_slot = 2;
    if (s.gated_by_row)
      head.block.shared_gate = reinterpret_cast<const float*>(gate_weights_.bytes.data());
    std::vector<int32_t> slots(static_cast<size_t>(s.candidates()), -1);
    for (int32_t e = 0; e < s.experts; ++e) slots[e] = s.experts + 1 - e;
    MOE_CHECK(cudaMemcpy(table_.data(), &head, sizeof head, cudaMemcpyHostToDevice));
    MOE_CHECK(cudaMemcpy(table_.data() + sizeof head, slots.data(), slots.size() * 4,
                         cudaMemcpyHostToDevice));
    const auto* at = reinterpret_cast<const DeviceTable*>(table_.data());
    MOE_CHECK(cudaMemcpy(cell_.data(), &at, sizeof at, cudaMemcpyHostToDevice));
  }
  LayerShape layer_shape() const {
    LayerShape shape;
    shape.routed = routed_.pool.shape;
    shape.num_experts = s.candidates();
    if (shared_) shape.shared = shared_->pool.shape;
    shape.from_table = true;
    shape.weights_on_input = s.weights_on_input;
    return shape;
  }
  LayerArgs layer_args() {
    LayerArgs args;
    routed_.give(&args, s.activation);
    if (shared_) {
      shared_->give(&shared_network_, s.activation);
      shared_network_.gated_by_row = s.gated_by_row;
      shared_network_.scale = 0.7f;
      args.shared = &shared_network_;
    }
    reader_.counters = counters_.data();
    reader_.cell = cell_.data();
    reader_.report = report.report;
    reader_.valid_rows = valid_rows_.data();
    args.reader = &reader_;
    args.tokens = s.tokens;
    args.top_k = s.top_k;
    args.zero_experts = s.zero_experts;
    args.capacity = s.capacity;
    args.weights_on_input = s.weights_on_input;
    args.routed_scale = 1.3f;
    args.hidden = {in_.bytes.data(), hidden_.dtype, hidden_.stride};
    const HostRows& like = before();
    args.out = {(s.in_place ? in_ : out_).bytes.data(), like.dtype, like.stride};
    args.accumulate = s.accumulate;
    if (s.given_logits) {
      args.logits = {logits_.data(), DType::f32, s.candidates()};
      args.mask = mask_.data();
    } else {
      args.ids_in = ids_.data();
      args.weights_in = weights_.data();
    }
    args.multiprocessors = multiprocessors_;
    args.decode = 0;
    return args;
  }

  Weights routed_;
  std::optional<Weights> shared_;
  SharedNetwork shared_network_;
  TableReader reader_;
  HostRows hidden_, before_, gate_;
  DeviceRows in_, out_, gate_weights_;
  Buffer<int32_t> ids_;
  Buffer<float> weights_, logits_;
  Buffer<uint8_t> mask_;
  Buffer<int64_t> valid_rows_;
  Buffer<std::byte> table_;
  Buffer<const DeviceTable*> cell_;
  Buffer<EpochCounters> counters_;
  int multiprocessors_ = 0;
};

int64_t rows_that_differ(const HostRows& a, const HostRows& b, int64_t first, int64_t end) {
  const int64_t bytes = a.stride * bits_of(a.dtype) / 8;
  int64_t different = 0;
  for (int64_t t = first; t < end; ++t)
    different += std::memcmp(a.bytes.data() + t * bytes, b.bytes.data() + t * bytes, bytes) != 0;
  return different;
}

}  // namespace

TEST_CASE("few rows in two kernels have the bits of one kernel a step", "[cuda][small]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(moe::test::seed());
  for (int round = 0; round < 120; ++round) {
    const Shape s(random);
    CAPTURE(round, s.tokens, s.hidden, s.intermediate, s.shared_intermediate, s.experts);
    CAPTURE(s.zero_experts, s.top_k, s.element_bytes, s.bias, s.gated_by_row, s.weights_on_input);
    CAPTURE(s.accumulate, s.in_place, s.given_logits, s.capacity, s.activation, s.valid_rows);
    CAPTURE(s.chosen);
    Layer layer(s, random);
    size_t apart = 0, together = 0;
    const HostRows want = layer.run(0, &apart);
    const ForwardReport wanted = *layer.report.report;
    const HostRows got = layer.run(-1, &together);
    CHECK(apart > 3);
    CHECK(together == 2);
    // Weights on the input are a factor of the products here and of the rounded rows there.
    if (s.weights_on_input)
      CHECK(distance(got, want, s.valid_rows) < 2e-2);
    else
      CHECK(rows_that_differ(got, want, 0, s.valid_rows) == 0);
    CHECK(rows_that_differ(got, layer.before(), s.valid_rows, s.tokens) == 0);
    CHECK(layer.report.report->rows == s.valid_rows);
    CHECK(layer.report.report->dropped == wanted.dropped);
    CHECK(layer.counters().entered == 2);
    CHECK(layer.counters().exited == 2);
  }
}

TEST_CASE("a forward of up to sixteen rows is two or three launches", "[cuda][small]") {
  if (!have_gpu()) return skip(kNoGpu);
  Random random(moe::test::seed());
  const OwnStream stream;
  for (const Format format : {Format{FormatKind::bf16, 0}, Format{FormatKind::fp8_block, 128}})
    for (const bool shared : {false, true})
      for (const int32_t experts : {2, 16}) {  // two: up to 16 rows each
        LayerSpec spec = plain_layer(0, experts, 2);
        spec.expert.hidden = 192;
        spec.expert.format = format;
        spec.router.weight_on_input = random.chance(0.5);
        if (shared) {
          spec.shared.emplace();
          spec.shared->expert = spec.expert;
          spec.shared->sigmoid_gate = random.chance(0.5);
        }
        const RandomModel source({spec}, random, DType::bf16);
        Model model = must(Model::create(source.source(), {.device = kGpu}));
        Context context =
            must(Context::create(model, {.stream = cuda_stream(stream.stream), .max_tokens = 16}));
        for (int64_t tokens = 1; tokens <= 16; ++tokens) {
          CAPTURE(to_string(format.kind), shared, experts, tokens, spec.router.weight_on_input);
          const HostRows hidden(random, tokens, spec.hidden(),
                                random.one_of({DType::bf16, DType::f32}));
          const DeviceRows in(hidden), out(hidden);
          const bool decoded = format.kind == FormatKind::bf16 && tokens == 1;
          CHECK(launches(model, context, stream, 0, in, out) == (decoded ? 3 : 2));
        }
      }
}
