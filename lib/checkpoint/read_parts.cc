#include "checkpoint/read_parts.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "checkpoint/read_packed.h"
#include "checkpoint/read_slice.h"
#include "core/error.h"

namespace moe {
namespace {

// Bytes between two ranges that cost less to read than another request.
constexpr uint64_t kLeastGap = 16 << 10;

struct Wanted {
  const Checkpoint::Tensor* tensor = nullptr;
  LayerSet::Found found;
  MutableTensorView out;
  Witness witness;    // rather than `out`, if it has a tensor
  ByteSpan span;      // in the stored tensor
  FileRange range;    // the same in its file
  size_t merged = 0;  // which range of the batch holds it
};

Status add_witnesses(const LayerSet::Found& found, const TensorDirectory& files,
                     std::vector<Wanted>* parts) {
  for (const Witness& witness : witnesses_of(found, files)) {
    const Checkpoint::Tensor& tensor = *witness.tensor;
    MOE_ASSIGN_OR_RETURN(const FileRange range, files.locate(tensor, 0, tensor.bytes));
    const ByteSpan whole{0, static_cast<int64_t>(tensor.bytes)};
    parts->push_back({&tensor, {}, {}, witness, whole, range});
  }
  return {};
}

// The files' bytes of every part that has any.
Result<std::vector<Wanted>> find_parts(const LayerSet& layers, const TensorDirectory& files,
                                       std::span<const WeightRead> reads) {
  std::vector<Wanted> parts;
  parts.reserve(reads.size());
  for (const WeightRead& request : reads) {
    MOE_ASSIGN_OR_RETURN(LayerSet::Found found, layers.find(request.id));
    const Checkpoint::Tensor* tensor = files.find(found.name);  // null for zeros
    const TensorShape shape = tensor ? stored_shape(found.slice, tensor->dtype, tensor->shape)
                                     : stored_shape(found.slice, found.zeros(), {});
    MOE_RETURN_IF_ERROR(check_target(request.id, shape, request.out));
    if (request.out.shape.elements() == 0) continue;
    if (!tensor) {
      write_zeros(request.out);
      continue;
    }
    const ByteSpan span = span_of(found.slice, shape.dtype, shape.shape);
    MOE_ASSIGN_OR_RETURN(const FileRange range,
                         files.locate(*tensor, static_cast<uint64_t>(span.offset),
                                      static_cast<uint64_t>(span.bytes)));
    MOE_RETURN_IF_ERROR(add_witnesses(found, files, &parts));
    parts.push_back({tensor, std::move(found), request.out, {}, span, range});
  }
  return parts;
}

// Joins what overlaps or nearly touches. Sorts `parts` by their place in the files.
std::vector<FileRange> merge(std::vector<Wanted>& parts) {
  std::sort(parts.begin(), parts.end(), [](const Wanted& a, const Wanted& b) {
    return std::tuple(a.range.file->path(), a.range.offset) <
           std::tuple(b.range.file->path(), b.range.offset);
  });
  std::vector<FileRange> merged;
  for (Wanted& part : parts) {
    const FileRange& range = part.range;
    FileRange* last = merged.empty() ? nullptr : &merged.back();
    if (last && last->file == range.file && range.offset <= last->offset + last->bytes + kLeastGap)
      last->bytes = std::max(last->bytes, range.offset + range.bytes - last->offset);
    else
      merged.push_back(range);
    part.merged = merged.size() - 1;
  }
  return merged;
}

// Every tensor's share of the ranges, against the manifest.
Status verify(const Manifest& manifest, const std::vector<Wanted>& parts,
              const std::vector<FileRange>& ranges, const BatchReader::Loan& loan) {
  if (manifest.empty()) return {};
  const Checkpoint::Tensor* last = nullptr;
  for (const Wanted& part : parts) {
    if (part.tensor == last) continue;  // gate and up of one tensor lie side by side
    last = part.tensor;
    const FileRange& range = ranges[part.merged];
    const uint64_t begin = std::max(range.offset, last->offset);
    const uint64_t end = std::min(range.offset + range.bytes, last->offset + last->bytes);
    const std::span bytes(loan.data(part.merged) + (begin - range.offset), end - begin);
    MOE_RETURN_IF_ERROR(manifest.check(*last, begin - last->offset, bytes));
  }
  return {};
}

// From the bytes that were read to where they are wanted.
Status deliver(const Wanted& part, const std::byte* first) {
  if (part.witness.tensor) return check_witness(part.witness, first);
  const TensorSlice& slice = part.found.slice;
  if (slice.packed.packing != Packing::none) return unpack_slice(slice, first, part.out);
  const auto from_memory = [&](int64_t offset, int64_t bytes, void* to) {
    std::memcpy(to, first + (offset - part.span.offset), static_cast<size_t>(bytes));
    return Status();
  };
  return read_slice(slice, from_memory, part.out);
}

}  // namespace

Status read_parts(Checkpoint::Impl& checkpoint, std::span<const WeightRead> reads) {
  MOE_ASSIGN_OR_RETURN(std::vector<Wanted> parts,
                       find_parts(checkpoint.layers, checkpoint.files, reads));
  const std::vector<FileRange> ranges = merge(parts);
  MOE_ASSIGN_OR_RETURN(const BatchReader::Loan loan, checkpoint.reader.read(ranges));
  MOE_RETURN_IF_ERROR(verify(checkpoint.manifest, parts, ranges, loan));
  for (const Wanted& part : parts) {
    const uint64_t skipped = part.range.offset - ranges[part.merged].offset;
    MOE_RETURN_IF_ERROR(deliver(part, loan.data(part.merged) + skipped));
  }
  return {};
}

}  // namespace moe
