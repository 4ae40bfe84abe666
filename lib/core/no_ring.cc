// This build has no liburing.
#include "core/ring.h"

namespace moe {

std::unique_ptr<Ring> make_ring(unsigned) noexcept { return nullptr; }

}  // namespace moe
