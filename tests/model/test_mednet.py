"""Both networks, and the forms they take for inference."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from watcher.model import mednet

SMALL = mednet.MedNetConfig(side=16, classes=4, filters=(3, 5), kernels=(5, 3), hidden=(24, 8))


def images(config: mednet.MedNetConfig, count: int = 6) -> torch.Tensor:
    return torch.randn(count, 1, config.side, config.side, generator=torch.Generator().manual_seed(1))


def trained(config: mednet.MedNetConfig = SMALL) -> mednet.MedNet:
    """A network whose batch normalisation has seen data and learnt: nothing in it is 0 or 1 any more."""
    torch.manual_seed(0)
    net = mednet.MedNet(config)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.bias, -1.0, 1.0)
    net.train()
    for _ in range(3):
        net(images(config) * 3 + 1)
    return net.eval()


def agree(one: mednet.MedNet, other: mednet.MedNet, atol: float = 1e-4) -> None:
    batch = images(one.config, 20)
    with torch.inference_mode():
        torch.testing.assert_close(one(batch).logits, other(batch).logits, atol=atol, rtol=1e-4)
        torch.testing.assert_close(one(batch).features, other(batch).features, atol=atol, rtol=1e-4)


def layers(config: mednet.MedNetConfig) -> list[str]:
    return [type(module).__name__ for module in mednet.MedNet(config).convs]


class TestArchitecture:
    def test_baseline_is_nvidias(self) -> None:
        """5 and 10 filters of 7 x 7, ELU, no batch normalisation, linear layers of 400 and 80."""
        assert layers(mednet.BASELINE) == ["Conv2d", "ELU", "Conv2d", "ELU"]
        shapes = {name: tuple(p.shape) for name, p in mednet.MedNet(mednet.BASELINE).named_parameters()}
        assert shapes["convs.0.weight"] == (5, 1, 7, 7)
        assert shapes["convs.2.weight"] == (10, 5, 7, 7)
        assert shapes["fc1.weight"] == (400, 10 * 52 * 52)
        assert shapes["fc2.weight"] == (80, 400)
        assert shapes["fc3.weight"] == (6, 80)

    def test_improved_is_the_proof_of_concepts(self) -> None:
        """10 and 20 filters of 5 x 5, batch normalisation and ReLU after each, 25.1 million parameters."""
        assert layers(mednet.IMPROVED) == ["Conv2d", "BatchNorm2d", "ReLU"] * 2
        net = mednet.MedNet(mednet.IMPROVED)
        shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
        assert shapes["convs.0.weight"] == (10, 1, 5, 5)
        assert shapes["convs.3.weight"] == (20, 10, 5, 5)
        assert shapes["fc1.weight"] == (400, 20 * 56 * 56)
        assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == 25.1

    def test_scores(self) -> None:
        """Logits for each class, and the penultimate features that they are a linear function of."""
        net = trained()
        scores = net(images(SMALL))
        assert (scores.logits.shape, scores.features.shape) == ((6, 4), (6, 8))
        torch.testing.assert_close(net.fc3(scores.features), scores.logits)

    def test_pooling_and_dropout(self) -> None:
        """Pooling shrinks what activations and linear layers see; dropout acts in training only."""
        config = replace(SMALL, pool=2, dropout=0.5)
        assert layers(config) == ["Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU"] * 2
        assert config.features == 5 * 2 * 2
        net = trained(config)
        batch = images(config)
        assert torch.equal(net(batch).logits, net(batch).logits)
        net.train()
        assert not torch.equal(net(batch).logits, net(batch).logits)

    @pytest.mark.parametrize("activation", [torch.nn.ReLU(), torch.nn.ELU()])
    def test_pooling_before_the_activation_is_pooling_after_it(self, activation: torch.nn.Module) -> None:
        """Both activations keep the order of numbers, so that the cheaper way round gives the same."""
        values = torch.randn(3, 4, 10, 10, generator=torch.Generator().manual_seed(0))
        pool = torch.nn.MaxPool2d(2)
        torch.testing.assert_close(activation(pool(values)), pool(activation(values)))

    @pytest.mark.parametrize("config", [mednet.BASELINE, replace(SMALL, rank=3), SMALL])
    def test_config_survives_json(self, config: mednet.MedNetConfig) -> None:
        """The architecture that a checkpoint stores is the same when it is read again."""
        assert mednet.MedNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    def test_unknown_key_is_refused(self) -> None:
        """An architecture with a key that this version does not know is no architecture."""
        with pytest.raises(TypeError):
            mednet.MedNetConfig.from_dict({**SMALL.to_dict(), "attention": 8})


class TestFold:
    @pytest.mark.parametrize(
        "config", [SMALL, replace(SMALL, activation="elu"), replace(SMALL, pool=2), replace(SMALL, dropout=0.5)]
    )
    def test_agrees_with_the_trained_network(self, config: mednet.MedNetConfig) -> None:
        """Without its batch normalisation the network computes the same within 1e-4."""
        net = trained(config)
        folded = mednet.fold_batch_norm(net)
        assert not folded.config.batch_norm and not folded.training
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        agree(folded, net)

    def test_leaves_the_trained_network_alone(self) -> None:
        """Folding copies: the trained network computes what it did."""
        net = trained()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        mednet.fold_batch_norm(net)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

    def test_nothing_to_fold(self) -> None:
        """A network without batch normalisation stays as it is."""
        net = trained(replace(SMALL, batch_norm=False))
        agree(mednet.fold_batch_norm(net), net, atol=0)


class TestFactor:
    @pytest.mark.parametrize("batch_norm", [True, False])
    def test_at_full_rank_agrees(self, batch_norm: bool) -> None:
        """A product of full rank computes the same as the layer it replaces."""
        net = trained(replace(SMALL, batch_norm=batch_norm))
        factored = mednet.factor(net, SMALL.hidden[0])
        assert factored.config.rank == SMALL.hidden[0] and not factored.training
        agree(factored, net)

    def test_is_the_best_of_its_rank(self) -> None:
        """The error of the product is that of the singular values left out, and falls as the rank grows."""
        net = trained()
        assert isinstance(net.fc1, nn.Linear)
        values = torch.linalg.svdvals(net.fc1.weight.double())
        for rank in (1, 7, 23):
            dense = mednet.expand(mednet.factor(net, rank)).fc1
            assert isinstance(dense, nn.Linear)
            error = torch.linalg.norm(dense.weight.double() - net.fc1.weight.double())
            torch.testing.assert_close(error, values[rank:].square().sum().sqrt(), atol=1e-4, rtol=1e-4)

    def test_saves_parameters(self) -> None:
        """A low rank is what makes the shipped network small."""
        count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
        assert count(mednet.factor(trained(), 2)) < count(trained()) / 3


class TestExpand:
    def test_inverts_factor(self) -> None:
        """A factored network made dense again computes what the factored one does, and has the first's architecture."""
        net = trained()
        for rank in (3, SMALL.hidden[0]):
            factored = mednet.factor(net, rank)
            dense = mednet.expand(factored)
            assert dense.config == net.config
            agree(dense, factored)
        agree(dense, net)

    def test_nothing_to_expand(self) -> None:
        """A dense network stays as it is."""
        net = trained()
        assert mednet.expand(net) is net
