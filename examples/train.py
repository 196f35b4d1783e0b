"""Trains the demo's network on scikit-learn's handwritten digits and writes it as ONNX.

    python examples/train.py          writes examples/digits/network.onnx and held_out.npz

The demo does not need it: both files are part of the repository. It takes PyTorch, onnxscript and
scikit-learn, and a few minutes on one core. The 1,797 digits (8 x 8 pixels of 0 to 16) are the test
set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998; UCI Machine Learning
Repository, CC BY 4.0), which scikit-learn brings along.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "digits"
EPOCHS, BATCH, HELD_OUT = 40, 64, 360


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class Network(nn.Module):
    """A small residual network: 8 x 8 pixels to the logits of ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            Residual(16),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            Residual(32),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(32, 10),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image / 16)


def train(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Adam with one cycle of the learning rate; pictures are shifted by up to one pixel."""
    steps = EPOCHS * (len(images) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    network.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for chosen in order[: len(images) // BATCH * BATCH].split(BATCH):
            loss = nn.functional.cross_entropy(
                network(shifted(images[chosen])), labels[chosen], label_smoothing=0.05
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()


def shifted(images: Tensor) -> Tensor:
    """The same pictures, moved by up to one pixel."""
    rows, columns = torch.randint(-1, 2, (2,)).tolist()
    return torch.roll(images, (rows, columns), (2, 3))


def export(network: nn.Module, example: Tensor) -> None:
    """Writes the network as PyTorch states it, unoptimised: that work is whet's."""
    program = torch.onnx.export(
        network,
        (example,),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        optimize=False,
    )
    assert program is not None
    model = program.model_proto
    for part in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # stack traces of this machine
    for part in (*model.graph.initializer, *model.graph.value_info):
        del part.metadata_props[:]
    onnx.save(model, FOLDER / "network.onnx")


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images = digits.images.astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    # The end of the set is a harder test than a random part of it, of which all 360 were right.
    x, held_out = images[:-HELD_OUT], images[-HELD_OUT:]
    y, truth = labels[:-HELD_OUT], labels[-HELD_OUT:]
    network = Network()
    train(network, torch.from_numpy(x), torch.from_numpy(y))
    with torch.no_grad():
        found = network(torch.from_numpy(held_out)).argmax(1).numpy()
    print(f"{(found == truth).sum()} of {len(truth)} held-out digits are right")

    FOLDER.mkdir(exist_ok=True)
    export(network, torch.from_numpy(held_out[:2]))
    np.savez_compressed(
        FOLDER / "held_out.npz", images=held_out.astype(np.uint8), labels=truth.astype(np.uint8)
    )


if __name__ == "__main__":
    main()
