"""What README and docs/ say is so: the worked example computes what it prints, links lead somewhere, and every option,
function and test that a page names exists."""

import doctest
import importlib
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from experiments.checks import check_results
from hanorec.data.toy import World
from hanorec.training.dpo_options import DPOOptions
from hanorec.training.evaluation_options import EvaluationOptions
from hanorec.training.options import SFTOptions

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
SCRIPTS = {
    script: {field.name.replace("_", "-") for field in fields(kind)}
    for script, kind in (("train_sft.py", SFTOptions), ("train_dpo.py", DPOOptions), ("evaluate.py", EvaluationOptions))
}
HELP_OF_SCRIPTS = {"help"}
CODE = ("", "src/hanorec", "tests", "experiments", "data", "tools")  # where a file that a page names may be

each_page = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
LINKING = [*PAGES, ROOT / "CHANGELOG.md", *sorted((ROOT / "experiments").rglob("README.md"))]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def quoted(text: str) -> list[str]:
    """What stands in backticks outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def commands(text: str) -> list[list[str]]:
    """The words of every shell command in fenced blocks and in backticks; of `python -m a.b`, the file a/b.py."""
    code = [code for code in quoted(text) if ".py" in code or "python -m" in code]
    shell = "\n".join([*blocks(text, "bash"), *code]).replace("\\\n", " ")
    shell = re.sub(r"python -m (experiments\.[\w.]+)", lambda found: f"python {found[1].replace('.', '/')}.py", shell)
    parts = [part for line in shell.splitlines() for part in re.split(r"&&|;", line)]
    return [shlex.split(part, comments=True) for part in parts]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def declared_options(path: Path) -> set[str]:
    """The options of one of the three scripts, or of another one as its source, and what it shares, declares them."""
    if path.name in SCRIPTS and path.parent == ROOT:
        return SCRIPTS[path.name] | HELP_OF_SCRIPTS
    if path.name == "make_toy.py":
        return {field.name.replace("_", "-") for field in fields(World)} | {"overwrite"}
    source = path.read_text(encoding="utf-8")
    shared = {
        ROOT / f"{name.replace('.', '/')}.py"
        for name in re.findall(r"^from (experiments\.[\w.]+) import", source, re.M)
    }
    if "\nfrom convert import convert\n" in source:
        shared.add(ROOT / "data" / "convert.py")
    return set(re.findall(r'"--([a-z-]+)"', source)).union(*map(declared_options, shared))


def readme_table() -> list[list[str]]:
    """The rows of the README's table: paper, formula, code, test."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("| paper | formula | code | test |\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[1:]]


def test_the_worked_example_computes_what_it_prints():
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    session = "\n".join(blocks(text, "python"))
    assert session.count(">>>") > 20
    assert set(re.findall(r"# Eqs?\. (\d+)", session)) == {"5", "6", "7", "8", "11", "12"}
    runner = doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    runner.run(doctest.DocTestParser().get_doctest(session, {}, "paper.md", "docs/paper.md", 0), out=report.append)
    assert runner.failures == 0, "".join(report)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.parametrize("page, words", [("results", 2500), ("performance", 2000)])
