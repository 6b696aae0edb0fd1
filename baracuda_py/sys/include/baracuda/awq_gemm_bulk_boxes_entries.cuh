// Entry points of awq_gemm_bulk.cuh for weights of boxes (awq_gemm_bulk_boxes.cuh), as awq_gemm_bulk_tiles.cuh says, of one
// element and number of groups in a block of 128 input channels: a module each, because a driver compiles a module as a
// whole, and a checkpoint needs one.
//
// awq_gemm, any m; oc % 32 == 0, ic % 64 == 0; weights, zeros and scales contiguous, from addresses that are multiples of 16.
// A unit is copied, but for a warp's first, by maps, in boxes of a warp's channels: scale_map (1, groups, oc) and zero_map
// bytes (1, groups, oc / 2), in boxes of a block's groups, not swizzled; weight_map is the layout's.
#pragma once

#include "baracuda/awq_gemm_bulk_boxes.cuh"
#include "baracuda/awq_gemm_bulk_tiles.cuh"

#define BARACUDA_BULK_BOXES_ENTRY(Weights, name, clusters, Element, Tile, kTokenTiles, kGroups)                             \
  extern "C" __global__ void clusters                                                                                       \
  __launch_bounds__(baracuda::Tile<baracuda::Weights, kTokenTiles, kGroups>::kThreads, 1)                                   \
      name(BARACUDA_AWQ_GEMM_PARAMETERS(Element), int tokens, int stages, int slots, int tiles, int overlaps,               \
           const __grid_constant__ baracuda::TensorMap x_map, const __grid_constant__ baracuda::TensorMap weight_map,       \
           const __grid_constant__ baracuda::TensorMap scale_map, const __grid_constant__ baracuda::TensorMap zero_map) {   \
    using Shape = baracuda::Tile<baracuda::Weights, kTokenTiles, kGroups>;                                                  \
    baracuda::awq_gemm_bulk<Shape>(baracuda::AwqGemmOperands<Element> BARACUDA_AWQ_GEMM_OPERANDS, &x_map,                   \
                                   {&weight_map, &scale_map, &zero_map, reinterpret_cast<const unsigned char*>(weights),    \
                                    static_cast<const unsigned char*>(scales),                                              \
                                    reinterpret_cast<const unsigned char*>(zeros), ic, oc,                                  \
                                    kGroups == 1 && group != baracuda::kBlockDepth},                                        \
                                   baracuda::BulkLayout<Shape>{tokens, stages, slots}, tiles, overlaps != 0);               \
  }
