"""The static gate: kernels compile without a warning, spill nothing, keep their budget and feed the tensor cores."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from bench.static import budgets, gate, page, sass
from bench.static.architectures import ARCHITECTURES, DEVICES
from bench.static.compile import USUAL, CompileWarning, compile_source, disassembly, nvcc_version
from bench.static.figures import Figures, Kernel, Machine, collect, read_code
from bench.static.kernels import Tile
from bench.static.launches import Attention, Loss
from bench.static.occupancy import occupancy
from bench.static.predict import predict_attention
from bench.static.workloads import attention_workloads

FORWARD = "attention_fwd_kernel<__nv_bfloat16, ForwardShape<{}>, true>"


@pytest.fixture(scope="module")
def figures() -> Figures:
    """All kernels for the usual architectures; fails when the compiler warns. Compiles what changed."""
    return collect()


@pytest.fixture(scope="module")
def everywhere() -> Figures:
    """All kernels for sm_80 to sm_120."""
    return collect(tuple(ARCHITECTURES))


def test_every_kernel_is_there_on_every_architecture(figures: Figures) -> None:
    assert {tuple(kernel.machine) for kernel in figures.kernels.values()} == {tuple(USUAL)}
    for base in (*gate.SHARES, "attention_fwd_f32_kernel", "delta_kernel", "prepare_kernel", "cross_entropy_kernel"):
        assert any(name.split("<")[0] == base for name in figures.kernels), base


def test_nothing_is_spilled(figures: Figures) -> None:
    assert gate.memory_violations(figures) == []


def test_every_kernel_can_start(figures: Figures) -> None:
    assert gate.start_violations(figures) == []


def test_tensor_cores_and_asynchronous_copies_are_used(figures: Figures) -> None:
    assert gate.instruction_violations(figures) == []


def test_the_tensor_cores_get_their_share(figures: Figures) -> None:
    assert gate.share_violations(figures) == []


def test_budgets_are_kept(figures: Figures) -> None:
    assert budgets.violations(figures, budgets.read()) == []


@pytest.mark.sweep
def test_every_architecture_compiles_starts_and_spills_nothing(everywhere: Figures) -> None:
    assert {tuple(kernel.machine) for kernel in everywhere.kernels.values()} == {tuple(ARCHITECTURES)}
    assert gate.memory_violations(everywhere) + gate.start_violations(everywhere) == []
    check_page(everywhere, page.RESOURCES)


@pytest.mark.parametrize("path", [path for path in page.PAGES if path != page.RESOURCES], ids=lambda path: path.stem)
def test_the_page_shows_these_figures(figures: Figures, path: Path) -> None:
    check_page(figures, path)


def check_page(figures: Figures, path: Path) -> None:
    """The page's tables are those of the figures."""
    text = path.read_text(encoding="utf-8")
    new = page.rendered(text, figures, page.PAGES[path])  # raises when a table is missing
    if budgets.read()["nvcc"] == nvcc_version():
        assert new == text, "run `python -m bench.static --markdown`"


def test_a_worse_figure_breaks_the_budget(figures: Figures) -> None:
    name = next(name for name, kernel in figures.kernels.items() if kernel.tensor)
    present = budgets.budget(figures)
    assert budgets.violations(figures, present) == []
    for figure, change in {"registers": -1, "shared": -1, "blocks": 1, "tensor_share": 0.02}.items():
        tighter = copy.deepcopy(present)
        tighter["kernels"][name]["sm_90"][figure] += change
        assert [f"{name} on sm_90: {figure}" in line for line in budgets.violations(figures, tighter)] == [True]


def test_budgets_and_kernels_are_the_same_set(figures: Figures) -> None:
    present = budgets.budget(figures)
    name = next(iter(figures.kernels))
    present["kernels"]["gone"] = present["kernels"].pop(name)
    found = budgets.violations(figures, present)
    assert found == [
        f"{name}: no budget; run `python -m bench.static --update`",
        "gone: has a budget, but is not compiled any more",
    ]


