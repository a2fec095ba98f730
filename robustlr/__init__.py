"""Hyperparameter-robustness studies for optimizers, on Optuna.

A study file asks a question, a shared database holds the trials that answer it, workers run them,
analysis reads them. The optimizers are usable alone: ``from robustlr.optim import Nero``.
"""
