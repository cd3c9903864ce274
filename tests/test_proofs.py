"""What the prose cites, what is claimed and what the Coq files prove are the same theorems."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PROOFS = ROOT / "proofs"


@pytest.fixture(scope="module")
def assumptions() -> ModuleType:
    spec = importlib.util.spec_from_file_location("assumptions", PROOFS / "assumptions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_comments(source: str) -> str:
    """Coq's text outside of comments, none of which are nested here."""
    return re.sub(r"\(\*.*?\*\)", "", source, flags=re.DOTALL)


def test_every_theorem_is_claimed_and_every_claim_is_a_theorem(assumptions: ModuleType) -> None:
    proved = [
        f"{file.stem}.{name}"
        for file in PROOFS.glob("*.v")
        if file.name != "Assumptions.v"
        for name in re.findall(r"^Theorem (\w+)", without_comments(file.read_text()), re.MULTILINE)
    ]
    assert sorted(proved) == sorted(assumptions.claims())


def test_the_prose_cites_the_claimed_theorems(assumptions: ModuleType) -> None:
    prose = (ROOT / "docs" / "soundness.md").read_text()
    places = re.findall(r"\bCoq: ([^()]*)\)", prose)
    cited = [name for place in places for name in re.findall(r"`(\w+)`", place)]
    assert sorted(cited) == sorted(name.split(".")[1] for name in assumptions.claims())


def test_every_file_is_compiled() -> None:
    listed = (PROOFS / "_CoqProject").read_text().split()
    files = {file.name for file in PROOFS.glob("*.v")} - {"Assumptions.v"}
    assert {word for word in listed if word.endswith(".v")} == files


def test_another_axiom_is_excess(assumptions: ModuleType) -> None:
    log = "\n".join(
        [
            "Axioms:",
            "PrimInt63.add : PrimInt63.int -> PrimInt63.int -> PrimInt63.int",
            "ClassicalDedekindReals.sig_forall_dec",
            "  : forall P : nat -> Prop,",
            "    (forall n : nat, {P n} + {~ P n}) -> {n : nat | ~ P n} + {forall n : nat, P n}",
            "Closed under the global context",
            "Axioms:",
            "Margin.convenient : forall x : nat, x = 0",
            "classic : forall P : Prop, P",
        ]
    )
    found = [assumptions.excess(used) for used in assumptions.answers(log)]
    assert found == [set(), set(), {"Margin.convenient", "classic"}]


def test_an_answer_that_is_not_understood_is_an_error(assumptions: ModuleType) -> None:
    with pytest.raises(ValueError, match="Print Assumptions"):
        assumptions.answers("Error: The reference x was not found in the current environment.")


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(folder / "build.sh")],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("coqc") is None, reason="Coq is not installed: make proofs")
def test_the_build_refuses_what_is_not_proved(tmp_path: Path) -> None:
    folder = tmp_path / "proofs"
    folder.mkdir()
    for name in ("build.sh", "assumptions.py"):
        shutil.copy(PROOFS / name, folder)
    (folder / "_CoqProject").write_text("-Q . Robustcert\nZero.v\n")
    (folder / "claims.txt").write_text("Zero.zero\n")

    (folder / "Zero.v").write_text("Theorem zero : forall n, n * 0 = 0.\nProof. auto. Qed.\n")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 theorems, which rest on nothing" in done.stdout

    (folder / "Zero.v").write_text("Theorem zero : forall n, n * 0 = 0.\nAdmitted.\n")
    done = build(folder)
    assert done.returncode == 1
    assert "assume what should be proved" in done.stderr

    # A variable outside of a section is an axiom that no word gives away.
    text = "Variable false : False.\nTheorem zero : 1 = 0.\nProof. destruct false. Qed.\n"
    (folder / "Zero.v").write_text(text)
    done = build(folder)
    assert done.returncode == 1
    assert "Zero.zero rests on" in done.stderr


@pytest.mark.parametrize(
    ("script", "packages"),
    [
        ("build.sh", "coq libcoq-flocq"),
        ("verified.sh", "coq libcoq-flocq ocaml-nox ocaml-findlib libzarith-ocaml-dev"),
    ],
)
def test_without_coq_the_command_that_installs_it_is_named(
    tmp_path: Path, script: str, packages: str
) -> None:
    for tool in ("bash", "dirname"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    done = subprocess.run(
        [str(PROOFS / script)],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"apt-get install -y --no-install-recommends {packages}\n" in done.stderr
