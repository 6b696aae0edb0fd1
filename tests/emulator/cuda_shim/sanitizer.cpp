// What the checks call that g++ compiles into the sources: a misaligned access, an index outside an array, a
// shift by too much, a signed overflow. Each ends the launch, naming the line.
//
// The entry points and the head of their data are those of libubsan, which is not linked: it would end the
// process.
#include "emulator.h"

namespace {

struct Where {
  const char* file;
  unsigned line;
  unsigned column;
};

[[noreturn]] void fail_at(const void* data, const char* what) {
  const auto& where = *static_cast<const Where*>(data);
  emulator::fail("%s, at %s:%u:%u", what, where.file, where.line, where.column);
}

}  // namespace

#define EMULATED_CHECK(name, what) \
  extern "C" [[noreturn]] void __ubsan_handle_##name##_abort(const void* data) { fail_at(data, what); }

EMULATED_CHECK(type_mismatch_v1, "a misaligned access")
EMULATED_CHECK(out_of_bounds, "an index outside its array")
EMULATED_CHECK(shift_out_of_bounds, "a shift by too many bits")
EMULATED_CHECK(add_overflow, "a sum overflows int")
EMULATED_CHECK(sub_overflow, "a difference overflows int")
EMULATED_CHECK(mul_overflow, "a product overflows int")
EMULATED_CHECK(negate_overflow, "a negation overflows int")
EMULATED_CHECK(divrem_overflow, "a division by zero")
