"""The certifier's contract: names of proofs, what a claim may say, who has pairwise constants."""

import pytest
import torch
from helpers.configs import build, names

from robustcert.certifiers import Certifier, Claim, Proof
from robustcert.certifiers.base import FUNCTIONS
from robustcert.check import statement
from robustcert.network.linear import Dense
from robustcert.network.network import PlainNetwork


def test_the_checker_knows_the_same_words() -> None:
    assert {*Proof} == {*statement.PROOFS, "smoothing"}
    assert FUNCTIONS == {**statement.FUNCTIONS, "smoothed": statement.SMOOTHED_FUNCTION}


@pytest.mark.parametrize(
    ("proof", "functions", "wrong"),
    [
        ("", ("R",), r"Claim\.proof"),
        (None, ("R",), r"Claim\.proof"),
        ("mine", (), r"Claim\.functions: expected some of R, F64, F32, smoothed"),
        ("mine", ("R", "F16"), r"Claim\.functions"),
    ],
)
def test_a_claim_in_no_known_words_is_refused(
    proof: str, functions: tuple[str, ...], wrong: str
) -> None:
    with pytest.raises(ValueError, match=wrong):
        Claim(proof, functions)


@pytest.mark.parametrize("name", names("certifier"))
def test_a_claim_has_the_constants_that_pairwise_bound_proves(name: str) -> None:
    network = PlainNetwork((Dense(torch.eye(2)),), (2,))
    options = {"method": "lipschitz", "tries": 1} if name == "global_robustness" else {}
    certifier = build("certifier", name, **options)
    assert isinstance(certifier, Certifier)
    claim = certifier.claim(network)
    assert claim.proof in {*Proof}
    assert (claim.smoothing is None) == (name != "smoothing")
    assert (claim.pairs is None) == (name != "global_robustness")
    if name not in ("quadratic", "smoothing"):
        assert claim.pairwise is not None
        assert torch.equal(claim.pairwise, certifier.pairwise_bound(network))
