"""The local optimizer, and its moments on a site's disk between rounds."""

from pathlib import Path

import torch
from torch import Tensor, nn

from base.files import read_arrays, save_arrays
from brainlm.config import TrainingConfig
from brainlm.errors import CheckpointError


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Make a fresh optimizer of all that training changes. AdamW decays matrices alone."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    # Biases, norms, weights of distances and the tokens that are learnt are not decayed, as is usual for transformers.
    decayed = [parameter for name, parameter in trained if _is_matrix(name, parameter)]
    others = [parameter for name, parameter in trained if not _is_matrix(name, parameter)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


def save_optimizer(
    folder: Path, optimizer: torch.optim.Optimizer, model: nn.Module, *, round_number: int, run: str = ""
) -> None:
    """Write what an optimizer remembers of each weight after a round of a run, whole or not at all.

    The file of the round before stays, so that this round can be done again; all others are deleted.
    """
    tensors = {
        f"{name}/{moment}": values
        for name, parameter in model.named_parameters()
        for moment, values in optimizer.state.get(parameter, {}).items()
    }
    header = {"optimizer": type(optimizer).__name__, "model": _describe(model), "run": run}
    save_arrays(folder / f"optimizer-{round_number:04d}.safetensors", tensors, header, framework="pt")
    earlier = [number for number in _kept(folder) if number < round_number]
    for number, path in _kept(folder).items():
        if number not in (round_number, *earlier[-1:]):
            path.unlink()


def forget_optimizers(folder: Path) -> None:
    """Delete all that `save_optimizer` wrote."""
    for path in _kept(folder).values():
        path.unlink()


def restore_optimizer(
    folder: Path, optimizer: torch.optim.Optimizer, model: nn.Module, *, round_number: int, run: str = ""
) -> None:
    """Put what `save_optimizer` wrote last before this round into a fresh optimizer, where the model's weights are.

    A CheckpointError says that there is none, or that it is damaged, or of another run, optimizer or model. The
    optimizer is as fresh as before then.
    """
    earlier = [path for number, path in _kept(folder).items() if number < round_number]
    if not earlier:
        raise CheckpointError(f"{folder}: holds no optimizer of a round before {round_number}.")
    path = earlier[-1]
    remedy = "The next round writes it anew."
    tensors, header = read_arrays(path, framework="pt", error=CheckpointError, remedy=remedy)
    header, kind = header or {}, type(optimizer).__name__
    if header.get("optimizer") != kind:
        raise CheckpointError(f"{path}: is of {header.get('optimizer')}, not of {kind}.")
    if header.get("run", "") != run:
        raise CheckpointError(f"{path}: is of another run.")
    if header["model"] != _describe(model):
        raise CheckpointError(f"{path}: is of a model with other weights.")
    parameters = dict(model.named_parameters())
    states: dict[nn.Parameter, dict[str, Tensor]] = {}
    for key, values in tensors.items():
        name, _, moment = key.rpartition("/")
        states.setdefault(parameters[name], {})[moment] = values
    described = optimizer.state_dict()
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    described["state"] = {number: states[p] for number, p in enumerate(order) if p in states}
    optimizer.load_state_dict(described)


def _kept(folder: Path) -> dict[int, Path]:
    """Files of the rounds whose optimizers are kept, in order of rounds."""
    paths = sorted(folder.glob("optimizer-*.safetensors"), key=lambda path: int(path.stem.partition("-")[2]))
    return {int(path.stem.partition("-")[2]): path for path in paths}


def _describe(model: nn.Module) -> dict[str, list[int]]:
    """Names and shapes of the weights that training changes."""
    return {name: list(parameter.shape) for name, parameter in model.named_parameters() if parameter.requires_grad}


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not {"mask_token", "cls_token", "distance"} & set(name.split("."))
