#include "gemm/backends.h"

#include <algorithm>
#include <array>
#include <cassert>

#include "core/error.h"

namespace moe {
namespace {

Status always() { return {}; }

constexpr ExpertGemmRow kCpuRows[] = {
    {"cpu", "panels of 16 outputs in f32, f16 or bf16; fp32 FMA in AVX-512, AVX2, NEON or scalar",
     DeviceKind::cpu, always, make_cpu_gemm},
    {"cpu_quant",
     "int8 and int4 in panels of 16 outputs; rows in q8 for VNNI, AVX-512, AVX2 or portable dot "
     "products, or exact in f32",
     DeviceKind::cpu, always, make_cpu_quant_gemm},
    {"reference", "double precision, one row at a time; slow", DeviceKind::cpu, always,
     make_reference_gemm},
};

struct Table {
  std::array<ExpertGemmRow, 32> rows{};
  size_t count = 0;

  Table() {
    append(cuda_expert_gemm_rows());
    append(kCpuRows);
  }
  void append(std::span<const ExpertGemmRow> more) {
    assert(count + more.size() <= rows.size());
    std::copy(more.begin(), more.end(), rows.begin() + count);
    count += more.size();
  }
};

// Why `row` cannot serve; on ok, `gemm` is the backend.
Status try_row(const ExpertGemmRow& row, const ExpertSpec& spec, const ExpertGemmOptions& options,
               std::unique_ptr<ExpertGemm>* gemm) {
  MOE_RETURN_IF_ERROR(row.available());
  std::unique_ptr<ExpertGemm> made = row.make(options);
  MOE_RETURN_IF_ERROR(made->supports(spec));
  *gemm = std::move(made);
  return {};
}

const char* device_name(DeviceKind kind) { return kind == DeviceKind::cuda ? "cuda" : "cpu"; }

}  // namespace

ExpertGemm::~ExpertGemm() = default;

// Rows and sums in fp32.
double ExpertGemm::error_bound(const ExpertSpec&, DType) const noexcept { return 2e-6; }

std::span<const ExpertGemmRow> expert_gemm_rows() {
  static const Table table;
  return {table.rows.data(), table.count};
}

Result<std::unique_ptr<ExpertGemm>> make_expert_gemm(Device device, const ExpertSpec& spec,
                                                     std::string_view name,
                                                     const ExpertGemmOptions& options) {
  const Place place = {.phase = Phase::plan};
  return guarded(place, [&]() -> Result<std::unique_ptr<ExpertGemm>> {
    std::string reasons, names;
    StatusCode code = StatusCode::unimplemented;
    for (const ExpertGemmRow& row : expert_gemm_rows()) {
      names +=
          fmt::format("{}{} ({})", names.empty() ? "" : ", ", row.name, device_name(row.device));
      if (row.device != device.kind || (!name.empty() && name != row.name)) continue;
      std::unique_ptr<ExpertGemm> gemm;
      const Status status = try_row(row, spec, options, &gemm);
      if (status.ok()) return gemm;
      if (status.code() == StatusCode::invalid_argument) code = status.code();
      reasons += fmt::format("; {}: {}", row.name, status.message());
    }
    if (reasons.empty())
      return error(
          StatusCode::not_found, place, "no expert-GEMM backend {}for device {}; this build has {}",
          name.empty() ? "" : fmt::format("\"{}\" ", name), device_name(device.kind), names);
    return error(code, place, "no expert-GEMM backend serves this expert{}", reasons);
  });
}

}  // namespace moe
