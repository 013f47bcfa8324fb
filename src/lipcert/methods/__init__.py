"""Methods: frozen dataclasses whose ``solve`` finds a witness. Only certificates turn a witness into a Bound."""
