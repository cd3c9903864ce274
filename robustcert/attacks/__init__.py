"""Attacks: what a certificate is compared with, never a proof."""

from robustcert.attacks.ascent import ascend
from robustcert.attacks.budget import Budget
from robustcert.attacks.crosscheck import cross_check
from robustcert.attacks.ddn import ddn
from robustcert.attacks.margin import margin_attack
from robustcert.attacks.pairs import largest_changes
from robustcert.attacks.pgd import PlainModule, pgd_survivors
from robustcert.errors import BrokenCertificate

__all__ = [
    "BrokenCertificate",
    "Budget",
    "PlainModule",
    "ascend",
    "cross_check",
    "ddn",
    "largest_changes",
    "margin_attack",
    "pgd_survivors",
]
