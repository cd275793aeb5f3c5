"""What numpy, scikit-learn, LightGBM and torch are used for in a template, and in its workers.

A load is called in the template, with the numbers of threads that `gc_warm.hooks.template` has set,
or with two for `in_two_threads`. A use is called in a worker; it raises an error where the results
are not those of the template.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

kept: dict[str, Any] = {}


def _numbers() -> tuple[Any, Any]:
    import numpy as np

    generator = np.random.default_rng(17)
    features = generator.random((500, 10))
    return features, features[:, 0] + features[:, 1] > 1.0


def _same(library: str, found: Any) -> None:
    import numpy as np

    np.testing.assert_allclose(np.asarray(found), kept[library][-1], rtol=1e-4, atol=1e-6)


def load_numpy() -> None:
    import numpy as np

    matrix = np.random.default_rng(17).random((300, 300))
    kept["numpy"] = (matrix, np.linalg.solve(matrix, matrix @ matrix))


def use_numpy() -> None:
    import numpy as np

    matrix, _ = kept["numpy"]
    _same("numpy", np.linalg.solve(matrix, matrix @ matrix))
    np.linalg.svd(matrix[:100, :100])


def load_sklearn() -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    features, truths = _numbers()
    model = HistGradientBoostingClassifier(max_iter=5, random_state=0).fit(features, truths)
    kept["sklearn"] = (model, features, truths, model.predict_proba(features))


def use_sklearn() -> None:
    from sklearn.cluster import KMeans
    from sklearn.ensemble import HistGradientBoostingClassifier

    model, features, truths, _ = kept["sklearn"]
    _same("sklearn", model.predict_proba(features))
    KMeans(4, n_init=1, max_iter=5).fit(features)
    again = HistGradientBoostingClassifier(max_iter=5, random_state=0).fit(features, truths)
    _same("sklearn", again.predict_proba(features))


def load_lightgbm() -> None:
    features, truths = _numbers()
    kept["lightgbm"] = (features, truths)
    model = _train()
    kept["lightgbm"] = (features, truths, model, model.predict(features))


def use_lightgbm() -> None:
    features, _, model, _ = kept["lightgbm"]
    _same("lightgbm", model.predict(features))
    _same("lightgbm", _train().predict(features))


def _train() -> Any:
    import lightgbm

    features, truths = kept["lightgbm"][:2]
    options = {"objective": "binary", "verbosity": -1, "deterministic": True}
    return lightgbm.train(options, lightgbm.Dataset(features, truths * 1), 5)


def load_torch() -> None:
    import torch

    torch.manual_seed(17)
    layer = torch.nn.Linear(400, 400)
    inputs = torch.rand(400, 400)
    kept["torch"] = (layer, inputs, torch.tanh(layer(inputs)).detach().numpy().copy())


def use_torch() -> None:
    import torch

    layer, inputs, _ = kept["torch"]
    outputs = torch.tanh(layer(inputs))
    _same("torch", outputs.detach().numpy())
    outputs.sum().backward()


LIBRARIES = ("numpy", "sklearn", "lightgbm", "torch")


def in_two_threads(library: str) -> None:
    """Have a library start a pool of threads, which a template does not without being told to."""
    os.environ.update(dict.fromkeys(_THREADS, "2"))
    load: Callable[[], None] = globals()[f"load_{library}"]
    if library == "torch":
        import torch

        torch.set_num_threads(2)
    load()


def pool_numpy() -> None:
    in_two_threads("numpy")


def pool_sklearn() -> None:
    in_two_threads("sklearn")


def pool_lightgbm() -> None:
    in_two_threads("lightgbm")


def pool_torch() -> None:
    in_two_threads("torch")


def use(library: str) -> int:
    """Use a library in a worker; return how many threads it has afterwards."""
    if library not in kept:  # a worker that was not forked, and could not load beforehand
        globals()[f"load_{library}"]()
    globals()[f"use_{library}"]()
    return len(os.listdir("/proc/self/task"))


def versions() -> str:
    return ", ".join(
        f"{name} {sys.modules[name].__version__}" for name in LIBRARIES if name in sys.modules
    )
