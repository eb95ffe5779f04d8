"""What hostile clients send: the attack list with its verdicts, and the figures of `make hostile`."""
