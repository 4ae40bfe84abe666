// moe info: what this build contains, and which backends run on this machine.
#include <fmt/format.h>

#include "commands.h"
#include "json.h"
#include "moe/expert_gemm.h"
#include "moe/version.h"

namespace moe::cli {
namespace {

struct BuildFact {
  const char* name;
  const char* value;
};

constexpr BuildFact kBuild[] = {
    {"version", MOE_VERSION},      {"build_type", MOE_BUILD_TYPE},   {"compiler", MOE_COMPILER},
    {"library", MOE_LIBRARY_KIND}, {"cuda", MOE_CUDA_ARCHITECTURES}, {"sanitizers", MOE_SANITIZERS},
};

const char* device_name(DeviceKind kind) { return kind == DeviceKind::cuda ? "cuda" : "cpu"; }

void print_json() {
  Json json;
  for (const BuildFact& fact : kBuild) json.value(fact.name, fact.value);
  json.array("expert_gemm");
  for (const ExpertGemmRow& row : expert_gemm_rows()) {
    const Status available = row.available();
    json.object().value("name", row.name).value("description", row.description);
    json.value("device", device_name(row.device)).value("available", available.ok());
    json.value("reason", available.message()).end();
  }
  json.print();
}

void print_text() {
  for (const BuildFact& fact : kBuild) fmt::print("{:<12}{}\n", fact.name, fact.value);
  fmt::print("\nexpert backends, best first\n");
  for (const ExpertGemmRow& row : expert_gemm_rows()) {
    const Status available = row.available();
    fmt::print("  {:<16}{:<6}{}\n", row.name, device_name(row.device), row.description);
    if (!available.ok()) fmt::print("  {:<22}not on this machine: {}\n", "", available.message());
  }
}

}  // namespace

void add_info(CLI::App& app, Global& global) {
  CLI::App* command = app.add_subcommand("info", "What this build contains and what runs here");
  add_json(*command, global);
  command->callback([&global] { global.json ? print_json() : print_text(); });
}

}  // namespace moe::cli
