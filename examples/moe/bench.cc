// moe bench: the forward of one layer beside what the machine could do at best.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <random>

#include <fmt/format.h>

#include "batch.h"
#include "commands.h"
#include "gpu.h"
#include "json.h"
#include "machine.h"
#include "names.h"
#include "spec.h"
#include "terminal.h"
#include "work.h"

namespace moe::cli {
namespace {

constexpr int kSamples = 7;  // forwards per point, with a sample of each limit before every one

struct Options {
  SpecOptions spec;
  std::string checkpoint;
  std::string gemm, row_precision = "automatic", device = "cpu";
  bool no_shared = false;
  std::vector<int64_t> tokens = {1, 4, 16, 64, 256};
  int threads = 0;
  std::string format;  // of kFormats; empty: as the weights come
  int32_t group = 0;   // 0: the format's own
  std::string row_type = "f32";
  bool json = false;
};

struct Spread {
  double median = 0, least = 0, most = 0;
};

Spread spread(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  return {samples[samples.size() / 2], samples.front(), samples.back()};
}

struct Point {
  int64_t tokens = 0;
  Spread us;
  double flops = 0, weight_bytes = 0;  // means over the samples

  double gflops() const { return flops / us.median / 1e3; }
  double weight_gbs() const { return weight_bytes / us.median / 1e3; }
};

// Medians of the samples of all points.
struct Peaks {
  double dram_read_gbs = 0, fma_gflops = 0;
  double int8_dot_gops = 0, int4_dot_gops = 0;  // 0: not measured on this kind of machine

  // What the weights' format allows at best. Exact rows are multiplied in fp32.
  double compute(FormatKind weights, bool exact) const {
    if (exact) return fma_gflops;
    if (weights == FormatKind::int8 && int8_dot_gops > 0) return int8_dot_gops;
    if (weights == FormatKind::int4 && int4_dot_gops > 0) return int4_dot_gops;
    return fma_gflops;
  }
};

// What is printed.
struct Answer {
  std::string like;
  Format format;
  std::string row_type, row_precision;
  int threads;
  Peaks peaks;
  std::vector<Point> points;

  double roofline_fraction(const Point& point) const {
    const double peak = peaks.compute(format.kind, row_precision == "exact");
    return std::max(point.gflops() / peak, point.weight_gbs() / peaks.dram_read_gbs);
  }
};

struct Bench {
  const WeightSource& source;
  Model& model;
  Limits& limits;
  DType rows;
  std::vector<double> dram_gbs, fma_gflops, int8_gops, int4_gops;
  size_t next_layer = 0;

