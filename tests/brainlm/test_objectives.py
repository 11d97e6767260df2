import copy

import torch
import torch.nn.functional as F

from brainlm.attention import Chosen
from brainlm.config import ModelConfig
from brainlm.model import BrainLM
from brainlm.patches import cut
from brainlm.pretraining import initial_model


def make(config: ModelConfig) -> tuple[BrainLM, torch.Tensor, torch.Tensor]:
    model = initial_model(config.model_copy(update={"objective": "latent", "target_decay": 0.9}), 0)
    generator = torch.Generator().manual_seed(0)
    return model, torch.randn(2, 7, 40, generator=generator), 40 * torch.randn(2, 7, 3, generator=generator)


def test_the_target_is_the_slow_encoder_s_view_of_everything(config):
    model, signal, coordinates = make(config)
    noise = torch.rand(2, 28, generator=torch.Generator().manual_seed(1))
    patches = cut(signal, coordinates, None, model.config)
    hidden = Chosen.of(noise.argsort(dim=1).argsort(dim=1).ge(14).unflatten(1, (7, 4)))
    states = torch.randn(2, 14, 16)

    loss = model.latent(patches, hidden, states)

    seen = torch.ones(2, 7, 4, dtype=torch.bool)
    everything = model.latent.target(patches, Chosen.of(seen)).values.unflatten(1, (7, 4))
    for window in range(2):
        target = everything[window][hidden.on_grid[window]]
        expected = F.smooth_l1_loss(model.latent.predict(states[window]), target)
        torch.testing.assert_close(loss[window], expected)


def test_the_slow_encoder_begins_as_the_encoder_and_follows_it(config):
    model, _, _ = make(config)
    first = copy.deepcopy(model.encoder.state_dict())
    assert all(torch.equal(first[name], value) for name, value in model.latent.target.state_dict().items())

    torch.nn.init.ones_(model.encoder.embed.weight)
    model.after_step()

    expected = 0.9 * first["embed.weight"] + 0.1
    torch.testing.assert_close(model.latent.target.embed.weight, expected)
    torch.testing.assert_close(model.state_dict()["latent.target.embed.weight"], expected)  # which sites average
    assert not any(parameter.requires_grad for parameter in model.latent.target.parameters())


def test_the_signal_teaches_only_the_head_that_reads_it(config):
    """Two models that differ in what they must reconstruct, but not in latents, learn the same encoder."""
    model, signal, coordinates = make(config)
    noise = torch.rand(2, 28)
    model(signal, coordinates, noise).loss.sum().backward()
    gradient = model.encoder.embed.weight.grad.clone()
    model.zero_grad()
    torch.nn.init.zeros_(model.predict.weight)  # the reconstruction and its error change
    model(signal, coordinates, noise).loss.sum().backward()

    torch.testing.assert_close(model.encoder.embed.weight.grad, gradient)
    assert model.predict.weight.grad.abs().sum() > 0
