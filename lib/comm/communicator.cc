#include "moe/communicator.h"

namespace moe {

Communicator::~Communicator() = default;

}  // namespace moe
