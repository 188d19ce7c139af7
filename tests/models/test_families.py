"""Backbones of many families: packed, plain and ready features agree; training changes adapters alone; what is saved
scores the same in another process. Where a family cannot be packed, it goes the plain way and says so."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from PIL import Image
from processes import SERVER
from transformers import LlamaConfig, LlamaForCausalLM

from hanorec.data.dataset import split_examples
from hanorec.data.examples import groups
from hanorec.data.full_catalog import FullCatalog
from hanorec.errors import DataError
from hanorec.evaluation.ranking import answer_with_model
from hanorec.losses import hanorec_loss
from hanorec.models import attention, scoring, tiny
from hanorec.models import images as images_module
from hanorec.models.backbone import load_backbone
from hanorec.models.encoding import open_images, process_image
from hanorec.models.images import CatalogImages
from hanorec.models.lora import add_lora
from hanorec.models.packing import Prompt
from hanorec.models.prompts import Prompts, windows_for
from hanorec.models.scoring import score
from hanorec.training.optimization import adamw
from hanorec.training.runs import load_start
from tools import families

CPU = torch.device("cpu")
EVERY = [*families.PACKED, *families.PLAIN]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each family's checkpoint, made when first asked for."""
    made = {}

    def of(build):
        if build not in made:
            made[build] = families.save(build, tmp_path_factory.mktemp(build.__name__))
        return made[build]

    return of


@pytest.fixture(scope="module")
def frozen(data):
    """The toy catalogue's images with the features that each family's checkpoint gives them, computed when first asked
    for; each test may change its own."""
    made = {}

    def of(build, backbone) -> CatalogImages:
        if build not in made:
            made[build] = CatalogImages(backbone, data.catalog.images, frozen=True)
        return copy.deepcopy(made[build])

    return of


def load(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_backbone(str(folder), dtype="float32", device=CPU)


@pytest.mark.parametrize("build", EVERY, ids=lambda build: build.__name__)
def test_packed_and_ready_features_equal_the_family_used_plainly(build, folders, frozen, data):
    """The reference here is the family's own forward over pixels, prompt + response in a sequence, nothing of ours."""
    backbone = load(folders(build))
    assert bool(backbone.layout.why_unpacked) == (build in families.PLAIN)
    pictures = [Image.open(data.catalog.images[item]).convert("RGB") for item in (0, 5)]
    ids, inputs = families.asked_plainly(backbone, pictures, "Comet IMAGE then IMAGE which?")
    responses = [backbone.tokens(text) for text in ("Tide of", "Tide of the", "the other one")]
    prompt = Prompt(ids, [0, 5])

    with torch.no_grad():
        plain = families.plain_logps(backbone, ids, inputs, responses)
        live = score(backbone, CatalogImages(backbone, data.catalog.images[:6]), [prompt], [responses])
        images = frozen(build, backbone)
        once = score(backbone, images, [prompt], [responses])
    torch.testing.assert_close(live, plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(once, live, atol=1e-5, rtol=0)
    if build not in families.PLAIN:  # images are seen at all: with others' features the result is another
        images.contents[0], images.contents[5] = images.contents[5], images.contents[0]
        assert (score(backbone, images, [prompt], [responses]) - live).abs().max() > 1e-3


@pytest.mark.parametrize("build", EVERY, ids=lambda build: build.__name__)
def test_images_that_are_processed_together_come_out_as_each_alone(build, folders, data):
    """Of two sizes, one of which occurs once; by what the family's processor makes of one image."""
    backbone = load(folders(build))
    pictures = [Image.open(path).convert("RGB") for path in data.catalog.images[:3]]
    pictures.insert(1, pictures[0].resize((100, 80)))
    for each, (opened, processed) in zip(pictures, open_images(backbone, pictures)):
        alone = process_image(backbone, each)
        assert opened is each and processed.placeholders == alone.placeholders
        assert all(processed.pixels[name].equal(value) for name, value in alone.pixels.items())
        assert (processed.grid is None) == (alone.grid is None) and processed.pixels.keys() == alone.pixels.keys()


def test_items_without_an_image_do_not_say_in_which_form_a_family_takes_features(folders, data, tmp_path, monkeypatch):
    """InternVL takes one tensor; a part of the catalogue that shows nothing, kept by an earlier run, knows no form."""
    backbone = load(folders(families.internvl))
    monkeypatch.setattr(images_module, "SHARD_SIZE", 2)
    CatalogImages(backbone, [None, None], frozen=True, cache=tmp_path)
    images = CatalogImages(backbone, [*data.catalog.images[:2], None, None], frozen=True, cache=tmp_path)
    ids = [backbone.tokens("Comet")[0], *images.placeholders(0)]
    with torch.no_grad():
        assert score(backbone, images, [Prompt(ids, [0])], [[backbone.tokens("Tide of")]]).isfinite().all()


def test_reference_forwards_keep_to_their_tokens_where_each_response_has_a_prompt_of_its_own(
    folders, frozen, data, monkeypatch
):
    backbone = load(folders(families.paligemma2))
    images = frozen(families.paligemma2, backbone)
    prompts = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False)
    examples = split_examples(data, "test", "next", candidates=5, users=3)
    asked = [prompts.prompt(example) for example in examples]
    answers = [[prompts.name([item]) for item in example.candidates] for example in examples]
    budget = 2 * max(map(prompts.length, asked, answers)) // 5
    read = []

    def watched(backbone, images, x, y):
        read.append(sum(len(some) * prompt.length for prompt, some in zip(x, y)))
        return score(backbone, images, x, y)

    monkeypatch.setattr(scoring, "score", watched)
    kept = scoring.score_all(backbone, images, asked, answers, weights="", forward_tokens=budget)
    assert max(read) <= budget and len(read) > len(examples)
    with torch.no_grad():
        torch.testing.assert_close(kept, score(backbone, images, asked, answers), atol=1e-4, rtol=0)


def test_a_model_that_trained_whole_on_whole_images_cannot_be_asked_for_tiles(folders, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folders(families.idefics3), run / "model")
    (run / "config.json").write_text(json.dumps({"kind": "sft", "image_views": "one", "backbone": "any"}))
    (run / "finished.json").write_text("{}")
    assert load_start(str(run), dtype="float32", views="one").num_parameters > 0
    with pytest.raises(DataError, match="--image-views many"):
        load_start(str(run), dtype="float32", views="many")


@pytest.mark.parametrize("build", EVERY, ids=lambda build: build.__name__)
def test_prompts_of_several_lengths_share_a_forward(build, folders, frozen, data):
    """Sliding windows, image blocks and positions in three axes hold beside padding too."""
    backbone = load(folders(build))
    images = frozen(build, backbone)
    prompts = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False)
    examples = sorted(split_examples(data, "test", "next", candidates=4, users=8), key=lambda e: len(e.history))[::3]
    answers = [[prompts.name([item]) for item in example.candidates] for example in examples]
    asked = [prompts.prompt(example) for example in examples]
    with torch.no_grad():
        together = score(backbone, images, asked, answers)
        apart = torch.cat([score(backbone, images, [p], [[a]]) for p, some in zip(asked, answers) for a in some])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=0)


