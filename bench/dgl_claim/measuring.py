"""How good the averaged generator of a snapshot is: FID and others of 5,000 fakes against the 5,000 digits."""

from pathlib import Path

from fastdgl import checkpoints
from fastdgl.engines import Run
from fastdgl.fidelity.detectors import open_detector
from fastdgl.fidelity.metrics import evaluate
from fastdgl.images import ImageDataset

FAKES = 5000
METRICS = ["fid50k_full", "kid50k_full", "pr50k3_full"]
# the results of these, by the names that claim.md has for them
NAMES = {"fid5k_full": "fid", "kid5k_full": "kid", "pr5k3_full_precision": "precision", "pr5k3_full_recall": "recall"}


class Measurer:
    """Evaluates snapshots by the features of the digits classifier.

    Args:
        cache: Folder where what it sees in the digits is kept.
    """

    def __init__(self, dataset: ImageDataset, run: Run, cache: Path):
        cache.mkdir(parents=True, exist_ok=True)
        self.dataset, self.run, self.cache = dataset, run, cache
        self.detector = open_detector("digits", run.device)

    def __call__(self, snapshot: checkpoints.Snapshot) -> dict[str, float]:
        """`kimg` shown, and the metrics."""
        G = snapshot.averaged_generator(self.run.device)
        found = {"kimg": snapshot.seen / 1000}
        for _, results, _ in evaluate(METRICS, G, self.dataset, self.detector, self.run, num=FAKES, cache=self.cache, batch=100, workers=0):
            found |= {NAMES[name]: value for name, value in results.items()}
        return found
