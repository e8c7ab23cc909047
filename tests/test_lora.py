"""PEFT's low-rank adapters attach to the attention's linear layers from outside, by their names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import latentdiff as ld
from networks import normal, randomised

peft = pytest.importorskip("peft")

PROJECTIONS = ["to_q", "to_k", "to_v", "to_out"]


def unet() -> ld.UNet:
    return randomised(
        ld.UNet(
            in_channels=3,
            base_channels=4,
            channel_multipliers=(1, 2),
            blocks_per_level=1,
            attention_levels=(1,),
            num_heads=2,
            context_dim=5,
        )
    ).double()


def adapted(network: nn.Module) -> nn.Module:
    config = peft.LoraConfig(r=2, target_modules=PROJECTIONS)
    return peft.inject_adapter_in_model(config, network)  # type: ignore[no-any-return]


def test_adapters_attach_to_every_attention_and_begin_as_nothing() -> None:
    network, x, context = unet(), normal((2, 3, 5, 6)), normal((2, 7, 5), 1)
    before = network(x, 9, context)
    attentions = [name for name, module in network.named_modules() if isinstance(module, ld.CrossAttention)]
    with_adapters = adapted(network).double()
    found = {name.split(".lora_A")[0] for name, _ in with_adapters.named_parameters() if ".lora_A" in name}
    assert attentions
    assert found == {f"{attention}.{projection}" for attention in attentions for projection in PROJECTIONS}
    assert torch.equal(with_adapters(x, 9, context), before)


def test_a_step_moves_the_adapters_and_nothing_else() -> None:
    network, x, context = adapted(unet()).double(), normal((2, 3, 5, 6)), normal((2, 7, 5), 1)
    kept = {name: value.clone() for name, value in network.state_dict().items() if "lora" not in name}
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    before = network(x, 9, context).detach()
    optimizer = torch.optim.SGD(learnt, lr=0.1)
    for _ in range(2):  # the first moves B alone, which starts at zero
        optimizer.zero_grad()
        network(x, 9, context).square().mean().backward()
        optimizer.step()
    assert not torch.allclose(network(x, 9, context), before)
    state = network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in kept.items())
    assert sum(parameter.numel() for parameter in learnt) == sum(v.numel() for k, v in state.items() if "lora" in k)


@pytest.mark.parametrize(
    "make", [unet, lambda: randomised(ld.DiT(in_channels=3, dim=8, depth=1, num_heads=2, context_dim=5)).double()]
)
def test_merged_adapters_are_a_plain_network_again(make: object) -> None:
    assert callable(make)
    network, x, context = make(), normal((2, 3, 5, 6)), normal((2, 7, 5), 1)
    plain = {name: value.clone() for name, value in network.state_dict().items()}
    names = list(plain)
    with_adapters = randomised(adapted(network)).double()
    expected = with_adapters(x, 9, context)
    for module in with_adapters.modules():
        if isinstance(module, peft.tuners.lora.Linear):
            module.merge()
    torch.testing.assert_close(with_adapters(x, 9, context), expected, rtol=1e-10, atol=1e-11)
    state = with_adapters.state_dict()
    merged = {key.replace(".base_layer", ""): value for key, value in state.items() if "lora" not in key}
    assert sorted(merged) == sorted(names)
    network = make()
    network.load_state_dict(merged)
    torch.testing.assert_close(network(x, 9, context), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("finish", ["unload", "merge_and_unload"])
def test_a_network_without_its_adapters_has_its_old_names(finish: str) -> None:
    network, x, context = unet(), normal((2, 3, 5, 6)), normal((2, 7, 5), 1)
    plain = {name: value.clone() for name, value in network.state_dict().items()}
    before = network(x, 9, context).detach()
    with_adapters = peft.get_peft_model(network, peft.LoraConfig(r=2, target_modules=PROJECTIONS)).double()
    assert torch.equal(with_adapters(x, 9, context), before)
    for name, parameter in with_adapters.named_parameters():
        if "lora_B" in name:  # starts at zero
            torch.nn.init.normal_(parameter)
    learnt = with_adapters(x, 9, context)
    assert not torch.allclose(learnt, before)
    again = getattr(with_adapters, finish)()
    state = again.state_dict()
    assert type(again) is ld.UNet
    assert list(state) == list(plain)
    if finish == "unload":
        assert all(torch.equal(state[name], value) for name, value in plain.items())
        assert torch.equal(again(x, 9, context), before)
    else:  # one product with the sum of weights instead of two products
        torch.testing.assert_close(again(x, 9, context), learnt, rtol=1e-10, atol=1e-11)
