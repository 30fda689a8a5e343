"""Classify pictures with an exported model, without torch and without cifar_ray.

pip install onnxruntime pillow numpy
python classify_onnx.py photos-7.onnx PICTURE…
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
class_names = json.loads(session.get_modelmeta().custom_metadata_map["cifar_ray.class_names"])

for path in sys.argv[2:]:
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    outputs = ["probabilities", "labels", "abstains"]
    (probabilities,), (labels,), (abstains,) = session.run(outputs, {"images": np.asarray(on_white)[None]})
    given = [f"{class_names[number]} {100 * probabilities[number]:.1f} %" for number in np.flatnonzero(labels)]
    print(f"{path}: {'not sure, perhaps ' if abstains else ''}{', '.join(given) or 'none of the labels'}")
