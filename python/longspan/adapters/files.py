"""Adapters on disk: PEFT's own files, and ``longspan.safetensors`` beside them for what trains in full."""

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
from longspan.folders import sync_path

CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
TENSORS = "longspan.safetensors"
# Key of the adapter file's metadata: names of the tensors that must be in TENSORS.
ALSO_TRAINED = "longspan.also_trained"


def save(model: Any, folder: str | Path) -> None:
    """Write the adapter of a ``PeftModel`` in PEFT's format, and the embeddings and norms that train beside
    it.

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
        with safe_open(staging / ADAPTER, "pt") as stream:
            metadata = dict(stream.metadata() or {})
        metadata[ALSO_TRAINED] = json.dumps(list(names))
        save_file(load_file(staging / ADAPTER), staging / ADAPTER, metadata)
        if trained:
            save_file(trained, staging / TENSORS, {"format": "pt"})
        for path in sorted(staging.iterdir()):
            _publish(path, folder / path.name)
    if not names:
        (folder / TENSORS).unlink(missing_ok=True)
    sync_path(folder)


def load(model: Any, folder: str | Path) -> Any:
    """Read what :func:`save` wrote into ``model`` and return the ``PeftModel``.

    ``model`` is the base model, or the same model with the same adapter attached. Raises
    ``FileNotFoundError`` for missing files and ``ValueError`` naming any tensor that is missing, unknown or
    of another shape, before anything is changed.
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
    names = also_trained(folder)
    trained = load_file(folder / TENSORS) if (folder / TENSORS).is_file() else {}
    base = base_of(model, "load") if isinstance(model, PeftModel) else model
    parameters = dict(base.named_parameters())
    _compare(folder / TENSORS, trained, {name: parameters.get(name) for name in names})
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
    mark_trained(base, names)
    return model


def also_trained(folder: str | Path) -> tuple[str, ...]:
    """Names of the tensors that a saved adapter needs from ``longspan.safetensors``; () for plain PEFT
    adapters.
    """
    from safetensors import safe_open

    with safe_open(Path(folder) / ADAPTER, "pt") as stream:
        return tuple(json.loads((stream.metadata() or {}).get(ALSO_TRAINED, "[]")))


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
