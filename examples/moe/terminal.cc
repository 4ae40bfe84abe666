#include "terminal.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fmt/format.h>
#include <unistd.h>

namespace moe::cli {
namespace {

volatile std::sig_atomic_t interrupted = 0;

void interrupt(int) {
  interrupted = 1;
  std::signal(SIGINT, SIG_DFL);  // the second Ctrl-C ends the program
}

bool stderr_is_terminal() {
  const char* term = std::getenv("TERM");
  return isatty(STDERR_FILENO) && !(term && std::strcmp(term, "dumb") == 0);
}

bool colour() {
  const char* no_color = std::getenv("NO_COLOR");
  return stderr_is_terminal() && !(no_color && *no_color);
}

}  // namespace

void print_error(std::string_view message) {
  fmt::print(stderr, "{}moe: error:{} {}\n", colour() ? "\033[31m" : "", colour() ? "\033[0m" : "",
             message);
}

void print_note(std::string_view message) { fmt::print(stderr, "moe: {}\n", message); }

std::string describe(const Status& status) {
  const Place place = status.place();
  std::string where;
  const auto add = [&](std::string_view part) {
    where += fmt::format("{}{}", where.empty() ? "" : ", ", part);
  };
  if (!place.file.empty()) add(place.file);
  if (!place.tensor.empty()) add(place.tensor);
  if (place.rank >= 0) add(fmt::format("rank {}", place.rank));
  if (place.layer >= 0) add(fmt::format("layer {}", place.layer));
  if (place.expert >= 0) add(fmt::format("expert {}", place.expert));
  if (place.phase != Phase::none) add(fmt::format("in {}", to_string(place.phase)));
  return fmt::format("{}: {}{}", to_string(status.code()), status.message(),
                     where.empty() ? "" : " (" + where + ")");
}

std::string human_bytes(double bytes) {
  const char* unit = "B";
  for (const char* next : {"KiB", "MiB", "GiB", "TiB"}) {
    if (bytes < 1024) break;
    bytes /= 1024;
    unit = next;
  }
  return fmt::format("{:.4g} {}", bytes, unit);
}

ProgressBar::ProgressBar(std::string label) : label_(std::move(label)) {
  interrupted = 0;
  previous_handler_ = std::signal(SIGINT, interrupt);
}

ProgressBar::~ProgressBar() {
  if (visible_) fmt::print(stderr, "\r\033[K");
  std::signal(SIGINT, previous_handler_);
}

bool ProgressBar::update(void* self, int64_t done, int64_t total) {
  static_cast<ProgressBar*>(self)->draw(done, total);
  return !interrupted;
}

void ProgressBar::draw(int64_t done, int64_t total) {
  using namespace std::chrono_literals;
  const auto now = Time::now();
  if (now - start_ < 1s || now - drawn_ < 100ms || total <= 0 || !stderr_is_terminal()) return;
  drawn_ = now;
  visible_ = true;
  constexpr int kWidth = 30;
  const double share = std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
  const int filled = static_cast<int>(share * kWidth);
  const double seconds = std::chrono::duration<double>(now - start_).count();
  fmt::print(stderr, "\r{} [{:#<{}}{:-<{}}] {:3.0f} % of {}, {}/s\033[K", label_, "", filled, "",
             kWidth - filled, 100 * share, human_bytes(static_cast<double>(total)),
             human_bytes(static_cast<double>(done) / seconds));
  std::fflush(stderr);
}

}  // namespace moe::cli
