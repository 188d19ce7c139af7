"""A checkpoint's or an adapter's files are a stranger's: what is damaged, or asks for more than its weights hold, is
named before anything is built."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from hanorec.errors import DataError
from hanorec.models import chat
from hanorec.models.backbone import load_backbone
from hanorec.models.checkpoint import check_adapter, check_checkpoint

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "chat_template.jinja")


@pytest.fixture
def checkpoint(random_backbone, tmp_path):
    return shutil.copytree(random_backbone, tmp_path / "checkpoint")


def change(path, **values):
    """Change a JSON file; `text_config__vocab_size` is in its part text_config."""
    content = json.loads(path.read_text())
    for name, value in values.items():
        *parts, key = name.split("__")
        (content[parts[0]] if parts else content)[key] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["pointer", "cut", "empty", "pipe", "link", "folder"])
def test_a_file_that_is_damaged_or_none_is_named(checkpoint, name, damage):
    path = checkpoint / name
    content = path.read_bytes()
    path.unlink()
    if damage == "pipe":
        os.mkfifo(path)
    elif damage == "link":
        path.symlink_to(name)
    elif damage == "folder":
        path.mkdir()
    else:
        path.write_bytes({"pointer": POINTER, "cut": content[: len(content) // 2], "empty": b""}[damage])
    if (name, damage) == ("chat_template.jinja", "cut"):
        return  # a text like any other: the loader finds it out
    with pytest.raises(DataError, match=f"{name}: .*{'Git LFS pointer' if damage == 'pointer' else ''}"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe{}", b"[" * 100_000, b"{}{}"])
def test_what_is_no_mapping_in_json_is_named(checkpoint, content):
    (checkpoint / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(DataError, match="tokenizer_config.json: (must be a mapping|cannot be read)"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/tool.jinja"])
def test_a_template_has_a_limit(checkpoint, name):
    (checkpoint / name).parent.mkdir(exist_ok=True)
    with open(checkpoint / name, "wb") as file:
        file.truncate(10 * 2**30)
    with pytest.raises(DataError, match=f"{name}: cannot be read .10,737,418,240 bytes, the limit is"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "name", ["text_config__num_hidden_layers", "vision_config__num_hidden_layers", "text_config__num_experts", "depth"]
)
@pytest.mark.parametrize("count", [100_000, -1])
def test_more_layers_than_the_weights_have_tensors_are_refused(checkpoint, name, count):
    change(checkpoint / "config.json", **{name: count})
    with pytest.raises(DataError, match=f"config.json: {name.replace('__', '.')} {count}, and its weights have"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"text_config__vocab_size": 2**40}, "other sizes than its weights have"),
        ({"text_config__intermediate_size": 2**40}, "other sizes than its weights have"),
        ({"vision_config__hidden_size": 2**22}, "other sizes than its weights have"),
        ({"vision_config__image_size": 2**20}, "other sizes than its weights have"),
        ({"vision_config__patch_size": 0}, "zero"),
        ({"text_config__hidden_size": "many"}, "hidden_size"),
        ({"text_config": 3}, "text_config"),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused_and_not_allocated(checkpoint, values, said):
    change(checkpoint / "config.json", **values)
    with pytest.raises(DataError, match=f"backbone .*checkpoint: cannot be loaded .*{said}"):
        load_backbone(str(checkpoint))


def test_layers_without_weights_are_told(checkpoint):
    change(checkpoint / "config.json", text_config__num_hidden_layers=5)
    with pytest.warns(UserWarning, match="checkpoint: 9 tensors are not in its files and start at random, for inst"):
        load_backbone(str(checkpoint))


class Template:
    """A processor with nothing but a template."""

    def __init__(self, text):
        self.chat_template = text

    def apply_chat_template(self, messages):
        from transformers.utils.chat_template_utils import render_jinja_template

        return render_jinja_template([messages], chat_template=self.chat_template)[0][0]


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "text, said",
    [
        (LOOP, "not done in 0.1 s"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% for", "cannot be rendered"),
        ("{{ raise_exception('no images') }}", "no images"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("", "once each"),
        ("{{ messages }}{{ messages }}", "once each"),
    ],
)
def test_a_template_that_loops_fails_or_writes_something_else_is_told(monkeypatch, text, said):
    monkeypatch.setattr(chat, "MOST_SECONDS", 0.1)
    with pytest.raises(DataError, match=f"its chat template .*{said}"):
        chat.image_text(Template(text))


@pytest.fixture
def adapter(tmp_path):
    """An adapter of rank 2 on two layers, as PEFT writes one."""
    config = LoraConfig(r=2, target_modules=["model.layers.0.q_proj", "v_proj"]).to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    (tmp_path / "adapter_config.json").write_text(json.dumps(config, default=str))
    names = [f"base_model.{layer}.lora_{side}.weight" for layer in ("q", "v") for side in "AB"]
    save_file({name: torch.zeros((2, 6) if "_A" in name else (6, 2)) for name in names},
              tmp_path / "adapter_model.safetensors")  # fmt: skip
    check_adapter(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "values, said",
    [
        ({"target_modules": r"(.*a){30}b"}, r"target_modules must be a list of names, not '.*a"),
        ({"target_modules": ["(a+)+$"]}, "target_modules must be a list of names"),
        ({"target_modules": None}, "target_modules must be a list of names"),
        ({"exclude_modules": "(a+)+$"}, "exclude_modules"),
        ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern"),
        ({"modules_to_save": ["(a+)+$"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa', where this project writes True"),
        ({"megatron_config": {}, "megatron_core": "os"}, "megatron_co"),
        ({"r": 2**30}, r"r 1073741824, and adapter_model.safetensors has \[2\]"),
        ({"r": "2"}, "r '2', and adapter"),
        ({"peft_type": "LOHA"}, "is not of a LoRA adapter"),
    ],
)
def test_an_adapter_is_lora_on_named_layers_of_the_rank_of_its_weights(adapter, values, said):
    change(adapter / "adapter_config.json", **values)
    with pytest.raises(DataError, match=f"adapter_config.json: {said}"):
        check_adapter(adapter)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("content", [b"", POINTER, b"[]", b"{"])
def test_damaged_files_of_an_adapter_are_named(adapter, name, content):
    (adapter / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        check_adapter(adapter)


def test_an_adapter_in_pickle_format_is_never_read(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(DataError, match=r"adapter_model.bin can run code when it is read"):
        check_adapter(adapter)
