// One thread or warp an instruction, so that what the emulator computes can be compared with NumPy.
#include "baracuda/element.cuh"
#include "baracuda/mma.cuh"
#include "baracuda/pair_arithmetic.cuh"
#include "baracuda/shared_memory.cuh"
#include "baracuda/bulk_copy.cuh"
#include "baracuda/cp_async.cuh"
#include "baracuda/mbarrier.cuh"
#include "baracuda/shuffle.cuh"
#include "baracuda/store_matrix.cuh"
#include "baracuda/wgmma.cuh"
#include "baracuda/wgmma_fp8.cuh"

using namespace baracuda;

__device__ int global_index() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

extern "C" __global__ void round_f16(const float* in, unsigned short* out) {
  out[global_index()] = __half_as_ushort(from_f32<__half>(in[global_index()]));
}
extern "C" __global__ void round_bf16(const float* in, unsigned short* out) {
  out[global_index()] = __bfloat16_as_ushort(from_f32<__nv_bfloat16>(in[global_index()]));
}
// A pair at a time, the low half first.
extern "C" __global__ void widen_f16(const unsigned* in, float2* out) {
  out[global_index()] = pair_to_f32<__half>(in[global_index()]);
}
extern "C" __global__ void widen_bf16(const unsigned* in, float2* out) {
  out[global_index()] = pair_to_f32<__nv_bfloat16>(in[global_index()]);
}
// in: a, b and c of each thread.
extern "C" __global__ void fma_f16(const unsigned* in, unsigned* out) {
  const unsigned* abc = in + 3 * global_index();
  out[global_index()] = fma_pair<__half>(abc[0], abc[1], abc[2]);
}
extern "C" __global__ void fma_bf16(const unsigned* in, unsigned* out) {
  const unsigned* abc = in + 3 * global_index();
  out[global_index()] = fma_pair<__nv_bfloat16>(abc[0], abc[1], abc[2]);
}
// in: a and b of each thread.
extern "C" __global__ void mul_f16(const unsigned* in, unsigned* out) {
  out[global_index()] = mul_pair<__half>(in[2 * global_index()], in[2 * global_index() + 1]);
}
extern "C" __global__ void mul_bf16(const unsigned* in, unsigned* out) {
  out[global_index()] = mul_pair<__nv_bfloat16>(in[2 * global_index()], in[2 * global_index() + 1]);
}
// in: a, b and the selector of each thread.
extern "C" __global__ void permute(const unsigned* in, unsigned* out) {
  const unsigned* operands = in + 3 * global_index();
  out[global_index()] = __byte_perm(operands[0], operands[1], operands[2]);
}

// One warp. in: values, then lanes.
extern "C" __global__ void values_of_lanes(const float* in, float* out) {
  out[threadIdx.x] = value_of_lane(in[threadIdx.x], static_cast<int>(in[32 + threadIdx.x]));
}

// One warp. in: a (16, 16), row-major, then b (16, 8), row-major; out: a * b (16, 8). Operand A goes through
// ldmatrix.
template <typename Element>
void multiply(const unsigned short* in, float* out) {
  unsigned short* s_a = dynamic_shared<unsigned short>();
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  for (int i = lane; i < 256; i += 32) s_a[i] = in[i];
  __syncthreads();
  unsigned a[4];
  ldmatrix_x4(a, shared_address(s_a + lane % 16 * 16 + lane / 16 * 8));
  const unsigned short* g_b = in + 256;
  const auto pair = [&](int k) { return g_b[k * 8 + g] | static_cast<unsigned>(g_b[(k + 1) * 8 + g]) << 16; };
  float d[4] = {};
  mma_m16n8k16<Element>(d, a, pair(2 * t), pair(2 * t + 8));
  for (int i = 0; i < 4; ++i) out[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = d[i];
}
extern "C" __global__ void mma_f16(const unsigned short* in, float* out) { multiply<__half>(in, out); }
// One warp. in: four matrices (8, 8) of 2-byte elements; out: of each, what ldmatrix gives every lane of its transpose.
extern "C" __global__ void load_transposed(const unsigned short* in, unsigned* out) {
  unsigned short* s_rows = dynamic_shared<unsigned short>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) s_rows[i] = in[i];
  __syncthreads();
  unsigned fragment[4];
  ldmatrix_x4_transposed(fragment, shared_address(s_rows + lane * 8));
  for (int i = 0; i < 4; ++i) out[i * 32 + lane] = fragment[i];
}

extern "C" __global__ void mma_bf16(const unsigned short* in, float* out) { multiply<__nv_bfloat16>(in, out); }

// One warp. in: a (16, 16), row-major, of 2-byte elements; out: its transpose, by fragments of mma's operand A.
extern "C" __global__ void transpose(const unsigned short* in, unsigned* out) {
  unsigned* s_rows = dynamic_shared<unsigned>();
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  unsigned a[4];
  for (int i = 0; i < 4; ++i) {
    const unsigned short* g_pair = in + (g + 8 * (i % 2)) * 16 + 2 * t + 8 * (i / 2);
    a[i] = g_pair[0] | static_cast<unsigned>(g_pair[1]) << 16;
  }
  const int row = lane / 16 * 8 + lane % 8, half = lane / 8 % 2;
  stmatrix_x4_transposed(shared_address(s_rows + row * 8 + half * 4), a);
  __syncwarp();
  for (int i = lane; i < 128; i += 32) out[i] = s_rows[i];
}

