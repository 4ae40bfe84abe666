#include "moe/host.h"

namespace moe {

// Destructors of the interfaces live here, so that their vtables have one home.
Allocator::~Allocator() = default;
Executor::~Executor() = default;
Clock::~Clock() = default;
LogSink::~LogSink() = default;

}  // namespace moe
