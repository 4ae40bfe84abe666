#include "gemm/grouped_gemm.cuh"

namespace moe::cuda::grouped {

cudaError_t launch_w8a16(TileClass size, const GroupedGemmArgs& args, int64_t max_tiles,
                         int multiprocessors, cudaStream_t stream) {
  switch (size) {
    case TileClass::small:
      return launch_size<Operands::w8a16, TileClass::small>(args, max_tiles, multiprocessors,
                                                            stream);
    case TileClass::medium:
      return launch_size<Operands::w8a16, TileClass::medium>(args, max_tiles, multiprocessors,
                                                             stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace moe::cuda::grouped
