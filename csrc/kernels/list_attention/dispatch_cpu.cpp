// Transposed lists on the CPU, and what picks the instruction set's variant of the other kernels; see list_attention.h.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "common/per_isa.h"
#include "list_attention/list_attention.h"

namespace longspan::kernels {

LONGSPAN_DECLARE_PER_ISA(void list_attention_fwd(const KeyLists&, double, double, const ListAttentionTensors&,
                                                 const Context&))
LONGSPAN_DECLARE_PER_ISA(void list_attention_bwd(const KeyLists&, double, double, const ListAttentionTensors&,
                                                 const ListAttentionGradients&, const Context&))

namespace {

/// Throws unless every number names a key and numbers increase, -1 behind the last.
void check(const char* name, const KeyLists& lists, const ListShape& shape) {
  for (int64_t row = 0; row < shape.lists * shape.T; ++row) {
    const int32_t* list = lists.indices + row * shape.L;
    for (int64_t i = 0; i < shape.L; ++i) {
      const bool ended = i > 0 && list[i - 1] < 0;
      if (list[i] < -1 || list[i] >= shape.S || (list[i] >= 0 && (ended || (i > 0 && list[i] <= list[i - 1]))))
        throw std::invalid_argument(std::string(name) + ": slot " + std::to_string(i) + " of list " + std::to_string(row) +
                                    " is " + std::to_string(list[i]) + "; numbers of " + std::to_string(shape.S) +
                                    " keys must increase, with -1 behind the last");
    }
  }
}

/// Throws unless `starts` and `rows` could be the transposed lists.
void check_transposed(const KeyLists& lists, const ListShape& shape) {
  for (int64_t list = 0; list < shape.lists; ++list) {
    const int32_t *start = lists.starts + list * (shape.S + 1), *rows = lists.rows + list * shape.T * shape.L;
    bool fits = start[0] == 0 && start[shape.S] <= shape.T * shape.L;
    for (int64_t j = 0; j < shape.S; ++j) fits = fits && start[j] <= start[j + 1];
    for (int64_t i = 0; fits && i < start[shape.S]; ++i) fits = rows[i] >= 0 && rows[i] < shape.T;
    if (!fits)
      throw std::invalid_argument("list_attention: starts and rows of head " + std::to_string(list) +
                                  " are not those of list_transpose(indices, " + std::to_string(shape.S) + ")");
  }
}

void refuse_float16(const ListAttentionTensors& io) {
  if (io.q.dtype == DType::kFloat16)
    throw std::invalid_argument("list_attention on the CPU has no float16; use bfloat16 or float32");
}

}  // namespace

void list_transpose_cpu(const ListShape& shape, const int32_t* indices, int32_t* starts, int32_t* rows,
                        const Context& context) {
  check("list_transpose", {indices, shape.L}, shape);
  parallel_for(context, shape.lists, [&](int64_t list, int) {
    const int32_t* from = indices + list * shape.T * shape.L;
    int32_t *start = starts + list * (shape.S + 1), *to = rows + list * shape.T * shape.L;
    std::fill(start, start + shape.S + 1, 0);
    for (int64_t i = 0; i < shape.T * shape.L; ++i)
      if (from[i] >= 0) ++start[from[i] + 1];
    for (int64_t j = 0; j < shape.S; ++j) start[j + 1] += start[j];
    // Filled with start[j] as the next place of key j, which is then where key j + 1 begins.
    const int32_t total = start[shape.S];
    for (int64_t t = 0; t < shape.T; ++t)
      for (int64_t i = 0; i < shape.L && from[t * shape.L + i] >= 0; ++i) to[start[from[t * shape.L + i]]++] = int32_t(t);
    for (int64_t j = shape.S; j > 0; --j) start[j] = start[j - 1];
    start[0] = 0;
    std::fill(to + total, to + shape.T * shape.L, -1);
  });
}

void list_attention_fwd_cpu(const KeyLists& lists, double scale, double softcap, const ListAttentionTensors& io,
                            const Context& context) {
  refuse_float16(io);
  check("list_attention", lists, {io.q.size[0] * io.q.size[1], io.q.size[2], lists.slots, io.k.size[2]});
  LONGSPAN_CALL_PER_ISA(context.isa, list_attention_fwd, lists, scale, softcap, io, context);
}

void list_attention_bwd_cpu(const KeyLists& lists, double scale, double softcap, const ListAttentionTensors& io,
                            const ListAttentionGradients& grads, const Context& context) {
  refuse_float16(io);
  const ListShape shape{io.q.size[0] * io.q.size[1], io.q.size[2], lists.slots, io.k.size[2]};
  check("list_attention", lists, shape);
  check_transposed(lists, shape);
  LONGSPAN_CALL_PER_ISA(context.isa, list_attention_bwd, lists, scale, softcap, io, grads, context);
}

}  // namespace longspan::kernels
