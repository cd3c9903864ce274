"""Certifiers: a plain network and inputs to predictions and proved radii."""

from robustcert.certifiers.arithmetic import strict_arithmetic
from robustcert.certifiers.lipschitz import Certificates, LipschitzCertifier, certify

__all__ = ["Certificates", "LipschitzCertifier", "certify", "strict_arithmetic"]
