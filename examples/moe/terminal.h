// What a person sees on stderr: errors, notes, and a progress bar.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "moe/status.h"

namespace moe::cli {

void print_error(std::string_view message);  // red on a terminal, unless NO_COLOR is set
void print_note(std::string_view message);

// "not_found: no such tensor (file, tensor, layer 3, expert 7; load)".
std::string describe(const Status& status);

// "22.5 GiB".
std::string human_bytes(double bytes);

// Shows how far something has come, on a terminal and only if it takes over a second. While it
// lives, the first Ctrl-C makes update() return false, so that the work ends cleanly.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // A moe::Progress; `self` is a ProgressBar*.
  static bool update(void* self, int64_t done, int64_t total);

 private:
  using Time = std::chrono::steady_clock;

  void draw(int64_t done, int64_t total);

  std::string label_;
  Time::time_point start_ = Time::now();
  Time::time_point drawn_ = start_;
  bool visible_ = false;
  void (*previous_handler_)(int) = nullptr;
};

}  // namespace moe::cli