@pytest.mark.parametrize("build", families.PACKED, ids=lambda build: build.__name__)
def test_nested_windows_equal_each_window_alone(build, folders, frozen, data, monkeypatch):
    """The row is read with attention in blocks, the windows without."""
    backbone = load(folders(build))
    images = frozen(build, backbone)
    prompts = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False)
    if windows_for(backbone.layout, "nested") != "nested":
        pytest.skip("a prompt sees all of itself")
    row = max(groups(split_examples(data, "train", "next", windows="nested"), nested=True), key=len)
    answers = [prompts.chosen(example) for example in row]
    with torch.no_grad():
        with monkeypatch.context() as blocks:
            blocks.setattr(attention, "LEAST", 0)
            blocks.setattr(attention, "BLOCK", 16)
            together = score(backbone, images, [prompts.nested(row)], [answers])
        apart = [score(backbone, images, [prompts.prompt(e)], [[answer]]) for e, answer in zip(row, answers)]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-4, rtol=0)


@pytest.mark.parametrize("build", families.PACKED, ids=lambda build: build.__name__)
def test_the_whole_catalogue_is_ranked_as_if_every_title_were_scored(build, folders, frozen, data):
    backbone = load(folders(build))
    images = frozen(build, backbone)
    prompts = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False)
    examples = split_examples(data, "test", "next", candidates=2, users=2)
    full_catalog = FullCatalog(data.warm)
    ranks = answer_with_model(backbone, prompts, examples, full_catalog=full_catalog).ranks
    for example, (ahead, _) in zip(examples, ranks):
        items = full_catalog.candidates(example)
        with torch.no_grad():
            logps = score(backbone, images, [prompts.prompt(example)], [[prompts.name([item]) for item in items]])
        truth = int((logps[1:] > logps[0] + 1e-4).sum())
        assert min(int(ahead), 50) == pytest.approx(min(truth, 50), abs=1)


