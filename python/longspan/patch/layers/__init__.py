"""One forward for the decoder layers of every known family, installed on instances and taken away again."""

from longspan.patch.layers.forward import STATE
from longspan.patch.layers.install import LayersPatch, install, remove
from longspan.patch.layers.offload import Offload, refuse_host

__all__ = ["STATE", "LayersPatch", "Offload", "install", "refuse_host", "remove"]
