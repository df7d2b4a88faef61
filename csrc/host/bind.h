#pragma once
// One function a kernel family; module.cpp calls them all.
#include <pybind11/pybind11.h>

namespace longspan::host {

void bind_attention(pybind11::module_& m);
void bind_gemm(pybind11::module_& m);
void bind_glu(pybind11::module_& m);
void bind_grouped(pybind11::module_& m);
void bind_list_attention(pybind11::module_& m);
void bind_lora(pybind11::module_& m);
void bind_loss(pybind11::module_& m);
void bind_magnitude(pybind11::module_& m);
void bind_norm(pybind11::module_& m);
void bind_perturb(pybind11::module_& m);
void bind_pq(pybind11::module_& m);
void bind_rope(pybind11::module_& m);
void bind_select(pybind11::module_& m);
void bind_topl(pybind11::module_& m);
void bind_update(pybind11::module_& m);

}  // namespace longspan::host
