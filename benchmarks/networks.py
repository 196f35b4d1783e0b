"""Export the benchmark networks to ONNX, with random weights from a fixed seed.

    python -m benchmarks.networks [NAME ...] [--folder DIR] [--dynamic] [--half]

NAME is one of SPEED, FURTHER, or any other network that timm knows. Each becomes NAME.onnx (static
shapes, batch 1); --dynamic writes NAME_dyn.onnx with symbolic batch (and sequence) sizes, --half
NAME_half.onnx with float16 weights and activations. The weights serve speed and numerical
comparison, not accuracy. torch, timm, transformers and onnxscript come with `whet[bench]`.
"""

import argparse
import contextlib
import importlib.util
import re
import time
import warnings
from pathlib import Path
from typing import Any

SPEED = [
    "resnet18",
    "resnet50",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_base_patch16_224",
    "bert_base",
]
"""The networks of the latency table."""

FURTHER = [
    "resnext50_32x4d",
    "densenet121",
    "regnety_008",
    "swin_tiny_patch4_window7_224",
    "mixer_b16_224",
    "vgg16",
    "inception_v3",
    "gpt2_small",
]
"""Networks that nothing is tuned on: they show whether a gain is general."""

FOLDER = Path.home() / ".cache" / "whet-benchmarks"
"""Where the networks are kept unless a command is told otherwise."""

TEXT = {"bert_base": "BertModel", "gpt2_small": "GPT2Model"}
SEQUENCE = 128


def declare_torchvision_operators() -> Any:
    """Let torchvision import where its C++ library cannot load, as beside a CPU-only torch.

    Returns the library of declarations, which live as long as it does; None where none is needed.
    """
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    try:
        for file in package.glob("_C*.so"):
            torch.ops.load_library(str(file))
        return None
    except OSError:
        text = (package / "_meta_registrations.py").read_text()
    library = torch.library.Library("torchvision", "FRAGMENT")
    for names in set(re.findall(r'"torchvision::(\w+)"|register_meta\("(\w+)"\)', text)):
        # A name may stand in both forms, and can be declared only once.
        with contextlib.suppress(RuntimeError):
            library.define(f"{''.join(names)}(Tensor x) -> Tensor")
    return library


def text_model(name: str) -> Any:
    """A transformer of the usual base size: token ids and mask in, last hidden state out."""
    import torch
    import transformers

    kind = getattr(transformers, TEXT[name])
    config = kind.config_class(attn_implementation="sdpa", use_cache=False)
    options = {"add_pooling_layer": False} if name == "bert_base" else {}

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = kind(config, **options)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    return Encoder()


def create(name: str, half: bool) -> tuple[Any, dict[str, Any]]:
    """A network and example inputs of batch 2."""
    import torch

    torch.manual_seed(0)
    dtype = torch.float16 if half else torch.float32
    if name in TEXT:
        ids = torch.randint(0, 30000, (2, SEQUENCE))
        return text_model(name).to(dtype), {"input_ids": ids, "attention_mask": ids.clip(1, 1)}
    import timm

    model = timm.create_model(name).to(dtype)
    return model, {"input": torch.randn(2, *model.default_cfg["input_size"], dtype=dtype)}


def fill_zero_matrices(model: Any) -> None:
    """Give weights that start at zero random values: with them every output would be zero."""
    import torch

    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)


def symbolic_shapes(name: str, examples: dict[str, Any]) -> tuple[dict[int, Any], ...]:
    import torch

    batch = torch.export.Dim("batch", min=1, max=64)
    if name not in TEXT:
        return ({0: batch},)
    sequence = torch.export.Dim("seq", min=2, max=512)
    return tuple({0: batch, 1: sequence} for _ in examples)


def export(name: str, folder: Path, *, dynamic: bool = False, half: bool = False) -> Path:
    """Write one network into the folder and return the file's path."""
    import torch

    model, examples = create(name, half)
    fill_zero_matrices(model)
    shapes = symbolic_shapes(name, examples) if dynamic else None
    path = folder / f"{name}{'_half' * half}{'_dyn' * dynamic}.onnx"
    torch.onnx.export(
        model.eval(),
        tuple(x if dynamic else x[:1] for x in examples.values()),
        str(path),
        input_names=list(examples),
        output_names=["output"],
        dynamo=True,
        external_data=False,
        dynamic_shapes=shapes,
        verbose=False,
    )
    return path


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=SPEED, metavar="NAME")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--dynamic", action="store_true")
    parser.add_argument("--half", action="store_true")
    args = parser.parse_args(argv)

    warnings.filterwarnings("ignore")
    args.folder.mkdir(parents=True, exist_ok=True)
    declarations = declare_torchvision_operators()
    for name in args.names:
        start = time.perf_counter()
        path = export(name, args.folder, dynamic=args.dynamic, half=args.half)
        size, seconds = path.stat().st_size / 1e6, time.perf_counter() - start
        print(f"{path.name}: {size:.1f} MB in {seconds:.1f} s", flush=True)
    del declarations


if __name__ == "__main__":
    main()
