// longspan.kernels.magnitude_histogram, kth_magnitude and squared_norms: magnitudes of plain arrays.
#include "kernels/magnitude/magnitude.h"

#include <pybind11/stl.h>

#include <cstdint>

#include "host/arguments.h"
#include "host/bind.h"
#include "host/device.h"

namespace longspan::host {
namespace {

constexpr int64_t kMaxGroups = 1 << 16;

/// The arrays of a call, kept alive with it.
struct Group {
  ArrayLists arrays;
  std::vector<kernels::MagnitudeTensor> tensors;

  Group(const py::sequence& objects, const std::vector<int64_t>& groups, int64_t stream) : arrays("tensors[0]", stream) {
    if (groups.empty()) throw py::value_error("groups is empty; give at least one array and its group");
    check_length("tensors", objects.size(), "groups", groups.size());
    for (size_t i = 0; i < groups.size(); ++i) {
      if (groups[i] < 0 || groups[i] > INT32_MAX)
        throw py::value_error(element_name("groups", i) + " is " + std::to_string(groups[i]) + "; allowed: 0 to 2^31 - 1");
      const Array& x = arrays.add(objects[i], element_name("tensors", i));
      tensors.push_back({x.data, dtype_of(x, element_name("tensors", i)), x.numel(), int32_t(groups[i])});
    }
  }
};

void check_count(int64_t count) {
  if (count < 1 || count > kMaxGroups)
    throw py::value_error("count is " + std::to_string(count) + "; allowed: 1 to " + std::to_string(kMaxGroups) + " groups");
}

py::tuple magnitude_histogram(const py::sequence& objects, const std::vector<int64_t>& groups, int64_t count,
                              const py::object& bins_, int threads, const py::object& counts_, const py::object& squares_,
                              int64_t stream) {
  check_count(count);
  const Group group(objects, groups, stream);
  const Arguments arguments(group.arrays.first(), "tensors[0]", stream);
  const Array bins = arguments.optional_input(bins_, "bins", {count}, "int32");
  const int64_t columns = bins.data ? kernels::kLowerBins : kernels::kUpperBins;
  const Output counts = arguments.output(counts_, "counts", {count, columns}, "int64");
  const Output squares = arguments.output(squares_, "squares", {count}, "float64");
  if (bins.data) check_contiguous(bins, "bins");
  check_contiguous(counts.array, "counts");
  check_contiguous(squares.array, "squares");
  const kernels::HistogramOutput out{static_cast<const int32_t*>(bins.data), static_cast<int64_t*>(counts.array.data),
                                     static_cast<double*>(squares.array.data)};
  run_on(
      group.arrays.first(), threads, stream,
      [&](const auto& context) { kernels::magnitude_histogram_cpu(group.tensors, count, out, context); },
      [&](const auto& context) {
        LONGSPAN_CUDA_ENTRY(kernels::magnitude_histogram_cuda(group.tensors, count, out, context));
      });
  return py::make_tuple(counts.object, squares.object);
}

py::tuple kth_magnitude(const py::sequence& objects, const std::vector<int64_t>& groups, const py::handle& wanted_,
                        bool exact, bool norms, int threads, const py::object& bits_, const py::object& cut_,
                        const py::object& kept_, const py::object& squares_, int64_t stream) {
  const Group group(objects, groups, stream);
  const Arguments arguments(group.arrays.first(), "tensors[0]", stream);
  const Array wanted = borrow(wanted_, "wanted", "int64", 1, stream);
  check_contiguous(wanted, "wanted");
  check_device(wanted, "wanted", group.arrays.first(), "tensors[0]");
  const int64_t count = wanted.shape[0];
  const Output bits = arguments.output(bits_, "bits", {count}, "int32"),
               cut = arguments.output(cut_, "cut", {count}, "int64");
  const Output kept = arguments.output(kept_, "kept", {count}, "int64");
  const Output squares = arguments.output(squares_, "squares", {2, count}, "float64");
  for (const auto& [x, name] : {std::pair{&bits, "bits"}, {&cut, "cut"}, {&kept, "kept"}, {&squares, "squares"}})
    check_contiguous(x->array, name);
  const kernels::KthOutput out{static_cast<const int64_t*>(wanted.data),
                               exact,
                               norms,
                               static_cast<int32_t*>(bits.array.data),
                               static_cast<int64_t*>(cut.array.data),
                               static_cast<int64_t*>(kept.array.data),
                               static_cast<double*>(squares.array.data)};
  run_on(
      group.arrays.first(), threads, stream,
      [&](const auto& context) { kernels::kth_magnitude_cpu(group.tensors, count, out, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::kth_magnitude_cuda(group.tensors, count, out, context)); });
  return py::make_tuple(bits.object, cut.object, kept.object, squares.object);
}

py::object squared_norms(const py::sequence& objects, const std::vector<int64_t>& groups, int64_t count, int threads,
                         const py::object& squares_, int64_t stream) {
  check_count(count);
  const Group group(objects, groups, stream);
  const Arguments arguments(group.arrays.first(), "tensors[0]", stream);
  const Output squares = arguments.output(squares_, "squares", {count}, "float64");
  check_contiguous(squares.array, "squares");
  auto* out = static_cast<double*>(squares.array.data);
  run_on(
      group.arrays.first(), threads, stream,
      [&](const auto& context) { kernels::squared_norms_cpu(group.tensors, count, out, context); },
      [&](const auto& context) { LONGSPAN_CUDA_ENTRY(kernels::squared_norms_cuda(group.tensors, count, out, context)); });
  return squares.object;
}

}  // namespace

void bind_magnitude(py::module_& m) {
  m.def("magnitude_histogram", &magnitude_histogram, py::arg("tensors"), py::arg("groups"), py::arg("count"),
        py::arg("bins") = py::none(), py::kw_only(), py::arg("threads") = 0, py::arg("counts") = py::none(),
        py::arg("squares") = py::none(), py::arg("stream") = 1,
        R"(Counts of magnitudes by their bits, and sums of squares, of groups of arrays: (counts, squares).

tensors: contiguous float32, bfloat16 or float16; groups: the group of each, of `count`. Without bins, counts [count, 32768] are by
the upper 15 bits without the sign; with bins int32 [count], counts [count, 65536] are by the lower 16 bits of elements whose upper
bits are the group's bin. squares float64 [count]: of all, or of those above the bin. Memory and streams as in attention_fwd.)");
  m.def("kth_magnitude", &kth_magnitude, py::arg("tensors"), py::arg("groups"), py::arg("wanted"), py::arg("exact") = true,
        py::arg("norms") = true, py::kw_only(), py::arg("threads") = 0, py::arg("bits") = py::none(),
        py::arg("cut") = py::none(), py::arg("kept") = py::none(), py::arg("squares") = py::none(), py::arg("stream") = 1,
        R"(The wanted-th largest magnitude of groups of arrays: (bits, cut, kept, squares).

tensors, groups: as in magnitude_histogram; wanted int64 [G]. bits int32 [G]: of that magnitude as float32; cut int64 [G]: elements
equal to it are among the first `wanted` if their number within the group is below; kept int64 [G]; squares float64 [2, G]: of the
kept, and of all; without norms 0, and NaN where an element is not finite. Zeros are never kept. Memory and streams as in attention_fwd.)");
  m.def("squared_norms", &squared_norms, py::arg("tensors"), py::arg("groups"), py::arg("count"), py::kw_only(),
        py::arg("threads") = 0, py::arg("squares") = py::none(), py::arg("stream") = 1,
        R"(Sums of squares of groups of arrays: squares float64 [count], not finite exactly where an element is not.

tensors, groups: as in magnitude_histogram, of `count` groups. Memory and streams as in attention_fwd.)");
}

}  // namespace longspan::host
