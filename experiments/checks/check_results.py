"""Compare the tables and figures of README.md, docs/ and the experiments' READMEs with the files that they come from.

    python -m experiments.checks.check_results

An HTML comment on the line before says where a table or a paragraph comes from, from one file or from several:

    <!-- rows of experiments/claims/main-job.md -->
    <!-- figures of experiments/speed/rejected.md and experiments/speed/rejected-135m.md -->

A table may leave out rows and columns of its file: columns are matched by their headers, and every row must stand, cell
for cell, in the same one of the file's tables. Every decimal number of a paragraph must stand in its file. Prints what
does not match, with page, line and row, and exits with 1 if anything does not.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from experiments.common import ROOT

MARKER = re.compile(r"<!-- (rows|figures) of (.+) -->")
Table = list[list[str]]  # rows of cells, the header first


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = [line for page in pages() for line in differences(page)]
    print("\n".join(found) or f"the marked tables and figures of {len(pages())} pages are those of their files")
    sys.exit(bool(found))


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("experiments/**/README.md"))]


def differences(page: Path, root: Path = ROOT) -> list[str]:
    """What does not match on a page, a line each: page, line, what is there and the files where it is not."""
    lines, found = page.read_text(encoding="utf-8").splitlines(), []
    for number, line in enumerate(lines, start=1):
        marker = MARKER.fullmatch(line.strip())
        if marker is None:
            continue
        kind, names = marker[1], marker[2].split(" and ")
        files = [root / name for name in names]
        missing = [name for name, file in zip(names, files) if not file.is_file()]
        if missing:
            found.append(f"{page.name}:{number}: there is no file {', '.join(missing)}")
            continue
        block = block_at(lines, number)
        texts = [file.read_text(encoding="utf-8") for file in files]
        wrong = missing_rows(block, texts) if kind == "rows" else missing_figures(block, texts)
        found += [f"{page.name}:{number + 1 + place}: {what} is not in {marker[2]}" for place, what in wrong]
    return found


def block_at(lines: list[str], start: int) -> list[str]:
    """The lines from index `start` on up to the next empty one."""
    end = next((i for i in range(start, len(lines)) if not lines[i].strip()), len(lines))
    return lines[start:end]


def missing_rows(block: list[str], texts: list[str]) -> list[tuple[int, str]]:
    """The rows, each with its place in the block, that the most similar table of the texts does not hold."""
    if len(block) < 3 or not all(line.lstrip().startswith("|") for line in block):
        return [(0, "a table (none follows the comment)")]
    (header, *rows), best = tables("\n".join(block))[0], None
    for their_header, *theirs in (table for text in texts for table in tables(text)):
        if set(header) <= set(their_header):
            columns = [their_header.index(name) for name in header]
            known = [[row[column] for column in columns] for row in theirs]
            wrong = [(2 + i, f"the row {' | '.join(row)}") for i, row in enumerate(rows) if row not in known]
            best = wrong if best is None or len(wrong) < len(best) else best
    return [(0, f"a table with the columns {' | '.join(header)}")] if best is None else best


def missing_figures(block: list[str], texts: list[str]) -> list[tuple[int, str]]:
    """The decimal numbers, each with its line in the block, that the texts do not hold."""
    known = {number for text in texts for number in re.findall(r"\d+\.\d+", text)}
    numbers = [(place, number) for place, line in enumerate(block) for number in re.findall(r"\d+\.\d+", line)]
    if not numbers:
        return [(0, "a decimal number (none follows the comment)")]
    return [(place, f"the number {number}") for place, number in numbers if number not in known]


def tables(text: str) -> list[Table]:
    """Every Markdown table of a text, white space normalized and without the rule below the header."""
    found = []
    for block in re.findall(r"(?:^[ \t]*\|.*\n?)+", text, re.MULTILINE):
        rows = [[" ".join(cell.split()) for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        found.append([rows[0], *rows[2:]])
    return found


if __name__ == "__main__":
    main()
