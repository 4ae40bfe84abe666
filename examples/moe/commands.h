// The program `moe`: one file per command. A command adds itself to the parser and leaves its
// outcome in Global. Data goes to stdout, everything else to stderr.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

#include "moe/status.h"

namespace moe::cli {

// Exit codes, for all commands.
enum ExitCode { kDone = 0, kFailed = 1, kWrongUsage = 2 };

struct Global {
  bool json = false;  // machine-readable output, with "schema_version"
  Status status;      // why the command failed; main() prints it
};

// Adds --json to a command.
void add_json(CLI::App& command, Global& global);

// A command throws this where the words on its command line make no sense.
[[noreturn]] void wrong_usage(const std::string& message);

void add_synth(CLI::App& app, Global& global);
void add_inspect(CLI::App& app, Global& global);
void add_run(CLI::App& app, Global& global);
void add_bench(CLI::App& app, Global& global);
void add_repack(CLI::App& app, Global& global);
void add_quantize(CLI::App& app, Global& global);
void add_simulate(CLI::App& app, Global& global);
void add_plan(CLI::App& app, Global& global);
void add_info(CLI::App& app, Global& global);

}  // namespace moe::cli
