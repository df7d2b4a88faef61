"""CUDA kernels keep the rules that make them checkable on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house.cuda_rules import RULES, device_sources, violations, without_comments


def test_kernels_keep_the_rules(root: Path) -> None:
    kernels = root / "csrc" / "kernels"
    sources = device_sources(kernels)
    found = [
        f"{path.relative_to(root)}:{line}: {name}: {advice}"
        for path in sources
        for line, name, advice in violations(path.read_text(encoding="utf-8"))
    ]
    assert found == []


BAD = [
    ("asm", 'asm volatile("bar.sync 0;");'),
    ("asm", '__asm__("ret;");'),
    ("launch", "kernel<<<grid, block, 0, stream>>>(x);"),
    ("launch", "cudaLaunchKernelEx(&config, kernel, x);"),
    ("shared", "__shared__ float tile[32];"),
    ("shared", "extern __shared__ char bytes[];"),
    ("warp", "x += __shfl_xor(x, 1);"),
    ("warp", "if (__any(x > 0)) return;"),
    ("warp", "const auto lanes = __activemask();"),
    ("half", "y = __hfma(a, b, c);"),
    ("half", "y = __hfma2(a, b, c);"),
    ("half", "y = hexp(x);"),
    ("half", "y = h2rsqrt(x);"),
    ("unmodelled", "wgmma_fence();"),
    ("unmodelled", "cuda::mbarrier_init(bar, 1);"),
    ("unmodelled", "namespace cg = cooperative_groups;"),
    ("unmodelled", "__global__ void __cluster_dims__(2, 1, 1) f();"),
    ("runtime", "cudaMalloc(&p, 16);"),
    ("runtime", "cudaDeviceSynchronize();"),
    ("runtime", "cudaMemcpy(a, b, 4, cudaMemcpyDefault);"),
    ("atomic", "void f(float* dq) { atomicAdd(dq + i, x); }"),
    ("atomic", "void f(float* dq) { atomicAdd(&dq[i], x); }"),
    ("atomic", "atomicAdd(args.dk.data + i, x);"),
    ("atomic", "SIMT_SHARED(float[4], sums); atomicAdd(&sums[0], x);"),
]
GOOD = [
    "// asm volatile, kernel<<<1, 1>>>, __shared__",
    "/* __shfl(x, 1)\n   hexp(x) */",
    'const char* text = "asm __shared__ <<<";',
    "SIMT_SHARED(float[32], sums); simt::launch(kernel, grid, block, 0, stream, x);",
    "x += __shfl_xor_sync(~0u, x, 1); b = __ballot_sync(m, x > 0); __any_sync(m, x); __all_sync(m, x);",
    "template <class T> using A = std::vector<std::vector<T>>;",
    "ptx::cp_async16(s, g); ptx::cp_async_commit(); ptx::cp_async_wait<0>();",
    "void f(int* counts) { atomicAdd(&counts[i], 1); }",
    "void f(unsigned long long* counter) { atomicAdd(counter, 1); }",
    "SIMT_SHARED(int[8], bins); atomicAdd(&bins[x], 1);",
    "atomicMax(reinterpret_cast<int*>(p), x);",
    "cudaMemsetAsync(p, 0, 4, stream); cudaMemcpyAsync(a, b, 4, cudaMemcpyDefault, stream);",
    "y = hsum(x); z = thexp(x);",
]


@pytest.mark.parametrize(("rule", "line"), BAD)
def test_a_bad_line_is_found(rule: str, line: str) -> None:
    found = violations(f"int x;\n{line}\n")
    assert [(number, name) for number, name, _ in found] == [(2, rule)]


@pytest.mark.parametrize("line", GOOD)
def test_a_good_line_is_not(line: str) -> None:
    assert violations(line + "\n") == []


def test_every_rule_has_a_bad_line() -> None:
    assert {rule.name for rule in RULES} | {"atomic"} == {rule for rule, _ in BAD}


def test_comments_keep_their_lines() -> None:
    text = '/* one\ntwo */ asm("x"); // three\nasm;\n'
    assert without_comments(text).count("\n") == text.count("\n")
    assert [line for line, _, _ in violations(text)] == [2, 3]


def test_headers_with_device_code_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "simt.h").write_text("#define SIMT_DEVICE __device__\n")
    (tmp_path / "tile.h").write_text("SIMT_DEVICE int f();\n")
    (tmp_path / "plain.h").write_text("int g();\n")
    (tmp_path / "fwd.cu").write_text("")
    (tmp_path / "tile.cuh").write_text("")
    assert [path.name for path in device_sources(tmp_path)] == ["fwd.cu", "tile.cuh", "tile.h"]
