// The state machine of one copy.
#include <cassert>

#include "store/expert_copy.h"

namespace moe {

void transition(ExpertCopy& copy, CopyState to) {
  [[maybe_unused]] const auto legal = [](CopyState from, CopyState next) {
    switch (from) {
      case CopyState::empty: return next == CopyState::loading;
      case CopyState::loading: return next == CopyState::verifying || next == CopyState::failed;
      case CopyState::verifying: return next == CopyState::ready || next == CopyState::failed;
      case CopyState::ready: return next == CopyState::draining;
      case CopyState::draining: return next == CopyState::empty || next == CopyState::ready;
      case CopyState::failed: return next == CopyState::loading || next == CopyState::empty;
    }
    return false;
  };
  assert(legal(copy.state, to));
  copy.state = to;
}

const char* to_string(CopyState state) {
  switch (state) {
    case CopyState::empty: return "empty";
    case CopyState::loading: return "loading";
    case CopyState::verifying: return "verifying";
    case CopyState::ready: return "ready";
    case CopyState::draining: return "draining";
    case CopyState::failed: return "failed";
  }
  return "unknown";
}

}  // namespace moe
