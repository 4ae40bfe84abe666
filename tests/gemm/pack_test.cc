// What packing an expert reads, and what it writes.
#include <cstring>
#include <random>
#include <vector>

#include "catch.h"
#include "gemm/problems.h"
#include "moe/expert_gemm.h"

using namespace moe;
using namespace moe::test;

namespace {

// Counts batches and the reads outside of one.
class CountingSource final : public WeightSource {
 public:
  CountingSource(const ExpertSpec& spec, uint64_t seed) : weights_(spec, 2, seed) {}
  const std::vector<LayerSpec>& layers() const noexcept override { return weights_.layers(); }
  Result<TensorShape> describe(const WeightId& id) const override { return weights_.describe(id); }
  Status read(const WeightId& id, const MutableTensorView& out) const override {
    ++alone;
    return weights_.read(id, out);
  }
  Status read_all(std::span<const WeightRead> reads) const override {
    ++batches;
    return weights_.read_all(reads);
  }
  std::string_view name() const noexcept override { return "counting"; }

  mutable int alone = 0, batches = 0;

 private:
  RandomWeights weights_;
};

// The slot's bytes, packed over `filler`.
std::vector<std::byte> packed(const ExpertGemm& gemm, const ExpertSpec& spec,
                              const WeightSource& source, std::byte filler) {
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  const size_t bytes = gemm.layout(spec).bytes;
  std::vector<Line> memory(bytes / sizeof(Line) + 1);
  std::byte* slot = memory[0].bytes;
  std::memset(slot, static_cast<int>(filler), memory.size() * sizeof(Line));
  const Status status = gemm.pack(spec, source, source.layers()[0].layer, 1, slot);
  INFO(status.message());
  REQUIRE(status.ok());
  for (size_t i = bytes; i < memory.size() * sizeof(Line); ++i) REQUIRE(slot[i] == filler);
  return {slot, slot + bytes};
}

}  // namespace

TEST_CASE("an expert is read in one batch, and every byte of its slot is written",
          "[gemm][mission-81]") {
  std::mt19937 random(static_cast<uint32_t>(seed()));
  const auto formats = all_formats();
  for (const Format& stored : formats)
    for (int i = 0; i < 12; ++i) {
      ExpertSpec from{.hidden = 1 + static_cast<int64_t>(random() % 300),
                      .intermediate = 1 + static_cast<int64_t>(random() % 300),
                      .gated = i % 2 == 0,
                      .bias = i / 2 % 2 == 0,
                      .format = stored};
      if (!from.gated) from.activation = Activation::relu2;
      ExpertSpec spec = from;
      if (i >= 4) spec.format = formats[random() % formats.size()];
      const auto gemm = make_expert_gemm(Device::cpu(), spec);
      REQUIRE(gemm.ok());
      CAPTURE(format_name(stored), format_name(spec.format), from.hidden, from.intermediate, i);
      const CountingSource source(from, seed() + static_cast<uint64_t>(i));
      const auto one = packed(**gemm, spec, source, std::byte{0});
      CHECK((source.batches == 1 && source.alone == 0));
      CHECK(one == packed(**gemm, spec, source, std::byte{0xff}));
    }
}
