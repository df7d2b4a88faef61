#pragma once
// Included before everything else in kernel files of the hooks build: calls of these functions, written or made by the
// compiler for large copies, go to functions that check the bytes.
#include <stddef.h>

extern "C" {
void* memcpy(void*, const void*, size_t) noexcept __asm__("simt_memcpy");
void* memmove(void*, const void*, size_t) noexcept __asm__("simt_memmove");
void* memset(void*, int, size_t) noexcept __asm__("simt_memset");
}
