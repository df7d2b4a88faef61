// Which kernels the entry points launch, and how: the project's own host code with a runtime library that only notes.
// Reads one problem a line, prints `<line> <kernel> <blocks> <threads> <bytes of shared memory>` a launch:
//   attention fwd|bwd <dtype> <batch> <heads> <key heads> <queries> <keys> <D> <aligned 0|1> <selected 0|1>
//   loss <dtype> <rows> <vocabulary>
//   linear_loss <dtype> <tokens> <vocabulary> <C> <segment>
//   rope <dtype> <tokens> <heads> <D> <pairs> <interleaved 0|1> <aligned 0|1>
//   block_score <dtype> <tokens> <heads> <key heads> <D> <aligned 0|1>
//   glu fwd|bwd <dtype> <activation> <rows> <F>
//   lora fwd|bwd <dtype> <dtype of adapters> <rows> <C> <N> <R> <dropout 0|1>
//   norm fwd|bwd <dtype> <dtype of weight> <rows> <C> <centered 0|1>
//   and those of sparse_launches.h and list_launches.h
#include <cstdio>
#include <iostream>
#include <sstream>
#include <stdexcept>

#include "attention/attention.h"
#include "fake_runtime.h"
#include "glu/glu.h"
#include "list_launches.h"
#include "lora/lora.h"
#include "loss/loss.h"
#include "norm/norm.h"
#include "rope/rope.h"
#include "select/select.h"
#include "sparse_launches.h"

using namespace longspan::kernels;

