"""How `hopper-check-sync` proves a kernel: docs/proof.md says what and why."""
