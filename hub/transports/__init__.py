"""Transports: one file per wire; all that knows Tornado's handlers or a wire's own framing."""
