"""The README and the pages for a first visit: their code runs, their options and links exist."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

import robustcert

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
NAMES = ("start", "first_run", "reading_a_certificate", "own_network", "cluster", "wandb")
PAGES = [README, *(ROOT / "docs" / f"{name}.md" for name in NAMES)]
# A file may also be linked from elsewhere by one of its titles.
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)#?([^)\s]*)\)")


def prose(page: Path) -> str:
    """A page without its Python, whose keyword arguments are not options."""
    return re.sub(r"```python\n.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Titles of a page as they are linked to."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_code_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) == {"README": 1, "own_network": 2}.get(page.stem, 0)
    for code in blocks:
        torch.manual_seed(0)
        exec(compile(code, str(page), "exec"), {})
    said = capsys.readouterr().out
    if page == README:
        assert float(said.split()[-1]) > 0
    for accuracy, verified in re.findall(r"accuracy (\S+), verified at 0.1 (\S+)", said):
        assert 0.6 < float(verified) <= float(accuracy)


def test_a_visitor_reads_it_at_a_sitting() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 130
    (own,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(own.strip().splitlines()) <= 10
    assert len(re.findall(r"^!\[", text, re.MULTILINE)) == 1


def test_what_a_newcomer_types_first_is_in_the_readme() -> None:
    text = README.read_text()
    for command in ("python train.py resume=outputs/<run> ", "robustcert report multirun "):
        assert f"    {command}" in text
    # The tasks that were typed with the README alone, and where it sends whoever types them.
    for place in ("docs/own_network.md", "docs/extending.md", "docs/first_run.md"):
        assert f"({place})" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_that_is_named_exists(page: Path) -> None:
    conf = ROOT / "conf"
    for group in (p.name for p in conf.iterdir() if p.is_dir() and p.name != "hydra"):
        for names in re.findall(rf"\b{group}=([a-z0-9][\w.,]*)", prose(page)):
            for name in names.strip(".,").split(","):
                known = (conf / group / f"{name}.yaml").is_file()
                assert known or name in ("hinge_abs", "null"), f"{group}={name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    for place, anchor in LINK.findall(page.read_text()):
        target = page.parent / place if place else page
        assert target.exists(), place
        assert not anchor or anchor in anchors(target), f"{place}#{anchor}"


def test_the_page_on_installing_lists_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = re.findall(r"^\| `(\w+)` \| ", (ROOT / "docs" / "start.md").read_text(), re.MULTILINE)
    assert set(rows) == set(project["optional-dependencies"])


def test_the_reference_is_that_of_the_citation_file() -> None:
    (entry,) = re.findall(r"```bibtex\n(.*?)```", README.read_text(), re.DOTALL)
    found = dict(re.findall(r"^  (\w+) +=\s\{+(.*?)\}+,?$", entry, re.MULTILINE))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    authors = [author["name"] for author in citation["authors"]]
    assert found["version"] == citation["version"] == robustcert.__version__
    assert [found["author"]] == authors == [author["name"] for author in project["authors"]]
    assert found["title"] == citation["title"]
    assert found["license"] == citation["license"] == project["license"]
    assert str(citation["date-released"]).startswith(f"{found['year']}-")
