"""One torch thread: the arrays here are small, and two threads only wait for each other."""

import torch

torch.set_num_threads(1)


def pytest_configure(config):
    """Simulators of tests need not be good: a few updates do, which users are warned of."""
    config.addinivalue_line("filterwarnings", "ignore:adam. expected some:UserWarning")
