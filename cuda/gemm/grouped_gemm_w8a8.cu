#include "gemm/grouped_gemm.cuh"

namespace moe::cuda::grouped {

cudaError_t launch_w8a8(TileClass size, const GroupedGemmArgs& args, int64_t max_tiles,
                        int multiprocessors, cudaStream_t stream) {
  switch (size) {
    case TileClass::medium:
      return launch_size<Operands::w8a8, TileClass::medium>(args, max_tiles, multiprocessors,
                                                            stream);
    case TileClass::large:
      return launch_size<Operands::w8a8, TileClass::large>(args, max_tiles, multiprocessors,
                                                           stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace moe::cuda::grouped
