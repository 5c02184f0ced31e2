"""Class activation maps for any classifier, batched, on the device, at the cost of one forward.

    images ──> run_split ──> logits, A, G ──> methods ──> raw maps ──> finish ──> pictures
               (one forward)

Usable as a library on tensors, without Ray and without files:

    layer = find_target_layer(model, (3, 224, 224))
    found = explain(model, images, layer, ["gradcam", "layercam"], targets="top:5")
    heat = finish(found.maps["gradcam", layer.name], (224, 224))  # (B, 5, 224, 224) in [0, 1]
"""

import importlib
import pkgutil

from camray.cam.compiled import compiled
from camray.cam.engine import Explanation, explain
from camray.cam.finish import blend, colour, finish, fuse, normalise, resize
from camray.cam.layers import LayerInfo, find_target_layer, find_target_layers, list_layers
from camray.cam.layout import TargetLayer
from camray.cam.plot import plot
from camray.cam.registry import METHODS, parse_method
from camray.cam.targets import TargetRule

__all__ = [
    "METHODS",
    "Explanation",
    "LayerInfo",
    "TargetLayer",
    "TargetRule",
    "blend",
    "colour",
    "compiled",
    "explain",
    "find_target_layer",
    "find_target_layers",
    "finish",
    "fuse",
    "list_layers",
    "normalise",
    "parse_method",
    "plot",
    "resize",
]

for _file in pkgutil.iter_modules(__path__):  # a file that holds methods registers them when it is loaded
    importlib.import_module(f"{__name__}.{_file.name}")
