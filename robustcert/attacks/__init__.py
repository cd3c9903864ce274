"""Attacks: what a certificate is compared with, never a proof."""

from robustcert.attacks.pgd import PlainModule, pgd_survivors

__all__ = ["PlainModule", "pgd_survivors"]