namespace {

void attention(std::istream& words) {
  std::string direction, dtype_name;
  int64_t batch, heads, key_heads, queries, keys, D;
  bool aligned, selected;
  if (!(words >> direction >> dtype_name >> batch >> heads >> key_heads >> queries >> keys >> D >> aligned >> selected))
    throw std::invalid_argument("attention takes direction, dtype, six sizes, alignment and whether keys are selected");
  const DType dtype = dtype_of(dtype_name);
  const View<4> q = view(dtype, batch, heads, queries, D, aligned), k = view(dtype, batch, key_heads, keys, D, aligned);
  const AttentionTensors io{q, k, k, q, scratch};
  AttentionSpec spec{{}, {}, {}, 1.0, 0.0, {}};
  if (selected) spec.pattern.kind = PatternKind::kSelected, spec.selection = selection_of_codes();
  if (direction == "fwd")
    attention_fwd_cuda(spec, io, context());
  else
    attention_bwd_cuda(spec, io, {q, q, k, k, nullptr}, context());
}

void loss(std::istream& words) {
  std::string dtype;
  int64_t rows, V;
  if (!(words >> dtype >> rows >> V)) throw std::invalid_argument("loss takes dtype, rows and vocabulary");
  CrossEntropyRows arguments{};
  arguments.dtype = dtype_of(dtype), arguments.logits = reinterpret_cast<float*>(scratch);
  arguments.rows = rows, arguments.V = V, arguments.stride = V;
  arguments.gradient = scratch, arguments.gradient_stride = V;
  cross_entropy_rows_cuda(arguments, context());
}

void linear_loss(std::istream& words) {
  std::string name;
  int64_t T, V, C, segment;
  if (!(words >> name >> T >> V >> C >> segment)) throw std::invalid_argument("linear_loss takes dtype and four sizes");
  const DType dtype = dtype_of(name);
  const View<2> hidden{scratch, dtype, {T, C}, {C, 1}}, weight{scratch, dtype, {V, C}, {C, 1}};
  const auto* labels = reinterpret_cast<const int64_t*>(scratch);
  linear_cross_entropy_cuda({segment, -100, 1.0, 0.0},
                            {hidden, weight, scratch, labels, nullptr, nullptr, scratch, hidden, weight, scratch},
                            context());
}

void norm(std::istream& words) {
  std::string direction, rows_name, weight_name;
  int64_t T, C;
  bool centered;
  if (!(words >> direction >> rows_name >> weight_name >> T >> C >> centered))
    throw std::invalid_argument("norm takes direction, two dtypes, two sizes and whether it is centered");
  const DType weight = dtype_of(weight_name);
  const View<2> x{scratch, dtype_of(rows_name), {T, C}, {C, 1}};
  const NormSpec spec{centered, 1e-6, 0.0};
  if (direction == "fwd")
    norm_fwd_cuda(spec, {x, x, scratch, scratch, weight, x, x, scratch, scratch}, context());
  else
    norm_bwd_cuda(spec, {x, x, x, scratch, weight, scratch, scratch, x, scratch, scratch}, context());
}

void lora(std::istream& words) {
  std::string direction, name, adapter_name;
  int64_t T, C, N, R;
  bool dropout;
  if (!(words >> direction >> name >> adapter_name >> T >> C >> N >> R >> dropout))
    throw std::invalid_argument("lora takes direction, two dtypes, four sizes and whether there is dropout");
  const DType dtype = dtype_of(name), adapter = dtype_of(adapter_name);
  const auto view = [](DType of, int64_t rows, int64_t columns) {
    return View<2>{scratch, of, {rows, columns}, {columns, 1}};
  };
  LoraInput in{};
  in.x = view(dtype, T, C), in.normed = true, in.norm = {false, 1e-6, 0.0};
  in.norm_weight = scratch, in.norm_dtype = dtype, in.rstd = scratch;
  in.dropout = dropout ? 0.1 : 0.0, in.seeds = reinterpret_cast<const int64_t*>(scratch);
  const LoraProjection projection{view(dtype, N, C), scratch, view(adapter, R, C), view(adapter, N, R), 2.0};
  const LoraProjection projections[] = {projection, projection};
  if (direction == "fwd") {
    const LoraOutput output{view(dtype, T, N), view(dtype, T, N)};
    const LoraOutput outputs[] = {output, output};
    lora_linear_fwd_cuda(in, projections, outputs, scratch, 2, context());
  } else {
    const LoraGradient gradient{view(dtype, T, N), view(dtype, N, C), scratch, view(adapter, R, C), view(adapter, N, R)};
    const LoraGradient gradients[] = {gradient, gradient};
    lora_linear_bwd_cuda(in, projections, gradients, {view(dtype, T, C), scratch, nullptr}, scratch, 2, context());
  }
}

void rope(std::istream& words) {
  std::string name;
  int64_t T, H, D, pairs;
  bool interleaved, aligned;
  if (!(words >> name >> T >> H >> D >> pairs >> interleaved >> aligned))
    throw std::invalid_argument("rope takes dtype, four sizes, interleaved and alignment");
  const View<4> x = view(dtype_of(name), 1, H, T, D, aligned);
  const View<2> table{scratch, DType::kFloat32, {T, pairs}, {pairs, 1}};
  rope_cuda({interleaved, false}, {x, x, table, table, reinterpret_cast<const int64_t*>(scratch), 0}, context());
}

void block_score(std::istream& words) {
  std::string name;
  int64_t M, H, K, D;
  bool aligned;
  if (!(words >> name >> M >> H >> K >> D >> aligned))
    throw std::invalid_argument("block_score takes dtype, four sizes and alignment");
  const int64_t row = round_up(D, 8) + (aligned ? 0 : 1), N = ceil_div(M, 64);
  const auto rows = [&](int64_t heads) { return View<3>{scratch, dtype_of(name), {M, heads, D}, {heads * row, row, 1}}; };
  const auto* numbers = reinterpret_cast<const int32_t*>(scratch);
  block_score_cuda({1.0, true},
                   {rows(H), rows(K), numbers, numbers, numbers, {scratch, DType::kFloat32, {1, N, N}, {N * N, N, 1}}},
                   context());
}

void glu(std::istream& words) {
  std::string direction, name, activation;
  int64_t T, F;
  if (!(words >> direction >> name >> activation >> T >> F))
    throw std::invalid_argument("glu takes direction, dtype, activation and two sizes");
  const View<2> x{scratch, dtype_of(name), {T, F}, {F, 1}};
  if (direction == "fwd")
    glu_fwd_cuda({activation_named(activation), x, x, x}, context());
  else
    glu_bwd_cuda({activation_named(activation), x, x, x, x, x}, context());
}

}  // namespace

int main() {
  std::string line;
  for (int number = 0; std::getline(std::cin, line); ++number) {
    std::istringstream words(line);
    std::string op;
    words >> op;
    try {
      if (op == "attention")
        attention(words);
      else if (op == "loss")
        loss(words);
      else if (op == "linear_loss")
        linear_loss(words);
      else if (op == "norm")
        norm(words);
      else if (op == "lora")
        lora(words);
      else if (op == "glu")
        glu(words);
      else if (op == "rope")
        rope(words);
      else if (op == "block_score")
        block_score(words);
      else if (!sparse_launch(op, words) && !list_launch(op, words))
        throw std::invalid_argument("no op " + op);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "line %d, %s: %s\n", number, line.c_str(), error.what());
      return 1;
    }
    for (const Launch& x : take_launches())
      std::printf("%d %s %zu %u %zu\n", number, x.kernel.c_str(), x.blocks, x.threads, x.shared);
  }
}
