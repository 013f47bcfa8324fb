"""The public functions: glue between capture, methods, certificates and attack."""
