"""A linear probe written by hand: features of a frozen network, then logistic regression.

python by_hand.py FOLDER WEIGHTS    FOLDER has train/<class>/ and val/<class>/; prints the accuracy on val/, 0–1
"""

import sys
from pathlib import Path

import numpy as np
import openvino
import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

folder, weights = Path(sys.argv[1]), sys.argv[2]
network = timm.create_model("tf_efficientnet_lite0", pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": weights}).eval()
model = openvino.convert_model(network, input=[-1, 3, 224, 224], example_input=torch.zeros(16, 3, 224, 224))
compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
features, labels = {}, {}
for split in ("train", "val"):
    paths = sorted((folder / split).glob("*/*"))
    labels[split] = [path.parent.name for path in paths]
    rows = []
    for start in range(0, len(paths), 16):
        images = [np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in paths[start : start + 16]]
        inputs = (np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255 - 0.5) / 0.5
        rows.append(compiled(inputs)[0])
    features[split] = np.concatenate(rows)
head = LogisticRegression(C=0.1, max_iter=1000).fit(features["train"], labels["train"])
print(head.score(features["val"], labels["val"]))
