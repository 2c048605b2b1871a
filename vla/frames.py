"""The pictures of a data set, kept as bytes where the network is.

    dataset.keep_frames('cuda:0')            # once; batches then hold `frame`, a number per sample
    batch = augment(batch, dataset.frames)   # pictures are gathered on the device

A thousand demonstrations of `place` by three cameras of 96 px are 6 GB. Without this every step
reads its pictures from the file cache, on one core, and sends them over: 10 MB for 128 samples.
"""

# B batch, N cameras, h x w pixels, n windows
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from vla.windows import Windows

READ_AT_A_TIME = 512  # windows


def size_gb(windows: 'Windows') -> float:
    """What the pictures of all windows take, in GB."""
    return len(windows) * _bytes_per_window(windows) / 1e9


def fit(windows: 'Windows', device: str, share: float = 0.5) -> bool:
    """Tell whether the pictures take no more than this share of the memory that a GPU has left."""
    if not device.startswith('cuda'):
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return 1e9 * size_gb(windows) < share * free


def _bytes_per_window(windows: 'Windows') -> int:
    size = windows.processor.image_size
    return len(windows.processor.cameras) * size * size * 3


class Frames:
    """Pictures of the rows that windows start with.

    images   (n, N, h, w, 3) uint8, on the device
    """

    def __init__(self, windows: 'Windows', device: str):
        """Read the pictures of all windows, decoded and brought to the model's size."""
        rows = windows.windows
        self._number = np.full(len(windows.action), -1)  # row of the files -> number of its picture
        self._number[rows] = np.arange(len(rows))
        size = windows.processor.image_size
        shape = (len(rows), len(windows.processor.cameras), size, size, 3)
        self.images = torch.empty(shape, dtype=torch.uint8, device=device)
        for first in range(0, len(rows), READ_AT_A_TIME):
            part = slice(first, first + READ_AT_A_TIME)
            windows.check_files(rows[part])
            self.images[part].copy_(torch.from_numpy(windows.gather_images(rows[part])))

    def numbers(self, rows: np.ndarray) -> torch.Tensor:
        """Numbers (B,) int64 of the pictures of these rows, in main memory."""
        numbers = self._number[rows]
        assert (numbers >= 0).all(), 'no window starts with one of these rows'
        return torch.from_numpy(numbers)
