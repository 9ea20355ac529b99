"""How digits_classifier.pt was made: `PYTHONPATH=. python fastdgl/assets/train_digits_classifier.py digits_classifier.pt`. Nothing imports this.

A classifier of the digits in digits.zip, whose features metrics may compare without a download: `fastdgl evaluate --detector digits`.
A minute on one CPU core, and the same weights each time on the same machine and PyTorch.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdgl.atomic_files import atomically
from fastdgl.images import ImageDataset

# every tenth digit of each class is held out, and says how good the classifier is
HELD_OUT = 10
EPOCHS = 20
BATCH = 50


class DigitsClassifier(nn.Module):
    """Three convolutions of half the resolution each, features `[N, 64]`, and ten classes.

    Called as NVIDIA's detectors are: `forward(images, return_features=True)` and so on, of images `uint8 [N, C, R, R]`. The channels are
    averaged, and other resolutions resized to 32 by antialiased bilinear interpolation.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(16), nn.BatchNorm2d(32), nn.BatchNorm2d(64)
        self.project = nn.Linear(64 * 4 * 4, 64)
        self.dropout = nn.Dropout(0.3)
        self.classify = nn.Linear(64, 10)

    def forward(self, images: Tensor, return_features: bool = False, no_output_bias: bool = False, return_lpips: bool = False) -> Tensor:
        """Probabilities `[N, 10]`, or features: of the last layer, or those whose squared distance is a perceptual one.

        Args:
            no_output_bias: Leave out the bias of the last layer.
            return_lpips: Features of all convolutions, each pixel's of length 1 and each layer's mean over its pixels, as in LPIPS
                (Zhang et al. 2018) without its learned weights.
        """
        x = images.float().mean(dim=1, keepdim=True) / 127.5 - 1
        if x.shape[2] != 32 or x.shape[3] != 32:
            x = F.interpolate(x, [32, 32], mode="bilinear", antialias=True, align_corners=False)
        x1 = F.relu(self.bn1(self.conv1(x)))
        x2 = F.relu(self.bn2(self.conv2(F.max_pool2d(x1, 2))))
        x3 = F.relu(self.bn3(self.conv3(F.max_pool2d(x2, 2))))
        if return_lpips:
            layers = [F.normalize(features, dim=1).flatten(1) / (features.shape[2] * features.shape[3]) ** 0.5 for features in [x1, x2, x3]]
            return torch.cat(layers, dim=1)
        features = F.relu(self.project(F.max_pool2d(x3, 2).flatten(1)))
        if return_features:
            return features
        features = self.dropout(features)
        return self.classify(features).softmax(dim=1) if not no_output_bias else F.linear(features, self.classify.weight).softmax(dim=1)


def distorted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image `[N, C, R, R]` turned by up to 10 degrees, sheared, scaled by up to a tenth and moved by up to 2 pixels of 32."""
    N = len(images)
    u = torch.rand(N, 5, generator=generator) * 2 - 1
    angle, scale = u[:, 0] * 0.17, 1 + u[:, 1] * 0.1
    cos, sin = angle.cos() / scale, angle.sin() / scale
    theta = torch.stack([cos, -sin + u[:, 4] * 0.1, u[:, 2] / 8, sin, cos, u[:, 3] / 8], dim=1).reshape(N, 2, 3)
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False, padding_mode="border")


def accuracy(classifier: nn.Module, images: Tensor, classes: Tensor) -> float:
    with torch.no_grad():
        return (classifier.eval()(images).argmax(dim=1) == classes).float().mean().item()


def main(dest: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dataset = ImageDataset("digits", labels=True)
    images = torch.from_numpy(np.stack([dataset[i][0] for i in range(len(dataset))]))
    classes = torch.from_numpy(dataset.all_labels()).long()
    held_out = torch.arange(len(images)) // 10 % HELD_OUT == 0
    seen, seen_classes = images[~held_out], classes[~held_out]

    classifier = DigitsClassifier()
    optimizer = torch.optim.Adam(classifier.parameters(), weight_decay=1e-4)
    steps = EPOCHS * len(seen) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(EPOCHS):
        classifier.train()
        for batch in torch.randperm(len(seen), generator=generator).split(BATCH):
            p = classifier(distorted(seen[batch].float(), generator))
            loss = F.nll_loss(p.clamp_min(1e-8).log(), seen_classes[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} held out {accuracy(classifier, images[held_out], classes[held_out]):.4f}")

    about = {"held_out": int(held_out.sum()), "accuracy": accuracy(classifier, images[held_out], classes[held_out]),
             "seen": len(seen), "accuracy_seen": accuracy(classifier, seen, seen_classes)}
    for parameter in classifier.parameters():
        parameter.requires_grad_(False)
    # not by its name, which would go into the file
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(classifier.eval()), buffer, _extra_files={"about.json": json.dumps(about)})
    with atomically(Path(dest)) as unfinished:
        unfinished.write_bytes(buffer.getvalue())
    print(about)


if __name__ == "__main__":
    main(*sys.argv[1:])
