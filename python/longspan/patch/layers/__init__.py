"""One forward for the decoder layers of every known family, installed on instances and taken away again."""

from longspan.patch.layers.install import LayersPatch, install, remove

__all__ = ["LayersPatch", "install", "remove"]
