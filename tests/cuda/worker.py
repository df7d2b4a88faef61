"""A process that runs the entries of one build: `python -m tests.cuda.worker <library>`. See tests.cuda.simt.Worker."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.cuda import simt


def main() -> None:
    # What a kernel prints must not mix with the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    module = simt.load(Path(sys.argv[1]))
    while True:
        try:
            request = simt.receive(sys.stdin.buffer)
        except EOFError:
            return
        simt.send(answers, simt.call(module, request))


if __name__ == "__main__":
    main()
