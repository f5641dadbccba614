"""Many small images on one page."""

from io import BytesIO

import numpy as np
from PIL import Image

from ..files import write_atomically


def write_sheet(images: np.ndarray, columns: int, path: str, zoom: int = 2) -> None:
    """Images (n, 3, H, W) uint8 as a PNG of that many columns, n a multiple of it, each pixel zoom x zoom.

    In 256 colours chosen for it, so that a sheet of noisy pictures takes a quarter of a megabyte.
    """
    n, _, height, width = images.shape
    page = images.reshape(n // columns, columns, 3, height, width).transpose(0, 3, 1, 4, 2)
    picture = Image.fromarray(page.reshape(n // columns * height, columns * width, 3))
    content = BytesIO()
    picture = picture.quantize(256, dither=Image.Dither.NONE)
    picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).save(content, "PNG")
    write_atomically(path, content.getvalue())
