// Writes a trace while it happens: a temporary file that takes its name when it is complete.
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <string>

#include <fcntl.h>
#include <unistd.h>

#include "core/error.h"
#include "moe/trace.h"
#include "store/expert_index.h"
#include "store/trace_check.h"

namespace moe {

struct TraceWriter::Impl {
  Impl(std::string_view final_path, std::span<const LayerExperts> layers)
      : path(final_path), partial(path + ".partial"), index(layers) {}
  ~Impl() {
    if (!file) return;
    std::fclose(file);
    unlink(partial.c_str());
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Status failed(const char* what) const {
    return error(errno == ENOSPC ? StatusCode::resource_exhausted : StatusCode::unavailable,
                 {.file = path}, "cannot {}: {}", what, std::strerror(errno));
  }
  Status write() {
    const size_t size = text.size();
    return std::fwrite(text.data(), 1, size, file) == size ? Status() : failed("write");
  }
  void header();
  Status add_row(const TraceRow& row, const int32_t* ids, const float* weights, int32_t chosen);

  std::string path, partial;
  ExpertIndex index;
  int32_t top_k = 0;
  bool weights = false;
  std::FILE* file = nullptr;
  std::string text;  // of one forward
};

void TraceWriter::Impl::header() {
  text = "seq,step,token_pos,layer,experts";
  for (int32_t k = 0; k < top_k; ++k) fmt::format_to(std::back_inserter(text), ",e{}", k);
  for (int32_t k = 0; weights && k < top_k; ++k)
    fmt::format_to(std::back_inserter(text), ",w{}", k);
  text += '\n';
}

Status TraceWriter::Impl::add_row(const TraceRow& row, const int32_t* ids, const float* w,
                                  int32_t chosen) {
  const int32_t experts = index.experts(index.position(row.layer));
  const size_t count = static_cast<size_t>(chosen);
  const std::string fault = trace_row_fault(row, experts, {ids, count}, {w, weights ? count : 0});
  if (!fault.empty()) return invalid_argument({.file = path, .layer = row.layer}, "{}", fault);
  auto out = std::back_inserter(text);
  fmt::format_to(out, "{},{},{},{},{}", row.seq, row.step, row.token_pos, row.layer, experts);
  for (int32_t k = 0; k < top_k; ++k) {
    text += ',';
    if (k < chosen && ids[k] >= 0) fmt::format_to(out, "{}", ids[k]);
  }
  for (int32_t k = 0; weights && k < top_k; ++k) {
    text += ',';
    if (k < chosen && ids[k] >= 0) fmt::format_to(out, "{}", w[k]);
  }
  text += '\n';
  return {};
}

Result<TraceWriter> TraceWriter::create(std::string_view path, std::span<const LayerExperts> layers,
                                        int32_t top_k, bool weights) {
  const Place place{.file = path};
  return guarded(place, [&]() -> Result<TraceWriter> {
    MOE_RETURN_IF_ERROR(validate(layers).at(place));
    if (top_k < 1 || top_k > kMostTraceTopK)
      return invalid_argument(place, "top_k is {}; wanted 1 to {}", top_k, kMostTraceTopK);
    auto impl = std::make_unique<Impl>(path, layers);
    impl->top_k = top_k;
    impl->weights = weights;
    impl->file = std::fopen(impl->partial.c_str(), "we");
    if (!impl->file) return impl->failed("create");
    impl->header();
    MOE_RETURN_IF_ERROR(impl->write());
    return TraceWriter(std::move(impl));
  });
}

TraceWriter::TraceWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TraceWriter::TraceWriter(TraceWriter&&) noexcept = default;
TraceWriter& TraceWriter::operator=(TraceWriter&&) noexcept = default;
TraceWriter::~TraceWriter() = default;

Status TraceWriter::append(const TraceRow& first, const Routing& routing) {
  return guarded({.layer = first.layer}, [&]() -> Status {
    if (!impl_ || !impl_->file)
      return Status(StatusCode::failed_precondition, "the trace is finished");
    const Place place{.file = impl_->path, .layer = first.layer};
    if (impl_->index.position(first.layer) < 0)
      return invalid_argument(place, "the trace was created without this layer");
    if (routing.top_k < 0 || routing.top_k > impl_->top_k)
      return invalid_argument(place, "top_k is {}; the trace has {}", routing.top_k, impl_->top_k);
    if (impl_->weights && !routing.weights && routing.tokens > 0)
      return invalid_argument(place, "the routing has no weights; the trace records them");
    impl_->text.clear();
    TraceRow row = first;
    for (int64_t token = 0; token < routing.tokens; ++token, ++row.token_pos) {
      const int64_t at = token * routing.top_k;
      const float* weights = impl_->weights ? routing.weights + at : nullptr;
      MOE_RETURN_IF_ERROR(impl_->add_row(row, routing.ids + at, weights, routing.top_k));
    }
    return impl_->write();
  });
}

Status TraceWriter::finish() {
  if (!impl_ || !impl_->file)
    return Status(StatusCode::failed_precondition, "the trace is finished");
  Impl& impl = *impl_;
  if (std::fflush(impl.file) != 0 || fsync(fileno(impl.file)) != 0) return impl.failed("write");
  if (std::rename(impl.partial.c_str(), impl.path.c_str()) != 0) return impl.failed("rename");
  std::fclose(std::exchange(impl.file, nullptr));
  return {};
}

}  // namespace moe