  void sample_limits() {
    dram_gbs.push_back(limits.dram_read_gbs());
    fma_gflops.push_back(limits.fma_gflops());
    int8_gops.push_back(limits.int8_dot_gops());
    int4_gops.push_back(limits.int4_dot_gops());
  }
  Peaks peaks() const {
    return {spread(dram_gbs).median, spread(fma_gflops).median, spread(int8_gops).median,
            spread(int4_gops).median};
  }
};

// Forwards through copy after copy of the layer, with other rows each time.
Result<Point> measure(Bench& bench, int64_t tokens) {
  Point point{.tokens = tokens};
  std::vector<double> us;
  for (int sample = -1; sample < kSamples; ++sample) {  // the first one warms up
    const LayerSpec& layer = bench.model.layers()[bench.next_layer++ % bench.model.layers().size()];
    Batch batch =
        random_batch(bench.source, layer, tokens, static_cast<uint64_t>(sample + 1), bench.rows);
    bench.sample_limits();
    // Vectors get their memory before the clock starts.
    batch.out.resize(batch.hidden.size());
    batch.ids.resize(static_cast<size_t>(tokens * layer.router.top_k));
    batch.weights.resize(batch.ids.size());
    const auto start = std::chrono::steady_clock::now();
    if (Status status = forward(bench.model, layer, batch); !status.ok()) return status;
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
    if (sample < 0) continue;
    us.push_back(took.count());
    const Work work = work_of(layer, batch.ids, batch.rows, true);
    point.flops += work.flops / kSamples;
    point.weight_bytes += work.weight_bytes / kSamples;
  }
  point.us = spread(std::move(us));
  return point;
}

void print_json(const Answer& answer) {
  const Peaks& peaks = answer.peaks;
  const std::string dtype = to_string(answer.format.kind);
  Json json;
  json.value("threads", answer.threads).value("row_type", answer.row_type);
  json.value("row_precision", answer.row_precision).value("group", answer.format.group);
  json.object("limits");
  json.value("dram_read_gbs", peaks.dram_read_gbs).value("fma_gflops", peaks.fma_gflops);
  json.value("int8_dot_gops", peaks.int8_dot_gops).value("int4_dot_gops", peaks.int4_dot_gops);
  json.end().array("points");
  for (const Point& point : answer.points) {
    json.object().value("like", answer.like).value("tokens", point.tokens).value("dtype", dtype);
    json.value("us", point.us.median).value("us_min", point.us.least);
    json.value("us_max", point.us.most).value("gflops", point.gflops());
    json.value("weight_gbs", point.weight_gbs());
    json.value("dram_fraction", point.weight_gbs() / peaks.dram_read_gbs);
    json.value("fma_fraction", point.gflops() / peaks.fma_gflops);
    json.value("roofline_fraction", answer.roofline_fraction(point)).end();
  }
  json.print();
}

void print_text(const Answer& answer) {
  const Peaks& peaks = answer.peaks;
  fmt::print(
      "{}, {}, rows in {} ({}), {} threads; limits: DRAM read {:.1f} GB/s, FMA {:.1f} GFLOP/s, dot "
      "products of int8 {:.1f} and int4 {:.1f} GOP/s\n",
      answer.like, to_string(answer.format.kind), answer.row_type, answer.row_precision,
      answer.threads, peaks.dram_read_gbs, peaks.fma_gflops, peaks.int8_dot_gops,
      peaks.int4_dot_gops);
  fmt::print("{:>8} {:>12} {:>23} {:>12} {:>14} {:>8} {:>8} {:>10}\n", "tokens", "us",
             "least .. most", "GFLOP/s", "weights GB/s", "of DRAM", "of FMA", "of limit");
  for (const Point& point : answer.points)
    fmt::print(
        "{:>8} {:>12.1f} {:>10.1f} .. {:>9.1f} {:>12.2f} {:>14.2f} {:>8.2f} {:>8.2f} {:>8.1f} %\n",
        point.tokens, point.us.median, point.us.least, point.us.most, point.gflops(),
        point.weight_gbs(), point.weight_gbs() / peaks.dram_read_gbs,
        point.gflops() / peaks.fma_gflops, 100 * answer.roofline_fraction(point));
}

// What --format can ask for, each with its usual group.
constexpr struct {
  const char* name;
  Format format;
} kFormats[] = {{"f32", {FormatKind::f32}},
                {"f16", {FormatKind::f16}},
                {"bf16", {FormatKind::bf16}},
                {"fp8", {FormatKind::fp8_block, 128}},
                {"int8", {FormatKind::int8, 0, DType::bf16}},
                {"int4", {FormatKind::int4, 32, DType::bf16}}};

std::vector<std::string> format_names() {
  std::vector<std::string> names;
  for (const auto& row : kFormats) names.emplace_back(row.name);
  return names;
}

// What --format asks for; none: as the weights come.
std::optional<Format> wanted_format(const Options& options) {
  for (const auto& row : kFormats) {
    if (options.format != row.name) continue;
    Format format = row.format;
    if (options.group != 0) format.group = options.group;
    return format;
  }
  return std::nullopt;
}

// Enough copies of the layer that their weights pass through no cache, if memory allows.
Result<SyntheticSpec> rotated(SyntheticSpec spec, const std::optional<Format>& kept) {
  const ExpertSpec expert{
      .hidden = spec.hidden, .intermediate = spec.intermediate, .format = kept.value_or(Format{})};
  const double bytes =
      kept ? expert_bytes(expert)
           : 3.0 * bits_of(spec.dtype) / 8 * static_cast<double>(spec.hidden * spec.intermediate);
  const double layer = spec.experts * bytes;
  const double memory = 0.8 * static_cast<double>(available_memory());
  if (layer > memory)
    return Status(
        StatusCode::resource_exhausted,
        fmt::format("one layer takes {}, and {} are free; try --experts {}", human_bytes(layer),
                    human_bytes(memory), static_cast<int>(spec.experts * memory / layer)));
  const double wanted = 4.0 * static_cast<double>(last_level_cache());
  const double copies = std::clamp(std::ceil(wanted / layer), 2.0, 16.0);
  spec.layers = static_cast<int32_t>(std::min(copies, std::floor(memory / layer)));
  return spec;
}

Result<std::unique_ptr<WeightSource>> open_source(const Options& options) {
  if (!options.checkpoint.empty()) {
    Result<Checkpoint> opened = Checkpoint::open(options.checkpoint);
    if (!opened.ok()) return opened.status();
    return std::make_unique<Checkpoint>(*std::move(opened));
  }
  const SyntheticSpec spec = make_spec(options.spec);
  if (options.spec.layers) return make_synthetic(spec);
  const Result<SyntheticSpec> copies = rotated(spec, wanted_format(options));
  if (!copies.ok()) return copies.status();
  return make_synthetic(*copies);
}

// As on the CPU, but one copy of the layer: a graph's rows and routings differ instead.
Result<std::unique_ptr<WeightSource>> open_gpu_source(const Options& options) {
  if (!options.checkpoint.empty()) return open_source(options);
  SyntheticSpec spec = make_spec(options.spec);
  if (!options.spec.layers) spec.layers = 1;
  return make_synthetic(spec);
}

// The most that the card allows.
double gpu_fraction(const GpuLimits& limits, FormatKind weights, const GpuPoint& p) {
  const double rate = limits.flops(weights);
  const double floor =
      std::max(p.bytes / limits.read_bytes, rate > 0 ? p.flops / rate : 0.0);  // seconds
  return 1e6 * floor / p.us;
}

void print_gpu(const std::string& like, const Options& options, FormatKind weights,
               const GpuLimits& limits, const std::vector<GpuPoint>& points) {
  if (options.json) {
    Json json;
    json.value("device", options.device).value("shared", !options.no_shared).object("limits");
    json.value("read_gbs", limits.read_bytes / 1e9);
    json.value("bf16_tflops", limits.bf16_flops / 1e12);
    json.value("fp8_tflops", limits.fp8_flops / 1e12).end().array("points");
    for (const GpuPoint& p : points) {
      json.object().value("like", like).value("tokens", p.tokens);
      json.value("dtype", to_string(weights)).value("us", p.us);
      json.value("us_min", p.us_min).value("us_max", p.us_max).value("replays", p.replays);
      json.value("tflops", p.flops / p.us / 1e6).value("gbs", p.bytes / p.us / 1e3);
      json.value("roofline_fraction", gpu_fraction(limits, weights, p)).end();
    }
    return json.print();
  }
  fmt::print(
      "{}, {}, on {}{}; limits: read {:.2f} TB/s, cuBLASLt 8192^3 bf16 {:.0f}, fp8 {:.0f} TFLOP/s"
      "{}\n",
      like, to_string(weights), options.device, options.no_shared ? ", no shared experts" : "",
      limits.read_bytes / 1e12, limits.bf16_flops / 1e12, limits.fp8_flops / 1e12,
      limits.flops(weights) > 0 ? ""
                                : " (libcublasLt.so.13 not found: fractions of reading alone)");
  fmt::print("{:>8} {:>12} {:>23} {:>8} {:>10} {:>10} {:>10}\n", "tokens", "us", "least .. most",
             "replays", "TFLOP/s", "GB/s", "of limit");
  for (const GpuPoint& p : points)
    fmt::print("{:>8} {:>12.1f} {:>10.1f} .. {:>9.1f} {:>8} {:>10.2f} {:>10.0f} {:>8.1f} %\n",
               p.tokens, p.us, p.us_min, p.us_max, p.replays, p.flops / p.us / 1e6,
               p.bytes / p.us / 1e3, 100 * gpu_fraction(limits, weights, p));
}

Status bench_gpu(const Options& options, Device device, const std::string& like) {
  const Result<std::unique_ptr<WeightSource>> source = open_gpu_source(options);
  if (!source.ok()) return source.status();
  ProgressBar bar("loading weights");
  Result<Model> model =
      Model::create(**source, {.device = device,
                               .gemm = options.gemm,
                               .gemm_options = {parse_rows(options.row_precision)},
                               .progress = ProgressBar::update,
                               .progress_argument = &bar});
  if (!model.ok()) return model.status();
  const Result<GpuLimits> limits = gpu_limits(device.index);
  if (!limits.ok()) return limits.status();
  const GpuBench asked{device.index, !options.no_shared};
  std::vector<GpuPoint> points;
  for (const int64_t tokens : options.tokens) {
    Result<GpuPoint> point = bench_on_gpu(**source, *model, asked, tokens);
    if (!point.ok()) return point.status();
    points.push_back(*point);
  }
  print_gpu(like, options, model->layers().front().expert.format.kind, *limits, points);
  return {};
}

Status bench(Options& options) {
  if (options.checkpoint.empty() && options.spec.like.empty()) options.spec.like = "olmoe-1b-7b";
  const std::string like = options.checkpoint.empty() ? options.spec.like : options.checkpoint;
  const Device device = parse_device(options.device);
  if (device.kind == DeviceKind::cuda) return bench_gpu(options, device, like);
  if (options.no_shared) wrong_usage("--no-shared goes with --device cuda:N");
  if (options.group != 0 && options.format != "int8" && options.format != "int4")
    wrong_usage("--group goes with --format int8 or int4");
  const Result<std::unique_ptr<WeightSource>> opened = open_source(options);
  if (!opened.ok()) return opened.status();
  const WeightSource& source = **opened;

  Result<std::unique_ptr<Executor>> executor = make_executor(options.threads);
  if (!executor.ok()) return executor.status();
  ProgressBar bar("loading weights");
  Result<Model> model = Model::create(source, {.format = wanted_format(options),
                                               .gemm = options.gemm,
                                               .gemm_options = {parse_rows(options.row_precision)},
                                               .host = {.executor = executor->get()},
                                               .progress = ProgressBar::update,
                                               .progress_argument = &bar});
  if (!model.ok()) return model.status();

  Limits limits(**executor);
  Bench state{
      .source = source, .model = *model, .limits = limits, .rows = parse_dtype(options.row_type)};
  std::vector<Point> points;
  for (const int64_t tokens : options.tokens) {
    Result<Point> point = measure(state, tokens);
    if (!point.ok()) return point.status();
    points.push_back(*point);
  }
  const Answer answer{.like = like,
                      .format = model->layers().front().expert.format,
                      .row_type = options.row_type,
                      .row_precision = options.row_precision,
                      .threads = (*executor)->concurrency(),
                      .peaks = state.peaks(),
                      .points = std::move(points)};
  options.json ? print_json(answer) : print_text(answer);
  return {};
}

}  // namespace

void add_bench(CLI::App& app, Global& global) {
  CLI::App* command =
      app.add_subcommand("bench", "Time one layer beside the limits of this machine");
  auto options = std::make_shared<Options>();
  add_spec_options(*command, options->spec);
  command->add_option("--checkpoint", options->checkpoint, "Real weights instead of --like");
  command->add_option("--tokens", options->tokens, "Rows per forward, as a list")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--device", options->device, "cpu or cuda:N")->capture_default_str();
  command->add_flag("--no-shared", options->no_shared,
                    "GPU: leave shared experts out, as others' figures do");
  command->add_option("--backend", options->gemm, "Expert backend to force; see moe info");
  command
      ->add_option("--row-precision", options->row_precision,
                   "Least exact rows that meet the weights: exact is f32 (GPU: bf16)")
      ->check(CLI::IsMember(row_precisions()))
      ->capture_default_str();
  command
      ->add_option("--format", options->format,
                   "CPU: keep the experts so; fp8, int8 and int4 quantise them")
      ->check(CLI::IsMember(format_names()));
  command
      ->add_option("--group", options->group,
                   "Inputs that share a scale; 0: int8 whole rows, int4 32")
      ->check(CLI::IsMember({0, 32, 64, 128}));
  command
      ->add_option("--row-type", options->row_type,
                   "CPU: type of the rows, f32, bf16 or f16; bf16 ones meet bf16 weights in AMX")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->capture_default_str();
  command->add_option("--threads", options->threads, "0: one per core")
      ->check(CLI::NonNegativeNumber);
  add_json(*command, global);
  command->footer("Example: moe bench --like olmoe-1b-7b --tokens 1,16,256 --dtype bf16 --json");
  command->callback([options, &global] {
    options->json = global.json;
    global.status = bench(*options);
  });
}

}  // namespace moe::cli
