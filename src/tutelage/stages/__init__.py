"""The stages: each reads artefacts and writes one run directory. No stage imports another."""
