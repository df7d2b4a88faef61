"""Adapters on disk: PEFT's own files, and ``longspan.safetensors`` for what trains in full and what methods keep."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longspan.adapters.attaching import TRAINED, mark_trained
from longspan.adapters.base import TENSORS
from longspan.folders import sync_path
from longspan.nn.beside import beside_tensors, check_beside, take_beside

CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
# Keys of the adapter file's metadata: names of the tensors that must be in TENSORS, the model's own and of methods.
ALSO_TRAINED, BESIDE = "longspan.also_trained", "longspan.beside"


def save(model: Any, folder: str | Path) -> None:
    """Write the adapter of a ``PeftModel`` in PEFT's format, the embeddings and norms that train beside it, and what
    methods keep in a patched model (codebooks, routers).

    The folder may exist; each file is written to a temporary name, synced and renamed. Plain PEFT loads the
    adapter from it and ignores the rest. Raises ``ValueError`` for a model without adapter.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    base = base_of(model, "save")
    names: tuple[str, ...] = getattr(base, TRAINED, ())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adapter-", dir=folder) as temporary:
        staging = Path(temporary)
        # Embeddings and norms are saved here, not by PEFT's own guess.
        model.save_pretrained(staging, save_embedding_layers=False)
        parameters = dict(base.named_parameters())
        trained = {name: parameters[name].detach().cpu().contiguous() for name in names}
        kept = beside_tensors(base)
        with safe_open(staging / ADAPTER, "pt") as stream:
            metadata = dict(stream.metadata() or {})
        metadata |= {ALSO_TRAINED: json.dumps(list(names)), BESIDE: json.dumps(sorted(kept))}
        save_file(load_file(staging / ADAPTER), staging / ADAPTER, metadata)
        if trained or kept:
            save_file(trained | kept, staging / TENSORS, {"format": "pt"})
        for path in sorted(staging.iterdir()):
            _publish(path, folder / path.name)
    if not trained and not kept:
        (folder / TENSORS).unlink(missing_ok=True)
    sync_path(folder)


def load(model: Any, folder: str | Path) -> Any:
    """Read what `save` wrote into ``model`` and return the ``PeftModel``.

    ``model`` is the base model, or the same model with the same adapter attached. What methods keep goes into a model
    that is patched with them, and is left out for one that is not. Raises ``FileNotFoundError`` for missing files and
    ``ValueError`` naming any tensor that is missing, unknown or of another shape, before anything is changed.
    """
    from peft import (
        LoraConfig,
        PeftModel,
        get_peft_model,
        get_peft_model_state_dict,
        set_peft_model_state_dict,
    )
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in (CONFIG, ADAPTER):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no adapter: {name} is missing")
    names, kept_names = also_trained(folder), _named(folder, BESIDE)
    found = load_file(folder / TENSORS) if (folder / TENSORS).is_file() else {}
    trained = {name: tensor for name, tensor in found.items() if name not in kept_names}
    kept = {name: found[name] for name in kept_names if name in found}
    base = base_of(model, "load") if isinstance(model, PeftModel) else model
    parameters = dict(base.named_parameters())
    _compare(folder / TENSORS, trained, {name: parameters.get(name) for name in names})
    if len(kept) < len(kept_names):
        raise ValueError(f"{folder / TENSORS}: tensor {min(set(kept_names) - set(kept))} is missing")
    restores = bool(kept) and bool(beside_tensors(base))
    if restores:
        check_beside(base, kept, str(folder / TENSORS))
    state = load_file(folder / ADAPTER)
    attached = isinstance(model, PeftModel)
    if not isinstance(model, PeftModel):
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = False
        model = get_peft_model(base, config)
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    try:
        _compare(folder / ADAPTER, state, own)
    except ValueError:
        if not attached:
            model.unload()
        raise
    set_peft_model_state_dict(model, state)
    with torch.no_grad():
        for name in names:
            parameters[name].copy_(trained[name])
    if restores:
        take_beside(base, kept)
    mark_trained(base, names)
    return model


def also_trained(folder: str | Path) -> tuple[str, ...]:
    """Names of the model's own tensors that a saved adapter needs from ``longspan.safetensors``; () for plain PEFT
    adapters.
    """
    return _named(Path(folder), ALSO_TRAINED)


def _named(folder: Path, key: str) -> tuple[str, ...]:
    from safetensors import safe_open

    with safe_open(folder / ADAPTER, "pt") as stream:
        return tuple(json.loads((stream.metadata() or {}).get(key, "[]")))


def base_of(model: Any, doing: str) -> Any:
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise ValueError(f"cannot {doing}: {type(model).__name__} has no adapter (longspan.adapters.attach adds one)")
    return model.get_base_model()


def _compare(path: Path, found: dict[str, Tensor], expected: dict[str, Tensor | None]) -> None:
    """Raise ``ValueError`` when ``found`` does not hold exactly the expected tensors; None is one the model
    lacks.
    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise ValueError(
            f"{path}: tensor {missing[0]} is missing ({len(missing)} in all); the checkpoint is incomplete, "
            "loading it would give another model than was trained"
        )
    unknown = [name for name in found if expected.get(name) is None]
    if unknown:
        raise ValueError(f"{path}: tensor {unknown[0]} is not part of this model ({len(unknown)} in all)")
    for name, tensor in found.items():
        own = expected[name]
        assert own is not None
        if own.shape != tensor.shape:
            raise ValueError(f"{path}: tensor {name} is {list(tensor.shape)}, the model's is {list(own.shape)}")


def _publish(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
        return
    sync_path(source)
    os.replace(source, target)
