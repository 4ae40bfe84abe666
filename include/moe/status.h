// What went wrong, and where. Every call of this library that can fail returns a Status or a
// Result<T>; the library never throws, aborts, exits or prints.
#pragma once

#include <cassert>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

#include "moe/export.h"

namespace moe {

// Numeric values equal those of absl::StatusCode and gRPC.
enum class StatusCode : int32_t {
  ok = 0,
  cancelled = 1,
  unknown = 2,
  invalid_argument = 3,   // the caller's argument or file is wrong; retrying cannot help
  deadline_exceeded = 4,  // a wait ended without its event; the message names the peer
  not_found = 5,          // a file, tensor, layer or expert that does not exist
  already_exists = 6,
  permission_denied = 7,
  resource_exhausted = 8,   // memory, slots or another budget; the message says asked and free
  failed_precondition = 9,  // right call, wrong state
  aborted = 10,
  out_of_range = 11,
  unimplemented = 12,  // a shape, format or combination that no backend serves
  internal = 13,       // a broken invariant of this library: please report
  unavailable = 14,    // a peer or device that may come back
  data_loss = 15,      // corrupt or truncated weights
};

// "invalid_argument" for StatusCode::invalid_argument. Never null.
MOE_API const char* to_string(StatusCode code);

// What the library was doing when it failed.
enum class Phase : int32_t {
  none = 0,
  open,      // reading config.json, index and safetensors headers
  load,      // reading weights into slots
  plan,      // choosing backends, sizing memory
  route,     // router logits and top-k
  dispatch,  // rows on their way to experts
  compute,   // expert feed-forward
  combine,   // weighted sum
  publish,   // publishing a table
};

// "load" for Phase::load; "" for Phase::none.
MOE_API const char* to_string(Phase phase);

// Where it happened. Views into the Status that returned it. -1 and "" mean "does not apply".
struct Place {
  std::string_view file;      // path or bare name
  std::string_view tensor;    // as the file spells it
  int32_t rank = -1;          // of the peer
  int32_t layer = -1;         // the checkpoint's own index
  int32_t expert = -1;        // logical index
  Phase phase = Phase::none;  // what was going on
};

// Cheap to copy and to pass by value; ok() carries nothing. Safe to read from several threads.
class [[nodiscard]] MOE_API Status {
 public:
  Status() noexcept = default;  // ok

  // `message` says what, got, wanted and the next step; `place` says where. Both are copied.
  // If there is no memory for the copy, the result carries only `code`.
  Status(StatusCode code, std::string_view message, const Place& place = {}) noexcept;

  Status(const Status& other) noexcept;
  Status(Status&& other) noexcept;
  Status& operator=(const Status& other) noexcept;
  Status& operator=(Status&& other) noexcept;
  ~Status();

  bool ok() const noexcept { return code_ == StatusCode::ok; }  // nothing went wrong
  StatusCode code() const noexcept { return code_; }            // the kind of failure

  // NUL-terminated, owned by this Status. "" when ok.
  std::string_view message() const noexcept;
  Place place() const noexcept;  // views into this Status

  // The same status with the unset fields of its place filled from `outer`.
  Status at(const Place& outer) const noexcept;

 private:
  struct Detail;
  StatusCode code_ = StatusCode::ok;
  const Detail* detail_ = nullptr;
};

// A T, or the reason why there is none. Dereferencing a failed Result is a caller's bug (assert).
template <class T>
class [[nodiscard]] Result {
 public:
  // A failure; `status` must not be ok (assert).
  Result(Status status) noexcept : status_(std::move(status)) { assert(!status_.ok()); }
  // Anything that a T is made from.
  template <class U = T>
  requires(std::is_constructible_v<T, U&&> && !std::is_same_v<std::remove_cvref_t<U>, Status> &&
           !std::is_same_v<std::remove_cvref_t<U>, Result>) Result(U&& value)
      : value_(std::forward<U>(value)) {}

  bool ok() const noexcept { return status_.ok(); }           // there is a value
  const Status& status() const& noexcept { return status_; }  // why there is none; ok if there is
  Status status() && noexcept { return std::move(status_); }  // ditto

  // The value. Needs ok(), as do the operators.
  T& value() & noexcept { return assert(ok()), *value_; }
  const T& value() const& noexcept { return assert(ok()), *value_; }
  T&& value() && noexcept { return assert(ok()), std::move(*value_); }
  T& operator*() & noexcept { return value(); }
  const T& operator*() const& noexcept { return value(); }
  T&& operator*() && noexcept { return std::move(*this).value(); }
  T* operator->() noexcept { return &value(); }
  const T* operator->() const noexcept { return &value(); }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace moe
