// What instructions of a whole warp compute, from the operands of its 32 lanes.
//
// A tensor core's sums are taken in f64, in rising order of k, and rounded to f32 once. A real one aligns and
// truncates its addends; how is not documented, so neither its last bits nor its order can be modelled. Of fp8 it keeps
// far fewer bits than this does.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "checks.h"
#include "emulator.h"
#include "launch.h"
#include "numbers.h"

namespace emulator {
namespace {

constexpr int kRows = 16, kColumns = 8, kDepth = 16;  // of an m16n8k16

template <typename Format16>
const double* values() {
  static const auto table = [] {
    std::array<double, 1 << 16> made;
    for (unsigned bits = 0; bits < made.size(); ++bits) {
      made[bits] = Format16::value(static_cast<unsigned short>(bits));
    }
    return made;
  }();
  return table.data();
}

// a * b + c in both halves. The product of two such values is exact in f64.
template <typename Format16>
unsigned fma_pair(unsigned a, unsigned b, unsigned c) {
  const double* const value = values<Format16>();
  const auto half = [&](int shift) {
    const auto of = [&](unsigned pair) { return value[pair >> shift & 0xffff]; };
    return static_cast<unsigned>(Format16::bits(sum_to_odd(of(a) * of(b), of(c))));
  };
  return half(0) | half(16) << 16;
}

// The fragments' layout is the one of the PTX manual, "Matrix fragments for mma.m16n8k16": lane 4 g + t.
template <typename Format16>
void multiply(void* const (&operands)[kWarpLanes]) {
  const double* const value = values<Format16>();
  double a[kRows][kDepth], b[kDepth][kColumns], d[kRows][kColumns];
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const auto& lanes = *static_cast<const MatrixMultiply*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + 8 * (i % 2), column = 2 * t + 8 * (i / 2);
      a[row][column] = value[lanes.a[i] & 0xffff];
      a[row][column + 1] = value[lanes.a[i] >> 16];
      d[g + 8 * (i / 2)][2 * t + i % 2] = lanes.d[i];
    }
    for (int i = 0; i < 2; ++i) {
      b[2 * t + 8 * i][g] = value[lanes.b[i] & 0xffff];
      b[2 * t + 8 * i + 1][g] = value[lanes.b[i] >> 16];
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      for (int column = 0; column < kColumns; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    auto& lanes = *static_cast<MatrixMultiply*>(operands[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) lanes.d[i] = static_cast<float>(d[g + 8 * (i / 2)][2 * t + i % 2]);
  }
}

// The values of all bit patterns of an operand's element.
struct F16Operand {
  using Bits = unsigned short;
  static const double* table() { return values<F16>(); }
};
struct Bf16Operand {
  using Bits = unsigned short;
  static const double* table() { return values<Bf16>(); }
};
struct E4m3Operand {
  using Bits = unsigned char;
  static const double* table() {
    static const auto table = [] {
      std::array<double, 1 << 8> made;
      for (unsigned bits = 0; bits < made.size(); ++bits) made[bits] = E4m3::value(static_cast<unsigned char>(bits));
      return made;
    }();
    return table.data();
  }
};

// The fragments' layouts of a and d are those of a warp's 16 rows of mma.m16n8k16, or of its m16n8k32 for 8-bit elements,
// d in n8 tiles. b is read where its descriptor says: rows of 128 bytes, eight of them 1024 bytes, swizzled by their
// addresses. Of rows behind the first that nothing was written to, which a kernel may leave to columns that it does not
// store, sums are NaN.
template <typename Operand>
void multiply_warpgroup_rows(std::size_t index) {
  using Bits = typename Operand::Bits;
  constexpr int kPieceBytes = 16, kPieces = 2;
  constexpr int kPieceItems = kPieceBytes / sizeof(Bits), kItems = kPieces * kPieceItems;
  constexpr int kRegisterItems = sizeof(unsigned) / sizeof(Bits);
  const double* const value = Operand::table();
  const auto part = [&](int lane) -> const WarpgroupMultiply& {
    return running_lane(lane).multiplies[index];
  };
  const WarpgroupMultiply& first = part(0);
  const unsigned begin = static_cast<unsigned>(first.b & 0x3fff) << 4;
  const unsigned eight_rows = static_cast<unsigned>(first.b >> 32 & 0x3fff) << 4;
  if (first.b >> 62 != 1 || (first.b >> 49 & 7) != 0) fail("operand b is described by %llx", first.b);
  for (int lane = 1; lane < kWarpLanes; ++lane) {
    if (part(lane).b != first.b) fail("lanes of a warp describe different operands b");
  }
  double a[kRows][kItems];
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    if (std::memcmp(part(lane).issued, part(lane).a, sizeof part(lane).issued) != 0) {
      fail("operand a of a matrix instruction that runs has been written since the last wait");
    }
    for (int i = 0; i < 4; ++i) {
      const int row = g + 8 * (i % 2), column = kRegisterItems * t + kPieceItems * (i / 2);
      Bits items[kRegisterItems];
      std::memcpy(items, &part(lane).a[i], sizeof items);
      for (int item = 0; item < kRegisterItems; ++item) a[row][column + item] = value[items[item]];
    }
  }
  for (int column = 0; column < first.columns; ++column) {
    double b[kItems];
    for (int piece = 0; piece < kPieces; ++piece) {
      const unsigned line = begin + static_cast<unsigned>(column / 8) * eight_rows + static_cast<unsigned>(column % 8 * 128);
      const unsigned address = line + static_cast<unsigned>(piece * kPieceBytes);
      const char* bytes = shared_pointer(address ^ (address >> 3 & 0x70), kPieceBytes);
      if (column > 0 && !holds_something(bytes, kPieceBytes)) {
        std::fill_n(b + kPieceItems * piece, kPieceItems, std::nan(""));
        continue;
      }
      note_read(running_thread_of_lane(0), bytes, kPieceBytes);
      Bits items[kPieceItems];
      std::memcpy(items, bytes, kPieceBytes);
      for (int k = 0; k < kPieceItems; ++k) b[kPieceItems * piece + k] = value[items[k]];
    }
    for (int row = 0; row < kRows; ++row) {
      const int lane = row % 8 * 4 + column % 8 / 2;
      float& sum = part(lane).d[column / 8 * 4 + row / 8 * 2 + column % 2];
      double total = first.adds ? sum : 0.0;
      for (int k = 0; k < kItems; ++k) total += a[row][k] * b[k];
      sum = static_cast<float>(total);
    }
  }
}

// What the lanes of a warp wait for is done when the last of them has come.
struct MultiplyWait {
  int pending;
};
void finish_multiplies(void* const (&operands)[kWarpLanes]) {
  const int pending = static_cast<const MultiplyWait*>(operands[0])->pending;
  const std::vector<std::size_t> ends = running_lane(0).multiply_ends;
  if (ends.size() <= static_cast<std::size_t>(pending)) return;
  const auto groups = static_cast<std::ptrdiff_t>(ends.size()) - pending;
  const std::size_t done = ends[static_cast<std::size_t>(groups) - 1];
  for (std::size_t i = 0; i < done; ++i) {
    switch (running_lane(0).multiplies[i].of) {
      case Operands::kF16:
        multiply_warpgroup_rows<F16Operand>(i);
        break;
      case Operands::kBf16:
        multiply_warpgroup_rows<Bf16Operand>(i);
        break;
      case Operands::kE4m3:
        multiply_warpgroup_rows<E4m3Operand>(i);
    }
  }
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    Thread& thread = running_lane(lane);
    if (thread.multiply_ends != ends) fail("lanes of a warp have committed different groups");
    thread.multiplies.erase(thread.multiplies.begin(), thread.multiplies.begin() + static_cast<std::ptrdiff_t>(done));
    thread.multiply_ends.erase(thread.multiply_ends.begin(), thread.multiply_ends.begin() + groups);
    for (std::size_t& end : thread.multiply_ends) end -= done;
  }
}

}  // namespace

