#!/usr/bin/env python3
"""Put every image of a catalogue into words, for `--item-view description` and `--item-view both`.

A backbone captions each image once, by greedy generation, through the `generate` of transformers and the backbone's own
chat template. Writes descriptions.csv (item,description) into the dataset folder. Rows are written as they come, and
those that are there already are kept: after a stop, the same command goes on; delete the file to start anew.

    python data/describe_items.py --data DIR --backbone HuggingFaceTB/SmolVLM-256M-Instruct
    python data/describe_items.py --data data/toy --backbone tiny
    python data/describe_items.py --data DIR --backbone NAME --prompt "{image}Which colours does this poster have?"
"""

from __future__ import annotations

import argparse
import csv
import io
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from hanorec.data.catalog import Catalog, read_catalog, read_descriptions
from hanorec.errors import DataError, exit_on_user_error
from hanorec.files import check_new_folder
from hanorec.models.backbone import DTYPES, Backbone, load_backbone
from hanorec.models.encoding import open_images
from hanorec.models.prompts import HISTORY
from hanorec.training.bounds import BoundedOption

QUESTION = "{image}Describe this image in one short sentence."
TINY_QUESTION = f"{HISTORY}\n{{image}}{{title}}\nWhat is it?"  # what tools/pretrain_tiny.py has asked: look and topic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--backbone", required=True, help="tiny, a Hugging Face hub id, or a folder")
    parser.add_argument("--output", type=Path, help="file to write (default: descriptions.csv in the dataset folder)")
    parser.add_argument(
        "--prompt",
        help=f"what is asked, with {{image}} and, if wanted, {{title}} (default: {QUESTION}, for tiny another)",
    )
    number = partial(parser.add_argument, action=BoundedOption, least=1)
    number("--new-tokens", type=int, default=40, help="most tokens of a description (default 40)")
    number("--batch-size", type=int, default=16, help="images in a forward (default 16)")
    number("--image-pixels", type=int, default=262_144, help="most pixels of an image (default 262144)")
    parser.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help="precision (default auto)")
    parser.add_argument("--remote-code", action="store_true", help="run Python files that come with a checkpoint")
    args = parser.parse_args()
    prompt = args.prompt or (TINY_QUESTION if args.backbone == "tiny" else QUESTION)
    if prompt.count("{image}") != 1:
        raise DataError(f"--prompt {prompt}: must say {{image}} once, where the image stands")
    catalog, output = read_catalog(args.data), args.output or args.data / "descriptions.csv"
    check_new_folder(output.parent)
    left = items_left(catalog, output)
    if left:
        how = dict(dtype=args.dtype, views="one", remote_code=args.remote_code)
        backbone = load_backbone(args.backbone, **how)
        write_descriptions(backbone, catalog, left, output, prompt, args.batch_size, args.new_tokens, args.image_pixels)
    described = sum(map(bool, read_descriptions(output, catalog))) if output.exists() else 0
    print(f"{output}: descriptions of {described} of {len(catalog)} items")


def items_left(catalog: Catalog, output: Path) -> list[int]:
    """The items that have an image and no description yet. A row that a stop has cut off is taken out of the file.

    Errors: DataError where the file does not belong to the catalogue.
    """
    if not output.exists():
        return [item for item, image in enumerate(catalog.images) if image]
    content = output.read_bytes()
    if not content.endswith(b"\n"):
        output.write_bytes(content[: content.rfind(b"\n") + 1])
    texts = read_descriptions(output, catalog)
    return [item for item, image in enumerate(catalog.images) if image and not texts[item]]


def write_descriptions(
    backbone: Backbone,
    catalog: Catalog,
    items: Sequence[int],
    output: Path,
    prompt: str,
    batch_size: int,
    new_tokens: int,
    pixels: int,
) -> None:
    """Describe `items` and append a row for each to `output`; one whose image is broken gets none."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        open(output, "a", encoding="utf-8", newline="") as file,
        tqdm(total=len(items), desc="descriptions", unit="image") as bar,
    ):
        if not file.tell():
            file.write("item,description\n")
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            opened = open_images(backbone, [catalog.images[item] for item in batch], pixels)
            read = [(item, image) for item, (image, _) in zip(batch, opened)]
            opened = [(item, image) for item, image in read if image is not None]
            texts = [prompt_of(backbone, prompt, catalog.titles[item]) for item, _ in opened]
            answers = describe(backbone, [image for _, image in opened], texts, new_tokens)
            rows = io.StringIO(newline="")
            named = [(catalog.items[item], answer) for (item, _), answer in zip(opened, answers) if answer]
            csv.writer(rows, lineterminator="\n").writerows(named)
            file.write(rows.getvalue())  # whole rows, whenever it is stopped
            file.flush()
            bar.update(len(batch))


def prompt_of(backbone: Backbone, prompt: str, title: str) -> str:
    """The text of a chat that asks about an image, up to where the answer begins. A title that holds a special token's
    name is left out."""
    shown = title if backbone.control_tokens.isdisjoint(backbone.tokens(title)) else ""
    before, after = (part.replace("{title}", shown) for part in prompt.split("{image}"))
    if backbone.processor.chat_template is None:
        return f"{before}{backbone.image_text}{after}\n"
    parts = [{"type": "text", "text": before}] * bool(before) + [{"type": "image"}, {"type": "text", "text": after}]
    return backbone.processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)


@torch.no_grad()
def describe(backbone: Backbone, images: Sequence[Image.Image], texts: Sequence[str], new_tokens: int) -> list[str]:
    """The likeliest answer to each text, token by token, on one line and of at most so many tokens."""
    if not images:
        return []
    processor = backbone.processor
    inputs = processor(
        text=list(texts),
        images=[[image] for image in images],
        add_special_tokens=processor.chat_template is None,  # the template writes them
        padding=True,
        padding_side="left",
        return_tensors="pt",
    ).to(backbone.device, backbone.compute)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sampling settings that a checkpoint brings and greedy generation ignores
        ids = backbone.model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens)
    answers = processor.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [" ".join(answer.split()) for answer in answers]


if __name__ == "__main__":
    with exit_on_user_error():
        main()
