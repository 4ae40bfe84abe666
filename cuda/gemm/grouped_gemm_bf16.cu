#include "gemm/grouped_gemm.cuh"

namespace moe::cuda {

cudaError_t launch_grouped_gemm_bf16(TileClass size, const GroupedGemmArgs& args, int64_t max_tiles,
                                     int multiprocessors, cudaStream_t stream) {
  using namespace grouped;
  if (!valid(args)) return cudaErrorInvalidValue;
  if (max_tiles == 0) return cudaSuccess;
  switch (size) {
    case TileClass::small:
      return launch_size<Element::bf16, TileClass::small>(args, max_tiles, multiprocessors, stream);
    case TileClass::medium:
      return launch_size<Element::bf16, TileClass::medium>(args, max_tiles, multiprocessors,
                                                           stream);
    default:
      return launch_size<Element::bf16, TileClass::large>(args, max_tiles, multiprocessors, stream);
  }
}

}  // namespace moe::cuda