void issue_wgmma(WarpgroupMultiply multiply) {
  if (!running->fenced) fail("no fence orders the registers of a matrix instruction");
  std::memcpy(multiply.issued, multiply.a, sizeof multiply.issued);
  running->multiplies.push_back(multiply);
}
void fence_wgmma() { running->fenced = true; }
void commit_wgmma() {
  running->multiply_ends.push_back(running->multiplies.size());
  running->fenced = false;
}
void wait_for_wgmma(int pending) {
  MultiplyWait wait{pending};
  warp_collective(finish_multiplies, &wait);
}

void mma_m16n8k16_f16(void* const (&operands)[kWarpLanes]) { multiply<F16>(operands); }
void mma_m16n8k16_bf16(void* const (&operands)[kWarpLanes]) { multiply<Bf16>(operands); }

void ldmatrix_x4(void* const (&operands)[kWarpLanes]) {
  constexpr int kMatrices = 4, kMatrixRows = 8, kRowBytes = 16;
  for (int matrix = 0; matrix < kMatrices; ++matrix) {
    for (int row = 0; row < kMatrixRows; ++row) {
      const unsigned address = static_cast<const MatrixLoad*>(operands[matrix * kMatrixRows + row])->address;
      const char* const s_row = shared_pointer(address, kRowBytes);
      for (int t = 0; t < 4; ++t) {
        note_read(running_thread_of_lane(4 * row + t), s_row + 4 * t, 4);
        std::memcpy(&static_cast<MatrixLoad*>(operands[4 * row + t])->fragment[matrix], s_row + 4 * t, 4);
      }
    }
  }
}

