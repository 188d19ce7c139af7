"""How each family places its tokens and what they see is found out by what the model computes; a wrong answer is never
taken, and where there is no right one the reason is given."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hanorec.models import discovery as layouts
from hanorec.models.backbone import describe, load_backbone
from hanorec.models.layout import FULL, SLIDING, VISIBILITIES, Layout
from tools import families

ONE_KIND, TWO_KINDS = {FULL}, {FULL, SLIDING}
EXPECTED = {  # visibility, first position, kinds of layers, window, positions in three axes?
    families.smolvlm: ("causal", 0, ONE_KIND, None, False),
    families.idefics3: ("causal", 0, ONE_KIND, None, False),
    families.llava: ("causal", 0, ONE_KIND, None, False),
    families.llava_onevision: ("causal", 0, ONE_KIND, None, False),
    families.qwen2_vl: ("causal", 0, ONE_KIND, None, True),
    families.qwen2_5_vl: ("causal", 0, TWO_KINDS, 64, True),
    families.qwen3_vl: ("causal", 0, ONE_KIND, None, True),
    families.internvl: ("causal", 0, ONE_KIND, None, False),
    families.gemma3: ("image", 0, TWO_KINDS, 24, False),
    families.paligemma: ("prefix", 1, ONE_KIND, None, False),
}
REASONS = {  # visibility, as far as the plain way needs it, and why responses are not packed
    families.paligemma2: ("prefix", "it does not take the masks of a packed sequence (AttributeError: "),
    families.qwen3_5: ("causal", "its layers of kind linear_attention read token after token"),
}


def every(builds):
    return pytest.mark.parametrize("build", builds, ids=lambda build: build.__name__)


def made(build, dtype=torch.float32, scale=1.0):
    """A family's random model, its matrices multiplied by `scale`, and its processor."""
    torch.manual_seed(0)
    model, processor = build()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= scale
    return model.to(dtype).eval(), processor


def facts(layout: Layout) -> tuple:
    return layout.visibility, layout.first, layout.kinds, layout.window, layout.axes is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.1])
@every(families.PACKED)
def test_every_family_has_its_layout(build, scale, dtype):
    """Whatever the weights: large, so small that attention hardly tells, or rounded to half precision."""
    layout = describe(*made(build, dtype, scale)).layout
    assert facts(layout) == EXPECTED[build]
    assert not layout.why_unpacked


@every(families.PLAIN)
def test_a_family_that_cannot_be_packed_has_a_reason(build):
    layout = describe(*made(build)).layout
    visibility, reason = REASONS[build]
    assert layout.visibility == visibility
    assert layout.why_unpacked.startswith(reason)


def test_the_tables_hold_every_family():
    assert [*EXPECTED, *REASONS] == [*families.PACKED, *families.PLAIN]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every(families.PACKED)
def test_a_wrong_visibility_is_never_taken(build, dtype, monkeypatch):
    """Not even where it is the only one on offer."""
    model, processor = made(build, dtype)
    for wrong in set(VISIBILITIES) - {EXPECTED[build][0]}:
        monkeypatch.setattr(layouts, "VISIBILITIES", (wrong,))
        assert describe(model, processor).layout.why_unpacked


@every([families.qwen2_5_vl, families.gemma3])
@pytest.mark.parametrize("window", [4, 6, 1000])
def test_a_wrong_window_is_never_taken(build, window, monkeypatch):
    masks = Layout.masks
    monkeypatch.setattr(Layout, "masks", lambda self, *args: masks(replace(self, window=window), *args))
    assert "differ" in describe(*made(build)).layout.why_unpacked


@every([families.qwen2_vl, families.qwen2_5_vl, families.qwen3_vl])
def test_positions_in_one_axis_are_not_taken_for_three(build, monkeypatch):
    monkeypatch.setattr(layouts, "_three_axes", lambda *_: None)
    assert "differ" in describe(*made(build)).layout.why_unpacked


def test_what_no_mask_describes_goes_the_plain_way():
    """A model that reads its text backwards by itself, but sees what it is told to in a packed sequence."""
    model, processor = made(families.smolvlm)

    def backwards(_, arguments, named):
        if named["attention_mask"] is None or named["attention_mask"].dim() == 2:
            length = named["inputs_embeds"].shape[1]
            named["attention_mask"] = torch.ones(1, 1, length, length, dtype=torch.bool).triu()
        return arguments, named

    model.get_decoder().register_forward_pre_hook(backwards, with_kwargs=True)
    assert "differ" in describe(model, processor).layout.why_unpacked


def test_a_refusal_is_the_reason_and_any_other_fault_is_raised():
    model, processor = made(families.smolvlm)

    def fail(error):
        def hook(*_):
            raise error

        return model.get_decoder().register_forward_pre_hook(hook)

    with fail(RuntimeError("a mask of four dimensions")):
        assert "(RuntimeError: a mask of four dimensions)" in describe(model, processor).layout.why_unpacked
    with fail(ZeroDivisionError()), pytest.raises(ZeroDivisionError):
        describe(model, processor)
    assert not describe(model, processor).layout.why_unpacked


def test_the_reason_is_a_warning(tmp_path):
    folder = families.save(families.paligemma2, tmp_path)
    with pytest.warns(UserWarning, match=r"one forward a response, because it does not take .*AttributeError"):
        load_backbone(str(folder), dtype="float32", device=torch.device("cpu"))


@every([families.gemma3, families.paligemma2])
def test_the_model_is_left_as_it_was(build):
    """Its layers, its window and its hooks; also where it refuses a packed sequence."""
    model, processor = made(build)
    decoder, layers = model.get_decoder(), list(model.get_decoder().layers)
    describe(model, processor)
    assert list(decoder.layers) == layers
    assert model.config.get_text_config().sliding_window == 24
    assert not decoder._forward_pre_hooks and not model.get_output_embeddings()._forward_pre_hooks
