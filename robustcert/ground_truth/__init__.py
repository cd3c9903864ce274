"""Distances and level sets that are exact up to float64: what certificates are compared with."""
