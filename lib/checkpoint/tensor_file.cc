#include <string>
#include <utility>

#include "checkpoint/safetensors.h"
#include "core/error.h"
#include "core/file.h"
#include "moe/checkpoint.h"

namespace moe {

struct TensorFile::Impl {
  std::string name;  // what Tensor::file is a view of
  std::unique_ptr<File> file;
  SafetensorsHeader header;
};

TensorFile::TensorFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TensorFile::TensorFile(TensorFile&&) noexcept = default;
TensorFile& TensorFile::operator=(TensorFile&&) noexcept = default;
TensorFile::~TensorFile() = default;

Result<TensorFile> TensorFile::open(std::string_view path) {
  return guarded({.file = path, .phase = Phase::open}, [&]() -> Result<TensorFile> {
    auto impl = std::make_unique<Impl>();
    impl->name = path.substr(path.rfind('/') + 1);
    MOE_ASSIGN_OR_RETURN(impl->file, open_file(std::string(path), FileMode::stay_open));
    MOE_ASSIGN_OR_RETURN(impl->header, read_safetensors_header(*impl->file, impl->name));
    return TensorFile(std::move(impl));
  });
}

const std::vector<Checkpoint::Tensor>& TensorFile::tensors() const noexcept {
  return impl_->header.tensors;
}

Status TensorFile::read(const Checkpoint::Tensor& tensor, void* out) const {
  const Place place{.file = impl_->name, .tensor = tensor.name};
  return guarded(place, [&] {
    return read_exactly(*impl_->file, tensor.offset, tensor.bytes, out).at(place);
  });
}

}  // namespace moe
