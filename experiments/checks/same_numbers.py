"""Does a change of the code change a number? Five short runs, compared bit by bit with those of another checkout.

    python -m experiments.checks.same_numbers FOLDER                    runs of this checkout, on one thread
    python -m experiments.checks.same_numbers FOLDER --against OTHER    and compares them with another checkout's

The runs: SFT, SFT with LoRA, HaNoRec and DPO on top of the first, and the first and third in two processes. Compared
are every line of metrics.jsonl and every tensor of the models. Exits with 1 where something differs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from experiments.common import ROOT

SFT = "train_sft.py --max-steps 60 --validate-every 30 --validate-users 50"
DPO = "train_dpo.py --sft {folder}/sft --train-users 800 --max-steps 20 --validate-users 50"
TWO = "-m torch.distributed.run --standalone --nproc-per-node 2"
RUNS = {
    "sft": SFT,
    "sft-lora": f"{SFT} --lora on",
    "hanorec": DPO,
    "dpo": f"{DPO} --loss dpo",
    "sft-two": f"{TWO} {SFT}",
    "hanorec-two": f"{TWO} {DPO}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs are written; what is there is replaced")
    parser.add_argument("--against", type=Path, metavar="OTHER", help="a folder that another checkout's script wrote")
    args = parser.parse_args()
    folder = args.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": ""}
    for name, command in RUNS.items():
        words = [*command.format(folder=folder).split(), "--output", str(folder / name)]
        subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, check=True, capture_output=True)
    if args.against:
        different = [name for name in RUNS if not same(folder / name, args.against / name)]
        print(f"different: {', '.join(different)}" if different else f"all {len(RUNS)} runs are the same")
        sys.exit(bool(different))


def same(one: Path, other: Path) -> bool:
    """Whether two runs have the same log and tensors."""
    logs = [(run / "metrics.jsonl").read_bytes() for run in (one, other)]
    ours, theirs = ({f.name: load_file(f) for f in (run / "model").glob("*.safetensors")} for run in (one, other))
    if logs[0] != logs[1] or not ours or ours.keys() != theirs.keys():
        return False
    return all(
        tensors.keys() == theirs[file].keys() and all(tensors[name].equal(theirs[file][name]) for name in tensors)
        for file, tensors in ours.items()
    )


if __name__ == "__main__":
    main()
