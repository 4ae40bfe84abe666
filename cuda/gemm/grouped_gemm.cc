#include "gemm/grouped_gemm.h"

namespace moe::cuda {
namespace {

bool valid(TileClass size, const GroupedGemmArgs& args) {
  const bool rows = !args.row_index || (gathers(size) && args.operands != Operands::w8a8);
  return rows && args.depth > 0 && args.weight_rows > 0 && args.out_stride % 8 == 0 &&
         args.out_columns % 8 == 0;
}

}  // namespace

cudaError_t launch_grouped_gemm(TileClass size, const GroupedGemmArgs& args, int64_t max_tiles,
                                int multiprocessors, cudaStream_t stream) {
  if (!valid(size, args)) return cudaErrorInvalidValue;
  if (max_tiles == 0) return cudaSuccess;
  const auto launch = args.operands == Operands::bf16   ? grouped::launch_bf16
                      : args.operands == Operands::w8a8 ? grouped::launch_w8a8
                                                        : grouped::launch_w8a16;
  return launch(size, args, max_tiles, multiprocessors, stream);
}

}  // namespace moe::cuda
