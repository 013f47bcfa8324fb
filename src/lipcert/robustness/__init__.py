"""What networks do on domains: margins, ranges of outputs, certified robustness of examples."""