void ldmatrix_x4_transposed(void* const (&operands)[kWarpLanes]) {
  constexpr int kMatrices = 4, kMatrixRows = 8, kRowBytes = 16;
  for (int matrix = 0; matrix < kMatrices; ++matrix) {
    for (int row = 0; row < kMatrixRows; ++row) {
      const unsigned address = static_cast<const MatrixLoad*>(operands[matrix * kMatrixRows + row])->address;
      const char* const s_row = shared_pointer(address, kRowBytes);
      for (int column = 0; column < kRowBytes / 2; ++column) {
        const int lane = 4 * column + row / 2;
        note_read(running_thread_of_lane(lane), s_row + 2 * column, 2);
        auto* const half = reinterpret_cast<char*>(&static_cast<MatrixLoad*>(operands[lane])->fragment[matrix]);
        std::memcpy(half + row % 2 * 2, s_row + 2 * column, 2);
      }
    }
  }
}

void stmatrix_x4_transposed(void* const (&operands)[kWarpLanes]) {
  constexpr int kMatrices = 4, kMatrixRows = 8, kRowBytes = 16;
  for (int matrix = 0; matrix < kMatrices; ++matrix) {
    for (int row = 0; row < kMatrixRows; ++row) {
      const int lane = matrix * kMatrixRows + row;
      char* const s_row = shared_pointer(static_cast<const MatrixStore*>(operands[lane])->address, kRowBytes);
      note_write(running_thread_of_lane(lane), s_row, kRowBytes);
      for (int column = 0; column < 8; ++column) {
        const auto& from = *static_cast<const MatrixStore*>(operands[4 * column + row / 2]);
        const auto item = static_cast<unsigned short>(from.fragments[matrix] >> row % 2 * 16);
        std::memcpy(s_row + 2 * column, &item, 2);
      }
    }
  }
}

unsigned fma_pair_f16(unsigned a, unsigned b, unsigned c) { return fma_pair<F16>(a, b, c); }
unsigned fma_pair_bf16(unsigned a, unsigned b, unsigned c) { return fma_pair<Bf16>(a, b, c); }

void warp_barrier(void* const (&)[kWarpLanes]) { pass_warp_barrier(running_thread() / kWarpLanes); }

void elect(void* const (&operands)[kWarpLanes]) {
  for (int lane = 0; lane < kWarpLanes; ++lane) *static_cast<bool*>(operands[lane]) = lane == kWarpLanes - 1;
}

void shuffle_xor(void* const (&operands)[kWarpLanes]) {
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    auto& own = *static_cast<Shuffle*>(operands[lane]);
    if (own.mask != 0xffffffffu) fail("a shuffle's mask names a part of the warp");
    own.received = static_cast<const Shuffle*>(operands[(lane ^ own.lane) % kWarpLanes])->sent;
  }
}

void shuffle_index(void* const (&operands)[kWarpLanes]) {
  for (void* operand : operands) {
    auto& own = *static_cast<Shuffle*>(operand);
    own.received = static_cast<const Shuffle*>(operands[own.lane % kWarpLanes])->sent;
  }
}

}  // namespace emulator
