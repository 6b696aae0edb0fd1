// Entry points for HF_GEMM weights, as awq_gemm_bulk_boxes_entries.cuh says: weight_map is bytes (1, ic, oc / 2), boxes of 128
// rows, swizzled over a box's rows where those are 32 bytes.
#pragma once

#include "baracuda/awq_gemm_bulk_boxes_entries.cuh"
#include "baracuda/awq_gemm_bulk_hf_gemm.cuh"

#define BARACUDA_BULK_ENTRY(...) BARACUDA_BULK_BOXES_ENTRY(BulkHfGemm, __VA_ARGS__)
