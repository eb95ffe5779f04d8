"""A stub: pip needs it beside setup.cfg, where everything is said."""

from setuptools import setup

setup()