def train(model, loss_of):
    """Two steps, in which every adapter weight changes."""
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    assert before and all("lora_" in name and ".vis" not in name for name in before)
    optimizer = adamw(model.train(), 0.0)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    for _ in range(2):
        loss_of().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(not p.equal(before[n]) for n, p in model.named_parameters() if p.requires_grad)
    model.eval()


def images_of(backbone, data, examples, frozen: bool = False) -> CatalogImages:
    """The images of the examples' histories; the other items have none."""
    shown = {item for example in examples for item in example.history}
    images = [image if item in shown else None for item, image in enumerate(data.catalog.images)]
    return CatalogImages(backbone, images, frozen=frozen)


def sft_and_dpo(folder, data, output):
    """Two steps of each; nothing but the adapters may change. Saves both; returns the log-probabilities at the end."""
    backbone = load(folder)
    base = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    torch.manual_seed(0)
    examples = split_examples(data, "train", "next", users=2, candidates=4)
    policy = add_lora(backbone)
    model = policy.model
    images = images_of(policy, data, examples, frozen=True)
    prompts = Prompts(policy, images, data.catalog.titles, "next", list_candidates=False)
    asked = [prompts.prompt(example) for example in examples]
    answers = [[prompts.chosen(example), *prompts.rejected(example)] for example in examples]

    train(model, lambda: -score(policy, images, asked, [some[:1] for some in answers]).sum())
    kept = {n.replace("base_model.model.", "").replace(".base_layer", ""): v for n, v in model.state_dict().items()}
    assert all(kept[name].equal(value) for name, value in base.items())
    model.save_pretrained(output / "sft")

    reference = replace(policy, model=model.merge_and_unload())
    reference_logps = score(reference, images, asked, answers).detach().view(-1, 2).T
    policy = add_lora(reference)
    model = policy.model
    merged = {n: v.clone() for n, v in model.state_dict().items() if "lora_" not in n}
    easy = torch.ones(len(asked))
    train(
        model,
        lambda: hanorec_loss(*score(policy, images, asked, answers).view(-1, 2).T, *reference_logps, easy).loss,
    )
    after = model.state_dict()
    assert all(after[name].equal(value) for name, value in merged.items())
    model.save_pretrained(output / "dpo")
    with torch.no_grad():
        return score(policy, images, asked, answers).tolist()


def loaded_again(folder, output, data) -> list[float]:
    """The log-probabilities of what `sft_and_dpo` saved, loaded with PEFT and Hugging Face."""
    backbone = load(folder)
    for stage in ("sft", "dpo"):
        model = PeftModel.from_pretrained(backbone.model, output / stage)
        backbone.model = model.merge_and_unload() if stage == "sft" else model.eval()
    examples = split_examples(data, "train", "next", users=2, candidates=4)
    images = images_of(backbone, data, examples)
    prompts = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False)
    answers = [[prompts.chosen(example), *prompts.rejected(example)] for example in examples]
    with torch.no_grad():
        return score(backbone, images, [prompts.prompt(example) for example in examples], answers).tolist()


def test_two_steps_of_sft_and_dpo_change_adapters_alone_and_load_again(folders, data, tmp_path):
    """For every family; the fresh process at the end loads with PEFT and Hugging Face, and scores with this project."""
    expected = {build: sft_and_dpo(folders(build), data, tmp_path / build.__name__) for build in EVERY}
    with ProcessPoolExecutor(1, SERVER) as other:
        for build, logps in expected.items():
            found = other.submit(loaded_again, folders(build), tmp_path / build.__name__, data).result()
            assert found == pytest.approx(logps, abs=1e-4), build.__name__


def test_a_family_that_cannot_be_packed_says_so_once(folders):
    for build in families.PLAIN:
        with pytest.warns(UserWarning, match="one forward a response") as said:
            load_backbone(str(folders(build)), dtype="float32", device=CPU)
        assert sum("one forward a response" in str(line.message) for line in said) == 1


def test_the_whole_catalogue_is_refused_where_responses_cannot_be_packed(folders, frozen, data):
    backbone = load(folders(families.qwen3_5))
    images = frozen(families.qwen3_5, backbone)
    prompts = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False)
    with pytest.raises(DataError, match="candidates all: needs packed responses"):
        examples = split_examples(data, "test", "next", candidates=2, users=1)
        answer_with_model(backbone, prompts, examples, full_catalog=FullCatalog(data.warm))


def test_a_text_only_model_is_an_error(tmp_path):
    tokenizer = tiny.build_tokenizer(["a b"], 300)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **families.TEXT)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="image-text-to-text|takes no images"):
        load_backbone(str(tmp_path))