// One warp. in: 16 words of a map, then x, y and z; out: the box (4, 8, 64) of 2-byte elements, as it lies in shared memory.
extern "C" __global__ void box(const unsigned long long* in, unsigned* out) {
  constexpr int kWords = 4 * 8 * 64 / 2;
  const unsigned char* s_box = dynamic_shared_for_boxes();
  const unsigned address = shared_address(s_box), barrier = address + kWords * 4;
  if (threadIdx.x == 0) {
    TensorMap map;
    for (int i = 0; i < 16; ++i) map.opaque[i] = in[i];
    mbarrier_init(barrier, 1);
    mbarrier_fence_init();
    mbarrier_arrive_expecting(barrier, kWords * 4);
    box_copy(address, &map, static_cast<int>(in[16]), static_cast<int>(in[17]), static_cast<int>(in[18]), barrier);
  }
  __syncthreads();
  mbarrier_wait(barrier, 0);
  const auto* s_words = reinterpret_cast<const unsigned*>(s_box);
  for (int i = static_cast<int>(threadIdx.x); i < kWords; i += 32) out[i] = s_words[i];
}

// A warpgroup. in: a (64, 16), row-major, then rows of b (N, 64), of which the k16 step 2 is taken; out: a * b (64, N).
// The first kRows rows of b lie in shared memory, others are left as they are there.
template <typename Element, int kColumns, int kRows>
void multiply_by_warpgroup(const unsigned short* in, float* out) {
  unsigned char* s_rows = dynamic_shared_for_boxes();
  const unsigned address = shared_address(s_rows);
  const unsigned short* g_b = in + 64 * 16;
  for (int i = static_cast<int>(threadIdx.x); i < kRows * 64; i += 128) {
    const unsigned at = address + static_cast<unsigned>(2 * i);
    *reinterpret_cast<unsigned short*>(s_rows + ((at ^ (at >> 3 & 0x70)) - address)) = g_b[i];
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int first = static_cast<int>(threadIdx.x) / 32 * 16;
  unsigned a[4];
  for (int i = 0; i < 4; ++i) {
    const unsigned short* g_a = in + (first + g + 8 * (i % 2)) * 16 + 2 * t + 8 * (i / 2);
    a[i] = g_a[0] | static_cast<unsigned>(g_a[1]) << 16;
  }
  float d[kColumns / 2] = {};
  wgmma_fence();
  wgmma_m64k16<Element>(d, a, wgmma_step(wgmma_rows(address), 2));
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < kColumns / 2; ++i) {
    out[(first + g + i / 2 % 2 * 8) * kColumns + i / 4 * 8 + 2 * t + i % 2] = d[i];
  }
}
#define WARPGROUP(name, Element, kColumns, kRows)                            \
  extern "C" __global__ void name(const unsigned short* in, float* out) {    \
    multiply_by_warpgroup<Element, kColumns, kRows>(in, out);                \
  }
WARPGROUP(wgmma_f16_32, __half, 32, 32)
WARPGROUP(wgmma_f16_64, __half, 64, 64)
WARPGROUP(wgmma_f16_96, __half, 96, 96)
WARPGROUP(wgmma_f16_160, __half, 160, 160)
WARPGROUP(wgmma_f16_256, __half, 256, 256)
WARPGROUP(wgmma_bf16_128, __nv_bfloat16, 128, 128)
WARPGROUP(wgmma_bf16_192, __nv_bfloat16, 192, 192)
WARPGROUP(wgmma_bf16_224, __nv_bfloat16, 224, 224)
WARPGROUP(wgmma_bf16_256, __nv_bfloat16, 256, 256)
WARPGROUP(wgmma_of_24_rows, __half, 64, 24)
WARPGROUP(wgmma_of_no_rows, __half, 64, 0)

// The same of bytes: a (64, 32), rows of b (N, 128), of which the k32 step 1 is taken; added to 1000, or written anew.
template <int kColumns, bool kAdds>
void multiply_bytes_by_warpgroup(const unsigned char* in, float* out) {
  unsigned char* s_rows = dynamic_shared_for_boxes();
  const unsigned address = shared_address(s_rows);
  for (int i = static_cast<int>(threadIdx.x); i < kColumns * 128; i += 128) {
    const unsigned at = address + static_cast<unsigned>(i);
    s_rows[(at ^ (at >> 3 & 0x70)) - address] = in[64 * 32 + i];
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int first = static_cast<int>(threadIdx.x) / 32 * 16;
  unsigned a[4];
  for (int i = 0; i < 4; ++i) {
    a[i] = *reinterpret_cast<const unsigned*>(in + (first + g + 8 * (i % 2)) * 32 + 4 * t + 16 * (i / 2));
  }
  float d[kColumns / 2];
  for (float& sum : d) sum = 1000.0f;
  wgmma_fence();
  wgmma_m64k32_e4m3(d, a, wgmma_step(wgmma_rows(address), 1), kAdds);
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < kColumns / 2; ++i) {
    out[(first + g + i / 2 % 2 * 8) * kColumns + i / 4 * 8 + 2 * t + i % 2] = d[i];
  }
}
extern "C" __global__ void wgmma_e4m3_64_adds(const unsigned char* in, float* out) {
  multiply_bytes_by_warpgroup<64, true>(in, out);
}
extern "C" __global__ void wgmma_e4m3_64_anew(const unsigned char* in, float* out) {
  multiply_bytes_by_warpgroup<64, false>(in, out);
}
extern "C" __global__ void wgmma_e4m3_128_adds(const unsigned char* in, float* out) {
  multiply_bytes_by_warpgroup<128, true>(in, out);
}
extern "C" __global__ void wgmma_e4m3_128_anew(const unsigned char* in, float* out) {
  multiply_bytes_by_warpgroup<128, false>(in, out);
}

// in: a and b of each thread; out: the absolute differences of their bytes.
extern "C" __global__ void absolute_differences(const unsigned* in, unsigned* out) {
  out[global_index()] = __vabsdiffu4(in[2 * global_index()], in[2 * global_index() + 1]);
}