def test_a_page_without_a_table_is_refused(figures: Figures) -> None:
    with pytest.raises(ValueError, match="the page has the blocks"):
        page.rendered("<!-- begin tiles -->\n<!-- end tiles -->", figures)


def test_launches_are_those_of_the_dispatch(figures: Figures) -> None:
    attention = Attention("fwd", tokens=1000, heads=6, key_heads=2, D=100)
    launched = figures.launched([attention, Loss("float32", 7, 1000)])
    (prepare, _), (forward, blocks) = launched[0]
    assert prepare.name == "prepare_kernel"
    assert forward.tile is not None
    assert (forward.tile.D, blocks) == (128, -(-1000 // forward.tile.rows) * 6)
    assert [(kernel.name, count) for kernel, count in launched[1]] == [("cross_entropy_kernel<float>", 7)]


def test_predictions_stay_above_the_hardware(figures: Figures) -> None:
    for workload in attention_workloads():
        for device in DEVICES.values():
            found = predict_attention(workload, figures, device)
            assert workload.flop() / device.tensor_flops < found.best <= found.serial


SPILLS = """
__global__ void __launch_bounds__(1024) spilling(float* x) {
  float r[128];
  for (int pass = 0; pass < 3; ++pass) {
    #pragma unroll
    for (int i = 0; i < 128; ++i) r[i] = x[i * 1024 + threadIdx.x];
    #pragma unroll
    for (int i = 0; i < 128; ++i) x[i] += r[i] * r[(i * 37 + 5) % 128];
    __syncthreads();
  }
}
"""
INDEXED = """
__global__ void indexed(float* x, int at) {
  float r[16];
  for (int i = 0; i < 16; ++i) r[i] = x[i] * threadIdx.x;
  r[at] = 0;
  for (int i = 0; i < 16; ++i) x[i * 32 + threadIdx.x] = r[(i + at) % 16];
}
"""
# One tile of 16 x 8 x 16 a pass, fetched a pass before; `Extra` dependent operations on the result.
MULTIPLY = """
#include "common/mma_tile.cuh"
using namespace longspan::kernels;
template <int Extra>
__global__ void multiply(const __nv_bfloat16* tiles, float* out, int count) {
  auto* shared = simt::dyn_smem<__nv_bfloat16>();
  FragmentC c[8] = {};
  float sum = 0;
  for (int tile = 0; tile < count; ++tile) {
    ptx::cp_async16(shared + threadIdx.x * 8, tiles + (tile * 32 + threadIdx.x) * 8);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    FragmentA a;
    load_a<16>(a, TileRef<__nv_bfloat16>{shared, 0}, 0, 0);
    const FragmentB b = {a[1], a[2]};
    SIMT_UNROLL
    for (int n = 0; n < 8; ++n) ptx::mma_m16n8k16(c[n], a, b, __nv_bfloat16());
    SIMT_UNROLL
    for (int i = 0; i < Extra; ++i) sum = sum * c[i % 8][i / 8 % 4] + 1.f;
    __syncthreads();
  }
  SIMT_UNROLL
  for (int n = 0; n < 8; ++n) out[threadIdx.x * 8 + n] = c[n][0] + c[n][1] + c[n][2] + c[n][3] + sum;
}
template __global__ void multiply<EXTRA>(const __nv_bfloat16*, float*, int);
"""


def planted(folder: Path, text: str, name: str = "planted_kernel", tile: Tile | None = None) -> Figures:
    """The figures of a source with one kernel, on sm_80."""
    source = folder / "planted.cu"
    source.write_text(text, encoding="utf-8")
    compiled = compile_source(source, ["sm_80"], folder / "build")
    (usage,) = compiled.usage.values()
    kernel = Kernel(name, tile, 32, usage.shared, [])
    kernel.machine["sm_80"] = Machine(usage, occupancy(ARCHITECTURES["sm_80"], usage.registers, usage.shared, 32))
    (code,) = sass.parse(disassembly(compiled.cubins["sm_80"]))
    read_code(kernel, "sm_80", code)
    return Figures({name: kernel}, [compiled], {}, folder)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """A kernel whose array is indexed at run time, and so lives in local memory. Tests work on copies."""
    return planted(tmp_path_factory.mktemp("indexed"), INDEXED)


def test_a_planted_spill_is_found(tmp_path: Path) -> None:
    found = gate.memory_violations(planted(tmp_path, SPILLS))
    assert ["bytes of spills" in line for line in found] == [True, False]
    assert "accesses of local memory" in found[1]


def test_a_planted_local_array_is_found(indexed: Figures) -> None:
    found = gate.memory_violations(indexed)
    assert "0 bytes of spills, 64 bytes of stack" in found[0]


def test_a_planted_slow_loop_is_found(tmp_path: Path) -> None:
    name, tile = FORWARD.format("128, 2, 32, 4"), Tile(D=128, rows=16, keys=8, warps=1, products=1)
    assert tile.hmma == 8  # as in one pass of the planted loop
    shares = {}
    for extra in (0, 64):
        found = planted(tmp_path, MULTIPLY.replace("EXTRA", str(extra)), name, tile)
        shares[extra] = gate.share(found.kernels[name])
        assert gate.instruction_violations(found) == []
        below = [line for line in gate.share_violations(found) if name in line]
        assert bool(below) == (extra > 0), shares
    assert shares[64] < 0.5 < 0.6 < shares[0]


def test_a_planted_kernel_without_tensor_cores_is_found(indexed: Figures) -> None:
    found = copy.deepcopy(indexed)
    (kernel,) = found.kernels.values()
    kernel.name, kernel.tile = FORWARD.format("128, 2, 32, 4"), Tile(D=128, rows=128, keys=32, warps=4, products=2)
    assert [line.split(": ")[1] for line in gate.instruction_violations(found)] == [
        f"no {opcode} in its main loop" for opcode in ("HMMA", "LDSM", "LDGSTS")
    ]


def test_a_planted_warning_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CompileWarning, match="declared but never referenced"):
        planted(tmp_path, "__global__ void f(int* x) { int unused; *x = 1; }")
    with pytest.raises(CompileWarning):  # also when the result is still there
        planted(tmp_path, "__global__ void f(int* x) { int unused; *x = 1; }")


def test_a_source_is_compiled_once_until_it_or_a_header_changes(tmp_path: Path) -> None:
    (tmp_path / "mine.cuh").write_text("constexpr int kStep = 1;\n")
    text = '#include "mine.cuh"\n__global__ void f(int* x) { *x += kStep; }'
    first = planted(tmp_path, text).compiled[0].object
    before = first.stat().st_mtime_ns
    assert planted(tmp_path, text).compiled[0].object.stat().st_mtime_ns == before
    (tmp_path / "mine.cuh").write_text("constexpr int kStep = 2;\n")
    assert planted(tmp_path, text).compiled[0].object != first
    assert not first.exists()


def test_a_build_for_more_architectures_serves_fewer_and_not_the_other_way(tmp_path: Path) -> None:
    (tmp_path / "kernel.cu").write_text("__global__ void f(int* x) { *x += 1; }")

    def built(*architectures: str) -> tuple[int, set[str]]:
        found = compile_source(tmp_path / "kernel.cu", architectures, tmp_path / "build")
        assert set(found.cubins) == set(architectures)
        assert all(cubin.is_file() for cubin in found.cubins.values())
        return found.object.stat().st_mtime_ns, {arch for arch, _ in found.usage}

    first, _ = built("sm_80")
    both, usage = built("sm_80", "sm_90")
    assert both != first
    assert usage == {"sm_80", "sm_90"}
    assert built("sm_90") == (both, {"sm_90"})


def test_a_kernel_that_cannot_start_is_found(indexed: Figures) -> None:
    found = copy.deepcopy(indexed)
    kernel = found.kernels["planted_kernel"]
    kernel.shared = 200 * 1024
    kernel.machine["sm_80"].occupancy = occupancy(ARCHITECTURES["sm_80"], 32, kernel.shared, 32)
    assert gate.start_violations(found) == [
        "planted_kernel on sm_80: cannot start, shared memory (204800 bytes of shared memory)"
    ]
