// The entry points of awq_gemm_bulk.cuh for TILED weights, one element and number of groups in a block of 128 input channels:
// a module each, because a driver compiles a module as a whole, and a checkpoint needs one.
//
// awq_gemm, any m; oc % 8 == 0, ic % 64 == 0; as awq_gemm_bulk_tiles.cuh says, a unit being that of BulkTiled.
#pragma once

#include "baracuda/awq_gemm_bulk_tiled.cuh"
#include "baracuda/awq_gemm_bulk_tiles.cuh"
#include "baracuda/cache_policy.cuh"

#define BARACUDA_BULK_ENTRY(name, clusters, Element, Tile, kTokenTiles, kGroups)                                            \
  extern "C" __global__ void clusters                                                                                       \
  __launch_bounds__(baracuda::Tile<baracuda::BulkTiled, kTokenTiles, kGroups>::kThreads, 1)                                 \
      name(BARACUDA_AWQ_GEMM_PARAMETERS(Element), int tokens, int stages, int slots, int tiles, int overlaps,               \
           const __grid_constant__ baracuda::TensorMap x_map) {                                                             \
    using Shape = baracuda::Tile<baracuda::BulkTiled, kTokenTiles, kGroups>;                                                \
    baracuda::awq_gemm_bulk<Shape>(baracuda::AwqGemmOperands<Element> BARACUDA_AWQ_GEMM_OPERANDS, &x_map,                   \
                                   {reinterpret_cast<const unsigned char*>(weights),                                        \
                                    gridDim.y == 1 ? baracuda::evict_first_policy()   /* read once */                       \
                                                   : baracuda::evict_normal_policy()},                                      \
                                   baracuda::BulkLayout<Shape>{tokens, stages, slots}, tiles, overlaps != 0);               \
  }
