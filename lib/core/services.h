// HostServices with the gaps filled: what the host brought, or the library's own.
#pragma once

#include <memory>
#include <string_view>

#include "moe/host.h"
#include "moe/status.h"

namespace moe {

// operator new, without exceptions.
Allocator& default_allocator();
// std::chrono::steady_clock.
const Clock& default_clock();

// References stay valid as long as this object and the host's own parts live.
class Services {
 public:
  // Makes an executor if the host brought none.
  static Result<Services> resolve(const HostServices& host);

  Allocator& memory() const { return *host_.memory; }
  Executor& executor() const { return *host_.executor; }
  const Clock& clock() const { return *host_.clock; }
  const HostServices& host() const { return host_; }  // no null but log
  void log(LogLevel level, std::string_view message) const {
    if (host_.log) host_.log->log(level, message);
  }

 private:
  HostServices host_;
  std::unique_ptr<Executor> own_executor_;
};

}  // namespace moe
