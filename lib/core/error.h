// error(StatusCode::x, place, "format", args...): the one way this library words a failure.
#pragma once

#include <exception>
#include <new>
#include <string_view>
#include <utility>

#include <fmt/core.h>
#include <fmt/format.h>

#include "moe/status.h"

namespace moe {

template <class... Args>
Status error(StatusCode code, const Place& place, fmt::format_string<Args...> format,
             Args&&... args) noexcept {
  try {
    return Status(code, fmt::format(format, std::forward<Args>(args)...), place);
  } catch (...) {
    return Status(code, {}, place);
  }
}

template <class... Args>
Status invalid_argument(const Place& place, fmt::format_string<Args...> format, Args&&... args) {
  return error(StatusCode::invalid_argument, place, format, std::forward<Args>(args)...);
}

// Runs `body`, turning an exception (bad_alloc above all) into a Status, so that nothing leaks out
// of a public call. `body` returns Status or Result<T>.
template <class Body>
auto guarded(const Place& place, Body&& body) noexcept -> decltype(body()) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return Status(StatusCode::resource_exhausted, "out of host memory", place);
  } catch (const std::exception& e) {
    return error(StatusCode::internal, place, "unexpected exception: {}", e.what());
  } catch (...) {
    return Status(StatusCode::internal, "unexpected exception of unknown type", place);
  }
}

}  // namespace moe

#define MOE_CONCAT_(a, b) a##b
#define MOE_CONCAT(a, b) MOE_CONCAT_(a, b)

// Returns the Status of `expression` from the enclosing function unless it is ok.
#define MOE_RETURN_IF_ERROR(expression)                                                  \
  do {                                                                                   \
    if (::moe::Status moe_status_ = (expression); !moe_status_.ok()) return moe_status_; \
  } while (false)

// MOE_ASSIGN_OR_RETURN(auto x, make_x()): declares x from a Result, or returns its Status.
#define MOE_ASSIGN_OR_RETURN(declaration, expression)             \
  auto MOE_CONCAT(moe_result_, __LINE__) = (expression);          \
  if (!MOE_CONCAT(moe_result_, __LINE__).ok())                    \
    return std::move(MOE_CONCAT(moe_result_, __LINE__)).status(); \
  declaration = std::move(MOE_CONCAT(moe_result_, __LINE__)).value()
