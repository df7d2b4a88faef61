"""The wheel: built with default isolation, installed where no compiler is, linked to what it may be linked to."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from bench.static import tools
from tests.package.wheel import Built, clean_environment, install

C_LIBRARIES = {
    "libstdc++.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "libc.so.6",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
}
LOADER = re.compile(r"ld-linux.*\.so\.\d")
NEEDED = {
    "liblongspan_kernels.so": set(),
    "_ops.so": {"liblongspan_kernels.so", "libtorch_cpu.so"},
    "_host": {"liblongspan_kernels.so"},
}
TORCH_TARGET = "0x020a000000000000"  # 2.10: the C shims that exist since then

USE = """
import shutil, sys
assert not any(shutil.which(tool) for tool in ("gcc", "g++", "cc", "c++", "cmake", "ninja")), "a compiler is on PATH"
import torch, longspan
from longspan import AttentionPattern, kernels
assert longspan.__file__.startswith(sys.prefix), longspan.__file__
q, k, v = (torch.randn(1, heads, 300, 32, requires_grad=True) for heads in (4, 2, 2))
out = longspan.ops.attention(q, k, v, AttentionPattern.s2(group_size=64))
out.square().sum().backward()
assert all(torch.isfinite(x.grad).all() for x in (q, k, v))
dense = longspan.ops.attention(q, k, v)
repeated = (x.repeat_interleave(2, 1) for x in (k, v))
torch.testing.assert_close(dense, torch.nn.functional.scaled_dot_product_attention(q, *repeated, is_causal=True))
plain, _ = kernels.attention_fwd(*(x.detach().numpy() for x in (q, k, v)))
torch.testing.assert_close(torch.from_numpy(plain), dense.detach())
print("used")
"""


# An array that says that it is in CUDA memory: enough to reach the CUDA runtime, which finds no GPU.
CUDA_CALL = """
import torch
from longspan import kernels
class Cuda:
    def __init__(self, x): self.x = x
    def __dlpack_device__(self): return (2, 0)
    def __dlpack__(self, stream=None):
        import ctypes
        capsule = self.x.__dlpack__()
        ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
        ctypes.pythonapi.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
        tensor = ctypes.pythonapi.PyCapsule_GetPointer(capsule, b"dltensor")
        ctypes.c_int32.from_address(tensor + 8).value = 2
        return capsule
x = Cuda(torch.zeros(1, 2, 8, 16))
try:
    kernels.attention_fwd(x, x, x, out=x, lse=Cuda(torch.zeros(1, 2, 8)), stream=7)
