r"""A labeller of your own: labels by a web server, and `giftwrap` with it.

    python -m examples.own_labeller build --images runs/demo/small --size 16 --views 10 --store runs/web
    python -m examples.own_labeller verify --images runs/demo/small --store runs/web
    python -m examples.own_labeller train --images runs/demo/small --labels online --student convnet-d3 --size 16 \
        --epochs 2 --run runs/web-student

The server, here a thread of the same program, gets the pixels of a batch and answers with logits: put your own model
behind it. `WebLabeller` sends up to four batches at a time, and waits for each when its labels are needed. The program
only adds `--labeller examples.own_labeller:WebLabeller --labeller-args '{"address": ...}'` to the command; with a
server of your own, type these flags after `giftwrap` itself. The images are those of the README's quickstart.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
import torch
from torch import Tensor

from labelstore import CropRows
from labelstore.spec import Json
from pipeline.teacher.labeller import Pending

NAME = "mean colours over HTTP"
REQUESTS = 4  # at a time
TIMEOUT_S = 60


class WebLabeller:
    """Labels from a server; see `pipeline.teacher.labeller.Labeller` for what each member means.

    Args:
        size: side of the crops in pixels, as the command gives it.
        classes: names of the class folders, likewise.
        address: of the server, from --labeller-args.
    """

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    class_columns: tuple[int, ...] = ()
    batch = 32
    device = torch.device("cpu")

    def __init__(self, size: int, classes: tuple[str, ...], address: str) -> None:
        self.size, self.columns = size, len(classes)
        self._address = address
        self._threads = ThreadPoolExecutor(REQUESTS)
        self._opener = build_opener(ProxyHandler({}))

    @property
    def identity(self) -> dict[str, Json]:
        """What makes the labels: the same identity must give the same labels. The address is no part of it."""
        return {"name": NAME, "version": 1, "mean": list(self.mean), "std": list(self.std)}

    @property
    def engine(self) -> dict[str, Json]:
        """What makes their bytes."""
        return {"name": "numpy", "dtype": "float32"}

    def start(self, pixels: Tensor, rows: CropRows, /) -> Pending:
        """Send crops, uint8 ``[n, S, S, 3]``; the answer is waited for when it is needed."""
        del rows
        answer = self._threads.submit(self._logits, pixels.cpu().numpy().tobytes())
        return Pending(NAME, answer.result)

    def _logits(self, pixels: bytes) -> Tensor:
        """The logits, float32 ``[n, C]``, of the pixels of n crops."""
        headers = {"Size": str(self.size), "Columns": str(self.columns)}
        with self._opener.open(Request(self._address, pixels, headers), timeout=TIMEOUT_S) as answer:  # noqa: S310
            return torch.frombuffer(bytearray(answer.read()), dtype=torch.float32).reshape(-1, self.columns)


class Model(BaseHTTPRequestHandler):
    """The server's side: a linear classifier, drawn from a seed, on the mean colours of quarters of a crop."""

    def do_POST(self) -> None:
        """Answer pixels with logits."""
        size, columns = int(self.headers["Size"]), int(self.headers["Columns"])
        data = self.rfile.read(int(self.headers["Content-Length"]))
        crops = np.frombuffer(data, np.uint8).reshape(-1, size, size, 3)
        half = size // 2
        quarters = crops[:, : 2 * half, : 2 * half].reshape(-1, 2, half, 2, half, 3).mean((2, 4)).reshape(-1, 12) / 255
        weights = np.random.default_rng(0).normal(size=(12, columns))
        logits = (quarters[:, :, None] * weights).sum(1).astype(np.float32)  # each crop by itself, in one order
        self.send_response(200)
        self.end_headers()
        self.wfile.write(logits.tobytes())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def main() -> int:
    """Run a command of giftwrap with labels of a server on this machine."""
    from giftwrap.__main__ import main as giftwrap

    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        sys.argv += ["--labeller", "examples.own_labeller:WebLabeller"]
        sys.argv += ["--labeller-args", json.dumps({"address": address})]
        try:
            return giftwrap()
        finally:
            server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
