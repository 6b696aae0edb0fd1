// Entry points for OC_MAJOR weights, as awq_gemm_bulk_boxes_entries.cuh says: weight_map is bytes (1, oc, ic / 2), boxes of a
// warp's channels, swizzled over their rows of 64 bytes.
#pragma once

#include "baracuda/awq_gemm_bulk_boxes_entries.cuh"
#include "baracuda/awq_gemm_bulk_oc_major.cuh"

#define BARACUDA_BULK_ENTRY(...) BARACUDA_BULK_BOXES_ENTRY(BulkOcMajor, __VA_ARGS__)
