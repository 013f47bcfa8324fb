"""Certified robustness: which examples keep their class under perturbations, with a certificate for each."""
