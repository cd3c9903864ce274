"""Certified radii from global pairwise Lipschitz bounds."""

import os
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robustcert.certifiers.arithmetic import strict_arithmetic
from robustcert.certifiers.base import (
    Certificates,
    Certifier,
    Claim,
    Proof,
    certificates,
    exceeds_error,
    moved,
    require_covered_metric,
)
from robustcert.certifiers.together import bound_together
from robustcert.margins import smallest_margin
from robustcert.network.agreement import require_agreement
from robustcert.network.fold import fold_network
from robustcert.network.forward_error import forward_error
from robustcert.network.network import PlainNetwork, pairwise_bound
from robustcert.network.onnx import fitted, read_onnx
from robustcert.network.units import in_units, network_inputs


class PairwiseCertifier(Certifier):
    """Radii from margins over pairwise constants, which a subclass may make larger.

    Args:
        arithmetic: Arithmetic of the forward pass, and so of the deployed network that radii speak
            of: float64, or float32, whose worst-case error often leaves nothing.
    """

    # What the radii rest on.
    proof: ClassVar[str]

    def __init__(self, arithmetic: Literal["float64", "float32"] = "float64") -> None:
        self.dtype = {"float64": torch.float64, "float32": torch.float32}[arithmetic]
        self.functions = ("R", "F64") if arithmetic == "float64" else ("R", "F32")

    def pairwise_bound(self, network: PlainNetwork) -> Tensor:
        """Bounds on the constants of logit i minus logit j, shape ``(C, C)``, float64.

        Raises:
            UnsoundNetworkError: a bound cannot be proved.
        """
        return _pairwise_bound(network.owned()).clone()

    def claim(self, network: PlainNetwork, samples: Iterable[Tensor] = ()) -> Claim:
        """The proof, the functions and the pairwise constants; see :class:`Certifier`."""
        require_covered_metric(self, network)
        pairwise = self.pairwise_bound(network)
        return Claim(self.proof, self.functions, self.dtype, pairwise=pairwise)

    def distances(
        self,
        network: PlainNetwork,
        inputs: Tensor,
        prediction: Tensor,
        gap: Tensor,
        pairwise: Tensor,
        drift: float,
    ) -> Tensor:
        """Distances within which the prediction stays ahead of each class, shape ``(N, C)``.

        Args:
            network: The network.
            inputs: Shape ``(N, *input_shape)``.
            prediction: Classes, shape ``(N,)``.
            gap: Margins less what rounding may take off them at the centre, shape ``(N, C)``.
            pairwise: What :meth:`pairwise_bound` returned.
            drift: What rounding may take off besides, per unit of distance.
        """
        return gap / (pairwise[prediction] + drift)

    @torch.no_grad()
    @strict_arithmetic()
    def certify(self, network: PlainNetwork, x: Tensor) -> Certificates:
        """Certify inputs of shape ``(N, *input_shape)``, see ``in_units``.

        Raises:
            UnsoundNetworkError: a bound of the network cannot be proved.
            ValueError: the inputs have another shape than the network's, or stand for no numbers.
        """
        require_covered_metric(self, network)
        network = network.owned()
        x = network_inputs(x, network.input_shape)
        inputs = x.to(self.dtype)
        bound_together(network)
        result = forward_error(network, inputs)
        pairwise = self.pairwise_bound(network).to(x.device)

        def distances(prediction: Tensor, gap: Tensor, drift: float) -> Tensor:
            return self.distances(network, inputs, prediction, gap, pairwise, drift)

        found = certificates(result, x, inputs, distances)
        if network.space.metric is not None:
            # Where the input was rounded, the metric's ball is not around the rounded one.
            radius = torch.where(moved(x, inputs) == 0, found.radius, 0.0)
            found = replace(found, radius=radius)
        return decide(network, x, inputs, found)


class LipschitzCertifier(PairwiseCertifier):
    r"""Certify by the margins over sound pairwise Lipschitz bounds.

    .. math:: r = \min_{j \ne c} \frac{m_j - 2 \sqrt 2\, \alpha}{K_{cj} + \sqrt 2\, \beta}

    m is the computed margin and :math:`\alpha + \beta r` bounds the error of the computed logits
    within distance r, so that neither the real-valued network (R) nor the network deployed in the
    given arithmetic (F64 or F32) changes its prediction at any point of the open ball that
    it can be given. One :math:`\sqrt 2 \alpha` is spent at the centre, the other at the point. An
    input that the arithmetic cannot represent is rounded first, and what that moves it is taken off
    the radius.

    Args:
        arithmetic: As in :class:`PairwiseCertifier`.

    Example:
        >>> network = fold_network(torch.nn.Flatten(), (2,))  # the inputs are the logits
        >>> result = LipschitzCertifier().certify(network, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        >>> result.radius  # margin / sqrt(2); a tie has none
        tensor([0.7071, 0.0000], dtype=torch.float64)
        >>> result.decided
        tensor([ True, False])
    """

    proof = Proof.LIPSCHITZ
    covers_metric = True


def decide(network: PlainNetwork, x: Tensor, inputs: Tensor, found: Certificates) -> Certificates:
    """The same certificates; predictions left open by their arithmetic are decided in float64.

    Args:
        network: The network.
        x: What is certified, shape ``(N, *input_shape)``.
        inputs: The same in the arithmetic of the network, which may have moved it.
        found: What is known of it.
    """
    if inputs.dtype == torch.float64:
        return found
    known = found.decided & ((found.radius > 0) | (moved(x, inputs) == 0))
    rows = (~known & torch.isfinite(found.margin)).nonzero()[:, 0]
    if len(rows) == 0:
        return found
    result = forward_error(network, x[rows].double())
    prediction = found.prediction[rows]
    margin = smallest_margin(result.output, prediction)
    ahead = exceeds_error(margin, result.centre * (1 + 1e-9)) & torch.isfinite(margin)
    return replace(found, decided=found.decided.index_copy(0, rows, ahead))


@lru_cache(maxsize=4)
@strict_arithmetic()
def _pairwise_bound(network: PlainNetwork) -> Tensor:
    # Of an owned network, which never changes; the bound costs a factorisation.
    bound_together(network)
    return pairwise_bound(network)


def certify(
    module: torch.nn.Module | PlainNetwork | str | os.PathLike[str], x: Tensor
) -> Certificates:
    """Certify the predictions of a module, without Lightning or Hydra.

    Args:
        module: A model of this package, any other module whose forward calls what is known
            (:mod:`robustcert.network.capture`), a folded network, or the path of an ONNX file
            (:mod:`robustcert.network.onnx`).
        x: Inputs of shape ``(N, *input_shape)``: uint8, of which p stands for float32(p / 255), or
            floating point.

    Raises:
        UnknownLipschitz: a module, or a function that its forward calls, is not known.
        DisagreementError: the module computes something else than it folds into.
        UnsoundNetworkError: a bound cannot be proved.
        ValueError: the inputs stand for no real numbers.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
        >>> _ = torch.nn.init.eye_(net[0].weight)
        >>> certify(net, torch.tensor([[1.0, 0.0]])).radius
        tensor([0.7071], dtype=torch.float64)
    """
    x = in_units(x)
    if isinstance(module, str | os.PathLike):
        module = fitted(read_onnx(module), tuple(x.shape[1:]))
    if isinstance(module, PlainNetwork):
        return LipschitzCertifier().certify(module, x)
    network = fold_network(module, x.shape[1:])
    with strict_arithmetic():
        require_agreement(module, network, x)
    return LipschitzCertifier().certify(network, x)
