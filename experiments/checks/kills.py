"""Kill training with SIGKILL at random moments, resume it, and compare every byte of what it leaves with a run that was
never killed.

    python -m experiments.checks.kills              10 kills of SFT and 10 of HaNoRec, tiny backbone, toy catalogue
    python -m experiments.checks.kills --kills 3

Writes kills.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.common import ROOT
from hanorec.evaluation.report import markdown

SHORT = [
    "--max-steps", "30", "--train-users", "400", "--batch-size", "8", "--validate-every", "7", "--validate-users", "20",
    "--checkpoint-every", "2", "--log-every", "1",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of each stage (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    args = parser.parse_args()
    moments, rows = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stage in ("sft", "dpo"):
            whole = folder / f"{stage}-whole"
            begun = time.perf_counter()
            subprocess.run(command(stage, whole, folder), check=True, capture_output=True)
            lasted, expected = time.perf_counter() - begun, left(whole)
            for number in range(args.kills):
                rows.append(one(stage, folder, moments.uniform(0, lasted), expected))
                print(f"{stage} {number + 1}/{args.kills}: {rows[-1]}", flush=True)
    identical = sum(row[-1] == "yes" for row in rows)
    table = markdown(["stage", "killed after, s", "steps written then", "identical"], rows)
    text = f"{identical} of {len(rows)} killed and resumed runs left exactly what the whole run left.\n\n{table}\n"
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    sys.exit(identical != len(rows))


def command(stage: str, output: Path, folder: Path) -> list[str]:
    own = ["train_sft.py"] if stage == "sft" else ["train_dpo.py", "--sft", str(folder / "sft-whole")]
    own += ["--output", str(output), "--cache", str(folder / "cache"), *SHORT]
    return [sys.executable, str(ROOT / own[0]), *own[1:]]


def one(stage: str, folder: Path, moment: float, expected: dict[str, str]) -> list:
    """Start, kill after `moment` seconds, resume, compare."""
    run = folder / f"{stage}-killed"
    shutil.rmtree(run, ignore_errors=True)
    process = subprocess.Popen(command(stage, run, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(moment)
    process.kill()
    process.wait()
    log = run / "metrics.jsonl"
    steps = sum('"loss"' in line for line in log.read_text().splitlines()) if log.exists() else 0
    if not (run / "finished.json").exists():
        how = ["--resume"] if (run / "config.json").exists() else []
        subprocess.run([*command(stage, run, folder), *how], check=True, capture_output=True)
    return [stage, f"{moment:.1f}", str(steps), "yes" if left(run) == expected else "NO"]


def left(run: Path) -> dict[str, str]:
    """The SHA-256 of every file of a run but those that name its folder: its config and its model card. That of
    finished.json is without the digests that it keeps of these and of the other files."""
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name not in ("config.json", "README.md"))
    late = ("checkpoint", ".partial", "lock")  # what a run that was killed when all was done may leave
    files = [path for path in files if not any(part in f"{path.parent.name}/{path.name}" for part in late)]
    contents = {str(path.relative_to(run)): path.read_bytes() for path in files}
    if "finished.json" in contents:
        finished = json.loads(contents["finished.json"])
        contents["finished.json"] = json.dumps({k: v for k, v in finished.items() if k != "files"}).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


if __name__ == "__main__":
    main()
