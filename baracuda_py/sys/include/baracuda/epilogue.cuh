// What a GEMM does to its f32 sums before it rounds them to the output's element.
#pragma once

namespace baracuda {

// Values are EpilogueKind's.
enum Epilogue : int {
  kIdentity = 0,
  kBias = 1,
  kBiasRelu = 2,
  kBiasGelu = 3,  // x * Phi(x), not its tanh form
  kBiasSilu = 4,
};

// NaN comes out as NaN of every one.
__device__ __forceinline__ float apply_activation(float value, int epilogue) {
  constexpr float kSqrtHalf = 0.70710678118654752f;
  switch (epilogue) {
    case kBiasRelu:
      return value < 0.0f ? 0.0f : value;
    case kBiasGelu:
      return 0.5f * value * erfcf(-value * kSqrtHalf);  // 1 + erff loses the lower tail; this, x^2 times 2^-24 of it
    case kBiasSilu:
      return value / (1.0f + expf(-value));
    default:
      return value;
  }
}

}  // namespace baracuda
