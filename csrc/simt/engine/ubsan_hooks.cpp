// The functions that code compiled with -fsanitize=alignment,bounds,... calls, without the sanitizer's runtime. The
// layouts are the sanitizer's ABI: each call brings a pointer to static data that begins with the source position.
#include <string>

#include "simt/engine/machine.h"
#include "simt/engine/report.h"

namespace {

struct Position {
  const char* file;
  uint32_t line, column;
};
struct TypeMismatch {
  Position position;
  const void* type;
  unsigned char log_alignment, kind;
};

void complain(const char* rule, const Position& position, const std::string& message, const void* address = nullptr) {
  // Host code in a kernel file counts as well: offsets are often computed there.
  simt::Report* made = simt::report(rule, simt::Site{position.file, int(position.line), nullptr});
  if (!made) return;
  made->message = message;
  if (address) describe_address(*made, address);
}

}  // namespace

extern "C" {

void __ubsan_handle_type_mismatch_v1(const TypeMismatch* data, const void* address) {
  const size_t alignment = size_t(1) << data->log_alignment;
  // Null pointers are left to the access itself.
  if (uintptr_t(address) % alignment == 0) return;
  complain(simt::rule::kMisaligned, data->position,
           simt::address_text(address) + " is not aligned to the " + std::to_string(alignment) + " bytes of its type",
           address);
}
void __ubsan_handle_add_overflow(const Position* at, void*, void*) {
  complain(simt::rule::kOverflow, *at, "a sum exceeds its signed type");
}
void __ubsan_handle_sub_overflow(const Position* at, void*, void*) {
  complain(simt::rule::kOverflow, *at, "a difference exceeds its signed type");
}
void __ubsan_handle_mul_overflow(const Position* at, void*, void*) {
  complain(simt::rule::kOverflow, *at, "a product exceeds its signed type");
}
void __ubsan_handle_negate_overflow(const Position* at, void*) {
  complain(simt::rule::kOverflow, *at, "a negation exceeds its signed type");
}
void __ubsan_handle_divrem_overflow(const Position* at, void*, void*) {
  complain(simt::rule::kDivision, *at, "division by zero, or overflow of a quotient");
}
void __ubsan_handle_shift_out_of_bounds(const Position* at, void*, void*) {
  complain(simt::rule::kShift, *at, "a shift by a negative count or by the width of its type and more");
}
void __ubsan_handle_out_of_bounds(const Position* at, void* index) {
  complain(simt::rule::kIndex, *at, "index " + std::to_string(intptr_t(index)) + " is outside an array of fixed size");
}

}  // extern "C"
