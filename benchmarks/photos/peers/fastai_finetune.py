"""Fine-tuning as fastai's documentation shows it, with the defaults of `fine_tune`; prints the accuracy after each epoch.

python fastai_finetune.py FOLDER WEIGHTS SEED    FOLDER has train/<class>/ and val/<class>/
"""

import sys

from fastai.vision.all import Callback, ImageDataLoaders, Resize, accuracy, aug_transforms, set_seed, vision_learner


class PrintAccuracy(Callback):
    """Prints the last metric of each epoch."""

    order = 99

    def after_epoch(self) -> None:
        """Runs after the metrics of the epoch are known."""
        print("accuracy", self.learn.recorder.values[-1][-1], flush=True)


if __name__ == "__main__":
    folder, weights, seed = sys.argv[1:]
    set_seed(int(seed))
    data = ImageDataLoaders.from_folder(folder, train="train", valid="val", item_tfms=Resize(224), batch_tfms=aug_transforms())
    learner = vision_learner(data, "tf_efficientnet_lite0", metrics=accuracy, pretrained_cfg_overlay={"file": weights}, cbs=PrintAccuracy())
    learner.fine_tune(5)