def test_pages_that_are_read_from_top_to_bottom_are_short(page, words):
    assert len((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").split()) <= words


@pytest.mark.parametrize("page", LINKING, ids=[str(page.relative_to(ROOT)) for page in LINKING])
def test_links_lead_to_files_and_headings(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(path), f"{page.name}: {link}"


@each_page
def test_options_exist(page):
    checked = 0
    for words in commands(page.read_text(encoding="utf-8")):
        script = next((place for place, word in enumerate(words) if word.endswith(".py")), None)
        if script is None or words[0] == "pytest" or words[script].startswith("tests/"):
            continue
        path = next((path for folder in CODE if (path := ROOT / folder / words[script]).is_file()), None)
        assert path, f"{page.name}: {words[script]}"
        options = {word[2:].partition("=")[0] for word in words[script + 1 :] if word.startswith("--")}
        assert options <= declared_options(path), f"{page.name}: {words}"
        checked += 1
    assert checked or page.name not in ("README.md", "results.md", "performance.md", "backbones.md")


@each_page
def test_options_in_sentences_exist(page):
    known = set.union(*SCRIPTS.values(), HELP_OF_SCRIPTS)
    for folder in ("experiments", "data", "tools"):
        known |= {option for path in (ROOT / folder).glob("*.py") for option in declared_options(path)}
    named = {option for code in quoted(page.read_text(encoding="utf-8")) for option in re.findall(r"--([a-z-]+)", code)}
    assert named <= known, f"{page.name}: {named - known}"


@each_page
def test_files_and_tests_that_are_named_exist(page):
    tests = {name for path in (ROOT / "tests").rglob("test_*.py") for name in _functions(path)}
    for code in quoted(page.read_text(encoding="utf-8")):
        if re.fullmatch(r"[\w/]+\.py", code):
            assert any((ROOT / folder / code).is_file() for folder in CODE), f"{page.name}: {code}"
        if re.fullmatch(r"test_\w+", code):
            assert code in tests, f"{page.name}: {code}"


def _functions(path: Path) -> list[str]:
    return re.findall(r"^def (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_code_and_tests_of_the_readmes_table_exist():
    functions = {row[0]: re.findall(r"`([\w.]+)`", row[2]) for row in readme_table()}
    assert {f"Eq. {number}" for number in (5, 6, 7, 8, 11, 12)} <= functions.keys()
    for paper, names in functions.items():
        assert names or paper == "all of it"
        for name in names:
            module, function = name.rsplit(".", 1)
            assert callable(getattr(importlib.import_module(f"hanorec.{module}"), function))
    for row in readme_table():
        assert re.search(r"`test_\w+`", row[3]), row[0]


def test_functions_beside_the_equations_are_in_the_files_linked():
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    links = re.findall(r"\[`(\w+)`\]\(([^)]+\.py)\)", text)
    assert len(links) >= 15
    for name, path in links:
        source = (ROOT / "docs" / path).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), f"{name} in {path}"


@pytest.mark.parametrize("number", [5, 6, 7, 8, 11, 12])
def test_every_equation_has_its_line_in_the_dpo_script(number):
    source = (ROOT / "train_dpo.py").read_text(encoding="utf-8")
    loop = source.split("def main()")[1].split("\ndef ")[0]
    assert re.search(rf"#.*Eqs?\. (\d+, )*{number}\b", loop)


def test_marked_tables_and_figures_are_those_of_their_files():
    assert [line for page in check_results.pages() for line in check_results.differences(page)] == []


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_every_table_of_methods_is_marked(page):
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    headers = [number for number, line in enumerate(lines) if line.startswith("| method ")]
    assert headers
    for number in headers:
        assert check_results.MARKER.fullmatch(lines[number - 1]), lines[number]


WRITTEN = """| a | b | c |\n|---|---|---|\n| x | 0.1 | 2 |\n| y | 0.3 | 4 |\n\n| a | c |\n|---|---|\n| x | 9 |\n\nTook 1.25 s."""


@pytest.mark.parametrize(
    "kind, block, wrong",
    [
        ("rows", "| c | a |\n|--:|---|\n|  4 | y |", []),  # columns and rows may be left out, and change places
        ("rows", "| a | c |\n|---|---|\n| x | 2 |\n| x | 9 |", ["6: the row x | 9 is not in w.md"]),  # of two tables
        ("rows", "| a | b |\n|---|---|\n| x | 0.1 |\n| y | 0.1 |", ["6: the row y | 0.1 is not in w.md"]),
        ("rows", "| a | d |\n|---|---|\n| x | 0.1 |", ["3: a table with the columns a | d is not in w.md"]),
        ("rows", "No table.", ["3: a table (none follows the comment) is not in w.md"]),
        ("figures", "It takes 1.25 s,\nor 1.2, or 0.3.", ["4: the number 1.2 is not in w.md"]),
        ("figures", "It is fast.", ["3: a decimal number (none follows the comment) is not in w.md"]),
    ],
)
def test_what_does_not_match_a_file_of_results_is_named(kind, block, wrong, tmp_path):
    (tmp_path / "w.md").write_text(WRITTEN)
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n<!-- {kind} of w.md -->\n{block}\n\nMore, 7.77.\n")
    assert check_results.differences(page, tmp_path) == [f"page.md:{line}" for line in wrong]


def test_a_file_of_results_that_is_missing_is_named(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- rows of w.md and gone.md -->\n| a |\n|---|\n| x |\n")
    (tmp_path / "w.md").write_text(WRITTEN)
    assert check_results.differences(page, tmp_path) == ["page.md:1: there is no file gone.md"]


def test_who_is_cited():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["title"] and citation["message"]
    assert citation["preferred-citation"]["doi"] == "10.1145/3805712.3809590"
