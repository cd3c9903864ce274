"""Randomised smoothing: radii of a noisy majority vote, each true with a stated probability."""

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from robustcert.certifiers.arithmetic import strict_arithmetic
from robustcert.certifiers.base import (
    Certificates,
    Certifier,
    Claim,
    Proof,
    require_covered_metric,
)
from robustcert.certifiers.quantiles import clopper_pearson_low, normal_quantile_low, product_low
from robustcert.network.network import PlainNetwork, pairwise_bound
from robustcert.network.units import finite_samples, network_inputs


class SmoothingCertifier(Certifier):
    r"""Certify the classifier that takes the class most probable under Gaussian noise.

    With :math:`g(x) = \arg\max_c P(f(x + \sigma \xi) = c)` for a standard normal :math:`\xi`, any
    lower bound :math:`p > 1/2` on the probability of the class c gives

    .. math:: g(x') = c \quad \text{for all } \lVert x' - x \rVert_2 < \sigma \Phi^{-1}(p).

    c is guessed from ``n0`` noisy copies, and p is the bound of Clopper and Pearson from ``n``
    further ones, rounded down as the quantile is: of every sample, the radius is false with
    probability at most ``alpha`` over the draw. Where p is not above 1/2 the certifier abstains. It
    is another function than the network, which is what all the other certifiers speak of, and the
    statement is not a proof: two draws give two radii, and of many samples some radii may be false.

    The noise of a sample is drawn from a generator seeded by ``seed`` and the sample's own values,
    so that a radius depends neither on the batch nor on the order. The theorem speaks of real
    numbers: noise and sums are float32, whose rounding is not covered.

    Reference: Cohen, Rosenfeld and Kolter, `Certified adversarial robustness via randomized
    smoothing <https://arxiv.org/abs/1902.02918>`_, ICML 2019.

    Args:
        sigma: Standard deviation of the noise, in input units.
        n0: Noisy copies from which the class is guessed.
        n: Noisy copies from which its probability is bounded.
        alpha: Probability that a radius is false, at most; between 0 and 1.
        seed: Of the noise.
        batch_size: Noisy copies evaluated at once.

    Example:
        >>> network = fold_network(torch.nn.Flatten(), (2,))
        >>> certifier = SmoothingCertifier(sigma=0.25, n0=10, n=1000, alpha=0.001)
        >>> result = certifier.certify(network, torch.tensor([[9.0, 0.0]]))
        >>> f"{result.radius.item():.4f}"  # however far the tie is, 1000 votes prove no more
        '0.6158'
    """

    def __init__(
        self,
        sigma: float = 0.25,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        seed: int = 0,
        batch_size: int = 10_000,
    ) -> None:
        if not 0 < sigma < math.inf:
            raise ValueError(f"expected noise above 0, got {sigma}: set certifier.sigma")
        if not 0 < alpha < 1:
            raise ValueError(
                f"expected a probability between 0 and 1, got {alpha}: set certifier.alpha"
            )
        for name, value in (("n0", n0), ("n", n), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"expected at least 1, got {value}: set certifier.{name}")
        self.sigma, self.n0, self.n, self.alpha = sigma, n0, n, alpha
        self.seed, self.batch_size, self.dtype = seed, batch_size, torch.float32

    def claim(self, network: PlainNetwork, samples: Iterable[Tensor] = ()) -> Claim:
        """Noise and confidence, with the constants of the network itself beside them."""
        require_covered_metric(self, network)
        smoothing = {
            "sigma": self.sigma,
            "n0": self.n0,
            "n": self.n,
            "alpha": self.alpha,
            "confidence": 1 - self.alpha,
            "seed": self.seed,
        }
        pairwise = pairwise_bound(network)
        functions = ("smoothed",)
        return Claim(Proof.SMOOTHING, functions, self.dtype, pairwise, smoothing=smoothing)

    @torch.no_grad()
    @strict_arithmetic()
    def certify(self, network: PlainNetwork, x: Tensor) -> Certificates:
        """Certify inputs of shape ``(N, *input_shape)``.

        Where it abstains, radius is 0 and margin NaN; else margin is 2 p - 1, how far the class is
        ahead of all others together. ``error`` is 0: the rounding of the network is not covered.
        """
        require_covered_metric(self, network)
        x = network_inputs(x, network.input_shape)
        fast = network.owned().to(x.device, self.dtype)
        found = [self._certify_one(fast, sample) for sample in x]
        prediction = torch.tensor([c for c, _ in found], dtype=torch.long, device=x.device)
        low = torch.tensor([p for _, p in found], dtype=torch.float64, device=x.device)
        radii = [
            product_low(self.sigma, normal_quantile_low(p)) if p > 0.5 else 0.0 for _, p in found
        ]
        radius = torch.tensor(radii, dtype=torch.float64, device=x.device)
        proved = (low > 0.5) & finite_samples(x)
        return Certificates(
            prediction,
            torch.where(proved, radius, 0.0),
            torch.where(proved, 2 * low - 1, torch.nan),
            torch.zeros_like(low),
        )

    def _certify_one(self, network: PlainNetwork, sample: Tensor) -> tuple[int, float]:
        data = sample.detach().cpu().float().numpy().tobytes()
        key = hashlib.sha256(str(self.seed).encode() + data).digest()
        generator = torch.Generator(sample.device).manual_seed(int.from_bytes(key[:8]) >> 1)
        guess = int(self._count(network, sample, self.n0, generator).argmax())
        hits = int(self._count(network, sample, self.n, generator)[guess])
        return guess, clopper_pearson_low(hits, self.n, self.alpha)

    def _count(
        self, network: PlainNetwork, sample: Tensor, copies: int, generator: torch.Generator
    ) -> Tensor:
        """How often each class is predicted; a prediction that is no number is none."""
        classes = network(sample[None].to(self.dtype)).shape[1]
        counts = torch.zeros(classes, dtype=torch.long, device=sample.device)
        for start in range(0, copies, self.batch_size):
            shape = (min(self.batch_size, copies - start), *sample.shape)
            noise = torch.randn(shape, generator=generator, device=sample.device, dtype=self.dtype)
            logits = network(sample.to(self.dtype) + self.sigma * noise)
            logits = logits[torch.isfinite(logits).all(1)]
            counts += logits.argmax(1).bincount(minlength=classes)
        return counts
