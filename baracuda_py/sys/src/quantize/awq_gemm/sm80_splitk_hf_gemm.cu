// awq_gemm, split-K tile kernel, int32 [ic, oc / 8] weights in AutoAWQ's nibble order; any m, oc % 8 == 0, ic
// % 32 == 0, group % 32 == 0.
//
// grid (ceil(m / rows) * ceil(oc / kTileN), 1, split_k), kTileM<rows>Threads threads, kTileM<rows>SharedBytes
// of dynamic shared memory. With one split the outputs are finished here and partials is not touched; with
// more, split s writes its f32 sums, zeros for an empty range, to partials[s], and
// awq_gemm_reduce_sm80_<element> finishes.
#include "baracuda/awq_gemm_splitk.cuh"

using namespace baracuda;

namespace {
constexpr WeightLayout kLayout = WeightLayout::kHfGemm;
using TileM16 = SplitKTile<kLayout, 16, 128, 3>;
using TileM64 = SplitKTile<kLayout, 64, 64, 3>;
using TileM128 = SplitKTile<kLayout, 128, 64, 4>;
}  // namespace

BARACUDA_CONSTANT(kTileM16SharedBytes, 46848);
BARACUDA_CONSTANT(kTileM64SharedBytes, 41856);
BARACUDA_CONSTANT(kTileM128SharedBytes, 88576);
static_assert(kTileM16SharedBytes == TileM16::kSharedBytes, "the host must give what the tile needs");
static_assert(kTileM64SharedBytes == TileM64::kSharedBytes, "the host must give what the tile needs");
static_assert(kTileM128SharedBytes == TileM128::kSharedBytes, "the host must give what the tile needs");
static_assert(kTileM16Threads == TileM16::kThreads, "the host must launch what the tile needs");
static_assert(kTileM64Threads == TileM64::kThreads, "the host must launch what the tile needs");
static_assert(kTileM128Threads == TileM128::kThreads, "the host must launch what the tile needs");

#define BARACUDA_ENTRY(name, Element, Tile)                                                                 \
  extern "C" __global__ void __launch_bounds__(Tile::kThreads)                                              \
      name(BARACUDA_AWQ_GEMM_PARAMETERS(Element), float* __restrict__ partials) {                           \
    awq_gemm_splitk<kLayout, Tile, Element>(AwqGemmOperands<Element> BARACUDA_AWQ_GEMM_OPERANDS, partials); \
  }

BARACUDA_ENTRY(awq_gemm_splitk_sm80_f16_hf_gemm_m16, __half, TileM16)
BARACUDA_ENTRY(awq_gemm_splitk_sm80_f16_hf_gemm_m64, __half, TileM64)
BARACUDA_ENTRY(awq_gemm_splitk_sm80_f16_hf_gemm_m128, __half, TileM128)
BARACUDA_ENTRY(awq_gemm_splitk_sm80_bf16_hf_gemm_m16, __nv_bfloat16, TileM16)
BARACUDA_ENTRY(awq_gemm_splitk_sm80_bf16_hf_gemm_m64, __nv_bfloat16, TileM64)
BARACUDA_ENTRY(awq_gemm_splitk_sm80_bf16_hf_gemm_m128, __nv_bfloat16, TileM128)
