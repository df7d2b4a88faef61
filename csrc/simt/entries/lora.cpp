// lora_fwd(x [T,C], count, N, scaling, weight0, lora_a0, lora_b0, bias0, residual0, ...) -> y0, ..., s, rstd, mean
// lora_bwd(the same, dy0, ..., s, rstd, mean, wanted gradients by name) -> dx, dnorm_weight, dnorm_bias, dweight0, dbias0,
//   dlora_a0, dlora_b0, ...
// Rows of x, weight, dy, y and residual may be strided: arrays are [rows, stride], and C and N say how much of a row counts.
#include "lora/lora.h"

#include "common/simt.h"
#include "simt/entries/dtype.h"
#include "simt/entry.h"

namespace simt {
namespace {

using namespace longspan::kernels;

struct LoraCall {
  Device& device;
  const py::dict& arguments;
  DType dtype = dtype_named(value<std::string>(arguments, "dtype"));
  DType adapter_dtype = dtype_named(value<std::string>(arguments, "adapter_dtype"));
  DType norm_dtype = dtype_named(value_or<std::string>(arguments, "norm_dtype", "float32"));
  int64_t C = value<int64_t>(arguments, "C");
  int count = value<int>(arguments, "count");
  std::vector<int64_t> N = list<int64_t>("N");
  std::vector<double> scaling = list<double>("scaling");
  int64_t T = shape(arguments, "x").at(0), padding = shape(arguments, "x").at(1) - C;

  template <class T>
  std::vector<T> list(const char* name) const {
    std::vector<T> values;
    for (const py::handle each : py::list(argument(arguments, name))) values.push_back(each.cast<T>());
    return values;
  }
  static std::string numbered(const char* name, int i) { return name + std::to_string(i); }

  View<2> in(const std::string& name, int64_t columns, DType of) const {
    if (!given(arguments, name.c_str())) return {};
    const Shape like = shape(arguments, name.c_str());
    void* data = input_bytes(device, arguments, name.c_str(), size_t(element_size(of)));
    return {data, of, {like.at(0), columns}, {like.at(1), 1}};
  }
  View<2> out(const std::string& name, int64_t rows, int64_t columns, int64_t stride, DType of) const {
    return {output_bytes(device, name.c_str(), {rows, stride}, numpy_name(of)), of, {rows, columns}, {stride, 1}};
  }
  bool wanted(const std::string& name) const { return value_or(arguments, name.c_str(), false); }
  void* vector(const char* name, DType of) const {
    return given(arguments, name) ? input_bytes(device, arguments, name, size_t(element_size(of))) : nullptr;
  }
  void* vector_out(const std::string& name, int64_t length, DType of) const {
    return wanted(name) ? output_bytes(device, name.c_str(), {length}, numpy_name(of)) : nullptr;
  }

  LoraInput input() const {
    LoraInput in{};
    in.x = this->in("x", C, dtype);
    in.normed = value_or(arguments, "normed", false);
    in.norm = {value_or(arguments, "centered", false), value_or(arguments, "eps", 1e-6),
               value_or(arguments, "weight_offset", 0.0)};
    in.norm_weight = vector("norm_weight", norm_dtype), in.norm_bias = vector("norm_bias", norm_dtype);
    in.norm_dtype = norm_dtype;
    in.dropout = value_or(arguments, "dropout", 0.0);
    if (in.dropout > 0) in.seeds = simt::input<int64_t>(device, arguments, "seeds");
    return in;
  }
  std::vector<LoraProjection> projections() const {
    std::vector<LoraProjection> all;
    for (int i = 0; i < count; ++i) {
      LoraProjection p{};
      p.weight = in(numbered("weight", i), C, dtype);
      p.bias = vector(numbered("bias", i).c_str(), dtype);
      p.lora_a = in(numbered("lora_a", i), C, adapter_dtype);
      p.lora_b = in(numbered("lora_b", i), p.lora_a.size[0], adapter_dtype);
      p.scaling = scaling.at(size_t(i));
      all.push_back(p);
    }
    return all;
  }
  int64_t ranks() const {
    int64_t sum = 0;
    for (int i = 0; i < count; ++i)
      if (given(arguments, numbered("lora_a", i).c_str())) sum += shape(arguments, numbered("lora_a", i).c_str()).at(0);
    return sum;
  }
  CudaContext context() const {
    const auto get = [](void* self, int64_t bytes) { return static_cast<Device*>(self)->scratch("scratch", size_t(bytes)); };
    return {nullptr, {&device, get}};
  }
};

py::dict lora_fwd(Device& device, const py::dict& arguments) {
  const LoraCall call{device, arguments};
  LoraInput in = call.input();
  const auto projections = call.projections();
  std::vector<LoraOutput> outputs;
  for (int i = 0; i < call.count; ++i) {
    const int64_t N = call.N.at(size_t(i));
    outputs.push_back({call.out(LoraCall::numbered("y", i), call.T, N, N + call.padding, call.dtype),
                       call.in(LoraCall::numbered("residual", i), N, call.dtype)});
  }
  const int64_t ranks = call.ranks();
  void* s = ranks ? output<float>(device, "s", {call.T, ranks}, "float32") : nullptr;
  if (in.normed) in.rstd = output<float>(device, "rstd", {call.T}, "float32");
  if (in.normed && in.norm.centered) in.mean = output<float>(device, "mean", {call.T}, "float32");
  lora_linear_fwd_cuda(in, projections.data(), outputs.data(), s, call.count, call.context());
  return {};
}
SIMT_ENTRY(lora_fwd);

py::dict lora_bwd(Device& device, const py::dict& arguments) {
  const LoraCall call{device, arguments};
  LoraInput in = call.input();
  if (in.normed) in.rstd = input<float>(device, arguments, "rstd");
  if (in.normed && in.norm.centered) in.mean = input<float>(device, arguments, "mean");
  const auto projections = call.projections();
  std::vector<LoraGradient> gradients;
  for (int i = 0; i < call.count; ++i) {
    const LoraProjection& p = projections[size_t(i)];
    const int64_t N = p.weight.size[0], R = p.lora_a.size[0], C = call.C;
    const auto matrix = [&](const char* name, int64_t rows, int64_t columns, int64_t stride, DType of) {
      const std::string full = LoraCall::numbered(name, i);
      return call.wanted(full) ? call.out(full, rows, columns, stride, of) : View<2>{};
    };
    gradients.push_back({call.in(LoraCall::numbered("dy", i), N, call.dtype),
                         matrix("dweight", N, C, C + call.padding, call.dtype),
                         call.vector_out(LoraCall::numbered("dbias", i), N, call.dtype),
                         matrix("dlora_a", R, C, C, call.adapter_dtype), matrix("dlora_b", N, R, R, call.adapter_dtype)});
  }
  LoraInputGradient input_gradient{};
  if (call.wanted("dx")) input_gradient.dx = call.out("dx", call.T, call.C, call.C + call.padding, call.dtype);
  input_gradient.dnorm_weight = call.vector_out("dnorm_weight", call.C, call.norm_dtype);
  input_gradient.dnorm_bias = call.vector_out("dnorm_bias", call.C, call.norm_dtype);
  const void* s = given(arguments, "s") ? input<float>(device, arguments, "s") : nullptr;
  lora_linear_bwd_cuda(in, projections.data(), gradients.data(), input_gradient, s, call.count, call.context());
  return {};
}
SIMT_ENTRY(lora_bwd);

}  // namespace
}  // namespace simt
