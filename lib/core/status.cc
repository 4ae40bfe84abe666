#include "moe/status.h"

#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <utility>

namespace moe {

// Shared by all copies of a Status; immutable after construction.
struct Status::Detail {
  std::atomic<int32_t> references{1};
  std::string message, file, tensor;
  Place place;

  static const Detail* make(std::string_view message, const Place& place) noexcept {
    try {
      auto detail = std::make_unique<Detail>();
      detail->message = message;
      detail->file = place.file;
      detail->tensor = place.tensor;
      detail->place = place;
      detail->place.file = detail->file;
      detail->place.tensor = detail->tensor;
      return detail.release();
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
  }
  static const Detail* share(const Detail* detail) noexcept {
    if (detail) const_cast<Detail*>(detail)->references.fetch_add(1, std::memory_order_relaxed);
    return detail;
  }
  static void release(const Detail* detail) noexcept {
    if (detail &&
        const_cast<Detail*>(detail)->references.fetch_sub(1, std::memory_order_acq_rel) == 1)
      delete detail;
  }
};

Status::Status(StatusCode code, std::string_view message, const Place& place) noexcept
    : code_(code), detail_(code == StatusCode::ok ? nullptr : Detail::make(message, place)) {}
Status::Status(const Status& other) noexcept
    : code_(other.code_), detail_(Detail::share(other.detail_)) {}
Status::Status(Status&& other) noexcept
    : code_(std::exchange(other.code_, StatusCode::ok)),
      detail_(std::exchange(other.detail_, nullptr)) {}
Status& Status::operator=(const Status& other) noexcept { return *this = Status(other); }
Status& Status::operator=(Status&& other) noexcept {
  std::swap(code_, other.code_);
  std::swap(detail_, other.detail_);
  return *this;
}
Status::~Status() { Detail::release(detail_); }

std::string_view Status::message() const noexcept {
  if (detail_) return detail_->message;
  return ok() ? "" : to_string(code_);
}

Place Status::place() const noexcept { return detail_ ? detail_->place : Place{}; }

Status Status::at(const Place& outer) const noexcept {
  if (ok()) return {};
  Place place = this->place();
  if (place.file.empty()) place.file = outer.file;
  if (place.tensor.empty()) place.tensor = outer.tensor;
  if (place.rank < 0) place.rank = outer.rank;
  if (place.layer < 0) place.layer = outer.layer;
  if (place.expert < 0) place.expert = outer.expert;
  if (place.phase == Phase::none) place.phase = outer.phase;
  return Status(code_, message(), place);
}

const char* to_string(StatusCode code) {
  switch (code) {
    case StatusCode::ok: return "ok";
    case StatusCode::cancelled: return "cancelled";
    case StatusCode::unknown: return "unknown";
    case StatusCode::invalid_argument: return "invalid_argument";
    case StatusCode::deadline_exceeded: return "deadline_exceeded";
    case StatusCode::not_found: return "not_found";
    case StatusCode::already_exists: return "already_exists";
    case StatusCode::permission_denied: return "permission_denied";
    case StatusCode::resource_exhausted: return "resource_exhausted";
    case StatusCode::failed_precondition: return "failed_precondition";
    case StatusCode::aborted: return "aborted";
    case StatusCode::out_of_range: return "out_of_range";
    case StatusCode::unimplemented: return "unimplemented";
    case StatusCode::internal: return "internal";
    case StatusCode::unavailable: return "unavailable";
    case StatusCode::data_loss: return "data_loss";
  }
  return "unknown";
}

const char* to_string(Phase phase) {
  switch (phase) {
    case Phase::none: return "";
    case Phase::open: return "open";
    case Phase::load: return "load";
    case Phase::plan: return "plan";
    case Phase::route: return "route";
    case Phase::dispatch: return "dispatch";
    case Phase::compute: return "compute";
    case Phase::combine: return "combine";
    case Phase::publish: return "publish";
  }
  return "";
}

}  // namespace moe
