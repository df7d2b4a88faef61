// The pybind11 module longspan._host: every kernel entry point on plain arrays, without torch.
#include <pybind11/stl.h>

#include <cstdlib>

#include "host/bind.h"
#include "kernels/common/isa.h"

PYBIND11_MODULE(_host, m, pybind11::mod_gil_not_used()) {
  m.doc() = "longspan's kernels on arrays that speak DLPack or the buffer protocol";
  m.attr("built_for") = PY_VERSION;
  m.attr("compiler") = __VERSION__;
#ifdef LONGSPAN_WITH_CUDA
  m.attr("built_with_cuda") = true;
#else
  m.attr("built_with_cuda") = false;
#endif
  m.def(
      "instruction_set",
      [] { return longspan::kernels::isa_name(longspan::kernels::select_isa(std::getenv("LONGSPAN_ISA"))); },
      "The instruction set that kernels use; the environment variable LONGSPAN_ISA overrides the choice.");
  longspan::host::bind_attention(m);
  longspan::host::bind_gemm(m);
  longspan::host::bind_glu(m);
  longspan::host::bind_grouped(m);
  longspan::host::bind_list_attention(m);
  longspan::host::bind_lora(m);
  longspan::host::bind_loss(m);
  longspan::host::bind_magnitude(m);
  longspan::host::bind_norm(m);
  longspan::host::bind_perturb(m);
  longspan::host::bind_pq(m);
  longspan::host::bind_rope(m);
  longspan::host::bind_select(m);
  longspan::host::bind_topl(m);
  longspan::host::bind_update(m);
}
