"""One thread: small networks gain nothing from more, and threads that wait on a busy machine cost minutes."""

import torch

torch.set_num_threads(1)
