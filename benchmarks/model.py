"""Measure training: windows a second, peak memory and FLOPs of every preset; with the original code, side by side.

``python benchmarks/model.py [PRESET ...]``; with ``--reference CHECKOUT`` (a checkout of the original BrainLM code) and
``--reference-python PYTHON`` (an interpreter with torch and transformers 4.28), every preset runs interleaved with the
original model of about the same number of parameters, in processes of their own, at the same mask ratio, each for one
window of 424 parcels x 200 frames at a time, forward and backward, on one thread. Ratios are medians of CPU time.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
N_PARCELS, N_FRAMES, MASK_RATIO = 424, 200, 0.75
DENSE = {
    "num_brain_voxels": N_PARCELS,
    "num_timepoints_per_voxel": N_FRAMES,
    "timepoint_patching_size": 20,
    "mask_ratio": MASK_RATIO,
    "num_hidden_layers": 4,
    "decoder_num_hidden_layers": 2,
    "loss_fn": "mse",
}
VIT_MAE = {
    "image_size": 432,
    "patch_size": 16,
    "mask_ratio": MASK_RATIO,
    "train_mode": "auto_encode",
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 2048,
}


def _dense(width: int, heads: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
    return {"kind": "dense", **DENSE, **sizes, **{f"decoder_{name}": size for name, size in sizes.items()}}


ORIGINALS = {
    "5m": _dense(256, 4),
    "13m": _dense(432, 8),
    "111m": {
        "kind": "vit_mae",
        **VIT_MAE,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "650m": {
        "kind": "vit_mae",
        **VIT_MAE,
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "intermediate_size": 5120,
    },
}
"""The original model of about the same number of parameters, by preset."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["tiny", "small", "5m", "13m", "111m"])
    parser.add_argument("--reference", type=Path, help="checkout of the original BrainLM code")
    parser.add_argument("--reference-python", default=sys.executable)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(json.loads(given.worker))
        return
    rows = []
    for preset in given.presets:
        ours = {"model": "ours", "preset": preset}
        workers = {f"{preset}": Worker(sys.executable, ours)}
        if preset in ("5m", "13m"):
            workers[f"{preset}, all hidden tokens predicted"] = Worker(sys.executable, {**ours, "decode_every": 1})
        if given.reference and preset in ORIGINALS:
            spec = {"model": "original", "checkout": str(given.reference), "config": ORIGINALS[preset]}
            workers["original"] = Worker(given.reference_python, spec)
        rows += compare(workers, given.repeats)
    from common import machine, markdown

    print(f"Measured on {machine()}; one thread.\n")
    header = [
        "model",
        "parameters",
        "windows/s",
        "CPU time of the original",
        "peak memory",
        "of the original's",
        "GFLOP",
    ]
    print(markdown(header, rows))


class Worker:
    """A process that trains one model, a step at a time.

    Parameters
    ----------
    python : str
        The interpreter.
    spec : dict
        What `work` builds.
    """

    def __init__(self, python: str, spec: dict[str, Any]) -> None:
        command = [python, __file__, "--worker", json.dumps(spec)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._read()

    def step(self) -> float:
        """Do one step and return its CPU seconds."""
        self._write("step")
        return float(self._read()["seconds"])

    def end(self) -> dict[str, float]:
        """End the process and return its peak memory and FLOPs."""
        self._write("end")
        found = self._read()
        self._process.wait()
        return found

    def _write(self, word: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):  # the original code prints words of its own
                return json.loads(line)
        sys.exit(f"a process of {self._process.args} ended early.")


def compare(workers: dict[str, Worker], repeats: int) -> list[tuple[str, ...]]:
    """Let the workers step in turn and return a row of the table for each."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for repeat in range(repeats + 1):
        for name, worker in workers.items():
            spent = worker.step()
            if repeat:  # the first one warms up
                seconds[name].append(spent)
    ends = {name: worker.end() for name, worker in workers.items()}
    rows = []
    for name, worker in workers.items():
        speed, memory = "", ""
        if "original" in workers and name != "original":
            turns = zip(seconds["original"], seconds[name], strict=True)
            speed = f"1/{statistics.median(theirs / mine for theirs, mine in turns):.1f}"
            memory = f"1/{ends['original']['peak_mib'] / ends[name]['peak_mib']:.1f}"
        rows.append(
            (
                name,
                f"{worker.about['parameters'] / 1e6:.1f}M",
                f"{1 / statistics.median(seconds[name]):.2f}",
                speed,
                f"{ends[name]['peak_mib']:.0f} MiB",
                memory,
                f"{ends[name]['gflop']:.0f}",
            )
        )
    return rows


def work(spec: dict[str, Any]) -> None:
    """Build a model and do a step for every line read; at the end, say how much memory the steps took."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    build = _ours if spec["model"] == "ours" else _original
    model, loss = build(spec)
    before = _resident_mib()
    print(json.dumps({"parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        began = time.process_time()
        model.zero_grad()
        loss().backward()
        print(json.dumps({"seconds": time.process_time() - began}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    print(json.dumps({"peak_mib": peak, "gflop": _gflop(model, loss)}), flush=True)


def _ours(spec: dict[str, Any]) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    sys.path.insert(0, str(ROOT))
    from brainlm import load_model_config
    from brainlm.model import BrainLM
    from cohorts import load_atlas

    config = load_model_config(ROOT / "configs" / "models" / f"{spec['preset']}.yaml")
    config = config.model_copy(update={"decode_every": spec.get("decode_every", config.decode_every)})
    model = BrainLM(config).train()
    signal = torch.randn(1, N_PARCELS, config.window.n_frames)
    coordinates = torch.tensor(load_atlas("a424").coordinates, dtype=torch.float32)[None]
    return model, lambda: model(signal, coordinates).loss.mean()


def _original(spec: dict[str, Any]) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    sys.path.insert(0, spec["checkout"])
    config = dict(spec["config"])
    if config.pop("kind") == "dense":
        from brainlm_mae.configuration_brainlm import BrainLMConfig
        from brainlm_mae.modeling_brainlm import BrainLMForPretraining

        model = BrainLMForPretraining(BrainLMConfig(**config)).train()
        signal, xyz = torch.randn(1, N_PARCELS, N_FRAMES), torch.randn(1, N_PARCELS, 3)
        return model, lambda: model(signal, xyz).loss
    from brainlm_mae.modeling_vit_mae_with_padding import ViTMAEForPreTraining
    from transformers import ViTMAEConfig

    model = ViTMAEForPreTraining(ViTMAEConfig(**config)).train()
    image = torch.randn(1, 1, N_PARCELS, N_FRAMES).repeat(1, 3, 1, 1)
    return model, lambda: model(image).loss


def _gflop(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> float:
    """Count a step's multiplications and additions; fused attention, which the counter cannot see, is unfused."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model.zero_grad()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss().backward()
    return counter.get_total_flops() / 1e9


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024**2


if __name__ == "__main__":
    main()
