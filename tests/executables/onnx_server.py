"""A model server: an ONNX model behind uvicorn, on a Unix socket or a port of the loopback.

``GET /health`` answers once the model is loaded, ``POST /predict`` with ``{"x": [[...], ...]}``
answers ``{"y": [[...], ...]}``. Usage: onnx_server.py MODEL (--uds PATH | --port N)
"""

from __future__ import annotations

import argparse

import numpy
import onnxruntime
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def application(model: str) -> Starlette:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def predict(request: Request) -> JSONResponse:
        x = numpy.asarray((await request.json())["x"], dtype=numpy.float32)
        (y,) = session.run(None, {"x": x})
        return JSONResponse({"y": y.tolist()})

    return Starlette(
        routes=[Route("/health", health), Route("/predict", predict, methods=["POST"])]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--uds")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()

    app = application(options.model)
    uvicorn.run(app, host="127.0.0.1", port=options.port, uds=options.uds)


if __name__ == "__main__":
    main()
