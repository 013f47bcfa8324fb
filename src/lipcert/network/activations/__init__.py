"""The kinds of elementwise activations: settings, value and derivative; ``ops/nonlinearities.py`` makes them."""