except RuntimeError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def python(wheel: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel installed."""
    return install(wheel.path, tmp_path_factory.mktemp("environment") / "venv")


def run_without_tools(python: Path, *arguments: str, folder: Path) -> str:
    environment = clean_environment(PATH=str(folder), HOME=str(folder))
    done = subprocess.run(
        [str(python), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_installed_wheel_runs_without_a_compiler(python: Path, tmp_path: Path) -> None:
    assert run_without_tools(python, "-c", USE, folder=tmp_path).strip() == "used"


def test_the_installed_wheel_reports(python: Path, tmp_path: Path) -> None:
    text = run_without_tools(python, "-m", "longspan", folder=tmp_path)
    assert "missing" not in text
    assert "attention_fwd" in text
    assert "cpu: yes, cuda: yes" in text
    assert "not in this build" not in text


def test_nothing_is_downloaded_twice(wheel: Built) -> None:
    lines = re.findall(r"^\s*Installing collected packages: (.+)$", wheel.log, re.MULTILINE)
    installed = {name.strip() for line in lines for name in line.split(",")}
    assert "pybind11" in installed, "pip -v no longer prints what it installs to build"
    assert "torch" not in installed


def test_the_wheel_holds_the_package_only(unpacked: Path) -> None:
    folders = {p.name for p in unpacked.iterdir()}
    assert {name.split("-")[0] for name in folders} == {"longspan"}
    libraries = sorted(p.name.split(".")[0] for p in unpacked.rglob("*.so"))
    assert libraries == ["_host", "_ops", "liblongspan_kernels"]
    assert (unpacked / "longspan" / "py.typed").is_file()


def test_cuda_calls_without_a_gpu_say_why(python: Path, tmp_path: Path) -> None:
    text = run_without_tools(python, "-c", CUDA_CALL, folder=tmp_path)
    assert "cudaGetDevice: " in text
    assert re.search(r"driver|device", text), text


def elf(unpacked: Path, start: str) -> Path:
    (found,) = (unpacked / "longspan").glob(f"{start}*")
    return found


@pytest.mark.parametrize("name", NEEDED)
def test_libraries_need_only_what_they_may(unpacked: Path, name: str) -> None:
    with elf(unpacked, name).open("rb") as file:
        tags = list(ELFFile(file).get_section_by_name(".dynamic").iter_tags())
    needed = {tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"}
    assert {n for n in needed if not LOADER.fullmatch(n)} - C_LIBRARIES == NEEDED[name]
    paths = [tag.runpath for tag in tags if tag.entry.d_tag == "DT_RUNPATH"]
    paths += [tag.rpath for tag in tags if tag.entry.d_tag == "DT_RPATH"]
    assert set(paths) <= {"$ORIGIN"}
    if "liblongspan_kernels.so" in NEEDED[name]:
        assert paths == ["$ORIGIN"]


def code(unpacked: Path, option: str) -> set[str]:
    """The architectures of the machine code (-lelf) or of the PTX (-lptx) inside the kernel library."""
    listing = tools.run([tools.tool("cuobjdump"), option, elf(unpacked, "liblongspan_kernels.so")])
    return set(re.findall(r"\.(sm_\d+)\.", listing))


def test_architectures_inside(unpacked: Path) -> None:
    assert code(unpacked, "-lelf") == {"sm_80", "sm_90"}
    assert code(unpacked, "-lptx") == {"sm_80"}


def test_the_cuda_runtime_stays_inside(unpacked: Path) -> None:
    # Exported, it would take the place of torch's.
    exported = symbols(elf(unpacked, "liblongspan_kernels.so"), defined=True)
    assert {name for name in exported if re.match(r"_*cuda[A-Z]|__cudart|nv[A-Z]", name)} == set()
    assert {name for name in exported if "attention_fwd_cuda" in name}, "no CUDA entry point"
    assert not {name for name in symbols(elf(unpacked, "_ops.so"), defined=False) if name.startswith("cuda")}


def symbols(path: Path, *, defined: bool) -> set[str]:
    with path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".dynsym")
        return {s.name for s in table.iter_symbols() if s.name and (s["st_shndx"] != "SHN_UNDEF") == defined}


def shims(folder: Path) -> set[str]:
    """The C functions that torch promises to keep since the target version: its two shim headers, preprocessed."""
    source = folder / "shims.cpp"
    source.write_text("#include <torch/csrc/stable/c/shim.h>\n#include <torch/csrc/inductor/aoti_torch/c/shim.h>\n")
    include = Path(sysconfig.get_path("purelib")) / "torch" / "include"
    command = ["g++", "-std=gnu++20", "-E", f"-I{include}", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", str(source)]
    text = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return set(re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", text))


def test_torch_symbols_are_stable_shims(unpacked: Path, tmp_path: Path) -> None:
    ours = symbols(elf(unpacked, "liblongspan_kernels.so"), defined=True)
    wanted = symbols(elf(unpacked, "_ops.so"), defined=False) - ours
    of_torch = {name for name in wanted if re.search(r"torch|^_ZNK?2at|c10|caffe2", name)}
    allowed = shims(tmp_path)
    assert of_torch, "_ops.so asks torch for nothing"
    assert "torch_call_dispatcher" in allowed
    assert of_torch - allowed == set()


def test_kernels_know_neither_torch_nor_python(unpacked: Path) -> None:
    for name in ("liblongspan_kernels.so", "_host"):
        wanted = symbols(elf(unpacked, name), defined=False)
        assert {s for s in wanted if re.search(r"torch|c10|_ZNK?2at", s)} == set()
    kernels = symbols(elf(unpacked, "liblongspan_kernels.so"), defined=False)
    assert {s for s in kernels if s.startswith(("Py", "_Py"))} == set()
