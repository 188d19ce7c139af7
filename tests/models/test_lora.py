"""What trains: LoRA on chosen layers over shared weights, noise in it, precision, activations computed again."""

from __future__ import annotations

import pytest
import torch

from hanorec.errors import DataError
from hanorec.losses import perturbed_lora
from hanorec.models.lora import Dropout, add_lora, prepare_for_training
from hanorec.models.packing import Prompt
from hanorec.models.scoring import score


def test_dropout_zeroes_a_share_p_independently_and_scales_the_rest():
    torch.manual_seed(0)
    drop, n = Dropout(0.05), 400_000
    fallen = torch.stack([(drop(torch.ones(n)) == 0).double() for _ in range(2)])
    # A share of n draws has a standard deviation of sqrt(p (1 - p) / n) = 0.00034.
    assert fallen.mean(1).sub(0.05).abs().max() < 5 * 0.00034
    assert torch.corrcoef(fallen)[0, 1].abs() < 0.01  # from call to call
    neighbours = torch.corrcoef(torch.stack([fallen[0, :-1], fallen[0, 1:]]))[0, 1]
    assert neighbours.abs() < 0.01  # and from place to place
    out = drop(torch.full((n,), 3.0))
    torch.testing.assert_close(out.unique(), torch.tensor([0, 3 / 0.95]))
    assert out.mean().item() == pytest.approx(3, rel=2e-3)


def test_dropouts_gradient_falls_where_its_value_does():
    torch.manual_seed(0)
    x = torch.randn(3, 40, 7, requires_grad=True)
    out = Dropout(0.2)(x)
    (out * 2).sum().backward()
    assert (out == 0).any()
    torch.testing.assert_close(x.grad, torch.where(out == 0, 0.0, 2 / 0.8))
    out += 1  # a model's own code may


def test_dropout_is_off_in_evaluation_and_follows_the_seed():
    x, drop = torch.randn(50, 20), Dropout(0.1)
    drop.eval()
    assert drop(x).equal(x)
    drop.train()
    torch.manual_seed(3)
    first = drop(x)
    torch.manual_seed(3)
    assert drop(x).equal(first) and not drop(x).equal(first)


def test_lora_trains_the_language_model_alone(backbone, images):
    model = add_lora(backbone, rank=4, dropout=0.3).model
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("text_model" in name and "lora_" in name for name in trained)
    assert {type(m) for name, m in model.named_modules() if name.endswith("lora_dropout.default")} == {Dropout}


def test_lora_goes_where_it_is_asked_to(backbone, images):
    def trained(targets):
        model = add_lora(backbone, rank=2, layers=targets).model
        names = {
            n.split(".lora_")[0].replace("base_model.model.", "")
            for n, p in model.named_parameters()
            if p.requires_grad
        }
        return names

    assert trained("q_proj, text_model.layers.0.mlp.up_proj") == {
        *(f"model.text_model.layers.{n}.self_attn.q_proj" for n in range(4)), "model.text_model.layers.0.mlp.up_proj",
    }  # fmt: skip
    everywhere = trained("all")
    assert any("vision_model" in name for name in everywhere) and any("connector" in name for name in everywhere)
    assert trained("language") < everywhere and "lm_head" not in everywhere
    with pytest.raises(DataError, match="layers up_prog: no linear layer has this name; there are .*up_proj"):
        add_lora(backbone, layers="q_proj,up_prog")


def test_the_reference_stays_as_it_is_under_a_policy_that_trains(backbone, images):
    """Policy and reference share their weights, one copy in memory; the adapter is the policy's alone."""
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    word = backbone.tokens
    prompts, answers = [Prompt(word("Tide of ") + images.placeholders(3), [3])], [[word("Orbit Bara"), word("Comet")]]
    with torch.no_grad():
        expected = score(backbone, images, prompts, answers)
    policy = add_lora(backbone)
    own = {p.data_ptr() for p in backbone.model.parameters()}
    assert {p.data_ptr() for n, p in policy.model.named_parameters() if "lora_" not in n} == own
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        assert not score(policy, images, prompts, answers).allclose(expected, atol=1e-2)
        assert score(backbone, images, prompts, answers).equal(expected)
    assert backbone.model.state_dict().keys() == before.keys()
    assert all(value.equal(before[name]) for name, value in backbone.model.state_dict().items())


def test_what_does_not_go_with_sharded_weights_is_refused(backbone, monkeypatch):
    monkeypatch.setattr("hanorec.distributed.is_sharded", lambda: True)
    with pytest.raises(DataError, match="a vision tower that trains does not go with sharded weights"):
        prepare_for_training(add_lora(backbone, layers="all"))
    with pytest.raises(DataError, match="training without LoRA does not go with sharded weights"):
        prepare_for_training(backbone)


@pytest.fixture
def adapted(backbone, images, monkeypatch):
    """An adapter whose B is not zero, and a question with two answers. The last MLP computes every position, as it does
    where activations are computed again: else dropout would fall elsewhere."""
    monkeypatch.setattr("hanorec.models.scoring.last_mlp", lambda model: None)
    torch.manual_seed(1)
    policy = add_lora(backbone, dropout=0.1)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    word = backbone.tokens
    return (
        policy,
        images,
        [Prompt(word("Tide of ") + images.placeholders(3), [3])],
        [[word("Orbit Bara"), word("Comet")]],
    )


def noisy_gradients(adapted, noise: str, checkpointing: bool = False) -> torch.Tensor:
    policy, images, prompts, answers = adapted
    prepare_for_training(policy, gradient_checkpointing=checkpointing)
    model = policy.model
    model.zero_grad()
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(7)
    with perturbed_lora(model, 0.05 if noise == "lora" else 0.0, generator=generator):
        std = 0.3 if noise == "logits" else 0.0
        logps = score(policy, images, prompts, answers, noise_std=std, generators=[generator])
        (logps[0] - 2 * logps[1]).backward()
    return torch.cat([p.grad.float().flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("noise", ["lora", "logits", "none"])
def test_activations_computed_again_see_the_same_noise_and_dropout(adapted, noise):
    kept = noisy_gradients(adapted, noise)
    again = noisy_gradients(adapted, noise, checkpointing=True)
    assert kept.norm() > 0 and not kept.equal(noisy_gradients(adapted, "other")) or noise == "none"
    torch.testing.assert_close(again, kept, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("noise", ["lora", "logits"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_in_half_precision_adapters_train_in_float32_and_gradients_agree(adapted, noise, half):
    exact = noisy_gradients(adapted, noise)
    policy = adapted[0]
    for parameter in policy.model.parameters():
        parameter.data = parameter.data.to(half)
    policy.compute = half
    rough = noisy_gradients(adapted, noise, checkpointing=True)
    assert {p.dtype for p in policy.model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in policy.model.parameters() if not p.requires_grad} == {half}
    assert torch.nn.functional.cosine_similarity(rough, exact, dim=0) > 0.98
