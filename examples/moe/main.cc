// Reads the command line, runs one command, and turns its outcome into an exit code.
#include <exception>
#include <vector>

#include "commands.h"
#include "moe/version.h"
#include "names.h"
#include "terminal.h"

namespace moe::cli {
namespace {

// The command that `arguments` ask for, or `app` itself.
CLI::App* chosen(CLI::App& app) {
  const auto commands = app.get_subcommands();
  return commands.empty() ? &app : commands.front();
}

// " Did you mean ...?" for the first word that `app` does not know.
std::string suggestion(CLI::App& app, int argc, char** argv) {
  std::vector<std::string> known;
  if (argc > 1 && argv[1][0] != '-' && app.get_subcommands().empty()) {
    for (const CLI::App* command : app.get_subcommands([](CLI::App*) { return true; }))
      known.push_back(command->get_name());
    return "unknown command '" + std::string(argv[1]) + "'." + did_you_mean(argv[1], known);
  }
  for (const CLI::Option* option : chosen(app)->get_options())
    for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
  for (const std::string& word : chosen(app)->remaining()) {
    if (word.rfind("--", 0) == 0)
      return "unknown option '" + word + "'." + did_you_mean(word.substr(0, word.find('=')), known);
  }
  return {};
}

int usage_error(CLI::App& app, const CLI::ParseError& error, int argc, char** argv) {
  if (error.get_exit_code() == 0) return app.exit(error);  // --help and --version
  const std::string better = suggestion(app, argc, argv);
  print_error(better.empty() ? error.what() : better);
  print_note("see: " + (chosen(app) == &app ? "" : app.get_name() + " ") + chosen(app)->get_name() +
             " --help");
  return kWrongUsage;
}

}  // namespace

void add_json(CLI::App& command, Global& global) {
  command.add_flag("--json", global.json, "Print JSON");
}

void wrong_usage(const std::string& message) { throw CLI::ValidationError(message); }

}  // namespace moe::cli

int main(int argc, char** argv) {
  using namespace moe::cli;
  CLI::App app("Mixture-of-experts layers of large language models", "moe");
  app.set_version_flag("--version", "moe " MOE_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 done, 1 the operation failed, 2 wrong usage.\n"
      "Data goes to stdout, everything else to stderr.");
  Global global;
  for (auto add : {add_synth, add_inspect, add_run, add_bench, add_repack, add_quantize,
                   add_simulate, add_plan, add_info})
    add(app, global);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return usage_error(app, error, argc, argv);
  } catch (const std::exception& error) {
    print_error(error.what());
    return kFailed;
  }
  if (global.status.ok()) return kDone;
  print_error(describe(global.status));
  return kFailed;
}
